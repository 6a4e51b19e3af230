"""Parquet shards of vectors, read a little at a time, and checked row by row.

Shapes: `n` rows, `D` numbers per vector.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.checks import Floats

BATCH_BYTES = 32 << 20
"""Vectors are read in batches of about so many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """Files with a column of vectors, and of ids where they are items.

    Attributes:
        paths: in the order given; rows are counted through them.
        first_rows: the row at which each file starts, and the number of all at the end.
        id_column: texts; None where there are no ids to read.
        vector_column: lists of float16, float32 or float64, all D long.
        dimension: D.
    """

    paths: tuple[Path, ...]
    first_rows: tuple[int, ...]
    id_column: str | None
    vector_column: str
    dimension: int

    @classmethod
    def open(cls, paths: Sequence[Path], *, id_column: str | None, vector_column: str) -> Self:
        """Look at the files' footers, and at their first vector.

        Args:
            paths: Parquet files, or folders whose `*.parquet` are taken in the order of names.
            id_column: of the ids; None to read vectors alone.
            vector_column: of the vectors.

        Raises:
            ValueError: no file, one that is not Parquet, a column that is not there or of another
                type, or no row in any of them; the file is named.
        """
        files: list[Path] = []
        for path in paths:
            inside = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
            if not inside:
                raise ValueError(f"{path} holds no *.parquet files")
            files += inside
        first_rows = [0]
        for path in files:
            schema, num_rows = _footer(path)
            if id_column is not None and not _is_text(_column(path, schema, id_column).type):
                raise ValueError(
                    f"{path}: column {id_column!r} holds {schema.field(id_column).type}; ids are "
                    "texts, so cast it to string"
                )
            if not _is_vector(kind := _column(path, schema, vector_column).type):
                raise ValueError(
                    f"{path}: column {vector_column!r} holds {kind}; give lists of float16, "
                    "float32 or float64"
                )
            first_rows.append(first_rows[-1] + num_rows)
        if first_rows[-1] == 0:
            raise ValueError(f"{', '.join(map(str, paths)) or 'no file'}: there are no rows")
        first = next(path for path, row in zip(files, first_rows[1:], strict=True) if row > 0)
        return cls(
            paths=tuple(files),
            first_rows=tuple(first_rows),
            id_column=id_column,
            vector_column=vector_column,
            dimension=_first_width(first, vector_column),
        )

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.first_rows[-1]

    def place(self, row: int) -> str:
        """Say where a row lies: its file, and its number there, from 0."""
        file = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return f"{self.paths[file]}: row {row - self.first_rows[file]}"

    def batches(self) -> Iterator[tuple[int, pa.LargeStringArray | None, Floats]]:
        """Read all rows in order: the first row of a batch, its ids [m] and vectors float32 [m, D].

        Raises:
            ValueError: a vector that is missing, of another width, or holds NaN, infinity or
                nothing; an id that is missing; a file that was cut. File and row are named.
        """
        columns = [self.vector_column] + ([self.id_column] if self.id_column else [])
        size = max(1, BATCH_BYTES // (4 * self.dimension))
        row = 0
        for path in self.paths:
            try:
                for batch in pq.ParquetFile(path).iter_batches(size, columns=columns):
                    vectors = self._vectors(batch.column(self.vector_column), row)
                    ids = self._ids(batch.column(self.id_column), row) if self.id_column else None
                    yield row, ids, vectors
                    row += len(batch)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error})") from error

    def rows_at(self, rows: np.ndarray) -> Floats:
        """Read the vectors of some rows, ascending: float32 [m, D]."""
        found = np.empty((len(rows), self.dimension), np.float32)
        for start, _, vectors in self.batches():
            low, high = np.searchsorted(rows, [start, start + len(vectors)])
            found[low:high] = vectors[rows[low:high] - start]
        return found

    def _vectors(self, column: pa.Array, row: int) -> Floats:
        if column.null_count:
            self._refuse(row, column.is_null(), "the vector is missing")
        if not pa.types.is_fixed_size_list(column.type):
            self._refuse(
                row,
                pc.not_equal(pc.list_value_length(column), self.dimension),
                f"the vector is not {self.dimension} numbers long, as the first one is",
            )
        elif column.type.list_size != self.dimension:
            raise ValueError(
                f"{self.place(row)}: vectors are {column.type.list_size} numbers long, not "
                f"{self.dimension}, as the first one is"
            )
        numbers = column.flatten().to_numpy(zero_copy_only=False)
        vectors = numbers.astype(np.float32, copy=False).reshape(len(column), self.dimension)
        if not np.isfinite(vectors).all():
            bad = ~np.isfinite(vectors).all(axis=1)
            self._refuse(row, pa.array(bad), "the vector holds NaN, infinity or nothing")
        return np.ascontiguousarray(vectors)

    def _ids(self, column: pa.Array, row: int) -> pa.LargeStringArray:
        if column.null_count:
            self._refuse(row, column.is_null(), "the id is missing")
        return column.cast(pa.large_string())

    def _refuse(self, row: int, is_bad: pa.Array, why: str) -> None:
        bad = np.flatnonzero(is_bad.to_numpy(zero_copy_only=False))
        if len(bad):
            raise ValueError(f"{self.place(row + int(bad[0]))}: {why}")


def _footer(path: Path) -> tuple[pa.Schema, int]:
    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file that can be read ({error})") from error


def _column(path: Path, schema: pa.Schema, name: str) -> pa.Field:
    if schema.get_field_index(name) < 0:
        raise ValueError(f"{path}: there is no column {name!r}; it has {', '.join(schema.names)}")
    return schema.field(name)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_vector(kind: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _first_width(path: Path, name: str) -> int:
    column = next(pq.ParquetFile(path).iter_batches(1, columns=[name])).column(0)
    if pa.types.is_fixed_size_list(column.type):
        width = int(column.type.list_size)
    else:
        width = 0 if column.null_count else len(column[0])
    if width == 0:
        raise ValueError(f"{path}: row 0: the vector is missing or empty")
    return width
