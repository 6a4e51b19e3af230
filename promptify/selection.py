"""Which history events stay in a prompt that has no room for all.

Legend: R rows, M events of all rows end to end, chronological within a row.
"""

import numpy as np
from numpy.typing import NDArray

from promptify.pieces import offsets_of

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]


def first_of_slate(slate: Int64, offsets: Int64) -> Bool:
    """Whether each event is the first of its slate in its row, bool [M].

    Args:
        slate: int64 [M], equal and adjacent for events shown together.
        offsets: int64 [R+1], row `r` holds events `offsets[r]:offsets[r + 1]`.
    """
    first = np.ones(len(slate), np.bool_)
    first[1:] = slate[1:] != slate[:-1]
    first[offsets[:-1][offsets[:-1] < len(slate)]] = True
    return first


def newest(
    *,
    event_tokens: Int64,
    slate_tokens: Int64,
    slate: Int64,
    offsets: Int64,
    budget_tokens: Int64,
    num_before: Int64 | int = 0,
    stride: int = 1,
) -> Bool:
    """The newest events that fit, bool [M]: in each row, all from some event on.

    Args:
        event_tokens: int64 [M], what each event costs.
        slate_tokens: int64 [M], what its slate costs beside its events, once.
        slate: int64 [M].
        offsets: int64 [R+1].
        budget_tokens: int64 [R].
        num_before: int64 [R], events of the same history that are older than the row's first.
        stride: where some are left out, so many at a time, counted from the first of the history,
            but never more than half of those that fit.
    """
    if not len(slate):
        return np.zeros(0, np.bool_)
    # Read backwards, a slate is paid for where its last event is.
    last = np.append(first_of_slate(slate, offsets)[1:], True)
    paid = np.cumsum(event_tokens + np.where(last, slate_tokens, 0))
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    upto_end = np.append(0, paid)[offsets[1:]][row]
    before = np.append(0, paid)[:-1]
    fits: Bool = upto_end - before <= budget_tokens[row]
    if stride == 1:
        return fits
    num_fitting = np.diff(offsets_of(fits.astype(np.int64))[offsets])
    num_out = num_before + np.diff(offsets) - num_fitting
    more = np.minimum(-num_out % stride, num_fitting // 2)
    kept: Bool = np.arange(len(slate)) >= (offsets[1:] - num_fitting + more)[row]
    return kept


def newest_per_action(
    *,
    event_tokens: Int64,
    slate_tokens: Int64,
    slate: Int64,
    action: Int64,
    offsets: Int64,
    budget_tokens: Int64,
) -> Bool:
    """The newest event of each action, then the second newest of each, and so on while they fit.

    Args:
        event_tokens: int64 [M], what each event costs.
        slate_tokens: int64 [M], what its slate costs beside its events, once.
        slate: int64 [M].
        action: int64 [M].
        offsets: int64 [R+1].
        budget_tokens: int64 [R].

    Returns:
        bool [M].
    """
    num_events = len(slate)
    if not num_events:
        return np.zeros(0, np.bool_)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    age = -np.arange(num_events)

    by_action = np.lexsort((age, action, row))
    turn_starts = np.ones(num_events, np.bool_)
    turn_starts[1:] = (np.diff(row[by_action]) != 0) | (np.diff(action[by_action]) != 0)
    at = np.arange(num_events)
    turn = np.empty(num_events, np.int64)
    turn[by_action] = at - np.maximum.accumulate(np.where(turn_starts, at, 0))

    order = np.lexsort((age, turn, row))
    run = np.cumsum(first_of_slate(slate, offsets))
    pays = np.zeros(num_events, np.bool_)
    pays[np.unique(run[order], return_index=True)[1]] = True
    paid = np.cumsum(event_tokens[order] + np.where(pays, slate_tokens[order], 0))
    before_row = np.append(0, paid)[offsets[:-1]][row]
    kept = np.empty(num_events, np.bool_)
    kept[order] = paid - before_row <= budget_tokens[row]
    return kept
