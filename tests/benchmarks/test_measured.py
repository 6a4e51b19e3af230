from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measured import Measured, add_means, told_once
from decant.results import read_csv
from foundation.evaluation import Interval

CELLS = {"task": "films", "split": "test", "model": "ours", "metric": "ndcg@10", "n": 9}
SURE = Interval(value=0.5, low=0.4, high=0.6)


def test_a_row_is_written_at_once_and_what_is_measured_anew_takes_its_place(
    tmp_path: Path,
) -> None:
    out = tmp_path / "rows.csv"
    measured = Measured("films", {"epochs": 2}, out=out)
    assert not measured.has(model="ours")
    measured.add(seed=0, interval=SURE, **CELLS)
    [row] = read_csv(out)
    assert (row.benchmark, row.value, row.ci_low, row.ci_high, row.n) == ("films", 0.5, 0.4, 0.6, 9)

    again = Measured("films", {"epochs": 2}, out=out)
    assert again.has(model="ours", metric="ndcg@10", seed=0)
    assert not again.has(model="ours", seed=1)
    again.add(seed=0, interval=SURE, **CELLS, seconds=7.0)
    assert read_csv(out) == [row]
    again.add(seed=1, interval=SURE, **CELLS)
    again.add(seed=0, interval=Interval(value=0.9, low=0.8, high=1.0), **CELLS)
    again.add(seed=1, interval=SURE, **{**CELLS, "n": 7})
    assert [(row.seed, row.value, row.n) for row in read_csv(out)] == [(0, 0.9, 9), (1, 0.5, 7)]


@pytest.mark.parametrize("order", list(permutations([2, 10, "mean"])))
def test_a_number_of_several_seeds_is_told_by_the_mean_or_the_smallest_seed(
    order: tuple[int | str, ...],
) -> None:
    measured = Measured("films", {}, out=None)
    measured.add(seed=0, interval=SURE, **CELLS)
    rows = [replace(measured.rows[0], seed=seed) for seed in order]
    assert [row.seed for row in told_once(rows)] == ["mean"]
    of_seeds = [row for row in rows if row.seed != "mean"]
    assert [row.seed for row in told_once(of_seeds)] == [2]


def test_calls_that_share_a_file_lose_no_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"

    def add(epochs: int) -> None:
        measured = Measured("films", {"epochs": epochs}, out=out)
        for seed in range(40):
            measured.add(seed=seed, interval=SURE, **CELLS)

    with ThreadPoolExecutor(3) as calls:
        list(calls.map(add, range(3)))
    assert len(read_csv(out)) == 120


def test_a_mean_of_more_seeds_takes_the_place_of_one_of_fewer(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    first = Measured("films", {"epochs": 2}, out=out)
    first.add(seed=0, interval=SURE, **CELLS)
    first.add(seed="mean", interval=SURE, **CELLS)
    other = Measured("films", {"epochs": 3}, out=out)
    other.add(seed="mean", interval=SURE, **CELLS)
    again = Measured("films", {"epochs": 2}, out=out)
    again.add(seed="mean", interval=Interval(value=0.7, low=0.6, high=0.8), **{**CELLS, "n": 18})
    assert [row.value for row in again.rows if row.seed == "mean"] == [0.7]
    rows = read_csv(out)
    assert rows[-1].n == 18
    means = {(row.config_hash, row.value) for row in rows if row.seed == "mean"}
    assert means == {(other.config_hash, 0.5), (again.config_hash, 0.7)}
    assert [row.value for row in rows if row.seed == 0] == [0.5]


def test_a_mean_of_fewer_seeds_takes_no_place(tmp_path: Path) -> None:
    measured = Measured("films", {}, out=tmp_path / "rows.csv")
    measured.add(seed="mean", interval=SURE, **{**CELLS, "n": 18})
    with pytest.raises(ValueError, match="over 18 targets where this one is over 12"):
        measured.add(seed="mean", interval=SURE, **{**CELLS, "n": 12})
    assert [row.n for row in read_csv(tmp_path / "rows.csv")] == [18]


def test_rows_that_are_known_together_are_written_together(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    first = Measured("films", {"epochs": 2}, out=out)
    first.add(seed="mean", interval=SURE, **CELLS)
    first.add(seed=0, interval=SURE, **CELLS)
    other = Measured("films", {"epochs": 3}, out=out)
    with suppress(InterruptedError), first.at_once():
        for value in (0.7, 0.8):
            told = Interval(value=value, low=0.6, high=0.9)
            first.add(seed="mean", interval=told, **CELLS)
        first.drop(seed=0)
        first.add(seed=1, interval=SURE, **CELLS)
        first.add(seed=2, interval=SURE, **CELLS)
        first.drop(seed=2)
        assert [(row.seed, row.value) for row in read_csv(out)] == [("mean", 0.5), (0, 0.5)]
        # Another call's rows, written meanwhile, stay.
        other.add(seed=0, interval=SURE, **CELLS)
        raise InterruptedError
    rows = read_csv(out)
    assert [(row.seed, row.value) for row in rows] == [(0, 0.5), ("mean", 0.8), (1, 0.5)]
    assert rows[0].config_hash == other.config_hash
    assert first.rows == rows[1:]
    first.add(seed=3, interval=SURE, **CELLS)
    assert [row.seed for row in read_csv(out)] == [0, "mean", 1, 3]


def test_rows_of_other_settings_are_kept_and_not_looked_at(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    Measured("films", {"epochs": 2}, out=out).add(seed=0, interval=SURE, **CELLS)
    other = Measured("films", {"epochs": 3}, out=out)
    assert not other.has(model="ours")
    other.add(seed=0, interval=SURE, **CELLS)
    assert len({row.config_hash for row in read_csv(out)}) == 2


@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (0.5, 0.5)])
def test_an_interval_that_says_nothing_is_left_out(ends: tuple[float, float]) -> None:
    measured = Measured("films", {}, out=None)
    measured.add(seed=0, interval=Interval(value=0.5, low=ends[0], high=ends[1]), **CELLS)
    [row] = measured.rows
    assert row.ci_low is None
    assert "0.5000" in measured.table()


def test_a_file_of_something_else_is_refused_and_left(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not that of a results file"):
        Measured("films", {}, out=out)
    assert out.read_text() == "a,b\n1,2\n"


def of_three_seeds(*, out: Path | None = None) -> Measured:
    measured = Measured("some", {}, out=out, commit="c")
    cells = {"task": "films", "split": "test", "model": "ours", "metric": "ndcg@10", "n": 10}
    for seed, value in enumerate((0.1, 0.2, 0.3)):
        measured.add(seed=seed, interval=Interval(value=value, low=value - 0.03, high=1), **cells)
    measured.add(seed=0, interval=Interval(value=1, low=1, high=1), **{**cells, "model": "oracle"})
    measured.add(seed=1, interval=Interval(value=1, low=1, high=1), **{**cells, "model": "oracle"})
    return measured


def test_a_mean_of_seeds_with_people_of_their_own_is_as_sure_as_all_of_them() -> None:
    measured = of_three_seeds()
    add_means(measured, drawn_anew=True)
    ours, oracle = (row for row in measured.rows if row.seed == "mean")
    assert ours.value == pytest.approx(0.2)
    assert ours.ci_low == pytest.approx(0.2 - 0.03 / 3**0.5)
    assert ours.ci_high == pytest.approx(0.2 + np.linalg.norm([0.9, 0.8, 0.7]) / 3)
    assert ours.n == 30
    assert (oracle.value, oracle.ci_low, oracle.ci_high) == (1, None, None)


def test_a_mean_of_seeds_that_ask_the_same_is_no_surer_than_each() -> None:
    measured = of_three_seeds()
    add_means(measured, drawn_anew=False)
    ours, oracle = (row for row in measured.rows if row.seed == "mean")
    assert ours.value == pytest.approx(0.2)
    assert (ours.ci_low, ours.ci_high) == (pytest.approx(0.17), pytest.approx(1.0))
    assert (oracle.value, oracle.ci_low, oracle.ci_high) == (1, None, None)


def test_means_with_other_ends_take_the_place_of_those_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    add_means(of_three_seeds(out=out), drawn_anew=True)
    again = Measured("some", {}, out=out)
    add_means(again, drawn_anew=False)
    [ours] = [row for row in read_csv(out) if row.seed == "mean" and row.model == "ours"]
    assert ours.ci_low == pytest.approx(0.17)
    written = out.read_bytes()
    add_means(Measured("some", {}, out=out), drawn_anew=False)
    assert out.read_bytes() == written
