import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from decant import concluding, continuing, evaluation, making, on_validation, pipeline, taught
from decant.concluding import Finished, told_by_baselines, told_by_gate
from decant.gate_tables import in_words
from decant.layout import (
    CLICK_TEACHER,
    FOUNDATION,
    POLICY_TEACHER,
    PROMPTER,
    RUNG,
    STUDENT,
    RunLayout,
)
from decant.pipeline import Job, index_again, run
from decant.recipes import Recipe, recipe_of
from decant.recommender import Recommender
from decant.reporting import CURVES, _curves, _notes, _origin, write_run_report
from decant.results import COLUMNS, read_csv
from decant.run_data import load_book, load_model, load_tasks
from decant.run_record import RunRecord, hardware
from decant.stages import Stages
from decant.taught import run_taught
from decant.teaching import Teaching
from distill.gate import GateVerdict, MetricVerdict
from distill.policy import Policy
from distill.student import StudentConfig
from foundation import predictions
from foundation.calibration import Calibration, calibrate_others, log_loss_of
from foundation.checkpoint import weights_hash
from foundation.evaluation import equal_mass_bins
from foundation.predictions import predict_targets
from foundation.training import FitResult
from promptify.interactions import Interactions
from promptify.prompter import PrompterConfig
from promptify.splits import Targets
from promptify.validation import BadInput

SYSTEMS = (
    "foundation",
    "rung-1",
    "system",
    "popularity",
    "last_item",
    "last_item_transitions",
    "item_knn",
    "oracle",
)


def numbers(folder: Path) -> list[tuple[str, str, str, float, float | None, int | None]]:
    """Every measured number of a run, without what differs between two equal runs."""
    return [
        (row.model, row.split, row.metric, row.value, row.ci_low, row.n)
        for row in read_csv(folder / "results.csv")
    ]


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_run_leaves_what_the_layout_promises_and_nothing_half_done(tiny_run):
    for name in (
        "data/interactions/interactions.json",
        "data/source.json",
        "prompter/prompter.json",
        "foundation/model/model.safetensors",
        "foundation/history.json",
        "rung-1/model/heads.safetensors",
        "index/items/manifest.json",
        "evaluation/verdict.json",
        "evaluation/metrics.json",
        "report.html",
        "results.csv",
        "run.json",
        "plots/training-curves.png",
        "plots/reliability.png",
        "data/oracle.safetensors",
    ):
        assert (tiny_run / name).is_file(), name
    assert list((tiny_run / "foundation" / "tensorboard").glob("events.out.tfevents.*"))
    left = [p for p in tiny_run.rglob("*") if "partial" in p.name or p.name.endswith(".old")]
    assert not left
    assert not list((tiny_run / ".scratch").glob("*"))
    assert not list(tiny_run.rglob("checkpoint-*"))


def test_the_table_has_a_row_per_system_with_the_oracle_on_top(finished):
    _, done = finished
    rows = {line.split()[0]: line.split() for line in done.table.splitlines()[2:]}
    assert tuple(rows) == SYSTEMS
    assert float(rows["oracle"][-4]) > float(rows["popularity"][-4])
    assert "." in rows["rung-1"][-2]
    assert rows["oracle"][-2] == "–"
    assert "." in rows["system"][-1]
    assert rows["popularity"][-1] == "–"


def test_the_result_rows_say_what_was_measured_on_what(tiny_run, recipe):
    with (tiny_run / "results.csv").open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    rows = read_csv(tiny_run / "results.csv")
    assert {row.model for row in rows} == set(SYSTEMS)
    assert {row.split for row in rows} <= {"leave-one-out", "leave-one-out, positive targets"}
    assert len({(row.model, row.split, row.metric) for row in rows}) == len(rows)
    record = json.loads((tiny_run / "run.json").read_text())
    for row in rows:
        assert (row.task, row.seed, row.config_hash) == ("tiny", 0, record["config_hash"])
        assert row.n
        if row.metric in ("hr@10", "ndcg@10", "auc", "ece", "ece_uncalibrated"):
            assert 0 <= row.value <= 1
        assert (row.params is None) == (row.model not in SYSTEMS[:3])
    before_and_after = {row.model for row in rows if row.metric == "ece_uncalibrated"}
    assert before_and_after == {"foundation", "rung-1", "system"}
    n = {(row.model, row.metric): row.n for row in rows if row.split == "leave-one-out"}
    assert n["system", "ndcg@10"] < n["rung-1", "ndcg@10"] == n["oracle", "ndcg@10"]
    sizes = {row.model: row.params for row in rows}
    assert sizes["rung-1"] < sizes["foundation"]


@pytest.mark.parametrize(
    ("held_out", "test", "people", "said"),
    [
        (2, 1, None, "Leave-one-out: each person's last event (or slate) is the test, the one "
                     "before validates."),
        (10, 1, None, "Leave-last-10: each person's last event (or slate) is the test, the 9 "
                      "before validate."),
        (10, 3, None, "Leave-last-10: each person's last 3 events (or slates) are the test, the 7 "
                      "before validate."),
        (10, 3, 50, "Leave-last-10: of 50 people, while the others are trained on whole, the last "
                    "3 events (or slates) are the test, the 7 before validate."),
    ],
)  # fmt: skip
def test_the_report_says_what_was_held_out(
    recipe: Recipe, held_out: int, test: int, people: int | None, said: str
) -> None:
    recipe = replace(recipe, held_out_slates=held_out, test_slates=test, held_out_people=people)
    assert _notes([], recipe, top=FOUNDATION, tasks=["jobs"])[0].startswith(said)


def test_which_of_several_surfaces_is_asked_about_is_said(
    tiny_run: Path, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    assert not any("All of this is of" in one for one in _notes([], recipe, top="x", tasks=["a"]))
    assert "All of this is of jobs, and so is the gate. Of people nothing is held out" in (
        tiny_run / "report.html"
    ).read_text("utf-8")
    tasks = load_tasks(RunLayout(tiny_run))
    split = load_book(RunLayout(tiny_run))[1]
    with caplog.at_level("INFO", logger="decant"):
        pipeline._tell_held_out(split, tasks[:1])
        assert not caplog.messages
        pipeline._tell_held_out(split, tasks)
        [told] = caplog.messages
        assert told.startswith("of jobs everybody's last slates are held out, and ")
        assert "of people nothing is held out" in told
        few = replace(split, train=split.train & (np.arange(len(split.train)) % 3 == 0))
        pipeline._tell_held_out(few, tasks)
    assert "Put the surface with the most events first under tasks:" in caplog.messages[-1]
    assert caplog.records[-1].levelname == "WARNING"


def test_a_rung_may_come_out_as_much_slower_as_a_model_than_itself(tiny_run: Path) -> None:
    verdict = GateVerdict.load(tiny_run / "evaluation" / "verdict.json")
    [latency] = [one for one in verdict.metrics if one.metric == "latency_ms"]
    assert latency.tolerance == 0.02


def test_the_report_says_how_many_events_the_task_does_not_rank(
    tiny_run: Path, recipe: Recipe
) -> None:
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    assert metrics["num_unserved"] == 0
    notes = _notes([], recipe, top=FOUNDATION, tasks=["jobs"])
    told = _notes([], recipe, top=FOUNDATION, tasks=["jobs"], num_unserved=1234)
    assert [note for note in told if note not in notes] == [
        "1,234 held-out events are on items of another kind than the task ranks: their actions are "
        "predicted, and they are no ranking targets."
    ]
    assert metrics["num_seen"] == 0
    told = _notes([], recipe, top=FOUNDATION, tasks=["jobs"], num_seen=1234)
    assert [note for note in told if note not in notes] == [
        "1,234 held-out events are on items that the history holds, with which no request is "
        "answered unless exclude_seen=False or `decant predict --include-seen` asks for them: "
        "their actions are predicted, and they are no ranking targets."
    ]


def test_a_log_in_which_people_come_back_to_things_is_warned_of(
    tiny_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book, split = load_book(RunLayout(tiny_run))
    targets = split.test
    pipeline._tell_seen(book.interactions, split)
    assert not caplog.messages
    # Histories that reach to the end of what is held out hold all of it.
    after = replace(split, test=replace(targets, history_end=targets.last_event))
    pipeline._tell_seen(book.interactions, after)
    [told] = caplog.messages
    assert told.startswith("100% of the held-out events are on items that their history holds")


def test_people_who_come_back_to_things_are_asked_alike_at_every_length(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a whole history holds is no target, however short the one that is read."""

    def of_long_histories(_: Interactions, targets: Targets) -> NDArray[np.bool_]:
        is_long = targets.history_end - targets.history_start > 5
        is_held = is_long & (targets.user % 2 == 0)
        return np.repeat(is_held, targets.last_event - targets.first_event)

    recommender = Recommender.load(tiny_run)
    split = load_book(RunLayout(tiny_run))[1]
    before = evaluation._by_history({FOUNDATION: recommender}, split.test)
    monkeypatch.setattr(predictions, "seen_in_history", of_long_histories)
    after = evaluation._by_history({FOUNDATION: recommender}, split.test)
    for points, others in ((before, after), (after, before)):
        ranked = {point["n"] for point in points if point["metric"] == "ndcg@10"}
        assert len(ranked) == 1
        assert ranked != {point["n"] for point in others if point["metric"] == "ndcg@10"}


def told_again(folder: Path, recipe: Recipe) -> str:
    """The table of a finished run whose folder was changed since."""
    record = RunRecord.start({}, seed=0).finish()
    return write_run_report(RunLayout(folder), recipe, record)


def test_a_rung_that_was_asked_less_at_another_time_is_marked(
    tiny_run: Path,
    tmp_path: Path,
    recipe: Recipe,
    drawing: Callable[[], AbstractContextManager[None]],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    layout = RunLayout(out)
    systems = json.loads((out / "evaluation" / "metrics.json").read_text())["systems"]
    [of_own] = [one for one in systems if one["model"] == RUNG]
    for number, share in ((2, 2), (3, 1)):
        shutil.copytree(layout.model(RUNG), out / f"rung-{number}" / "model")
        test = {
            name: {**found, "n": found["n"] // share} for name, found in of_own["metrics"].items()
        }
        rung = {
            "name": f"rung-{number}",
            "parameters": of_own["params"],
            "ratio": 0.5,
            "accepted": number == 2,
            "status": "undecided",
            "latency_ms": {"rung": 0.1, "above": 0.2, "top": 0.3},
            "test": test,
        }
        (out / f"rung-{number}" / "rung.json").write_text(json.dumps(rung))
    with drawing():
        table = told_again(out, recipe)
    asked = of_own["metrics"]["ndcg@10"]["n"]
    header, _, *lines = table.splitlines()
    assert header.split()[:3] == ["model", "parameters", "targets"]
    told = {line.split()[0]: line.split() for line in lines if line}
    for name, mark, n in ((RUNG, "", asked), ("rung-2", "*", asked // 2), ("rung-3", "*", asked)):
        start = [name, *mark, *told[RUNG][1:3], str(n)]
        assert told[name][: len(start)] == start
    # What `system` is of, where another serves by now, and what the marks mean.
    assert "system is of rung-1; rung-2 serves." in table
    assert "* measured by `decant ladder` or `decant quantise`" in table
    html = (out / "report.html").read_text()
    assert "rung-1 retrieves 200 and re-ranks them; rung-2 serves" in html
    assert "NDCG@10, system of rung-1" in html
    assert "calibration, rung-2" in html
    # Beside the others only what was asked of as many.
    sizes = html[html.index("Quality against size") : html.index("Quality by length")]
    assert "rung-3" in sizes
    assert "rung-2" not in sizes


def test_a_report_shows_nobody_of_anybodys_own_data(
    tiny_run: Path, tmp_path: Path, recipe: Recipe
) -> None:
    assert "Somebody with two events" in (tiny_run / "report.html").read_text()
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    told = json.loads((out / "recipe.json").read_text())
    (out / "recipe.json").write_text(json.dumps(told | {"source": {"source": "table"}}))
    table = told_again(out, recipe)
    assert "*" not in table
    html = (out / "report.html").read_text()
    assert "Somebody with" not in html
    assert "decant predict RUN --user ID" in html
    log = load_book(RunLayout(out))[0].interactions
    texts = [text for text in log.users["headline"][:] if text]
    assert texts
    assert not any(text in html for text in texts)


def test_w_is_chosen_on_as_many_requests_as_the_recipe_says(
    tiny_run: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tiny_run)
    book, split = load_book(layout)
    rung = load_model(layout.model(RUNG))
    asked: list[int] = []
    monkeypatch.setattr(
        making, "fit_on_validation", lambda *_, requests, **__: asked.append(requests)
    )
    result = FitResult(history={}, steps=1, seconds=1.0)
    few = replace(recipe, fitting_requests=7)
    making.finish_model(rung, result, book, split, tmp_path, tmp_path / "none", recipe=few)
    assert asked == [7, 7]  # Of each task.
    assert pipeline.top_inputs(few) != pipeline.top_inputs(recipe)


def test_nobody_is_ranked_whose_rank_nobody_asks_for(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tiny_run)
    book, split = load_book(layout)
    rung = load_model(layout.model(RUNG))
    ranked: list[int] = []
    rank = predictions.rank_catalogue
    monkeypatch.setattr(
        predictions,
        "rank_catalogue",
        lambda *given, seen, **more: ranked.append(len(seen)) or rank(*given, seen=seen, **more),
    )
    fit = partial(on_validation.fit_on_validation, rung, book, split.valid, task=0)
    fit(requests=10, predict=predict_targets)
    calibration, weight = rung.calibration(0), rung.rank_weight(0)
    people = len(split.valid)
    assert ranked == [people, 10] != [10, 10]
    fit(requests=10)
    assert ranked == [people, 10, 10]
    assert (rung.calibration(0), rung.rank_weight(0)) == (calibration, weight)
    fit(requests=0)
    assert ranked == [people, 10, 10]
    fit(requests=10**6)
    assert ranked == [people, 10, 10, people]
    assert rung.calibration(0) == calibration


def test_a_model_is_calibrated_on_validation_and_keeps_what_cannot_be_fitted(tiny_run):
    layout = RunLayout(tiny_run)
    book, split = load_book(layout)
    rung = load_model(layout.model(RUNG))
    fitted = rung.calibration(0), rung.rank_weight(0)
    stale = Calibration(temperature=9.0)
    rung.settings = replace(rung.settings, calibration=(stale, stale), rank_weight=(4.0, 4.0))
    for task in (0, 1):
        on_validation.fit_on_validation(rung, book, split.valid, task=task, requests=10)
    # The same as the run fitted; nobody's people were held out, so that task keeps what it had.
    assert (rung.calibration(0), rung.rank_weight(0)) == fitted
    assert (rung.calibration(1), rung.rank_weight(1)) == (stale, 4.0)
    said = predict_targets(rung, book, split.valid)
    others = calibrate_others(
        said.action_log_probs, said.action_label, said.action_user, method=fitted[0].method
    )
    before, after = (log_loss_of(p, said.action_label) for p in (said.action_log_probs, others))
    assert after <= before


def test_the_gate_judges_probabilities_as_served(tiny_run):
    metrics = json.loads((tiny_run / "evaluation" / "verdict.json").read_text())["metrics"]
    [ece] = [one for one in metrics if one["metric"] == "ece"]
    layout = RunLayout(tiny_run)
    book, split = load_book(layout)
    served = []
    for name in (FOUNDATION, RUNG):
        model = load_model(layout.model(name))
        said = predict_targets(model, book, split.valid)
        logs = calibrate_others(
            said.action_log_probs,
            said.action_label,
            said.action_user,
            method=model.calibration(0).method,
        )
        served.append(np.exp(logs[:, 0]))
    bins = equal_mass_bins((served[0] + served[1]) / 2, 15)
    for side, probability in zip(("reference", "candidate"), served, strict=True):
        gap = np.bincount(bins, (said.action_label == 0) - probability.astype(np.float64))
        assert ece[side] == pytest.approx(np.abs(gap).sum() / len(bins), abs=1e-5)


def test_the_training_curves_have_named_panels_with_a_line_per_model(tiny_run):
    curves = _curves(RunLayout(tiny_run))
    panels = [name.partition("/")[2] for name in curves]
    assert list(dict.fromkeys(panels)) == list(CURVES.values())
    assert {name.partition("/")[0] for name in curves} == {FOUNDATION, RUNG}
    assert "foundation/teacher loss, action" not in curves
    html = (tiny_run / "report.html").read_text()
    for panel in CURVES.values():
        assert f">{panel}</text>" in html


def test_metrics_are_plain_json_without_nan(tiny_run):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tiny_run / "evaluation" / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=refuse)
    points = metrics["by_history"]
    for metric in ("ndcg@10", "auc"):
        assert len({point["n"] for point in points if point["metric"] == metric}) == 1
    assert {point["bucket"] for point in points} >= {"0", "1"}


def test_a_second_call_runs_nothing_and_keeps_every_stage(tiny_run, job_of):
    before = everything(tiny_run)
    done = run(job_of(tiny_run))
    assert {stage.reason for stage in done.stages} == {"up to date"}
    after = everything(tiny_run)
    written_again = {name for name in after if before[name] != after[name]}
    assert written_again <= {
        *("report.html", "results.csv", "run.json", "recipe.json"),
        *(f"plots/{path.name}" for path in (tiny_run / "plots").iterdir()),
    }


def test_a_dry_run_writes_nothing(tiny_run, job_of, tmp_path):
    folder = tmp_path / "new"
    assert all(stage.runs for stage in run(job_of(folder), dry_run=True).stages)
    assert not folder.exists()
    before = everything(tiny_run)
    assert not any(stage.runs for stage in run(job_of(tiny_run), dry_run=True).stages)
    assert everything(tiny_run) == before


def test_another_recipe_is_refused_in_the_same_folder_and_named_by_its_path(tiny_run, job_of):
    with pytest.raises(
        ValueError, match=r"another run \(recipe\.timed_requests was 3, now 4\); choose another"
    ):
        run(job_of(tiny_run, timed_requests=4))


def test_cut_short_in_both_trainings_it_ends_with_the_same_numbers(
    tiny_run, job_of, tmp_path, monkeypatch
):
    watch = pipeline.watch
    calls: list[int] = []

    def killed_on_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return watch(*arguments)

    monkeypatch.setattr(pipeline, "watch", killed_on_the_second)
    for stage in (FOUNDATION, RUNG):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            run(job_of(tmp_path))
        [checkpoint] = (tmp_path / ".scratch").glob(f"{stage}-*/checkpoints/checkpoint-*")
        assert checkpoint.name == "checkpoint-5"
        assert not (tmp_path / stage).exists()
        # The rest of this stage, and the first validation of the next.
        calls.clear()
        monkeypatch.setattr(pipeline, "watch", watch)
        if stage == FOUNDATION:
            monkeypatch.setattr(pipeline, "_rung", _stop)
            with pytest.raises(KeyboardInterrupt):
                run(job_of(tmp_path))
            monkeypatch.undo()
            monkeypatch.setattr(pipeline, "watch", killed_on_the_second)
    done = run(job_of(tmp_path))
    assert {s.name: s.reason for s in done.stages}[RUNG] == "interrupted, resumes"
    assert numbers(tmp_path) == numbers(tiny_run)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_old_run_is_trained_on_with_new_data(tiny_run, job_of, tmp_path, monkeypatch):
    # Another market of the same names stands for newer data, in which nothing is at its old time.
    monkeypatch.setattr(continuing, "_check_times", lambda *_: None)
    other = {"size": "small", "prompter": PrompterConfig(form="text")}
    job = job_of(
        tmp_path / "new", market_seed=1, continued_from=tiny_run, timed_requests=1, **other
    )
    run(job)
    old, new = (RunLayout(folder) for folder in (tiny_run, tmp_path / "new"))
    # What it is, is what the old run made it.
    was, now = (recipe_of(one.folder) for one in (old, new))
    assert now == replace(was, timed_requests=1)
    report = (new.folder / "report.html").read_text()
    assert f"trained on from {tiny_run.name}, pruned" in report
    assert "as slot prompts" in report
    tokenizers = [(one.folder / PROMPTER / "tokenizer.json").read_bytes() for one in (old, new)]
    assert tokenizers[0] == tokenizers[1]
    exposure = [
        pipeline.load_model(one.model(FOUNDATION)).items.exposure_I.sum() for one in (old, new)
    ]
    assert exposure[1] > exposure[0]
    with pytest.raises(ValueError, match="continued"):
        run(job_of(tmp_path / "new", market_seed=1, timed_requests=1))


def test_what_is_published_names_no_folder_and_what_resumes_does(
    job_of, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, model = tmp_path / "minilm", tmp_path / "qwen"
    model.mkdir()
    told = []
    monkeypatch.setattr(Stages, "run", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "check_model", lambda *_: None)
    monkeypatch.setattr(concluding, "told_by_gate", lambda _: "")
    monkeypatch.setattr(concluding, "told_by_baselines", lambda *_: "")
    monkeypatch.setattr(pipeline, "encoder_hash", lambda _: "hash")
    monkeypatch.setattr(
        concluding, "write_run_report", lambda _, recipe, record, **__: told.append(record) or ""
    )
    named = {"size": None, "model": str(model), "text_encoder": str(encoder)}
    run(job_of(tmp_path / "run", **named))
    kept = recipe_of(tmp_path / "run")
    assert (kept.model, kept.text_encoder) == (str(model), str(encoder))
    run(job_of(tmp_path / "hub", size=None, model="Qwen/Qwen3-0.6B"))
    folder, hub = (record.config["recipe"] for record in told)
    assert (folder["model"], folder["text_encoder"]) == ("qwen", "minilm")
    assert (hub["model"], hub["text_encoder"]) == ("Qwen/Qwen3-0.6B", None)
    assert _origin(kept, None) == "trained from qwen"


def test_a_rung_stays_in_a_run_while_the_models_it_was_made_of_do(
    tiny_run, tmp_path, job_of, monkeypatch
):
    monkeypatch.setattr(concluding, "write_run_report", lambda *_, **__: "")
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    layout = RunLayout(out)
    top = weights_hash(layout.model(FOUNDATION))

    def add(name: str, made_of: dict[str, object]) -> None:
        shutil.copytree(layout.model(RUNG), out / name / "model")
        (out / name / "stage.json").write_text(json.dumps({"inputs": made_of}))
        (out / name / "rung.json").write_text(json.dumps({"accepted": True}))

    add("rung-2", {"above": top, "top": top, "ladder": {}})
    add("rung-3", {"above": top, "top": top, "weights": "int8"})
    add("rung-4", {"above": "another", "top": "another", "ladder": {}})
    add("rung-5", {"above": "another", "top": "another", "weights": "int8"})
    run(job_of(out), dry_run=True)
    assert layout.served() == "rung-5"
    assert not any(stage.runs for stage in run(job_of(out)).stages)
    assert layout.models() == [FOUNDATION, RUNG, "rung-2", "rung-3"]


def test_the_catalogue_is_indexed_again(tiny_run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_run, folder)
    before = Recommender.load(folder).index
    shutil.rmtree(folder / "index")
    assert index_again(RunLayout(folder)) == len(before)
    vector = np.ones((1, 16), np.float32)
    again = Recommender.load(folder).index
    assert again.search(vector, 5).ids.tolist() == before.search(vector, 5).ids.tolist()


def test_a_run_that_fails_before_it_made_anything_leaves_its_folder_free(tmp_path):
    def fail(out: Path, scratch: Path) -> None:
        (out / "half").touch()
        raise ValueError("bad")

    folder = tmp_path / "run"
    for recipe in ({"data": "bad"}, {"data": "worse"}):
        with pytest.raises(ValueError, match="bad"), Stages(folder, recipe=recipe) as stages:
            stages.run("data", fail, inputs={})
        assert not folder.exists()


def test_a_gain_that_may_be_a_loss_is_told_as_both() -> None:
    numbers = {"status": "undecided", "tolerance": 0.01, "reference": 0.5, "candidate": 0.5}
    lines = (
        MetricVerdict(
            metric="auc", kind="relative", loss=-0.0223, bound=0.0319, reason="", **numbers
        ),
        MetricVerdict(
            metric="ece", kind="absolute", loss=-0.002, bound=0.0119, reason="", **numbers
        ),
    )
    said = in_words(GateVerdict(status="undecided", metrics=lines, confidence=0.95))
    assert "(AUC gains 2.2 %, or loses 3.2 %, where 1.0 % is let through; " in said
    assert "error falls by .0020, or rises by .0119, where .0100 is let through)" in said


def test_the_runs_own_rung_serves_and_the_gates_word_is_told(finished, tmp_path):
    folder, done = finished
    status = json.loads((folder / "evaluation" / "verdict.json").read_text())["status"]
    said = {"pass": "lets it through", "fail": "fails it", "undecided": "is undecided"}[status]
    assert done.verdict.startswith(f"rung-1: the gate {said}")
    assert RunLayout(folder).served() == RUNG

    def told(status: str, *lower: str) -> str:
        layout = RunLayout(tmp_path / "run")
        shutil.rmtree(layout.folder, ignore_errors=True)
        for name in (FOUNDATION, RUNG, *lower):
            (layout.folder / name / "model").mkdir(parents=True)
        (layout.folder / "recipe.json").touch()
        for name in lower:
            (layout.folder / name / "rung.json").write_text('{"accepted": true}')
        numbers = {"reference": 0.5, "candidate": 0.49, "reason": ""}
        lines = [
            MetricVerdict(metric="auc", status="pass", tolerance=0.01, kind="relative", loss=0.0,
                          bound=0.001, **numbers),
            MetricVerdict(metric="ndcg@10", status=status, tolerance=0.01, kind="relative",
                          loss=0.0304, bound=0.043, **numbers),
            MetricVerdict(metric="ece", status=status, tolerance=0.005, kind="absolute",
                          loss=0.0061, bound=None, **numbers),
        ]  # fmt: skip
        (layout.folder / "evaluation").mkdir()
        judged = GateVerdict(status=status, metrics=tuple(lines), confidence=0.95)
        judged.save(layout.folder / "evaluation" / "verdict.json")
        return told_by_gate(layout)

    lost = "NDCG@10 loses 3.0 %, at most 4.3 %, where 1.0 % is let through; "
    lost += "calibration error rises by .0061 where .0050 is let through"
    serves = "It serves all the same; `decant ladder` makes rungs that serve where the gate lets "
    serves += "them through."
    assert told("fail") == f"rung-1: the gate fails it ({lost}). {serves}"
    assert told("undecided") == f"rung-1: the gate is undecided ({lost}). {serves}"
    assert told("fail", "rung-2").endswith("let through). rung-2 serves.")
    assert told("pass") == "rung-1: the gate lets it through."


def test_a_baseline_that_is_better_beyond_doubt_is_told_at_the_end(tiny_run, tmp_path, recipe):
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(tiny_run, layout.folder)
    path = layout.folder / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text())

    def told(low: float, served: str = RUNG) -> str:
        values = {
            "system": {"value": 0.285, "low": 0.237, "high": 0.333},
            "last_item_transitions": {"value": 0.445, "low": low, "high": 0.5},
            "item_knn": {"value": 0.4, "low": 0.38, "high": 0.42},
        }
        for system in metrics["systems"]:
            nothing = {"value": 0.1, "low": 0.1, "high": 0.1}
            system["metrics"]["ndcg@10"] = values.get(system["model"], nothing)
        path.write_text(json.dumps(metrics))
        for name in (RUNG, served):
            (layout.folder / name / "model").mkdir(parents=True, exist_ok=True)
        return told_by_baselines(layout, recipe)

    assert told(0.334) == (
        "What serves is behind last_item_transitions on NDCG@10 (.285 for .445, and their "
        "intervals do not overlap); train longer: --epochs 10."
    )
    assert told(0.333) == ""
    # A rung of a ladder serves, which the baselines do not stand beside.
    assert told(0.334, "rung-2") == ""
    for system in metrics["systems"]:
        del system["metrics"]["ndcg@10"]
    path.write_text(json.dumps(metrics))
    shutil.rmtree(layout.folder / "rung-2")
    assert told_by_baselines(layout, recipe) == ""


def test_a_run_ends_with_the_words_of_gate_and_baselines(tiny_run, job_of, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    monkeypatch.setattr(concluding, "told_by_gate", lambda _: "It passes.")
    for said, wanted in (("It is behind.", "It passes.\nIt is behind."), ("", "It passes.")):
        monkeypatch.setattr(concluding, "told_by_baselines", lambda *_, said=said: said)
        assert run(job_of(out)).verdict == wanted


def test_a_ladders_first_rung_is_not_lost_to_the_runs_own(tiny_run, job_of, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    layout = RunLayout(folder)
    for stage in ("index", "evaluation"):
        shutil.rmtree(folder / stage)
    top = weights_hash(layout.model(FOUNDATION))
    (folder / RUNG / "rung.json").write_text(json.dumps({"accepted": True}))
    for made, inputs in (
        ("decant ladder", {"above": top, "top": top, "ladder": {}}),
        ("decant quantise", {"above": top, "top": top, "weights": "int8"}),
    ):
        (folder / RUNG / "stage.json").write_text(json.dumps({"key": "x", "inputs": inputs}))
        before = everything(folder)
        for dry_run in (True, False):
            with pytest.raises(BadInput, match=rf"rung-1 was made by `{made}`, .* remove it"):
                run(job_of(folder), dry_run=dry_run)
        changed = {name for name, mark in everything(folder).items() if before.get(name) != mark}
        assert changed <= {"recipe.json"}
    # Of another model it hangs in the air, and the run's own takes its place.
    lost = {"key": "x", "inputs": {"above": "a", "top": "a"}, "uses": {}, "code": {}}
    (folder / RUNG / "stage.json").write_text(json.dumps(lost))
    planned = run(job_of(folder), dry_run=True)
    assert [stage.name for stage in planned.stages if stage.runs] == [RUNG, "index", "evaluation"]


def test_a_second_call_keeps_the_record_of_the_machine_that_made_the_numbers(
    tiny_run, job_of, tmp_path, monkeypatch
):
    told = []

    def write(layout, recipe, record, **_):
        told.append(record.hardware)
        record.write(layout.folder)
        return ""

    monkeypatch.setattr(concluding, "write_run_report", write)
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    path = folder / "run.json"
    made = json.loads(path.read_text()) | {"hardware": "an H100", "peak_rss_bytes": 7}
    path.write_text(json.dumps(made))
    run(job_of(folder))
    assert json.loads(path.read_text()) == made
    assert told == ["an H100"]
    # What ran since, on whatever machine, has a record of its own; and so has what lacks one.
    stage = json.loads((folder / "evaluation" / "stage.json").read_text())
    later = stage | {"finished": "2999-01-01T00:00:00+00:00"}
    for finished, text in ((later, json.dumps(made)), (stage, '{"hardware": ')):
        (folder / "evaluation" / "stage.json").write_text(json.dumps(finished))
        path.write_text(text)
        run(job_of(folder))
        assert json.loads(path.read_text())["hardware"] == hardware()


def test_a_recipe_of_another_version_is_the_same_by_its_defaults(tiny_run, job_of, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    path = folder / "recipe.json"
    kept = json.loads(path.read_text())
    older = json.loads(json.dumps(kept))
    del older["recipe"]["held_out_people"]
    del older["recipe"]["fit"]["patience"]
    path.write_text(json.dumps(older))
    assert not any(stage.runs for stage in run(job_of(folder), dry_run=True).stages)
    with pytest.raises(
        ValueError, match=r"another run \(recipe\.held_out_people was null, now 3\)"
    ):
        run(job_of(folder, held_out_people=3), dry_run=True)
    newer = json.loads(json.dumps(kept))
    newer["recipe"]["rung"]["fit"]["colour"] = "blue"
    path.write_text(json.dumps(newer))
    for call in (lambda: recipe_of(folder), lambda: run(job_of(folder), dry_run=True)):
        with pytest.raises(
            BadInput, match=r"newer version of decant: .* knows no rung\.fit\.colour"
        ):
            call()


@pytest.mark.parametrize(
    ("modules", "reruns"),
    [
        *(
            ({f"decant.{name}"}, ["evaluation"])
            for name in ("measure", "evaluation", "judging", "answering", "recommender")
        ),
        ({"decant.on_validation"}, [FOUNDATION, RUNG, "index", "evaluation"]),
        ({"decant.making"}, [FOUNDATION, RUNG, "index", "evaluation"]),
        ({"decant.report", "decant.retriever"}, []),
    ],
)
def test_other_numbers_run_again_where_code_of_ours_makes_them(
    tiny_run, job_of, changed_code, modules, reruns
):
    changed_code |= modules
    planned = run(job_of(tiny_run), dry_run=True).stages
    assert [stage.name for stage in planned if stage.runs] == reruns


def with_policy(job: Job) -> Finished:
    teaching = Teaching(policy=Policy.shipped("job_market"), student=StudentConfig(), labels=100)
    return run_taught(job, teaching)


@pytest.mark.parametrize(
    ("module", "runs", "trained"),
    [
        (pipeline, run, [FOUNDATION, RUNG, "index", "evaluation"]),
        (taught, with_policy, [CLICK_TEACHER, POLICY_TEACHER, STUDENT, "index", "evaluation"]),
    ],
    ids=["plain", "with a policy"],
)
def test_another_checkpoint_in_the_same_folder_is_trained_from(
    job_of, tmp_path, monkeypatch, module, runs, trained
):
    model = tmp_path / "qwen"
    (model / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("one")
    job = job_of(tmp_path / "run", size=None, model=str(model))
    ran: list[str] = []

    def make(self, function, out, scratch, record, *, output):
        ran.append(record.name)
        (out / "model").mkdir(parents=True, exist_ok=True)
        (out / "stage.json").write_text(json.dumps(asdict(record)))

    monkeypatch.setattr(Stages, "_execute", make)
    for name in ("check_model", "drop_rungs", "conclude"):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    runs(job)
    assert ran[-len(trained) :] == trained
    for name, again in (
        ("onnx/model.safetensors", []),
        ("notes.md", []),
        ("model.safetensors", trained),
        ("tokenizer.json", [PROMPTER, *trained]),
    ):
        ran.clear()
        (model / name).write_text("two")
        runs(job)
        assert ran == again, name
    # A finished run is up to date where the checkpoint is no more.
    shutil.rmtree(model)
    ran.clear()
    runs(job)
    assert ran == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/qwne", "--model nowhere/qwne is no folder with a model and its tokenizer"),
        ("empty", "empty holds no config.json"),
        ("pickled", "pickled holds no model.safetensors"),
    ],
)
def test_a_mistyped_model_is_refused_before_anything_is_written(
    job_of, tmp_path, name: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    model = str(tmp_path / name) if (tmp_path / name).exists() else name
    for dry_run in (True, False):
        with pytest.raises(BadInput, match=said):
            run(job_of(tmp_path / "run", size=None, model=model), dry_run=dry_run)
    assert not (tmp_path / "run").exists()
