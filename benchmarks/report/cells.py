"""What stands in a cell of a table in Markdown, and the table around it."""

from collections.abc import Sequence

from decant.results import ResultRow


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, without a newline at its end.

    Example:
        >>> print(markdown(("model", "NDCG@10"), [("ours", ".182")]))
        | model | NDCG@10 |
        | --- | --- |
        | ours | .182 |
    """
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def decimal(value: float, *, digits: int = 3) -> str:
    """A number as tables have it: no zero before the point, a true minus.

    Example:
        >>> decimal(0.1818), decimal(-0.0104), decimal(1)
        ('.182', '−.010', '1.000')
    """
    text = f"{abs(value):.{digits}f}"
    return ("−" if value < 0 else "") + (text[1:] if text.startswith("0.") else text)


def with_interval(row: ResultRow, *, bold: bool = False) -> str:
    """A row's value and its 95 % interval, where it has one."""
    value = f"**{decimal(row.value)}**" if bold else decimal(row.value)
    if row.ci_low is None or row.ci_high is None:
        return value
    return f"{value} [{decimal(row.ci_low)}, {decimal(row.ci_high)}]"


def signed(row: ResultRow) -> str:
    """A difference and its 95 % interval, each with its sign."""

    def told(value: float) -> str:
        return ("" if value < 0 else "+") + decimal(value)

    ends = ", ".join(told(end) for end in (row.ci_low, row.ci_high) if end is not None)
    return f"{told(row.value)} [{ends}]" if ends else told(row.value)


def times(row: ResultRow, *, digits: int) -> str:
    """A ratio and its interval; none after the point from a hundred on."""
    digits = 0 if row.value >= 100 else digits
    ends = [row.ci_low, row.ci_high]
    told = ", ".join(decimal(end, digits=digits) for end in ends if end is not None)
    value = decimal(row.value, digits=digits)
    return f"{value} [{told}]" if told else value


def percent(row: ResultRow) -> str:
    value, ends = f"{100 * row.value:+.0f} %", (row.ci_low, row.ci_high)
    told = ", ".join(f"{100 * end:+.0f}" for end in ends if end is not None)
    return (f"{value} [{told}]" if told else value).replace("-", "−")


def lost(row: ResultRow) -> str:
    """A share that was lost, in percent, with its interval; below zero it was won."""
    ends = ", ".join(f"{100 * end:.1f}" for end in (row.ci_low, row.ci_high) if end is not None)
    told = f"{100 * row.value:.1f} %"
    return (f"{told} [{ends}]" if ends else told).replace("-", "−")


def parameters(count: int | None) -> str:
    return "–" if count is None else f"{count / 1000:,.0f} K"


def short(value: float) -> str:
    """About two figures: 127.95 is 128, 2.878 is 2.9, .2634 is .26."""
    digits = 0 if value >= 9.95 else 1 if value >= 1 else 2
    return decimal(value, digits=digits)
