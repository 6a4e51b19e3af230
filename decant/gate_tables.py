"""The gate's verdicts as a report shows them."""

from decant.report import GateLine, GateTable, Status
from distill.gate import GateVerdict, MetricVerdict

METRIC_NAMES = {
    "ndcg@10": "NDCG@10",
    "auc": "AUC",
    "hr@10": "HR@10",
    "ece": "calibration error",
    "latency_ms": "ms / request",
}


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
