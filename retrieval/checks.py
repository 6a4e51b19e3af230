"""What vectors, ids and filters must be before an index takes them.

Shapes: `n` items, `D` numbers per vector, `B` requests, `R` rows of the index.
"""

import math
from collections.abc import Collection, Mapping, Sequence, Set
from numbers import Integral
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
ItemIds = npt.NDArray[np.object_]
IdFilter = Sequence[str] | Sequence[Sequence[str]] | Bools


def checked_vectors(name: str, vectors: npt.ArrayLike, dimension: int | None = None) -> Floats:
    """Return the vectors as contiguous float32 [n, D].

    Raises:
        ValueError: another shape, another width than `dimension`, or NaN or infinity; `name` says
            in which argument.
    """
    array = np.ascontiguousarray(vectors, np.float32)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} has the shape {array.shape}; give [rows, dimension]")
    if dimension is not None and array.shape[1] != dimension:
        raise ValueError(
            f"{name} has {array.shape[1]} numbers per vector, the index {dimension}: they are "
            "another model's"
        )
    # One sum finds NaN and infinity without a mask; large numbers alone may overflow it.
    if not math.isfinite(np.vdot(array, array)):
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        if len(bad):
            raise ValueError(f"{name}: row {bad[0]} holds NaN or infinity ({len(bad)} such rows)")
    return array


def checked_count(k: object, most: int | None = None) -> int:
    """Return the candidates asked for per request.

    Args:
        k: any whole number, of Python's or of numpy's.
        most: that can be asked for; None for no limit.

    Raises:
        ValueError: not a whole number, below 1 or above `most`.
    """
    is_whole = isinstance(k, Integral) and not isinstance(k, bool)
    if not is_whole or not 1 <= (count := int(cast(Integral, k))) <= (most or math.inf):
        wanted = "at least 1 candidate" if most is None else f"1 to {most:,} candidates"
        raise ValueError(f"k is {k if is_whole else repr(k)}; ask for {wanted}, a whole number")
    return count


def checked_rows(rows: npt.ArrayLike) -> Rows:
    """Return rows of an index as int64 [n]; whether they hold items is not asked.

    Raises:
        ValueError: another shape, or numbers that are not whole.
    """
    array = np.asarray(rows)
    if array.ndim != 1:
        raise ValueError(f"rows has the shape {array.shape}; give [rows]")
    if len(array) and array.dtype.kind not in "iu":
        raise ValueError(f"rows={array!r:.60} are {array.dtype}; give whole numbers")
    return array.astype(np.int64)


def checked_texts(name: str, ids: Sequence[str]) -> pa.LargeStringArray:
    """Return ids as an Arrow array [n].

    Raises:
        ValueError: one that is not a text, or holds half a character (a lone surrogate).
    """
    if isinstance(ids, str):
        raise ValueError(f"{name} is the text {ids!r}; give a list of ids")
    # Half a million ids are of one type; asking each takes three times as long.
    if set(map(type, ids)) != {str}:
        for item in ids:
            if not isinstance(item, str):
                raise ValueError(f"{name}: {item!r} is not a text; ids are strings")
    try:
        return pa.array(ids, pa.large_string())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {error.object!r} is not valid Unicode ({error})") from error


def checked_items(
    vectors: npt.ArrayLike, ids: Sequence[str], dimension: int | None = None
) -> tuple[Floats, pa.LargeStringArray]:
    """Return vectors float32 [n, D] and as many ids, Arrow [n]; whether ids repeat is not asked.

    Args:
        vectors: of items.
        ids: one per vector.
        dimension: of the index; None for a new one, which must have an item.

    Raises:
        ValueError: no items for a new index, not one id per vector, or as `checked_vectors` and
            `checked_texts`.
    """
    if dimension is None and len(ids) == 0:
        raise ValueError("ids is empty: an index needs at least one item")
    checked = checked_vectors("vectors", vectors, dimension)
    if len(ids) != len(checked):
        raise ValueError(f"ids has {len(ids)} entries for {len(checked)} vectors; give one each")
    return checked, checked_texts("ids", ids)


def check_once(ids: Sequence[str]) -> None:
    """Check that no id stands there twice.

    Raises:
        ValueError: one does.
    """
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(item for item in ids if item in seen or seen.add(item))  # type: ignore[func-returns-value]
        raise ValueError(f"ids: {twice!r} stands there twice; give each item once")


def checked_filter(
    name: str, ids: IdFilter, num_requests: int, num_rows: int
) -> Bools | list[Sequence[str]]:
    """Return a filter as masks bool [1 or B, ≤ R], or as one list of ids for all or one for each.

    Whether all of the ids are texts is not asked.

    Args:
        name: of the argument.
        ids: the filter, as `ItemIndex.search` takes it.
        num_requests: B.
        num_rows: R.

    Raises:
        ValueError: a mask of another shape, as many lists or masks as there are not requests, or
            neither masks nor lists.
    """
    if isinstance(ids, str):
        raise ValueError(f"{name} is the text {ids!r}; give a list of ids")
    if hasattr(ids, "__array__"):  # A series is asked by the names of its rows, not their places.
        ids = np.asarray(ids)
    if isinstance(ids, Set | Mapping) or not hasattr(ids, "__getitem__"):
        kind = type(ids).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"{name}={repr(ids)[:60]} is {article} {kind}; give a list of ids")
    if isinstance(ids, np.ndarray) and ids.dtype == bool:
        if ids.ndim not in (1, 2) or ids.shape[-1] > num_rows:
            raise ValueError(
                f"{name} is a mask of the shape {ids.shape}; give one bool per row of the index "
                f"({num_rows}), or one line of them per request"
            )
        if ids.ndim == 2 and len(ids) != num_requests:
            raise ValueError(f"{name} has {len(ids)} masks for {num_requests} requests")
        return np.atleast_2d(ids)
    if isinstance(ids, np.ndarray) and ids.dtype.kind not in "OU":
        raise ValueError(
            f"{name} is an array {ids.dtype}{list(ids.shape)}; give a mask bool [rows] or "
            "[requests, rows], or a list of ids"
        )
    if len(ids) == 0 or isinstance(ids[0], str):
        return [cast(Sequence[str], ids)]
    if not isinstance(ids[0], Collection):
        raise ValueError(f"{name}: {ids[0]!r} is not a text; ids are strings")
    if len(ids) != num_requests:
        raise ValueError(f"{name} has {len(ids)} lists for {num_requests} requests")
    for one in ids:
        if isinstance(one, str) or not isinstance(one, Collection):
            raise ValueError(f"{name} holds {one!r} beside lists; give lists of ids")
    return list(cast(Sequence[Sequence[str]], ids))


def object_array(values: Sequence[str | None]) -> ItemIds:
    """Return object [n]; numpy would make a fixed-width text array of them."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
