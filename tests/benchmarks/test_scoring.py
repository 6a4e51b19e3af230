from pathlib import Path

import numpy as np
import pytest

from benchmarks import scoring as benchmark
from benchmarks import scoring_parts as parts
from benchmarks import scoring_rounds as rounds
from benchmarks.scoring_ways import TINY, Request, kv_repeat, one_by_one, ours, random_foundation
from decant.results import read_csv

FAST = ["--smoke", "--threads", "1", "--parts", "main", "slots", "curve", "cache", "bf16", "qwen3"]


def test_every_part_measures_and_is_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "built", lambda _: None)  # Whatever this machine has built.
    path, plot = tmp_path / "scoring.csv", tmp_path / "curve.png"
    assert benchmark.main([*FAST, "--out", str(path), "--plot", str(plot)]) == 0
    rows = read_csv(path)
    printed = capsys.readouterr().out
    assert {row.split for row in rows} == set(FAST[4:])
    main = {(row.model, row.metric): row.value for row in rows if row.split == "main"}
    assert {metric for model, metric in main if model == "foundation"} == {
        "speedup_vs_one_by_one",
        "speedup_vs_one_by_one_default_logits",
        "speedup_vs_kv_repeat",
        "items_per_s",
        "max_abs_error_fp32",
    }
    # The claim's shape is far larger; here 20 prompts of 104 tokens are against 256 positions.
    assert main["foundation", "speedup_vs_one_by_one"] > 1
    assert main["one-by-one", "items_per_s"] > 0
    errors = [row.value for row in rows if row.metric == "max_abs_error_fp32"]
    assert len(errors) == 7  # The claim, slots, four of the curve and the other shape.
    assert 0 < max(errors) < 1e-4
    assert f"speedup_vs_kv_repeat {main['foundation', 'speedup_vs_kv_repeat']:.1f}" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(parts, "random_foundation", never)
    assert benchmark.main([*FAST, "--out", str(path)]) == 0
    assert read_csv(path) == rows


def test_memory_is_measured_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "scoring.csv"
    arguments = ["--smoke", "--threads", "1", "--parts", "memory", "--out", str(path)]
    assert benchmark.main(arguments) == 0
    [row] = read_csv(path)
    assert row.metric == "bytes_over_model"
    assert row.value >= 0


def test_ways_that_score_differently_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = lambda _: lambda request: np.zeros((len(request.pieces), 3), np.float32)  # noqa: E731
    monkeypatch.setattr(parts, "ours", wrong)
    assert benchmark.main(["--smoke", "--threads", "1", "--parts", "slots"]) == 1
    assert "scores differ from ours" in capsys.readouterr().err


def test_the_ways_score_alike_with_any_batch_size() -> None:
    foundation = random_foundation(TINY, seed=1)
    request = Request.draw(foundation, (20, 7, 3), seed=0)
    wanted = ours(foundation)(request)
    assert np.ptp(wanted[:, 0]) > 0.1
    for batch in (1, 3, 7):
        for way in (
            one_by_one(foundation, batch=batch),
            one_by_one(foundation, batch=batch, default_logits=True),
            kv_repeat(foundation, batch=batch),
        ):
            np.testing.assert_allclose(way(request), wanted, atol=1e-4, rtol=0)


def test_a_speedup_is_the_median_of_ratios_within_a_round() -> None:
    slow_machine = iter([1.0, 1.0, 1.0, 9.0, 1.0])
    scores = np.zeros((4, 3), np.float32)
    pace = 1.0

    def mine() -> tuple[float, np.ndarray]:
        nonlocal pace
        pace = next(slow_machine, 1.0)
        return pace, scores

    peer = {"peer": lambda: (3 * pace, scores)}
    speedup, *_ = rounds.against(mine, peer, rounds=4, candidates=4)
    assert speedup == ("foundation", "speedup_vs_peer", 3, (3, 3), 4)
