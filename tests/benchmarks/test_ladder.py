import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ladder, ladder_latency
from benchmarks.ladder_rows import TOP, Outcomes
from benchmarks.measured import Measured
from decant import judging
from decant.measure import Answers
from decant.results import read_csv
from foundation import predictions
from foundation.evaluation import ndcg
from promptify.validation import BadInput


class FakeDescent:
    """A top whose first target's rank is its seed and one more."""

    def __init__(self, bed: Any, seed: int, work: Path) -> None:
        self.seed = seed
        self.layout = SimpleNamespace(model=Path)
        self.top = SimpleNamespace(num_parameters=lambda: 10)

    def answers(self, folder: Path) -> Answers:
        nobody, nothing = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        return Answers(
            user=np.arange(3),
            rank=np.array([1 + self.seed, 1, 20]),
            is_positive_target=np.ones(3, np.bool_),
            action_user=nobody,
            action_positive=nothing,
            action_probability=None,
        )


def test_a_mean_is_of_all_seeds_whenever_they_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "Descent", FakeDescent)
    bed: Any = SimpleNamespace(name="films")

    def means_after(*seeds: int, name: str = "rows") -> dict[str, tuple[float, Any, Any]]:
        out = Measured("ladder", {}, out=tmp_path / f"{name}.csv", commit="c")
        ladder.measure(bed, [], seeds, tmp_path, out)
        rows = read_csv(tmp_path / f"{name}.csv")
        return {
            row.metric: (row.value, row.ci_low, row.ci_high) for row in rows if row.seed == "mean"
        }

    first, both = means_after(0), means_after(1)
    assert both["ndcg@10"] < first["ndcg@10"]
    assert means_after(0) == both
    assert means_after(2) == means_after(0, 1, 2, name="at once") != both
    # Rows without what they were made of: a mean of the one seed would not be theirs.
    all_three = means_after(2)
    (tmp_path / "rows.npz").unlink()
    assert means_after(0) == all_three


def test_outcomes_of_other_settings_are_begun_anew_and_other_targets_are_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.npz"
    of_seed = FakeDescent(None, 0, tmp_path).answers(tmp_path)
    Outcomes("a", path).add(TOP, 0, of_seed)
    assert Outcomes("a", path).seeds == [0]
    assert Outcomes("b", path).seeds == []
    others = replace(of_seed, user=of_seed.user + 1)
    with pytest.raises(BadInput, match=r"rows\.npz is of other test targets"):
        Outcomes("a", path).add(TOP, 1, others)
    for damaged in (b"", b"PK\x03\x04", b"not arrays", path.read_bytes()[:-40]):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"rows\.npz cannot be read"):
            Outcomes("a", path)
    np.savez(path, user=np.arange(3))
    with pytest.raises(BadInput, match="not one of a ladder's outcomes"):
        Outcomes("a", path)


@given(ranks=st.lists(st.integers(1, 3000), min_size=1, max_size=30))
def test_outcomes_give_back_what_every_target_counts(ranks: list[int]) -> None:
    answers = replace(
        FakeDescent(None, 0, Path()).answers(Path()),
        user=np.arange(len(ranks)),
        rank=np.array(ranks),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        Outcomes("a", path).add("gradual", 4, answers)
        found = Outcomes("a", path).ndcg("gradual", 4)
    assert found is not None
    np.testing.assert_array_equal(found, ndcg(np.array(ranks), 10))


def test_an_arm_that_a_seed_has_no_rung_of_has_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Descent(FakeDescent):
        def rungs(self, arm: str) -> list[Path]:
            return [] if (arm, self.seed) == ("one_shot", 1) else [Path(arm)]

        def model(self, folder: Path) -> Any:
            return self.top

        def latency_ratio(self, place: int, *, is_last: bool) -> float:
            return 0.5

        def passes(self, place: int) -> bool:
            return self.seed == 1

    monkeypatch.setattr(ladder, "Descent", Descent)
    out = Measured("ladder", {}, out=tmp_path / "rows.csv", commit="c")
    bed: Any = SimpleNamespace(name="films")
    ladder.measure(bed, ["gradual", "one_shot", "finetune"], [0, 1], tmp_path, out)
    means = {row.model for row in out.rows if row.seed == "mean"}
    assert means == {"foundation", "gradual", "finetune"}
    passed = {row.seed: row.value for row in out.rows if row.metric == "gate_passed"}
    assert passed == {0: 0.0, 1: 1.0}
    beside = {(r.model, r.seed) for r in out.rows if r.metric == "loss_vs_gradual"}
    assert beside >= {("one_shot rung-1", 0), ("finetune rung-1", 0), ("finetune rung-1", 1)}


def test_a_mean_of_fewer_seeds_than_the_tops_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Descent(FakeDescent):
        def rungs(self, arm: str) -> list[Path]:
            return [Path(arm)]

        def model(self, folder: Path) -> Any:
            return self.top

        def latency_ratio(self, place: int, *, is_last: bool) -> float:
            return 0.5

        def passes(self, place: int) -> bool:
            return place == 1

    monkeypatch.setattr(ladder, "Descent", Descent)
    bed: Any = SimpleNamespace(name="films")

    def means_after(arms: list[Any], seed: int) -> set[str]:
        out = Measured("ladder", {}, out=tmp_path / "rows.csv", commit="c")
        ladder.measure(bed, arms, [seed], tmp_path, out)
        rows = read_csv(tmp_path / "rows.csv")
        assert [row for row in rows if row.seed == 0] == [row for row in out.rows if row.seed == 0]
        return {row.model for row in rows if row.seed == "mean"}

    assert means_after(["gradual", "finetune"], 0) == {"foundation", "gradual", "finetune"}
    assert means_after(["gradual"], 1) == {"foundation", "gradual"}
    assert means_after(["finetune"], 1) == {"foundation", "gradual", "finetune"}


def test_every_seed_reads_the_data_in_its_own_order() -> None:
    for name in ladder.BEDS:
        bed = ladder.bed_of(name, data=None, smoke=False, minutes=None, to=None)
        first, other = bed.changes_for(0), bed.changes_for(3)
        assert first.keys() == other.keys() == bed.changes.keys()
        assert ("fit" in first) == (name == "ml1m")
        if "fit" in first:
            assert (first["fit"].seed, other["fit"].seed) == (0, 3)


@pytest.mark.slow
def test_every_arm_is_measured_and_a_second_call_trains_nothing(
    tmp_path, capsys, monkeypatch
) -> None:
    readings: Counter = Counter()

    read_pairs = predictions.read_pairs

    def counted(model, rows, *others, **options):
        readings[judging.fingerprint(model), rows.ids.tobytes()] += 1
        return read_pairs(model, rows, *others, **options)

    monkeypatch.setattr(predictions, "read_pairs", counted)
    # Repair is enough for a rung of a model that knows nothing; here the first was taught too.
    came_to = ladder.Descent._came_to

    def taught(descent: ladder.Descent) -> Any:
        shapes, epochs = came_to(descent)
        return shapes, [0.2, *epochs[1:]]

    monkeypatch.setattr(ladder.Descent, "_came_to", taught)
    out, work = tmp_path / "ladder.csv", tmp_path / "work"
    arguments = ["job_market", "--smoke", "--out", str(out), "--work", str(work)]
    assert ladder.main(arguments) == 0
    rows = read_csv(out)
    models = {row.model for row in rows}
    assert {"foundation", "gradual rung-1"} < models
    last = max(int(m.split("-")[-1]) for m in models if m.startswith("gradual rung"))
    assert last >= 2
    for arm in ("no_repair", "finetune"):
        assert f"{arm} rung-{last}" in models
    for arm in ("one_shot", "from_scratch"):
        assert f"{arm} rung-1" in models
        assert f"{arm} rung-2" not in models
    passed = {row.model: row.value for row in rows if row.metric == "gate_passed"}
    assert passed.keys() == {m for m in models if m.startswith("gradual rung")}
    assert set(passed.values()) <= {0.0, 1.0}
    sizes = {row.model: row.params for row in rows if row.metric == "params_ratio"}
    # All arms end at the same size.
    assert sizes["one_shot rung-1"] == sizes["from_scratch rung-1"] == sizes[f"gradual rung-{last}"]
    assert sizes[f"no_repair rung-{last}"] == sizes[f"gradual rung-{last}"]
    ratios = [r.value for r in rows if r.metric == "params_ratio" and r.model.startswith("gradual")]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] <= 0.6
    assert {r.model for r in rows if r.seed == "mean" and r.metric == "ndcg@10"} >= {"one_shot"}
    # Each model was asked for itself.
    assert len({row.value for row in rows if row.metric == "auc"}) > 2
    # Two rates were tried of every arm but the one that begins with nothing.
    folder = work / "job_market/seed-0"
    bed = ladder.bed_of("job_market", data=None, smoke=True, minutes=None, to=None)
    descent = ladder.Descent(bed, 0, work)
    for arm, chains in (("one_shot", 2), ("no_repair", 2), ("finetune", 2), ("from_scratch", 1)):
        tried = [json.loads(path.read_text()) for path in (folder / arm).glob("*/valid.json")]
        assert len(tried) == chains
        kept = descent.rungs(arm)[-1].parent / "valid.json"
        assert json.loads(kept.read_text()) == max(tried, key=lambda one: one["ndcg@10"])
    # The ladder's report and the rows rest on one reading of each model.
    assert set(readings.values()) == {1}
    before = out.read_bytes()
    monkeypatch.setattr(ladder.Descent, "make", None)
    monkeypatch.setattr(predictions, "read_pairs", None)  # Nor is anything asked again.
    assert ladder.main(arguments) == 0
    assert out.read_bytes() == before
    assert "loss_vs_top" in capsys.readouterr().out
    # An arm that other code made is none of this code's.
    monkeypatch.setattr(ladder, "code_key", lambda _: "other")
    with pytest.raises(TypeError, match="not callable"):
        descent.rungs("one_shot")


def test_the_time_of_smaller_shapes_with_random_weights(tmp_path, capsys) -> None:
    out = tmp_path / "latency.csv"
    arguments = ["job_market_text", "--smoke", "--shape", "1x64x1x32", "--out", str(out)]
    assert ladder_latency.main(arguments) == 0
    [size, latency] = read_csv(out)
    assert (size.model, size.metric) == ("1x64x1x32", "params_ratio")
    assert 0 < size.value < 1
    assert (latency.metric, latency.n) == ("latency_ratio", 15)
    assert latency.value > 0
    assert ladder_latency.main([*arguments[:2], "--shape", "four"]) == 1
    assert "shape 'four' is not four whole numbers" in capsys.readouterr().err


def test_movielens_that_is_not_there_is_said(tmp_path, capsys) -> None:
    arguments = ["ml1m", "--data", str(tmp_path / "no.zip"), "--work", str(tmp_path / "work")]
    assert ladder.main([*arguments, "--seed", "0"]) == 1
    assert "benchmarks.ladder: error:" in capsys.readouterr().err


@pytest.mark.parametrize("task", ladder.BEDS)
def test_epochs_that_are_asked_for_are_the_tops_and_no_rungs(task, tmp_path, monkeypatch) -> None:
    beds = []
    monkeypatch.setattr(ladder, "measure", lambda bed, *others: beds.append(bed))
    arguments = [task, "--seed", "0", "--work", str(tmp_path)]
    assert ladder.main(arguments) == 0
    assert ladder.main([*arguments, "--epochs", "7"]) == 0
    as_stated, longer = beds
    assert longer.recipe.fit.epochs == 7 != as_stated.recipe.fit.epochs
    assert longer.recipe.rung == as_stated.recipe.rung
    # A top that is trained to its end has nothing to learn of the data below it.
    assert longer.changes.get("data_weight", 0.0) == 0.0
    assert as_stated.changes.get("data_weight", 0.0) == (1.0 if task == "ml1m" else 0.0)
