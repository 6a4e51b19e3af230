"""What a request says of a history arrives in the prompt's terms, whole."""

import datetime
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decant.history import HistoryItem, history_event
from decant.predicting import _history
from promptify.prompter import HistoryEvent
from promptify.validation import BadInput


def test_all_that_is_said_of_an_event_is_told() -> None:
    said = {
        "item": "job-1",
        "action": "view",
        "timestamp": 7,
        "task": "jobs",
        "shown_with": "page 2",
        "context": "near the sea",
    }
    assert set(said) == set(HistoryItem.model_fields)
    assert history_event(said, 0) == HistoryEvent(**said)  # type: ignore[arg-type]
    assert history_event(HistoryItem(**said), 0) == HistoryEvent(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["shown_with", "context"])
def test_a_slate_or_a_context_that_is_no_text_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match=rf"history\[3\]: {key}=7 must be text .*, {key}"):
        history_event({"item": "a", "action": "view", key: 7}, 3)


NEW_YEAR = 1_704_067_200


@pytest.mark.parametrize(
    "moment",
    [
        np.int64(NEW_YEAR),
        float(NEW_YEAR),
        np.float64(NEW_YEAR),
        datetime.datetime(2024, 1, 1),
        datetime.datetime(2024, 1, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        datetime.date(2024, 1, 1),
        pd.Timestamp("2024-01-01T00:00:00.75"),
        pd.Timestamp("2024-01-01 01:00", tz="Europe/Berlin"),
        "2024-01-01T00:00:00",
        "2024-01-01",
        str(NEW_YEAR),
    ],
    ids=repr,
)
def test_a_time_of_a_history_is_whatever_is_one_in_a_file(moment: Any) -> None:
    told = history_event({"item": "a", "action": "view", "timestamp": moment}, 0)
    assert told.timestamp == NEW_YEAR
    assert type(told.timestamp) is int


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float64("nan"), pd.NaT, pd.NA])
def test_what_pandas_has_for_nothing_is_left_out(nothing: Any) -> None:
    said = {"item": "a", "action": "view"}
    more = dict.fromkeys(["timestamp", "task", "shown_with", "context"], nothing)
    assert history_event({**said, **more}, 0) == HistoryEvent(**said)  # type: ignore[arg-type]


AN_EVENT = "an event is {'item': …, 'action': …} and may have "
AN_EVENT += "timestamp, task, shown_with, context."


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("90002", f"history[3]='90002' is no event; {AN_EVENT}"),
        (90002, f"history[3]=90002 is no event; {AN_EVENT}"),
        (("90002", "view"), f"history[3]=('90002', 'view') is no event; {AN_EVENT}"),
        (
            {"item_id": "90002", "action": "view"},
            f"history[3]: item is missing; you gave item_id, action; {AN_EVENT}",
        ),
        ({}, f"history[3]: item is missing; you gave nothing; {AN_EVENT}"),
        (
            {"item": "a", "action": "view", "when": 7},
            f"history[3]: when is unknown; you gave item, action, when; {AN_EVENT}",
        ),
        (
            {"item": 90002, "action": "view"},
            "history[3]: item=90002 must be an item's id, which is text ('90002'), or the fields "
            "of an item that is not in the catalogue.",
        ),
        ({"item": "a", "action": 5}, f"history[3]: action=5 must be text ('5'); {AN_EVENT}"),
        (
            {"item": "a", "action": "view", "timestamp": "yesterday"},
            "history[3]: timestamp='yesterday' is not a time; give seconds since 1970 or ",
        ),
        (
            {"item": "a", "action": "view", "timestamp": 20240131},
            "history[3]: timestamp=20240131 looks like a date; write it as 2024-01-31",
        ),
    ],
    ids=str,
)
def test_an_event_that_does_not_fit_is_told_in_words_of_ours(event: Any, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        history_event(event, 3)
    assert str(refused.value).startswith(message)


def test_an_item_that_is_nested_without_end_is_told_in_words_of_ours() -> None:
    item: list[Any] = []
    for _ in range(20_000):
        item = [item]
    with pytest.raises(BadInput, match=r"history\[3\]: item=\[\[.*… must be an item's id"):
        history_event({"item": item, "action": "view"}, 3)


def test_an_event_that_stands_in_a_file_twice_is_found_whatever_it_is_written_like(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.jsonl"
    events = [
        {"item": {"pay": 3, "skills": ["a", "b"]}, "action": "view", "timestamp": 60},
        {"item": {"pay": 3, "skills": ["b", "a"]}, "action": "view", "timestamp": 60},
        {"item": "job-1", "action": "view"},
        {"item": "job-1", "action": "view"},
        {"action": "view", "item": {"skills": ["b", "a"], "pay": 3.0}, "timestamp": 60.0},
    ]
    path.write_text("\n".join(map(json.dumps, events[:4])))
    assert _history(path) == events[:4]
    path.write_text("\n".join(map(json.dumps, events)))
    with pytest.raises(BadInput, match=r"h\.jsonl: event 5 repeats event 2; leave one out"):
        _history(path)


def test_a_very_long_history_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    events = [{"item": f"job-{at % 50}", "action": "view", "timestamp": at} for at in range(16_000)]
    path.write_text("\n".join(map(json.dumps, events)))
    began = time.process_time()
    assert len(_history(path)) == 16_000
    # Where each is held against all before it: six seconds.
    assert time.process_time() - began < 2
