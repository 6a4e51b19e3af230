"""The report's figures: training curves, quality by history length and by size, reliability.

Each figure is drawn once and saved twice: a PNG on white to pass around, and an SVG whose colours
are the page's CSS variables, so that it follows the reader's light or dark theme.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, MUTED, LINE = "#1f2430", "#667085", "#dfe3ea"
# Okabe and Ito's colours, darkened where they would not read as text on white.
SERIES = ("#0072b2", "#c4500a", "#008a66", "#a8508c", "#8a6d00", "#5b6472", "#b0123f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CSS_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    **{color: f"var(--series-{index})" for index, color in enumerate(SERIES)},
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.constrained_layout.w_pad": 0.15,  # inches
    "figure.constrained_layout.h_pad": 0.12,
    "svg.fonttype": "none",  # text stays text: searchable, and set in the page's own typeface
}
_WIDTH_INCHES = 9.6
_LABEL_INCHES = 0.17  # a line of the names beside the panels
_MARGIN_INCHES = 0.95  # title, ticks and axis label of a panel


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryPoint:
    """One model's quality on the targets of one length of history.

    Attributes:
        bucket: history length in words, `0`, `1–5`, ...; buckets are drawn in the order given.
        model: its name.
        metric: `NDCG@10`, `AUC`, ...; a panel each.
        value: the metric.
        low: lower end of the 95 % interval, or None.
        high: upper end of it, or None.
        n: number of targets in the bucket.
        n_of: what `n` counts, in words.
    """

    bucket: str
    model: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    n_of: str = "targets"


@dataclass(frozen=True, kw_only=True, slots=True)
class SizePoint:
    """One model's size and quality.

    Attributes:
        model: its name.
        params: number of parameters, or what else stands for its size (milliseconds, its place on
            a ladder); None for a line across (popularity, the oracle).
        metric: `NDCG@10`, `AUC`, ...; a panel each.
        value: the metric.
        low: lower end of the 95 % interval, or None.
        high: upper end of it, or None.
    """

    model: str
    params: float | None
    metric: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityLine:
    """What one model said against what happened, a point per bin.

    Attributes:
        model: its name; a panel each.
        calibrated: as served, or before calibration.
        said: mean probability in each bin.
        happened: share of events in each bin that came out so.
    """

    model: str
    calibrated: bool
    said: Sequence[float]
    happened: Sequence[float]


def training_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, models: Sequence[str] = ()
) -> Figure:
    """A panel per metric with a line per model.

    Args:
        curves: `model/metric` to its points, (optimiser step, value).
        models: models in the order that gives them their colours.
    """
    metrics = list(dict.fromkeys(name.rpartition("/")[2] for name in curves))

    def draw(axes: Axes, metric: str) -> None:
        labels = []
        for name, points in curves.items():
            model, _, of_metric = name.rpartition("/")
            if of_metric != metric or not points:
                continue
            steps, values = zip(*points, strict=True)
            color, _ = _look(model, models)
            axes.plot(steps, values, color=color, marker="." if len(points) < 12 else "")
            labels.append((values[-1], model, color))
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _label_ends(axes, labels)

    return _panels(metrics, draw)


def quality_by_history(points: Sequence[HistoryPoint], *, models: Sequence[str] = ()) -> Figure:
    """A panel per metric: quality in each bucket of history length, intervals as error bars.

    Under each bucket stands its number of targets, or once for all where they are equal.
    """
    metrics = list(dict.fromkeys(point.metric for point in points))
    buckets = list(dict.fromkeys(point.bucket for point in points))

    def draw(axes: Axes, metric: str) -> None:
        shown = [point for point in points if point.metric == metric]
        names = list(dict.fromkeys(point.model for point in shown))
        labels = []
        for place, name in enumerate(names):
            mine = [point for point in shown if point.model == name]
            # Side by side within a bucket, so that no error bar hides another.
            x = [
                buckets.index(point.bucket) + 0.14 * (place - (len(names) - 1) / 2)
                for point in mine
            ]
            color, marker = _look(name, models)
            _points_with_intervals(axes, x, mine, color=color, marker=marker, joined=True)
            labels.append((mine[-1].value, name, color))
        sizes = {point.bucket: point.n for point in shown}
        axes.set_xlabel("events in the history")
        if len(set(sizes.values())) == 1:
            axes.set_xticks(range(len(buckets)), buckets)
            axes.set_xlabel(f"events in the history  (n = {shown[0].n:,} {shown[0].n_of})")
        else:
            counts = [f"n={format_count(sizes[b])}" if b in sizes else "" for b in buckets]
            ticks = [f"{b}\n{count}" for b, count in zip(buckets, counts, strict=True)]
            axes.set_xticks(range(len(buckets)), ticks, fontsize=8)
            axes.set_xlabel(f"events in the history, n = {shown[0].n_of}")
        _label_ends(axes, labels)

    return _panels(metrics, draw)


def quality_by_size(
    points: Sequence[SizePoint],
    *,
    models: Sequence[str] = (),
    size: Literal["parameters", "ms / request", "rung"] = "parameters",
) -> Figure:
    """A panel per metric: quality against size, baselines as lines across.

    Args:
        points: one per model and metric.
        models: models in the order that gives them their colours.
        size: what size is; all but places on a ladder on a log scale.
    """
    metrics = list(dict.fromkeys(point.metric for point in points))

    def draw(axes: Axes, metric: str) -> None:
        lines = []
        for point in points:
            if point.metric != metric:
                continue
            color, marker = _look(point.model, models)
            if point.params is None:
                axes.axhline(point.value, color=color, linestyle=(0, (4, 3)), linewidth=1.2)
                lines.append((point.value, point.model, color))
                continue
            _points_with_intervals(axes, [point.params], [point], color=color, marker=marker)
            axes.annotate(
                point.model,
                (point.params, point.value if point.high is None else point.high),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                color=color,
                fontsize=9,
            )
        sizes = [point.params for point in points if point.params is not None]
        if sizes and size == "rung":
            axes.set_xlim(min(sizes) - 0.5, max(sizes) + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif sizes:
            axes.set_xscale("log")
            axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(size)
        axes.margins(y=0.18)
        _label_ends(axes, lines)

    return _panels(metrics, draw)


def reliability(lines: Sequence[ReliabilityLine], *, models: Sequence[str] = ()) -> Figure:
    """A panel per model: said against happened, as served and (dashed) before calibration."""
    most = max(max(*line.said, *line.happened) for line in lines)

    def draw(axes: Axes, model: str) -> None:
        color, marker = _look(model, models)
        axes.plot([0, most], [0, most], color=MUTED, linewidth=1)
        labels = []
        for line in lines:
            if line.model != model:
                continue
            axes.plot(
                line.said,
                line.happened,
                color=color if line.calibrated else MUTED,
                marker=marker if line.calibrated else "",
                linestyle="-" if line.calibrated else (0, (4, 3)),
            )
            name = "as served" if line.calibrated else "uncalibrated"
            labels.append((line.happened[-1], name, color if line.calibrated else MUTED))
        axes.set_xlabel("probability said")
        axes.set_ylabel("share that happened")
        _label_ends(axes, labels)

    return _panels(list(dict.fromkeys(line.model for line in lines)), draw)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG on white, 160 dots per inch."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="png", dpi=160, facecolor="white")
    return file.getvalue()


def to_svg(figure: Figure, *, name: str, description: str) -> str:
    """The figure as an SVG element for an HTML page that defines the CSS variables.

    Args:
        figure: what one of the functions here returned.
        name: prefix that keeps the ids of several figures on one page apart.
        description: read out instead of the image; plain words, no markup.
    """
    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in _CSS_VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def format_count(count: float) -> str:
    """A count in at most four characters and a unit.

    Example:
        >>> [format_count(n) for n in (950, 1_500, 24_310, 1_900_000, 7e9)]
        ['950', '1.5 K', '24.3 K', '1.9 M', '7 B']
    """
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return f"{count:.0f}"


def _look(model: str, models: Sequence[str]) -> tuple[str, str]:
    """The colour and marker of a model, the same in every figure."""
    place = list(models).index(model) if model in models else len(models)
    return SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]


def _panels(metrics: Sequence[str], draw: Callable[[Axes, str], None]) -> Figure:
    columns = 3 if len(metrics) % 3 == 0 or len(metrics) > 4 else 2
    rows = -(-len(metrics) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(_WIDTH_INCHES, (0.3 + 0.57 / columns * _WIDTH_INCHES) * rows),
            layout="constrained",
        )
        for index, metric in enumerate(metrics):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.set_title(metric)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            draw(axes, metric)
    return figure


def _points_with_intervals(
    axes: Axes,
    x: Sequence[float],
    points: Sequence[HistoryPoint] | Sequence[SizePoint],
    *,
    color: str,
    marker: str,
    joined: bool = False,
) -> None:
    values = np.array([point.value for point in points])
    low = np.array([point.value if point.low is None else point.low for point in points])
    high = np.array([point.value if point.high is None else point.high for point in points])
    axes.errorbar(
        x,
        values,
        yerr=np.stack([values - low, high - values]).clip(min=0),
        color=color,
        marker=marker,
        linestyle="-" if joined else "none",
        elinewidth=1.2,
        capsize=2.5,
    )


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at the right edge: (value, name, colour) each, spread so that no names touch."""
    low, high = axes.get_ylim()
    labels = sorted(labels)
    gap = (high - low) * _LABEL_INCHES / _drawn_inches(axes)
    heights = _spread([value for value, _, _ in labels], gap=gap)
    for height, (_, name, color) in zip(heights, labels, strict=True):
        axes.annotate(
            name,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
        )
    axes.set_ylim(low, high)


def _drawn_inches(axes: Axes) -> float:
    """About how high a panel's axes will be; the layout that decides it runs when it is drawn."""
    place, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    assert place is not None
    assert figure is not None
    panel_inches = figure.get_size_inches()[1] / place.get_gridspec().nrows
    return max(0.5, float(panel_inches) - _MARGIN_INCHES)


def _spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Sorted heights moved apart to at least `gap`, each crowd about its own centre."""
    crowds: list[list[float]] = []
    for height in heights:
        crowds.append([height])
        while len(crowds) > 1:
            below, above = crowds[-2], crowds[-1]
            room = (len(below) + len(above)) / 2 * gap
            if np.mean(above) - np.mean(below) >= room:
                break
            crowds[-2:] = [below + above]
    return [
        float(np.mean(crowd)) + gap * (place - (len(crowd) - 1) / 2)
        for crowd in crowds
        for place in range(len(crowd))
    ]
