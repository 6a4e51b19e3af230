"""An older run's model on new data: what it was trained on tests nothing, and its words stay."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from decant.layout import DATA, PROMPTER, RunLayout
from decant.pipeline import Job, fit_prompter, read_data
from decant.recipes import Recipe
from decant.run_data import load_split
from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.task import Task
from promptify.validation import BadInput
from promptify.whole import write_whole

TASK = Task(
    name="films",
    instruction="Predict how this viewer rates each film.",
    actions=("liked", "disliked"),
    positive=("liked",),
    item_kind="film",
)
SCHEMA = Schema(
    user=(Field(name="city", kind="text"), Field(name="age", kind="number", label="age")),
    items={"film": (Field(name="title", kind="text"),)},
)


def data_of(
    num_events: int | list[int] = 8,
    *,
    num_expired: int = 0,
    num_films: int = 20,
    later: list[int] | None = None,
    task: Task = TASK,
    schema: Schema = SCHEMA,
) -> SourceData:
    """Twelve people whose first events are always the same, so that more of them are a log grown.

    Args:
        num_events: of each person.
        num_expired: of these, the first of each that are in the log no more.
        num_films: which people watch in turn, again and again.
        later: seconds by which each person's times moved; None for not at all.
        task: the only one.
        schema: of the tables, filled with something that fits.
    """
    counts = num_events if isinstance(num_events, list) else [num_events] * 12
    later = later or [0] * len(counts)
    people, films = [f"u{n}" for n in range(len(counts))], [f"i{n}" for n in range(num_films)]

    def filled(ids: list[str], field: Field) -> list[Any]:
        return list(range(len(ids))) if field.kind == "number" else [f"word {i}" for i in ids]

    users = {"user_id": people} | {field.name: filled(people, field) for field in schema.user}
    items = {"item_id": films, "kind": [*schema.items] * len(films)}
    items |= {field.name: filled(films, field) for field in schema.item_columns}
    events = [
        {
            "user_id": person,
            "item_id": films[(3 * row + n) % len(films)],
            "action": task.actions[n % 2],
            "timestamp": 1_700_000_000 + 60 * n + later[row],
        }
        for row, (person, count) in enumerate(zip(people, counts, strict=True))
        for n in range(num_expired, count)
    ]
    log = Interactions.from_tables(
        users=pa.table(users),
        items=pa.table(items),
        events=pa.Table.from_pylist(events),
        schema=schema,
        actions=task.actions,
        surfaces=(task.name,),
    )
    return SourceData(interactions=log, tasks=(task,))


ReadAnew = Callable[..., RunLayout]


@pytest.fixture
def read(tmp_path: Path, recipe: Recipe) -> ReadAnew:
    """Reads data into a run of a name, which may go on from another, and fits its prompter."""

    def job(data: SourceData, name: str, old: str | None = None, **changes: Any) -> RunLayout:
        out, made = tmp_path / name, replace(recipe, **changes)
        (out / DATA).mkdir(parents=True)
        before = tmp_path / old if old else None
        read_data(
            Job(recipe=made, load=lambda: data, source={}, out=out, continued_from=before),
            out / DATA,
        )
        told = {"recipe": made.to_dict(), "continued": {"from": "hash"} if old else {}}
        write_whole(out / "recipe.json", json.dumps(told))
        fit_prompter(RunLayout(out), made, data.tasks, out / PROMPTER)
        return RunLayout(out)

    return job


@pytest.fixture
def read_anew(read: ReadAnew) -> ReadAnew:
    """Reads data for a model of an older run, which was made of other data and options."""

    def both(
        before: SourceData, after: SourceData, *, then: dict[str, Any], now: dict[str, Any]
    ) -> RunLayout:
        read(before, "old", **then)
        return read(after, "new", "old", **now)

    return both


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        # Everybody but three was trained on whole.
        (
            {"held_out_people": 3},
            {},
            r"trained on 18 of the 24 held-out targets \(9 that test, 9 that validate\), .*"
            r"Give --held-out 2 --held-out-people 3, as that run was given",
        ),
        (
            {},
            {"held_out_slates": 5},
            r"trained on 36 of the 60 held-out targets \(0 that test, 36 that validate\), .*"
            r"Give --held-out 2 and no --held-out-people, as that run was given",
        ),
    ],
)
def test_what_the_older_model_was_trained_on_is_not_held_out(
    read_anew: ReadAnew, tmp_path: Path, then: dict[str, Any], now: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        read_anew(data_of(), data_of(), then=then, now=now)
    assert not list((tmp_path / "new" / DATA).iterdir())


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 8), ({"held_out_people": 3}, 8), ({"held_out_slates": 5}, 9), ({}, 9), ({}, 14)],
)
def test_the_same_log_and_a_grown_one_are_trained_on(
    read_anew: ReadAnew, caplog: pytest.LogCaptureFixture, options: dict[str, Any], count: int
) -> None:
    grown = [count + n % 2 for n in range(12)] if count > 8 else count
    new = read_anew(data_of(), data_of(grown), then=options, now=options)
    assert len(load_split(new, Interactions.load(new.interactions)).test)
    assert not caplog.records


def test_fewer_slates_than_then_are_held_out_of_what_came_since(read_anew: ReadAnew) -> None:
    # Among other people others would be drawn; of what came since nothing was trained on.
    read_anew(data_of(), data_of(10), then={"held_out_people": 3}, now={})


def test_other_people_than_then_are_told_apart(read_anew: ReadAnew) -> None:
    counts = [8] * 11 + [2], [8] * 12
    same = {"held_out_people": 3}
    with pytest.raises(BadInput, match=r"In a log that grew --held-out-people draws other people"):
        read_anew(*map(data_of, counts), then=same, now=same)


def test_a_log_that_lost_its_end_is_refused(read_anew: ReadAnew) -> None:
    with pytest.raises(BadInput, match=r"12 of the 24 .* Give a log that goes on from that run's"):
        read_anew(data_of(8), data_of(7), then={}, now={})


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ([-1] * 12, r"trained on 72 events .*, and 0 of them have the time"),
        # What is from before somebody's first event here may have expired.
        ([1] * 12, r"trained on 60 events .*, and 0 of them have the time"),
        # Further than the log is long.
        ([86_400] * 12, r"trained on 72 events .*, and 0 of them have the time"),
        ([-1] * 2 + [0] * 10, r"trained on 72 events .*, and 60 of them .*same time zone"),
    ],
)
def test_a_log_whose_times_moved_is_refused(
    read_anew: ReadAnew, tmp_path: Path, later: list[int], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        read_anew(data_of(), data_of(later=later), then={}, now={})
    assert not list((tmp_path / "new" / DATA).iterdir())


@pytest.mark.parametrize(
    ("num_films", "after"),
    [
        # The last ten events of each, in which what expired was watched again.
        (5, {"num_events": 14, "num_expired": 4}),
        (20, {"num_events": 14, "num_expired": 4}),
        # What came since, with some of the same films.
        (10, {"num_events": 13, "num_expired": 8}),
        # Other people altogether.
        (20, {"num_events": [0] * 12 + [8] * 12}),
        # A slate or two that gained an earlier event.
        (20, {"later": [-1] + [0] * 11}),
    ],
)
def test_a_log_that_lost_its_beginning_or_has_others_is_trained_on(
    read_anew: ReadAnew, num_films: int, after: dict[str, Any]
) -> None:
    before = data_of(num_films=num_films)
    read_anew(before, data_of(**after, num_films=num_films), then={}, now={})


def test_what_validates_of_people_of_too_few_events_then_is_told(
    read_anew: ReadAnew, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_anew(data_of([8] * 11 + [2]), data_of([9] * 11 + [3]), then={}, now={})
    assert "1 of 12 validation targets were trained on" in caplog.text


def test_what_any_model_before_was_trained_on_is_not_held_out(
    read: ReadAnew, caplog: pytest.LogCaptureFixture
) -> None:
    everybody, half = [8] * 12, [0] * 6 + [8] * 6
    read(data_of(everybody), "first")
    second = read(data_of(half), "second", "first")
    # The second never saw the others, of whom the first was trained on six events each.
    few = [5] * 6 + [8] * 6
    told = r"trained on 12 of the 24 held-out targets \(6 that test, 6 that validate\)"
    for older in ("first", "second"):
        with pytest.raises(BadInput, match=told):
            read(data_of(few), f"of the {older}", older)
    grown = read(data_of(everybody), "third", "second")
    # All that the three of them were trained on, for a fourth.
    assert pq.read_metadata(grown.trained_on).num_rows == 12 * 6 + 6 * 6
    assert not caplog.records
    second.trained_on.unlink()
    read(data_of(few), "of an older version", "second")
    assert "goes on from a run of which an older version kept no record" in caplog.text


def test_what_validates_of_the_others_is_refused_all_the_same(read_anew: ReadAnew) -> None:
    before, after = data_of([8] * 11 + [2]), data_of([7] * 11 + [3])
    with pytest.raises(BadInput, match=r"trained on 11 of the 24 .* \(0 that test, 11 that valid"):
        read_anew(before, after, then={}, now={})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"positive": ("disliked",)}, r"positive of task 'films' is \('disliked',\), and its "
                                      r"model was trained with \('liked',\)"),
        ({"instruction": "Say it."}, r"instruction of task 'films' is 'Say it\.'"),
        ({"name": "movies"}, r"knows the tasks films, and the data has movies"),
    ],
)  # fmt: skip
def test_another_task_is_refused_by_what_differs(
    read_anew: ReadAnew, changes: dict[str, Any], told: str
) -> None:
    other = data_of(10, task=replace(TASK, **changes))
    with pytest.raises(BadInput, match=told):
        read_anew(data_of(), other, then={}, now={})


@pytest.mark.parametrize(
    ("user", "items", "told"),
    [
        (SCHEMA.user, {"film": [Field(name="name_of_it", kind="text")]},
         r"reads the column title as a text of the items, and the data has no such column"),
        ([Field(name="town", kind="text"), SCHEMA.user[1]], SCHEMA.items,
         r"reads the column city as a text of the users, and the data has no such column"),
        ([SCHEMA.user[0], Field(name="age", kind="text")], SCHEMA.items,
         r"column age as a number told as 'age' of the users, and the data has the column age as "
         r"a text"),
        (SCHEMA.user, {"film": SCHEMA.items["film"], "play": SCHEMA.items["film"]},
         r"knows items of kind film, and the data has play"),
    ],
)  # fmt: skip
def test_another_column_is_refused_by_its_name(
    read_anew: ReadAnew, user: Any, items: Any, told: str
) -> None:
    other = Schema(user=tuple(user), items=items)
    data = data_of(10) if "play" in items else data_of(10, schema=other)
    if "play" in items:
        data.interactions.schema = other
    with pytest.raises(BadInput, match=told):
        read_anew(data_of(), data, then={}, now={})


def test_more_columns_and_a_category_that_was_a_text_are_trained_on(read_anew: ReadAnew) -> None:
    city = Field(name="city", kind="category")
    more = Schema(user=(city, *SCHEMA.user[1:], Field(name="job", kind="text")), items=SCHEMA.items)
    new = read_anew(data_of(), data_of(10, schema=more), then={}, now={})
    assert np.isin(["u0", "u11"], Interactions.load(new.interactions).user_ids).all()
