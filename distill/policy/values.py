"""Columns of values that expressions compute with: numbers, truths, texts and lists of these.

A number that is unknown is NaN, a text that is unknown has code -1, and an unknown list is empty.
A column of one row stands for that value in every row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """One text per row.

    Attributes:
        codes: int32 [n], index in `words`, or -1 where it is unknown.
        words: the different texts.
    """

    codes: NDArray[np.int32]
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def mapped(self, told: Callable[[str], str | None]) -> "Texts":
        """Each text through a function, which is asked once for every different one."""
        new: dict[str, int] = {}
        codes = np.full(len(self.words) + 1, -1, np.int32)
        for place, word in enumerate(self.words):
            if (found := told(word)) is not None:
                codes[place] = new.setdefault(found, len(new))
        return Texts(codes[self.codes], tuple(new))

    def numbered(self, number: Callable[[str], float]) -> Float64:
        """A number for each text, float64 [n]; NaN where the text is unknown."""
        table = np.array([*(number(word) for word in self.words), np.nan], np.float64)
        return table[self.codes]

    def told_as(self, words: dict[str, int]) -> NDArray[np.int32]:
        """Codes in a larger dictionary, to which missing words are added."""
        codes = [words.setdefault(word, len(words)) for word in self.words]
        return np.array([*codes, -1], np.int32)[self.codes]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Several texts or numbers per row.

    Attributes:
        offsets: int64 [n+1]; row `r` holds `flat` from `offsets[r]` to `offsets[r + 1]`.
        flat: the values end to end.
        weights: how often each of them stands there, float64; None for once each.
    """

    offsets: Int64
    flat: "Texts | Float64"
    weights: Float64 | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64:
        """Values in each row, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Int64:
        """The row of each value of `flat`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def share(self, is_in: Bool) -> Float64:
        """Share of each row's values that are marked, float64 [n]; NaN for an empty row."""
        rows = self.rows
        weights = np.ones(len(rows)) if self.weights is None else self.weights
        found = np.bincount(rows, weights=weights * is_in, minlength=len(self))
        return _divided(found, np.bincount(rows, weights=weights, minlength=len(self)))

    def tallied(self) -> "Lists":
        """Each different value of a row once, with how often it stands there."""
        flat, rows = self.flat, self.rows
        values: NDArray[Any] = flat.codes if isinstance(flat, Texts) else flat
        order = np.lexsort((values, rows))
        rows, values = rows[order], values[order]
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
        first = np.flatnonzero(begins)
        weights = np.diff(np.append(first, len(rows))).astype(np.float64)
        offsets = np.searchsorted(rows[first], np.arange(len(self) + 1)).astype(np.int64)
        kept = values[first]
        return Lists(offsets, Texts(kept, flat.words) if isinstance(flat, Texts) else kept, weights)

    def mean(self) -> Float64:
        """Mean of each row's known numbers, float64 [n]; NaN where there are none."""
        assert not isinstance(self.flat, Texts)
        known = np.isfinite(self.flat)
        rows = self.rows
        total = np.bincount(rows[known], weights=self.flat[known], minlength=len(self))
        return _divided(total, np.bincount(rows[known], minlength=len(self)))


Value = Float64 | Bool | Texts | Lists


def _divided(total: Any, count: Any) -> Float64:
    with np.errstate(invalid="ignore"):
        found: Float64 = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def kind_of(value: Value) -> str:
    """What a column holds, in words for messages."""
    if isinstance(value, Texts):
        return "text"
    if isinstance(value, Lists):
        return f"a list of {'texts' if isinstance(value.flat, Texts) else 'numbers'}"
    return "true or false" if value.dtype == np.bool_ else "a number"


def taken(value: Value, rows: Int64) -> Value:
    """The chosen rows of a column."""
    if isinstance(value, Texts):
        return Texts(value.codes[rows], value.words)
    if not isinstance(value, Lists):
        return value[rows]
    starts, lengths = value.offsets[:-1][rows], value.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    flat = value.flat
    chosen = Texts(flat.codes[places], flat.words) if isinstance(flat, Texts) else flat[places]
    weights = None if value.weights is None else value.weights[places]
    return Lists(offsets, chosen, weights)


def texts_of(column: pa.Array | pa.ChunkedArray) -> Texts:
    """A column of strings."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
    found = column.dictionary_encode()
    codes = np.asarray(found.indices.fill_null(-1), np.int32)
    return Texts(codes, tuple(found.dictionary.to_pylist()))


def column_value(column: pa.Array | pa.ChunkedArray) -> Value:
    """A column of a table of people or items, as `promptify.columns.ARROW_TYPES` has it."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_string(column.type):
        return texts_of(column)
    if pa.types.is_list(column.type):
        lengths = np.asarray(pc.list_value_length(column).fill_null(0), np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Lists(offsets, texts_of(pc.list_flatten(column)))
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan), np.float64)


def listed(value: Value, rows: Int64, offsets: Int64) -> Lists:
    """Rows of a column as lists; a list among them is laid end to end with the others.

    Args:
        value: the column.
        rows: of the column, those of the first list first.
        offsets: int64 [n+1], where each list starts in `rows`.
    """
    chosen = taken(value, rows)
    if isinstance(chosen, Lists):
        return Lists(chosen.offsets[offsets], chosen.flat)
    assert not isinstance(chosen, np.ndarray) or chosen.dtype != np.bool_
    return Lists(offsets, chosen)  # type: ignore[arg-type]
