"""Which way down: what the next rung gives up, by what it counts for.

A step goes notch by notch. Each notch takes from the dimension whose least important parts count
least for their number: their share of the importance in that dimension over their share of its
parts. Parts that count as much as the others of their kind stand at 1; where many count for little,
they go first, and as they go, those that are left count for more and another dimension's turn
comes. No dimension gives up more than half of itself in one step.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.anatomy import (
    DIMENSIONS,
    Dimension,
    Shape,
    body_parameters,
    is_stock,
    notch,
    shape_of,
)
from distill.importance import Importance
from promptify.assembly import PromptBook
from promptify.rows import Rows

_LARGEST_SHARE = 0.5


def next_shape(
    decoder: Any,
    importance: Importance,
    *,
    step: float,
    at_least: int,
    start: Shape | None = None,
    until: Shape | None = None,
) -> Shape | None:
    """The shape of the next rung.

    Args:
        decoder: of the rung above.
        importance: of its parts.
        step: share of its body parameters that may go at once.
        at_least: body parameters at which the ladder is at its end: it stops at the first notch
            that is not above them.
        start: of the step, a shape that `decoder` can be pruned to; its own when left out.
        until: the shape at the ladder's end, of which no dimension goes below; None for any.

    Returns:
        A stock shape; None where no notch is small enough.
    """
    there = shape = start or shape_of(decoder)
    floor = (1 - step) * body_parameters(decoder, there)
    while body_parameters(decoder, shape) > at_least:
        smaller = _least(decoder, importance, shape, there, floor, until)
        if smaller is None:
            break
        shape = smaller
    return None if shape == there else shape


def _least(
    decoder: Any,
    importance: Importance,
    shape: Shape,
    there: Shape,
    floor: float,
    until: Shape | None,
) -> Shape | None:
    """The notch that gives up least; None where none is left above the floor."""
    best, least = None, float("inf")
    for dimension in DIMENSIONS:
        smaller = notch(decoder, shape, dimension)
        if until is not None:
            end = until.size(dimension)
            if shape.size(dimension) == end:
                continue
            if smaller is None or smaller.size(dimension) < end:
                smaller = shape.with_size(dimension, end)
                if not is_stock(decoder, smaller):
                    # Such as a width that only fewer heads divide: those have to go first.
                    continue
        if smaller is None or body_parameters(decoder, smaller) < floor:
            continue
        if smaller.size(dimension) < _LARGEST_SHARE * there.size(dimension):
            continue
        given_up = relative_importance(
            importance, dimension, shape.size(dimension), smaller.size(dimension)
        )
        if given_up < least:
            best, least = smaller, given_up
    return best


def calibration_rows(book: PromptBook, train: NDArray[np.bool_], *, count: int, seed: int) -> Rows:
    """The prompts that decide what stays: some training windows, the same for the same seed.

    Args:
        book: pieces of the interactions.
        train: bool [E], the training events.
        count: of prompts, at most.
        seed: which.
    """
    windows = book.windows(train, seed=seed, epoch=0)
    count = min(count, len(windows))
    chosen = np.random.default_rng(seed).choice(len(windows), size=count, replace=False)
    return book.assemble(windows[np.sort(chosen)], seed=seed, epoch=0)


def relative_importance(
    importance: Importance, dimension: Dimension, before: int, after: int
) -> float:
    """How much the parts between two sizes count, 1 being as much as the others of their kind.

    Args:
        importance: of all parts.
        dimension: whose.
        before: parts that are left, the most important ones.
        after: parts that would be left of those.
    """
    if dimension in ("layers", "hidden"):
        each = [torch.as_tensor(getattr(importance, dimension))]
    else:
        each = list(getattr(importance, dimension))
    shares = [_share(values, before, after) for values in each]
    return sum(shares) / len(shares) * before / (before - after)


def _share(values: Tensor, before: int, after: int) -> float:
    left = values.double().sort(descending=True).values[:before]
    return float(left[after:].sum() / left.sum().clamp(min=1e-30))
