import threading
import time
from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.measured import Measured
from benchmarks.subjects import Subject
from decant.answering import Cascade
from decant.recommender import build_index
from decant.results import read_csv
from foundation import Foundation
from promptify.assembly import PromptBook
from promptify.splits import Split


@pytest.fixture(scope="module")
def subject(market_model: Foundation, market_book: PromptBook, market_split: Split) -> Subject:
    return Subject(foundation=market_model, book=market_book, split=market_split, task="job_market")


def test_every_way_is_timed_at_every_level(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "latency.csv"
    measured = Measured("latency", {}, out=out)
    latency.measure(subject, measured, name="tiny", levels=(1, 3), requests=9)
    rows = {(row.model, row.split, row.metric): row for row in read_csv(out)}
    assert len(rows) == len(latency.WAYS) * 2 * 4
    for way in latency.WAYS:
        for level in (1, 3):
            found = {m: rows[f"tiny, {way}", f"{level} at once", m] for m in
                     ("p50_ms", "p95_ms", "p99_ms")}  # fmt: skip
            assert 0 < found["p50_ms"].value <= found["p95_ms"].value <= found["p99_ms"].value
            assert {row.n for row in found.values()} == {9}
    assert "3 at once" in latency.table(measured)


def test_the_ways_retrieve_and_rank_what_they_are_called(subject: Subject) -> None:
    index = build_index(subject.foundation, model_hash="x")
    made = [way(subject.foundation, index, subject.book) for way in latency.WAYS.values()]
    assert [one._cascade for one in made] == [Cascade(retrieved=500, ranked=100), Cascade()]


def test_as_many_ask_at_once_as_is_said_and_each_round_asks_others(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, asked = 0, [0], []
    lock = threading.Lock()

    class Slow:
        def __init__(self, *_: object) -> None: ...

        def predict_row(self, user: int, *, k: int) -> None:
            nonlocal inside
            with lock:
                inside += 1
                most[0] = max(most[0], inside)
                asked.append(user)
            time.sleep(0.02)
            with lock:
                inside -= 1

    monkeypatch.setattr(latency, "WAYS", {"slow": Slow})
    measured = Measured("latency", {}, out=None)
    latency.measure(subject, measured, name="tiny", levels=(4,), requests=24)
    assert most[0] == 4
    assert len(set(asked[-24:])) == 24
    p50 = next(row.value for row in measured.rows if row.metric == "p50_ms")
    rate = next(row.value for row in measured.rows if row.metric == "requests_per_s")
    assert 20 <= p50 < 60
    assert rate > 1.5 / 0.02


def test_without_a_run_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
    assert latency.main([str(tmp_path)]) == 1
    assert "not a run folder" in capsys.readouterr().err
