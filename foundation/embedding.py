"""Vectors of many people and items, a batch of about equal lengths at a time.

Legend: R rows, B those of a batch, T positions, D hidden, V vector width, N items.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from foundation.batches import Batch, by_length, positions_at_once, take_rows
from foundation.told_items import ItemReadings, told_slots
from promptify.pieces import Pieces
from promptify.rows import Rows
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation

# Items read at once where each is a single position.
_ITEMS_AT_ONCE = 16384


@torch.no_grad()
def embed_users(
    foundation: "Foundation",
    rows: Rows,
    *,
    width: int | None,
    max_positions: int | None,
    progress: bool,
) -> NDArray[np.float32]:
    """Person vectors at the last position of each row; see `Foundation.embed_users`."""
    width = foundation.checked_width(width)
    foundation.eval()
    vectors_RV = np.zeros((len(rows), width), dtype=np.float32)
    inline_slots_JD = foundation.inline_slots(rows)
    at_once = max_positions or positions_at_once(foundation.device)
    with tqdm(total=len(rows), desc="embed users", disable=not progress) as bar:
        for chosen_B in by_length(rows.lengths, max_positions=at_once):
            batch = Batch.of(
                take_rows(rows, chosen_B),
                pad_id=foundation.prompter.newline_id,
                vocab_size=foundation.prompter.vocab_size,
            ).to(foundation.device)
            hidden_BTD = foundation.hidden(batch.ids_RT, inline_slots_JD=inline_slots_JD)
            last_BD = hidden_BTD[torch.arange(len(chosen_B)), batch.length_R - 1]
            person_BV = foundation.person_head(last_BD)[:, :width]
            vectors_RV[chosen_B] = person_BV.float().cpu().numpy()
            bar.update(len(chosen_B))
    return vectors_RV


@torch.no_grad()
def embed_items(
    foundation: "Foundation",
    items: NDArray[np.int64] | Pieces | ItemReadings | None,
    *,
    known_N: NDArray[np.int64] | None,
    width: int | None,
) -> NDArray[np.float32]:
    """Item vectors of the catalogue, or of items that are told; see `Foundation.embed_items`."""
    width = foundation.checked_width(width)
    foundation.eval()
    if items is None or isinstance(items, np.ndarray):
        rows = np.arange(foundation.num_items) if items is None else items
        if len(rows) and not 0 <= rows.min() <= rows.max() < foundation.num_items:
            wrong = rows.min() if rows.min() < 0 else rows.max()
            raise BadInput(
                f"items holds row {wrong}, and the catalogue has rows 0 to "
                f"{foundation.num_items - 1}."
            )
        rows_N = torch.from_numpy(rows)
        rows_N = rows_N.to(foundation.device)
        slots_ND, new_N = foundation.slots(rows_N), foundation.new_item_weight[rows_N]
    else:
        told = foundation.read_items(items) if isinstance(items, Pieces) else items
        unknown_N = np.full(len(told.pieces), -1) if known_N is None else known_N
        rows_N = torch.from_numpy(unknown_N).to(foundation.device)
        slots_ND = told_slots(foundation, told, rows_N)
        new_N = torch.where(rows_N >= 0, foundation.new_item_weight[rows_N.clamp(min=0)], 1.0)
    if not len(slots_ND):  # which no decoder takes
        return np.zeros((0, width), np.float32)
    parts = [foundation.item_vectors(part) for part in slots_ND.split(_ITEMS_AT_ONCE)]
    vectors_NV = torch.cat(parts).float() + new_N[:, None] * foundation.new_item_shift_V
    result: NDArray[np.float32] = vectors_NV[:, :width].contiguous().cpu().numpy()
    return result
