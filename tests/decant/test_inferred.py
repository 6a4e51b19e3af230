"""What is told of people without anybody having said so is named, and no value of it is."""

from pathlib import Path

import pytest

from decant.sourcing import Source
from promptify.validation import BadInput

TASK = """\
name: films
instruction: Predict how this viewer rates each film.
actions: [liked, disliked]
positive: [liked]
item_kind: film
"""
USERS = {
    "user_id": ["u0", "u1", "u2"],
    "age": ["31", "42", "53"],
    "mail": ["", "ann@example.org", "ben@example.org"],
    "about": ["likes trains", "ask at cy@example.org", ""],
    "call_me": ["+49 170 1234567", "0170/765 43 21", "(030) 1234-5678"],
    "since": ["2019-01-02", "2020-03-04", "2021-05-06"],
    "home": ["Berlin", "Porto", "Lyon"],
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Three viewers with more columns than anybody meant to tell a model."""
    columns = zip(*USERS.values(), strict=True)
    users = [",".join(USERS), *(",".join(row) for row in columns)]
    (tmp_path / "users.csv").write_text("\n".join(users))
    (tmp_path / "items.csv").write_text("item_id,title,isbn\ni0,A,978-3-16-148410-0\ni1,B,\n")
    events = [f"u{at},i{at},liked,{1_700_000_000 + at}" for at in range(2)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,action,timestamp", *events]))
    (tmp_path / "task.yaml").write_text(TASK)
    names = ("users", "items", "events")
    files = {name: tmp_path / f"{name}.csv" for name in names}
    return Source(name="table", files={**files, "task": tmp_path / "task.yaml"})


def test_fields_that_nobody_stated_are_named_in_a_line(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="decant"):
        source.load()
    told, warned = caplog.messages
    assert "of people age (a number), mail, about, call_me, home; of film title, isbn" in told
    assert told.endswith("; and nothing of the times since")
    assert caplog.records[1].levelname == "WARNING"
    assert "mail, about (e-mail addresses), call_me (phone numbers)" in warned
    assert "schema:" in warned
    for value in ("example.org", "170", "trains"):
        assert value not in caplog.text


def test_a_stated_schema_is_taken_as_meant(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    schema = (
        "schema: {user: [{name: mail, kind: text}], items: {film: [{name: title, kind: text}]}}"
    )
    source.files["task"].write_text(TASK + schema)
    with caplog.at_level("INFO", logger="decant"):
        source.load()
    assert not caplog.messages


def test_notes_of_requests_are_looked_at_too(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.files["events"].write_text(
        "user_id,item_id,action,timestamp,query\nu0,i0,liked,1700000000,film for dee@example.org\n"
    )
    with caplog.at_level("INFO", logger="decant"):
        source.load()
    assert "mail, about, query or note (e-mail addresses)" in caplog.messages[1]


def test_a_kind_of_item_without_a_list_is_passed_over(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.files["items"].with_suffix(".jsonl").write_text(
        '{"item_id": "i0", "kind": "film", "cast": ["ann@example.org", null]}\n'
        '{"item_id": "i1", "kind": "song", "title": "B"}\n'
    )
    songs = TASK.replace("films", "songs").replace(": film", ": song")
    tasks = [text.strip().replace("\n", "\n  ") for text in (TASK, songs)]
    source.files["task"].write_text("tasks:\n" + "".join(f"- {text}\n" for text in tasks))
    source.files["events"].write_text(
        "user_id,item_id,action,timestamp,surface\n"
        "u0,i0,liked,1700000000,films\nu1,i1,liked,1700000000,songs\n"
    )
    files = {**source.files, "items": source.files["items"].with_suffix(".jsonl")}
    Source(name="table", files=files).load()
    assert "cast" in caplog.messages[0]


def test_tables_that_do_not_fit_tell_nothing(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.files["items"].write_text("title\nA\n")
    with caplog.at_level("INFO", logger="decant"), pytest.raises(BadInput):
        source.load()
    assert not caplog.messages
