from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks import studied as studying
from decant.results import read_csv


def test_sizes_and_shares_are_trained_once_and_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studied = studying.smoke(tmp_path)
    monkeypatch.setattr(studying, "smoke", lambda _: studied)
    out = tmp_path / "scaling.csv"
    assert scaling.main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    losses = {row.model: row for row in rows if row.metric == "next_item_loss"}
    assert list(losses) == [
        "foundation, tiny",
        "foundation, mini",
        "foundation, 0.5 of people",
        "foundation, 1 of people",
    ]
    # A model that has hardly been trained is about as good as a guess among the jobs.
    jobs = int((studied.data.interactions.item_kinds == "job").sum())
    assert all(0.5 * np.log(jobs) < row.value < 2 * np.log(jobs) for row in losses.values())
    assert losses["foundation, mini"].params > losses["foundation, tiny"].params  # type: ignore[operator]
    # The run's own size on all people is one training, not two.
    assert losses["foundation, tiny"].value == losses["foundation, 1 of people"].value
    exponents = {(row.split, row.metric) for row in rows if "exponent" in row.metric}
    assert exponents == {(k, m) for k in ("model", "data") for m in ("exponent", "exponent_ndcg")}
    assert "exponent by model" in capsys.readouterr().out

    half, whole = scaling.some_people(studied, 0.5), scaling.some_people(studied, 1.0)
    np.testing.assert_array_equal(whole.train, studied.split.train)
    users = studied.data.interactions.event_user
    assert 0 < half.train.sum() < whole.train.sum()
    assert not np.isin(users[half.train], users[whole.train & ~half.train]).any()

    before = out.read_bytes()
    monkeypatch.setattr(scaling, "train_like", None)
    assert scaling.main(["--smoke", "--out", str(out)]) == 0
    assert out.read_bytes() == before


def test_the_exponent_of_a_power_law_is_found() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([1e4, 1e5, 1e6, 1e7])
    user = np.arange(400)
    noise = rng.normal(1, 0.2, size=(4, 400))
    values = [8.0 * size**-0.07 * one for size, one in zip(sizes, noise, strict=True)]
    found = scaling.exponent(sizes, values, user, sign=-1)
    assert found.low < 0.07 < found.high
    assert found.high - found.low < 0.02
    risen = scaling.exponent(sizes, [1 / one for one in values], user, sign=1)
    assert risen.value > 0


def test_without_a_run_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
