"""Rows: prompts as flat arrays of token ids, with every position that matters known from assembly.

Legend: N ids in all rows, R rows, M events, K next-item pairs.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promptify.pieces import Pieces

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A batch of prompts. Positions count from the start of their row.

    Attributes:
        ids: int32 [N], token ids; from the vocabulary size on, the slot of item `id - vocab_size`.
        row_offsets: int64 [R+1], row `r` is `ids[row_offsets[r]:row_offsets[r + 1]]`.
        event_offsets: int64 [R+1], row `r` holds events `event_offsets[r]:event_offsets[r + 1]`.
        event_item: int32 [M], row of `items`; −1 for an item given inline.
        event_label: int16 [M], index into the prompter's `label_words`.
        event_task: int16 [M], index into the prompter's `tasks`.
        event_arrow: int32 [M], where the action is read: the arrow, or the slot.
        event_end: int32 [M], where the person is read after the event: its newline, or its label.
        event_is_target: bool [M], whether the action loss counts the event.
        next_offsets: int64 [R+1], row `r` holds pairs `next_offsets[r]:next_offsets[r + 1]`.
        next_position: int32 [K], a position where the person is read …
        next_item: int32 [K], … and an item that the person vector there must predict.
        next_event: int64 [K], that item's event, a row of `events`.
        profile_end: int32 [R], the newline that ends the profile.
        num_dropped_events: int32 [R], history events that the budget left out.
        inline_items: texts, each with its arrow, of items that are not in the catalogue; in slot
            form their slots are numbered on from the catalogue's.
    """

    ids: Int32
    row_offsets: Int64
    event_offsets: Int64
    event_item: Int32
    event_label: Int16
    event_task: Int16
    event_arrow: Int32
    event_end: Int32
    event_is_target: Bool
    next_offsets: Int64
    next_position: Int32
    next_item: Int32
    next_event: Int64
    profile_end: Int32
    num_dropped_events: Int32
    inline_items: Pieces = field(default_factory=lambda: Pieces.of([]))

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def lengths(self) -> Int64:
        """Positions in each row, int64 [R]."""
        return np.diff(self.row_offsets)
