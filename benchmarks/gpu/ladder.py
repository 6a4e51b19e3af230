"""The ladder from the model of part 2: pruned, distilled, and held against where it came from."""

import copy
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.gpu.films import Films, epochs_in, evaluate
from benchmarks.gpu.session import OutOfTimeError, Session, within
from benchmarks.gpu.training import tokens_per_s
from benchmarks.scoring_rounds import median
from distill.anatomy import shape_of
from distill.distillation import Distillation, distil
from distill.gate import GateConfig, Measurements, verdict
from distill.importance import measure_importance
from distill.pruning import prune
from distill.teaching import TeacherConfig
from foundation import Foundation
from foundation.batches import take_rows
from foundation.evaluation import ndcg, paired_bootstrap
from foundation.predictions import Predictions
from promptify.assembly import PromptBook
from promptify.splits import Split

_TIMED_REQUESTS = 40
_CANDIDATES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step down.

    Attributes:
        layers: share of the layers that stay.
        neurons: share of the MLP neurons that stay.
        seconds: of the distillation.
        calibration_rows: prompts that decide what stays.
    """

    layers: float
    neurons: float
    seconds: float
    calibration_rows: int = 256


STEPS = (
    Step(layers=2 / 3, neurons=2 / 3, seconds=75.0),
    Step(layers=1 / 2, neurons=1 / 2, seconds=60.0),
)
SMOKE_STEPS = (Step(layers=1 / 2, neurons=2 / 3, seconds=2.0, calibration_rows=8),)


def descend(
    session: Session,
    book: PromptBook,
    split: Split,
    films: Films,
    *,
    work: Path,
    steps: tuple[Step, ...],
) -> None:
    """Every step: parameters, quality, what is lost against the top, latency, the gate's verdict.

    Args:
        session: takes the rows.
        book: the prompts.
        split: which events train; the gate is asked on the test targets, whose rows are read once.
        films: how the top was trained; the steps are trained alike, with half its step size.
        work: holds the top's `model`; a rung is kept there too.
        steps: each from the one before.

    Raises:
        ValueError: there is no model of part 2.
    """
    if not (work / "model").exists():
        raise ValueError("no model of part 2 in the work folder; run part 2 first")
    top = Foundation.from_pretrained(work / "model").to(session.device)
    top_found = evaluate(session, book, split, top, name="foundation")
    above, above_found = top, top_found
    for number, step in enumerate(steps, start=1):
        name = f"rung-{number}"
        rung = _pruned(book, split, above, step)
        _distilled(session, book, split, films, step, rung, above, work=work / name)
        found = evaluate(session, book, split, rung, name=name)
        cells = {
            "task": book.prompter.tasks[0].name,
            "split": "leave-one-out test",
            "model": name,
            "params": rung.num_parameters(),
        }
        ratio = rung.num_parameters() / top.num_parameters()
        session.add(ratio, metric="params_ratio", **cells)
        lost = paired_bootstrap(ndcg(top_found.rank, 10), ndcg(found.rank, 10), found.user)
        session.add(lost, metric="loss_vs_top", n=len(found.user), **cells)
        slower = _latency_ratio(book, split, rung, top)
        session.add(slower, metric="latency_ratio", n=_TIMED_REQUESTS, **cells)
        judged = verdict(
            _for_gate(book, above_found), _for_gate(book, found), GateConfig.with_max_loss(0.01)
        )
        told = ", ".join(f"{one.metric} {one.status} ({one.reason})" for one in judged.metrics)
        session.say(f"         {name} against the one above: {judged.status}; {told}")
        rung.save_pretrained(work / name / "model")
        above, above_found = rung, found


def _pruned(book: PromptBook, split: Split, above: Foundation, step: Step) -> Foundation:
    windows = book.windows(split.train, seed=0, epoch=0)
    count = min(step.calibration_rows, len(windows))
    chosen = np.random.default_rng(0).choice(len(windows), size=count, replace=False)
    rows = book.assemble(windows[np.sort(chosen)], seed=0, epoch=0)
    there = shape_of(above.decoder)
    shape = replace(
        there,
        layers=max(1, round(step.layers * there.layers)),
        # Multiples of 64 suit the hardware; a tiny model has fewer.
        neurons=max(8, int(step.neurons * there.neurons) // 64 * 64),
    )
    return prune(above, measure_importance(above, rows), shape)


def _distilled(
    session: Session,
    book: PromptBook,
    split: Split,
    films: Films,
    step: Step,
    rung: Foundation,
    teacher: Foundation,
    *,
    work: Path,
) -> None:
    """Train a rung for about so many seconds; where time runs out, it is taken as it stands."""
    shutil.rmtree(work, ignore_errors=True)
    session.forget_peak()
    config, teaches = replace(films.fit, learning_rate=films.fit.learning_rate / 2), TeacherConfig()
    tried = copy.deepcopy(rung)
    objective = Distillation(tried, [(teacher, teaches)])
    rate = tokens_per_s(
        objective,
        tried,
        objective.loss_weights(config),
        book,
        split,
        config,
        steps=max(1, films.probe_steps // 2),
    )
    del tried, objective
    epochs = epochs_in(step.seconds, rate, book, split, config)
    session.say(f"         {rate:,.0f} tokens/s: {epochs:.2f} epochs in {step.seconds:.0f} s")
    try:
        most = session.slack * max(30.0, 1.5 * step.seconds)
        with within(min(most, session.seconds_left - films.seconds_after / 2)):
            distil(
                rung,
                teacher,
                book,
                split,
                config=replace(config, epochs=epochs),
                teacher_config=teaches,
                out=work / "fit",
            )
    except OutOfTimeError as error:
        session.say(f"         distillation stopped ({error}): the weights are taken as they stand")
        rung.refresh_readings()
        rung.eval()


def _latency_ratio(
    book: PromptBook, split: Split, rung: Foundation, top: Foundation
) -> tuple[float, tuple[float, float]]:
    """Of a request's time, in turn on the same requests."""
    chosen = np.linspace(0, len(split.test) - 1, _TIMED_REQUESTS).astype(np.int64)
    prefixes = book.prefixes(split.test[np.unique(chosen)])
    items = np.arange(min(_CANDIDATES, book.interactions.num_items))
    ratios = []
    for row in range(len(prefixes)):
        prefix = take_rows(prefixes, np.array([row]))
        seconds = []
        for model in (rung, top):
            began = time.perf_counter()
            model.score(prefix, items)
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
    # The first ones load kernels.
    return median(ratios[len(ratios) // 4 :])


def _for_gate(book: PromptBook, found: Predictions) -> Measurements:
    good_A = np.array(book.prompter.tasks[0].is_positive)
    said = np.exp(found.action_log_probs.astype(np.float64))[:, good_A].sum(1)
    return Measurements(
        target_user=found.user,
        target_ndcg=ndcg(found.rank, 10),
        event_user=found.action_user,
        event_label=good_A[found.action_label],
        event_probability=np.minimum(said, 1.0),
    )
