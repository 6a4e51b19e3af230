"""Which parts of a decoder stay when it is pruned.

Legend: D hidden width, F MLP neurons, K groups of heads; primed, what stays of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from distill.anatomy import Axis, Shape, head_width
from distill.importance import Importance


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Which parts of a decoder stay; every list is rising.

    Attributes:
        layers: of the decoder.
        neurons: int64 [F'], of each layer that stays.
        groups: int64 [K'], of each layer that stays.
        hidden: int64 [D'], coordinates of the hidden state.
    """

    layers: tuple[int, ...]
    neurons: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    hidden: Tensor

    @classmethod
    def most_important(cls, importance: Importance, shape: Shape) -> "Kept":
        """The parts that count most, as many as a shape has."""
        layers = _largest(torch.tensor(importance.layers), shape.layers).tolist()
        return cls(
            layers=tuple(layers),
            neurons=tuple(_largest(importance.neurons[at], shape.neurons) for at in layers),
            groups=tuple(_largest(importance.groups[at], shape.groups) for at in layers),
            hidden=_largest(importance.hidden, shape.hidden),
        )


def _largest(values: Tensor, count: int) -> Tensor:
    """Places of the largest values, rising; of equal ones the first."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def layer_rows(decoder: Any, kept: Kept, place: int) -> dict[Axis, Tensor]:
    """What stays along each axis of a layer's weights, int64 by axis.

    Args:
        decoder: from which they are kept.
        kept: its parts that stay.
        place: of the layer among those that stay.
    """
    per_head = head_width(decoder)
    queries = decoder.config.num_attention_heads // decoder.config.num_key_value_heads
    group_K = kept.groups[place]

    def rows_of(heads_per_group: int) -> Tensor:
        width = heads_per_group * per_head
        return rearrange(group_K[:, None] * width + torch.arange(width), "k w -> (k w)")

    return {"neurons": kept.neurons[place], "query": rows_of(queries), "key": rows_of(1)}
