"""Events as piece numbers → rows: the one gather that every prompt comes from.

An event is told by five pieces of a pool (context, gap, age, item, label; most prompts use two or
three of them), so that neither tokens nor events are ever walked in Python, and every position that
matters is a sum of lengths.

Legend: R rows, M events, N tokens, K next-item pairs.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptify.pieces import Pieces, gather, offsets_of
from promptify.rows import Rows
from promptify.selection import first_of_slate, newest, newest_per_action
from promptify.words import span_index

Int64 = NDArray[np.int64]

UNKNOWN_TIME = np.iinfo(np.int64).min

# What an event is told by, in this order. The first two stand before a slate, once.
_CONTEXT, _GAP, _AGE, _ITEM, _LABEL = range(5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """All pieces of some prompts, and where the ones stand that are found by number.

    Attributes:
        pieces: what `*_piece` numbers mean.
        lengths: int64, tokens in each piece.
        empty: the piece without tokens.
        first_gap: the first of the gaps, in the order of `SPAN_WORDS`; None where none are told.
    """

    pieces: Pieces
    lengths: Int64
    empty: int
    first_gap: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Events as prompts tell them, all int64 [M], chronological within a row.

    Attributes:
        row: row of `events`, or -1 for an event given inline.
        item: row of `items`, or -1.
        label: index into the label words.
        task: index of the task it belongs to.
        slate: equal and adjacent for events shown together.
        timestamp: seconds, or `UNKNOWN_TIME`.
        context_piece: what stands before its slate; the same for a whole slate.
        age_piece: how old the item was.
        item_piece: the item and its arrow.
    """

    row: Int64
    item: Int64
    label: Int64
    task: Int64
    slate: Int64
    timestamp: Int64
    context_piece: Int64
    age_piece: Int64
    item_piece: Int64

    def take(self, chosen: NDArray[Any]) -> "Events":
        """Some of the events, by mask or number."""
        return Events(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What stands around the events of each row.

    Attributes:
        task: int64 [R], the task that is asked about.
        heads: int64 [R, 2], pieces: instruction and profile.
        tails: int64 [R], piece: the context of what is asked.
        num_dropped: int64 [R], history events that are left out.
    """

    task: Int64
    heads: Int64
    tails: Int64
    num_dropped: Int64


def event_pieces(pool: Pool, events: Events, offsets: Int64) -> Int64:
    """What each event is told by, int64 [M, 5].

    Args:
        pool: all pieces.
        events: M events.
        offsets: int64 [R+1], row `r` holds events `offsets[r]:offsets[r + 1]`.
    """
    first = first_of_slate(events.slate, offsets)
    pieces = np.full((len(first), 5), pool.empty, np.int64)
    pieces[:, _CONTEXT] = np.where(first, events.context_piece, pool.empty)
    if pool.first_gap is not None:
        # The first event of a row has none: it must not tell that there was one before it.
        told = first.copy()
        told[offsets[:-1][offsets[:-1] < len(first)]] = False
        before = np.roll(events.timestamp, 1)
        told &= (before != UNKNOWN_TIME) & (events.timestamp != UNKNOWN_TIME)
        span = np.where(told, span_index(events.timestamp - before), -1)
        pieces[:, _GAP] = np.where(span >= 0, pool.first_gap + span, pool.empty)
    pieces[:, _AGE] = events.age_piece
    pieces[:, _ITEM] = events.item_piece
    # Labels are the first pieces of every pool.
    pieces[:, _LABEL] = events.label
    return pieces


def token_costs(pool: Pool, events: Events) -> tuple[Int64, Int64]:
    """What each event costs, and its slate beside its events at most, int64 [M] each."""
    lengths = pool.lengths
    event_tokens = lengths[events.age_piece] + lengths[events.item_piece] + lengths[events.label]
    slate_tokens = lengths[events.context_piece]
    if pool.first_gap is not None:
        slate_tokens = slate_tokens + lengths[pool.first_gap : pool.empty].max()
    return event_tokens, slate_tokens


def select_history(
    pool: Pool,
    events: Events,
    offsets: Int64,
    frame: Frame,
    *,
    max_prefix_tokens: int,
    per_action: bool,
    stride: int,
) -> tuple[Events, Int64, Frame]:
    """The events that fit between head and tail, their offsets, and the frame that counts the rest.

    Args:
        pool: all pieces.
        events: M events of the history.
        offsets: int64 [R+1].
        frame: what stands around them.
        max_prefix_tokens: longest row.
        per_action: whether actions take turns, rather than the newest events all staying.
        stride: how many of the oldest are left out at a time, where the newest stay.
    """
    event_tokens, slate_tokens = token_costs(pool, events)
    used = pool.lengths[frame.heads].sum(axis=1) + pool.lengths[frame.tails]
    budget = max_prefix_tokens - used
    kept = (
        newest_per_action(
            event_tokens=event_tokens,
            slate_tokens=slate_tokens,
            slate=events.slate,
            action=events.label,
            offsets=offsets,
            budget_tokens=budget,
        )
        if per_action
        else newest(
            event_tokens=event_tokens,
            slate_tokens=slate_tokens,
            slate=events.slate,
            offsets=offsets,
            budget_tokens=budget,
            num_before=frame.num_dropped,
            stride=stride,
        )
    )
    kept_offsets = offsets_of(kept.astype(np.int64))[offsets]
    dropped = frame.num_dropped + np.diff(offsets) - np.diff(kept_offsets)
    return events.take(kept), kept_offsets, replace(frame, num_dropped=dropped)


def lay_out(
    pool: Pool,
    events: Events,
    offsets: Int64,
    frame: Frame,
    *,
    has_positive_next: NDArray[np.bool_] | None = None,
    is_positive: NDArray[np.bool_] | None = None,
) -> Rows:
    """Put the pieces of rows end to end, and say where everything is.

    Args:
        pool: all pieces.
        events: M events.
        offsets: int64 [R+1], row `r` holds events `offsets[r]:offsets[r + 1]`.
        frame: what stands around them.
        has_positive_next: bool [T], the tasks whose person vectors predict positive events only;
            None for rows without targets.
        is_positive: bool [T, L], which labels are positive in which task; given with
            `has_positive_next`.
    """
    num_rows, num_events = len(frame.heads), len(events.item)
    row = np.repeat(np.arange(num_rows), np.diff(offsets))
    # Each row is a line for its head, one for each event, and one for its tail.
    head_line = offsets[:-1] + 2 * np.arange(num_rows)
    event_line = np.arange(num_events) + 2 * row + 1
    tail_line = offsets[1:] + 2 * np.arange(num_rows) + 1
    pieces = np.full((num_events + 2 * num_rows, 5), pool.empty, np.int64)
    pieces[head_line, :2] = frame.heads
    pieces[event_line] = event_pieces(pool, events, offsets)
    pieces[tail_line, 0] = frame.tails

    lengths = pool.lengths[pieces]
    ends = np.cumsum(lengths).reshape(lengths.shape)
    row_offsets = np.append(0, ends[tail_line, -1])
    event_ends = ends[event_line] - row_offsets[:-1][row][:, None]

    first = first_of_slate(events.slate, offsets)
    targets = np.zeros(num_events, np.bool_)
    predicted = targets
    if has_positive_next is not None and is_positive is not None:
        # Events of another task are history: their targets are in that task's own windows.
        own = events.task == frame.task[row]
        targets = own & first
        # Items shown together are all predicted from before the slate: none of them is known there.
        predicted = own & (is_positive[events.task, events.label] | ~has_positive_next[events.task])
    # Before a slate, the person is read where its context ends, or else where the line before does.
    run = np.cumsum(first) - 1
    person = (event_ends[first, _CONTEXT] - 1)[run]
    return Rows(
        ids=pool.pieces.ids[gather(pool.pieces.offsets, pieces[lengths > 0])],
        row_offsets=row_offsets,
        event_offsets=offsets,
        event_item=events.item.astype(np.int32),
        event_label=events.label.astype(np.int16),
        event_task=events.task.astype(np.int16),
        event_arrow=(event_ends[:, _ITEM] - 1).astype(np.int32),
        event_end=(event_ends[:, _LABEL] - 1).astype(np.int32),
        event_is_target=targets,
        next_offsets=offsets_of(predicted.astype(np.int64))[offsets],
        next_position=person[predicted].astype(np.int32),
        next_item=events.item[predicted].astype(np.int32),
        next_event=events.row[predicted],
        profile_end=(ends[head_line, -1] - 1 - row_offsets[:-1]).astype(np.int32),
        num_dropped_events=frame.num_dropped.astype(np.int32),
    )
