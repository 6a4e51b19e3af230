"""The gate's verdicts as a report shows them, and as a terminal says them."""

from decant.report import GateLine, GateTable, Status
from distill.gate import GateVerdict, MetricVerdict

METRIC_NAMES = {
    "ndcg@10": "NDCG@10",
    "auc": "AUC",
    "hr@10": "HR@10",
    "ece": "calibration error",
    "latency_ms": "ms / request",
}

_RISE = ("ece", "latency_ms")


def gate_table(verdict: GateVerdict, *, student: str, teacher: str, note: str = "") -> GateTable:
    """A verdict as the report shows it.

    Args:
        verdict: the gate's.
        student: the rung that was judged.
        teacher: what it was held against.
        note: what belongs beside it.
    """
    waived = {waiver.metric for waiver in verdict.waivers}

    def status(one: MetricVerdict) -> Status:
        return "waived" if one.metric in waived else one.status

    return GateTable(
        student=student,
        teacher=teacher,
        verdict="waived" if waived and verdict.accepted else verdict.status,
        lines=[
            GateLine(
                metric=METRIC_NAMES.get(line.metric, line.metric),
                loss=line.loss,
                bound=line.bound,
                tolerance=line.tolerance,
                relative=line.kind == "relative",
                status=status(line),
            )
            for line in verdict.metrics
            if line.loss is not None
        ],
        note=note,
    )


def in_words(verdict: GateVerdict) -> str:
    """A verdict in a few words: `fails it (NDCG@10 loses 3.0 %, at most 4.3 %, where …)`."""
    if verdict.status == "pass":
        return "lets it through"
    lost = "; ".join(_lost(one) for one in verdict.metrics if one.status == verdict.status)
    return f"{'fails it' if verdict.status == 'fail' else 'is undecided'} ({lost})"


def _lost(one: MetricVerdict) -> str:
    def said(number: float) -> str:
        if one.kind == "relative":
            return f"{number:.1%}".replace("%", " %")
        return f"{number:.4f}".replace("0.", ".", 1)

    name = METRIC_NAMES.get(one.metric, one.metric)
    if one.loss is None:
        return f"{name} was not measured"
    # Of an error and of time the loss is what they rise by.
    worse, better = ("rises by", "falls by") if one.metric in _RISE else ("loses", "gains")
    bound = None if one.bound is None or one.bound <= max(one.loss, 0) else said(one.bound)
    if one.loss >= 0:
        told = f"{worse} {said(one.loss)}" + ("" if bound is None else f", at most {bound},")
    else:
        told = f"{better} {said(-one.loss)}" + ("" if bound is None else f", or {worse} {bound},")
    return f"{name} {told} where {said(one.tolerance)} is let through"
