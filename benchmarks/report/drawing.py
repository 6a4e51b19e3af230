"""Two kinds of figures, of which all of the pages' plots are made: dots and curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from decant.panels import MUTED, SERIES, draw_intervals, format_count, label_ends, look, panels
from decant.results import ResultRow

Rows = Sequence[ResultRow]
Makers = dict[str, Callable[[], Figure]]
"""Functions that draw the plots of a file, by the name of the plot."""
Estimate = tuple[float, float | None, float | None]
"""A value, and the ends of its interval or None."""

_LEVEL_LETTERS = 44
"""Most that stand beside each other under half a page, two blanks between ticks among them."""
_LINE_INCHES = 0.24
_WIDE_INCHES = 3.4
"""Height of a panel as wide as the page."""
_SHORT_FROM = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A line of a panel.

    Attributes:
        name: at its end; curves of one name share a colour, and what is only ever dashed is grey.
        places: where each point stands, an index into the ticks or a number.
        points: one per place.
        dashed: of what is no measurement of the same kind: an extrapolation, a reference.
    """

    name: str
    places: Sequence[float]
    points: Sequence[Estimate]
    dashed: bool = False


def estimate(row: ResultRow, *, times: float = 1) -> Estimate:
    """What a row says, to be drawn; so many times it, for another unit."""
    low, high = (None if end is None else times * end for end in (row.ci_low, row.ci_high))
    return times * row.value, low, high


def dots(
    told: Mapping[str, Sequence[tuple[str, Estimate]]],
    *,
    log: bool = False,
    across: float | None = None,
) -> Figure:
    """A panel per heading: names from the top down, a point with its interval for each.

    Args:
        told: names and values by heading.
        log: whether values stand on a log scale.
        across: a value to draw a line at.
    """
    lines = {
        heading: sum(name.count("\n") + 1 for name, _ in values) for heading, values in told.items()
    }
    models = list(dict.fromkeys(name for values in told.values() for name, _ in values))

    def draw(axes: Axes, heading: str) -> None:
        names = [name for name, _ in told[heading]]
        for place, (_, (value, low, high)) in enumerate(told[heading]):
            # A model looks the same in every panel while there are looks enough.
            color, marker = look(names[place], models if len(models) <= len(SERIES) else names)
            ends = [
                [0.0 if low is None else value - low],
                [0.0 if high is None else high - value],
            ]
            axes.errorbar(
                [value],
                [place],
                xerr=[[max(0.0, end) for end in side] for side in ends],
                color=color,
                marker=marker,
                elinewidth=1.2,
                capsize=2.5,
            )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        if across is not None:
            axes.axvline(across, color=MUTED, linewidth=1)

    columns = 1 if len(told) == 1 else 2
    return panels(
        list(told), draw, columns=columns, panel_inches=1.0 + _LINE_INCHES * max(lines.values())
    )


def curves(
    told: Mapping[str, Sequence[Curve]],
    *,
    x_label: str,
    ticks: Sequence[str] | None = None,
    across: Mapping[str, float] | None = None,
    wide: bool = False,
) -> Figure:
    """A panel per heading with curves that carry their names.

    Args:
        told: curves by heading.
        x_label: under each panel.
        ticks: what places are called; None where they are numbers on a log scale.
        across: a value to draw a line at, of the headings that have one.
        wide: whether panels stand below each other: for many points, or long names.
    """
    drawn = [curve for lines in told.values() for curve in lines]
    names = list(dict.fromkeys(curve.name for curve in drawn if not curve.dashed))

    def draw(axes: Axes, heading: str) -> None:
        if across and heading in across:
            axes.axhline(across[heading], color=MUTED, linewidth=1)
        ends: dict[str, tuple[float, str, str]] = {}
        shown = list(dict.fromkeys(curve.name for curve in told[heading]))
        for curve in told[heading]:
            color, marker = look(curve.name, names) if curve.name in names else (MUTED, "o")
            places = list(curve.places)
            if ticks is not None:
                # Side by side within a tick, so that no error bar hides another.
                aside = (0.06 if wide else 0.1) * (shown.index(curve.name) - (len(shown) - 1) / 2)
                places = [place + aside for place in places]
            before = len(axes.lines)
            draw_intervals(axes, places, curve.points, color=color, marker=marker, joined=True)
            if curve.dashed:
                axes.lines[before].set_linestyle((0, (4, 3)))
            ends[curve.name] = (curve.points[-1][0], curve.name, color)
        if ticks is not None:
            slanted = len("  ".join(ticks)) > _LEVEL_LETTERS * (2 if wide else 1)
            axes.set_xticks(range(len(ticks)), ticks, rotation=45 if slanted else 0)
            if wide:
                axes.set_xlim(-0.5, len(ticks) - 0.5)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if axes.get_ylim()[1] >= _SHORT_FROM:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_count(y)))
        axes.set_xlabel(x_label)
        label_ends(axes, list(ends.values()))

    columns = 1 if wide or len(told) == 1 else 2
    return panels(list(told), draw, columns=columns, panel_inches=_WIDE_INCHES if wide else None)
