"""`ladder.html`: quality against parameters, latency and rung, with every verdict and waiver."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from decant.gate_tables import METRIC_NAMES, gate_table
from decant.layout import FOUNDATION, RunLayout
from decant.panels import format_count
from decant.plots import SizePoint
from decant.report import Report, TableRow, format_table, write_report
from decant.run_data import load_model
from decant.run_record import RunRecord
from distill.anatomy import shape_of
from distill.gate import GateVerdict
from distill.ladder_config import LadderConfig
from promptify.whole import write_whole

_SHOWN = ("ndcg@10", "auc")


def write_ladder_report(
    layout: RunLayout,
    records: Sequence[Mapping[str, Any]],
    config: LadderConfig,
    *,
    ended: str,
    failed: Sequence[Mapping[str, Any]] = (),
    run: RunRecord,
) -> str:
    """Write `ladder.html`, its plots and `ladder.json` into the run folder.

    Args:
        layout: the run folder.
        records: of the rungs, from the top down.
        config: of the ladder.
        ended: why it ends where it does.
        failed: steps that were tried below the last rung, as a rung's record has its `attempts`.
        run: what was run, with what.

    Returns:
        The rungs as a table in text, and a line on each verdict.
    """
    top = load_model(layout.model(FOUNDATION))
    verdicts = {
        (record["name"], against): GateVerdict.load(
            layout.folder / record["name"] / f"verdict-{against}.json"
        )
        for record in records
        for against in ("above", "top")
    }
    top_row = TableRow(
        model=FOUNDATION,
        params=top.num_parameters(),
        ms_per_request=records[-1]["latency_ms"]["top"] if records else None,
        note=f"the top: {shape_of(top.decoder)}",
        **_of_gate(verdicts, records[0]["name"], "reference") if records else {},
    )
    rows = [top_row]
    for record in records:
        rows.append(
            TableRow(
                model=record["name"],
                params=record["parameters"],
                ms_per_request=record["latency_ms"]["rung"],
                note=_note(record),
                **_of_gate(verdicts, record["name"], "candidate"),
            )
        )
    report = Report(
        title="Decant: the ladder",
        summary=_summary(records, config, ended),
        facts=_facts(records),
        table=rows,
        by_size=_points(records, rows, failed, size="parameters"),
        by_latency=_points(records, rows, failed, size="latency_ms"),
        by_rung=_points(records, rows, failed, size="place"),
        gates=[
            gate_table(
                verdicts[record["name"], against],
                student=record["name"],
                teacher=f"{record['above']}, the rung above" if against == "above" else "the top",
                note=_gate_note(record, verdicts[record["name"], against]),
            )
            for record in records
            for against in ("above", "top")
        ],
        notes=[
            *_of_one_task([task.name for task in top.prompter.tasks]),
            "AUC, NDCG@10 and calibration error are those that the gate rested on, on validation "
            "targets; what the test targets say is in the plots, and decided nothing.",
            "Parameters count the decoder's body: without embeddings, heads and the item table.",
            "ms / request is the median of retrieving 200 and ranking them, models asked in turn.",
            "A filled point passed the gate, a hollow one is undecided, and a cross is a step that "
            "failed, as it was when the ladder took a smaller one or ended.",
        ],
        run=run,
    )
    write_report(layout.folder, report, name="ladder")
    content = {
        "ended": ended,
        "config": run.config["ladder"],
        "rungs": list(records),
        "failed": list(failed),
    }
    write_whole(layout.folder / "ladder.json", json.dumps(content, indent=2) + "\n")
    lines = [
        f"{record['name']}: {_verdict_word(record, verdicts)}"
        + (f" against {', '.join(_open_points(record, verdicts))}" if not _passed(record) else "")
        for record in records
    ]
    return "\n".join([format_table(rows), "", *lines, f"It ends: {ended}."])


def _of_one_task(names: Sequence[str]) -> list[str]:
    """What the gate does not look at, where a model has more than one task."""
    if len(names) == 1:
        return []
    others = ", ".join(names[1:])
    return [f"The gate rests on {names[0]} alone: what is lost on {others} is not measured."]


def _gate_note(record: Mapping[str, Any], verdict: GateVerdict) -> str:
    told = [
        f"Waived: {waiver.metric}, a loss of {waiver.loss:g} accepted ({waiver.reason}); it buys "
        f"{waiver.bought}."
        for waiver in verdict.waivers
    ]
    failed = [one for one in record["attempts"] if one["status"] == "fail"]
    if failed:
        steps = ", ".join(f"{one['step']:.0%}" for one in failed)
        told.insert(0, f"Larger steps failed before: {steps}.")
    told.insert(0, f"It rests on {record['num_targets']:,} held-out slates.")
    return " ".join(told)


def _of_gate(
    verdicts: Mapping[tuple[str, str], GateVerdict], name: str, side: str
) -> dict[str, Any]:
    numbers = {one.metric: getattr(one, side) for one in verdicts[name, "top"].metrics}
    return {
        "auc": numbers.get("auc"),
        "ndcg_at_10": numbers.get("ndcg@10"),
        "ece": numbers.get("ece"),
    }


def _note(record: Mapping[str, Any]) -> str:
    shape = ", ".join(f"{size} {what}" for what, size in record["shape"].items())
    tried = len(record["attempts"])
    times = "" if tried == 1 else f"; step {tried} that was tried"
    p99_ms = record["p99_ms"]["rung"]
    slowest = "" if p99_ms is None else f"; p99 {p99_ms:.1f} ms"
    return f"{record['ratio']:.1%} of the body: {shape}; {record['status']}{times}{slowest}"


def _summary(records: Sequence[Mapping[str, Any]], config: LadderConfig, ended: str) -> str:
    made = {"above": "the rung above", "top": "the top", "both": "the rung above and the top"}
    taught = "plainly trained" if config.teacher is None else f"taught by {made[config.taught_by]}"
    repaired = "pruned, repaired by least squares" if config.repair else "pruned"
    return (
        f"{len(records)} rungs, each {repaired} and {taught}, in steps of at most "
        f"{config.max_step:.0%} of the body. Against the rung above {config.max_loss:.1%} of AUC "
        f"and NDCG@10 may be lost, against the top {config.max_loss_vs_top:.1%}. It ends: {ended}."
    )


def _facts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    if not records:
        return []
    last = records[-1]
    counts = [one["status"] for one in records]
    facts = [
        ("smaller body", f"{1 / last['ratio']:.1f}×"),
        ("faster requests", f"{last['latency_ms']['top'] / last['latency_ms']['rung']:.1f}×"),
        ("body parameters", format_count(last["parameters"])),
        ("embeddings, apart", format_count(last["embedding_parameters"])),
        ("passed", f"{counts.count('pass')} of {len(counts)}"),
    ]
    lost = last["test"].get("loss_vs_top")
    if lost:
        said = f"{lost['value']:+.1%}"
        facts.append((f"NDCG@10 lost on test ({lost['low']:+.1%} to {lost['high']:+.1%})", said))
    return facts


def _points(
    records: Sequence[Mapping[str, Any]],
    rows: Sequence[TableRow],
    failed: Sequence[Mapping[str, Any]],
    *,
    size: Literal["parameters", "latency_ms", "place"],
) -> list[SizePoint]:
    """Quality against some size, on the test targets and as the gate saw it.

    The gate's has the top and, as crosses, the steps that failed, which were not tested.
    """
    sizes = [
        {"parameters": row.params, "latency_ms": row.ms_per_request, "place": place}[size]
        for place, row in enumerate(rows)
    ]
    points = []
    for metric in _SHOWN:
        for record, row, at in zip(records, rows[1:], sizes[1:], strict=True):
            found = record["test"].get(metric)
            if found and at is not None:
                points.append(
                    SizePoint(
                        model=row.model,
                        params=at,
                        metric=f"{METRIC_NAMES[metric]}, test",
                        value=found["value"],
                        low=found["low"],
                        high=found["high"],
                        status=record["status"],
                    )
                )
    for metric in _SHOWN:
        statuses = ["pass", *(record["status"] for record in records)]
        for row, at, status in zip(rows, sizes, statuses, strict=True):
            value = row.ndcg_at_10 if metric == "ndcg@10" else row.auc
            if value is not None and at is not None:
                points.append(
                    SizePoint(
                        model=row.model,
                        params=at,
                        metric=f"{METRIC_NAMES[metric]}, gate",
                        value=value,
                        status=status,
                    )
                )
        for place, attempts in enumerate([*(r["attempts"] for r in records), failed], start=1):
            for attempt in attempts:
                at = {
                    "parameters": attempt["parameters"] or None,
                    "latency_ms": attempt["measured"].get("latency_ms"),
                    "place": place,
                }[size]
                value = attempt["measured"].get(metric)
                if attempt["status"] == "fail" and value is not None and at is not None:
                    points.append(
                        SizePoint(
                            model="",
                            params=at,
                            metric=f"{METRIC_NAMES[metric]}, gate",
                            value=value,
                            status="fail",
                        )
                    )
    return points


def _passed(record: Mapping[str, Any]) -> bool:
    return bool(record["status"] == "pass")


def _verdict_word(
    record: Mapping[str, Any], verdicts: Mapping[tuple[str, str], GateVerdict]
) -> str:
    if record["accepted"] and not _passed(record):
        return "waived"
    return str(record["status"])


def _open_points(
    record: Mapping[str, Any], verdicts: Mapping[tuple[str, str], GateVerdict]
) -> list[str]:
    return [
        f"the {'rung above' if against == 'above' else 'top'} in {one.metric} ({one.reason})"
        for against in ("above", "top")
        for one in verdicts[record["name"], against].metrics
        if one.status != "pass"
    ]
