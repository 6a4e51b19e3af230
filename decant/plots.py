"""The report's figures: training curves, quality by history length and by size, reliability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from decant.panels import MUTED, draw_intervals, format_count, label_ends, look, panels


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
        status: a gate's, if one was asked: undecided is hollow, and what failed is a cross without
            a name.
    """

    model: str
    params: float | None
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    status: Literal["pass", "undecided", "fail"] = "pass"


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
            color, _ = look(model, models)
            axes.plot(steps, values, color=color, marker="." if len(points) < 12 else "")
            labels.append((values[-1], model, color))
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        label_ends(axes, labels)

    return panels(metrics, draw)


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
            color, marker = look(name, models)
            told = [(point.value, point.low, point.high) for point in mine]
            draw_intervals(axes, x, told, color=color, marker=marker, joined=True)
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
        label_ends(axes, labels)

    return panels(metrics, draw)


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
            color, marker = look(point.model, models)
            if point.params is None:
                axes.axhline(point.value, color=color, linestyle=(0, (4, 3)), linewidth=1.2)
                lines.append((point.value, point.model, color))
                continue
            if point.status == "fail":
                axes.plot([point.params], [point.value], color=MUTED, marker="x", linestyle="")
                continue
            told = (point.value, point.low, point.high)
            hollow = point.status == "undecided"
            draw_intervals(axes, [point.params], [told], color=color, marker=marker, hollow=hollow)
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
        label_ends(axes, lines)

    return panels(metrics, draw)


def reliability(lines: Sequence[ReliabilityLine], *, models: Sequence[str] = ()) -> Figure:
    """A panel per model: said against happened, as served and (dashed) before calibration."""
    most = max(max(*line.said, *line.happened) for line in lines)

    def draw(axes: Axes, model: str) -> None:
        color, marker = look(model, models)
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
        label_ends(axes, labels)

    return panels(list(dict.fromkeys(line.model for line in lines)), draw)
