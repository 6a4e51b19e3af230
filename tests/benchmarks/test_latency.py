import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.measured import Measured
from benchmarks.subjects import Subject
from decant.answering import Cascade
from decant.recommender import build_index
from decant.results import read_csv
from foundation import Foundation
from foundation.evaluation import Interval
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


def test_what_was_cut_short_is_measured_again(
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[int] = []

    def measured_until(left: int) -> None:
        def measure(
            _: object, measured: Measured, *, name: str, levels: Sequence[int], **__
        ) -> None:
            asked.append(left)
            cells = [
                (level, way, metric)
                for level in levels
                for way in latency.WAYS
                for metric in ("p50_ms", "p95_ms", "p99_ms", "requests_per_s")
            ]
            for level, way, metric in cells[: len(cells) - left]:
                measured.add(
                    task="films",
                    split=f"{level} at once",
                    model=f"{name}, {way}",
                    metric=metric,
                    seed=0,
                    interval=Interval(value=1.0, low=0.5, high=2.0),
                )
            if left:
                raise ValueError("cut short")

        monkeypatch.setattr(latency, "measure", measure)

    monkeypatch.setattr(latency, "trained", lambda *_, **__: subject)
    command = ["--smoke", "--out", str(tmp_path / "rows.csv")]
    for left, code in ((3, 1), (0, 0), (0, 0)):
        measured_until(left)
        assert latency.main(command) == code
    assert asked == [3, 0]
    assert len(read_csv(tmp_path / "rows.csv")) == 2 * 4 * len(latency.WAYS)
    assert "4 at once" in capsys.readouterr().out


def test_without_a_run_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
    assert latency.main([str(tmp_path)]) == 1
    assert "not a run folder" in capsys.readouterr().err
