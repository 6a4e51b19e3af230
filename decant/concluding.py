"""How a run ends: its report, the record of the call that made its numbers, and the gate's word."""

import json
from dataclasses import dataclass
from pathlib import Path

from decant.gate_tables import in_words
from decant.layout import EVALUATION, FOUNDATION, RunLayout
from decant.measure import NEIGHBOURS
from decant.recipes import Recipe
from decant.reporting import write_run_report
from decant.run_record import RunRecord
from decant.stages import PlannedStage
from distill.gate import GateVerdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a run leaves to be said.

    Attributes:
        stages: which ran, or would, and why.
        table: the final table as text; empty after a dry run.
        verdict: what the gate says of what serves, in a line, and in another which baseline is
            beyond doubt better, where one is; empty after a dry run.
    """

    stages: tuple[PlannedStage, ...]
    table: str
    verdict: str = ""


def conclude(
    layout: RunLayout,
    recipe: Recipe,
    record: RunRecord,
    plan: tuple[PlannedStage, ...],
    *,
    continued_from: Path | None = None,
) -> Finished:
    """Write a run's report, and say how it ended.

    Where no stage ran, the report keeps the record of the call that made the numbers.

    Args:
        layout: the run.
        recipe: of it.
        record: of this call.
        plan: its stages.
        continued_from: the run folder of the older model that was trained on, if one was.
    """
    kept = None if any(stage.runs for stage in plan) else _kept_record(layout, plan)
    table = write_run_report(layout, recipe, kept or record.finish(), continued_from=continued_from)
    said = [told_by_gate(layout), told_by_baselines(layout, recipe)]
    return Finished(stages=plan, table=table, verdict="\n".join(filter(None, said)))


def _kept_record(layout: RunLayout, plan: tuple[PlannedStage, ...]) -> RunRecord | None:
    """The record of the call that ran a run's stages; None where that left none."""
    try:
        content = json.loads((layout.folder / "run.json").read_text("utf-8"))
        kept = RunRecord(**content)
        done = [
            json.loads((layout.folder / stage.name / "stage.json").read_text("utf-8"))["finished"]
            for stage in plan
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    # What ran last may have been killed before it wrote its own; the times are ISO 8601 in UTC.
    return kept if all(time <= (kept.finished or "") for time in done) else None


def told_by_gate(layout: RunLayout) -> str:
    """What the gate says of the run's smallest own model, and what serves, in a line."""
    judged = GateVerdict.load(layout.folder / EVALUATION / "verdict.json")
    *_, name = layout.compared()
    said = f"{name}: the gate {in_words(judged)}."
    served = layout.served()
    if served != name:
        return f"{said} {served} serves."
    if judged.status == "pass":
        return said
    below = (
        "; `decant ladder` makes rungs that serve where the gate lets them through"
        if layout.top == FOUNDATION
        else ""
    )
    return f"{said} It serves all the same{below}."


def told_by_baselines(layout: RunLayout, recipe: Recipe) -> str:
    """That what serves is behind a baseline on NDCG@10; empty where their intervals overlap."""
    metrics = json.loads((layout.folder / EVALUATION / "metrics.json").read_text("utf-8"))
    found = {one["model"]: one["metrics"].get("ndcg@10") for one in metrics["systems"]}
    # A rung of a ladder was measured when it was made, and not with the baselines.
    ours = found["system"] if layout.served() == layout.compared()[-1] else None
    theirs = {name: found[name] for name in ("popularity", *NEIGHBOURS) if found.get(name)}
    if not ours or not theirs:
        return ""
    best = max(theirs, key=lambda name: theirs[name]["value"])
    if theirs[best]["low"] <= ours["high"]:
        return ""
    values = [f"{one['value']:.3f}".removeprefix("0") for one in (ours, theirs[best])]
    return (
        f"What serves is behind {best} on NDCG@10 ({' for '.join(values)}, and their intervals do "
        f"not overlap); train longer: --epochs {10 * recipe.fit.epochs:g}."
    )
