"""The plots of each results file, functions of its rows alone."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from benchmarks.report.drawing import Curve, Estimate, curves, dots, estimate
from decant.results import ResultRow

Rows = Sequence[ResultRow]
Makers = dict[str, Callable[[], Figure]]

CAPTIONS = {
    "quality": "How each model ranks the whole catalogue; bars are 95 % intervals over people.",
    "speedups": "How many times as fast, on a log scale; bars are 95 % intervals over rounds.",
    "search": "NDCG@10 by kind of query.",
    "kinds": "What a kind of index finds of the true nearest hundred, against requests a second.",
    "retriever": "Retrieval alone, and ranking what it found.",
    "attacks": "Places that an item rises when its text tries to persuade; below zero it falls.",
}


def figures_of(rows: Rows) -> Makers:
    """Functions that draw the plots of one file, by name; empty where a table says it all."""
    made: Makers = {}
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        if benchmark in _MAKERS:
            made |= _MAKERS[benchmark]([row for row in rows if row.benchmark == benchmark])
    return made


def told_once(rows: Rows) -> list[ResultRow]:
    """The row of the mean where several seeds were measured, else that of the first seed."""
    kept: dict[tuple[object, ...], ResultRow] = {}
    for row in rows:
        key = (
            row.task,
            row.split,
            row.model,
            row.context_tokens,
            row.history_events,
            row.metric,
        )
        if key not in kept or row.seed == "mean":
            kept[key] = row
    return list(kept.values())


def by_metric(rows: Rows, headings: Mapping[str, str]) -> dict[str, list[tuple[str, Estimate]]]:
    """Models and values by heading, of the metrics that are there."""
    return {
        heading: [(row.model, estimate(row)) for row in rows if row.metric == metric]
        for metric, heading in headings.items()
        if any(row.metric == metric for row in rows)
    }


def _quality(rows: Rows) -> Makers:
    first = rows[0].split
    told = by_metric(
        [row for row in told_once(rows) if row.split == first],
        {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "auc": "AUC"},
    )
    return {"quality": partial(dots, told)}


def _speedups(rows: Rows) -> Makers:
    told = [
        (
            f"{row.model} against {row.metric.removeprefix('speedup_vs_').replace('_', ' ')}, "
            f"{row.task}, {row.split}",
            estimate(row),
        )
        for row in told_once(rows)
        if row.metric.startswith("speedup_vs_")
    ]
    return {"speedups": partial(dots, {"times as fast": told}, log=True, across=1.0)}


def _people_search(rows: Rows) -> Makers:
    told: dict[str, list[tuple[str, Estimate]]] = {}
    for row in told_once(rows):
        if row.metric == "ndcg@10" and row.model != "oracle":
            told.setdefault(row.split, []).append((row.model, estimate(row)))
    # Names are found whole or not at all; two models that always find them need no plot.
    return {"search": partial(dots, {split: of for split, of in told.items() if len(of) > 2})}


def _kinds(rows: Rows) -> Makers:
    kinds = [row for row in rows if row.split == "kinds" and not row.model.startswith("faiss")]
    told: dict[str, list[Curve]] = {}
    for task in dict.fromkeys(row.task for row in kinds):
        for kind in dict.fromkeys(row.model for row in kinds if row.task == task):
            found = {row.metric: row for row in kinds if (row.task, row.model) == (task, kind)}
            if {"queries_per_s", "recall@100"} <= set(found):
                told.setdefault(f"recall@100, {task}", []).append(
                    Curve(
                        name=kind,
                        places=[found["queries_per_s"].value],
                        points=[estimate(found["recall@100"])],
                    )
                )
    if not told:
        return {}
    return {"kinds": partial(curves, told, x_label="requests a second, 64 at once")}


def _retriever(rows: Rows) -> Makers:
    test = [row for row in told_once(rows) if row.split == "leave_one_out"]
    told: dict[str, list[tuple[str, Estimate]]] = {}
    for task in dict.fromkeys(row.task for row in test):
        for metric, heading in (
            ("ndcg@10_retrieval", "NDCG@10, retrieval alone"),
            ("ndcg@10_retrieve_rank", "NDCG@10, retrieved and ranked"),
        ):
            found = by_metric([row for row in test if row.task == task], {metric: heading})
            told |= {f"{name}, {task}": values for name, values in found.items()}
    return {"retriever": partial(dots, told)} if told else {}


def _attacks(rows: Rows) -> Makers:
    told = [
        (row.split, estimate(row))
        for row in told_once(rows)
        if row.metric == "median_rank_change" and not row.split.endswith("control")
    ]
    return {"attacks": partial(dots, {"median change of rank": told}, across=0.0)}


_MAKERS: dict[str, Callable[[Rows], Makers]] = {
    "quality": _quality,
    "scoring": _speedups,
    "training": _speedups,
    "promptify": _speedups,
    "people_search": _people_search,
    "retrieval": _kinds,
    "retriever": _retriever,
    "persuasion": _attacks,
}
