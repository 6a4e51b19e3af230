"""What every figure of the house shares: its style, its panels, names at the ends of its lines.

A figure is drawn once and saved twice: a PNG on white to pass around, and an SVG whose colours are
the page's CSS variables, so that it follows the reader's light or dark theme.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def look(model: str, models: Sequence[str]) -> tuple[str, str]:
    """The colour and marker of a model, the same in every figure."""
    place = list(models).index(model) if model in models else len(models)
    return SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]


def panels(
    metrics: Sequence[str],
    draw: Callable[[Axes, str], None],
    *,
    columns: int | None = None,
    panel_inches: float | None = None,
) -> Figure:
    """A figure with a panel per metric.

    Args:
        metrics: headings of the panels.
        draw: fills the axes of one.
        columns: panels beside each other; by their number when None.
        panel_inches: height of one; by its width when None.
    """
    if columns is None:
        columns = 3 if len(metrics) % 3 == 0 or len(metrics) > 4 else 2
    rows = -(-len(metrics) // columns)
    height = panel_inches or 0.3 + 0.57 / columns * _WIDTH_INCHES
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(_WIDTH_INCHES, height * rows),
            layout="constrained",
        )
        for index, metric in enumerate(metrics):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.set_title(metric)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            draw(axes, metric)
    return figure


def draw_intervals(
    axes: Axes,
    x: Sequence[float],
    points: Sequence[tuple[float, float | None, float | None]],
    *,
    color: str,
    marker: str,
    joined: bool = False,
    hollow: bool = False,
) -> None:
    """Points with error bars.

    Args:
        axes: of the panel.
        x: where each stands.
        points: value, and the ends of its interval or None.
        color: of `look`.
        marker: of `look`.
        joined: by a line.
        hollow: whether markers are drawn as outlines.
    """
    values = np.array([value for value, _, _ in points])
    low = np.array([value if low is None else low for value, low, _ in points])
    high = np.array([value if high is None else high for value, _, high in points])
    axes.errorbar(
        x,
        values,
        yerr=np.stack([values - low, high - values]).clip(min=0),
        color=color,
        marker=marker,
        markerfacecolor="none" if hollow else color,
        linestyle="-" if joined else "none",
        elinewidth=1.2,
        capsize=2.5,
    )


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
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
