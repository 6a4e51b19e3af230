"""What happens to input that does not fit: one exception, and one place where bad rows are counted.

A raw table says where its rows come from: `located` adds the file's name, and the line of each
row. A `RowCheck` follows which rows of a table are still good; a `BadRows` follows, over all
tables, what was set aside.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from promptify.whole import whole_file

logger = logging.getLogger(__name__)

OnBadRows = Literal["fail", "skip", "quarantine"]

LINE = "__line__"
"""Column of a raw table: int64, the line (or row) of the file that each row stands on."""

_NUM_EXAMPLES = 3
_MAX_VALUE_CHARACTERS = 60


class BadInput(ValueError):
    """Input from outside that cannot be used. The message says what is wrong and how to mend it."""


def located(
    columns: Mapping[str, pa.Array], *, file: str, lines: pa.Array, unit: str = "line"
) -> pa.Table:
    """A raw table that knows where its rows come from, for messages about bad rows.

    Args:
        columns: column name → values.
        file: the name shown in messages.
        lines: int64, the line of each row in that file, from 1.
        unit: what `lines` counts, ``"line"`` or ``"row"``.
    """
    table = pa.table({**columns, LINE: lines})
    return table.replace_schema_metadata({"file": file, "unit": unit})


class BadRows:
    """What to do with rows that do not fit, and a count of those set aside. A context manager.

    Args:
        on_bad_rows: ``"fail"`` stops at the end of the table that holds them, ``"skip"`` leaves
            them out, ``"quarantine"`` leaves them out and writes them down.
        quarantine: the JSONL file they are written to: file, line, column, value, reason, row.
            It appears when the context ends without an error; where no row is bad, one that an
            earlier run left is removed.
        remedy: what sets bad rows aside, for the message of ``"fail"``.

    Raises:
        BadInput: `on_bad_rows` is not one of the three, or ``"quarantine"`` has no file.

    Example:
        >>> with BadRows(on_bad_rows="skip") as bad_rows:
        ...     check = RowCheck(pa.table({"age": ["7", "x"]}), name="users", bad_rows=bad_rows)
        ...     check.reject(np.array([False, True]), column="age", reason="is not a number")
        >>> bad_rows.counts
        {'users: age is not a number': 1}
    """

    def __init__(
        self,
        *,
        on_bad_rows: OnBadRows = "fail",
        quarantine: Path | None = None,
        remedy: str = "on_bad_rows='skip' or 'quarantine' (--on-bad-rows on the command line)",
    ):
        if on_bad_rows not in get_args(OnBadRows):
            raise BadInput(
                f"on_bad_rows={on_bad_rows!r} must be one of {', '.join(get_args(OnBadRows))}."
            )
        if (on_bad_rows == "quarantine") != (quarantine is not None):
            raise BadInput(
                f"on_bad_rows={on_bad_rows!r} with quarantine={quarantine!r}: name a quarantine "
                "file exactly when bad rows go to quarantine."
            )
        self.on_bad_rows = on_bad_rows
        self.quarantine = quarantine
        self._remedy = remedy
        self._counts: Counter[str] = Counter()
        self._num_fatal = 0
        self._examples: list[str] = []
        self._part: TextIO | None = None
        self._whole = ExitStack()

    @property
    def counts(self) -> dict[str, int]:
        """Rows set aside, by ``"file: column reason"``."""
        return dict(self._counts)

    @property
    def num_set_aside(self) -> int:
        """Rows set aside in all tables."""
        return self._counts.total()

    def wanted(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the bad rows, those that must be shown in full: all in quarantine, else a few."""
        return rows if self.quarantine is not None else rows[:_NUM_EXAMPLES]

    def add(
        self,
        *,
        file: str,
        unit: str,
        column: str,
        reason: str,
        num: int,
        lines: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
        harmless: bool = False,
    ) -> None:
        """Count, remember and (in quarantine) write down rows that share a column and a reason.

        Args:
            file: name of the file they stand in.
            unit: ``"line"`` or ``"row"``, what `lines` counts.
            column: the column at fault.
            reason: what is wrong, reads on after the value: ``"is not a number"``.
            num: how many rows.
            lines: where each of the `wanted` rows stands.
            rows: each of the `wanted` rows, column → value.
            harmless: set aside and counted, but never a reason to fail (repeated lines).
        """
        self._counts[f"{file}: {column} {reason}"] += num
        if not harmless:
            self._num_fatal += num
            room = _NUM_EXAMPLES - len(self._examples)
            for line, row in list(zip(lines, rows, strict=True))[:room]:
                value = shown(row.get(column))
                self._examples.append(f"{file} {unit} {line}: {column} {value} {reason}")
        if self.quarantine is not None:
            if self._part is None:
                self.quarantine.parent.mkdir(parents=True, exist_ok=True)
                partial = self._whole.enter_context(whole_file(self.quarantine))
                self._part = self._whole.enter_context(partial.open("x", encoding="utf-8"))
            for line, row in zip(lines, rows, strict=True):
                record = {"file": file, unit: line, "column": column, "value": row.get(column)}
                record |= {"reason": reason, "row": row}
                self._part.write(json.dumps(record, default=str) + "\n")

    def settle(self) -> None:
        """Call at the end of a table.

        Raises:
            BadInput: bad rows were found and `on_bad_rows` is ``"fail"``.
        """
        if self.on_bad_rows == "fail" and self._num_fatal:
            more = self._num_fatal - len(self._examples)
            raise BadInput(
                "; ".join(self._examples)
                + (f"; and {more:,} more rows that do not fit" if more else "")
                + f". Mend them, or set them aside with {self._remedy}."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._whole.__exit__(kind, error, trace)
        if kind is None and self.quarantine is not None and self._part is None:
            self.quarantine.unlink(missing_ok=True)
        if kind is None:
            for what, count in self._counts.items():
                logger.info("set aside %s rows of %s", f"{count:,}", what)


class RowCheck:
    """Which rows of one raw table are good so far. A bad row is reported once, for its first fault.

    Args:
        table: the raw table; its file and lines are used where `located` put them there.
        name: what to call the table where it has no file.
        bad_rows: where bad rows are reported.
        first_line: number of the first row where the table has no lines.
    """

    def __init__(
        self,
        table: pa.Table | pa.RecordBatch,
        *,
        name: str,
        bad_rows: BadRows,
        first_line: int = 1,
    ):
        metadata = table.schema.metadata or {}
        self.table = table
        self.file = metadata.get(b"file", name.encode()).decode()
        self.unit = metadata.get(b"unit", b"row").decode()
        self.lines: NDArray[np.int64] = (
            np.asarray(table[LINE], np.int64)
            if LINE in table.schema.names
            else np.arange(first_line, first_line + table.num_rows, dtype=np.int64)
        )
        self.good: NDArray[np.bool_] = np.ones(table.num_rows, np.bool_)
        self._bad_rows = bad_rows

    def reject(
        self, bad: NDArray[np.bool_], *, column: str, reason: str, harmless: bool = False
    ) -> None:
        """Set aside the rows of `bad` (bool [rows]) that are still good, and say why."""
        new = np.flatnonzero(bad & self.good)
        if not len(new):
            return
        self.good[new] = False
        wanted = self._bad_rows.wanted(new)
        self._bad_rows.add(
            file=self.file,
            unit=self.unit,
            column=column,
            reason=reason,
            num=len(new),
            lines=self.lines[wanted].tolist(),
            rows=_python_rows(self.table, wanted),
            harmless=harmless,
        )


def shown(value: Any) -> str:
    """A value as it stands in a message: quoted, on one line, not too long."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > _MAX_VALUE_CHARACTERS:
            text = text[: _MAX_VALUE_CHARACTERS - 1] + "…"
            break
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _pieces(value: Any) -> Iterator[str]:
    """The `repr` of a value, piece by piece: a list within lists may be longer than memory is."""
    if type(value) is list or type(value) is tuple:
        yield "[" if type(value) is list else "("
        for place, one in enumerate(value):
            yield ", " if place else ""
            yield from _pieces(one)
        yield "]" if type(value) is list else ",)" if len(value) == 1 else ")"
    elif type(value) is dict:
        yield "{"
        for place, (key, one) in enumerate(value.items()):
            yield ", " if place else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(one)
        yield "}"
    else:
        try:
            yield repr(value)
        except RecursionError:
            yield f"a {type(value).__name__}, nested too deeply to be shown"


def _python_rows(table: pa.Table | pa.RecordBatch, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows as dictionaries; text that is not UTF-8 comes with its bad bytes escaped."""
    names = [name for name in table.schema.names if name != LINE]
    columns = [_python_values(table[name].take(pa.array(rows))) for name in names]
    if not columns:
        return [{} for _ in rows]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _python_values(values: pa.ChunkedArray | pa.Array) -> list[Any]:
    try:
        plain = values.to_pylist()
    except UnicodeDecodeError:
        plain = values.cast(pa.binary()).to_pylist()
    return [v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else v for v in plain]
