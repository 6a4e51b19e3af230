"""The last stage: a finished run's numbers as a table, a results file and a page with plots."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decant.answering import Prediction
from decant.gate_tables import METRIC_NAMES, gate_table
from decant.layout import EVALUATION, RunLayout
from decant.plots import HistoryPoint, ReliabilityLine, SizePoint
from decant.predicting import brief
from decant.recipes import Recipe
from decant.recommender import Recommender
from decant.report import (
    APART,
    ExamplePrediction,
    RankedItem,
    Report,
    TableRow,
    format_table,
    write_report,
)
from decant.run_data import load_tasks, rung_record
from decant.run_record import RunRecord
from distill.gate import GateVerdict
from promptify.prompter import item_texts
from promptify.whole import write_whole

logger = logging.getLogger(__name__)

# What a number of the plot by history is counted over.
COUNTED = {"ndcg@10": "ranking targets", "auc": "scored events"}
CURVES = {
    "loss/next_item": "next-item loss",
    "loss/action": "action loss",
    "loss/text": "text loss",
    "valid/ndcg@10": "validation NDCG@10",
    "valid/auc": "validation AUC",
    "loss/teacher_next_item": "teacher loss, next item",
    "loss/teacher_action": "teacher loss, action",
}
"""Panels of the training curves, in order, by their names in `history.json`."""
POLICY_CURVES = {
    "loss/policy": "policy loss",
    "loss/rare": "loss within slates",
    "loss/teacher_slate": "teachers' loss within slates",
}
"""Those that a run with a policy has beside them."""
CALIBRATIONS = {
    "none": "none",
    "temperature": "temperature",
    "vector": "temperature and a bias per action",
    "isotonic": "isotonic",
}
NOTES = {
    "foundation": "the top model, ranking the catalogue by p(item next)",
    "rung-1": "pruned and distilled from it, ranking the same way",
    "policy-teacher": "learned grades alone, and says nothing of clicks",
    "click-teacher": "learned what people did, ranking the catalogue by p(item next)",
    "student": "of both teachers, pruned and distilled, ranking the same way",
    "system, blend=0.5": "the same request, half by clicks and half by policy",
    "system, blend=1": "the same request by policy alone",
    "popularity": "most interacted-with first",
    "last_item": "cosine neighbours of the newest item",
    "last_item_transitions": "what came soon after the newest item",
    "item_knn": "cosine neighbours of all items of the history",
    "oracle": "the generator's own probabilities: nothing learned can beat it",
}


_APART = (
    f"{APART} measured by `decant ladder` or `decant quantise` when it was made: the milliseconds "
    "at another time and on other requests than those of the rows above, all else on as many "
    "targets as stand beside it. ladder.html has the rungs of a ladder beside each other."
)
_NOBODY = (
    "Nobody's profile or history stands here, since a page is passed on: "
    "`decant predict RUN --user ID` shows what is predicted for somebody."
)


def write_run_report(
    layout: RunLayout, recipe: Recipe, record: RunRecord, *, continued_from: Path | None = None
) -> str:
    """Write `report.html`, `results.csv` and `run.json` into the run folder.

    Args:
        layout: the run.
        recipe: of it.
        record: of it, finished.
        continued_from: the run folder of the older model that was trained on, if one was.

    Returns:
        The final table as text.
    """
    evaluation = layout.folder / EVALUATION
    metrics = json.loads((evaluation / "metrics.json").read_text("utf-8"))
    models = layout.compared()
    rungs = [rung_record(layout, name) for name in layout.models() if layout.is_of_ladder(name)]
    served = layout.served()
    table = [_table_row(system) for system in metrics["systems"]]
    system_note = _of_system(models[-1], served)
    table = [replace(row, note=system_note) if row.model == "system" else row for row in table]
    table += [_rung_row(record) for record in rungs]
    recommender = Recommender.load(layout.folder, with_saved_items=False)
    is_generated = _is_generated(layout)
    report = Report(
        title=f"Decant: {recipe.name}",
        summary=_summary(
            recipe, recommender, metrics["systems"], models, _origin(recipe, continued_from)
        ),
        facts=_facts(recommender, metrics["systems"], models, served),
        table=table,
        curves=_curves(layout),
        by_history=[
            HistoryPoint(
                **{**point, "metric": METRIC_NAMES[point["metric"]]},
                n_of=COUNTED[point["metric"]],
            )
            for point in metrics["by_history"]
        ],
        by_size=_by_size(
            [*metrics["systems"], *_alike_asked(map(_as_system, rungs), metrics["systems"], models)]
        ),
        reliability=_reliability(metrics["systems"], models),
        gates=[
            gate_table(
                GateVerdict.load(evaluation / "verdict.json"),
                student=models[-1],
                teacher=models[-2],
            )
        ],
        predictions=examples(recommender) if is_generated else (),
        notes=[
            *_notes(
                metrics["systems"],
                recipe,
                top=models[0],
                tasks=[task.name for task in load_tasks(layout)],
                # Not said by evaluations of before.
                num_unserved=metrics.get("num_unserved", 0),
                num_seen=metrics.get("num_seen", 0),
            ),
            *([_APART] if rungs else []),
            *([] if is_generated else [_NOBODY]),
        ],
        run=record,
    )
    write_report(layout.folder, report)
    write_whole(layout.folder / "results.csv", (evaluation / "results.csv").read_bytes())
    record.write(layout.folder)
    beside = [f"system is of {models[-1]}; {served} serves."] if served != models[-1] else []
    beside += [_APART] if rungs else []
    return "\n".join([format_table(table), *([""] if beside else []), *beside])


def _is_generated(layout: RunLayout) -> bool:
    """Whether nobody of the log is anybody."""
    source = json.loads((layout.folder / "recipe.json").read_text("utf-8"))["source"]
    return bool(source.get("source") == "job_market")


def _of_system(measured: str, served: str) -> str:
    does = f"{measured} retrieves 200 and re-ranks them"
    return f"what is served: {does}" if measured == served else f"{does}; {served} serves"


def _table_row(system: dict[str, Any]) -> TableRow:
    values = {name: found["value"] for name, found in system["metrics"].items()}
    return TableRow(
        model=system["model"],
        params=system["params"],
        auc=values.get("auc"),
        hr_at_10=values.get("hr@10"),
        ndcg_at_10=values.get("ndcg@10"),
        ece=values.get("ece"),
        ece_uncalibrated=values.get("ece_uncalibrated"),
        ms_per_request=system["ms_per_request"],
        policy_alignment=values.get("policy_alignment"),
        top10_grade=values.get("top10_grade"),
        note=NOTES.get(system["model"], ""),
        num_targets=_num_targets(system),
    )


def _num_targets(system: dict[str, Any]) -> int | None:
    """That a ranking was measured on; None where there is none."""
    found = system["metrics"].get("ndcg@10")
    return None if found is None else int(found["n"])


def _alike_asked(
    rungs: Iterable[dict[str, Any]], systems: list[dict[str, Any]], models: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Rungs that were asked about as many targets as the top: a plot says nothing of how many."""
    [top] = [system for system in systems if system["model"] == models[0]]
    return [rung for rung in rungs if _num_targets(rung) == _num_targets(top)]


def _as_system(record: dict[str, Any]) -> dict[str, Any]:
    """A rung of the ladder as the evaluation has its systems."""
    return {
        "model": record["name"],
        "params": record["parameters"],
        "metrics": record["test"],
        "ms_per_request": record["latency_ms"]["rung"],
    }


def _rung_row(record: dict[str, Any]) -> TableRow:
    accepted = "accepted" if record["accepted"] else record["status"]
    return replace(
        _table_row(_as_system(record)),
        note=f"a rung of the ladder, {record['ratio']:.1%} of the foundation's body: {accepted}",
        is_apart=True,
    )


def _summary(
    recipe: Recipe,
    recommender: Recommender,
    systems: list[dict[str, Any]],
    models: tuple[str, ...],
    origin: str,
) -> str:
    log = recommender.interactions
    params = {system["model"]: system["params"] for system in systems}
    top = params[models[0]]
    share = params[models[-1]] / top
    also = (
        ", taught policy as a teacher of its own"
        if any("policy_alignment" in system["metrics"] for system in systems)
        else ""
    )
    return (
        f"{log.num_users:,} people, {log.num_items:,} items, {log.num_events:,} events, as "
        f"{recipe.prompter.form} prompts. A decoder of {top:,} body parameters was "
        f"{origin}{also}, pruned to {share:.0%} of them and distilled."
    )


def _origin(recipe: Recipe, continued_from: Path | None) -> str:
    if continued_from is not None:
        return f"trained on from {continued_from.absolute().name}"
    return f"trained from {'scratch' if recipe.size else recipe.published().model}"


def _facts(
    recommender: Recommender,
    systems: list[dict[str, Any]],
    models: tuple[str, ...],
    served: str,
) -> list[tuple[str, str]]:
    facts = []
    by_name = {system["model"]: system for system in systems}
    for name in (*models, "system"):
        found = by_name[name]["metrics"].get("ndcg@10")
        if found:
            of = f"system of {models[-1]}" if name == "system" else name
            facts.append((f"NDCG@10, {of}", f"{found['value']:.4f}"))
    foundation = recommender.foundation
    return [
        *facts,
        (f"weight of the action readout, w, {served}", f"{foundation.rank_weight(0):g}"),
        (f"calibration, {served}", CALIBRATIONS[foundation.calibration(0).method]),
    ]


def _curves(layout: RunLayout) -> dict[str, list[tuple[float, float]]]:
    """`model/panel` to its points, panels in the order of `CURVES`, then of `POLICY_CURVES`."""
    logged = {
        model: json.loads((layout.folder / model / "history.json").read_text("utf-8"))["history"]
        for model in layout.compared()
    }
    return {
        f"{model}/{panel}": [(step, value) for step, value in history[name]]
        for name, panel in {**CURVES, **POLICY_CURVES}.items()
        for model, history in logged.items()
        if name in history
    }


def _by_size(systems: list[dict[str, Any]]) -> list[SizePoint]:
    points = []
    for system in systems:
        for metric in ("ndcg@10", "auc"):
            found = system["metrics"].get(metric)
            if found and not system["model"].startswith("system"):
                points.append(
                    SizePoint(
                        model=system["model"],
                        params=system["params"],
                        metric=METRIC_NAMES[metric],
                        value=found["value"],
                        low=found["low"],
                        high=found["high"],
                    )
                )
    return points


def _reliability(systems: list[dict[str, Any]], models: tuple[str, ...]) -> list[ReliabilityLine]:
    return [
        ReliabilityLine(
            model=system["model"],
            calibrated=curve["calibrated"],
            said=curve["said"],
            happened=curve["happened"],
        )
        for system in systems
        if system["model"] in models
        for curve in system["reliability"]
    ]


def examples(recommender: Recommender, *, k: int = 5) -> list[ExamplePrediction]:
    """Predictions for three people: one with a long history, one with two events, one with none."""
    log = recommender.interactions
    counts = np.diff(log.user_offsets)
    first_task = recommender.book.prompter.tasks[0]
    surface = log.surfaces.index(first_task.name)
    ours = np.bincount(log.event_user[log.event_surface == surface], minlength=log.num_users)
    warm = int(np.argsort(counts, kind="stable")[len(counts) * 3 // 4])
    two = np.flatnonzero((counts == 2) & (ours > 0))
    none = np.flatnonzero(counts == 0)
    chosen = [
        (f"Somebody with {counts[warm]} events", warm, None),
        ("Somebody with two events", int(two[0]) if len(two) else warm, 2),
        ("Somebody with a profile only", int(none[0]) if len(none) else warm, 0),
    ]
    return [_example(recommender, heading, user, cut, k) for heading, user, cut in chosen]


def _example(
    recommender: Recommender, heading: str, user: int, num_events: int | None, k: int
) -> ExamplePrediction:
    log, book = recommender.interactions, recommender.book
    end = int(log.user_offsets[user + 1])
    start = int(log.user_offsets[user])
    if num_events is not None:
        start = max(start, end - num_events)
    predictions = recommender.predict_row(user, num_events=num_events, k=k)
    shown = np.arange(max(start, end - 8), end)
    words = item_texts(book.prompter.words, log, log.event_item[shown])
    actions = [log.actions[a] for a in log.event_action[shown]]
    return ExamplePrediction(
        heading=heading,
        profile=book.profile_text(user),
        history=[f"{brief(text)} → {action}" for text, action in zip(words, actions, strict=True)],
        items=[_ranked_item(prediction) for prediction in predictions],
    )


def _ranked_item(prediction: Prediction) -> RankedItem:
    return RankedItem(
        title=brief(prediction.title),
        probabilities=prediction.probabilities,
        retrieval_score=prediction.retrieval_score,
    )


def _held_out(recipe: Recipe) -> str:
    held_out, test = recipe.held_out_slates, recipe.test_slates
    name = "Leave-one-out" if held_out == 2 else f"Leave-last-{held_out}"
    last = "event (or slate) is" if test == 1 else f"{test} events (or slates) are"
    before = (
        "one before validates" if held_out - test == 1 else f"{held_out - test} before validate"
    )
    whose = "each person's"
    if recipe.held_out_people is not None:
        whose = f"of {recipe.held_out_people} people, while the others are trained on whole, the"
    return f"{name}: {whose} last {last} the test, the {before}."


def _notes(
    systems: list[dict[str, Any]],
    recipe: Recipe,
    *,
    top: str,
    tasks: Sequence[str],
    num_unserved: int = 0,
    num_seen: int = 0,
) -> list[str]:
    notes = [
        f"{_held_out(recipe)} Full catalogue, seen items left out. Intervals are 95 % bootstrap "
        "intervals over people.",
        "Parameters count the decoder's body: without embeddings, heads and the item table.",
        "ECE is the gap between the probability of a good action and how often it came, over 15 "
        "bins of equally many events: as served, and as the model says it before calibration.",
        "ms / request is the median of retrieving 200 and ranking them, models asked in turn.",
    ]
    first, *others = tasks
    if others:
        notes.append(
            f"All of this is of {first}, and so is the gate. Of {', '.join(others)} nothing is "
            "held out: they are trained on as well, and what is predicted there is neither "
            "measured nor calibrated."
        )
    if any("top10_grade" in system["metrics"] for system in systems):
        notes.append(
            "policy is the share of held-out labels whose grade a model says is the most probable; "
            "grade of 10 is what the policy itself says of the first ten, as a share of the best "
            "grade."
        )
    if num_unserved:
        notes.append(
            f"{num_unserved:,} held-out events are on items of another kind than the task ranks: "
            "their actions are predicted, and they are no ranking targets."
        )
    if num_seen:
        notes.append(
            f"{num_seen:,} held-out events are on items that the history holds, with which no "
            "request is answered unless exclude_seen=False or `decant predict --include-seen` asks "
            "for them: their actions are predicted, and they are no ranking targets."
        )
    ranked = {
        system["model"]: system["metrics"]["ndcg@10"]["n"]
        for system in systems
        if "ndcg@10" in system["metrics"]
    }
    everyone, some = ranked.get(top, 0), ranked.get("system", 0)
    if some < everyone:
        notes.append(
            f"The system row rests on {some:,} of the {everyone:,} ranking targets, evenly spaced, "
            f"since re-ranking is dear: a small difference from the rows above it may be theirs."
        )
    return notes
