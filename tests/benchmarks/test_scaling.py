from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks import studied as studying
from benchmarks.measured import Measured
from benchmarks.studied import Studied
from decant import recipes
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


class Drawn:
    """Losses drawn by the seed in the place of trainings."""

    def __init__(self, studied: Studied, measured: Measured, **_: object) -> None:
        seed = studied.recipe.seed
        rng = np.random.default_rng(seed)
        arms = [("model", "tiny", 1.0), ("model", "mini", 1.0), ("data", "mini", 0.5)]
        said = {
            arm: {
                "loss": rng.uniform(1, 5, 30),
                "ndcg": rng.uniform(0, 1, 30),
                "params": np.array(1000.0 * 4**place),
                "events": np.array(2000.0 * 2**place + seed),
            }
            for place, arm in enumerate([*arms, ("data", "mini", 1.0)])
        }
        self.scaled = scaling.Scaled(np.arange(30), said)
        self.studied, self.measured, self.seed = studied, measured, seed

    def measure(self) -> scaling.Scaled:
        scaling.write(self.measured, self.studied, self.scaled, seed=self.seed)
        return self.scaled


def test_a_mean_is_over_people_under_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def opened(options: Namespace) -> Iterator[tuple[Studied, Path]]:
        recipe = recipes.demo().with_seed(int(options.run.name))
        yield cast(Studied, SimpleNamespace(recipe=recipe, weights=options.run.name)), tmp_path

    monkeypatch.setattr(scaling, "Scaling", Drawn)
    monkeypatch.setattr(scaling, "opened", opened)
    monkeypatch.setattr(scaling, "each_run", lambda o: [Namespace(run=run) for run in o.run])
    out = tmp_path / "rows.csv"
    for runs in (["0"], ["0", "1"], ["0", "1", "2"]):
        assert scaling.main([*runs, "--out", str(out)]) == 0
        rows = read_csv(out)
        means = [row for row in rows if row.seed == "mean"]
        assert bool(means) == (len(runs) > 1) == ("seeds" in capsys.readouterr().out)
        assert {row.n for row in means} <= {30 * len(runs)}
        for mean in means:
            key = (mean.split, mean.model, mean.metric)
            of = [row for row in rows if (row.split, row.model, row.metric) == key]
            values = [row.value for row in of if row.seed != "mean"]
            assert len(of) == len(values) + 1 == len(runs) + 1
            if "exponent" not in mean.metric:
                assert mean.value == pytest.approx(np.mean(values))

    drawn: list[Any] = [
        Drawn(cast(Studied, SimpleNamespace(recipe=recipes.demo().with_seed(s))), None).scaled.said  # type: ignore[arg-type]
        for s in range(3)
    ]
    arms = [arm for arm in drawn[0] if arm[0] == "data"]
    events = np.array([np.mean([said[arm]["events"] for said in drawn]) for arm in arms])
    losses = [np.mean([said[arm]["loss"] for said in drawn], axis=0) for arm in arms]
    expected = scaling.exponent(events, losses, np.arange(30), sign=-1)
    [found] = [row for row in means if (row.split, row.metric) == ("data", "exponent")]
    told = (found.value, found.ci_low, found.ci_high)
    assert told == pytest.approx((expected.value, expected.low, expected.high))


def test_without_a_run_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
