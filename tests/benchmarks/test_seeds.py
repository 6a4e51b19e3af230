from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import cold_start, drift, seeds, wording
from benchmarks.measured import Measured
from benchmarks.seeds import Found
from benchmarks.studied import Studied
from decant import recipes
from decant.results import read_csv


def test_runs_together_differ_by_their_seed_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = recipes.demo()
    made = {"a": demo, "b": demo.with_seed(1), "c": replace(demo.with_seed(2), size="small")}
    monkeypatch.setattr(seeds, "recipe_of", lambda run: made[run.name])
    runs = {name: str(tmp_path / name) for name in made}
    assert cold_start.main([runs["a"], runs["b"], runs["a"]]) == 1
    assert "have a seed twice" in capsys.readouterr().err
    assert cold_start.main([runs["a"], runs["b"], runs["c"]]) == 1
    assert f"{runs['c']} differs from {runs['a']} by more than its seed" in capsys.readouterr().err


class Drawn:
    """Ranks drawn by the seed in the place of models."""

    def __init__(self, studied: Studied, measured: Measured, **_: object) -> None:
        self.studied, self.measured = studied, measured
        rng = np.random.default_rng(studied.recipe.seed)
        names = (*wording.ARMS, "popularity")
        self.found = Found(np.repeat(np.arange(30), 2), {n: rng.integers(1, 20, 60) for n in names})


class Aged(Drawn):
    def measure(self) -> drift.Aged:
        aged = drift.Aged(self.found, np.arange(60) % drift.NUM_SPANS)
        for model in self.found.rank_m:
            drift.write(self.measured, self.studied, aged, model, seed=self.studied.recipe.seed)
        return aged


class Told(Drawn):
    def measure(self) -> Found:
        wording.write(self.measured, self.studied, self.found, seed=self.studied.recipe.seed)
        return self.found


class Contested(Drawn):
    def measure_users(self) -> None:
        part = {("all users", None): self.found}
        cold_start.write(self.measured, self.studied, part, seed=self.studied.recipe.seed)
        self.found = part  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("benchmark", "name", "quick"),
    [(drift, "Ageing", Aged), (wording, "Wordings", Told), (cold_start, "Contest", Contested)],
)
def test_a_mean_is_over_all_seeds_and_takes_the_place_of_one_of_fewer(
    benchmark: Any,
    name: str,
    quick: type[Drawn],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def opened(options: Namespace) -> Iterator[tuple[Studied, Path]]:
        recipe = recipes.demo().with_seed(int(options.run.name))
        split = SimpleNamespace(name="leave_one_out")
        found = SimpleNamespace(recipe=recipe, weights=options.run.name, split=split)
        yield cast(Studied, found), tmp_path

    monkeypatch.setattr(benchmark, name, quick)
    monkeypatch.setattr(benchmark, "opened", opened)
    monkeypatch.setattr(benchmark, "each_run", lambda o: [Namespace(run=run) for run in o.run])
    if benchmark is not wording:
        monkeypatch.setattr(
            benchmark, "sasrec_of", lambda one, _: ([[], [], int(one.run.name)], None)
        )
    out = tmp_path / "rows.csv"
    for runs in (["0"], ["0", "1"], ["0", "1", "2"]):
        users = ["--part", "users"] if benchmark is cold_start else []
        assert benchmark.main([*runs, *users, "--out", str(out)]) == 0
        rows = read_csv(out)
        means = [row for row in rows if row.seed == "mean"]
        assert bool(means) == (len(runs) > 1) == ("seeds" in capsys.readouterr().out)
        for mean in means:
            key = (mean.split, mean.model, mean.metric)
            of = [row for row in rows if (row.split, row.model, row.metric) == key]
            values = [row.value for row in of if row.seed != "mean"]
            assert len(of) == len(values) + 1 == len(runs) + 1
            assert mean.value == pytest.approx(np.mean(values))
            assert mean.n == sum(row.n or 0 for row in of if row.seed != "mean")
    assert len({(row.split, row.model, row.metric) for row in means}) == len(means) == len(rows) / 4
