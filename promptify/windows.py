"""Training windows: every training event of a task is a target exactly once per epoch.

A history that fits into a prompt is one window. A longer one is cut into consecutive windows that
do not overlap; where the first of them ends is drawn anew each epoch. A share of the windows,
drawn anew each epoch too, is cut short at a log-uniform length and the next one begins there, so
that an event is seen now with a long history before it and now with a short one, or none.

Legend: E events, W windows, S slates of training events, P pairs of a user and a task, n elements.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptify.pieces import offsets_of

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Stretches of training events, each to become one row.

    Attributes:
        user: int32 [W], whose events.
        task: int16 [W], whose instruction the row has and whose events are its targets.
        first_event: int64 [W], the first row of `events`.
        last_event: int64 [W], one past the last row of `events`.
        train: bool [E], the events in between that belong to training; the others are left out.
    """

    user: Int32
    task: Int16
    first_event: Int64
    last_event: Int64
    train: Bool

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, chosen: Any) -> "Windows":
        """Some of the windows, by mask (bool [W]), slice or numbers."""
        chosen = np.atleast_1d(np.arange(len(self))[chosen])
        return Windows(
            user=self.user[chosen],
            task=self.task[chosen],
            first_event=self.first_event[chosen],
            last_event=self.last_event[chosen],
            train=self.train,
        )

    def events(self) -> tuple[Int64, Int64]:
        """Rows of `events` of all windows, end to end, and where each window's start [W+1]."""
        rows, offsets = between(self.first_event, self.last_event)
        kept = self.train[rows]
        return rows[kept], offsets_of(kept.astype(np.int64))[offsets]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slates:
    """The slates of the training events, in order; a slate too long for any prompt is several.

    Attributes:
        start: int64 [S+1], slate `s` is the training events `start[s]:start[s + 1]`, counted among
            the training events alone.
        user: int32 [S].
        task: int64 [S].
        cost_tokens: int64 [S], tokens of its events and of what stands before them.
    """

    start: Int64
    user: Int32
    task: Int64
    cost_tokens: Int64

    @classmethod
    def of(
        cls,
        *,
        slate: Int64,
        user: Int32,
        task: Int64,
        event_tokens: Int64,
        slate_tokens: Int64,
        room_tokens: int,
    ) -> "Slates":
        """Group training events, all arrays [n].

        Args:
            slate: equal and adjacent for events shown together.
            user: whose event it is.
            task: index of its task.
            event_tokens: what the event costs in a prompt.
            slate_tokens: what its slate costs beside its events.
            room_tokens: what every prompt has room for. A slate above it is cut into parts below
                it; a part never sees another part's labels unless both fit into one prompt.
        """
        starts = np.ones(len(slate), np.bool_)
        starts[1:] = slate[1:] != slate[:-1]
        run = np.cumsum(starts) - 1
        before = np.cumsum(event_tokens) - event_tokens
        before -= before[starts][run]
        size = np.bincount(run, weights=event_tokens)[run] + slate_tokens
        # A part ends with the event that passes its share, so the longest one must still fit.
        longest = np.maximum.reduceat(event_tokens, np.flatnonzero(starts))[run]
        share = np.maximum(room_tokens - longest - slate_tokens, 1)
        part = np.where(size > room_tokens, before // share, 0)
        starts[1:] |= part[1:] != part[:-1]
        first = np.flatnonzero(starts)
        return cls(
            start=np.append(first, len(slate)),
            user=user[first],
            task=task[first],
            cost_tokens=np.add.reduceat(event_tokens, first) + slate_tokens[first],
        )

    def pairs(self, num_tasks: int) -> tuple[Int32, Int16]:
        """The users and tasks that have a slate with each other, int32 [P] and int16 [P]."""
        pair = np.unique(self.user.astype(np.int64) * num_tasks + self.task)
        return (pair // num_tasks).astype(np.int32), (pair % num_tasks).astype(np.int16)


def pack(
    slates: Slates,
    *,
    user: Int32,
    task: Int16,
    budget_tokens: Int64,
    max_events: int | None,
    short_share: float,
    seed: int,
    epoch: int,
) -> tuple[Int64, Int64, Int64]:
    """Fill windows with whole slates, greedily, all users side by side.

    Args:
        slates: of the training events.
        user: int32 [P].
        task: int16 [P], whose slates must be among each window's.
        budget_tokens: int64 [P], what a window of this pair has room for.
        max_events: most events in a window, above which it holds one slate; None for no bound.
        short_share: probability, in [0, 1], that a window which could hold `n` slates holds
            ⌊(n + 1)ᵘ⌋ of them, `u` uniform: each power of two is as likely as the next.
        seed: of the run.
        epoch: draws the first window's length and the short windows anew.

    Returns:
        The pair of each window, its first slate, and one past its last, each int64 [W], by pair and
        time.
    """
    cost = np.concatenate([[0], np.cumsum(slates.cost_tokens)])
    events = slates.start
    start = np.searchsorted(slates.user, user, side="left")
    end = np.searchsorted(slates.user, user, side="right")
    cap = np.iinfo(np.int64).max // 2 if max_events is None else max_events

    fits = (cost[end] - cost[start] <= budget_tokens) & (events[end] - events[start] <= cap)
    key = user.astype(np.int64) << 16 | task
    share = np.where(fits, 1.0, keyed_uniform(key, seed=seed, epoch=epoch))

    pair = np.arange(len(user))
    done: list[tuple[Int64, Int64, Int64]] = []
    while len(pair):
        most_tokens = (budget_tokens[pair] * share).astype(np.int64)
        most_events = np.full(len(pair), cap) if max_events is None else (cap * share).astype(int)
        by_cost = np.searchsorted(cost, cost[start] + most_tokens, side="right") - 1
        by_events = np.searchsorted(events, events[start] + most_events, side="right") - 1
        stop = np.maximum(np.minimum(np.minimum(by_cost, by_events), end), start + 1)
        if short_share:
            # Two draws for each window of a pair, and none of them the one above.
            is_short, length = (
                keyed_uniform(key[pair], seed=seed, epoch=epoch, draw=2 * len(done) + which)
                for which in (1, 2)
            )
            shortened = start + np.floor((stop - start + 1) ** length).astype(np.int64)
            stop = np.where(is_short < short_share, shortened, stop)
        done.append((pair, start, stop))
        more = stop < end
        pair, start, end = pair[more], stop[more], end[more]
        share = np.ones(len(pair))

    pairs, starts, stops = (np.concatenate(part) for part in zip(*done, strict=True))
    # A window is kept for the task it has targets of; the other tasks' windows hold the rest.
    of_task = np.zeros(len(pairs), np.int64)
    for index in range(int(slates.task.max()) + 1):
        count = np.concatenate([[0], np.cumsum(slates.task == index)])
        mine = task[pairs] == index
        of_task[mine] = (count[stops] - count[starts])[mine]
    kept = np.lexsort((starts, pairs))
    kept = kept[of_task[kept] > 0]
    return pairs[kept], starts[kept], stops[kept]


def between(start: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Rows `start[i]:end[i]` of the log for every i, end to end, and where each i's start."""
    offsets = offsets_of(end - start)
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], end - start)
    return rows, offsets


def keyed_bits(key: Int64, *, seed: int, epoch: int, draw: int = 0) -> NDArray[np.uint64]:
    """Random bits that depend on the key, seed, epoch and draw alone, whatever stands beside it.

    Args:
        key: int64 [n].
        seed: of the run.
        epoch: of the run.
        draw: which of several independent draws for the same key.

    Returns:
        uint64 [n].

    Source: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    bits = key.astype(np.uint64)
    for salt in (seed, epoch, draw) if draw else (seed, epoch):
        offset = (salt + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        bits = bits + np.uint64(offset)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return bits


def keyed_uniform(key: Int64, *, seed: int, epoch: int, draw: int = 0) -> Float64:
    """Uniform numbers in [0, 1), float64 [n]; see `keyed_bits`."""
    bits = keyed_bits(key, seed=seed, epoch=epoch, draw=draw) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
