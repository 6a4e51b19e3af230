"""A ladder in a run folder: each rung a stage of it, gated; the report says where it breaks.

    decant ladder RUN --to 0.05 --max-loss 0.01
    decant ladder RUN --p99-ms 20

Rungs are numbered after those that the run made itself, past those of few bits that stay; the first
goes down from the foundation.
Each is a whole model: `decant predict RUN --model rung-3`. The lowest that the gate let through is
what serves afterwards.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from decant.judging import Judge, Remembered, check_timed_requests
from decant.ladder_report import write_ladder_report
from decant.layout import DATA, FOUNDATION, PROMPTER, RUNG, RUNG_RECORD, RunLayout
from decant.on_test import OnTest
from decant.on_validation import fit_on_validation, watch
from decant.pipeline import index_if_stale
from decant.processes import training_device
from decant.recipes import recipe_of
from decant.run_data import (
    drop_rungs,
    is_rounded_from,
    load_book,
    load_model,
    reading,
    rung_record,
)
from decant.run_record import RunRecord
from decant.stages import Stages
from decant.waivers import read_waivers, sign_waivers
from distill.anatomy import shape_of
from distill.gate import GateVerdict
from distill.ladder import Attempt, Hands, Ladder, Rung, body_ratio, rungs_left
from distill.ladder_config import LadderConfig
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.predictions import Predictions, predict_targets
from promptify.assembly import PromptBook
from promptify.splits import Split, Targets
from promptify.validation import BadInput
from promptify.whole import whole_folder, write_whole

logger = logging.getLogger(__name__)

RECORD = "ladder.json"
CODE_OF_RUNGS = (
    "promptify",
    "foundation",
    "distill",
    "decant.judging",
    "decant.measure",
    "decant.on_test",
    "decant.on_validation",
)
"""Packages and modules that a rung, and what is said of it, hang on."""
FOLLOWING_RATE = 1e-4
"""Learning rate of a rung that follows its teacher alone, as `FitConfig.learning_rate` is meant.

A repaired model is next to its teacher, and at the rate of a training the first steps lead it away
further than the others lead it back (decision 63).
"""
_MOST_RUNGS = 60
_FEWEST_FOR_P99 = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Descended:
    """What a ladder leaves to be said.

    Attributes:
        folder: the run folder that holds it.
        table: its rungs as text.
        ended: why it ends where it does.
    """

    folder: Path
    table: str
    ended: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bottom:
    """Where a ladder ends.

    Attributes:
        made: names of its rungs.
        ended: why it ends.
        failed: steps that were tried below the last rung.
    """

    made: list[str]
    ended: str
    failed: tuple[Attempt, ...] = ()


class _NoStepPassesError(Exception):
    """Every step of a rung failed; what was tried stays in its scratch folder."""

    def __init__(self, rung: Rung) -> None:
        super().__init__("no step passes")
        self.rung = rung


def ladder_config(folder: Path, **changes: Any) -> LadderConfig:
    """The configuration of a ladder in a run folder: the schedule of the run's own rung.

    Where a rung follows its teacher alone it learns at `FOLLOWING_RATE`, and tables no faster, and
    is taught to the end: weights on the way are as good but for chance, by which validation would
    choose among them what the gate then looks at.

    Args:
        folder: a run folder.
        changes: fields of `LadderConfig`.

    Raises:
        BadInput: a field has a value that it cannot have.
    """
    recipe = recipe_of(folder)
    fit = recipe.rung.fit
    teacher = changes.get("teacher", recipe.rung.teacher)
    if teacher is not None and not changes.get("data_weight"):
        fit = replace(
            fit, learning_rate=FOLLOWING_RATE, table_rate=1.0, evaluate_steps=0, patience=0
        )
    try:
        return LadderConfig(
            **{
                "fit": fit,
                "teacher": recipe.rung.teacher,
                "seed": recipe.seed,
                **changes,
            }
        )
    except ValueError as error:
        raise BadInput(str(error)) from error


def descend(
    folder: Path,
    *,
    config: LadderConfig,
    out: Path | None = None,
    timed_requests: int = 300,
    predict: Callable[..., Predictions] = predict_targets,
) -> Descended:
    """Build a ladder below a run's foundation, or what is left of one.

    Args:
        folder: a finished run.
        config: how far, in what steps.
        out: a run folder of its own for the ladder, which starts with a copy of the run's data and
            foundation; the run's own when left out.
        timed_requests: that latency is measured on.
        predict: reads the test targets: `predict_targets`, or one that remembers.

    Raises:
        ValueError: the folder holds no finished foundation, another process writes to it, latency
            is measured on no request, or on too few to find one in a hundred, or a waiver of the
            run folder cannot be. One that does not fit the rungs is refused when they and the
            report are there.
    """
    check_timed_requests(timed_requests)
    if config.p99_ms is not None and timed_requests < _FEWEST_FOR_P99:
        raise BadInput(
            f"timed_requests={timed_requests} must be at least {_FEWEST_FOR_P99} for p99_ms="
            f"{config.p99_ms:g}: one request in a hundred is looked for."
        )
    RunLayout(folder).model(FOUNDATION)
    if out is not None:
        _copy_run(folder, out)
        folder = out
    read_waivers(folder)
    layout = RunLayout(folder)
    record = RunRecord.start({"ladder": asdict(config)}, seed=config.seed)
    with reading(folder / "recipe.json"):
        recipe = json.loads((folder / "recipe.json").read_text("utf-8"))
    book, split = load_book(layout)
    top = load_model(layout.model(FOUNDATION))
    ladder = ladder_below(
        top,
        book,
        split,
        config,
        timed_requests=timed_requests,
        fitting_requests=recipe_of(folder).fitting_requests,
    )
    on_test = OnTest(top, book, ladder.split, predict=predict)
    with Stages(folder, recipe=recipe) as stages:
        bottom = _rungs(stages, layout, ladder, on_test, timed_requests=timed_requests)
        own = [name for name in layout.models() if not layout.is_of_ladder(name)]
        drop_rungs(layout, but=(*own, *bottom.made))
        try:
            sign_waivers(layout)
        finally:  # A waiver that is refused leaves a run that serves, and what was made is told.
            index_if_stale(layout)
            records = [rung_record(layout, name) for name in bottom.made]
            table = write_ladder_report(
                layout,
                records,
                config,
                ended=bottom.ended,
                failed=[asdict(attempt) for attempt in bottom.failed],
                run=record.finish(),
            )
    return Descended(folder=folder, table=table, ended=bottom.ended)


def _rungs(
    stages: Stages, layout: RunLayout, ladder: Ladder, on_test: OnTest, *, timed_requests: int
) -> _Bottom:
    """Step down until the end is reached or no step passes."""
    config, top = ladder.config, ladder.top
    end = config.to if config.shape is None else body_ratio(top, config.shape)
    p99_ms = _p99_of_top(layout, ladder)
    has_own = (layout.folder / RUNG).is_dir() and not layout.is_of_ladder(RUNG)
    first = 2 if has_own else 1
    made: list[str] = []
    above, above_name, step = top, FOUNDATION, config.max_step
    began = time.monotonic()
    for number in range(first, first + _MOST_RUNGS):
        ratio = body_ratio(top, shape_of(above.decoder))
        if config.p99_ms is not None and p99_ms is not None and p99_ms <= config.p99_ms:
            ended = f"{above_name} is within the time: {_time(p99_ms)}"
            if made and rung_record(layout, above_name)["status"] == "undecided":
                ended += "; of it the gate is undecided, and a larger one serves without a waiver"
            return _Bottom(made=made, ended=ended)
        if ratio <= end:
            ended = f"{above_name} is at the end that was asked for"
            if p99_ms is not None:
                ended += f", and not within {config.p99_ms:g} ms: {_time(p99_ms)}"
            return _Bottom(made=made, ended=ended)
        left = rungs_left(end, ratio, step)
        said = f"about {left} {'rung' if left == 1 else 'rungs'} left"
        if made and (minutes := (time.monotonic() - began) / 60) > 0.1:
            said += f", {minutes / len(made) * left:.0f} minutes"
        name = f"rung-{number}"
        if _is_taken(layout, name, made):
            logger.info("%s is a rung of few bits, and stays", name)
            continue
        logger.info("%s: from %.1f %% of the body; %s", name, 100 * ratio, said)

        def function(
            out: Path,
            scratch: Path,
            above: Foundation = above,
            above_name: str = above_name,
            step: float = step,
            name: str = name,
        ) -> None:
            rung = ladder.step_down(above, scratch=scratch, step=step)
            if rung.folder is None:
                raise _NoStepPassesError(rung)
            keep_rung(rung, on_test, out, name=name, above_name=above_name)

        try:
            stages.run(
                name,
                function,
                inputs={
                    "ladder": _bearing_on(config, ratio, step),
                    "above": weights_hash(layout.model(above_name)),
                    "top": weights_hash(layout.model(FOUNDATION)),
                    "step": step,
                    "timed_requests": timed_requests,
                },
                code=CODE_OF_RUNGS,
            )
        except _NoStepPassesError as stopped:
            tried = ", ".join(f"{100 * a.step:.1f} %" for a in stopped.rung.attempts)
            smallest = stopped.rung.attempts[-1]
            failed = sorted({metric for a in stopped.rung.attempts for metric in a.failed})
            why = (
                "no part is that small"
                if smallest.shape is None
                else f"the gate fails each, by {' and '.join(failed)}"
            )
            ended = f"below {above_name} no step passes (tried {tried}: {why})"
            if p99_ms is not None:
                ended += f", and {above_name} is not within {config.p99_ms:g} ms: {_time(p99_ms)}"
            return _Bottom(made=made, ended=ended, failed=stopped.rung.attempts)
        # While the rungs below it are made.
        let_serve(layout, name)
        record = rung_record(layout, name)
        step = record["step"]
        if len(record["attempts"]) == 1:
            # A gate may fail a step by chance: smaller ones that pass grow again.
            step = min(config.max_step, 2 * step)
        above, above_name = load_model(layout.model(name)), name
        if config.p99_ms is not None:
            p99_ms = record["p99_ms"]["rung"]
        made.append(name)
    return _Bottom(made=made, ended=f"{_MOST_RUNGS} rungs are the most that are made")


def _p99_of_top(layout: RunLayout, ladder: Ladder) -> float | None:
    """What a budget of time begins at; None without one, and below a ladder that went on from it.

    Timed again, a top that is as fast as the budget would come out on either side of it.
    """
    if ladder.config.p99_ms is None or any(map(layout.is_of_ladder, layout.models())):
        return None
    return ladder.hands.measure({"top": ladder.top}, ladder.split.valid)["top"].p99_ms


def _time(p99_ms: float) -> str:
    return f"one request in a hundred takes {p99_ms:.1f} ms or longer"


def let_serve(layout: RunLayout, name: str) -> None:
    """Let a rung serve from now on, if the gate let it through, once the catalogue is indexed."""
    verdicts = (f"verdict-{against}.json" for against in ("above", "top"))
    passes = all(GateVerdict.load(layout.folder / name / path).accepted for path in verdicts)
    waits = passes and not layout.is_accepted(name)
    index_if_stale(layout, accepting=name if waits else None)


def _bearing_on(config: LadderConfig, ratio: float, step: float) -> dict[str, Any]:
    """The settings that a rung depends on: of `to`, only where a step may come as far.

    So a ladder that is asked to go further down keeps the rungs that it would make again. A budget
    of time ends it, and shapes no rung.

    Args:
        config: of the ladder.
        ratio: body parameters of the rung above as a share of the top's.
        step: share of them that may go.
    """
    settings = asdict(config)
    del settings["p99_ms"]
    if config.shape is not None or (1 - step) * ratio > config.to:
        settings["to"] = None
    return settings


def _is_taken(layout: RunLayout, name: str, made: Sequence[str]) -> bool:
    """Whether a rung of few bits has this name, of models that stay: `drop_rungs` leaves it too."""
    if not (layout.folder / name).is_dir() or not layout.is_of_ladder(name):
        return False
    own = [one for one in layout.models() if not layout.is_of_ladder(one)]
    there = {weights_hash(layout.model(one)) for one in (*own, *made)}
    return is_rounded_from(layout, name, there)


def ladder_below(
    top: Foundation,
    book: PromptBook,
    split: Split,
    config: LadderConfig,
    *,
    timed_requests: int,
    fitting_requests: int,
    device: str | None = None,
) -> Ladder:
    """A ladder whose rungs are judged as they are served.

    Args:
        top: of the ladder.
        book: pieces of the interactions.
        split: of them.
        config: how far, in what steps.
        timed_requests: that latency is measured on.
        fitting_requests: that `w` is chosen on, as in `fit_on_validation`.
        device: where rungs are trained and measured, latency too; a GPU where there is one, when
            left out.
    """
    split, predict = config.asked(split), Remembered()
    return Ladder(
        top,
        book,
        split,
        config=config,
        hands=Hands(
            measure=Judge(book, timed_requests=timed_requests, predict=predict),
            settle=lambda model: _settle(model, book, split.valid, fitting_requests, predict),
            watch=lambda model: watch(model, book, split.valid),
        ),
        device=training_device() if device is None else device,
    )


def _settle(
    model: Foundation, book: PromptBook, valid: Targets, requests: int, predict: Remembered
) -> None:
    # On all that the gate looks at: on fewer another kind of calibration may be chosen, which the
    # gate then holds against the model. Nothing is read twice.
    for task in range(len(book.prompter.tasks)):
        fit_on_validation(model, book, valid, task=task, requests=requests, predict=predict)


def keep_rung(rung: Rung, on_test: OnTest, out: Path, *, name: str, above_name: str) -> None:
    """Write a rung's stage: its model, its verdicts and its record; `let_serve` lets it serve.

    Args:
        rung: that was taken.
        on_test: measures it.
        out: the stage's folder.
        name: of the rung.
        above_name: of the rung above.
    """
    assert rung.folder is not None
    assert rung.above is not None
    assert rung.top is not None
    shutil.copytree(rung.folder, out / "model")
    for against, verdict in (("above", rung.above), ("top", rung.top)):
        verdict.save(out / f"verdict-{against}.json")
    write_whole(out / "history.json", json.dumps(rung.history) + "\n")
    model = load_model(out / "model").to(on_test.top.device)
    taken = rung.attempts[-1]
    latency = next(one for one in rung.above.metrics if one.metric == "latency_ms")
    from_top = next(one for one in rung.top.metrics if one.metric == "latency_ms")
    record = {
        "name": name,
        "above": above_name,
        "shape": asdict(shape_of(model.decoder)),
        "parameters": model.num_parameters(),
        "embedding_parameters": _embedding_parameters(model),
        "ratio": model.num_parameters() / on_test.top.num_parameters(),
        "step": taken.step,
        "attempts": [asdict(attempt) for attempt in rung.attempts],
        "num_targets": taken.num_targets,
        "status": taken.status,
        "accepted": False,
        "latency_ms": {
            "rung": latency.candidate,
            "above": latency.reference,
            "top": from_top.reference,
        },
        "p99_ms": dict(rung.p99_ms),
        "test": on_test.metrics_of(model),
    }
    write_whole(out / RUNG_RECORD, json.dumps(record, indent=2) + "\n")


def _embedding_parameters(model: Foundation) -> int:
    tables = {
        id(weight): weight.numel()
        for module in (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings())
        for weight in module.parameters()
    }
    return sum(tables.values())


def _copy_run(folder: Path, out: Path) -> None:
    """Start a run folder for a ladder, or check that it is one of this run's."""
    marks = [f / FOUNDATION / "stage.json" for f in (folder, out)]
    if out.exists() and any(out.iterdir()):
        if not marks[1].exists() or marks[0].read_bytes() != marks[1].read_bytes():
            raise BadInput(
                f"--out {out} holds something else than a ladder of {folder}; choose another "
                "folder, or delete this one first."
            )
        return
    with whole_folder(out) as partial:
        shutil.copyfile(folder / "recipe.json", partial / "recipe.json")
        for stage in (DATA, PROMPTER, FOUNDATION):
            shutil.copytree(folder / stage, partial / stage)
