import os
import string
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decant import results
from decant.results import COLUMNS, ResultRow, append_csv, read_csv, write_csv

finite = st.floats(allow_nan=False, allow_infinity=False)
count = st.none() | st.integers(min_value=0, max_value=10**12)
# CSV cannot tell "\r" inside a cell from a line's end on every reader; names do not hold it.
words = st.text(string.printable.replace("\r", ""), min_size=1)


@st.composite
def result_rows(draw):
    low, high = draw(st.none() | st.tuples(finite, finite).map(sorted)) or (None, None)
    return ResultRow(
        benchmark=draw(words),
        task=draw(words),
        split="leave-one-out",
        model=draw(words),
        params=draw(count),
        context_tokens=draw(count),
        history_events=draw(count),
        metric="ndcg@10",
        value=draw(finite),
        ci_low=low,
        ci_high=high,
        n=draw(count),
        seconds=draw(st.none() | finite),
        peak_bytes=draw(count),
        hardware=draw(words),
        commit=draw(st.none() | words),
        config_hash="0123456789abcdef",
        seed=draw(st.just("mean") | st.integers()),
        timestamp="2026-03-01T12:00:00+00:00",
    )


def row(**changes):
    values = {
        "benchmark": "quality",
        "task": "ml1m",
        "split": "leave-one-out",
        "model": "foundation",
        "metric": "ndcg@10",
        "value": 0.168,
        "hardware": "2 cores",
        "commit": None,
        "config_hash": "0123456789abcdef",
        "seed": 1,
        "timestamp": "2026-03-01T12:00:00+00:00",
    }
    return ResultRow(**{**values, **changes})


@given(rows=st.lists(result_rows(), max_size=4))
def test_what_is_written_is_read_back(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "rows.csv"
    write_csv(path, rows)
    assert read_csv(path) == rows


def test_the_columns_are_those_of_the_protocol(tmp_path):
    write_csv(tmp_path / "rows.csv", [])
    assert (tmp_path / "rows.csv").read_text() == (
        "benchmark,task,split,model,params,context_tokens,history_events,metric,value,ci_low,"
        "ci_high,n,seconds,peak_bytes,hardware,commit,config_hash,seed,timestamp\n"
    )


def test_append_starts_a_file_and_then_adds_to_it(tmp_path):
    path = tmp_path / "rows.csv"
    append_csv(path, [row(seed=1)])
    append_csv(path, [row(seed=2), row(seed="mean")])
    assert [found.seed for found in read_csv(path)] == [1, 2, "mean"]


def test_what_several_append_at_once_is_all_there(tmp_path, monkeypatch):
    path, write = tmp_path / "rows.csv", results.write_csv

    def slow(path, rows):
        time.sleep(0.05)
        write(path, rows)

    monkeypatch.setattr(results, "write_csv", slow)
    with ThreadPoolExecutor(4) as several:
        list(several.map(lambda seed: append_csv(path, [row(seed=seed)]), range(8)))
    assert sorted(found.seed for found in read_csv(path)) == list(range(8))


def test_append_leaves_a_file_of_another_kind_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv: its header"):
        append_csv(path, [row()])
    assert path.read_text() == "user,item\n1,2\n"


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    write_csv(path, [row(seed=1)])

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_csv(path, [row(seed=2)])
    assert [found.seed for found in read_csv(path)] == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("column", "cell"), [("value", ""), ("value", "high"), ("n", "1.5"), ("seed", "average")]
)
def test_a_cell_that_does_not_fit_is_named_by_line_and_column(tmp_path, column, cell):
    path = tmp_path / "rows.csv"
    write_csv(path, [row(n=7), row(n=7)])
    lines = path.read_text().splitlines()
    cells = lines[2].split(",")
    cells[COLUMNS.index(column)] = cell
    path.write_text("\n".join([*lines[:2], ",".join(cells)]))
    with pytest.raises(ValueError, match=rf"rows\.csv, line 3, column {column}: cannot read"):
        read_csv(path)


@pytest.mark.parametrize("extra", [",9", None])
def test_a_line_with_a_cell_too_many_or_too_few_is_refused(tmp_path, extra):
    path = tmp_path / "rows.csv"
    write_csv(path, [row()])
    text = path.read_text().rstrip("\n")
    path.write_text(text + extra if extra else text.rpartition(",")[0])
    with pytest.raises(ValueError, match="line 2: it does not have 19 cells"):
        read_csv(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": float("nan")}, "finite"),
        ({"ci_low": 0.1}, "give both"),
        ({"ci_low": 0.2, "ci_high": 0.1}, "swap them"),
    ],
)
def test_a_row_that_is_no_result_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        row(**changes)
