"""The session of a GPU day on a CPU: its clock, its log, and a smoke run of its parts."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.session import OutOfTimeError, Session, within
from decant.results import read_csv

CPU = torch.device("cpu")


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Session]:
    def made(*, seconds: float = 100.0, settings: int = 0, slack: float = 1.0) -> Session:
        return Session(
            part=1,
            out=tmp_path,
            settings={"settings": settings},
            seconds=seconds,
            device=CPU,
            commit="none",
            slack=slack,
        )

    return made


def test_time_within_a_time_is_kept_by_both_clocks() -> None:
    def wait() -> None:
        with within(0.3):
            with pytest.raises(OutOfTimeError, match="0 s"), within(0.05):
                time.sleep(5)
            time.sleep(5)

    began = time.monotonic()
    with pytest.raises(OutOfTimeError):
        wait()
    assert 0.25 < time.monotonic() - began < 4
    time.sleep(0.4)  # Nothing rings once it is over.


def test_a_row_is_on_disk_the_moment_it_is_known(session: Callable[..., Session]) -> None:
    asked = session()

    def measure() -> None:
        asked.add(2.5, task="t", split="s", model="m", metric="ndcg@10")
        [row] = read_csv(asked.out / "gpu-part1.csv")
        assert row.value == 2.5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked.attempt("one", measure, seconds=10)


def test_what_fails_is_written_down_and_the_next_has_its_turn(
    session: Callable[..., Session],
) -> None:
    asked = session()

    def bad() -> None:
        raise ArithmeticError("attention differs")

    assert not asked.attempt("bad", bad, seconds=10)
    assert asked.attempt("good", lambda: None, seconds=10)
    assert asked.failed == ["bad"]
    assert "attention differs" in (asked.out / "errors.txt").read_text("utf-8")


def test_what_is_done_is_not_done_again_but_under_other_settings(
    session: Callable[..., Session],
) -> None:
    times: list[int] = []
    for settings in (0, 0, 1):
        session(settings=settings).attempt("one", lambda: times.append(1), seconds=10)
    assert len(times) == 2


def test_what_does_not_fit_is_skipped_and_said(session: Callable[..., Session]) -> None:
    asked = session(seconds=5)
    assert asked.attempt("short", lambda: None, seconds=5)
    assert not asked.attempt("long", lambda: None, seconds=60)
    assert "skipped  part 1, long" in (asked.out / "log.txt").read_text("utf-8")
    assert asked.failed == []


def test_slack_lengthens_every_budget(session: Callable[..., Session]) -> None:
    asked = session(slack=20)
    assert asked.attempt("slow", lambda: time.sleep(0.3), seconds=0.05)


def test_only_what_is_named_is_measured(tmp_path: Path) -> None:
    options = ["--smoke", "--out", str(tmp_path), "--work", str(tmp_path), "--commit", "none"]
    assert gpu.main(["--part", "1", *options, "--only", "peak", "packed rows"]) == 0
    rows = read_csv(tmp_path / "gpu-part1.csv")
    assert {row.split for row in rows} == {"peak", "agreement"}
    assert not any("shared prefix" in row.task for row in rows)


@pytest.mark.parametrize("parts", [("1",), ("2", "3", "4")], ids=["part 1", "parts 2, 3 and 4"])
def test_every_part_runs_with_tiny_shapes(parts: tuple[str, ...], tmp_path: Path) -> None:
    expected = {
        1: {"error_fp32", "speedup_vs_one_by_one", "speedup_vs_kv_repeat", "tokens_per_s", "mfu"},
        2: {"ndcg@10", "hr@10", "auc"},
        4: {"ndcg@10", "hr@10", "auc"},
        3: {"params_ratio", "latency_ratio", "recall@100", "queries_per_s_batch8"},
    }
    out, work = tmp_path / "out", tmp_path / "work"
    options = ["--smoke", "--out", str(out), "--work", str(work), "--commit", "none"]
    assert gpu.main(["--part", *parts, *options]) == 0
    for part in map(int, parts):
        rows = read_csv(out / f"gpu-part{part}.csv")
        assert expected[part] <= {row.metric for row in rows}
        assert all(row.hardware for row in rows)
        if part == 3:
            assert {"decant cpu", "decant cpu, 100 denied"} <= {row.model for row in rows}


def test_another_rate_trains_another_model_and_one_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = ["--part", "2", "--smoke", "--only", "training", "--work", str(tmp_path / "work")]
    smoke += ["--out", str(tmp_path)]
    for rate in ([], ["--rate", "2e-3"]):
        assert gpu.main([*smoke, *rate]) == 0
    assert "an earlier call trained" not in capsys.readouterr().out
    trained = [row.model for row in read_csv(tmp_path / "gpu-part2.csv") if row.metric == "epochs"]
    assert trained == ["foundation", "foundation, rate 0.002"]
    assert gpu.main([*smoke, "--rate", "0"]) == 1
    assert "learning_rate=0.0 must be above 0" in capsys.readouterr().err
