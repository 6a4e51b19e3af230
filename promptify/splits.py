"""Splits: which events are trained on, and which slates are held out to be predicted.

A target is a whole slate, so no label of a slate is ever history for its mates. Where events were
not shown together, each is a slate of its own. Source: the protocols of the house (leave-one-out
as in SASRec, arXiv 1808.09781, with validation and test the last two).

Legend: E events, S slates, U users, I items, n targets.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.pieces import gather
from promptify.validation import BadInput

Bool = NDArray[np.bool_]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Held-out slates with the history before each. Rows are rows of `events`.

    Attributes:
        user: int32 [n], whose slate it is.
        first_event: int64 [n], its first event.
        last_event: int64 [n], one past its last event.
        history_start: int64 [n], the first event of the history.
        history_end: int64 [n], one past the last event of the history, at most `first_event`.
    """

    user: Int32
    first_event: Int64
    last_event: Int64
    history_start: Int64
    history_end: Int64

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: Any) -> "Targets":
        """Some of the targets, by mask (bool [n]), slice or row numbers."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return Targets(
            user=self.user[rows],
            first_event=self.first_event[rows],
            last_event=self.last_event[rows],
            history_start=self.history_start[rows],
            history_end=self.history_end[rows],
        )

    def cut(self, num_events: int) -> "Targets":
        """The same targets with the history cut to its last `num_events`; 0 is the profile alone.

        Raises:
            ValueError: `num_events` is negative.
        """
        if num_events < 0:
            raise ValueError(f"num_events={num_events} must be 0 or more.")
        return replace(
            self, history_start=np.maximum(self.history_start, self.history_end - num_events)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Training events and held-out targets.

    Attributes:
        name: e.g. ``"leave_one_out"``.
        train: bool [E].
        valid: targets for early stopping and the gate.
        test: targets that are reported once.
        cold_items: bool [I], items held out of training whole; None where no item is.
    """

    name: str
    train: Bool
    valid: Targets
    test: Targets
    cold_items: Bool | None = None

    def __post_init__(self) -> None:
        counts = {
            "training events": int(self.train.sum()),
            "validation targets": len(self.valid),
            "test targets": len(self.test),
        }
        empty = [what for what, count in counts.items() if not count]
        if empty:
            raise BadInput(
                f"Split {self.name!r} has no {' and no '.join(empty)}; the log is too short for "
                "it: give more events, or choose another split, border or fraction."
            )


def leave_one_out(interactions: Interactions, *, surface: str | None = None) -> Split:
    """Per user in time order: the last slate is test, the one before validation.

    Users with fewer than 3 slates are trained on whole.

    Args:
        interactions: the log.
        surface: hold out slates of this surface only. What a user does, on any surface, after
            their first held-out slate is not trained on.

    Raises:
        BadInput: nobody has 3 slates.
        ValueError: the surface is unknown.
    """
    return replace(leave_last(interactions, num=2, surface=surface), name="leave_one_out")


def leave_last(
    interactions: Interactions,
    *,
    num: int = 10,
    num_test: int = 1,
    surface: str | None = None,
    people: int | None = None,
) -> Split:
    """Per user in time order: the last slates are test, those before them validation.

    A user keeps at least one slate to be trained on: of `s` ≥ 3 slates, min(`num`, `s` - 1) are
    held out, and of these the same share is test, one at least. Users with fewer than 3 slates are
    trained on whole.

    Args:
        interactions: the log.
        num: slates to hold out per user, at least 2.
        num_test: of those, for test; one leaves the others to validate.
        surface: as in `leave_one_out`.
        people: of how many users slates are held out, the same ones each time; the others are
            trained on whole. Where much of a history is held out, a model trained on what is left
            of everybody's never saw one as long as those that it is asked about. All when None.

    Raises:
        BadInput: nobody has 3 slates.
        ValueError: `num` is below 2, `num_test` is not between 1 and `num` - 1, `people` is below
            1, or the surface is unknown.
    """
    if num < 2:
        raise ValueError(f"num={num} must be 2 or more: one slate for test, the rest to validate.")
    if not 1 <= num_test < num:
        raise ValueError(
            f"num_test={num_test} must be between 1 and {num - 1}: what is held out and no test "
            "validates."
        )
    if people is not None and people < 1:
        raise ValueError(f"people={people} must be at least 1: somebody has to be asked.")
    slates = _slates(interactions, surface)
    num_users = interactions.num_users
    num_slates_U = np.bincount(slates.user, minlength=num_users)
    num_held_U = np.where(num_slates_U < 3, 0, np.minimum(num, num_slates_U - 1))
    if people is not None:
        asked = np.random.default_rng(0).permutation(np.flatnonzero(num_held_U))[:people]
        num_held_U[np.setdiff1d(np.arange(num_users), asked)] = 0
    # Counted from the user's last slate, which is 0.
    age_S = np.cumsum(num_slates_U)[slates.user] - 1 - np.arange(len(slates))
    held_S = age_S < num_held_U[slates.user]
    num_test_U = np.maximum(1, num_held_U * num_test // num)
    test_S = held_S & (age_S < num_test_U[slates.user])

    border_U = interactions.user_offsets[1:].copy()
    np.minimum.at(border_U, slates.user[held_S], slates.first_event[held_S])
    rows_E = np.arange(interactions.num_events)
    return Split(
        name=f"leave_last_{num}" + (f"_of_{people}" if people is not None else ""),
        train=rows_E < border_U[interactions.event_user],
        valid=slates[held_S & ~test_S],
        test=slates[test_S],
    )


def global_time(
    interactions: Interactions, *, valid_from: int, test_from: int, surface: str | None = None
) -> Split:
    """Train before `valid_from`, validate from there, test from `test_from` on.

    The moment of a slate is when it was shown. A target's history is all that its user did before
    it, so test histories hold validation events; users without any are predicted from the profile.

    Args:
        interactions: the log.
        valid_from: seconds, the first moment of validation.
        test_from: seconds, the first moment of test.
        surface: hold out slates of this surface only; nothing after `valid_from` is trained on.

    Raises:
        BadInput: one of the three spans is empty.
        ValueError: the moments are out of order, or the surface is unknown.
    """
    if valid_from >= test_from:
        raise ValueError(f"valid_from={valid_from} must be before test_from={test_from}.")
    slates = _slates(interactions, surface)
    time_S = interactions.event_timestamp[slates.first_event]
    return Split(
        name="global_time",
        train=interactions.event_timestamp < valid_from,
        valid=slates[(time_S >= valid_from) & (time_S < test_from)],
        test=slates[time_S >= test_from],
    )


def cold_item(
    interactions: Interactions, split: Split, *, fraction: float = 0.1, seed: int = 0
) -> Split:
    """Take a seeded share of the items out of training whole; targets are slates that hold one.

    Args:
        interactions: the log that `split` was made from.
        split: where training and targets come from.
        fraction: share of the items, in (0, 1).
        seed: which items.

    Raises:
        BadInput: nothing is left to train on, or no target holds such an item.
        ValueError: `fraction` lies outside (0, 1).
    """
    cold_I = _chosen(interactions.num_items, fraction, seed)
    cold_E = cold_I[interactions.event_item]
    num_cold_before = np.concatenate([[0], np.cumsum(cold_E)])

    def holding_cold(targets: Targets) -> Targets:
        return targets[num_cold_before[targets.last_event] > num_cold_before[targets.first_event]]

    return Split(
        name=f"{split.name}_cold_item",
        train=split.train & ~cold_E,
        valid=holding_cold(split.valid),
        test=holding_cold(split.test),
        cold_items=cold_I,
    )


def new_user(
    interactions: Interactions, split: Split, *, fraction: float = 0.1, seed: int = 0
) -> Split:
    """Take a seeded share of the users out of training whole; targets are theirs alone.

    Args:
        interactions: the log that `split` was made from.
        split: where training and targets come from.
        fraction: share of the users, in (0, 1).
        seed: which users.

    Raises:
        BadInput: nothing is left to train on, or no target is theirs.
        ValueError: `fraction` lies outside (0, 1).
    """
    new_U = _chosen(interactions.num_users, fraction, seed)
    return Split(
        name=f"{split.name}_new_user",
        train=split.train & ~new_U[interactions.event_user],
        valid=split.valid[new_U[split.valid.user]],
        test=split.test[new_U[split.test.user]],
        cold_items=split.cold_items,
    )


def fewer_people(split: Split, most: int, *, seed: int = 0) -> Split:
    """The same training, and the targets of some of the people alone.

    Args:
        split: whose targets are too many to ask them all.
        most: people who are kept, with all of their targets, of those who have any.
        seed: which people; fewer of them lie in more.

    Raises:
        BadInput: those who were drawn have nothing to validate on, or nothing to test.
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most={most} must be at least 1: somebody has to be asked.")
    people = np.union1d(split.valid.user, split.test.user)
    if len(people) <= most:
        return split
    kept = np.random.default_rng(seed).permutation(people)[:most]
    return replace(
        split,
        valid=split.valid[np.isin(split.valid.user, kept)],
        test=split.test[np.isin(split.test.user, kept)],
    )


def _slates(interactions: Interactions, surface: str | None) -> Targets:
    """Every slate (of one surface, if given) as a target, in the order of the log."""
    slate = interactions.event_slate
    first = np.flatnonzero(np.diff(slate, prepend=slate[0] - 1)).astype(np.int64)
    last = np.append(first[1:], len(slate))
    if surface is not None:
        if surface not in interactions.surfaces:
            raise ValueError(
                f"surface={surface!r} is unknown; the log has {', '.join(interactions.surfaces)}."
            )
        here = interactions.event_surface[first] == interactions.surfaces.index(surface)
        first, last = first[here], last[here]
    user = interactions.event_user[first]
    return Targets(
        user=user,
        first_event=first,
        last_event=last,
        history_start=interactions.user_offsets[user],
        history_end=first.copy(),
    )


def _chosen(num: int, fraction: float, seed: int) -> Bool:
    """A seeded share of `num` things, at least one: bool [num]."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1.")
    chosen = np.zeros(num, np.bool_)
    size = max(1, round(fraction * num))
    chosen[np.random.default_rng(seed).choice(num, size=size, replace=False)] = True
    return chosen


def slate_events(targets: Targets) -> NDArray[np.int64]:
    """Rows of all events of all held-out slates, slate after slate, int64 [e]."""
    borders = np.stack([targets.first_event, targets.last_event], axis=1).ravel()
    # Every other gap between the borders is a slate.
    return gather(borders, np.arange(0, len(borders), 2))


def seen_in_history(interactions: Interactions, targets: Targets) -> NDArray[np.bool_]:
    """Whether the history of each event of the held-out slates holds its item, bool [e].

    Args:
        interactions: hold the events.
        targets: held-out slates.

    Returns:
        One for each of `slate_events`.
    """
    event_e = slate_events(targets)
    request_e = np.repeat(np.arange(len(targets)), targets.last_event - targets.first_event)
    user_E, num_items = interactions.event_user.astype(np.int64), interactions.num_items
    pair_E = user_E * num_items + interactions.event_item
    pairs, own_e = np.unique(pair_E[event_e], return_inverse=True)
    is_met_E = np.isin(pair_E, pairs)
    # Where somebody met an item that is held out for them, as one number: by pair, then by row.
    met = np.searchsorted(pairs, pair_E[is_met_E]) * len(pair_E) + np.flatnonzero(is_met_E)
    met.sort()
    before_e, until_e = (
        np.searchsorted(met, own_e * len(pair_E) + end[request_e])
        for end in (targets.history_start, targets.history_end)
    )
    seen_e: NDArray[np.bool_] = before_e < until_e
    return seen_e
