"""The three tables: order, slates, contexts, validation, and the folder they are saved in."""

import json
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.validation import BadInput, BadRows

SCHEMA = Schema(
    user=(Field(name="age", kind="number", label="age"),),
    items={"film": (Field(name="title", kind="text"), Field(name="genres", kind="list"))},
)
USERS = pa.table({"user_id": ["u0", "u1", "u2"], "age": ["7", None, "30.5"]})
ITEMS = pa.table(
    {
        "item_id": [10, 11, 12, 13],
        "title": ["Heat", " Alien ", None, "Up"],
        "genres": [["Crime"], [], ["War", None, " "], None],
    }
)


def log(events: dict[str, list[Any]], **options: Any) -> Interactions:
    num = len(events["item_id"])
    columns = {"user_id": ["u0"] * num, "action": ["good"] * num, **events}
    return Interactions.from_tables(
        users=options.pop("users", USERS),
        items=options.pop("items", ITEMS),
        events=pa.table(columns),
        schema=SCHEMA,
        actions=options.pop("actions", ("good", "bad")),
        **options,
    )


def test_tables_are_read_as_the_schema_says() -> None:
    data = log({"item_id": ["10"], "timestamp": [1]})
    assert data.users.to_list() == [
        {"user_id": "u0", "age": 7.0},
        {"user_id": "u1", "age": None},
        {"user_id": "u2", "age": 30.5},
    ]
    assert data.items.to_list() == [
        {"item_id": "10", "kind": "film", "title": "Heat", "genres": ["Crime"]},
        {"item_id": "11", "kind": "film", "title": "Alien", "genres": []},
        {"item_id": "12", "kind": "film", "title": None, "genres": ["War"]},
        {"item_id": "13", "kind": "film", "title": "Up", "genres": []},
    ]
    assert data.item_ids == ("10", "11", "12", "13")


def test_events_stand_by_user_then_time_then_line() -> None:
    data = log(
        {
            "user_id": ["u2", "u0", "u0", "u0", "u2"],
            "item_id": [10, 11, 12, 13, 11],
            "timestamp": [4, 9, 3, 3, 5],
        }
    )
    assert data.event_user.tolist() == [0, 0, 0, 2, 2]
    assert data.event_item.tolist() == [2, 3, 1, 0, 1]
    assert data.event_timestamp.tolist() == [3, 3, 9, 4, 5]
    assert data.event_slate.tolist() == [0, 1, 2, 3, 4]
    assert data.user_offsets.tolist() == [0, 3, 3, 5]
    dtypes = [data.event_user, data.event_item, data.event_action, data.event_context]
    assert [values.dtype for values in dtypes] == [np.int32, np.int32, np.int16, np.int32]


STARTED = 1_700_000_000
"""Of a second in which three things happen, 100 ms apart; the last of them stands first."""
ISO = [f"2023-11-14T22:13:20.{tenths}" for tenths in "321"]
WITHIN_A_SECOND: dict[str, Any] = {
    "floats": [STARTED + tenths / 10 for tenths in (3, 2, 1)],
    "numbers as text": [f"{STARTED}.{tenths}" for tenths in "321"],
    "ISO 8601": [*ISO[:2], "2023-11-14T23:13:20.1+01:00"],
    "datetimes": [datetime.fromisoformat(text + "00000") for text in ISO],
    "decimals": [Decimal(f"{STARTED}.{tenths}") for tenths in "321"],
    **{f"timestamps in {unit}": pa.array(ISO).cast(pa.timestamp(unit)) for unit in ("ms", "ns")},
}


@pytest.mark.parametrize("form", WITHIN_A_SECOND)
def test_what_happened_within_a_second_stands_in_its_order(form: str) -> None:
    moments = pa.array(WITHIN_A_SECOND[form])
    for places in ([0, 1, 2], [1, 0, 2], [2, 0, 1]):
        items = [12 - place for place in places]
        data = log({"item_id": items, "timestamp": moments.take(pa.array(places))})
        assert data.event_item.tolist() == [0, 1, 2]
        assert data.event_timestamp.tolist() == [STARTED] * 3
        assert data.event_timestamp.dtype == np.int64


def test_before_1970_the_order_within_a_second_is_the_same() -> None:
    for moments in ([-0.25, -0.5, -0.75], ["1969-12-31T23:59:59.7", "1969-12-31T23:59:59.2", "-1"]):
        data = log({"item_id": [10, 11, 12], "timestamp": moments})
        assert data.event_item.tolist() == [2, 1, 0]
        assert data.event_timestamp.tolist() == [-1] * 3


def test_a_nanosecond_is_time() -> None:
    moments = pa.array([STARTED * 10**9 + 2, STARTED * 10**9 + 1]).cast(pa.timestamp("ns"))
    assert log({"item_id": [11, 10], "timestamp": moments}).event_item.tolist() == [0, 1]


def test_slates_of_one_second_stand_by_when_the_first_event_of_each_was() -> None:
    data = log(
        {
            "item_id": [10, 11, 12, 13],
            "timestamp": [1.5, 1.4, 2.7, 1.2],
            "shown_with": ["s", None, "t", "t"],
        }
    )
    assert data.event_item.tolist() == [2, 3, 1, 0]
    assert data.event_timestamp.tolist() == [1, 1, 1, 1]
    assert data.event_slate.tolist() == [0, 0, 1, 2]


def test_of_events_that_repeat_within_a_second_the_earliest_is_kept() -> None:
    events = {"item_id": [11, 10, 10], "timestamp": [1.5, 1.8, 1.2]}
    assert log(events).event_item.tolist() == [0, 1]


def of_three_people(timestamps: list[int]) -> dict[str, list[Any]]:
    """Lines of three people in turn; each sees films 10, 11, 12 and 13 at these times."""
    users, times = ["u0", "u1", "u2"] * 4, np.repeat(timestamps, 3).tolist()
    return {"user_id": users, "item_id": np.repeat([10, 11, 12, 13], 3).tolist()} | {
        "timestamp": times
    }


@pytest.mark.parametrize("unit", [1, 86_400])
def test_a_file_that_lists_the_newest_first_is_read_from_its_end(
    caplog: pytest.LogCaptureFixture, unit: int
) -> None:
    caplog.set_level("INFO")
    rising = of_three_people([5 * unit, 6 * unit, 6 * unit, 6 * unit])
    oldest_first = log(rising)
    assert oldest_first.event_item.tolist() == [0, 1, 2, 3] * 3
    assert not caplog.text
    newest_first = log({name: values[::-1] for name, values in rising.items()})
    assert "events lists each person's events newest first" in caplog.text
    assert "(6 rows)" in caplog.text
    assert newest_first.events.data.table.equals(oldest_first.events.data.table)


def test_a_file_that_lists_the_newest_first_is_read_alike_with_slates_and_repeats() -> None:
    rising = {
        "item_id": [10, 11, 12, 10, 13, 10],
        "timestamp": [5, 5, 5, 5, 6, 6],
        "shown_with": ["s", "s", "t", None, "r", "r"],
        "context": ["near Lyon", None, None, None, "far", None],
    }
    falling = {name: values[::-1] for name, values in rising.items()}
    one, other = log(rising), log(falling)
    for name in ("user", "item", "timestamp", "slate"):
        assert one.events[name][:] == other.events[name][:]
    for data in (one, other):
        words = [None if c < 0 else data.contexts[c] for c in data.event_context]
        assert words == ["near Lyon", "near Lyon", None, "far", "far"]


def test_a_line_that_came_late_does_not_hide_that_a_file_is_newest_first() -> None:
    falling = [*range(300, 100, -1), 90, 90]
    for late, wanted in (([], [1, 0]), ([95], [1, 0]), ([95, 80, 95.5, 82, 97], [0, 1])):
        times = [*falling, *late]
        items = [13] * 200 + [10, 11] + [13] * len(late)
        data = log({"item_id": items, "timestamp": times})
        tied = data.event_item[data.event_timestamp == 90]
        assert tied.tolist() == wanted


def test_where_nothing_says_that_a_file_is_newest_first_equal_times_stand_by_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    for times in ([7, 7, 7, 7], [7, 7, 6, 7], [6, 7, 7, 5]):
        events = of_three_people(times)
        data = log(events)
        by_time = np.argsort(times, kind="stable").tolist()
        assert data.event_item.tolist() == by_time * 3
    assert not caplog.text


def test_a_line_that_does_not_fit_is_named_in_a_file_that_is_newest_first() -> None:
    events = {
        "item_id": [13, 12, 11, 10],
        "timestamp": [9, 8, 8, 8],
        "context": [None, "x", "y", None],
        "shown_with": [None, "s", "s", None],
    }
    with pytest.raises(BadInput, match=r"events row 3: context 'y' is not the context of"):
        log(events)


def test_a_slate_stands_together_at_the_moment_it_was_shown_with_one_context() -> None:
    data = log(
        {
            "item_id": [10, 11, 12, 13],
            "timestamp": [8, 6, 7, 5],
            "shown_with": ["s", None, None, "s"],
            "context": [None, "other", None, "near Lyon"],
        }
    )
    assert data.event_item.tolist() == [0, 3, 1, 2]
    assert data.event_timestamp.tolist() == [5, 5, 6, 7]
    assert data.event_slate.tolist() == [0, 0, 1, 2]
    words = [None if c < 0 else data.contexts[c] for c in data.event_context]
    assert words == ["near Lyon", "near Lyon", "other", None]


def test_events_that_a_slate_takes_before_what_was_shown_between_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clicked = {"item_id": [10, 11, 12], "timestamp": [1, 5, 3], "shown_with": ["s", "s", None]}
    log(clicked)
    assert "1 events have a timestamp after what their user was shown next" in caplog.text
    caplog.clear()
    # Acted on later than shown, but before anything else was.
    log({**clicked, "timestamp": [1, 2, 3]})
    # What others were shown meanwhile is nobody's history.
    log({**clicked, "user_id": ["u0", "u0", "u1"]})
    assert not caplog.text


def test_slates_of_two_users_or_two_surfaces_are_two() -> None:
    data = log(
        {
            "user_id": ["u0", "u1", "u0", "u0"],
            "item_id": [10, 10, 11, 12],
            "timestamp": [1, 1, 1, 1],
            "shown_with": ["s"] * 4,
            "surface": ["a", "a", "b", "a"],
        },
        surfaces=("a", "b"),
    )
    assert data.event_slate.tolist() == [0, 0, 1, 2]
    assert data.event_surface.tolist() == [0, 0, 1, 0]


def test_each_surface_has_its_own_order_of_actions() -> None:
    events = {
        "item_id": [10, 10, 10, 10],
        "timestamp": [1, 1, 1, 1],
        "action": ["good", "bad", "good", "bad"],
        "shown_with": ["s"] * 4,
        "surface": ["a", "a", "b", "b"],
    }
    orders = {"a": ("good", "bad"), "b": ("bad", "good")}
    data = log(events, actions=orders, surfaces=("a", "b"))
    assert data.actions == ("good", "bad")
    assert data.event_surface.tolist() == [0, 1]
    assert data.event_action.tolist() == [0, 1]


def test_two_contexts_in_one_slate_are_reported() -> None:
    events = {
        "item_id": [10, 11, 12],
        "timestamp": [1, 1, 1],
        "shown_with": ["s"] * 3,
        "context": ["x", "y", None],
    }
    with pytest.raises(BadInput, match=r"events row 2: context 'y' is not the context of"):
        log(events)
    with BadRows(on_bad_rows="skip") as bad_rows:
        data = log(events, bad_rows=bad_rows)
    assert data.event_item.tolist() == [0, 2]
    assert bad_rows.num_set_aside == 1


def test_an_item_is_in_a_slate_once_with_the_best_of_what_was_done() -> None:
    events = {
        "item_id": [10, 10, 11, 10, 10],
        "timestamp": [4, 6, 5, 7, 8],
        "action": ["bad", "good", "bad", "bad", "bad"],
        "shown_with": ["s", "s", "s", None, None],
    }
    with BadRows() as bad_rows:
        data = log(events, bad_rows=bad_rows)
    assert data.event_item.tolist() == [0, 1, 0, 0]
    assert data.event_action.tolist() == [0, 1, 1, 1]
    # When it was shown is known of the one that is left out, too.
    assert data.event_timestamp.tolist() == [4, 4, 7, 8]
    [(reason, count)] = bad_rows.counts.items()
    assert (reason, count) == (
        "events: action comes with a better one for the same item and shown_with",
        1,
    )


def test_what_a_better_action_sets_aside_is_written_down_as_it_was_given(tmp_path: Path) -> None:
    events = {
        "item_id": [11, 10, 10],
        "timestamp": [4, 5, 6],
        "action": ["bad", "bad", "good"],
        "shown_with": ["s", "s", "s"],
        "context": ["near", None, None],
    }
    file = tmp_path / "bad.jsonl"
    with BadRows(on_bad_rows="quarantine", quarantine=file) as bad_rows:
        log(events, bad_rows=bad_rows)
    [record] = map(json.loads, file.read_text().splitlines())
    assert (record["column"], record["row"]["item_id"]) == ("action", "10")
    assert (record["row"]["timestamp"], record["row"]["context"]) == (5, None)


def test_a_slate_of_days_is_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    day = 86_400
    shown = {"item_id": [10, 11, 12], "timestamp": [0, day, 5 * day], "shown_with": ["s", "s", "t"]}
    log(shown)
    assert not caplog.text
    log({**shown, "shown_with": ["feed"] * 3})
    assert "1 slates hold events of more than a day after their first" in caplog.text


def test_repeated_events_are_kept_once_and_counted() -> None:
    with BadRows() as bad_rows:
        data = log(
            {
                "item_id": [10, 10, 10, 10],
                "timestamp": [1, 1, 1, 2],
                "action": ["good", "bad", "good", "good"],
            },
            bad_rows=bad_rows,
        )
    assert data.event_timestamp.tolist() == [1, 1, 2]
    assert data.event_action.tolist() == [0, 1, 0]
    assert bad_rows.counts == {"events: item_id repeats an earlier event": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": ["u9"]}, "user_id 'u9' is not in the table of users"),
        ({"item_id": ["99"]}, "item_id '99' is not in the table of items"),
        ({"item_id": [None]}, "item_id None is missing"),
        ({"action": ["meh"]}, "action 'meh' is not one of good, bad"),
        ({"timestamp": [978300760000]}, "looks like milliseconds; divide by 1000"),
        ({"timestamp": ["20240131"]}, "timestamp '20240131' looks like a date; write it as 2024-"),
        ({"timestamp": [20240131]}, "looks like a date"),
        ({"timestamp": [None]}, "timestamp None is missing"),
        ({"timestamp": [float("nan")]}, "timestamp nan is not a time"),
        ({"timestamp": ["yesterday"]}, "timestamp 'yesterday' is not a time"),
        ({"surface": ["home"]}, "surface 'home' is not one of events"),
        ({"context": [b"\xff"]}, "is not UTF-8"),
    ],
)
def test_an_event_that_does_not_fit_is_named(change: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        log({"item_id": [10], "timestamp": [1]} | change)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"user_id": ["u0", "u0"], "age": [1, 2]}, "users row 2: user_id 'u0' stands twice"),
        ({"user_id": ["u0", None], "age": [1, 2]}, "users row 2: user_id None is missing"),
        ({"user_id": ["u0"], "age": [float("nan")]}, "age nan is not a number"),
        ({"user_id": ["u0"], "age": ["old"]}, "age 'old' is not a number"),
        ({"user_id": ["u0"], "age": [float("inf")]}, "age inf is not a number"),
        ({"user_id": ["u0"]}, "users lacks the column age; it has user_id"),
        ({"user_id": pa.array([], pa.string()), "age": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_a_user_that_does_not_fit_is_named(users: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        log({"item_id": [10], "timestamp": [1]}, users=pa.table(users))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": [1], "title": [" "], "genres": [[]]}, "item_id 1 has nothing to read"),
        ({"item_id": [1], "title": [["a"]], "genres": [[]]}, "title .* is not text"),
        (
            {"item_id": [1], "title": ["a"], "genres": [[]], "kind": ["song"]},
            "kind 'song' is not one of the schema's: film",
        ),
    ],
)
def test_an_item_that_does_not_fit_is_named(items: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        log({"item_id": [1], "timestamp": [1]}, items=pa.table(items))


def test_a_bad_row_takes_no_good_one_of_its_id_with_it() -> None:
    with BadRows(on_bad_rows="skip") as bad_rows:
        data = log(
            {"item_id": [1], "timestamp": [1]},
            users=pa.table({"user_id": ["u0", "u0", "u0"], "age": ["x", "4", "5"]}),
            items=pa.table({"item_id": [1, 1], "title": [" ", "Heat"], "genres": [[], []]}),
            bad_rows=bad_rows,
        )
    assert data.users.to_list() == [{"user_id": "u0", "age": 4.0}]
    assert data.items["title"][:] == ["Heat"]
    assert bad_rows.counts == {
        "users: age is not a number; leave it empty if it is unknown": 1,
        "users: user_id stands twice; ids must be different": 1,
        "items: item_id has nothing to read (nothing in title, genres)": 1,
    }


def test_no_events_is_one_clear_line() -> None:
    with pytest.raises(BadInput, match="events holds no events that fit"):
        log({"item_id": pa.array([], pa.int64()), "timestamp": pa.array([], pa.int64())})  # type: ignore[dict-item]


def test_rows_are_counted_through_batches() -> None:
    good = {"user_id": ["u0"] * 2, "item_id": [10, 11], "action": ["good"] * 2}
    batches = [
        pa.RecordBatch.from_pydict(good | {"timestamp": times}) for times in ([1, 2], [3, None])
    ]
    with pytest.raises(BadInput, match="events row 4: timestamp None is missing"):
        Interactions.from_tables(
            users=USERS, items=ITEMS, events=batches, schema=SCHEMA, actions=("good",)
        )


def test_whole_floats_and_numbers_are_the_same_ids() -> None:
    data = log({"item_id": [10.0, 13.0], "timestamp": [1.9, 2.0]})
    assert data.event_item.tolist() == [0, 3]
    assert data.event_timestamp.tolist() == [1, 2]


def test_dates_are_read_as_seconds() -> None:
    dates = ["1970-01-02", "1970-01-01T01:00:00+01:00", "90"]
    data = log({"item_id": [10, 11, 12], "timestamp": dates})
    assert data.event_timestamp.tolist() == [0, 90, 86400]


def test_an_item_with_nothing_that_is_told_is_a_bad_row() -> None:
    schema = Schema(
        user=(),
        items={"film": (Field(name="title", kind="text"), Field(name="posted", kind="time"))},
    )
    items = pa.table({"item_id": ["10", "11"], "title": ["Up", None], "posted": [5, 7]})
    with pytest.raises(BadInput, match=r"'11' has nothing to read \(nothing in title\)"):
        Interactions.from_tables(
            users=USERS,
            items=items,
            events=pa.table(
                {"user_id": ["u0"], "item_id": ["10"], "action": ["good"], "timestamp": [1]}
            ),
            schema=schema,
            actions=("good",),
        )


def test_a_log_with_more_items_keeps_what_was_made_of_its_people_and_events() -> None:
    data = log(
        {
            "user_id": ["u2", "u0"],
            "item_id": [10, 11],
            "action": ["bad", "good"],
            "timestamp": [1, 2],
        }
    )
    properties = [
        name for name, value in vars(Interactions).items() if isinstance(value, cached_property)
    ]
    for name in properties:
        getattr(data, name)
    told = {
        "item_id": ["12", "99"],
        "kind": ["film"] * 2,
        "title": ["Ran", "Up"],
        "genres": [None] * 2,
    }
    more = data.with_items(pa.table(told))
    for name in (
        "user_offsets",
        "user_ids",
        "_user_rows",
        "event_user",
        "event_slate",
        "surface_actions",
    ):
        assert getattr(more, name) is getattr(data, name)
    anew = Interactions(
        schema=data.schema,
        users=data.users,
        items=more.items,
        events=data.events,
        actions=data.actions,
        surfaces=data.surfaces,
    )
    for name in properties:
        np.testing.assert_equal(getattr(more, name), getattr(anew, name))
    assert more.item_ids == ("10", "11", "12", "13", "99")
    assert data.item_ids == ("10", "11", "12", "13")


def test_rows_are_found_by_id() -> None:
    data = log({"item_id": [10], "timestamp": [1]})
    assert data.user_row("u2") == 2
    assert data.item_row("13") == 3
    with pytest.raises(BadInput, match=r"unknown user '42' of 3; user ids are text\.$"):
        data.user_row("42")
    with pytest.raises(BadInput, match="unknown item 13"):
        data.item_row(13)  # type: ignore[arg-type]


rows = st.lists(
    st.tuples(
        st.sampled_from(["u0", "u1", "u2"]),
        st.sampled_from([10, 11, 12, 13]),
        st.sampled_from(["good", "bad"]),
        st.integers(0, 6),
        st.sampled_from([None, "s", "t"]),
        st.sampled_from([None, "near Lyon"]),
    ),
    min_size=1,
    max_size=20,
)


def from_rows(values: list[tuple[Any, ...]]) -> Interactions:
    names = ("user_id", "item_id", "action", "timestamp", "shown_with", "context")
    return log({name: [row[i] for row in values] for i, name in enumerate(names)})


@settings(max_examples=60, deadline=None)
@given(rows)
def test_order_and_slates_hold_for_any_log(values: list[tuple[Any, ...]]) -> None:
    data = from_rows(values)
    users, times, slates = data.event_user, data.event_timestamp, data.event_slate
    assert (np.diff(users) >= 0).all()
    assert (np.diff(times)[np.diff(users) == 0] >= 0).all()
    assert set(np.diff(slates).tolist()) <= {0, 1}
    for slate in set(slates.tolist()):
        mates = slates == slate
        assert len(set(users[mates].tolist())) == 1
        assert len(set(times[mates].tolist())) == 1
        assert len(set(data.event_context[mates].tolist())) == 1
    shown = {(row[0], row[4]) for row in values if row[4]}
    alone = {row[:4] for row in values if not row[4]}
    assert len(set(slates.tolist())) <= len(shown) + len(alone)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.lists(st.integers(0, 3000), min_size=12, unique=True))
def test_the_order_of_lines_does_not_matter_where_no_two_times_are_equal(
    lines: list[int], milliseconds: list[int]
) -> None:
    events = [
        (f"u{line % 3}", 10 + line % 4, ("good", "bad")[line % 2], at / 1000, None, None)
        for line, at in enumerate(milliseconds[:12])
    ]
    one, other = from_rows(events), from_rows([events[line] for line in lines])
    assert one.events.data.table.equals(other.events.data.table)


@settings(max_examples=10, deadline=None)
@given(rows)
def test_saved_and_loaded_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[Any, ...]]
) -> None:
    data = from_rows(values)
    folder = tmp_path_factory.mktemp("log") / "saved"
    data.save(folder)
    again = Interactions.load(folder)
    for name in ("users", "items", "events"):
        assert getattr(again, name).data.table.equals(getattr(data, name).data.table)
    assert again.schema == data.schema
    assert (again.actions, again.surfaces, again.contexts) == (
        data.actions,
        data.surfaces,
        data.contexts,
    )
    assert (again.user_offsets == data.user_offsets).all()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    log({"user_id": ["u1", "u2"], "item_id": [10, 11], "timestamp": [20241301, 2]}).save(
        tmp_path / "saved"
    )
    return tmp_path / "saved"


def test_loaded_columns_are_views_of_the_file(saved: Path) -> None:
    data = Interactions.load(saved)
    assert data.events.cache_files
    assert not data.event_item.flags.owndata
    assert not data.event_item.flags.writeable


def test_save_refuses_a_folder_in_use_and_leaves_nothing_behind(saved: Path) -> None:
    data = Interactions.load(saved)
    with pytest.raises(BadInput, match="exists already"):
        data.save(saved)
    data.contexts = ("\udc80",)
    with pytest.raises(UnicodeEncodeError):
        data.save(saved.with_name("other"))
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("name", ["users.arrow", "events.arrow", "interactions.json"])
def test_a_damaged_folder_is_refused(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cut or damaged"):
        Interactions.load(saved)
    (saved / name).unlink()
    with pytest.raises(BadInput, match="cut or damaged"):
        Interactions.load(saved)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item", 9999, "item is not between 0 and"),
        ("action", -1, "action is not between 0 and"),
        ("context", -2, "context is not between -1 and"),
        ("user", 0, "user falls from one event to the next"),
        ("slate", -5, "slate falls from one event to the next"),
    ],
)
def test_events_whose_numbers_fit_nothing_are_refused(
    saved: Path, column: str, value: int, message: str
) -> None:
    # Of bytes, since a file that is mapped must not be written to.
    with pa.ipc.open_stream((saved / "events.arrow").read_bytes()) as stream:
        events = stream.read_all()
    values = events[column].to_numpy().copy()
    values[-1] = value
    place = events.schema.get_field_index(column)
    events = events.set_column(place, events.schema.field(place), [pa.array(values)])
    with pa.ipc.new_stream(saved / "events.arrow", events.schema) as stream:
        stream.write_table(events)
    with pytest.raises(BadInput, match=message):
        Interactions.load(saved)


def test_a_folder_of_another_format_is_refused(saved: Path) -> None:
    manifest = saved / "interactions.json"
    text = manifest.read_text().replace('"format_version": 1', '"format_version": 99')
    manifest.write_text(text)
    with pytest.raises(BadInput, match="format 99"):
        Interactions.load(saved)
