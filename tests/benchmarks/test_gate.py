from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate import Design, drawn, looked_twice, main, measure_clock
from benchmarks.measured import Measured
from benchmarks.subjects import Subject
from decant.results import read_csv
from distill.gate import GateConfig, Measurements, Tolerance
from foundation import Foundation
from foundation.evaluation import auc, expected_calibration_error
from promptify.assembly import PromptBook
from promptify.splits import Split


def test_models_are_calibrated_but_for_what_is_planted() -> None:
    design = Design(metric="ece", num_users=400_000, targets_per_user=1)
    before, candidates = drawn(design, 0.01, np.random.default_rng(0))
    was, *now = (
        expected_calibration_error(one.event_label, one.event_probability)
        for one in (before, *candidates)
    )
    assert was < 0.003
    assert now == pytest.approx([0.01, 0.01], abs=0.002)
    apart = before.event_probability - candidates[0].event_probability
    assert 0.02 < np.sqrt((apart**2).mean()) < 0.04


@pytest.mark.parametrize("metric", ["ndcg@10", "auc"])
def test_a_loss_is_planted_as_large_as_it_says(metric: str) -> None:
    rng = np.random.default_rng(0)
    design = Design(metric=metric, num_users=200_000, targets_per_user=1)
    for loss in (0.0, 0.02, 0.1):
        before, candidates = drawn(design, loss, rng)
        for after in candidates:
            if metric == "ndcg@10":
                was, now = (one.target_ndcg.mean() for one in (before, after))
            else:
                was, now = (auc(one.event_label, one.event_probability) for one in (before, after))
                assert was == pytest.approx(0.75, abs=0.004)
            assert (was - now) / was == pytest.approx(loss, abs=0.006)


def test_a_step_is_taken_if_either_candidate_is_not_refused() -> None:
    """As `distill.Ladder` does: what repair left is asked first, what is taught is preferred."""
    user = np.arange(2000)
    reference = np.random.default_rng(0).random(2000)
    noise = np.random.default_rng(1).normal(scale=0.5, size=2000)
    said = {
        "pass": reference,
        "undecided": reference + noise - noise.mean(),
        "fail": 0.9 * reference,
    }
    config = GateConfig(tolerances=(Tolerance(metric="ndcg@10", max_loss=0.01, kind="relative"),))
    made = {
        name: Measurements(target_user=user, target_ndcg=values) for name, values in said.items()
    }
    for first, repaired in made.items():
        for second, taught in made.items():
            step = looked_twice(made["pass"], [repaired, taught], config)
            assert step == (first if first == "pass" or second == "fail" else second)


def test_it_counts_and_goes_on_where_it_stopped(tmp_path, capsys) -> None:
    out = tmp_path / "gate.csv"
    assert main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    assert {(row.metric, row.model) for row in rows} == {
        ("gate_false_accept", "loss 2%"),
        ("gate_false_reject", "loss 0%"),
        ("gate_undecided", "loss 2%"),
        ("gate_undecided", "loss 0%"),
    }
    assert all(0 <= row.ci_low <= row.value <= row.ci_high <= 1 for row in rows)
    assert all(row.n == 20 for row in rows)
    one, two = "200 people x 1", "200 people x 1, two looks"
    refused = {row.split: row.value for row in rows if row.metric == "gate_false_reject"}
    assert set(refused) == {one, two}
    assert refused[two] <= refused[one]
    before = out.read_bytes()
    assert main(["--smoke", "--out", str(out)]) == 0
    assert out.read_bytes() == before
    assert "gate_false_accept" in capsys.readouterr().out


def test_a_model_is_timed_against_itself(
    market_model: Foundation, market_book: PromptBook, market_split: Split, tmp_path: Path
) -> None:
    out = tmp_path / "gate.csv"
    subject = Subject(foundation=market_model, book=market_book, split=market_split, task="market")

    def measured() -> Measured:
        return Measured("ladder", {}, out=out)

    measure_clock(subject, counts=(2, 3), rounds=3, measured=measured())
    rows = read_csv(out)
    assert [(row.metric, row.split, row.n) for row in rows] == [
        ("slowdown_p95", "2 requests", 3),
        ("slowdown_p95", "3 requests", 3),
    ]
    assert all(0 <= row.ci_low <= row.value <= row.ci_high < 9 for row in rows)
    before = out.read_bytes()
    measure_clock(subject, counts=(2, 3), rounds=3, measured=measured())
    assert out.read_bytes() == before
    assert main(["--run", str(tmp_path / "none")]) == 1
