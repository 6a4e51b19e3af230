"""CSV, Parquet and JSONL files as raw tables that know the line each row stands on.

Values come as the file has them: text in CSV, typed in Parquet, JSON values in JSONL. Rows that
cannot be read at all are reported here; whether values fit is for `promptify.ingest` to say.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptify.validation import LINE, BadInput, BadRows, located, shown

MAX_BATCH_ROWS = 250_000
"""Rows of a file that are read at once."""
_MAX_CELL = 2**31 - 1
"""Characters of a cell; what Arrow holds."""
_MAX_LEVELS = 8
"""Of lists and objects within each other that are read as such; a field may have one."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
"""What a header that is one column may have been parted by."""


def read_table(
    path: Path, *, renames: Mapping[str, str], found: set[str], bad_rows: BadRows
) -> pa.Table:
    """A whole file as one raw table.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file; a ``.json`` one holds an object
            on each line, too.
        renames: our name of a column → its name in the file, where they differ; no two alike.
        found: our names of the columns that were there under another are added to it.
        bad_rows: where lines that cannot be read are reported.

    Raises:
        BadInput: the file is absent, empty, of another type or damaged, or a line cannot be read.
    """
    batches = list(_read(path, renames, found, bad_rows, batch_rows=None))
    bad_rows.settle()
    return pa.concat_tables(batches)


def read_batches(
    path: Path,
    *,
    renames: Mapping[str, str],
    found: set[str],
    bad_rows: BadRows,
    batch_rows: int = MAX_BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """A file as raw batches, read one by one, so that it need not fit in memory.

    Args and Raises: as in `read_table`; all batches but the last hold `batch_rows` rows that could
    be read, at most `MAX_BATCH_ROWS`.
    """
    for table in _read(path, renames, found, bad_rows, batch_rows=batch_rows):
        # A table without rows has no batches, but its columns are checked all the same.
        empty = pa.RecordBatch.from_pylist([], schema=table.schema)
        yield from table.combine_chunks().to_batches() or [empty]


def _read(
    path: Path,
    renames: Mapping[str, str],
    found: set[str],
    bad_rows: BadRows,
    *,
    batch_rows: int | None,
) -> Iterator[pa.Table]:
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in _READERS:
        raise BadInput(f"{path} must end in {', '.join(_READERS)}; save it as one of these.")
    if not path.is_file():
        raise BadInput(f"{path} is not a file; check the path.")
    num_batches = 0
    for table in _READERS[ending](path, bad_rows, batch_rows or 2**62):
        num_batches += 1
        yield _renamed(table, renames, found)
    if not num_batches:
        bad_rows.settle()
        if _READERS[ending] is _jsonl:
            raise BadInput(f"{path} holds no line that is a JSON object; write one on each line.")
        raise BadInput(f"{path} is empty; give it a header and at least one row.")


def _renamed(table: pa.Table, renames: Mapping[str, str], found: set[str]) -> pa.Table:
    ours = {theirs: name for name, theirs in renames.items() if theirs in table.column_names}
    found.update(ours.values())
    # A column that already bears the name now spoken for by another is left out.
    shadowed = [name for name in ours.values() if name in table.column_names and name not in ours]
    table = table.drop_columns(shadowed)
    renamed = table.rename_columns([ours.get(name, name) for name in table.column_names])
    # Renaming drops the metadata that says which file the table is from.
    return renamed.replace_schema_metadata(table.schema.metadata)


def _check_names(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if name == LINE or list(names).count(name) > 1:
            raise BadInput(f"{path} has a column {name!r} twice or reserved; rename it.")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise BadInput(f"{path} has a header that is not UTF-8; save the file as UTF-8.")


def _check_separated(path: Path, header: Sequence[str]) -> None:
    for character, name in _SEPARATORS.items():
        if len(header) == 1 and character in header[0]:
            raise BadInput(
                f"{path} has one column, {shown(header[0])}: are its columns separated by {name}? "
                "Save them separated by commas (.csv) or tabs (.tsv)."
            )


def _delimited(delimiter: str) -> "_Reader":
    def read(path: Path, bad_rows: BadRows, batch_rows: int) -> Iterator[pa.Table]:
        # Of the process; csv refuses longer cells, where a job's description may be as long.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
        # Bytes that are not UTF-8 pass as surrogates, to be reported by column and line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                header = [name.strip() for name in next(reader, [])]
            except csv.Error as error:
                raise BadInput(f"{path} line 1: the header is not CSV ({error}).") from error
            _check_names(path, header)
            _check_separated(path, header)
            rows: list[list[str]] = []
            lines: list[int] = []

            def batch() -> pa.Table:
                columns: Iterable[Sequence[str]] = (
                    zip(*rows, strict=True) if rows else [[]] * len(header)
                )
                arrays = [_text(column) for column in columns]
                return located(
                    dict(zip(header, arrays, strict=True)),
                    file=path.name,
                    lines=pa.array(lines, pa.int64()),
                )

            if not header:
                return
            while True:
                line = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    if reader.line_num > line:
                        # Where the next row begins nobody knows, and a row of the file may be a
                        # cell's text: to go on would take what somebody wrote for a row.
                        raise BadInput(
                            f"{path} line {line}: a quote that is opened here, or by line "
                            f"{reader.line_num}, is not closed as CSV has it ({error}); close it, "
                            "or double the quotes within it."
                        ) from error
                    _unreadable(bad_rows, path, line, str(error), "is not CSV")
                    continue
                if len(row) == len(header):
                    rows.append(row)
                    lines.append(line)
                elif row:
                    reason = f"has {len(row)} fields, the header has {len(header)}"
                    text, num = delimiter.join(row), reader.line_num - line + 1
                    _unreadable(bad_rows, path, line, text, reason, num=num)
                if len(rows) >= batch_rows:
                    yield batch()
                    rows, lines = [], []
            yield batch()

    return read


def _text(values: Sequence[str]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        # Text all the same, of which the readers say what is not UTF-8.
        return pa.array([value.encode("utf-8", "surrogateescape") for value in values]).view(
            pa.string()
        )


def _jsonl(path: Path, bad_rows: BadRows, batch_rows: int) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []

    def batch() -> pa.Table:
        columns = json_columns(rows)
        _check_names(path, list(columns))
        return located(columns, file=path.name, lines=pa.array(lines, pa.int64()))

    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except UnicodeDecodeError:
                _unreadable(bad_rows, path, line, repr(raw), "is not UTF-8; save it as UTF-8")
                continue
            except (ValueError, RecursionError):
                text = raw.decode("utf-8", "backslashreplace").strip()
                _unreadable(bad_rows, path, line, text, "is not JSON")
                continue
            if not isinstance(row, dict):
                _unreadable(bad_rows, path, line, raw.decode().strip(), "is not a JSON object")
                continue
            rows.append(row)
            lines.append(line)
            if len(rows) >= batch_rows:
                yield batch()
                rows, lines = [], []
    if rows:
        yield batch()


def json_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """Objects of JSON values as raw columns; null where an object lacks a name."""
    # A dictionary keeps the order in which names were first seen.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _json_column([row.get(name) for row in rows]) for name in names}


def _json_column(values: list[Any]) -> pa.Array:
    """JSON values as one Arrow array; values of several types become words."""
    values = _shallow(values, _MAX_LEVELS)
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
        pass
    if any(isinstance(value, list) for value in values):
        return pa.array(
            [None if value is None else [_words(v) for v in _as_list(value)] for value in values],
            pa.list_(pa.binary()),
        )
    return pa.array([_words(value) for value in values], pa.binary())


def _shallow(value: Any, levels: int) -> Any:
    """A value without what lies so deep in it that Arrow takes minutes, or memory, to read it."""
    if not isinstance(value, list | dict):
        return value
    if not levels:
        return "…"
    if isinstance(value, dict):
        return {name: _shallow(one, levels - 1) for name, one in value.items()}
    # Most lists are of plain values, and may be long.
    if not {list, dict}.intersection(map(type, value)):
        return value
    return [_shallow(one, levels - 1) for one in value]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _words(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        # As a column of numbers alone would have it: an id is the same beside whatever it stands.
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")


def _parquet(path: Path, bad_rows: BadRows, batch_rows: int) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
            row = 1
            for batch in file.iter_batches(batch_size=min(batch_rows, MAX_BATCH_ROWS)):
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                lines = pa.array(range(row, row + batch.num_rows), pa.int64())
                yield located(columns, file=path.name, lines=lines, unit="row")
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{path} is not a whole Parquet file ({error}); write or copy it again."
        ) from error


def _unreadable(
    bad_rows: BadRows, path: Path, line: int, text: str, reason: str, *, num: int = 1
) -> None:
    """Report lines that hold no row: where they begin, their text, and how many they are."""
    bad_rows.add(
        file=path.name,
        unit="line",
        column="the line",
        reason=reason,
        num=num,
        lines=[line],
        rows=[{"the line": text}],
    )


_Reader = Callable[[Path, BadRows, int], Iterator[pa.Table]]

_READERS: dict[str, _Reader] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".parquet": _parquet,
}
