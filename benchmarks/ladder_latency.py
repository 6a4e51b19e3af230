"""How much faster smaller shapes answer: whole requests, in turn with the top.

    python -m benchmarks.ladder_latency job_market_text --shape 4x728x6x288 2x152x6x264

On the beds of `benchmarks.ladder`, with random weights: a request's time is that of its shapes and
prompts, whatever weights say, and a bed in text takes hours to train. `latency_ratio` is the median
request's time as a share of the top's, with the interval of rounds over the same requests;
`params_ratio` the body parameters likewise.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.ladder import random_below
from benchmarks.ladder_beds import Bed, bed_of
from benchmarks.measured import Measured
from benchmarks.scoring_rounds import median
from decant.architecture import LatencyRatio
from decant.making import untrained
from decant.run_data import split_of
from distill.anatomy import Shape
from foundation.evaluation import Interval
from promptify.prompter import Prompter

_ROUNDS = 5


def measure(bed: Bed, shapes: Sequence[Shape], out: Measured, *, requests: int) -> None:
    """Time every shape against the bed's top.

    Args:
        bed: whose data, prompts and top.
        shapes: that are timed.
        out: takes the rows.
        requests: of each round.
    """
    data, recipe = bed.load(), bed.recipe
    split = split_of(
        data.interactions,
        data.tasks,
        held_out_slates=recipe.held_out_slates,
        test_slates=recipe.test_slates,
        held_out_people=recipe.held_out_people,
    )
    prompter = Prompter.fit(data.interactions, split.train, data.tasks, config=recipe.prompter)
    book = prompter.book(data.interactions)
    top = untrained(recipe, book, split)
    top.refresh_readings()
    ratio_to = LatencyRatio(top.eval(), book, split.test, requests=requests)
    for shape in shapes:
        model = random_below(top, shape, recipe, book, split)
        taken = median(np.array([ratio_to(model) for _ in range(_ROUNDS)]))
        size = model.num_parameters() / top.num_parameters()
        for metric, (value, (low, high)), n in (
            ("params_ratio", (size, (size, size)), None),
            ("latency_ratio", taken, _ROUNDS * requests),
        ):
            out.add(
                seed=recipe.seed,
                interval=Interval(value=value, low=low, high=high),
                task=bed.name,
                split="random weights",
                model=shape.code,
                params=model.num_parameters(),
                context_tokens=recipe.prompter.max_prompt_tokens,
                metric=metric,
                n=n,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time of a whole request at smaller shapes, as a share of the top's."
    )
    parser.add_argument("task", choices=("job_market", "job_market_text", "ml1m"))
    parser.add_argument(
        "--shape",
        nargs="+",
        default=["4x728x6x288", "2x152x6x264"],
        help="layers, neurons, groups of heads and hidden width; by default two rungs of the "
        "ladder on the job market, at .45 and .10 of the body",
    )
    parser.add_argument("--data", type=Path, help="the zip of MovieLens-1M")
    parser.add_argument("--requests", type=int, default=40, help="of each of five rounds")
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    parser.add_argument("--smoke", action="store_true", help="seconds of everything")
    options = parser.parse_args(arguments)
    try:
        bed = bed_of(options.task, data=options.data, smoke=options.smoke, minutes=None, to=None)
        shapes = [Shape.parse(text) for text in options.shape]
        settings = {"recipe": bed.recipe.to_dict(), "source": dict(bed.source)}
        out = Measured("ladder_latency", settings, out=options.out)
        measure(bed, shapes, out, requests=3 if options.smoke else options.requests)
    except (ValueError, OSError) as error:
        print(f"benchmarks.ladder_latency: error: {error}", file=sys.stderr)
        return 1
    print(out.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
