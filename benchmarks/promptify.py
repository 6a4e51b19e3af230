"""How fast prompts are assembled, against an f-string and a tokenizer call per example.

    python -m benchmarks.promptify [--smoke] [--out FILE.csv]

Both ways make the same training rows of the generated job market, in text form, in turn (A B A B)
in one process. The plain way is given every profile, item and note as a finished string, joins them
and calls the tokenizer once per row; it need not even say where the events are. The ids must be
equal, or nothing is measured. Tokenizing the catalogue, done once, is shown apart.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from decant.results import ResultRow, write_csv
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation.evaluation.bootstrap import Interval, bootstrap_interval
from promptify.assembly import PromptBook
from promptify.pieces import Pieces
from promptify.prompter import Prompter, PrompterConfig
from promptify.rows import Rows
from promptify.selection import first_of_slate
from promptify.sources.job_market import job_market
from promptify.windows import Windows

TARGET_SPEEDUP = 20
ROWS_PER_BATCH = 32

# Instruction, profile, and of each event its context, item and label, all with their ends.
Example = tuple[str, str, list[tuple[str, str, str]]]


def assembled(book: PromptBook, windows: Windows, *, seed: int) -> list[Rows]:
    return [
        book.assemble(windows[start : start + ROWS_PER_BATCH], seed=seed, epoch=0)
        for start in range(0, len(windows), ROWS_PER_BATCH)
    ]


def tokenized(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> list[list[int]]:
    rows = []
    for instruction, profile, events in examples:
        told = "".join(f"{context}{item} {label}\n" for context, item, label in events)
        text = f"{instruction}{profile}{told}"
        rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return rows


def examples_of(book: PromptBook, windows: Windows, rows: Rows) -> list[Example]:
    """The strings of each row; slates in the order in which the rows have them."""
    prompter, log = book.prompter, book.interactions

    def texts(pieces: Pieces) -> list[str]:
        return [str(prompter.tokenizer.decode(pieces[p].tolist())) for p in range(len(pieces))]

    names = [field.name for field in log.schema.user]
    told = [prompter.profile_text({name: user[name] for name in names}) for user in log.users]
    profiles = texts(prompter.profile_pieces(told))
    contexts = texts(prompter.context_pieces(map(prompter.context_text, log.contexts)))
    instructions, items = texts(prompter.instruction_pieces), texts(book.item_pieces)
    examples: list[Example] = []
    for row in range(len(windows)):
        logged = slice(int(windows.first_event[row]), int(windows.last_event[row]))
        shown = slice(int(rows.event_offsets[row]), int(rows.event_offsets[row + 1]))
        slate = log.event_slate[logged]
        before = np.where(
            first_of_slate(slate, np.array([0, len(slate)])), log.event_context[logged], -1
        )
        columns = (before, rows.event_item[shown], rows.event_label[shown])
        events = [
            (contexts[context] if context >= 0 else "", items[item], prompter.label_words[label])
            for context, item, label in zip(*columns, strict=True)
        ]
        examples.append((instructions[windows.task[row]], profiles[windows.user[row]], events))
    return examples


def measure(
    *, num_rounds: int, num_rows: int, sizes: dict[str, int], seed: int
) -> tuple[NDArray[np.float64], int, float]:
    """Seconds of both ways in each round [rounds, 2], tokens of a round, seconds of the book.

    Raises:
        ValueError: the two ways made different ids.
    """
    data = job_market(seed=seed, **sizes)
    log = data.interactions
    train = np.ones(log.num_events, np.bool_)
    config = PrompterConfig(form="text", max_prompt_tokens=1024)
    prompter = Prompter.fit(log, train, data.tasks, config=config)
    began = time.perf_counter()
    book = prompter.book(log)
    book_seconds = time.perf_counter() - began

    windows = book.windows(train, seed=seed, epoch=0)
    drawn = np.random.default_rng(seed).permutation(len(windows))[:num_rows]
    windows = windows[np.sort(drawn)]
    examples = examples_of(book, windows, book.assemble(windows, seed=seed, epoch=0))

    # The warm-up is the check: one untimed round of each.
    ids = np.concatenate([rows.ids for rows in assembled(book, windows, seed=seed)])
    if not np.array_equal(ids, np.concatenate(tokenized(prompter.tokenizer, examples))):
        raise ValueError("the two ways made different ids; nothing was measured.")
    seconds = np.zeros((num_rounds, 2))
    for round_seconds in seconds:
        start = time.perf_counter()
        assembled(book, windows, seed=seed)
        middle = time.perf_counter()
        tokenized(prompter.tokenizer, examples)
        round_seconds[:] = middle - start, time.perf_counter() - middle
    return seconds, len(ids), book_seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Assembling prompts against making each anew.")
    parser.add_argument("--smoke", action="store_true", help="a small market and few rounds")
    parser.add_argument("--out", type=Path, help="write the result as CSV")
    parser.add_argument("--seed", type=int, default=0, help="of the market and its rows")
    options = parser.parse_args(arguments)
    num_rounds, num_rows = (3, 64) if options.smoke else (15, 512)
    sizes = {"num_members": 200, "num_jobs": 150, "num_impressions": 4000} if options.smoke else {}
    began = time.perf_counter()
    try:
        seconds, num_tokens, book_seconds = measure(
            num_rounds=num_rounds, num_rows=num_rows, sizes=sizes, seed=options.seed
        )
    except ValueError as error:
        print(f"benchmarks.promptify: error: {error}", file=sys.stderr)
        return 1

    def interval(values: NDArray[np.float64]) -> Interval:
        return bootstrap_interval(values, np.arange(num_rounds), seed=options.seed)

    speedup = interval(seconds[:, 1] / seconds[:, 0])
    rates = {
        "promptify": interval(num_tokens / seconds[:, 0]),
        "per-example": interval(num_tokens / seconds[:, 1]),
    }
    print(f"Text form, {num_rows} rows of the job market, {num_tokens:,} tokens. {hardware()}")
    print(f"{'':16}{'tokens/s':>14}{'95 % interval':>28}")
    for model, rate in rates.items():
        print(f"{model:16}{rate.value:14,.0f}{f'{rate.low:,.0f} to {rate.high:,.0f}':>28}")
    print(
        f"Speedup {speedup.value:.1f} ({speedup.low:.1f} to {speedup.high:.1f}), {num_rounds} "
        f"rounds; target {TARGET_SPEEDUP}. Tokenizing the catalogue, once: {book_seconds:.2f} s."
    )
    if options.out:
        measured = [("promptify", "speedup_vs_per_example", speedup)]
        measured += [(model, "tokens_per_s", rate) for model, rate in rates.items()]
        settings = {"rounds": num_rounds, "rows": num_rows, "batch": ROWS_PER_BATCH, **sizes}
        elapsed, finished = time.perf_counter() - began, utc_now()
        write_csv(
            options.out,
            [
                ResultRow(
                    benchmark="promptify",
                    task="job_market",
                    split="all",
                    model=model,
                    context_tokens=1024,
                    metric=metric,
                    value=value.value,
                    ci_low=value.low,
                    ci_high=value.high,
                    n=num_rounds,
                    seconds=elapsed,
                    peak_bytes=peak_rss_bytes(),
                    hardware=hardware(),
                    commit=git_commit(),
                    config_hash=json_hash(settings),
                    seed=options.seed,
                    timestamp=finished,
                )
                for model, metric, value in measured
            ],
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
