"""The page of results: every file of rows with its plots, where it was measured, at what cost."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from pathlib import Path

from benchmarks.report.figures import CAPTIONS, figures_of
from decant.panels import to_png
from decant.results import ResultRow
from promptify.whole import write_whole

Files = Mapping[str, Sequence[ResultRow]]

_OF_TRAININGS = {"quality", "sweep"}
"""Benchmarks that say of a trained model how long its training took."""
_CSS = "figure img { display: block; width: 100%; background: #fff; border-radius: 8px; }"


def page(files: Files) -> str:
    """The index as HTML; plots are named and not drawn."""
    sections = []
    for name, rows in files.items():
        plots = "".join(
            f'<figure><img src="{_png(name, plot)}" alt="{escape(CAPTIONS[plot])}">'
            f"<figcaption>{escape(CAPTIONS[plot])}</figcaption></figure>"
            for plot in figures_of(rows)
        )
        link = f'<a href="../../benchmarks/results/{name}.csv">{len(rows):,} rows</a>'
        sections.append(
            f'<section><h2>{escape(name)}</h2><p class="hint">{link} · {_facts(rows)}</p>{plots}'
            "</section>\n"
        )
    lead = (
        f"{sum(map(len, files.values())):,} numbers of {len(files)} files, each with the machine, "
        "the commit and the settings that it was measured with. This page and its plots are made "
        "of those files alone, by <code>python -m benchmarks.report</code>, and so is the "
        '<a href="results.xlsx">spreadsheet</a> of them all. Of several seeds plots show the mean '
        "where a row says it, and the smallest seed where none does. Machine time is at least what "
        "the rows tell: a moment in which something was measured counts once, and neither what an "
        "earlier call had kept nor the training of a run that was only read is in it."
    )
    css = resources.files("decant").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Decant: results</title><style>\n{css}{_CSS}</style></head><body><main>"
        f'<header><h1>Decant: results</h1><p class="lead">{lead}</p></header>\n'
        f"{''.join(sections)}</main></body></html>\n"
    )


def write_page(out: Path, files: Files) -> None:
    """Write the page and draw its plots; plots of files that are gone are removed.

    Args:
        out: the folder; made if need be.
        files: rows by the name of their file.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = {
        _png(name, plot): draw
        for name, rows in files.items()
        for plot, draw in figures_of(rows).items()
    }
    for name, draw in drawn.items():
        write_whole(out / name, to_png(draw()))
    write_whole(out / "index.html", page(files))
    for path in out.glob("*.png"):
        if path.name not in drawn:
            path.unlink()


def plot_names(files: Files) -> set[str]:
    """What the page's plots are called."""
    return {_png(name, plot) for name, rows in files.items() for plot in figures_of(rows)}


def machine_seconds(rows: Sequence[ResultRow]) -> float:
    """At least how long a machine worked for some rows; 0 where none of them says.

    A row's `seconds` end when it was written, and most begin with the call that wrote it or with
    its part: rows of one call overlap, and what they cover together counts once. Of trainings,
    which may have ended long before their rows were written, the seconds are added up.
    """
    ends = [(datetime.fromisoformat(row.timestamp).timestamp(), row.seconds or 0) for row in rows]
    covered, until = 0.0, -math.inf
    for begin, end in sorted((end - seconds, end) for end, seconds in ends):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    trained = {
        (row.config_hash, row.seed, row.seconds)
        for row in rows
        if row.benchmark in _OF_TRAININGS and row.params
    }
    return max(covered, sum(seconds or 0 for _, _, seconds in trained))


def _png(name: str, plot: str) -> str:
    return f"{name}.{plot}.png"


def _time(seconds: float) -> str:
    """A time in its largest unit, not rounded up."""
    size, unit = 1, "second"
    for larger_size, larger in ((60, "minute"), (3600, "hour")):
        if seconds >= larger_size:
            size, unit = larger_size, larger
    count = math.floor(10 * seconds / size) / 10
    return f"{count:g} machine {unit}{'s' * (count != 1)}"


def _facts(rows: Sequence[ResultRow]) -> str:
    """What measured the rows, with which seeds, where, when and for how long, in one line."""
    seeds = sorted({str(row.seed) for row in rows if row.seed != "mean"})
    commits = sorted({(row.commit or "no commit")[:10] for row in rows})
    days = sorted({row.timestamp[:10] for row in rows})
    told = [
        "benchmark " + " and ".join(sorted({row.benchmark for row in rows})),
        ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(seeds),
        "; ".join(sorted({row.hardware for row in rows})),
        ("commit " if len(commits) == 1 else "commits ") + ", ".join(commits),
        " to ".join(dict.fromkeys((days[0], days[-1]))),
    ]
    seconds = machine_seconds(rows)
    if seconds:
        told.append(f"at least {_time(seconds)}")
    return escape(" · ".join(told))
