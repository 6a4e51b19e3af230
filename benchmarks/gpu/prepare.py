"""Prompts for `benchmarks.gpu`, made where the data and the libraries that read it are.

    python -m benchmarks.gpu.prepare --data ml-1m.zip --out prepared/ml1m
    python -m benchmarks.gpu.prepare --data ml-1m.zip --out prepared/ml1m-slots --form slot
    python -m benchmarks.gpu.prepare --smoke --out prepared/tiny

The folder is all that the GPU machine needs beside the code: events as integers, films and profiles
as tokens, the split, the tokenizer. It holds people's data: ship it to nobody, commit it nowhere.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from promptify.prepared import save_prepared
from promptify.prompter import Prompter, PrompterConfig
from promptify.splits import leave_one_out

Form = Literal["text", "slot"]
# Twice the median history of MovieLens-1M fits, and a hundred events nearly always.
FILMS: dict[Form, PrompterConfig] = {
    "text": PrompterConfig(
        form="text", max_prompt_tokens=2048, max_item_tokens=32, max_profile_tokens=32
    ),
    "slot": PrompterConfig(form="slot", max_prompt_tokens=512, max_item_tokens=32),
}
TINY = PrompterConfig(
    form="text",
    max_prompt_tokens=320,
    max_item_tokens=24,
    max_profile_tokens=32,
    max_context_tokens=16,
    vocab_size=700,
)


def prepare(out: Path, *, data: Path | None, smoke: bool, form: Form = "text") -> None:
    """Write prepared prompts of MovieLens-1M, or of a tiny generated market.

    Args:
        out: is made; must not exist.
        data: the zip of MovieLens-1M.
        smoke: the market instead.
        form: of the prompts.

    Raises:
        BadInput: the folder exists, or the zip cannot be read.
        ValueError: there is no data.
    """
    if smoke:
        from promptify.sources.job_market import job_market

        source = job_market(num_members=60, num_jobs=50, num_impressions=600)
    elif data is None:
        raise ValueError("--data is needed: the path of ml-1m.zip (or give --smoke).")
    else:
        from promptify.sources.movielens import ml_1m

        source = ml_1m(data)
    log = source.interactions
    split = leave_one_out(log, surface=source.tasks[0].name if len(source.tasks) > 1 else None)
    config = replace(TINY, form=form) if smoke else FILMS[form]
    prompter = Prompter.fit(log, split.train, source.tasks, config=config)
    save_prepared(prompter.book(log), split, out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="ml-1m.zip")
    parser.add_argument("--out", type=Path, required=True, help="the folder; must not exist")
    parser.add_argument("--form", choices=("text", "slot"), default="text", help="of the prompts")
    parser.add_argument("--smoke", action="store_true", help="a tiny generated market")
    options = parser.parse_args(arguments)
    try:
        prepare(options.out, data=options.data, smoke=options.smoke, form=options.form)
    except (ValueError, OSError) as error:
        print(f"benchmarks.gpu.prepare: error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
