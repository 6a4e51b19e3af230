"""No split lets the future, or a slate mate's label, into training or history."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.splits import (
    Split,
    Targets,
    cold_item,
    fewer_people,
    global_time,
    leave_last,
    leave_one_out,
    new_user,
    seen_in_history,
    slate_events,
)
from promptify.validation import BadInput

NUM_USERS, NUM_ITEMS = 4, 5
USERS = pa.table({"user_id": [str(u) for u in range(NUM_USERS)]})
ITEMS = pa.table({"item_id": [str(i) for i in range(NUM_ITEMS)], "title": ["a title"] * NUM_ITEMS})
SCHEMA = Schema(user=(), items={"film": (Field(name="title", kind="text"),)})

Row = tuple[int, int, int, str | None, str]


def make_log(rows: list[Row]) -> Interactions:
    user, item, time, shown_with, surface = zip(*rows, strict=True)
    events = pa.table(
        {
            "user_id": user,
            "item_id": item,
            "timestamp": time,
            "shown_with": pa.array(shown_with, pa.string()),
            "surface": surface,
            "action": ["good"] * len(rows),
        }
    )
    return Interactions.from_tables(
        users=USERS,
        items=ITEMS,
        events=events,
        schema=SCHEMA,
        actions=("good", "bad"),
        surfaces=("a", "b"),
    )


logs = st.lists(
    st.tuples(
        st.integers(0, NUM_USERS - 1),
        st.integers(0, NUM_ITEMS - 1),
        st.integers(0, 30),
        st.sampled_from([None, None, "s", "t", "v"]),
        st.sampled_from("ab"),
    ),
    min_size=12,
    max_size=60,
).map(make_log)

surfaces = st.sampled_from([None, "a", "b"])


def held_out(data: Interactions, targets: Targets) -> np.ndarray[Any, Any]:
    held = np.zeros(data.num_events, np.bool_)
    for first, last in zip(targets.first_event, targets.last_event, strict=True):
        assert not held[first:last].any()
        held[first:last] = True
    return held


def check_sound(data: Interactions, split: Split) -> None:
    """What every split must hold."""
    rows = np.arange(data.num_events)
    valid, test = held_out(data, split.valid), held_out(data, split.test)
    assert not (valid & test).any()
    assert not (split.train & (valid | test)).any()
    for targets in (split.valid, split.test):
        assert targets.user.dtype == np.int32
        for t in range(len(targets)):
            first, last = targets.first_event[t], targets.last_event[t]
            history = slice(targets.history_start[t], targets.history_end[t])
            mates = data.event_slate == data.event_slate[first]
            # The slate is whole, its user's, and neither it nor anything later is history.
            assert np.flatnonzero(mates).tolist() == list(range(first, last))
            assert (data.event_user[first:last] == targets.user[t]).all()
            assert targets.history_end[t] <= first
            assert (data.event_user[history] == targets.user[t]).all()
            assert (data.event_timestamp[history] <= data.event_timestamp[first]).all()
            # Nothing of this user from the held-out slate on is trained on.
            later = (data.event_user == targets.user[t]) & (rows >= first)
            assert not (split.train & later).any()


@settings(max_examples=100, deadline=None)
@given(data=logs, people=st.integers(1, 4), surface=surfaces)
def test_whoever_is_not_asked_is_trained_on_whole(
    data: Interactions, people: int, surface: str | None
) -> None:
    try:
        everyone = leave_last(data, num=4, surface=surface)
    except BadInput:
        assume(False)
    split = leave_last(data, num=4, surface=surface, people=people)
    check_sound(data, split)
    asked = np.union1d(split.valid.user, split.test.user)
    all_asked = np.union1d(everyone.valid.user, everyone.test.user)
    assert len(asked) == min(people, len(all_asked))
    assert np.isin(asked, all_asked).all()
    is_asked = np.isin(data.event_user, asked)
    assert split.train[~is_asked].all()
    assert (split.train == everyone.train)[is_asked].all()
    # Fewer lie in more, and are asked the same.
    more = leave_last(data, num=4, surface=surface, people=people + 1)
    assert np.isin(asked, more.test.user).all()
    of_both = everyone.test[np.isin(everyone.test.user, asked)]
    assert of_both.first_event.tolist() == split.test.first_event.tolist()
    with pytest.raises(ValueError, match="people=0 must be at least 1"):
        leave_last(data, people=0)


@settings(max_examples=100, deadline=None)
@given(data=logs, num=st.integers(2, 6), num_test=st.integers(1, 5), surface=surfaces)
def test_leave_last_is_sound_and_holds_out_what_it_says(
    data: Interactions, num: int, num_test: int, surface: str | None
) -> None:
    assume(num_test < num)
    try:
        split = leave_last(data, num=num, num_test=num_test, surface=surface)
    except BadInput:
        assume(False)
    check_sound(data, split)
    for user in range(NUM_USERS):
        mine = data.event_user == user
        wanted = mine if surface is None else mine & (data.event_surface == "ab".index(surface))
        slates = np.unique(data.event_slate[wanted])
        num_held = 0 if len(slates) < 3 else min(num, len(slates) - 1)
        firsts = [
            int(np.flatnonzero(data.event_slate == slate)[0])
            for slate in slates[len(slates) - num_held :]
        ]
        # The same share of a short history, one at least, and one that validates.
        tested = 0 if num_held == 0 else max(1, num_held * num_test // num)
        assert tested < max(1, num_held)
        valid = firsts[: num_held - tested]
        assert split.valid.first_event[split.valid.user == user].tolist() == valid
        assert split.test.first_event[split.test.user == user].tolist() == firsts[len(valid) :]
        border = firsts[0] if firsts else data.num_events
        assert (split.train[mine] == (np.flatnonzero(mine) < border)).all()
    for targets in (split.valid, split.test):
        assert (targets.history_start == data.user_offsets[targets.user]).all()
        assert (targets.history_end == targets.first_event).all()


@settings(max_examples=100, deadline=None)
@given(data=logs, moments=st.tuples(st.integers(1, 29), st.integers(2, 30)), surface=surfaces)
def test_global_time_is_sound_and_keeps_to_its_moments(
    data: Interactions, moments: tuple[int, int], surface: str | None
) -> None:
    valid_from, test_from = moments
    assume(valid_from < test_from)
    try:
        split = global_time(data, valid_from=valid_from, test_from=test_from, surface=surface)
    except BadInput:
        assume(False)
    check_sound(data, split)
    time = data.event_timestamp
    here = np.ones(data.num_events, np.bool_)
    if surface is not None:
        here = data.event_surface == "ab".index(surface)
    assert (split.train == (time < valid_from)).all()
    assert (held_out(data, split.test) == (here & (time >= test_from))).all()
    between = (time >= valid_from) & (time < test_from)
    assert (held_out(data, split.valid) == (here & between)).all()


@settings(max_examples=60, deadline=None)
@given(data=logs, seed=st.integers(0, 9))
def test_cold_items_are_in_targets_and_never_trained_on(data: Interactions, seed: int) -> None:
    try:
        base = leave_last(data, num=3)
        split = cold_item(data, base, fraction=0.4, seed=seed)
    except BadInput:
        assume(False)
    check_sound(data, split)
    assert split.cold_items is not None
    assert split.cold_items.sum() == 2
    is_cold = split.cold_items[data.event_item]
    assert (split.train == (base.train & ~is_cold)).all()
    kept = {int(first) for first in split.test.first_event}
    for first, last in zip(base.test.first_event, base.test.last_event, strict=True):
        assert bool(is_cold[first:last].any()) == (int(first) in kept)


@settings(max_examples=60, deadline=None)
@given(data=logs, seed=st.integers(0, 9))
def test_new_users_are_the_targets_and_never_trained_on(data: Interactions, seed: int) -> None:
    try:
        base = leave_one_out(data)
        split = new_user(data, base, fraction=0.5, seed=seed)
    except BadInput:
        assume(False)
    check_sound(data, split)
    new = set(split.test.user.tolist())
    assert not new & set(data.event_user[split.train].tolist())
    others = ~np.isin(data.event_user, sorted(new))
    assert (split.train <= base.train).all()
    assert split.train[others].any()


def steady() -> Interactions:
    return make_log([(u, i, 10 * i + u, None, "a") for u in range(4) for i in range(5)])


def test_leave_one_out_by_hand() -> None:
    split = leave_one_out(steady())
    assert split.name == "leave_one_out"
    assert split.train[:5].tolist() == [True, True, True, False, False]
    assert split.valid.first_event.tolist() == [3, 8, 13, 18]
    assert split.test.first_event.tolist() == [4, 9, 14, 19]
    assert split.test.history_start.tolist() == [0, 5, 10, 15]


def test_users_with_two_slates_are_trained_on() -> None:
    rows: list[Row] = [(0, i, i, None, "a") for i in range(3)]
    split = leave_one_out(make_log([*rows, (1, 0, 0, None, "a"), (1, 1, 1, None, "a")]))
    assert split.test.user.tolist() == [0]
    assert split.train.tolist() == [True, False, False, True, True]


def test_cut_keeps_the_newest_events() -> None:
    targets = leave_one_out(steady()).test
    for num, starts in [(0, [4, 9]), (2, [2, 7]), (100, [0, 5])]:
        cut = targets.cut(num)[:2]
        assert cut.history_start.tolist() == starts
        assert cut.history_end.tolist() == [4, 9]
    with pytest.raises(ValueError, match="num_events=-1"):
        targets.cut(-1)


def test_targets_are_chosen_by_mask_slice_and_rows() -> None:
    targets = leave_one_out(steady()).test
    assert len(targets) == 4
    assert targets[np.array([True, False, False, True])].user.tolist() == [0, 3]
    assert targets[np.array([2, 0])].first_event.tolist() == [14, 4]
    assert targets[1:3].history_end.tolist() == [9, 14]
    assert targets[1].user.tolist() == [1]


@settings(max_examples=50, deadline=None)
@given(data=logs, kept=st.integers(0, 3))
def test_what_a_history_holds_is_known_of_each_held_out_event(
    data: Interactions, kept: int
) -> None:
    try:
        whole = leave_last(data, num=3, num_test=2).test
    except BadInput:
        assume(False)
    for targets in (whole, whole.cut(kept), whole[:0]):
        plain = [
            bool(
                np.isin(
                    data.event_item[event],
                    data.event_item[targets.history_start[n] : targets.history_end[n]],
                )
            )
            for n in range(len(targets))
            for event in range(targets.first_event[n], targets.last_event[n])
        ]
        np.testing.assert_array_equal(seen_in_history(data, targets), np.array(plain, bool))
        assert len(slate_events(targets)) == len(plain)


def test_seeds_choose_and_repeat() -> None:
    data = steady()
    base = leave_last(data, num=2)
    tests = [new_user(data, base, fraction=0.25, seed=seed).test for seed in (0, 0, 1, 2, 3)]
    users = [test.user.tolist() for test in tests]
    assert users[0] == users[1]
    assert len({tuple(user) for user in users}) > 1


def test_some_of_the_people_are_asked_for_all_they_have() -> None:
    split = leave_last(steady(), num=3)
    everybody = set(split.test.user.tolist())
    before: set[int] = set()
    for most in (1, 2, 3):
        fewer = fewer_people(split, most, seed=1)
        assert (fewer.train == split.train).all()
        asked = set(fewer.test.user.tolist())
        assert before < asked < everybody
        assert len(asked) == most
        for some, every in ((fewer.test, split.test), (fewer.valid, split.valid)):
            assert set(some.user.tolist()) == asked
            theirs = np.isin(every.user, list(asked))
            assert some.first_event.tolist() == every.first_event[theirs].tolist()
        before = asked
    assert fewer_people(split, 4, seed=1) is split
    draws = {tuple(fewer_people(split, 2, seed=seed).test.user.tolist()) for seed in range(9)}
    assert len(draws) > 1
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        fewer_people(split, 0)


def test_what_cannot_be_split_says_so() -> None:
    short = make_log([(0, 0, 1, None, "a"), (0, 1, 2, None, "a")])
    with pytest.raises(BadInput, match="no validation targets and no test targets"):
        leave_one_out(short)
    with pytest.raises(BadInput, match="no training events"):
        global_time(short, valid_from=0, test_from=2)
    with pytest.raises(ValueError, match="must be before"):
        global_time(short, valid_from=5, test_from=2)
    with pytest.raises(ValueError, match="num=1"):
        leave_last(short, num=1)
    with pytest.raises(ValueError, match="num_test=3 must be between 1 and 2"):
        leave_last(short, num=3, num_test=3)
    with pytest.raises(ValueError, match="surface='c' is unknown; the log has a, b"):
        leave_one_out(steady(), surface="c")
    with pytest.raises(ValueError, match=r"fraction=1\.0"):
        new_user(steady(), leave_one_out(steady()), fraction=1.0)
