"""Which way down: what the next rung gives up, by what it counts for.

A step goes notch by notch. Each notch takes from the dimension whose least important parts count
least for their number: their share of the importance in that dimension over their share of its
parts. Parts that count as much as the others of their kind stand at 1; where many count for little,
they go first, and as they go, those that are left count for more and another dimension's turn
comes. No dimension gives up more than half of itself in one step.
"""

from typing import Any

import torch
from torch import Tensor

from distill.anatomy import DIMENSIONS, Dimension, Shape, body_parameters, notch, shape_of
from distill.importance import Importance

_LARGEST_SHARE = 0.5


def next_shape(decoder: Any, importance: Importance, *, step: float, at_least: int) -> Shape | None:
    """The shape of the next rung.

    Args:
        decoder: of the rung above.
        importance: of its parts.
        step: share of its body parameters that may go at once.
        at_least: body parameters at which the ladder is at its end: it stops at the first notch
            that is not above them.

    Returns:
        A stock shape; None where no notch is small enough.
    """
    there = shape = shape_of(decoder)
    floor = (1 - step) * body_parameters(decoder, there)
    while body_parameters(decoder, shape) > at_least:
        smaller = _least(decoder, importance, shape, there, floor)
        if smaller is None:
            break
        shape = smaller
    return None if shape == there else shape


def _least(
    decoder: Any, importance: Importance, shape: Shape, there: Shape, floor: float
) -> Shape | None:
    """The notch that gives up least; None where none is left above the floor."""
    best, least = None, float("inf")
    for dimension in DIMENSIONS:
        smaller = notch(decoder, shape, dimension)
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
