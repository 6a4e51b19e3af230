"""What vectors and ids must be before an index takes them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
ItemIds = npt.NDArray[np.object_]


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


def checked_count(ids: Sequence[str], num_vectors: int) -> None:
    """Check that there is one id per vector.

    Raises:
        ValueError: there is not.
    """
    if len(ids) != num_vectors:
        raise ValueError(f"ids has {len(ids)} entries for {num_vectors} vectors; give one each")


def object_array(values: Sequence[str | None]) -> ItemIds:
    """Return object [n]; numpy would make a fixed-width text array of them."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
