"""What comes with a request reads as the same value in a file does, or neither is taken."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from promptify.ingest import read_users
from promptify.inline import HistoryEvent, in_slates, one_row
from promptify.layout import UNKNOWN_TIME
from promptify.schema import MAX_SECONDS, Field, Schema
from promptify.sources.files import json_columns
from promptify.validation import BadInput, BadRows

VALUES = [
    *(7, 7.5, -0.5, True, 2**63, 10**30, 10**400, MAX_SECONDS, MAX_SECONDS + 1, 1e300, None),
    *(
        "7",
        " 7 ",
        "+5",
        ".5",
        "1e3",
        "1_000",
        "1e400",
        "",
        " ",
        "nan",
        "Infinity",
        "1,5",
        "٣",
        "７",
    ),
    *("0x10", "7 years", "2020-01-02", "2020-01-02T03:04:05+01:00", "2020-13-01", "\ud800"),
    *([7], {"a": 1}, float("inf")),
]


def in_a_file(field: Field, value: Any) -> Any:
    table = pa.table(json_columns([{"user_id": "u", field.name: value}]))
    schema = Schema(user=(field,), items={"film": (Field(name="title", kind="text"),)})
    return read_users(table, schema, BadRows())[field.name].to_pylist()[0]


@pytest.mark.parametrize("kind", ["number", "time"])
@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_numbers_and_times_read_as_those_of_a_file(kind: Any, value: Any) -> None:
    field = Field(name="years", kind=kind)
    try:
        wanted = in_a_file(field, value)
    except BadInput as error:
        [reason] = re.findall("is not [^;.]*|looks like milliseconds", str(error))
        with pytest.raises(BadInput, match=f"profile: years=.*{reason}"):
            one_row({"years": value}, [field], "profile")
        return
    [told] = one_row({"years": value}, [field], "profile")["years"]
    assert told == wanted
    assert type(told) is type(wanted)


@pytest.mark.parametrize("kind", ["text", "list", "number", "time"])
@pytest.mark.parametrize("is_list", [True, False])
def test_lists_within_lists_are_refused_however_deep(kind: Any, is_list: bool) -> None:
    field, deep = Field(name="years", kind=kind), "x"
    for level in range(20_000):
        deep = [deep] if is_list else {"a": deep}
        if level not in (2, 20, 19_999):
            continue
        with pytest.raises(BadInput, match=r"profile: years=.* is not |years=.* that is not text"):
            one_row({"years": deep}, [field], "profile")
    event = HistoryEvent(item={"years": deep}, action="liked", timestamp=1)
    for events in ([event], [replace(event, timestamp=None)] * 2):
        with pytest.raises(BadInput, match=r"history: item=.*…  ?is nested too deeply"):
            in_slates(events, task="films", actions={"films": ["liked"]})


def test_what_pandas_has_for_nothing_is_nothing() -> None:
    for nothing in (float("nan"), np.float64("nan"), np.float32("nan"), pd.NaT, pd.NA):
        for kind in ("number", "time", "text", "list"):
            field = Field(name="years", kind=kind)
            assert one_row({"years": nothing}, [field], "profile") == {"years": [None]}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1970-01-05", 4 * 86400), (-0.5, -1), ("7.9", 7), (None, UNKNOWN_TIME), ("", UNKNOWN_TIME)],
)
def test_the_age_of_an_item_is_reckoned_from_the_same_time(
    fit_films: Any, value: Any, seconds: int
) -> None:
    prompter = fit_films(form="text", time_gaps=True)
    assert prompter.item_time({"title": "Up", "released": value}) == seconds
    assert prompter.item_text({"title": "Up", "released": value}) == "Up"
