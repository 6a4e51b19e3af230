"""Plots of what stands side by side: models, arms, ways to do the same."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.measured import told_once
from benchmarks.report.drawing import Estimate, Makers, Rows, dots, estimate

_WORDS_LETTERS = 24


def quality(rows: Rows) -> Makers:
    first = rows[0].split
    told = _by_metric(
        [row for row in told_once(rows) if row.split == first],
        {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "auc": "AUC"},
    )
    return {"quality": partial(dots, told)}


def teachers(rows: Rows) -> Makers:
    headings = {
        "policy_alignment": "policy alignment",
        "policy_concordance": "policy concordance",
        "click_auc_expected": "click AUC, expected",
        "best_balance": "best balance",
    }
    if not any(row.metric == "click_auc_expected" for row in rows):
        headings["click_auc"] = "click AUC"
    # Blends and thresholds of rules are places on a curve, of which the balance is the best.
    return _models(rows, plot="models", headings=headings, without=("blend=", ">=", "generator"))


def tasks(rows: Rows) -> Makers:
    ranked = {"ndcg@10": "NDCG@10", "auc": "AUC"}
    notes = {"note_correlation_next_item": "correlation with the generator's change"}
    surfaces = [row for row in rows if row.task != "fit"]
    return {
        **_models(surfaces, plot="models", headings=ranked, without=("oracle",)),
        **_models(rows, plot="notes", headings=notes, without=("oracle",)),
    }


def sweep(rows: Rows) -> Makers:
    """Combinations by the words that not all of them have."""
    common = set.intersection(*(set(row.model.split()) for row in rows))
    told: list[tuple[str, Estimate]] = []
    for row in told_once(rows):
        if row.metric == "ndcg@10":
            words = " ".join(word for word in row.model.split() if word not in common)
            name = textwrap.fill(words, _WORDS_LETTERS, break_long_words=False)
            told.append((name or "none of these", estimate(row)))
    return {"combinations": partial(dots, {"NDCG@10 on validation": told})} if len(told) > 1 else {}


def speedups(rows: Rows) -> Makers:
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


def people_search(rows: Rows) -> Makers:
    told: dict[str, list[tuple[str, Estimate]]] = {}
    for row in told_once(rows):
        if row.metric == "ndcg@10" and row.model != "oracle":
            told.setdefault(row.split, []).append((row.model, estimate(row)))
    # Names are found whole or not at all; two models that always find them need no plot.
    return {"search": partial(dots, {split: of for split, of in told.items() if len(of) > 2})}


def retriever(rows: Rows) -> Makers:
    test = [row for row in told_once(rows) if row.split == "leave_one_out"]
    told: dict[str, list[tuple[str, Estimate]]] = {}
    for task in dict.fromkeys(row.task for row in test):
        for metric, heading in (
            ("ndcg@10_retrieval", "NDCG@10, retrieval alone"),
            ("ndcg@10_retrieve_rank", "NDCG@10, retrieved and ranked"),
        ):
            found = _by_metric([row for row in test if row.task == task], {metric: heading})
            told |= {f"{name}, {task}": values for name, values in found.items()}
    return {"retriever": partial(dots, told)} if told else {}


def ablations(rows: Rows) -> Makers:
    test = [row for row in told_once(rows) if row.split == "leave_one_out"]
    told = {
        f"{heading}, {task}": [
            (row.model, estimate(row)) for row in test if (row.task, row.metric) == (task, metric)
        ]
        for task in dict.fromkeys(row.task for row in test)
        for metric, heading in (("ndcg@10_vs_full", "NDCG@10"), ("auc_vs_full", "AUC"))
    }
    return {"ablations": partial(dots, told, across=0.0)}


def cold_items(rows: Rows) -> Makers:
    test = [row for row in told_once(rows) if row.split == "leave_one_out_cold_item"]
    headings = {
        "hr@10_cold": "HR@10 of new items, among all",
        "hr@10_cold_alone": "HR@10 of new items, among themselves",
        "ndcg@10_warm": "NDCG@10 of known items",
    }
    told: dict[str, list[tuple[str, Estimate]]] = {}
    for task in dict.fromkeys(row.task for row in test):
        found = _by_metric([row for row in test if row.task == task], headings)
        told |= {f"{heading}, {task}": values for heading, values in found.items()}
    return {"cold-items": partial(dots, told)}


def attacks(rows: Rows) -> Makers:
    told: dict[str, list[tuple[str, Estimate]]] = {}
    for row in told_once(rows):
        if row.metric == "median_rank_change" and not row.split.endswith("control"):
            panel = told.setdefault(f"median change of rank, {row.model}", [])
            panel.append((row.split, estimate(row)))
    return {"attacks": partial(dots, told, across=0.0)}


def _models(
    rows: Rows, *, plot: str, headings: Mapping[str, str], without: Sequence[str] = ()
) -> Makers:
    """Models side by side, a panel per metric and task that more than one model has.

    Args:
        rows: of one benchmark.
        plot: what the figure is called.
        headings: by metric; the others are left out.
        without: parts of the names of models that are left out.
    """
    shown = [row for row in told_once(rows) if not any(part in row.model for part in without)]
    tasks = list(dict.fromkeys(row.task for row in shown if row.metric in headings))
    told = {
        heading if len(tasks) == 1 else f"{heading}, {task}": values
        for task in tasks
        for heading, values in _by_metric([row for row in shown if row.task == task],
                                         headings).items()
        if len(values) > 1
    }  # fmt: skip
    return {plot: partial(dots, told)} if told else {}


def _by_metric(rows: Rows, headings: Mapping[str, str]) -> dict[str, list[tuple[str, Estimate]]]:
    """Models and values by heading, of the metrics that are there."""
    return {
        heading: [(row.model, estimate(row)) for row in rows if row.metric == metric]
        for metric, heading in headings.items()
        if any(row.metric == metric for row in rows)
    }
