"""What the model knows of each item: its text, read two ways, and a residual for the rest.

Legend: I items of the catalogue, N some of them, M uses of them, D hidden width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ItemTable(nn.Module):
    """Readings, slots and exposure of a catalogue.

    An item's text is read twice. Its *reading* is the decoder's hidden state at the arrow of a pass
    over the text alone: it knows about order and phrases, is slow to learn and costs a pass, so
    most of the time it comes from a table. Its *bag* is the mean of the text's token embeddings: it
    knows words alone, learns at once, and is cheap enough to be made with gradient for every item
    in every step.

    A *slot* is the vector that stands for `item arrow` in a slot prompt: a projection of both, plus
    a learned residual, shrunk by how often the item was trained on.

    Args:
        num_items: I.
        hidden_size: D.
        slots: whether slots are used at all; a text model has no residuals.
        half_exposure: training events at which half of the residual counts. An item never trained
            on has a residual of exactly zero.
        embedding_std: of the decoder's token embeddings at the start, which slots stand among.

    Source: ours. Shrinkage as n / (n + k), the empirical-Bayes weight of a mean of n draws.
    """

    exposure_I: Tensor
    reading_ID: Tensor

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        *,
        slots: bool,
        half_exposure: float,
        embedding_std: float,
    ) -> None:
        super().__init__()
        self.half_exposure = half_exposure
        self.register_buffer("exposure_I", torch.zeros(num_items))
        self.register_buffer("reading_ID", torch.zeros(num_items, hidden_size))
        self.project_reading = nn.Linear(hidden_size, hidden_size, bias=False)
        self.project_bag = nn.Linear(hidden_size, hidden_size, bias=False)
        # A slot starts as its bag: in the space of token embeddings, so that an item and a profile
        # that share words are near each other before anything is learned. The reading earns its
        # place.
        nn.init.eye_(self.project_bag.weight)
        self.project_bag.weight.data.mul_(embedding_std)
        nn.init.zeros_(self.project_reading.weight)
        self.residual_ID: nn.Parameter | None = None
        if slots:
            self.residual_ID = nn.Parameter(torch.randn(num_items, hidden_size) * embedding_std)

    def readings(self, items_N: Tensor, fresh: "FreshReadings | None" = None) -> Tensor:
        """Readings of some items [N, D]: the table's, but with gradient where they are fresh."""
        reading_ND = self.reading_ID[items_N]
        if fresh is None:
            return reading_ND
        where_N = fresh.position_I[items_N]
        is_fresh_N = where_N >= 0
        return torch.where(is_fresh_N[:, None], fresh.reading_RD[where_N.clamp(min=0)], reading_ND)

    def slots(
        self, items_N: Tensor, bag_ND: Tensor, fresh: "FreshReadings | None" = None
    ) -> Tensor:
        """Slots of items of the catalogue, float [N, D]; without residuals for a text model.

        Args:
            items_N: int64, rows of the catalogue.
            bag_ND: mean token embedding of each.
            fresh: readings made in this step.
        """
        slots_ND = self.slots_of_text(self.readings(items_N, fresh), bag_ND)
        if self.residual_ID is None:
            return slots_ND
        weight_N = self.exposure_I[items_N] / (self.exposure_I[items_N] + self.half_exposure)
        return slots_ND + self.residual_ID[items_N] * weight_N[:, None]

    def slots_of_text(self, reading_ND: Tensor, bag_ND: Tensor) -> Tensor:
        """Slots of items known by their text alone, float [N, D]."""
        # Means of many embeddings are small; scaled to one, a long text counts as much as a short
        # one.
        bag_ND = F.rms_norm(bag_ND, bag_ND.shape[-1:])
        slots: Tensor = self.project_reading(reading_ND) + self.project_bag(bag_ND)
        return slots

    @torch.no_grad()
    def take_over(self, other: "ItemTable", *, new: Tensor, old: Tensor) -> None:
        """Take residuals, exposure and projections from another table.

        Args:
            other: of the same width.
            new: int64 [N], rows here …
            old: int64 [N], … and the same items' rows there.
        """
        self.exposure_I[new] += other.exposure_I[old]
        self.project_reading.load_state_dict(other.project_reading.state_dict())
        self.project_bag.load_state_dict(other.project_bag.state_dict())
        if self.residual_ID is not None and other.residual_ID is not None:
            self.residual_ID[new] = other.residual_ID[old]


class FreshReadings:
    """Readings made in this step, with gradient, of a few items of the catalogue.

    Args:
        items_R: int64 [R], rows of the catalogue, no repeats.
        reading_RD: their readings, with gradient.
        num_items: I.
    """

    def __init__(self, items_R: Tensor, reading_RD: Tensor, num_items: int) -> None:
        self.reading_RD = reading_RD
        self.position_I = torch.full((num_items,), -1, dtype=torch.long, device=items_R.device)
        self.position_I[items_R] = torch.arange(len(items_R), device=items_R.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSlots:
    """Slots made once in a training step, for the rows that hold them and for the softmax alike.

    Attributes:
        items_N: int64 [N], rows of the catalogue, rising, no repeats.
        slots_ND: their slots, with gradient.
    """

    items_N: Tensor
    slots_ND: Tensor

    def of(self, items_M: Tensor) -> Tensor:
        """Slots of items that are all among `items_N` [..., D]."""
        return F.embedding(torch.searchsorted(self.items_N, items_M), self.slots_ND)
