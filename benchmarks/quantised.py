"""Where int8 pays on a processor: scoring in float32 and in int8, in turn, by width.

    python -m benchmarks.quantised [--smoke] [--out FILE.csv]

Random weights, a new prefix and a hundred candidates, in slots (two tokens each) and in text
(sixteen). `int8_speedup` is float32's time over int8's, as the median of the turns with its 95 %
bootstrap interval; `max_abs_error` is the largest difference of a log-probability. What a trained
model loses is for the gate: `decant quantise`.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from benchmarks.measured import Measured
from benchmarks.scoring_rounds import median, timed
from benchmarks.scoring_ways import TINY, Request, Shape, ours, random_foundation
from foundation.evaluation import Interval
from foundation.int8 import to_int8

WIDTHS = (64, 128, 256, 512, 1024)
# Tokens of the prefix, candidates, tokens of each.
LOADS = {"slot": (200, 100, 2), "text": (512, 100, 16)}
SMOKE_LOADS = {"slot": (20, 4, 2)}
_LAYERS, _HEAD_WIDTH = 4, 32


def shape_of_width(width: int) -> Shape:
    """Four layers; the MLP three times as wide; heads of 32."""
    heads = width // _HEAD_WIDTH
    return Shape(
        layers=_LAYERS,
        width=width,
        mlp=3 * width,
        heads=heads,
        kv_heads=heads,
        head_width=_HEAD_WIDTH,
    )


def measure(
    shape: Shape, loads: dict[str, tuple[int, int, int]], measured: Measured, *, turns: int
) -> None:
    """Rows of one shape.

    Args:
        shape: of the decoder.
        loads: by form.
        measured: takes the rows.
        turns: of each.
    """
    whole = random_foundation(shape, seed=0)
    small = copy.deepcopy(whole)
    to_int8(small)
    for form, load in loads.items():
        request = Request.draw(whole, load, seed=0)
        both = [timed(ours(model), request) for model in (whole, small)]
        error = float(np.abs(both[0]()[1] - both[1]()[1]).max())
        seconds = np.array([[one()[0] for one in both] for _ in range(turns)])
        ratio, (low, high) = median(seconds[:, 0] / seconds[:, 1])
        cells = {
            "task": "x".join(map(str, load)),
            "split": form,
            "params": whole.num_parameters(),
            "context_tokens": load[0],
        }
        name = f"{shape.layers} layers x {shape.width}"
        speedup = Interval(value=ratio, low=low, high=high)
        measured.add(seed=0, interval=speedup, metric="int8_speedup", model=name, n=turns, **cells)
        for column, metric in ((0, "float32_ms"), (1, "int8_ms")):
            middle, (low, high) = median(1000 * seconds[:, column])
            taken = Interval(value=middle, low=low, high=high)
            measured.add(seed=0, interval=taken, metric=metric, model=name, n=turns, **cells)
        largest = Interval(value=error, low=error, high=error)
        measured.add(
            seed=0, interval=largest, metric="max_abs_error", model=name, n=load[1], **cells
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    parser.add_argument("--turns", type=int, default=11, help="of each precision; default 11")
    parser.add_argument("--smoke", action="store_true", help="seconds of everything")
    options = parser.parse_args(arguments)
    shapes = [TINY] if options.smoke else [shape_of_width(width) for width in WIDTHS]
    loads = SMOKE_LOADS if options.smoke else LOADS
    turns = 3 if options.smoke else options.turns
    measured = Measured(
        "quantised", {"shapes": repr(shapes), "loads": loads, "turns": turns}, out=options.out
    )
    for shape in tqdm(shapes, desc="widths", delay=2):
        measure(shape, loads, measured, turns=turns)
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
