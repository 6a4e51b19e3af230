"""Two kinds of figures, of which all of the pages' plots are made: dots and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from decant.panels import MUTED, draw_intervals, format_count, label_ends, look, panels
from decant.results import ResultRow

Estimate = tuple[float, float | None, float | None]
"""A value, and the ends of its interval or None."""

_LEVEL_LETTERS = 44
"""Most that stand beside each other under half a page, two blanks between ticks among them."""
_LINE_INCHES = 0.24


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


def estimate(row: ResultRow) -> Estimate:
    """What a row says, to be drawn."""
    return row.value, row.ci_low, row.ci_high


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
    most = max(map(len, told.values()))

    def draw(axes: Axes, heading: str) -> None:
        names = [name for name, _ in told[heading]]
        for place, (_, (value, low, high)) in enumerate(told[heading]):
            color, marker = look(names[place], names)
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
    return panels(list(told), draw, columns=columns, panel_inches=1.0 + _LINE_INCHES * most)


def curves(
    told: Mapping[str, Sequence[Curve]],
    *,
    x_label: str,
    ticks: Sequence[str] | None = None,
    across: float | None = None,
    log: bool = False,
) -> Figure:
    """A panel per heading with curves that carry their names.

    Args:
        told: curves by heading.
        x_label: under each panel.
        ticks: what places are called; None where they are numbers on a log scale.
        across: a value to draw a line at.
        log: whether values stand on a log scale.
    """
    drawn = [curve for lines in told.values() for curve in lines]
    names = list(dict.fromkeys(curve.name for curve in drawn if not curve.dashed))

    def draw(axes: Axes, heading: str) -> None:
        if across is not None:
            axes.axhline(across, color=MUTED, linewidth=1)
        ends: dict[str, tuple[float, str, str]] = {}
        shown = list(dict.fromkeys(curve.name for curve in told[heading]))
        for curve in told[heading]:
            color, marker = look(curve.name, names) if curve.name in names else (MUTED, "o")
            places = list(curve.places)
            if ticks is not None:
                # Side by side within a tick, so that no error bar hides another.
                aside = 0.1 * (shown.index(curve.name) - (len(shown) - 1) / 2)
                places = [place + aside for place in places]
            before = len(axes.lines)
            draw_intervals(axes, places, curve.points, color=color, marker=marker, joined=True)
            if curve.dashed:
                axes.lines[before].set_linestyle((0, (4, 3)))
            ends[curve.name] = (curve.points[-1][0], curve.name, color)
        if ticks is not None:
            slanted = len("  ".join(ticks)) > _LEVEL_LETTERS
            axes.set_xticks(range(len(ticks)), ticks, rotation=45 if slanted else 0)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        label_ends(axes, list(ends.values()))

    return panels(list(told), draw, columns=1 if len(told) == 1 else 2)
