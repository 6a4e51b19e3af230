import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decant import ladder as ladders
from decant import ladder_report, on_validation, pipeline, quantising
from decant.cli import main
from decant.judging import Remembered
from decant.ladder import descend, ladder_config
from decant.layout import DATA, FOUNDATION, PROMPTER, RunLayout
from decant.pipeline import index_again
from decant.recipes import recipe_of
from decant.recommender import Recommender
from decant.report import TableRow
from decant.run_data import load_model, rung_record
from decant.stages import Stages
from distill import ladder as steps
from distill import rung_teaching
from distill.distillation import Distillation
from distill.gate import GateVerdict, Measurements
from distill.ladder_config import LadderConfig
from foundation import Foundation
from foundation.calibration import Calibration
from foundation.checkpoint import weights_hash
from foundation.plan import TrainingPlan
from foundation.predictions import predict_targets
from promptify.splits import fewer_people
from promptify.validation import BadInput

# Losses that a tiny model on a handful of people shows mean nothing: every rung may pass.
LENIENT = {
    "to": 0.6,
    "max_loss": 0.9,
    "max_loss_vs_top": 0.9,
    "max_miscalibration": 1.0,
    "max_slowdown": 9.0,
    "calibration_rows": 40,
}


@pytest.fixture(scope="module", autouse=True)
def _few_requests():
    """So few that a rung takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_validation, "NUM_WATCHED_REQUESTS", 20)
        yield


def lenient(run: Path, **changes) -> LadderConfig:
    config = ladder_config(run, **{**LENIENT, "minutes_per_rung": None, **changes})
    return replace(config, fit=replace(config.fit, epochs=0.3))


@pytest.fixture(scope="module")
def top_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder without its index, to be copied."""
    folder = tmp_path_factory.mktemp("ladder") / "run"
    shutil.copytree(tiny_run, folder)
    return folder


@pytest.fixture(scope="module")
def laddered(
    top_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
    drawing: Callable[[], AbstractContextManager[None]],
) -> Path:
    """A ladder of a few rungs."""
    out = tmp_path_factory.mktemp("laddered") / "run"
    with drawing():
        done = descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert "It ends:" in done.table
    return out


def ladder_of(run: Path, **changes) -> tuple[steps.Ladder, Foundation]:
    """A ladder by itself, and its top."""
    layout = RunLayout(run)
    book, split = ladders.load_book(layout)
    top = load_model(layout.model(FOUNDATION))
    config = lenient(run, **changes)
    return (
        ladders.ladder_below(top, book, split, config, timed_requests=3, fitting_requests=10),
        top,
    )


def rungs(folder: Path) -> list[str]:
    return RunLayout(folder).models()[1:]


def test_it_goes_down_by_steps_that_are_small_enough(laddered: Path) -> None:
    layout = RunLayout(laddered)
    names = rungs(laddered)
    assert names[:2] == ["rung-1", "rung-2"]
    ratios = [1.0]
    for name in names:
        record = rung_record(layout, name)
        model = load_model(layout.model(name))
        assert record["parameters"] == model.num_parameters()
        assert record["ratio"] >= (1 - 1 / 3) * ratios[-1] - 1e-9
        ratios.append(record["ratio"])
        assert model.settings.calibration
        assert model.settings.vector_dim == 16
        for against in ("above", "top"):
            verdict = GateVerdict.load(laddered / name / f"verdict-{against}.json")
            tolerances = {one.metric: one.tolerance for one in verdict.metrics}
            assert tolerances["ndcg@10"] == 0.9
            # What repair left and what teaching made of it are two chances.
            assert verdict.confidence == pytest.approx(0.975)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] <= 0.6
    assert not list(laddered.glob(".scratch/*"))


def test_every_rung_predicts_and_loads_without_anything_of_ours(
    laddered: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "said = model(torch.arange(1, 9)[None]).logits\n"
        "assert torch.isfinite(said).all()\n"
        "ours = {'promptify', 'foundation', 'retrieval', 'distill', 'decant'}\n"
        "assert not ours & set(sys.modules), ours & set(sys.modules)\n"
        "print(said[0, -1, :4].tolist())\n"
    )
    name = rungs(laddered)[-1]
    folder = RunLayout(laddered).model(name)
    found = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    import torch

    wanted = Foundation.from_pretrained(folder).decoder(torch.arange(1, 9)[None]).logits
    np.testing.assert_allclose(
        json.loads(found.stdout), wanted[0, -1, :4].tolist(), rtol=1e-4, atol=1e-5
    )
    for one in rungs(laddered):
        predictions = Recommender.load(laddered, model=one).predict_user("member-00001", k=3)
        assert len(predictions) == 3


def test_the_lowest_accepted_rung_serves_from_an_index_of_its_own(laddered: Path) -> None:
    layout = RunLayout(laddered)
    accepted = [n for n in rungs(laddered) if rung_record(layout, n)["accepted"]]
    served = accepted[-1] if accepted else FOUNDATION
    assert layout.served() == served
    if accepted:
        assert (laddered / "index" / "items").exists()
    assert len(Recommender.load(laddered).predict_user("member-00001", k=3)) == 3


def test_the_page_shows_every_rung_with_its_verdicts(laddered: Path) -> None:
    html = (laddered / "ladder.html").read_text()
    for name in rungs(laddered):
        assert f"The gate: {name} against" in html
    assert "The gate rests on jobs alone: what is lost on people is not measured." in html
    assert ladder_report._of_one_task(["jobs"]) == []
    for plot in ("size", "latency", "rung"):
        assert (laddered / "plots" / f"ladder-quality-by-{plot}.png").stat().st_size > 5000
    assert html.count("<svg") == 3
    content = json.loads((laddered / "ladder.json").read_text())
    assert [one["name"] for one in content["rungs"]] == rungs(laddered)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("rung-*/model/*.safetensors"))
    }


def test_given_again_it_runs_nothing(laddered: Path, top_run: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it ran again")

    before = weights(laddered)
    monkeypatch.setattr(steps.Ladder, "step_down", refuse)
    descend(top_run, config=lenient(top_run), out=laddered, timed_requests=3)
    assert weights(laddered) == before


@pytest.mark.parametrize(
    ("timed_requests", "changed"),
    [
        (4, set()),
        (3, {"decant.judging"}),
        (3, {"decant.measure"}),
        (3, {"decant.on_test"}),
        (3, {"decant.on_validation"}),
    ],
)
def test_a_verdict_of_fewer_timings_or_other_code_is_not_taken_for_one_of_now(
    laddered: Path,
    top_run: Path,
    tmp_path: Path,
    monkeypatch,
    changed_code: set[str],
    timed_requests: int,
    changed: set[str],
) -> None:
    class SteppedDownError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise SteppedDownError

    out = tmp_path / "run"
    shutil.copytree(laddered, out)
    changed_code |= changed
    monkeypatch.setattr(steps.Ladder, "step_down", refuse)
    with pytest.raises(SteppedDownError):
        descend(top_run, config=lenient(top_run), out=out, timed_requests=timed_requests)


def test_nobody_else_writes_to_the_run_until_its_report_is_there(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out, refused = tmp_path / "run", []
    shutil.copytree(laddered, out)
    recipe = json.loads((out / "recipe.json").read_text())

    def meanwhile(function):
        def call(*arguments, **options):
            with pytest.raises(ValueError, match="another process is writing to this run"):
                Stages(out, recipe=recipe)
            refused.append(function.__name__)
            return function(*arguments, **options)

        return call

    for name in ("drop_rungs", "sign_waivers", "index_if_stale", "write_ladder_report"):
        monkeypatch.setattr(ladders, name, meanwhile(getattr(ladders, name)))
    descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    last = ["drop_rungs", "sign_waivers", "index_if_stale", "write_ladder_report"]
    assert refused == ["index_if_stale"] * len(rungs(out)) + last
    Stages(out, recipe=recipe).close()


def test_one_that_goes_further_down_keeps_the_rungs_above(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(laddered, out)
    from_above: list[int] = []
    step_down = steps.Ladder.step_down

    def counted(ladder, above, **options):
        from_above.append(above.num_parameters())
        return step_down(ladder, above, **options)

    monkeypatch.setattr(steps.Ladder, "step_down", counted)
    descend(top_run, config=lenient(top_run, to=0.5), out=out, timed_requests=3)
    # A third of the top is not so much that it comes to either end; what is below may.
    sizes = [rung_record(RunLayout(out), name)["parameters"] for name in rungs(out)]
    assert from_above == sizes[:-1]
    assert sizes[-1] <= 0.5 * load_model(RunLayout(out).model("foundation")).num_parameters()
    kept = "rung-1/model/model.safetensors"
    assert (out / kept).read_bytes() == (laddered / kept).read_bytes()

    fresh = tmp_path / "fresh"
    descend(top_run, config=lenient(top_run, to=0.5), out=fresh, timed_requests=3)
    assert weights(fresh) == weights(out)


def serving_copy(laddered: Path, out: Path) -> None:
    """A copy in which the lowest rung serves, whatever the gate said of it."""
    shutil.copytree(laddered, out)
    for name in rungs(out):
        record = rung_record(RunLayout(out), name) | {"accepted": True}
        (out / name / "rung.json").write_text(json.dumps(record))
    index_again(RunLayout(out))


def no_step_passes(*_: object, **__: object) -> steps.Rung:
    failed = steps.Attempt(step=0.3, shape=None, status="fail", num_targets=0)
    return steps.Rung(folder=None, attempts=(failed,), above=None, top=None)


def test_what_a_ladder_goes_down_from_is_copied_onto_the_disk(tmp_path: Path, not_synced) -> None:
    run, out = tmp_path / "run", tmp_path / "ladder"
    for stage in (DATA, PROMPTER, FOUNDATION):
        (run / stage).mkdir(parents=True)
        (run / stage / "stage.json").write_text("{}")
    (run / "recipe.json").write_text("{}")
    ladders._copy_run(run, out)
    assert not_synced(out) == []


def test_another_that_copies_to_the_same_folder_takes_nothing_from_it(
    tmp_path: Path, monkeypatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "ladder"
    for stage in (DATA, PROMPTER, FOUNDATION):
        (run / stage).mkdir(parents=True)
        (run / stage / "stage.json").write_text("{}")
    (run / "recipe.json").write_text("{}")
    copied: list[str] = []
    plain = shutil.copytree

    def copytree(source: Path, target: Path) -> None:
        copied.append(source.name)
        if len(copied) == 4:
            raise KeyboardInterrupt
        plain(source, target)
        if len(copied) == 3:
            with pytest.raises(KeyboardInterrupt):
                ladders._copy_run(run, out)

    monkeypatch.setattr(shutil, "copytree", copytree)
    ladders._copy_run(run, out)
    assert copied == [DATA, PROMPTER, FOUNDATION, DATA]
    assert all((out / stage / "stage.json").exists() for stage in copied)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ladder", "run"]


def test_what_serves_after_another_ladder_is_what_is_indexed(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    serving_copy(laddered, out)
    monkeypatch.setattr(steps.Ladder, "step_down", no_step_passes)
    descend(top_run, config=lenient(top_run, max_loss=0.0001), out=out, timed_requests=3)
    assert rungs(out) == []
    assert RunLayout(out).served() == FOUNDATION
    assert len(Recommender.load(out).predict_user("member-00001", k=3)) == 3


@pytest.mark.usefixtures("few_bits_agree")
def test_a_rung_of_few_bits_stays_while_what_it_was_made_of_does(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    serving_copy(laddered, out)
    given = lenient(out)
    monkeypatch.setattr(quantising, "ladder_config", lambda *_, **__: given)
    name = quantising.quantise(out, max_loss=0.9, timed_requests=3).name
    assert name == f"rung-{len(rungs(laddered)) + 1}"
    serves = RunLayout(out).served()
    descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert rungs(out) == [*rungs(laddered), name]
    assert RunLayout(out).served() == serves
    assert len(Recommender.load(out).predict_user("member-00001", k=3)) == 3
    monkeypatch.setattr(steps.Ladder, "step_down", no_step_passes)
    descend(top_run, config=lenient(top_run, max_loss=0.0001), out=out, timed_requests=3)
    assert rungs(out) == []


@pytest.mark.usefixtures("few_bits_agree")
def test_a_first_ladder_takes_no_number_of_a_rung_of_few_bits(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(top_run, out)
    given = lenient(out)
    monkeypatch.setattr(quantising, "ladder_config", lambda *_, **__: given)
    assert quantising.quantise(out, max_loss=0.9, timed_requests=3).name == "rung-2"
    before = weights(out)
    for again in (False, True):
        if again:
            monkeypatch.setattr(steps.Ladder, "step_down", no_step_passes)
        descend(out, config=lenient(out, to=0.9), timed_requests=3)
        assert rungs(out) == ["rung-1", "rung-2", "rung-3"]
        assert {name: weights(out)[name] for name in before} == before
        layout = RunLayout(out)
        assert rung_record(layout, "rung-2")["weights"] == "int8"
        assert rung_record(layout, "rung-3")["above"] == FOUNDATION
        [told] = json.loads((out / "ladder.json").read_text())["rungs"]
        assert told["name"] == "rung-3"


# A ladder is half a minute: two of the places are tried each time, all of them with -m slow.
KILLED_AT = (
    pytest.param("repair", marks=pytest.mark.slow),
    "distil",
    pytest.param("settle", marks=pytest.mark.slow),
    "measure",
)


@pytest.mark.parametrize("where", KILLED_AT)
def test_killed_anywhere_it_ends_with_the_same_ladder(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch, where: str
) -> None:
    out = tmp_path / "run"
    calls: list[int] = []

    def killed_once(function, at):
        def call(*arguments, **options):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if where == "repair":
            patch.setattr(steps, "repair", killed_once(steps.repair, 2))
        elif where == "distil":
            # In the middle of the second rung's training, of three steps as the first's.
            patch.setattr(Distillation, "forward", killed_once(Distillation.forward, 5))
        elif where == "settle":
            patch.setattr(ladders, "fit_on_validation", killed_once(ladders.fit_on_validation, 3))
        else:
            patch.setattr(steps, "verdict", killed_once(steps.verdict, 3))
        with pytest.raises(KeyboardInterrupt):
            descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert weights(out) != weights(laddered)
    descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert weights(out) == weights(laddered)


def test_the_run_serves_while_a_ladder_goes_down_and_after_it_was_killed(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(top_run, out)
    judged, step_down = steps.verdict, steps.Ladder.step_down

    def passes(*given, **options) -> GateVerdict:
        found = judged(*given, **options)
        metrics = tuple(replace(one, status="pass") for one in found.metrics)
        return replace(found, status="pass", metrics=metrics)

    def serves() -> str:
        assert len(Recommender.load(out).predict_user("member-00001", k=3)) == 3
        return RunLayout(out).served()

    def killed_at_the_second(ladder, above, **options) -> steps.Rung:
        if above is not ladder.top:
            assert serves() == "rung-2"
            raise KeyboardInterrupt
        return step_down(ladder, above, **options)

    def killed_as_it_embeds(*_: object, **__: object) -> None:
        assert serves() == "rung-1"
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "verdict", passes)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build_index", killed_as_it_embeds)
        with pytest.raises(KeyboardInterrupt):
            descend(out, config=lenient(out), timed_requests=3)
    assert serves() == "rung-1"
    monkeypatch.setattr(steps.Ladder, "step_down", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        descend(out, config=lenient(out), timed_requests=3)
    assert serves() == "rung-2"


def test_a_rung_is_taught_by_its_teacher_alone_unless_the_data_is_asked_for(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    weights: list[set[float]] = []
    dropped: list[float] = []

    def taught(student: Foundation, *_: object, config, **__: object):
        weights.append(set(config.loss_weights.values()))
        dropped.append(student.input_dropout.p)
        raise KeyboardInterrupt

    monkeypatch.setattr(rung_teaching, "distil", taught)
    for share in (0.0, 1.0):
        config = lenient(top_run, data_weight=share)
        with pytest.raises(KeyboardInterrupt):
            descend(top_run, config=config, out=tmp_path / str(share), timed_requests=3)
    assert weights == [{0.0}, set(config.fit.loss_weights.values())]
    # Either way it reads its inputs whole; a training of its own would drop some.
    assert dropped == [0.0, 0.0]
    assert load_model(RunLayout(top_run).model(FOUNDATION)).input_dropout.p > 0


def test_no_two_rungs_read_the_same_part_of_the_data(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    read: list[list[int]] = []
    distil = rung_teaching.distil

    def seen(student: Foundation, teacher: Foundation, book, split, *, config, **options):
        first = TrainingPlan(book, split.train, config)[0]
        read.append(first["ids_RT"].flatten().tolist())
        return distil(student, teacher, book, split, config=config, **options)

    monkeypatch.setattr(rung_teaching, "distil", seen)
    out = tmp_path / "run"
    descend(top_run, config=lenient(top_run, repair=False), out=out, timed_requests=3)
    assert len(read) == len(rungs(out)) >= 2
    assert read[0] != read[1]


def test_a_rung_that_follows_its_teacher_alone_learns_slowly(top_run: Path) -> None:
    own = recipe_of(top_run).rung.fit
    follows = ladder_config(top_run).fit
    assert follows.learning_rate == ladders.FOLLOWING_RATE < own.learning_rate
    assert follows.table_rate == 1.0 < own.table_rate
    # No validation chooses among weights on the way, which the gate then looks at.
    assert follows.evaluate_steps == 0 < own.evaluate_steps
    changed = ("learning_rate", "table_rate", "evaluate_steps", "patience")
    assert replace(follows, **{name: getattr(own, name) for name in changed}) == own
    for changes in ({"data_weight": 0.5}, {"teacher": None}):
        assert ladder_config(top_run, **changes).fit == own


@pytest.mark.parametrize(
    ("repaired", "taught", "is_taught"),
    [
        ("pass", "not made", False),
        ("fail", "pass", True),
        ("undecided", "undecided", True),
        ("undecided", "fail", False),
        ("fail", "fail", None),
    ],
)
def test_what_is_taken_of_a_repaired_and_a_taught_model(
    top_run: Path,
    tmp_path: Path,
    monkeypatch,
    repaired: str,
    taught: str,
    is_taught: bool | None,
) -> None:
    statuses = {"repaired": repaired, "taught": taught}
    asked: list[str] = []

    def judge(self, above: Foundation, folder: Path) -> dict[str, object]:
        asked.append(folder.name)
        told = {"measured": {}, "p99_ms": {"rung": None}}
        return {"status": statuses[folder.name], "failed": [], "num_targets": 9, **told}

    def made(self, above: Foundation, folder: Path) -> tuple[float, Path]:
        return 0.0, folder / "repaired"

    def teach(self, above: Foundation, folder: Path) -> tuple[float, Path]:
        (folder / "taught").mkdir(parents=True)
        (folder / "taught" / "history.json").write_text("{}")
        return 0.3, folder / "taught"

    monkeypatch.setattr(steps.Ladder, "judge", judge)
    monkeypatch.setattr(steps.Ladder, "_start", lambda *_, **__: steps.Shape.parse("1x64x1x32"))
    monkeypatch.setattr(steps.Ladder, "_repaired", made)
    monkeypatch.setattr(steps.Ladder, "_taught", teach)
    monkeypatch.setattr(steps.GateVerdict, "load", lambda path: None)
    ladder, top = ladder_of(top_run, num_halvings=0)
    rung = ladder.step_down(top, scratch=tmp_path)
    assert asked == ["repaired", "taught"][: 1 if repaired == "pass" else 2]
    if is_taught is None:
        assert rung.folder is None
    else:
        assert rung.folder == tmp_path / "attempt-1" / ("taught" if is_taught else "repaired") / (
            "model"
        )
        assert rung.attempts[-1].epochs == (0.3 if is_taught else 0.0)


def test_the_gate_may_rest_on_some_of_the_people(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    settled: list[list[int]] = []
    settle = ladders.fit_on_validation

    def watched(model, book, targets, **options):
        settled.append(targets.first_event.tolist())
        assert options["requests"] == recipe_of(top_run).fitting_requests
        return settle(model, book, targets, **options)

    monkeypatch.setattr(ladders, "fit_on_validation", watched)
    book, split = ladders.load_book(RunLayout(top_run))
    half = len(np.unique(split.test.user)) // 2
    config = lenient(top_run, gate_people=half, to=0.8)
    descend(top_run, config=config, out=out, timed_requests=3)
    layout = RunLayout(out)
    some = config.asked(split)
    assert (replace(config, seed=9).asked(split).test.user == some.test.user).all()
    assert len(np.unique(some.test.user)) == half
    top = load_model(layout.model(FOUNDATION))
    alone = steps.Ladder(top, book, split, config=config, hands=None)
    assert (alone.split.valid.user == some.valid.user).all()
    # Calibrated on what the gate judges, all of it.
    assert settled
    assert all(one == some.valid.first_event.tolist() for one in settled)
    record = rung_record(layout, "rung-1")
    assert record["num_targets"] == len(some.valid) < len(split.valid)
    assert 0 < record["test"]["ndcg@10"]["n"] <= len(some.test) < len(split.test)
    with pytest.raises(ValueError, match="gate_people=0 must be at least 1, or None for all"):
        LadderConfig(gate_people=0)


def test_a_step_that_was_halved_grows_again_once_one_passes_at_once(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    judge = steps.Ladder.judge

    def fails_the_first(self, above, folder: Path):
        judged = judge(self, above, folder)
        if above is self.top and folder.parent.name == "attempt-1":
            judged = {**judged, "status": "fail", "failed": ["ece"]}
        return judged

    monkeypatch.setattr(steps.Ladder, "judge", fails_the_first)
    config = lenient(top_run, max_step=0.3)
    descend(top_run, config=config, out=tmp_path / "run", timed_requests=3)
    layout = RunLayout(tmp_path / "run")
    taken = [rung_record(layout, name)["step"] for name in rungs(tmp_path / "run")]
    assert taken[:3] == [0.15, 0.15, 0.3]
    # The step that failed is in the plots, as the gate saw it.
    records = json.loads((tmp_path / "run" / "ladder.json").read_text())["rungs"]
    rows = [
        TableRow(model=name, params=10 * (9 - place), ms_per_request=1.0, ndcg_at_10=0.1, auc=0.6)
        for place, name in enumerate([FOUNDATION, *rungs(tmp_path / "run")])
    ]
    for size in ("parameters", "latency_ms", "place"):
        points = ladder_report._points(records, rows, [], size=size)
        crosses = [point for point in points if point.status == "fail"]
        assert [point.metric for point in crosses] == ["NDCG@10, gate", "AUC, gate"]
        assert all(point.value > 0 for point in crosses)
        if size == "parameters":
            above, below = (records[0]["attempts"][place]["parameters"] for place in (0, 1))
            assert crosses[0].params == above < below == records[0]["parameters"]
        if size == "place":
            assert crosses[0].params == 1
    lost = json.loads((tmp_path / "run" / "ladder.json").read_text())["failed"]
    below = ladder_report._points(records, rows, lost, size="place")
    assert {point.params for point in below if point.status == "fail"} <= {1, len(records) + 1}


def test_a_smaller_step_to_the_shape_that_failed_is_not_taken_again(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    next_shape, keep, judge = steps.next_shape, steps.keep, steps.Ladder.judge
    found, kept = [], 0

    def coarse(decoder, importance, *, step, **options):
        # Of a third and of a sixth the same.
        step = 0.32 if step > 0.1 else step
        found.append(next_shape(decoder, importance, step=step, **options))
        return found[-1]

    def counted(*arguments):
        nonlocal kept
        kept += 1
        return keep(*arguments)

    def fails_the_first(self, above, folder: Path):
        judged = judge(self, above, folder)
        first = folder.parent.name == "attempt-1"
        return {**judged, "status": "fail", "failed": ["ece"]} if first else judged

    monkeypatch.setattr(steps, "next_shape", coarse)
    monkeypatch.setattr(steps, "keep", counted)
    monkeypatch.setattr(steps.Ladder, "judge", fails_the_first)
    ladder, top = ladder_of(top_run, max_step=0.32)
    rung = ladder.step_down(top, scratch=tmp_path)
    first, second, third = rung.attempts
    assert first.shape == second.shape == found[0] != third.shape
    assert (first.step, second.step, third.step) == (0.32, 0.16, 0.08)
    assert (second.status, second.failed) == ("fail", ("ece",))
    assert second.measured == first.measured
    assert kept == 2
    # Killed here, the same call finds the same.
    assert ladder.step_down(top, scratch=tmp_path).attempts == rung.attempts
    assert kept == 2


def test_it_ends_at_the_first_rung_within_the_time(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    def descended(p99_ms: float, status: str = "pass") -> tuple[Path, str]:
        out = tmp_path / f"{p99_ms:g}-{status}"
        shutil.copytree(laddered, out)
        for place, name in enumerate(rungs(out)):
            record = rung_record(RunLayout(out), name)
            assert record["p99_ms"]["rung"] >= record["latency_ms"]["rung"] > 0
            record["p99_ms"]["rung"] = 40.0 / 2**place
            record["status"] = status
            (out / name / "rung.json").write_text(json.dumps(record))
        config = lenient(top_run, p99_ms=p99_ms)
        return out, descend(top_run, config=config, out=out, timed_requests=3).ended

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a rung is made again, or the top is timed again")

    monkeypatch.setattr(ladders, "_FEWEST_FOR_P99", 3)
    monkeypatch.setattr(steps.Ladder, "step_down", refuse)
    monkeypatch.setattr(ladders.Judge, "__call__", refuse)
    out, ended = descended(25.0)
    assert rungs(out) == ["rung-1", "rung-2"]
    assert ended == "rung-2 is within the time: one request in a hundred takes 20.0 ms or longer"
    assert "p99 20.0 ms" in (out / "ladder.html").read_text()
    assert descended(25.0, "undecided")[1] == (
        f"{ended}; of it the gate is undecided, and a larger one serves without a waiver"
    )
    out, ended = descended(1.0)
    assert rungs(out) == rungs(laddered)
    assert "is at the end that was asked for, and not within 1 ms" in ended


def test_a_top_within_the_time_stays(top_run: Path, tmp_path: Path, monkeypatch) -> None:
    def at_once(self, models, targets):
        return {name: Measurements(p99_ms=4.0) for name in models}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a rung is made")

    monkeypatch.setattr(ladders.Judge, "__call__", at_once)
    monkeypatch.setattr(steps.Ladder, "step_down", refuse)
    config = lenient(top_run, p99_ms=5.0)
    done = descend(top_run, config=config, out=tmp_path / "run", timed_requests=100)
    assert done.ended.startswith("foundation is within the time: ")
    with pytest.raises(BadInput, match="timed_requests=99 must be at least 100 for p99_ms=5"):
        descend(top_run, config=config, out=tmp_path / "few", timed_requests=99)
    assert not (tmp_path / "few").exists()
    with pytest.raises(ValueError, match="p99_ms=0 must be above 0"):
        LadderConfig(p99_ms=0)
    with pytest.raises(ValueError, match="p99_ms=nan must be above 0"):
        LadderConfig(p99_ms=float("nan"))


def test_a_step_that_fails_is_halved_until_none_is_left(top_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = lenient(top_run, max_loss=0.0, max_loss_vs_top=0.0, num_halvings=1, max_step=0.3)
    # Untaught and unrepaired, a smaller model is a worse one.
    config = replace(config, repair=False, fit=replace(config.fit, learning_rate=1e-9))
    done = descend(top_run, config=config, out=out, timed_requests=3)
    names = rungs(out)
    assert f"below {names[-1] if names else FOUNDATION} no step passes (tried" in done.ended
    assert "15.0 %" in done.ended or "no part is that small" in done.ended
    if "no part" not in done.ended:
        assert any(f"by {metric}" in done.ended for metric in ("auc", "ece", "ndcg@10"))
    layout = RunLayout(out)
    accepted = [name for name in names if rung_record(layout, name)["accepted"]]
    assert layout.served() == (accepted[-1] if accepted else FOUNDATION)
    assert (out / "ladder.html").exists()


def undecided_copy(laddered: Path, out: Path) -> str:
    """A copy whose last rung is undecided in AUC against the one above, and its name."""
    shutil.copytree(laddered, out)
    layout, name = RunLayout(out), rungs(out)[-1]
    path = out / name / "verdict-above.json"
    content = json.loads(path.read_text())
    for one in content["metrics"]:
        undecided = one["metric"] == "auc"
        one["status"] = "undecided" if undecided else "pass"
        one["loss"], one["bound"] = (0.2, 0.5) if undecided else (0.0, 0.0)
    content["status"] = "undecided"
    path.write_text(json.dumps(content))
    record = rung_record(layout, name) | {"accepted": False, "status": "undecided"}
    (out / name / "rung.json").write_text(json.dumps(record))
    top = json.loads((out / name / "verdict-top.json").read_text())
    for one in top["metrics"]:
        one["status"] = "pass"
    (out / name / "verdict-top.json").write_text(json.dumps(top))
    return name


def sign(run: Path, name: str, **changes) -> None:
    """Let the rung of `undecided_copy` through."""
    waiver = {
        "rung": name,
        "against": "above",
        "metric": "auc",
        "loss": 0.5,
        "reason": "few people",
        "bought": "half the size",
    }
    (run / "waivers.json").write_text(json.dumps([waiver | changes]))


def test_a_waiver_is_for_the_weights_that_it_was_signed_for(laddered: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    name = undecided_copy(laddered, out)
    layout, path = RunLayout(out), out / "waivers.json"
    model, record = layout.model(name), out / name / "rung.json"
    unsigned = record.read_text()
    sign(out, name, reason="few people, häufig")
    ladders.sign_waivers(layout)
    assert layout.is_accepted(name)
    [noted] = json.loads(path.read_text())
    assert noted.pop("weights") == weights_hash(model)
    assert noted["reason"] == "few people, häufig"
    # Another ladder makes another rung under this name, which its gate leaves undecided too.
    shutil.rmtree(model)
    shutil.copytree(layout.model(FOUNDATION), model)
    record.write_text(unsigned)
    as_signed = path.read_bytes()
    with pytest.raises(BadInput, match=f"waiver 1: signed for {name} when it had other weights"):
        ladders.sign_waivers(layout)
    assert not layout.is_accepted(name)
    assert path.read_bytes() == as_signed
    # Signed again.
    path.write_text(json.dumps([noted]))
    ladders.sign_waivers(layout)
    assert layout.is_accepted(name)


def test_a_waiver_that_cannot_be_is_refused_before_a_rung_is_made(
    top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a rung is made")

    out = tmp_path / "run"
    shutil.copytree(top_run, out)
    monkeypatch.setattr(steps.Ladder, "step_down", refuse)
    monkeypatch.setattr(quantising, "to_int8", refuse)
    for content, says in (
        ("[", "is not JSON"),
        ("{}", "must be a list of objects"),
        ('[{"rung": "rung-2", "against": "above"}]', "waiver 1: .*metric"),
    ):
        (out / "waivers.json").write_text(content)
        with pytest.raises(BadInput, match=says):
            descend(out, config=lenient(out), timed_requests=3)
        with pytest.raises(BadInput, match=says):
            quantising.quantise(out, timed_requests=3)
    sign(out, "rung-2", reason="")
    with pytest.raises(BadInput, match="reason is empty"):
        descend(out, config=lenient(out), timed_requests=3)


def test_a_waiver_of_a_rung_that_is_not_made_leaves_the_report(
    laddered: Path, top_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(laddered, out)
    (out / "ladder.html").unlink()
    sign(out, "rung-99")
    with pytest.raises(BadInput, match="rung is 'rung-99'"):
        descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert "The gate: rung-1 against" in (out / "ladder.html").read_text()


def test_a_waiver_lets_an_undecided_rung_through(
    laddered: Path, top_run: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    name = undecided_copy(laddered, out)
    layout, path = RunLayout(out), out / name / "verdict-above.json"
    assert layout.served() != name

    def signed(**changes) -> None:
        sign(out, name, **changes)

    for changes, says in (
        ({"rung": "rung-99"}, "rung is 'rung-99'; name one of rung-1"),
        ({"against": "below"}, "against 'below'; name a rung, and 'above' or 'top'"),
        ({"loss": 0.1}, "may have lost 0.5"),
        ({"metric": "ndcg@10"}, "not undecided"),
        ({"reason": " "}, "reason is empty"),
        ({"reason": None}, "reason is empty"),
        ({"bought": 7}, "bought is 7, no text"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss": "0.5"}, "loss is '0.5'"),
        ({"loss": True}, "loss is True"),
        ({"rung": [name]}, r"rung is \['rung-"),
        ({"metric": ["auc"]}, r"metric is \['auc'\], no text"),
    ):
        signed(**changes)
        with pytest.raises(ValueError, match=says):
            descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    signed()
    for _ in range(2):  # signed once, it stays signed
        done = descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
        assert layout.served() == name
    assert f"{name}: waived" in done.table
    html = (out / "ladder.html").read_text()
    assert "few people" in html
    assert "half the size" in html
    # What the file says now is what holds: words that are mended, and a waiver that is taken back.
    signed(reason="few people yet")
    descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert layout.served() == name
    assert [one.reason for one in GateVerdict.load(path).waivers] == ["few people yet"]
    (out / "waivers.json").write_text("[]")
    descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert layout.served() != name
    signed()
    descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    (out / "waivers.json").unlink()
    done = descend(top_run, config=lenient(top_run), out=out, timed_requests=3)
    assert layout.served() != name
    assert f"{name}: undecided" in done.table


def unhurried(judge):
    """The judge, to whom all models are as fast."""

    class Unhurried(judge):
        def __call__(self, models, targets):
            found = super().__call__(models, targets)
            return {name: replace(one, latency_ms=1.0) for name, one in found.items()}

    return Unhurried


def test_in_the_run_s_own_folder_it_goes_on_after_the_run_s_own_rung(
    top_run: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(top_run, folder)
    own = (folder / "rung-1" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(ladders, "Judge", unhurried(ladders.Judge))
    options = {
        "--to": 0.8,
        "--max-loss": 0.9,
        "--epochs-per-rung": 0.3,
        "--timed-requests": 3,
        "--gate-people": 9,
    }
    main(["ladder", str(folder), *[str(part) for pair in options.items() for part in pair]])
    said = capsys.readouterr().out
    assert "rung-2" in said
    assert said.rstrip().endswith("ladder.html")
    assert f"{RunLayout(folder).served()} serves.\n" in said
    assert rungs(folder)[:2] == ["rung-1", "rung-2"]
    assert (folder / "rung-1" / "model" / "model.safetensors").read_bytes() == own
    record = rung_record(RunLayout(folder), "rung-2")
    assert record["above"] == FOUNDATION
    _, split = ladders.load_book(RunLayout(folder))
    assert record["num_targets"] == len(fewer_people(split, 9).valid)


def test_no_model_is_read_twice_on_the_same_targets(top_run: Path, tmp_path: Path) -> None:
    layout = RunLayout(top_run)
    book, split = ladders.load_book(layout)
    top, few = load_model(layout.model(FOUNDATION)), split.valid[:8]
    remembered = Remembered()
    first = remembered(top, book, few)
    # Saved, loaded and calibrated anew it says the same.
    top.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    again.settings = replace(again.settings, calibration=(Calibration(temperature=2.0),) * 2)
    assert remembered(again, book, split.valid[:8]) is first
    assert remembered(top, book, split.valid[:7]) is not first
    assert remembered(top, book, few, task=1) is not first
    with torch.no_grad():
        again.person_head.bias += 1.0
    other = remembered(again, book, few)
    plain = predict_targets(again, book, few)
    assert other is not first
    np.testing.assert_array_equal(other.rank, plain.rank)
    np.testing.assert_array_equal(other.action_log_probs, plain.action_log_probs)


def test_minutes_become_epochs_once(top_run: Path, tmp_path: Path, monkeypatch) -> None:
    """What was timed is kept: a rung that is cut short is taught as long as it would have been."""
    out = tmp_path / "run"
    config = lenient(top_run, minutes_per_rung=0.02, to=0.8)
    kept: list[float] = []
    timed = rung_teaching.RungTeaching.affordable_epochs

    def counted(self, *arguments, **options):
        kept.append(timed(self, *arguments, **options))
        return kept[-1]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rung_teaching.RungTeaching, "affordable_epochs", counted)
    with monkeypatch.context() as patch:
        patch.setattr(ladders, "fit_on_validation", killed)
        with pytest.raises(KeyboardInterrupt):
            descend(top_run, config=config, out=out, timed_requests=3)
    descend(top_run, config=config, out=out, timed_requests=3)
    record = rung_record(RunLayout(out), "rung-1")
    assert record["attempts"][0]["epochs"] == kept[0]
    assert 0 < kept[0] < 100
    num_attempts = sum(len(rung_record(RunLayout(out), n)["attempts"]) for n in rungs(out))
    assert len(kept) == num_attempts


def test_numbers_that_cannot_be_are_refused_in_a_line(
    top_run: Path, tmp_path: Path, capsys
) -> None:
    for arguments, says in (
        (["--to", "1.5"], "LadderConfig.to=1.5 must lie between 0 and 1"),
        (["--max-loss", "-1"], "LadderConfig.max_loss=-1.0 must not be negative"),
        (["--minutes-per-rung", "0"], "LadderConfig.minutes_per_rung=0.0 must be above 0"),
        (["--epochs-per-rung", "0"], "epochs=0.0"),
        (["--timed-requests", "0"], "timed_requests=0 must be at least 1"),
        (["--timed-requests", "-1"], "timed_requests=-1 must be at least 1"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["ladder", str(top_run), *arguments])
        assert leaving.value.code == 2
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ladder", str(tmp_path)])
    assert "is not a run folder" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds something else than a ladder"):
        descend(top_run, config=lenient(top_run), out=other)
