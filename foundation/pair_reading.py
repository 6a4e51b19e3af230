"""Read questions behind prefixes, many people with few questions each, every prefix once.

A prefix that begins another (what somebody had done by one slate, and by the next) is read within
it. Questions stand behind the row, beside each other: each sees the prefix that it belongs to and
itself, at the positions it would have alone. All held-out slates of a person come from one pass.

Legend: n prefixes, e pairs of a prefix and a question, r readings, B readings of a batch, T
positions of the longest, D hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from foundation.asking import attention_mask
from foundation.batches import by_length, positions_at_once
from foundation.computing import attending, padded_attention
from promptify.pieces import Pieces, gather, offsets_of
from promptify.rows import Rows

if TYPE_CHECKING:
    from foundation.model import Foundation

Int64 = NDArray[np.int64]

# A mask is as large as the square of a row. A longer prefix is read for each of its questions.
_LONGEST_MASKED = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class _Readings:
    """Which pairs are read together.

    Attributes:
        row_r: int64, the prefix that a reading begins with: the longest of its pairs'.
        length_r: int64, its positions, questions among them.
        pair_e: int64, all pairs, reading after reading.
        first_r: int64 [readings + 1], where each reading's pairs begin in `pair_e`.
        start_e: int64, the position in its row where the question of each of `pair_e` begins.
    """

    row_r: Int64
    length_r: Int64
    pair_e: Int64
    first_r: Int64
    start_e: Int64

    @classmethod
    def of(cls, rows: Rows, request_e: Int64, length_e: Int64) -> "_Readings":
        """Questions of a prefix and of those that it begins with, as many as it is long.

        Args:
            rows: prefixes [n].
            request_e: the prefix of each pair.
            length_e: positions of each question.
        """
        host_n = _hosts(rows)
        host_e = host_n[request_e]
        order_e = np.argsort(host_e, kind="stable")
        host_e, length_e = host_e[order_e], length_e[order_e]
        before_e = offsets_of(length_e)[:-1]
        before_e = before_e - before_e[np.searchsorted(host_e, host_e)]
        room_e = np.maximum(rows.lengths[host_e], 1)
        # Each question of a long prefix in a reading of its own.
        part_e = np.where(room_e > _LONGEST_MASKED, np.arange(len(host_e)), before_e // room_e)
        is_first_e = np.ones(len(host_e), np.bool_)
        is_first_e[1:] = (np.diff(host_e) != 0) | (np.diff(part_e) != 0)
        first_r = np.flatnonzero(is_first_e)
        row_r = host_e[first_r]
        reading_e = np.cumsum(is_first_e) - 1
        start_e = rows.lengths[host_e] + before_e - before_e[first_r][reading_e]
        border_r = np.append(first_r, len(host_e))
        return cls(
            row_r=row_r,
            length_r=(start_e + length_e)[border_r[1:] - 1],
            pair_e=order_e,
            first_r=border_r,
            start_e=start_e,
        )


def _hosts(rows: Rows) -> Int64:
    """The row that each row is read within: the last of those that begin with one another [n]."""
    host_n = np.arange(len(rows))
    ids, offsets, lengths = rows.ids, rows.row_offsets, rows.lengths
    for row in range(len(rows) - 2, -1, -1):
        length, after = int(lengths[row]), int(offsets[row + 1])
        if length <= lengths[row + 1] <= _LONGEST_MASKED and np.array_equal(
            ids[offsets[row] : after], ids[after : after + length]
        ):
            host_n[row] = host_n[row + 1]
    return host_n


@torch.no_grad()
def pair_states(
    foundation: "Foundation",
    rows: Rows,
    request: Int64,
    items: NDArray[np.integer[Any]],
    *,
    max_positions: int | None,
    progress: bool,
) -> Iterator[tuple[Int64, Tensor, Tensor]]:
    """Hidden states at the arrows of questions and at the ends of their prefixes.

    Args:
        foundation: reads.
        rows: prefixes [n].
        request: int64 [e], the prefix of each pair.
        items: int [e], its item, a row of the catalogue.
        max_positions: padded positions read at once; what suits the device when left out.
        progress: show a bar.

    Yields:
        int64, numbers of some pairs, and of each its two hidden states, [pairs, D] each.
    """
    foundation.eval()
    pieces = foundation.questions(items.astype(np.int64))
    inline_slots_JD = foundation.inline_slots(rows)
    readings = _Readings.of(rows, request, pieces.lengths)
    at_once = max_positions or positions_at_once(foundation.device)
    with tqdm(total=len(request), desc="read requests", disable=not progress) as bar:
        for chosen_B in by_length(readings.length_r, max_positions=at_once):
            batch = _joined(foundation, rows, request, pieces, readings, chosen_B)
            seen = {} if batch.is_plain else batch.seen(foundation)
            with attending(foundation.decoder, padded_attention(foundation.decoder)):
                hidden_BTD = foundation.hidden(
                    batch.ids_BT, inline_slots_JD=inline_slots_JD, **seen
                )
            yield (
                batch.pair_e,
                hidden_BTD[batch.row_e, batch.arrow_e],
                hidden_BTD[batch.row_e, batch.before_e],
            )
            bar.update(len(batch.pair_e))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Joined:
    """Prefixes with their questions as a rectangle, and where the pairs are read in it.

    Attributes:
        ids_BT: int64.
        question_BT: int64, as `foundation.asking.ask` gives it, as are the next two.
        place_BT: int64.
        position_BT: int64.
        pair_e: int64, numbers of the pairs.
        row_e: int64, their rows …
        arrow_e: … the columns of their arrows …
        before_e: … and of the ends of their prefixes.
        is_plain: whether each row is one prefix and one question, which needs no mask.
    """

    ids_BT: Tensor
    question_BT: Tensor
    place_BT: Tensor
    position_BT: Tensor
    pair_e: Int64
    row_e: Tensor
    arrow_e: Tensor
    before_e: Tensor
    is_plain: bool

    def seen(self, foundation: "Foundation") -> dict[str, Any]:
        """What the decoder is told beside the ids: positions, and who sees whom."""
        mask = attention_mask(
            foundation.decoder.config,
            self.question_BT,
            self.place_BT,
            self.position_BT,
            foundation.decoder.dtype,
        )
        return {"position_ids": self.position_BT, "attention_mask": mask, "use_cache": False}


def _joined(
    foundation: "Foundation",
    rows: Rows,
    request: Int64,
    pieces: Pieces,
    readings: _Readings,
    chosen_B: Int64,
) -> _Joined:
    at_e = gather(readings.first_r, chosen_B)
    counts_B = np.diff(readings.first_r)[chosen_B]
    row_e = np.repeat(np.arange(len(chosen_B)), counts_B)
    pair_e, start_e = readings.pair_e[at_e], readings.start_e[at_e]
    before_e = rows.lengths[request[pair_e]] - 1

    host_B = readings.row_r[chosen_B]
    shape = len(chosen_B), int(readings.length_r[chosen_B].max())
    position_BT = np.tile(np.arange(shape[1]), (shape[0], 1))
    place_BT, question_BT = position_BT.copy(), np.full(shape, -1, np.int64)
    ids_BT = np.full(shape, foundation.prompter.newline_id, np.int64)
    prefixes = Pieces(ids=rows.ids, offsets=rows.row_offsets).take(host_B)
    ids_BT[position_BT < prefixes.lengths[:, None]] = prefixes.ids
    asked = pieces.take(pair_e)
    of_N = np.repeat(np.arange(len(pair_e)), asked.lengths)
    inside_N = np.arange(len(of_N)) - asked.offsets[of_N]
    at = row_e[of_N], start_e[of_N] + inside_N
    ids_BT[at] = asked.ids
    question_BT[at] = of_N
    place_BT[at] = before_e[of_N]
    position_BT[at] = before_e[of_N] + 1 + inside_N

    def moved(values: Int64) -> Tensor:
        return torch.from_numpy(values).to(foundation.device)

    return _Joined(
        ids_BT=moved(ids_BT),
        question_BT=moved(question_BT),
        place_BT=moved(place_BT),
        position_BT=moved(position_BT),
        pair_e=pair_e,
        row_e=moved(row_e),
        arrow_e=moved(start_e + asked.lengths - 1),
        before_e=moved(before_e),
        is_plain=bool((start_e == before_e + 1).all()),
    )
