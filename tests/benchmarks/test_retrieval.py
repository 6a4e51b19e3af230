import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.isolated import ProcessDied, alone
from benchmarks.retrieval import churn, corruption, parts, run, searching
from benchmarks.retrieval.vectors import Process, nearest, recall
from decant.results import ResultRow, read_csv
from retrieval import ItemIndex

FAST = ["--smoke", "--threads", "1"]


def test_every_part_measures_and_is_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "retrieval.csv", tmp_path / "work"
    arguments = [*FAST, "--out", str(out), "--work", str(work)]
    assert run.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = read_csv(out)
    assert {row.split for row in rows} == set(run.PARTS)
    assert all(row.hardware.endswith(", 1 threads") for row in rows)

    kinds = {(row.model, row.metric): row.value for row in rows if row.split == "kinds"}
    assert kinds["flat", "recall@100"] == 1
    for kind in ("flat", "ivf", "ivf-pq", "hnsw"):
        assert 0.9 < kinds[kind, "recall@100"] <= 1
        assert kinds[kind, "recall@100"] == pytest.approx(
            kinds[f"plain faiss {kind}", "recall@100"], abs=0.05
        )
        for metric in ("build_seconds", "disk_bytes", "rss_bytes", "p50_ms", "queries_per_s"):
            assert kinds[kind, metric] > 0
        assert kinds[kind, "p99_ms"] >= kinds[kind, "p50_ms"]
        assert kinds[f"faiss in {kind}", "queries_per_s"] > 0
        assert kinds[f"faiss in {kind} with ids", "queries_per_s"] > 0
        assert (kind, "overhead_vs_faiss_batch64") in kinds
        assert (kind, "overhead_us_batch1") in kinds
        assert (f"{kind} with ids", "overhead_with_ids_vs_faiss_batch64") in kinds
        assert (f"{kind} with ids", "overhead_with_ids_us_batch1") in kinds
    # Lists, codes and a graph take more room on the disk than the vectors that all of them keep.
    assert kinds["flat", "disk_bytes"] == min(kinds[kind, "disk_bytes"] for kind in kinds_of(rows))

    others = [row for row in rows if row.split in ("filters", "churn", "corruption")]
    wrong = ("forbidden", "short", "inexact", "wrong", "not_refused")
    assert {row.value for row in others if row.metric.startswith(wrong)} == {0}
    assert len({row.task for row in others if row.split == "filters"}) == 12
    refused = sum(row.value for row in others if row.metric in ("refused", "harmless"))
    assert refused == run.SMOKE.num_corruptions
    [ceiling] = [row.value for row in rows if row.metric == "ndcg@10_ceiling"]
    quality = [row.value for row in rows if row.metric == "ndcg@10"]
    assert 0 <= max(quality) <= 1
    assert 0 < ceiling <= 1
    assert "overhead_us_batch1 at most 100: " in printed
    assert "recall@100" in printed

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in ("built", "filtered", "churn", "outcomes"):
        monkeypatch.setattr(parts, name, never)
    monkeypatch.setattr(parts.ranking, "ranked", never)
    written = out.read_bytes()
    assert run.main(arguments) == 0
    assert out.read_bytes() == written


def test_rows_of_another_scale_are_not_taken_for_those_that_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*FAST, "--parts", "churn", "--out", str(tmp_path / "retrieval.csv")]
    assert run.main(arguments) == 0
    before = read_csv(tmp_path / "retrieval.csv")
    monkeypatch.setattr(run, "SMOKE", replace(run.SMOKE, churn_batch=100))
    assert run.main(arguments) == 0
    rows = read_csv(tmp_path / "retrieval.csv")
    assert len(rows) == 2 * len(before)
    assert len({row.config_hash for row in rows}) == 2


def test_a_model_that_is_not_there_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*FAST, "--parts", "churn", "--run", str(tmp_path / "gone")]) == 1
    said = capsys.readouterr()
    assert "benchmarks.retrieval: error: " in said.err
    assert "gone" in said.err
    assert said.out == ""


def kinds_of(rows: list[ResultRow]) -> set[str]:
    """The indexes of the first part whose size is known."""
    return {row.model for row in rows if row.split == "kinds" and row.metric == "disk_bytes"}


def test_what_cannot_be_measured_is_said_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise ProcessDied("the process that was to build died")

    monkeypatch.setattr(parts, "built", dies)
    assert run.main([*FAST, "--parts", "kinds", "churn"]) == 1
    said = capsys.readouterr()
    assert "kinds, flat, 3,000 items: the process that was to build died" in said.err
    assert "wrong_answers at most 0: met" in said.out


def test_a_process_that_crashes_is_an_error_here() -> None:
    assert alone(os.path.join, "a", "b") == "a/b"
    with pytest.raises(ProcessDied, match="abort"):
        alone(os.abort)
    with pytest.raises(FileNotFoundError):
        alone(os.stat, "/none/of/this")


def test_vectors_are_the_first_of_more_and_lie_in_few_directions() -> None:
    process = Process(dimension=32, intrinsic=6, num_topics=20)
    items = process.draw(3000, stream=0)
    np.testing.assert_array_equal(items[:100], process.draw(100, stream=0))
    assert not np.allclose(items[:100], process.draw(100, stream=1))
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, rtol=1e-5)
    weight = np.linalg.svd(items, compute_uv=False) ** 2
    assert weight[:6].sum() > 0.9 * weight.sum()
    # Requests are much nearer to their nearest than to most, as no independent numbers are.
    scores = np.sort(process.draw(50, stream=1) @ items.T, axis=1)
    assert (scores[:, -10] > 0.8).mean() > 0.9
    assert abs(scores[:, 1500].mean()) < 0.2


def test_the_true_nearest_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.retrieval.vectors._BLOCK", 70)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (250, 4))
    order = np.argsort(-(queries @ vectors.T), axis=1)
    np.testing.assert_array_equal(nearest(vectors, queries), order[:, :100])
    rows = np.arange(3, 250, 2)
    among = [[row for row in one if row % 2 and row >= 3][:100] for one in order.tolist()]
    np.testing.assert_array_equal(nearest(vectors, queries, rows), among)
    assert nearest(vectors, queries, rows[:5]).shape == (4, 5)
    np.testing.assert_allclose(recall(order[:, 50:150], order[:, :100]), 0.5)


def test_ways_take_turns_and_never_ask_the_same_in_a_row() -> None:
    asked: list[tuple[str, int]] = []

    def way(name: str) -> searching.Way:
        def answer(some: np.ndarray) -> None:
            asked.append((name, len(some)))
            time.sleep(0.001 * len(some) * (name == "b"))

        return answer

    requests = [np.zeros((size, 2), np.float32) for size in range(1, 13)]
    seconds = searching.in_turn({name: way(name) for name in "abc"}, requests)
    timed = asked[3 * 5 :]
    assert sorted(timed) == sorted((name, size) for name in "abc" for size in range(1, 13))
    turns = [timed[start : start + 3] for start in range(0, len(timed), 3)]
    assert all({name for name, _ in turn} == set("abc") for turn in turns)
    assert all(len({size for _, size in turn}) == 3 for turn in turns)
    assert {turn[0][0] for turn in turns} == set("abc")
    # Each time stands with its request.
    assert (seconds["b"] > 0.001 * np.arange(1, 13)).all()
    assert seconds["b"][0] < seconds["b"][11]
    assert seconds["a"].shape == (12,)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ("abc", set()),
        ("abd", {"gone"}),  # d was removed before
        ("abe", {"gone"}),  # e has not come yet
        ("aab", {"twice"}),
        ("ab", {"missing"}),
        ("bcf", {"missing"}),  # a was there throughout, and is nearer than f
    ],
)
def test_wrong_answers_are_seen(
    names: str, wrong: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(churn, "_K", 3)
    vectors = np.array([[3.0], [2.5], [2.0], [9.0], [8.0], [0.5]], np.float32)
    rows = ["abcdef".index(name) for name in names]
    always, never = np.full(6, -np.inf), np.full(6, np.inf)
    times = churn._Times(always.copy(), always.copy(), never.copy(), never.copy())
    times.removing[3] = times.removed[3] = 0.0
    times.adding[4] = times.added[4] = np.inf

    class Says:
        def search(self, *_: object) -> "Says":
            return self

        ids = np.array([[f"item-{row}" for row in rows] + [None] * (3 - len(rows))], object)
        scores = np.array([[*vectors[rows, 0], *[-np.inf] * (3 - len(rows))]])

    found = churn._wrong(Says(), vectors, np.ones(1, np.float32), times, is_exact=True)
    assert found == wrong
    Says.scores = Says.scores + 0.1
    assert "score" in churn._wrong(Says(), vectors, np.ones(1, np.float32), times, is_exact=True)


def test_an_index_that_forgets_to_remove_is_caught() -> None:
    vectors = Process(dimension=16, intrinsic=8, num_topics=10).draw(400, stream=0)

    class Forgetful(ItemIndex):
        def remove(self, ids: object) -> None:
            """Nothing."""

    index = Forgetful.build(vectors[:200], [f"item-{r}" for r in range(200)], model_hash="m")
    found = churn.churn(
        index, vectors, vectors, first_new=200, batch=10, num_searchers=1, is_exact=True
    )
    assert found.num_added == 200
    assert found.num_searches > 0
    assert found.wrong["gone"] > 0


@given(
    whole=st.binary(min_size=1, max_size=300),
    way=st.sampled_from(["flip", "cut", "insert"]),
    seed=st.integers(0, 1000),
)
def test_corrupted_bytes_are_others(whole: bytes, way: str, seed: int) -> None:
    changed = corruption.corrupted(whole, way, np.random.default_rng(seed))
    assert changed != whole
    size = {"flip": len(changed) == len(whole), "cut": len(changed) < len(whole)}
    assert size.get(way, len(changed) > len(whole))


@given(seed=st.integers(0, 1000))
def test_swapped_pieces_keep_every_byte(seed: int) -> None:
    whole = bytes(range(200))
    changed = corruption.corrupted(whole, "swap", np.random.default_rng(seed))
    assert changed != whole
    assert sorted(changed) == list(whole)


LIARS = """
import os, time

calls = 0

def crash(folder):
    global calls
    calls += 1
    if calls == 3:
        os.abort()
    if calls == 2:
        return ["other"]
    return ["right"]

def hang(folder):
    global calls
    calls += 1
    if calls == 2:
        raise MemoryError
    if calls == 3:
        time.sleep(600)
    return ["right"]
"""


def test_crashes_hangs_errors_and_wrong_answers_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "liars_of_a_test.py").write_text(LIARS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(corruption, "SECONDS_PER_LOAD", 5.0)
    import liars_of_a_test as liars  # type: ignore[import-not-found]

    index = ItemIndex.build(np.eye(4), ["a", "b", "c", "d"], model_hash="benchmark")
    # Each process: the right answer first, then two lies; three corruptions take two processes.
    some = corruption.outcomes(index, tmp_path / "a", count=3, seed=0, answers=liars.crash)
    assert Counter(outcome for _, outcome in some.elements()) == {"wrong": 2, "crash": 1}
    some = corruption.outcomes(index, tmp_path / "b", count=2, seed=0, answers=liars.hang)
    assert Counter(outcome for _, outcome in some.elements()) == {"error": 1, "hang": 1}


def test_targets_are_held_against_the_worst_number() -> None:
    def row(metric: str, value: float, model: str) -> ResultRow:
        return ResultRow(
            benchmark="retrieval",
            task="1M items",
            split="kinds",
            model=model,
            metric=metric,
            value=value,
            n=1,
            hardware="",
            commit=None,
            config_hash="",
            seed=0,
            timestamp="",
        )

    said = run.verdicts(
        [
            row("overhead_us_batch1", 20.0, "flat"),
            row("overhead_us_batch1", 120.0, "hnsw"),
            row("recall_above_target", -0.005, "auto 0.9"),
            row("recall_above_target", 0.02, "auto 0.95"),
        ]
    )
    assert said.splitlines() == [
        "overhead_us_batch1 at most 100: MISSED, the worst of 2 is 120 (hnsw, 1M items)",
        "recall_above_target at least -0.01: met, the worst of 2 is -0.005 (auto 0.9, 1M items)",
    ]
