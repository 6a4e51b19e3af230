"""What vectors and ids must be before an index takes them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
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
    if len(bad := np.flatnonzero(~np.isfinite(array).all(1))):
        raise ValueError(f"{name}: row {bad[0]} holds NaN or infinity ({len(bad)} such rows)")
    return array


def checked_ids(ids: Sequence[str], num_vectors: int) -> ItemIds:
    """Return the ids as object [n].

    Raises:
        ValueError: not one per vector, not a string, or one that repeats.
    """
    if len(ids) != num_vectors:
        raise ValueError(f"ids has {len(ids)} entries for {num_vectors} vectors; give one each")
    seen: set[str] = set()
    for item in ids:
        if not isinstance(item, str):
            raise ValueError(f"ids: {item!r} is not a text; ids are strings")
        if item in seen:
            raise ValueError(f"ids: {item!r} stands there twice; give each item once")
        seen.add(item)
    return object_array(ids)


def object_array(values: Sequence[str | None]) -> ItemIds:
    """Return object [n]; numpy would make a fixed-width text array of them."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
