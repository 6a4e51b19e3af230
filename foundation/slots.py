"""What the model knows of each item: its text, read several ways, and a residual for the rest.

Legend: I items of the catalogue, N some of them, M uses of them, D hidden width, W
text encoder's width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.config import FoundationConfig


class ItemTable(nn.Module):
    """Readings, slots and exposure of a catalogue.

    An item's text is read in up to three ways. Its *reading* is the decoder's hidden state at the
    arrow of a pass over the text alone: it knows about order and phrases, is slow to learn and
    costs a pass, so most of the time it comes from a table. Its *bag* is the mean of the text's
    token embeddings: it knows words alone, learns at once, and is cheap enough to be made with
    gradient for every item in every step. Its *encoding* is the vector of a pretrained text
    encoder, which never changes.

    A *slot* is the vector that stands for `item arrow` in a slot prompt: a projection of each, plus
    a learned residual, shrunk by how often the item was trained on.

    Args:
        num_items: I.
        hidden_size: D.
        config: which parts a slot has, and how a residual earns its place.
        slots: whether slots are used at all; a text model has no residuals.
        embedding_std: of the decoder's token embeddings at the start, which slots stand among.
        encoder_dim: W, width of the text encoder's vectors; 0 without one.

    Source: ours. Shrinkage as n / (n + k), the empirical-Bayes weight of a mean of n draws.
    """

    exposure_I: Tensor
    reading_ID: Tensor
    encoding_IW: Tensor | None

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        *,
        config: FoundationConfig,
        slots: bool,
        embedding_std: float,
        encoder_dim: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.parts = frozenset(config.slot_parts)
        self.register_buffer("exposure_I", torch.zeros(num_items))
        self.register_buffer("reading_ID", torch.zeros(num_items, hidden_size))
        encoding_IW = torch.zeros(num_items, encoder_dim) if encoder_dim else None
        self.register_buffer("encoding_IW", encoding_IW)
        self.project_reading = nn.Linear(hidden_size, hidden_size, bias=False)
        self.project_bag = nn.Linear(hidden_size, hidden_size, bias=False)
        # A slot starts as its bag: in the space of token embeddings, so that an item and a profile
        # that share words are near each other before anything is learned. The reading earns its
        # place.
        nn.init.eye_(self.project_bag.weight)
        self.project_bag.weight.data.mul_(embedding_std)
        nn.init.zeros_(self.project_reading.weight)
        if encoder_dim:
            self.project_encoding = nn.Linear(encoder_dim, hidden_size, bias=False)
            # Vectors are of norm √W: what is projected then has the size of the embeddings.
            nn.init.normal_(self.project_encoding.weight, std=embedding_std * encoder_dim**-0.5)
        self.residual_ID: nn.Parameter | None = None
        if slots and "residual" in self.parts:
            # Beside text a residual starts at nothing and holds what was learned of its item alone;
            # noise would stay in items that few events correct. Without text it tells items apart.
            start = 0.0 if len(self.parts) > 1 else embedding_std
            self.residual_ID = nn.Parameter(torch.randn(num_items, hidden_size) * start)

    def readings(self, items_N: Tensor, fresh: "FreshReadings | None" = None) -> Tensor:
        """Readings of some items [N, D]: the table's, but with gradient where they are fresh."""
        reading_ND = self.reading_ID[items_N]
        if fresh is None:
            return reading_ND
        where_N = fresh.position_I[items_N]
        is_fresh_N = where_N >= 0
        # Most rows are not fresh and ask for the first: plain indexing would add up their gradients
        # one by one on a GPU.
        fresh_ND = F.embedding(where_N.clamp(min=0), fresh.reading_RD)
        return torch.where(is_fresh_N[:, None], fresh_ND, reading_ND)

    def slots(
        self, items_N: Tensor, bag_ND: Tensor, fresh: "FreshReadings | None" = None
    ) -> Tensor:
        """Slots of items of the catalogue, float [N, D]; without residuals for a text model.

        Args:
            items_N: int64, rows of the catalogue.
            bag_ND: mean token embedding of each.
            fresh: readings made in this step.
        """
        encoding_NW = None if self.encoding_IW is None else self.encoding_IW[items_N]
        slots_ND = self.slots_of_text(self.readings(items_N, fresh), bag_ND, encoding_NW)
        return slots_ND if self.residual_ID is None else slots_ND + self.residuals(items_N)

    def residuals(self, items_N: Tensor) -> Tensor:
        """What a slot has beside its text, shrunk by exposure, float [N, D].

        Args:
            items_N: int64, rows of the catalogue; −1 for an item that is not in it.
        """
        known_N = items_N.clamp(min=0)
        if self.residual_ID is None:
            return torch.zeros_like(self.reading_ID[known_N])
        exposure_N = torch.where(items_N >= 0, self.exposure_I[known_N], 0)
        weight_N = exposure_N / (exposure_N + self.config.half_exposure)
        if self.training and torch.is_grad_enabled() and self.config.residual_dropout:
            weight_N = weight_N * (torch.rand_like(weight_N) >= self.config.residual_dropout)
        return self.residual_ID[known_N] * weight_N[:, None]

    def slots_of_text(
        self, reading_ND: Tensor, bag_ND: Tensor, encoding_NW: Tensor | None = None
    ) -> Tensor:
        """Slots of items known by their text alone, float [N, D].

        Args:
            reading_ND: the decoder's reading of each.
            bag_ND: mean token embedding of each.
            encoding_NW: the text encoder's vector of each, where there is one.
        """
        slots_ND = torch.zeros_like(bag_ND)
        if "reading" in self.parts:
            slots_ND = slots_ND + self.project_reading(reading_ND)
        if "bag" in self.parts:
            # Means of many embeddings are small; scaled to one, a long text counts as much as a
            # short one.
            slots_ND = slots_ND + self.project_bag(F.rms_norm(bag_ND, bag_ND.shape[-1:]))
        if encoding_NW is not None:
            encoding_NW = F.rms_norm(encoding_NW, encoding_NW.shape[-1:])
            slots_ND = slots_ND + self.project_encoding(encoding_NW)
        return slots_ND

    @torch.no_grad()
    def take_over(self, other: "ItemTable", *, new: Tensor, old: Tensor) -> None:
        """Take residuals, exposure and projections from another table.

        Args:
            other: of the same width.
            new: int64 [N], rows here …
            old: int64 [N], … and the same items' rows there.
        """
        self.exposure_I[new] += other.exposure_I[old]
        for name, projection in self.named_children():
            projection.load_state_dict(getattr(other, name).state_dict())
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
