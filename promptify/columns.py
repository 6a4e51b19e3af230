"""Columns from outside, of whatever type, become the few types that `Interactions` holds.

A reader takes one Arrow array and returns the values (null where missing or bad) with the
faults it found: masks of rows, and a reason each. So a table of strings (CSV), of typed columns
(Parquet) and of JSON values end up the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from promptify.schema import MAX_SECONDS, FieldKind

LIST_SEPARATOR = "|"
"""Stands between the values of a list in a column of text: ``Action|Crime``."""

_MAX_CATEGORIES = 100
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}|$)"
_CURRENCY = r"(\p{Sc}|EUR|USD|GBP|CHF)?"
_AMOUNT = rf"^{_CURRENCY}\s*[+-]?(\d{{1,3}}([.,'\x{{a0}}]\d{{3}})+|\d+)([.,]\d+)?\s*{_CURRENCY}$"
_SAID = {True: ("true", "yes", "on"), False: ("false", "no", "off")}
"""What YAML reads as true and as false, whatever its case."""
_NO_DASHES = "looks like a date; write it as 2024-01-31, or 2024-01-31T07:45, with dashes"
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
"""How a date without dashes is written, by its digits."""
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Of a second, by the unit of a timestamp."""

ARROW_TYPES: dict[FieldKind, pa.DataType] = {
    "text": pa.string(),
    "category": pa.string(),
    "list": pa.list_(pa.string()),
    "number": pa.float64(),
    "time": pa.int64(),
    "name": pa.string(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Rows that do not fit: `rows` is bool [n], `reason` reads on after the value."""

    rows: NDArray[np.bool_]
    reason: str


Column = tuple[pa.Array, list[Fault]]
Moments = tuple[pa.Array, NDArray[np.int32]]
"""Whole seconds, int64, and the nanoseconds that have passed of each."""


def read_column(values: pa.Array | pa.ChunkedArray, kind: FieldKind) -> Column:
    """Read a column as its field kind says.

    Args:
        values: n values of any Arrow type.
        kind: what the field is.

    Returns:
        n values of `ARROW_TYPES[kind]`, null (for a list: empty) where missing or bad, and the
        faults found.
    """
    return _READERS[kind](_plain(values))


def read_text(values: pa.Array | pa.ChunkedArray) -> Column:
    """Read ids, words and prose: trimmed text; blank is null; whole numbers lose a ``.0``."""
    return _read_text(_plain(values))


def read_moments(values: pa.Array | pa.ChunkedArray) -> tuple[Moments, list[Fault]]:
    """Read times as `read_column` does, with the fractions of a second that they have.

    A float tells the times of our days apart to a quarter of a microsecond, a timestamp to its
    unit.

    Args:
        values: n values of any Arrow type.

    Returns:
        Whole seconds since 1970, int64 [n], null where there is none; nanoseconds, int32 [n]; and
        what is wrong with which rows.
    """
    return _read_moments(_plain(values))


def infer_kind(values: pa.Array | pa.ChunkedArray) -> FieldKind | None:
    """What a column looks like, from its type and its values; None if that is nothing to tell.

    Numbers and dates may be written as text. Few different words that come back are a category,
    other words are text. A list is never guessed from text, and one of fractions (a vector) or of
    lists and objects is nothing to tell, as a column that is empty throughout.
    """
    values = _plain(values)
    kind = values.type
    if values.null_count == len(values):
        return None
    if pa.types.is_list(kind):
        of = kind.value_type
        return None if pa.types.is_floating(of) or pa.types.is_nested(of) else "list"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    read, faults = _read_text(values)
    words = read.drop_null()
    if not len(words):
        # Text of which nothing can be read is for its reader to name.
        is_text = pa.types.is_string(kind) and any(fault.rows.any() for fault in faults)
        return "text" if is_text else None
    if np.isfinite(_numbers(words)).all():
        return "number"
    if pc.all(pc.match_substring_regex(words, _ISO_DATE)).as_py():
        return "time"
    num_different = len(words.unique())
    few = num_different <= _MAX_CATEGORIES and 2 * num_different <= len(words)
    return "category" if few else "text"


def are_amounts(values: pa.Array | pa.ChunkedArray) -> bool:
    """Whether all that a column of words holds are numbers but for a comma or a currency.

    Example:
        >>> are_amounts(pa.array(["12,50", "€ 1.234,00", None])), are_amounts(pa.array(["1.2.3"]))
        (True, False)
    """
    words = _read_text(_plain(values))[0].drop_null()
    return len(words) > 0 and bool(pc.all(pc.match_substring_regex(words, _AMOUNT)).as_py())


def put_for(
    values: pa.Array | pa.ChunkedArray, words: Mapping[str | float | bool, str]
) -> pa.Array:
    """Values as the words that stand for them; what none stands for is left as it is.

    Args:
        values: n values of any Arrow type.
        words: a value → its word. Text is matched as it stands, a number by how much it is, and
            true and false by what YAML reads as such.

    Example:
        >>> put_for(pa.array(["5.0", "4", "x"]), {5: "loved", 4: "liked"}).to_pylist()
        ['loved', 'liked', 'x']
    """
    values = _plain(values)
    text, faults = _read_text(values)
    if text.null_count == len(text):
        return values
    texts = {value: word for value, word in words.items() if isinstance(value, str)}
    truths = {
        said: word
        for value, word in words.items()
        if isinstance(value, bool)
        for said in _SAID[value]
    }
    numbers = {
        float(value): word for value, word in words.items() if not isinstance(value, str | bool)
    }
    found = text.dictionary_encode()
    different, amounts = found.dictionary.to_pylist(), _numbers(found.dictionary).tolist()
    told = [
        texts.get(one) or numbers.get(amount) or truths.get(one.lower()) or one
        for one, amount in zip(different, amounts, strict=True)
    ]
    put = pa.array(told, pa.string()).take(found.indices)
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        [not_utf8] = faults
        if not_utf8.rows.any():
            # Left as they are, for the reader of the column to name.
            bad = pa.array(not_utf8.rows)
            put = pc.if_else(bad, values.cast(pa.binary()), put.cast(pa.binary()))
    return put


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array without dictionary, view or large-offset encodings."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([])
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        values = values.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        values = values.cast(pa.binary())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = values.cast(pa.list_(kind.value_type))
    return values


def _read_text(values: pa.Array) -> Column:
    kind = values.type
    faults: list[Fault] = []
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        values, fault = _decoded(values)
        faults = [fault]
    elif pa.types.is_floating(kind):
        numbers = values.to_numpy(zero_copy_only=False)
        null = np.asarray(values.is_null())
        bad = ~np.isfinite(numbers) & ~null
        faults = [Fault(rows=bad, reason="is not a value; leave it empty if it is unknown")]
        # 2**53: beyond it a float is not sure of its whole numbers.
        if np.all((np.floor(numbers) == numbers) & (np.abs(numbers) < 2**53) | bad | null):
            whole = np.where(bad | null, 0, numbers).astype(np.int64)
            values = pa.array(whole, mask=bad | null).cast(pa.string())
        else:
            values = pa.array(numbers, mask=bad | null).cast(pa.string())
    else:
        try:
            values = values.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            reason = "is not text; declare a list as a list, and put an object in words"
            faults = [Fault(rows=np.asarray(values.is_valid()), reason=reason)]
            values = pa.nulls(len(values), pa.string())
    trimmed = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed), faults


def _decoded(values: pa.Array) -> tuple[pa.Array, Fault]:
    """Text or bytes as valid UTF-8 text."""
    bad = np.zeros(len(values), np.bool_)
    try:
        text = values.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        bad = np.array([value is not None and not _is_utf8(value) for value in raw], np.bool_)
        text = pa.array(
            [None if b or v is None else v.decode() for v, b in zip(raw, bad, strict=True)],
            pa.string(),
        )
    return text, Fault(rows=bad, reason="is not UTF-8; save the file as UTF-8")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_number(values: pa.Array) -> Column:
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        faults: list[Fault] = []
        null = np.asarray(values.is_null())
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        values, faults = _read_text(values)
        null = np.asarray(values.is_null())
        numbers = _numbers(values)
    bad = ~np.isfinite(numbers) & ~null
    faults.append(Fault(rows=bad, reason="is not a number; leave it empty if it is unknown"))
    return pa.array(np.where(bad | null, 0.0, numbers), mask=bad | null), faults


def _read_time(values: pa.Array) -> Column:
    (seconds, _), faults = _read_moments(values)
    return seconds, faults


def _read_moments(values: pa.Array) -> tuple[Moments, list[Fault]]:
    kind = values.type
    if pa.types.is_date(kind):
        return _read_moments(values.cast(pa.timestamp("ms")))
    if pa.types.is_timestamp(kind):
        # A cast to seconds would round towards 1970.
        ticks, per_second = np.asarray(values.cast(pa.int64()).fill_null(0)), _TICKS[kind.unit]
        nanoseconds = (ticks % per_second * (_TICKS["ns"] // per_second)).astype(np.int32)
        seconds = pa.array(ticks // per_second, mask=np.asarray(values.is_null()))
        return (seconds, nanoseconds), []
    nanoseconds = np.zeros(len(values), np.int32)
    if pa.types.is_integer(kind) and kind != pa.uint64():
        # Kept whole: a float would round, and ten million of these pass through here.
        faults: list[Fault] = []
        null = np.asarray(values.is_null())
        moments = np.asarray(values.cast(pa.int64()).fill_null(0))
        unread = np.zeros(len(values), np.bool_)
    else:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            faults = []
            null = np.asarray(values.is_null())
            moments = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        else:
            values, faults = _read_text(values)
            null = np.asarray(values.is_null())
            moments = _numbers(values)
            dates = np.isnan(moments) & ~null
            moments[dates], nanoseconds[dates] = _dates(values.filter(pa.array(dates)))
        unread = ~np.isfinite(moments) & ~null
    too_large = ~unread & ~null & (np.abs(moments) > MAX_SECONDS)
    compact = ~unread & ~null & _is_compact_date(moments)
    faults += [
        Fault(rows=compact, reason=_NO_DASHES),
        Fault(rows=unread, reason="is not a time; give seconds since 1970 or an ISO 8601 date"),
        Fault(rows=too_large, reason="looks like milliseconds; divide by 1000 to give seconds"),
    ]
    bad = unread | too_large | compact | null
    moments = np.where(bad, 0, moments)
    whole = np.floor(moments).astype(np.int64)
    nanoseconds += ((moments - whole) * _TICKS["ns"]).astype(np.int32)
    return (pa.array(whole, mask=bad), nanoseconds), faults


def _numbers(text: pa.Array) -> NDArray[np.float64]:
    """float64 [n], NaN where the text is not a number."""
    values = pd.Series(text.to_numpy(zero_copy_only=False), dtype=object)
    # Only what is written as a number in decimals: `to_numeric` would also read "True".
    written = np.asarray(pc.match_substring_regex(text, r"^[+-]?[0-9.]").fill_null(False))
    numbers = pd.to_numeric(values.where(written), errors="coerce")
    return np.array(numbers, np.float64)


def _dates(text: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Seconds of ISO 8601 dates (UTC where no zone is given), NaN where the text is none.

    And the nanoseconds that have passed of each.
    """
    values = pd.Series(text.to_numpy(zero_copy_only=False), dtype=object)
    read = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    moments = read.dt.tz_localize(None).to_numpy()
    seconds, none = moments.astype("datetime64[s]"), np.isnat(moments)
    passed = (moments - seconds).astype("timedelta64[ns]").astype(np.int64)
    return (
        np.where(none, np.nan, seconds.astype(np.int64)),
        np.where(none, 0, passed).astype(np.int32),
    )


def _is_compact_date(moments: NDArray[Any]) -> Any:
    """Whether each number is a date of our days without dashes, with or without the time of day.

    As seconds such dates all lie in 1970, and with the time beyond what seconds may be.
    """
    are_dates = np.zeros(len(moments), np.bool_)
    for num_digits, form in _COMPACT.items():
        unit = 10 ** (num_digits - 4)
        may_be = (moments >= 1900 * unit) & (moments < 2100 * unit) & (moments == np.floor(moments))
        if not may_be.any():
            continue
        text = pd.Series(moments[may_be]).astype(np.int64).astype(str)
        are_dates[may_be] = pd.to_datetime(text, errors="coerce", format=form).notna()
    return are_dates


def _read_list(values: pa.Array) -> Column:
    kind = values.type
    if not pa.types.is_list(kind):
        text, faults = _read_text(values)
        split = [
            [word for word in map(str.strip, (line or "").split(LIST_SEPARATOR)) if word]
            for line in text.to_pylist()
        ]
        return pa.array(split, pa.list_(pa.string())), faults
    # Without what lies beneath a missing list, as it does in one of fixed size.
    lengths = np.asarray(pc.list_value_length(values).fill_null(0))
    parents = np.repeat(np.arange(len(values)), lengths)
    words, word_faults = _read_text(_plain(pc.list_flatten(values)))
    faults = []
    for fault in word_faults:
        bad = np.zeros(len(values), np.bool_)
        bad[parents[fault.rows]] = True
        faults.append(Fault(rows=bad, reason=f"holds a value that {fault.reason}"))
    keep = np.asarray(words.is_valid())
    ends = np.cumsum(np.bincount(parents[keep], minlength=len(values)))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, words.filter(pa.array(keep))), faults


_READERS: dict[FieldKind, Callable[[pa.Array], Column]] = {
    "text": _read_text,
    "category": _read_text,
    "list": _read_list,
    "number": _read_number,
    "time": _read_time,
    "name": _read_text,
}
