"""Rows → tensors, padded or packed: the one place where flat arrays become a rectangle.

Legend: R rows, T positions of the longest row (packed: one row of all positions), M action targets,
K next-item pairs, S item tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from promptify.pieces import Pieces, gather, offsets_of
from promptify.rows import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows as tensors, one below the other (padded) or end to end (packed).

    The positions of what is read are flat, places in `ids_RT.flatten()`.

    Attributes:
        ids_RT: int64 [R, T]; padded on the right with the newline's id, which causal attention
            never shows to a real position. Packed: [1, sum of lengths], no padding.
        position_RT: int64, like `ids_RT`: counts from 0 in every row. Where it starts anew,
            attention starts anew: transformers cuts packed rows apart there.
        length_R: int64 [R], positions that are not padding.
        arrow_M: int64 [M], flat positions where an action is read and counted.
        label_M: int64 [M], the action taken there, an index into the label words.
        task_M: int64 [M], its task.
        next_position_K: int64 [K], flat positions where the person is read.
        next_item_K: int64 [K], the items to be predicted there.
        text_position_N: int64 [N], flat positions whose next id is text: the LM loss counts them.
    """

    ids_RT: Tensor
    position_RT: Tensor
    length_R: Tensor
    arrow_M: Tensor
    label_M: Tensor
    task_M: Tensor
    next_position_K: Tensor
    next_item_K: Tensor
    text_position_N: Tensor

    @classmethod
    def of(cls, rows: Rows, *, pad_id: int, vocab_size: int, packed: bool = False) -> Self:
        """Make a batch of `rows`.

        Args:
            rows: one or more rows.
            pad_id: the id that fills up short rows.
            vocab_size: ids from here on are slots, which the LM loss does not predict.
            packed: lay the rows end to end and pad nothing.
        """
        lengths_R = rows.lengths
        num_rows, longest = len(rows), int(lengths_R.max())
        row_N = np.repeat(np.arange(num_rows), lengths_R)
        position_N = np.arange(len(rows.ids)) - rows.row_offsets[row_N]
        # Where each row starts in the flattened batch, and the shape of that batch.
        if packed:
            start_R, shape = rows.row_offsets[:-1].astype(np.int64), (1, len(rows.ids))
            positions = position_N
        else:
            start_R, shape = np.arange(num_rows) * longest, (num_rows, longest)
            positions = np.tile(np.arange(longest), num_rows)
        flat_N = start_R[row_N] + position_N
        ids = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
        ids[flat_N] = rows.ids

        event_start_M = np.repeat(start_R, np.diff(rows.event_offsets))
        target_M = np.flatnonzero(rows.event_is_target)
        next_start_K = np.repeat(start_R, np.diff(rows.next_offsets))

        # A position predicts text when the id after it, in the same row, is a token that is neither
        # a label (the action loss has it) nor a slot.
        predicts = np.zeros(len(ids), dtype=bool)
        predicts[flat_N[:-1]] = (row_N[1:] == row_N[:-1]) & (rows.ids[1:] < vocab_size)
        predicts[event_start_M + rows.event_arrow] = False
        return cls(
            ids_RT=torch.from_numpy(ids.reshape(shape)),
            position_RT=torch.from_numpy(positions.astype(np.int64).reshape(shape)),
            length_R=torch.from_numpy(lengths_R.astype(np.int64)),
            arrow_M=torch.from_numpy(
                event_start_M[target_M] + rows.event_arrow[target_M].astype(np.int64)
            ),
            label_M=torch.from_numpy(rows.event_label[target_M].astype(np.int64)),
            task_M=torch.from_numpy(rows.event_task[target_M].astype(np.int64)),
            next_position_K=torch.from_numpy(next_start_K + rows.next_position.astype(np.int64)),
            next_item_K=torch.from_numpy(rows.next_item.astype(np.int64)),
            text_position_N=torch.from_numpy(np.flatnonzero(predicts)),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def take_rows(rows: Rows, chosen_B: np.ndarray) -> Rows:
    """The rows with the given indices, in that order.

    Args:
        rows: any rows.
        chosen_B: int64 [B], indices of rows.
    """
    token_N = gather(rows.row_offsets, chosen_B)
    event_M = gather(rows.event_offsets, chosen_B)
    next_K = gather(rows.next_offsets, chosen_B)
    return Rows(
        ids=rows.ids[token_N],
        row_offsets=offsets_of(np.diff(rows.row_offsets)[chosen_B]),
        event_offsets=offsets_of(np.diff(rows.event_offsets)[chosen_B]),
        event_item=rows.event_item[event_M],
        event_label=rows.event_label[event_M],
        event_task=rows.event_task[event_M],
        event_arrow=rows.event_arrow[event_M],
        event_end=rows.event_end[event_M],
        event_is_target=rows.event_is_target[event_M],
        next_offsets=offsets_of(np.diff(rows.next_offsets)[chosen_B]),
        next_position=rows.next_position[next_K],
        next_item=rows.next_item[next_K],
        next_event=rows.next_event[next_K],
        profile_end=rows.profile_end[chosen_B],
        num_dropped_events=rows.num_dropped_events[chosen_B],
        inline_items=rows.inline_items,
    )


def positions_at_once(device: torch.device) -> int:
    """Padded positions that are read together where nothing is kept for a backward pass.

    A GPU waits for every call: with a fourth of these, reading 6,040 prompts of two thousand tokens
    took most of its time to begin.
    """
    return 16384 if device.type == "cpu" else 65536


def by_length(lengths_R: np.ndarray, *, max_positions: int) -> Iterator[np.ndarray]:
    """Indices of rows, grouped so that rows of near-equal length share a padded batch.

    Args:
        lengths_R: int64 [R].
        max_positions: rows × longest row of a group, at most; a longer row stands alone.

    Yields:
        int64 [B], every index exactly once, shortest rows first.
    """
    order = np.argsort(lengths_R, kind="stable")
    start = 0
    while start < len(order):
        # Lengths ascend, so a group's padded size is its last length times its count, and no
        # group holds more rows than would fit if all were as short as its first.
        most = max(1, max_positions // max(1, int(lengths_R[order[start]])))
        ahead = lengths_R[order[start : start + most]]
        fits = np.searchsorted(ahead * np.arange(1, len(ahead) + 1), max_positions, side="right")
        stop = start + max(1, int(fits))
        yield order[start:stop]
        start = stop


def in_order(lengths_R: np.ndarray, *, max_positions: int) -> Iterator[np.ndarray]:
    """Indices of rows as they come, cut into groups that are packed end to end.

    Args:
        lengths_R: int64 [R].
        max_positions: sum of lengths of a group, at most; a longer row stands alone.

    Yields:
        int64 [B], every index exactly once, in order.
    """
    ends_R = np.cumsum(lengths_R)
    start = 0
    while start < len(lengths_R):
        before = int(ends_R[start - 1]) if start else 0
        fits = int(np.searchsorted(ends_R, before + max_positions, side="right"))
        stop = max(start + 1, fits)
        yield np.arange(start, stop)
        start = stop


def pad_pieces(pieces: Pieces, chosen_N: np.ndarray, *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token pieces as a rectangle.

    Returns:
        ids int64 [N, S] padded on the right, and the position of each piece's last token, int64
        [N].
    """
    lengths_N = np.diff(pieces.offsets)[chosen_N]
    longest = int(lengths_N.max())
    ids = np.full((len(chosen_N), longest), pad_id, dtype=np.int64)
    column_S = np.arange(longest)
    inside = column_S[None, :] < lengths_N[:, None]
    ids[inside] = pieces.ids[gather(pieces.offsets, chosen_N)]
    return torch.from_numpy(ids), torch.from_numpy(lengths_N.astype(np.int64) - 1)
