"""Bad rows are counted, shown, and written down or refused, each once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from promptify.validation import BadInput, BadRows, RowCheck, located, shown

TABLE = located(
    {"age": pa.array(["7", "x", "y", "z", "w"])},
    file="users.csv",
    lines=pa.array([2, 3, 5, 6, 7]),
)
BAD = np.array([False, True, True, True, True])


@dataclass
class Deep:
    """What holds another."""

    inner: Any


def reject(bad_rows: BadRows, *, harmless: bool = False) -> RowCheck:
    check = RowCheck(TABLE, name="users", bad_rows=bad_rows)
    check.reject(BAD, column="age", reason="is not a number", harmless=harmless)
    return check


def test_fail_names_file_line_column_value_reason_and_the_mend() -> None:
    bad_rows = BadRows()
    reject(bad_rows)
    with pytest.raises(BadInput) as caught:
        bad_rows.settle()
    message = str(caught.value)
    assert message.startswith("users.csv line 3: age 'x' is not a number; users.csv line 5: ")
    assert "and 1 more rows" in message
    assert "on_bad_rows='skip'" in message
    assert "\n" not in message


def test_skip_counts_and_goes_on() -> None:
    with BadRows(on_bad_rows="skip") as bad_rows:
        check = reject(bad_rows)
        bad_rows.settle()
    assert bad_rows.counts == {"users.csv: age is not a number": 4}
    assert bad_rows.num_set_aside == 4
    assert check.good.tolist() == [True, False, False, False, False]


def test_a_row_is_reported_for_its_first_fault_only() -> None:
    with BadRows(on_bad_rows="skip") as bad_rows:
        check = reject(bad_rows)
        check.reject(np.ones(5, np.bool_), column="age", reason="is odd")
    assert bad_rows.counts == {
        "users.csv: age is not a number": 4,
        "users.csv: age is odd": 1,
    }


def test_harmless_rows_are_set_aside_without_failing() -> None:
    with BadRows() as bad_rows:
        check = reject(bad_rows, harmless=True)
        bad_rows.settle()
    assert check.good.sum() == 1
    assert bad_rows.num_set_aside == 4


def test_quarantine_writes_every_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bad.jsonl"
    with BadRows(on_bad_rows="quarantine", quarantine=file) as bad_rows:
        reject(bad_rows)
        assert not file.exists()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["line"] for record in records] == [3, 5, 6, 7]
    assert records[0] == {
        "file": "users.csv",
        "line": 3,
        "column": "age",
        "value": "x",
        "reason": "is not a number",
        "row": {"age": "x"},
    }


def test_quarantine_is_on_the_disk_when_it_has_its_name(
    tmp_path: Path, not_synced: Callable[[Path], list[str]]
) -> None:
    with BadRows(on_bad_rows="quarantine", quarantine=tmp_path / "bad.jsonl") as bad_rows:
        reject(bad_rows)
    assert not_synced(tmp_path) == []


def test_quarantine_leaves_nothing_half_written(tmp_path: Path) -> None:
    bad_rows = BadRows(on_bad_rows="quarantine", quarantine=tmp_path / "bad.jsonl")
    with pytest.raises(KeyError), bad_rows:
        _ = {}[reject(bad_rows)]
    assert list(tmp_path.iterdir()) == []


def test_quarantine_of_an_earlier_run_goes_when_no_row_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("{}\n")
    with pytest.raises(KeyError), BadRows(on_bad_rows="quarantine", quarantine=file):
        _ = {}["no clean finish"]
    assert file.exists()
    with BadRows(on_bad_rows="quarantine", quarantine=file):
        pass
    assert not file.exists()


def test_quarantine_is_written_through_no_link_that_waits_for_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("bad.jsonl", "bad.jsonl.part"):
        (tmp_path / name).symlink_to(victim)
    with BadRows(on_bad_rows="quarantine", quarantine=tmp_path / "bad.jsonl") as bad_rows:
        reject(bad_rows)
    assert victim.read_text() == "mine"
    assert (tmp_path / "bad.jsonl").read_text().count("\n") == 4


def test_refuses_a_mode_that_is_none_and_a_quarantine_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must be one of fail, skip, quarantine"):
        BadRows(on_bad_rows="ignore")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="name a quarantine file"):
        BadRows(on_bad_rows="quarantine")
    with pytest.raises(BadInput, match="name a quarantine file"):
        BadRows(on_bad_rows="skip", quarantine=tmp_path / "bad.jsonl")


def test_rows_without_a_file_are_counted_from_one() -> None:
    bad_rows = BadRows()
    check = RowCheck(pa.table({"age": [1, 2]}), name="users", bad_rows=bad_rows)
    check.reject(np.array([False, True]), column="age", reason="is odd")
    with pytest.raises(BadInput, match="users row 2: age 2 is odd"):
        bad_rows.settle()


def test_values_are_shown_short_and_printable() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 1000)) == 60
    shown("\udc80").encode()


@pytest.mark.parametrize(
    "value",
    [None, [], (), {}, (1,), (1, 2), [1, [2.5, {"a": (None,)}], "x"], {"a": [b"\xff"], 2: {}}, {3}],
    ids=repr,
)
def test_a_short_value_is_shown_as_it_is(value: object) -> None:
    assert shown(value) == repr(value)


def test_a_value_without_end_is_shown_as_far_as_a_line_takes_it() -> None:
    bomb: Any = ["x"] * 9
    deep: Any = "x"
    for _ in range(5_000):
        bomb, deep = [bomb] * 9, [deep]
    pairs = [
        (bomb, "[" * 59 + "…"),
        (deep, "[" * 59 + "…"),
        ({"a": deep}, "{'a': " + "[" * 53 + "…"),
    ]
    for value, told in pairs:
        assert shown(value) == told
    assert shown({1: [list(range(99))]}) == repr({1: [list(range(99))]})[:59] + "…"
    for _ in range(5_000):
        deep = Deep(deep)
    assert shown(deep) == "a Deep, nested too deeply to be shown"
