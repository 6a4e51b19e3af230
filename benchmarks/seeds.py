"""Several runs that differ by their seed alone: rows of each, and then of their mean.

A mean's interval is over people, each drawn with all that was asked of them under every seed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured
from decant.recipes import Recipe, recipe_of


def each_run(options: argparse.Namespace) -> list[argparse.Namespace]:
    """A command line for each of the runs that one names; see `run_parser`, `takes_several`.

    Raises:
        ValueError: they differ by more than their seed, or not even by that.
    """
    runs = options.run or [None]
    if len(runs) > 1:
        recipes_of = [recipe_of(run) for run in runs]
        if len({recipe.seed for recipe in recipes_of}) < len(runs):
            raise ValueError(f"the runs {', '.join(map(str, runs))} have a seed twice.")
        alike = recipes_of[0].with_seed(0)
        for run, recipe in zip(runs, recipes_of, strict=True):
            if recipe.with_seed(0) != alike:
                raise ValueError(f"{run} differs from {runs[0]} by more than its seed.")
    return [argparse.Namespace(**{**vars(options), "run": run}) for run in runs]


def mean_of(
    benchmark: str, recipe: Recipe, settings: Mapping[str, Any], *, out: Path | None
) -> Measured:
    """Where rows of a mean go; of whichever seeds: one of three takes the place of one of two.

    Args:
        benchmark: the name in the first column.
        recipe: of one of the runs.
        settings: what else the numbers depend on, whatever the seed.
        out: the file of rows.
    """
    alike = recipe.with_seed(0).to_dict()
    return Measured(benchmark, {"mean of": alike, "settings": dict(settings)}, out=out)


class Found(NamedTuple):
    """What was found of some targets, by every model that was asked of them.

    Attributes:
        user_m: int64, whose they are.
        rank_m: int64, by model; of those alone that have something to say.
    """

    user_m: NDArray[np.int64]
    rank_m: dict[str, NDArray[np.int64]]


def pooled(found: Sequence[Found]) -> Found:
    """What was found under several seeds, one after the other.

    People are the same under every seed; or of a market of its own each, whose members are no surer
    for being drawn together, nor less so.
    """
    return Found(
        np.concatenate([one.user_m for one in found]),
        {model: np.concatenate([one.rank_m[model] for one in found]) for model in found[0].rank_m},
    )
