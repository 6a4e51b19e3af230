import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from benchmarks import policy as benchmark
from decant.results import read_csv


def test_agreement_and_speed_are_measured(tmp_path, capsys):
    out = tmp_path / "policy.csv"
    assert benchmark.main(["--smoke", "--out", str(out)]) == 0
    rows = {(row.split, row.model, row.metric): row for row in read_csv(out)}
    kappa = rows["shown", "policy job_market 1.0", "weighted_kappa"]
    assert kappa.ci_low is not None
    assert 0.5 < kappa.ci_low < kappa.value < kappa.ci_high < 1
    assert rows["drawn", "generator", "correlation_with_clicks"].value > 0
    assert rows["drawn", "policy job_market 1.0", "labelled_per_s"].value > 0
    assert "weighted_kappa" in capsys.readouterr().out


def test_kappa_of_users_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 5, (2, 500)).astype(np.int8)
    other = np.where(draw.random(500) < 0.5, one, other)
    users = draw.integers(0, 40, 500)
    weights = np.stack([np.ones(40), draw.integers(0, 3, 40)]).astype(np.float64)
    found = benchmark.kappa_of_users(one, other, users, 40)(weights)
    wanted = [
        cohen_kappa_score(one, other, weights="quadratic", sample_weight=row[users])
        for row in weights
    ]
    assert found == pytest.approx(wanted)
