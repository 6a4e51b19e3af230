"""Items told to a trained model by their text: read once, then embedded or put into its catalogue.

    told = read_items(foundation, prompter.item_pieces(texts))
    extended = with_items(foundation, ["job-9001"], told)

What a model knows of an item beside its text, a residual learned from events, belongs to its id: an
item that was trained on keeps it under a new text, and an item never met has none.

Legend: N items that are told, I items of the catalogue, D hidden width, W text encoder's width.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from promptify.pieces import Pieces, placed
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemReadings:
    """What a model reads of some texts; costs a pass over each, so it is made once and kept.

    Attributes:
        pieces: N item texts, each ending with the arrow.
        reading_ND: the decoder's reading of each; zeros where slots have no such part.
        encoding_NW: the text encoder's vector of each; None without one.
    """

    pieces: Pieces
    reading_ND: Tensor
    encoding_NW: Tensor | None


def read_items(foundation: "Foundation", pieces: Pieces) -> ItemReadings:
    """See `Foundation.read_items`."""
    if "reading" in foundation.settings.slot_parts:
        reading_ND = foundation.readings_of(pieces)
    else:
        shape = len(pieces), foundation.decoder.config.hidden_size
        reading_ND = torch.zeros(shape, device=foundation.device)
    return ItemReadings(
        pieces=pieces, reading_ND=reading_ND, encoding_NW=foundation.encodings_of(pieces)
    )


@torch.no_grad()
def told_slots(
    foundation: "Foundation", told: ItemReadings, known_N: Tensor | None = None
) -> Tensor:
    """Slots of items that are told, float [N, D].

    Args:
        foundation: what read them.
        told: what it read.
        known_N: int64, the row of each in the catalogue, whose residual it keeps; −1 for an item
            never met. None where none is known.
    """
    table = foundation.items
    slots_ND = table.slots_of_text(told.reading_ND, foundation.bags(told.pieces), told.encoding_NW)
    return slots_ND if known_N is None else slots_ND + table.residuals(known_N)


@torch.no_grad()
def with_items(old: "Foundation", item_ids: Sequence[str], told: ItemReadings) -> "Foundation":
    """See `Foundation.with_items`."""
    if len(set(item_ids)) < len(item_ids) or len(item_ids) != len(told.pieces):
        raise BadInput(
            f"item_ids holds {len(item_ids)} ids, {len(set(item_ids))} of them different, for "
            f"{len(told.pieces)} texts; give each item once."
        )
    row_of = {item: row for row, item in enumerate(old.item_ids)}
    ids = list(dict.fromkeys([*old.item_ids, *item_ids]))
    row_of |= {item: row for row, item in enumerate(ids[len(row_of) :], start=len(row_of))}
    rows_N = np.array([row_of[item] for item in item_ids], np.int64)
    order = placed(len(old.item_ids), rows_N)
    new = _twin(old)
    new.item_ids = tuple(ids)
    new.item_pieces = Pieces.joined([old.item_pieces, told.pieces]).take(order)
    new.items = table = _twin(old.items)
    order_I = torch.from_numpy(order).to(old.device)

    def put(values_I: Tensor, told_N: Tensor) -> Tensor:
        return torch.cat([values_I, told_N.to(values_I)])[order_I]

    table.reading_ID = put(table.reading_ID, told.reading_ND)
    if table.encoding_IW is not None and told.encoding_NW is not None:
        table.encoding_IW = put(table.encoding_IW, told.encoding_NW)
    # What was learned of an id stays with it, whatever its text says now.
    num_new = len(ids) - len(old.item_ids)
    table.exposure_I = nn.functional.pad(table.exposure_I, (0, num_new))
    if table.residual_ID is not None:
        table.residual_ID = nn.Parameter(nn.functional.pad(table.residual_ID, (0, 0, 0, num_new)))
    return new


def _twin(module: ModuleT) -> ModuleT:
    """A module of the same tensors and modules, in which one may be put in another's place."""
    twin = copy.copy(module)
    for held in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[held] = module.__dict__[held].copy()
    return twin
