"""Anyone's tables: three formats give one log, and what does not fit is named, never a crash."""

import csv
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptify.columns import infer_kind, put_for, read_column, read_moments, read_text
from promptify.schema import Field, Schema
from promptify.sources.files import read_table
from promptify.sources.table import table
from promptify.task import Task
from promptify.validation import BadInput, BadRows

TASK = Task(
    name="jobs",
    instruction="Predict what this member does with each job.",
    actions=("apply", "view"),
    positive=("apply",),
    item_kind="job",
)
USERS: list[dict[str, Any]] = [
    {"user_id": "1", "industry": "care", "years": 3},
    {"user_id": "2", "industry": "care", "years": None},
    {"user_id": "3", "industry": "law", "years": 12},
    {"user_id": "4", "industry": "law", "years": 7},
]
ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "title": "Nurse, nights", "pay": 30.5, "posted": "2024-01-02"},
    {"item_id": "b", "title": 'Clerk "junior"', "pay": None, "posted": "2024-02-03"},
    {"item_id": "c", "title": "Baker\nand cook", "pay": 28, "posted": "2024-03-04"},
]
EVENTS: list[dict[str, Any]] = [
    {"user_id": "1", "item_id": "a", "action": "apply", "timestamp": 50, "query": "near"},
    {"user_id": "1", "item_id": "b", "action": "view", "timestamp": 40, "query": None},
    {"user_id": "3", "item_id": "c", "action": "view", "timestamp": 60, "query": None},
]
FORMATS = ["csv", "tsv", "jsonl", "parquet"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_all(
    folder: Path, ending: str = "csv", **changed: list[dict[str, Any]]
) -> dict[str, Path]:
    rows = {"users": USERS, "items": ITEMS, "events": EVENTS} | changed
    return {name: write(folder / f"{name}.{ending}", rows[name]) for name in rows}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_log(tmp_path: Path, ending: str) -> None:
    log = table(**write_all(tmp_path, ending), task=TASK).interactions
    assert log.schema == Schema(
        user=(
            Field(name="industry", kind="category"),
            Field(name="years", kind="number", label="years"),
        ),
        items={
            "job": (
                Field(name="title", kind="text"),
                Field(name="pay", kind="number", label="pay"),
                Field(name="posted", kind="time", label="posted"),
            )
        },
    )
    assert log.users[1] == {"user_id": "2", "industry": "care", "years": None}
    assert log.items[2] == {
        "item_id": "c",
        "kind": "job",
        "title": "Baker\nand cook",
        "pay": 28.0,
        "posted": 1709510400,
    }
    assert log.event_item.tolist() == [1, 0, 2]
    assert log.event_context.tolist() == [-1, 0, -1]
    assert log.contexts == ("near",)


def test_times_before_1970_are_of_the_second_that_had_begun(tmp_path: Path) -> None:
    text = ["1969-12-31T23:59:58.5", "1969-12-31T23:59:58", "1970-01-01T00:00:01.9", None]
    wanted = [-2, -2, 1, None]
    assert read_column(pa.array(text), "time")[0].to_pylist() == wanted
    for unit in ("ms", "us", "ns"):
        for zone in (None, "UTC", "+01:00"):
            moments = pa.array(text).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
            assert read_column(moments, "time")[0].to_pylist() == wanted
    days = pa.array([-1, None], pa.date32())
    for dates in (days, days.cast(pa.date64()), days.cast(pa.timestamp("s"))):
        assert read_column(dates, "time")[0].to_pylist() == [-86_400, None]


def test_the_nanoseconds_that_have_passed_of_a_second_are_read_beside_it() -> None:
    text = ["1969-12-31T23:59:58.5", "2000-01-01", "1970-01-01T00:00:01.000000009", None, "-1.25"]
    (seconds, nanoseconds), faults = read_moments(pa.array(text))
    assert seconds.to_pylist() == [-2, 946_684_800, 1, None, -2]
    assert nanoseconds.tolist() == [500_000_000, 0, 9, 0, 750_000_000]
    assert not any(fault.rows.any() for fault in faults)
    for unit in ("ms", "us", "ns"):
        moments = pa.array([text[0], None, "1970-01-01T00:00:01.002"]).cast(pa.timestamp(unit))
        (seconds, nanoseconds), _ = read_moments(pa.chunked_array([moments]))
        assert seconds.to_pylist() == [-2, None, 1]
        assert nanoseconds.tolist() == [500_000_000, 0, 2_000_000]


def test_a_date_without_dashes_is_no_number_of_milliseconds() -> None:
    dates = [20210912, 202109120440, 20210912044000, "202109120440", 20210912.0]
    for date in dates:
        _, faults = read_moments(pa.array([date, 1_600_000_000 if date != dates[3] else None]))
        [first, *_] = [fault.reason for fault in faults if fault.rows.any()]
        assert (
            first == "looks like a date; write it as 2024-01-31, or 2024-01-31T07:45, with dashes"
        )
        assert not any(fault.rows[1] for fault in faults)
    for number in (1_600_000_000_000, 209_913_010_000, 20_211_312_044_000):
        [fault] = [fault for fault in read_moments(pa.array([number]))[1] if fault.rows.any()]
        assert "milliseconds" in fault.reason


@pytest.mark.parametrize("kind", [pa.list_(pa.string(), 2), pa.list_(pa.float32(), 2)], ids=str)
def test_a_list_of_fixed_size_may_be_missing(kind: pa.DataType) -> None:
    a, b, c, d = ("a", "b", "c", "d") if kind.value_type == pa.string() else (1, 2, 3, 4)
    values = pa.array([None, [a, b], None, [c, d]], kind)
    wanted = [[], [str(a), str(b)], [], [str(c), str(d)]]
    for part in (slice(None), slice(1, 3), slice(2, 4)):
        cut = values[part]
        assert read_column(cut, "list")[0].to_pylist() == wanted[part]
        in_chunks = pa.chunked_array([cut, cut])
        assert read_column(in_chunks, "list")[0].to_pylist() == wanted[part] * 2
    # Numbers with fractions are a vector, which no prompt tells.
    assert infer_kind(values) == ("list" if kind.value_type == pa.string() else None)


def test_lists_come_from_parquet_json_and_from_bars_in_csv(tmp_path: Path) -> None:
    schema = Schema(user=(), items={"job": (Field(name="skills", kind="list"),)})
    as_list = [{"item_id": "a", "skills": ["x", "y"]}, {"item_id": "b", "skills": ["z"]}]
    as_text = [{"item_id": "a", "skills": "x| y"}, {"item_id": "b", "skills": "z|"}]
    for ending, items in [("parquet", as_list), ("jsonl", as_list), ("csv", as_text)]:
        files = write_all(tmp_path, ending, items=items, events=EVENTS[:2])
        for stated in [schema, None] if items is as_list else [schema]:
            log = table(**files, task=TASK, schema=stated).interactions
            assert log.items["skills"][:] == [["x", "y"], ["z"]]


TASK_FILE = """
name: jobs
instruction: Predict.
actions: [apply, view]
positive: [apply]
item_kind: job
columns: {user_id: member, timestamp: at}
schema:
  user: []
  items: {job: [{name: title, kind: text, label: called}]}
"""


def test_a_task_file_brings_schema_and_names(tmp_path: Path) -> None:
    users = [{"member": "1"}, {"member": "3"}]
    events = [
        {"member": row["user_id"], "item_id": row["item_id"], "action": "view", "at": "1970-01-02"}
        for row in EVENTS
    ]
    task = tmp_path / "task.yaml"
    task.write_text(TASK_FILE)
    source = table(**write_all(tmp_path, users=users, events=events), task=task)
    log = source.interactions
    assert log.schema.items == {"job": (Field(name="title", kind="text", label="called"),)}
    assert log.user_ids == ("1", "3")
    assert set(log.event_timestamp.tolist()) == {86400}
    assert source.tasks[0].instruction == "Predict."


def test_each_task_says_what_is_best_of_an_item_in_a_slate(tmp_path: Path) -> None:
    """Whatever the order of the words that it shares with another."""
    task = tmp_path / "task.yaml"
    task.write_text(
        "tasks:\n"
        "- {name: jobs, instruction: I, actions: [apply, view], positive: [apply],"
        " item_kind: job}\n"
        "- {name: people, instruction: I, actions: [message, view], positive: [message],"
        " item_kind: job}\n"
    )
    items = [{"item_id": "a", "kind": "job", "title": "Nurse"}]
    shown = {"user_id": "1", "item_id": "a", "timestamp": 1, "surface": "people", "shown_with": "s"}
    events = [{**shown, "action": action} for action in ("view", "message")]
    log = table(**write_all(tmp_path, items=items, events=events), task=task).interactions
    assert log.actions == ("apply", "view", "message")
    assert [log.actions[action] for action in log.event_action] == ["message"]


def test_several_tasks_are_several_surfaces(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(
        "tasks:\n"
        "- {name: jobs, instruction: I, actions: [apply, view], positive: [apply],"
        " item_kind: job}\n"
        "- {name: people, instruction: I, actions: [good, bad], positive: [good],"
        " item_kind: person}\n"
    )
    items = [
        {"item_id": "a", "kind": "job", "title": "Nurse", "skills": None},
        {"item_id": "p", "kind": "person", "title": None, "skills": "care"},
    ]
    events = [
        {"user_id": "1", "item_id": "a", "action": "apply", "timestamp": 1, "surface": "jobs"},
        {"user_id": "1", "item_id": "p", "action": "bad", "timestamp": 2, "surface": "people"},
    ]
    source = table(**write_all(tmp_path, items=items, events=events), task=task)
    log = source.interactions
    assert log.surfaces == ("jobs", "people")
    assert log.event_surface.tolist() == [0, 1]
    assert {kind: [f.name for f in fields] for kind, fields in log.schema.items.items()} == {
        "job": ["title"],
        "person": ["skills"],
    }
    events[1]["action"] = "view"
    files = write_all(tmp_path, items=items, events=events)
    with pytest.raises(BadInput, match="line 3: action 'view' is an action of another surface"):
        table(**files, task=task)
    skipped = table(**files, task=task, on_bad_rows="skip")
    assert skipped.interactions.num_events == 1
    assert list(skipped.set_aside.values()) == [1]
    events[1] |= {"action": "bad", "item_id": "a"}
    with pytest.raises(BadInput, match="'people' holds 1 events with items of another kind than"):
        table(**write_all(tmp_path, items=items, events=events), task=task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read as a YAML task"),
        (
            "a: &a [x]\nactions: [*a, *a]",
            r"task\.yaml cannot be read .*\*a is an alias; write out .* line 2",
        ),
        ("just words", "must hold a task's fields"),
        ("name: jobs", "Task lacks instruction"),
        ("tasks: []", "lists no tasks"),
        ("tasks: [3]", "task.yaml: "),
        ("tasks: []\nname: x", "beside it name"),
        (TASK_FILE.replace("[apply]", "[hire]"), r"positive=\('hire',\)"),
        (TASK_FILE.replace("kind: text", "kind: prose"), "kind='prose'"),
        (TASK_FILE.replace("{user_id: member, timestamp: at}", "[a]"), "must map our names"),
        (TASK_FILE.replace("at}", "at, surface: page}"), "No table has the column"),
    ],
)
def test_a_task_file_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(text)
    users = [{"member": "1"}]
    events = [{"member": "1", "item_id": "a", "action": "view", "at": 1}]
    with pytest.raises(BadInput, match=message):
        table(**write_all(tmp_path, users=users, events=events), task=task)


def test_a_positive_action_behind_another_is_refused_before_a_table_is_read(
    tmp_path: Path,
) -> None:
    """Of what is shown together it would be set aside for the other."""
    task = tmp_path / "task.yaml"
    task.write_text(TASK_FILE.replace("[apply, view]", "[view, apply]"))
    none = tmp_path / "none.csv"
    for stated in (task, replace(TASK, actions=("view", "apply"))):
        with pytest.raises(BadInput, match=r"'apply'.* stands behind 'view'.*\[apply, view\]"):
            table(users=none, items=none, events=none, task=stated)


STARS = """
name: jobs
instruction: Predict.
actions: [loved, fine]
positive: [loved]
item_kind: job
columns: {action: stars}
values: {action: {5: loved, 2.5: fine}}
"""


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    ("mapping", "values"),
    [
        ("{5: loved, 2.5: fine}", [5, 2.5]),
        ("{5: loved, 2: fine}", [5.0, 2.0]),
        ("{5.0: loved, 2: fine}", [5, 2]),
        ("{5: loved, 2: fine}", ["5.0", "02"]),
        ("{true: loved, false: fine}", [True, False]),
        ("{true: loved, false: fine}", ["TRUE", "False"]),
        ("{yes: loved, no: fine}", ["Yes", "no"]),
        ("{'thumbs up': loved}", ["thumbs up", "fine"]),
    ],
    ids=str,
)
def test_values_of_a_table_are_put_for_by_the_actions_of_a_task_file(
    tmp_path: Path, ending: str, mapping: str, values: list[Any]
) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(STARS.replace("{5: loved, 2.5: fine}", mapping))
    rows = zip(EVENTS, values, strict=False)
    events = [
        {"user_id": row["user_id"], "item_id": row["item_id"], "stars": value, "timestamp": at}
        for at, (row, value) in enumerate(rows)
    ]
    files = write_all(tmp_path, ending, events=events)
    log = table(**files, task=task).interactions
    assert [log.actions[action] for action in log.event_action] == ["loved", "fine"]


def test_a_value_that_nothing_is_put_for_is_named_by_line(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(STARS.replace("columns: {action: stars}\n", ""))
    files = write_all(tmp_path)
    for said, message in ((b"3", "action '3'"), (b"\xe9", "is not UTF-8"), (b"", "is missing")):
        files["events"].write_bytes(HEADER + b"1,a,5,7\n1,b," + said + b",8\n")
        with pytest.raises(BadInput, match=rf"events\.csv line 3: .*{message}"):
            table(**files, task=task)
        assert table(**files, task=task, on_bad_rows="skip").interactions.num_events == 1
    nested = pa.array([["5"]])
    assert put_for(nested, {5: "loved"}).equals(nested)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("5", r"values=5 must map what the column action holds"),
        ("{stars: {5: loved}}", "must map what the column action holds"),
        ("{action: [loved]}", "must map what the column action holds"),
        ("{action: {null: loved}}", "must map what the column action holds"),
        ("{action: {5: lovd}}", r"values\.action\[5\]='lovd' must be one of .* loved, fine"),
        ("{action: {5: [a]}}", r"values\.action\[5\]=\['a'\] must be one of"),
    ],
)
def test_values_that_map_to_no_action_are_refused(
    tmp_path: Path, values: str, message: str
) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(STARS.replace("{action: {5: loved, 2.5: fine}}", values))
    with pytest.raises(BadInput, match=message):
        table(**write_all(tmp_path), task=task)


def test_columns_of_events_that_are_not_read_are_named_with_what_they_may_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("promptify.sources.files.MAX_BATCH_ROWS", 1)
    more = {"session_id": "s", "Query": "cheap", "shown_with": "s"}
    files = write_all(tmp_path, events=[row | more for row in EVENTS])
    table(**files, task=TASK)
    write_all(tmp_path, events=[{**row, "position": 1} | {"query": row["query"]} for row in EVENTS])
    table(**files, task=TASK)
    bare = [{k: v for k, v in row.items() if k != "query"} | {"dwell": 3} for row in EVENTS]
    write_all(tmp_path, events=bare)
    table(**files, task=TASK)
    assert [one for one in caplog.messages if "nothing is read" in one] == [
        "events.csv: nothing is read of the columns session_id, Query",
        "events.csv: nothing is read of the columns position; in a task file, columns: "
        "{shown_with: …} names what was shown together",
        "events.csv: nothing is read of the columns dwell; in a task file, columns: "
        "{shown_with: …} names what was shown together, {context: …} the words of a request",
    ]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ((44_214, 44_579), "before 1980, from 1970-01-01 12:16 to 1970-01-01 12:22: are they days"),
        ((0, 0), "before 1980, from 1970-01-01 00:00 to 1970-01-01 00:00"),
        ((0, 1_609_459_200), "events.csv: 3 events from 1970-01-01 00:00 to 2021-01-01 00:00"),
    ],
)
def test_the_first_and_the_last_time_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: tuple[int, int], said: str
) -> None:
    caplog.set_level("INFO")
    events = [row | {"timestamp": times[at == 2]} for at, row in enumerate(EVENTS)]
    table(**write_all(tmp_path, events=events), task=TASK)
    [one] = [one for one in caplog.records if said in one.getMessage()]
    assert (one.levelname == "WARNING") == ("before 1980" in said)


def test_a_column_that_is_misspelt_is_named_where_there_is_one_of_our_name(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(TASK_FILE.replace("{user_id: member, timestamp: at}", "{timestamp: shown_att}"))
    files = write_all(tmp_path, events=[row | {"shown_at": 7} for row in EVENTS])
    with pytest.raises(BadInput, match=r"No table has the column .* \{timestamp: shown_att\}"):
        table(**files, task=task)
    task.write_text(task.read_text().replace("shown_att", "shown_at"))
    assert set(table(**files, task=task).interactions.event_timestamp.tolist()) == {7}


def test_tables_may_have_one_name_for_columns_of_their_own(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(
        TASK_FILE.partition("columns:")[0]
        + "columns: {user_id: id, item_id: id, kind: name, timestamp: made, years: name}\n"
    )
    users = [{"id": "1", "name": 3, "made": 5}, {"id": "3", "name": 7, "made": 6}]
    items = [{"id": row["item_id"], "name": "job", "title": "Nurse", "made": 7} for row in ITEMS]
    events = [
        {"id": at, "user_id": row["user_id"], "item_id": row["item_id"], "action": "view"}
        | {"made": row["timestamp"]}
        for at, row in enumerate(EVENTS)
    ]
    files = write_all(tmp_path, users=users, items=items, events=events)
    log = table(**files, task=task).interactions
    assert (log.user_ids, log.item_ids) == (("1", "3"), ("a", "b", "c"))
    assert log.event_timestamp.tolist() == [40, 50, 60]
    # What is of no table is of any where one alone of ours claims it.
    assert [field.name for field in log.schema.user] == ["years", "made"]
    assert [field.name for field in log.schema.items["job"]] == ["title", "made"]
    task.write_text(task.read_text().replace("years: name", "years: name, rank: name"))
    with pytest.raises(BadInput, match=r"No table .* \{years: name, rank: name\}.* one of ours"):
        table(**files, task=task)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_index_that_pandas_wrote_is_named_with_its_file(tmp_path: Path, ending: str) -> None:
    name = "" if ending == "csv" else "__index_level_0__"
    for which, rows in [("users", USERS), ("items", ITEMS)]:
        changed = {which: [{name: at + 9} | row for at, row in enumerate(rows)]}
        files = write_all(tmp_path, ending, **changed)
        named = rf"{which}\.{ending} has a column {name!r}.*index=False"
        with pytest.raises(BadInput, match=named):
            table(**files, task=TASK)
        stated = table(**write_all(tmp_path, ending), task=TASK).interactions.schema
        files = write_all(tmp_path, ending, **changed)
        assert table(**files, task=TASK, schema=stated).interactions.num_events == 3
    # One that is empty throughout says nothing, and is no field.
    files = write_all(tmp_path, ending, users=[row | {name: None} for row in USERS])
    assert table(**files, task=TASK).interactions.num_users == 4


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    for path, message in [
        (tmp_path / "no.csv", "is not a file"),
        (tmp_path / "no.xlsx", r"must end in \.csv"),
        (tmp_path / "empty.csv", "is empty"),
        (tmp_path / "empty.jsonl", "holds no line that is a JSON object"),
        (tmp_path / "cut.parquet", "is not a whole Parquet file"),
    ]:
        if path.stem in ("empty", "cut"):
            path.write_bytes(b"PAR1xxx" if path.stem == "cut" else b"")
        with pytest.raises(BadInput, match=message):
            table(**files | {"events": path}, task=TASK)
        with pytest.raises(BadInput, match=message):
            table(**files | {"users": path}, task=TASK)


HEADER = b"user_id,item_id,action,timestamp\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"1,a,view,5\n1,a,view\n", "events.csv line 3: the line '1,a,view' has 3 fields"),
        (b"\n\n1,z,view,5\n", "events.csv line 4: item_id 'z' is not in"),
        (b'1,a,"vi\new",5\n1,z,view,5\n', r"line 4: item_id 'z' .*line 2: action 'vi\\new'"),
        (b"1,a,view,5\n1,a,vi\xe9w,5\n", r"line 3: action 'vi\\\\xe9w' is not UTF-8"),
        (b'1,a,view,5\n1,"a"b,view,5\n', "line 3: the line .* is not CSV"),
        (b"1,a,view,1e400\n", "timestamp '1e400' is not a time"),
        (b"1,a,view,NaN\n", "timestamp 'NaN' is not a time"),
        (b"1,a,view,978300760000\n", "looks like milliseconds"),
        (b"", "holds no events that fit"),
    ],
)
def test_csv_lines_that_do_not_fit_are_named(tmp_path: Path, lines: bytes, message: str) -> None:
    files = write_all(tmp_path)
    files["events"].write_bytes(HEADER + lines)
    with pytest.raises(BadInput, match=message):
        table(**files, task=TASK)


GOOD_JSON = '{"user_id": 1, "item_id": "a", "action": "view", "timestamp": 5}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{\n", "line 2: the line '{' is not JSON"),
        (b"[1]\n", "is not a JSON object"),
        (b"\xff\n", "is not UTF-8"),
        (GOOD_JSON.replace("5", "NaN").encode(), "timestamp nan is not a time"),
        (GOOD_JSON.replace("5", "{}").encode(), "timestamp '{}' is not a time"),
        (GOOD_JSON.replace('"a"', '"\\ud800"').encode(), "item_id .* is not UTF-8"),
        (GOOD_JSON.replace('"a"', "[]").encode(), "item_id .* is not text"),
    ],
)
def test_json_lines_that_do_not_fit_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    files = write_all(tmp_path, "jsonl")
    files["events"].write_bytes(GOOD_JSON.encode() + line)
    with pytest.raises(BadInput, match=message):
        table(**files, task=TASK)


@pytest.mark.parametrize("name", ["users", "items", "events"])
def test_a_json_array_is_no_file_of_json_lines(tmp_path: Path, name: str) -> None:
    files = write_all(tmp_path, "jsonl")
    files[name].write_text(json.dumps({"users": USERS, "items": ITEMS, "events": EVENTS}[name]))
    with pytest.raises(BadInput, match=rf"{name}\.jsonl line 1: .* is not a JSON object"):
        table(**files, task=TASK)
    with pytest.raises(BadInput, match=rf"{name}\.jsonl holds no line that is a JSON object"):
        table(**files, task=TASK, on_bad_rows="skip")


def test_parquet_rows_that_do_not_fit_are_named_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptify.sources.files.MAX_BATCH_ROWS", 2)
    files = write_all(tmp_path, "parquet", events=[*EVENTS, EVENTS[0] | {"action": "meh"}])
    with pytest.raises(BadInput, match=r"events\.parquet row 4: action 'meh'"):
        table(**files, task=TASK)


def test_endings_are_read_as_what_they_are(tmp_path: Path) -> None:
    wanted = table(**write_all(tmp_path, "jsonl"), task=TASK).interactions
    for ending, other in (("jsonl", "json"), ("jsonl", "JSONL"), ("csv", "CSV"), ("tsv", "Tsv")):
        files = write_all(tmp_path, ending)
        renamed = {name: path.rename(path.with_suffix(f".{other}")) for name, path in files.items()}
        log = table(**renamed, task=TASK).interactions
        assert log.events.data.table.equals(wanted.events.data.table)


@pytest.mark.parametrize(
    ("ending", "separator", "name"),
    [("csv", ";", "semicolons"), ("csv", "\t", "tabs"), ("tsv", ",", "commas")],
)
@pytest.mark.parametrize("on_bad_rows", ["fail", "skip"])
def test_columns_that_something_else_separates_are_named_once(
    tmp_path: Path, ending: str, separator: str, name: str, on_bad_rows: Any
) -> None:
    files = write_all(tmp_path, ending)
    text = "item_id,title\n" + "a,1,5\n" * 9
    files["items"].write_text(text.replace(",", separator))
    with pytest.raises(BadInput, match=rf"items\.{ending} has one column, .* by {name}\?") as error:
        table(**files, task=TASK, on_bad_rows=on_bad_rows)
    assert "fields" not in str(error.value)


def test_a_column_that_is_not_utf_8_throughout_is_named_as_a_cell_is(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    files["items"].write_bytes(b"item_id,title,pay\na,K\xf6ln,1\nb,,2\nc,B\xe4r,3\n")
    with pytest.raises(BadInput, match=r"items\.csv line 2: title 'K\\\\xf6ln' is not UTF-8"):
        table(**files, task=TASK)
    # Bytes of a typed file need not be a text.
    items = [row | {"image": b"\x89PNG"} for row in ITEMS]
    log = table(**write_all(tmp_path, "parquet", items=items), task=TASK).interactions
    assert "image" not in [field.name for field in log.schema.items["job"]]


def test_headers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    for header, message in [
        (b"user_id,item_id,action\n", "lacks the column timestamp; it has user_id, item_id"),
        (b"user_id,item_id,action,action\n", "column 'action' twice"),
        (b"user_id,item_id,action,\xff\n", "header that is not UTF-8"),
        (b"user_id,item_id,action,timestamp,query,note\n1,a,view,5,x,y\n", "both query and note"),
    ]:
        files["events"].write_bytes(header)
        with pytest.raises(BadInput, match=message):
            table(**files, task=TASK)


@pytest.mark.parametrize("on_bad_rows", ["fail", "skip"])
def test_a_quote_that_is_not_closed_takes_no_rows_with_it(tmp_path: Path, on_bad_rows: str) -> None:
    files = write_all(tmp_path)
    rows = [b"1,a,view,%d" % at for at in range(60)]
    for closed_at in (40, None):
        broken = [*rows]
        broken[5] = b'1,"a,view,5'
        if closed_at is not None:
            broken[closed_at] = b'1,a,"view",5'
        files["events"].write_bytes(HEADER + b"\n".join(broken) + b"\n")
        with pytest.raises(BadInput, match=r"events\.csv line 7: a quote that is opened here"):
            table(**files, task=TASK, on_bad_rows=on_bad_rows)


def test_a_long_cell_is_read_whole_and_lines_of_a_row_are_all_counted(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    told = "long " * 40_000
    files["items"].write_text(
        f'item_id,title\na,"{told}\nb,Forged"\nb,Real\nc,"one\ntwo\nthree",more\n'
    )
    read = table(**files, task=TASK, on_bad_rows="skip")
    assert read.interactions.item_ids == ("a", "b")
    titles = read.interactions.items.data.column("title").to_pylist()
    assert titles == [f"{told}\nb,Forged", "Real"]
    assert read.set_aside["items.csv: the line has 3 fields, the header has 2"] == 3


def test_an_id_that_a_terminal_would_obey_is_named(tmp_path: Path) -> None:
    for name, rows in (("users", USERS), ("items", ITEMS)):
        column = f"{name[:-1]}_id"
        for sign in ("\x1b[2J", "\n", "\x7f", "\x9b1A"):
            evil = {**rows[1], column: f"x{sign}y"}
            files = write_all(tmp_path, "jsonl", **{name: [*rows, evil]})
            with pytest.raises(BadInput) as refused:
                table(**files, task=TASK)
            said = f"{name}.jsonl line {len(rows) + 1}: {column} {evil[column]!r} holds a control"
            assert str(refused.value).startswith(said)
            skipped = table(**files, task=TASK, on_bad_rows="skip").interactions
            assert (skipped.num_users, skipped.num_items) == (len(USERS), len(ITEMS))
    odd = [{**row, "item_id": f"å 東\u200d{row['item_id']} ·"} for row in ITEMS]
    events = [{**row, "item_id": f"å 東\u200d{row['item_id']} ·"} for row in EVENTS]
    assert table(**write_all(tmp_path, items=odd, events=events), task=TASK).interactions.num_items


def test_an_id_reads_the_same_beside_whatever_it_stands(tmp_path: Path) -> None:
    for other in (2, 2.5, "b", None):
        file = write(tmp_path / "items.jsonl", [{"item_id": 1.0}, {"item_id": other}])
        read = read_table(file, renames={}, found=set(), bad_rows=BadRows())
        assert read_text(read["item_id"])[0].to_pylist()[0] == "1"


def test_skip_and_quarantine_set_bad_rows_aside(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    with files["events"].open("ab") as file:
        file.write(b"1,a\n1,z,view,5,\n1,a,apply,50,near\n")
    skipped = table(**files, task=TASK, on_bad_rows="skip")
    assert skipped.interactions.num_events == 3
    assert skipped.set_aside == {
        "events.csv: the line has 2 fields, the header has 5": 1,
        "events.csv: item_id is not in the table of items": 1,
        "events.csv: item_id repeats an earlier event": 1,
    }
    bad = tmp_path / "bad.jsonl"
    table(**files, task=TASK, on_bad_rows="quarantine", quarantine=bad)
    records = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [record["line"] for record in records] == [5, 6, 7]
    assert records[1]["row"]["item_id"] == "z"


@pytest.mark.parametrize("ending", FORMATS)
def test_an_export_that_is_newest_first_is_read_as_one_that_is_oldest_first(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("promptify.sources.files.MAX_BATCH_ROWS", 7)
    rising = [
        {"user_id": str(1 + i % 4), "item_id": "abc"[i // 4 % 3], "action": "view"}
        | {"timestamp": f"2024-01-{1 + i // 8:02}"}
        for i in range(40)
    ]
    oldest_first, newest_first = (
        table(**write_all(tmp_path, ending, events=events), task=TASK).interactions
        for events in (rising, rising[::-1])
    )
    assert oldest_first.event_item[:4].tolist() == [0, 1, 2, 0]
    assert newest_first.events.data.table.equals(oldest_first.events.data.table)
    assert caplog.text.count(f"events.{ending} lists each person's events newest first") == 1


def test_events_are_read_in_batches_as_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        {"user_id": str(1 + i % 4), "item_id": "abc"[i % 3], "action": "view", "timestamp": i // 5}
        | {"shown_with": f"s{i % 7}" if i % 2 else None, "note": f"n{i % 7}" if i % 2 else None}
        for i in range(200)
    ]
    for ending in FORMATS:
        files = write_all(tmp_path, ending, events=events)
        whole = table(**files, task=TASK)
        monkeypatch.setattr("promptify.sources.files.MAX_BATCH_ROWS", 7)
        parts = table(**files, task=TASK)
        monkeypatch.undo()
        assert parts.set_aside == whole.set_aside
        assert parts.interactions.events.data.table.equals(whole.interactions.events.data.table)
        assert parts.interactions.contexts == whole.interactions.contexts


cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["1", "a", "view", "5", 5, "job", "2024-01-02", "99999-01-01", "\ud800"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
columns = st.sampled_from(
    ["user_id", "item_id", "action", "timestamp", "kind", "title", "surface", "shown_with", "note"]
)
broken = st.lists(st.dictionaries(columns, cells, max_size=4), max_size=4)


@settings(max_examples=150, deadline=None)
@given(users=broken, items=broken, events=broken, skip=st.booleans())
def test_fuzzed_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    users: list[dict[str, Any]],
    items: list[dict[str, Any]],
    events: list[dict[str, Any]],
    skip: bool,
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    files = write_all(
        folder,
        "jsonl",
        users=[*({"user_id": "1"} | row for row in users), *USERS],
        items=[*({"item_id": "z", "title": "x"} | row for row in items), *ITEMS],
        events=[*(EVENTS[0] | row for row in events), *EVENTS],
    )
    try:
        log = table(**files, task=TASK, on_bad_rows="skip" if skip else "fail").interactions
    except BadInput as error:
        message = str(error)
    else:
        message = ""
        assert log.num_events > 0
    assert len(message.encode().splitlines()) <= 1


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["users", "items", "events"]),
    ending=st.sampled_from(FORMATS),
    place=st.floats(0, 1),
    length=st.integers(0, 20),
    noise=st.binary(max_size=12),
)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    ending: str,
    place: float,
    length: int,
    noise: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    files = write_all(folder, ending)
    whole = files[name].read_bytes()
    start = int(place * len(whole))
    files[name].write_bytes(whole[:start] + noise + whole[start + length :])
    try:
        table(**files, task=TASK)
    except BadInput as error:
        str(error).encode()


def test_quarantine_of_a_run_that_fails_is_not_left(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    files["events"].write_bytes(HEADER + b"1,z,view,5\n")
    bad = tmp_path / "bad.jsonl"
    with pytest.raises(BadInput, match="no events that fit"):
        table(**files, task=TASK, on_bad_rows="quarantine", quarantine=bad)
    assert not list(tmp_path.glob("bad.jsonl*"))


def test_a_column_of_objects_is_told_by_nobody_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [{**item, "price": {"amount": 3.5, "currency": "EUR"}} for item in ITEMS]
    log = table(**write_all(tmp_path, "jsonl", items=items), task=TASK).interactions
    assert "price" not in [field.name for field in log.schema.items["job"]]
    [said] = [one for one in caplog.messages if "nothing is told" in one]
    assert "items.jsonl: nothing is told of the column price" in said
    assert "struct<" in said


def test_vectors_and_lists_of_lists_are_told_by_nobody_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"vector": [0.5, 1.5], "paths": [["Home", "Storage"], ["Home"]], "tags": [1, 2]}
    for ending in ("jsonl", "parquet"):
        caplog.clear()
        items = [{**item, **more} for item in ITEMS]
        log = table(**write_all(tmp_path, ending, items=items), task=TASK).interactions
        told = [field.name for field in log.schema.items["job"]]
        assert told == ["title", "pay", "posted", "tags"]
        said = [one for one in caplog.messages if "nothing is told" in one]
        assert [re.findall("column (\\w+)", one) for one in said] == [["vector"], ["paths"]]


def test_what_is_nested_without_end_is_told_by_nobody_and_no_field(tmp_path: Path) -> None:
    titles = Schema(user=(), items={"job": (Field(name="title", kind="text"),)})
    deep = '{"a": ' * 900 + "1" + "}" * 900
    before = time.monotonic()
    for name, schema in (("price", None), ("title", titles)):
        files = write_all(tmp_path, "jsonl", items=[{**item, name: "deep"} for item in ITEMS])
        files["items"].write_text(files["items"].read_text().replace('"deep"', deep))
        if schema is None:
            log = table(**files, task=TASK).interactions
            assert name not in [field.name for field in log.schema.items["job"]]
        else:
            with pytest.raises(BadInput, match=rf"items\.jsonl line 1: {name} .* is not text"):
                table(**files, task=TASK, schema=schema)
    assert time.monotonic() - before < 20


def test_numbers_with_a_comma_or_a_currency_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {
        "comma": ["12,50", "1.234,00", "7"],
        "dollars": ["$12.99", "$5", ""],
        "euros": ["12,50 €", "3 EUR", "4€"],
        "isbn": ["978-3-16-148410-0", "978-3-16-148411-0", ""],
        "version": ["1.2.3", "1.2.4", "1.3.0"],
        "words": ["12,50", "unknown", ""],
        "plain": ["12.50", "3", "4"],
    }
    items = [
        row | {name: values[at] for name, values in columns.items()} for at, row in enumerate(ITEMS)
    ]
    table(**write_all(tmp_path, items=items), task=TASK)
    said = [one for one in caplog.messages if "told as words" in one]
    assert [re.findall("column (\\w+)", one) for one in said] == [["comma"], ["dollars"], ["euros"]]
