"""The report of a run: one self-contained HTML page, its plots, and a table for the terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Literal

from decant import panels, plots
from decant.panels import format_count
from decant.plots import HistoryPoint, ReliabilityLine, SizePoint
from decant.run_record import RunRecord
from promptify.whole import write_whole

Status = Literal["pass", "fail", "undecided", "waived"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One line of the final table; None where a number does not apply.

    Attributes:
        model: its name, as in results files.
        params: number of parameters.
        auc: area under the ROC curve of the action readout.
        hr_at_10: hit rate in the first ten, full catalogue.
        ndcg_at_10: NDCG in the first ten, full catalogue.
        ece: calibration error of what is served.
        ece_uncalibrated: the same before calibration.
        ms_per_request: median milliseconds for one request.
        policy_alignment: share of held-out pairs whose grade is the policy's.
        top10_grade: the policy's grade of the first ten, as a share of the best.
        note: a few words on what the model is.
        num_targets: held-out targets that its ranking was measured on.
        is_apart: whether it was measured at another time than the others: its row is marked.
    """

    model: str
    params: int | None = None
    auc: float | None = None
    hr_at_10: float | None = None
    ndcg_at_10: float | None = None
    ece: float | None = None
    ece_uncalibrated: float | None = None
    ms_per_request: float | None = None
    policy_alignment: float | None = None
    top10_grade: float | None = None
    note: str = ""
    num_targets: int | None = None
    is_apart: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLine:
    """What the gate found for one metric.

    Attributes:
        metric: its name.
        loss: how much the student is worse, a fraction if `relative`; negative if it is better.
        bound: one-sided 95 % upper bound of the loss; None where none is estimated.
        tolerance: the most that is accepted.
        relative: whether loss, bound and tolerance are fractions of the teacher's value.
        status: the verdict for this metric.
    """

    metric: str
    loss: float
    bound: float | None
    tolerance: float
    relative: bool
    status: Status


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTable:
    """The gate's verdict on one rung.

    Attributes:
        student: the rung that was judged.
        teacher: what it was compared with: the rung above, or the top.
        verdict: of all metrics together.
        lines: one per metric.
        note: what a waiver bought, or what was tried before; may be empty.
    """

    student: str
    teacher: str
    verdict: Status
    lines: Sequence[GateLine]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedItem:
    """One predicted item.

    Attributes:
        title: the item in words.
        probabilities: probability of each action, by its label.
        retrieval_score: what the index said; None if the item was not retrieved.
    """

    title: str
    probabilities: Mapping[str, float]
    retrieval_score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplePrediction:
    """What is predicted for one person.

    Attributes:
        heading: who it is, in a few words: `A member with two events`.
        profile: the profile in words.
        history: events in words, oldest first; may be empty.
        items: best first.
    """

    heading: str
    profile: str
    history: Sequence[str]
    items: Sequence[RankedItem]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that the page shows; a part that is empty is left out.

    Attributes:
        title: of the page.
        summary: what was run and what came out, in two or three sentences.
        facts: headline figures, (what, value).
        table: the final table, in the order in which models get their colours.
        curves: `model/metric` to its points, (optimiser step, value).
        by_history: quality by history length.
        by_size: quality against size.
        by_latency: quality against the time of a request, with milliseconds for sizes.
        by_rung: quality against the place on a ladder, 0 at the top.
        reliability: probabilities against what happened.
        gates: verdicts, from the top down.
        predictions: examples.
        notes: caveats that belong beside the numbers.
        run: what was run, with what.
    """

    title: str
    summary: str
    table: Sequence[TableRow]
    facts: Sequence[tuple[str, str]] = ()
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None
    by_history: Sequence[HistoryPoint] = ()
    by_size: Sequence[SizePoint] = ()
    by_latency: Sequence[SizePoint] = ()
    by_rung: Sequence[SizePoint] = ()
    reliability: Sequence[ReliabilityLine] = ()
    gates: Sequence[GateTable] = ()
    predictions: Sequence[ExamplePrediction] = ()
    notes: Sequence[str] = ()
    run: RunRecord | None = None


_COLUMNS = (
    "model",
    "parameters",
    "AUC",
    "HR@10",
    "NDCG@10",
    "ECE",
    "uncalibrated",
    "ms / request",
)
_POLICY_COLUMNS, _NUM_BEFORE = ("policy", "grade of 10"), 5
_TARGETS, _NUM_WHO = "targets", 2
APART = "*"
"""Marks a row that was measured at another time than the others."""


def format_table(rows: Sequence[TableRow]) -> str:
    """The final table as aligned plain text, without a newline at its end.

    Example:
        >>> print(format_table([TableRow(model="rung-1", params=950_000, auc=0.7812)]))
        model   parameters     AUC  HR@10  NDCG@10  ECE  uncalibrated  ms / request
        ------  ----------  ------  -----  -------  ---  ------------  ------------
        rung-1       950 K  0.7812      –        –    –             –             –
    """
    cells = _table_cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def write_report(out: Path, report: Report, *, name: str = "report") -> Path:
    """Write `report.html`, and its plots as PNG under `plots/`, into an existing folder.

    The page needs nothing else: styles and plots are inside it, and it loads nothing.

    Args:
        out: the folder.
        report: what is shown.
        name: of the page; the plots of another than `report` have it in front of theirs.

    Returns:
        The page's path.
    """
    models = [row.model for row in report.table]
    figures = {}
    if report.curves:
        figures["training-curves"] = plots.training_curves(report.curves, models=models)
    if report.by_history:
        figures["quality-by-history"] = plots.quality_by_history(report.by_history, models=models)
    if report.by_size:
        figures["quality-by-size"] = plots.quality_by_size(report.by_size, models=models)
    if report.by_latency:
        figures["quality-by-latency"] = plots.quality_by_size(
            report.by_latency, models=models, size="ms / request"
        )
    if report.by_rung:
        figures["quality-by-rung"] = plots.quality_by_size(
            report.by_rung, models=models, size="rung"
        )
    if report.reliability:
        figures["reliability"] = plots.reliability(report.reliability, models=models)
    (out / "plots").mkdir(exist_ok=True)
    svgs = {}
    before = "" if name == "report" else f"{name}-"
    for plot, figure in figures.items():
        write_whole(out / "plots" / f"{before}{plot}.png", panels.to_png(figure))
        svgs[plot] = panels.to_svg(figure, name=plot, description=plot.replace("-", " "))
    path = out / f"{name}.html"
    write_whole(path, _page(report, svgs))
    return path


def _page(report: Report, svgs: Mapping[str, str]) -> str:
    css = resources.files("decant").joinpath("report.css").read_text("utf-8")
    facts = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>"
        for what, value in report.facts
    )
    body = [
        f'<header><h1>{escape(report.title)}</h1><p class="lead">{escape(report.summary)}</p>',
        f'<dl class="facts">{facts}</dl>' if facts else "",
        "</header>",
        _section("Results", "", _results(report)),
    ]
    for name, heading, hint in (
        ("quality-by-size", "Quality against size", "Bars are 95 % intervals."),
        (
            "quality-by-latency",
            "Quality against the time of a request",
            "Median milliseconds to retrieve and rank, models asked in turn.",
        ),
        ("quality-by-rung", "Quality by rung", "From the top, 0, down."),
        (
            "quality-by-history",
            "Quality by length of history",
            "The same people, with all but the newest events of their history left out. "
            "Bars are 95 % intervals.",
        ),
        (
            "reliability",
            "Reliability",
            "Probability of a good action against how often it came, in bins of equally many "
            "events; on the line across, the two agree. Dashed: before calibration.",
        ),
        ("training-curves", "Training", "Losses and validation metrics by optimiser step."),
    ):
        if name in svgs:
            body.append(_section(heading, hint, f'<figure class="scroll">{svgs[name]}</figure>'))
    body += [_gate(gate) for gate in report.gates]
    if report.predictions:
        people = "".join(map(_prediction, report.predictions))
        hint = "The served model's best items, with the probability of each action."
        body.append(_section("Predictions", hint, f'<div class="people">{people}</div>'))
    if report.run:
        body.append(_run(report.run))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>\n{css}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, body))}\n</main></body></html>\n"
    )


def _section(heading: str, hint: str, content: str) -> str:
    said = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    return f"<section><h2>{escape(heading)}</h2>{said}{content}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are escaped already; a cell may bring its own `<td …>`."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _table_cells(table: Sequence[TableRow]) -> list[tuple[str, ...]]:
    """The final table, its header first; columns of policy and counts only where a row has any."""
    has_policy = any(
        value is not None for row in table for value in (row.policy_alignment, row.top10_grade)
    )
    has_targets = any(row.num_targets is not None for row in table)
    policy = _POLICY_COLUMNS if has_policy else ()
    targets = (_TARGETS,) if has_targets else ()
    # Policy beside what people did, before how sure the model is and how long it takes.
    who, found = _COLUMNS[:_NUM_WHO], _COLUMNS[_NUM_WHO:_NUM_BEFORE]
    header = (*who, *targets, *found, *policy, *_COLUMNS[_NUM_BEFORE:])
    rows = (_cells(row, has_policy=has_policy, has_targets=has_targets) for row in table)
    return [header, *rows]


def _cells(row: TableRow, *, has_policy: bool, has_targets: bool) -> tuple[str, ...]:
    policy = (row.policy_alignment, row.top10_grade) if has_policy else ()
    count = "–" if row.num_targets is None else f"{row.num_targets:,}"
    quality = (row.auc, row.hr_at_10, row.ndcg_at_10, *policy, row.ece, row.ece_uncalibrated)
    return (
        f"{row.model} {APART}" if row.is_apart else row.model,
        "–" if row.params is None else format_count(row.params),
        *((count,) if has_targets else ()),
        *("–" if value is None else f"{value:.4f}" for value in quality),
        "–" if row.ms_per_request is None else f"{row.ms_per_request:.1f}",
    )


def _results(report: Report) -> str:
    header, *told = _table_cells(report.table)
    rows = []
    for row, cells in zip(report.table, told, strict=True):
        model, *numbers = map(escape, cells)
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        rows.append([f'<td class="words"><strong>{model}</strong>{note}</td>', *numbers])
    notes = "".join(f'<p class="hint">{escape(note)}</p>' for note in report.notes)
    return _table(header, rows) + notes


def _gate(gate: GateTable) -> str:
    rows = [
        [
            escape(line.metric),
            *(
                "–" if value is None else f"{value:+.2%}" if line.relative else f"{value:+.4f}"
                for value in (line.loss, line.bound, line.tolerance)
            ),
            _verdict(line.status),
        ]
        for line in gate.lines
    ]
    hint = (
        "Loss is how much worse the student is; the bound is its one-sided 95 % upper limit. "
        "A metric passes when the bound is within the tolerance. " + gate.note
    )
    verdict = f"<p>{_verdict(gate.verdict)} overall</p>"
    header = ("metric", "loss", "bound", "tolerance", "verdict")
    heading = f"The gate: {gate.student} against {gate.teacher}"
    return _section(heading, hint, verdict + _table(header, rows))


def _verdict(status: Status) -> str:
    sign = {"pass": "✓", "fail": "✗", "undecided": "?", "waived": "○"}[status]
    return f'<span class="verdict {status}">{sign} {status}</span>'


def _prediction(person: ExamplePrediction) -> str:
    history = "".join(f"<li>{escape(event)}</li>" for event in person.history)
    actions = list(dict.fromkeys(action for item in person.items for action in item.probabilities))
    rows = [
        [
            f'<td class="words">{escape(item.title)}</td>',
            *(_probability(item.probabilities.get(action)) for action in actions),
            "–" if item.retrieval_score is None else f"{item.retrieval_score:.3f}",
        ]
        for item in person.items
    ]
    return (
        f'<div class="person"><h3>{escape(person.heading)}</h3><p>{escape(person.profile)}</p>'
        + (f'<ul class="history">{history}</ul>' if history else '<p class="hint">No events.</p>')
        + _table(("item", *actions, "retrieval"), rows)
        + "</div>"
    )


def _probability(value: float | None) -> str:
    if value is None:
        return "–"
    return f'{value:.1%}<span class="bar"><i style="width:{100 * value:.0f}%"></i></span>'


def _run(run: RunRecord) -> str:
    said = {
        "command": " ".join(run.command),
        "commit": run.commit or "not from a checkout",
        "config hash": run.config_hash,
        "seed": str(run.seed),
        "hardware": run.hardware,
        "started": run.started,
        "finished": run.finished or "–",
        "peak memory": "–"
        if run.peak_rss_bytes is None
        else f"{run.peak_rss_bytes / 2**30:.2f} GiB",
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in said.items())
    config = escape(json.dumps(asdict(run)["config"], indent=2, ensure_ascii=False))
    details = f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
    return _section("How to run it again", "", f'<dl class="record">{lines}</dl>{details}')
