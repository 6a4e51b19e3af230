"""One schema for every measured number, kept as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from promptify.whole import write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One measured number with all that it takes to believe it.

    Attributes:
        benchmark: what measured it: `quality`, `latency`, ...
        task: the surface or data set: `ml1m`, `job_market`, ...
        split: the protocol: `leave-one-out`, `global-time`, ...
        model: `foundation`, `rung-1`, `system`, `popularity`, ...
        params: the model's parameters; None for one that has none.
        context_tokens: the budget of a prompt; None where there is no prompt.
        history_events: the length that histories were cut to; None when they were not cut.
        metric: `ndcg@10`, `auc`, `p95_ms`, ...
        value: the number; finite.
        ci_low: lower end of its 95 % interval; None when none was estimated.
        ci_high: upper end of it.
        n: how many targets, requests or repetitions it is the mean of.
        seconds: how long the measurement took.
        peak_bytes: most memory held during it: RSS on CPU, allocated on GPU.
        hardware: the machine in words, `run_record.hardware()`.
        commit: `run_record.git_commit()`.
        config_hash: `run_record.json_hash` of the settings.
        seed: an integer, or `mean` for the row that averages several.
        timestamp: UTC, ISO 8601.

    Raises:
        ValueError: `value` or an end of the interval is not finite, or the interval is half
            given or upside down.
    """

    benchmark: str
    task: str
    split: str
    model: str
    params: int | None = None
    context_tokens: int | None = None
    history_events: int | None = None
    metric: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    hardware: str
    commit: str | None
    config_hash: str
    seed: int | Literal["mean"]
    timestamp: str

    def __post_init__(self) -> None:
        for name in ("value", "ci_low", "ci_high", "seconds"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"{name} of {self.model} {self.metric} is {number}: a result is a finite "
                    "number; leave out the row of what could not be measured"
                )
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError(f"{self.model} {self.metric} has one end of an interval; give both")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"ci_low {self.ci_low} lies above ci_high {self.ci_high}; swap them")


COLUMNS = tuple(field.name for field in fields(ResultRow))
"""The columns of a results file, in order."""

_cells_of = attrgetter(*COLUMNS)
_INTEGERS = {"params", "context_tokens", "history_events", "n", "peak_bytes"}
_FLOATS = {"value", "ci_low", "ci_high", "seconds"}


def write_csv(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write rows as CSV with a header, whole or not at all; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    # A benchmark writes its file anew for every row: `asdict`, which copies each cell, takes as
    # long as what is measured.
    writer.writerows(_cells_of(row) for row in rows)
    write_whole(path, text.getvalue())


def append_csv(path: Path, rows: Sequence[ResultRow]) -> None:
    """Add rows to a results file, or start it; what is there is read and checked first.

    Several processes may add to one file at once: each waits for its turn.

    Raises:
        ValueError: what is there is not a results file; it is left as it was.
    """
    with writing(path):
        write_csv(path, [*(read_csv(path) if path.exists() else []), *rows])


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Nobody else reads and writes a file of rows meanwhile, who asks here as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def read_csv(path: Path) -> list[ResultRow]:
    """Read a results file back: `read_csv` after `write_csv` gives equal rows.

    Raises:
        ValueError: a header or a cell does not fit the schema; names the file, line and column.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"{path}: its header is not that of a results file, {','.join(COLUMNS)}"
            )
        return [_parse_row(cells, f"{path}, line {reader.line_num}") for cells in reader]


def _parse_row(cells: dict[str, str], where: str) -> ResultRow:
    if None in cells or None in cells.values():
        raise ValueError(f"{where}: it does not have {len(COLUMNS)} cells")
    values: dict[str, Any] = {}
    for column in COLUMNS:
        try:
            values[column] = _parse_cell(column, cells[column])
        except (TypeError, ValueError):
            raise ValueError(f"{where}, column {column}: cannot read {cells[column]!r}") from None
    try:
        return ResultRow(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _parse_cell(column: str, cell: str) -> str | int | float | None:
    if column in _FLOATS:
        return None if cell == "" and column != "value" else float(cell)
    if column in _INTEGERS or (column == "seed" and cell != "mean"):
        return None if cell == "" and column != "seed" else int(cell)
    return None if cell == "" and column == "commit" else cell
