"""How vectors lie in memory and on disk: float32, float16 or one byte a number.

Shapes: `n` vectors, `D` numbers per vector, `S` bytes per stored vector.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.checks import Floats, Rows

Storage = Literal["float32", "float16", "int8"]
Codes = npt.NDArray[np.uint8]

MAX_FLOAT16 = 65_504.0
"""What lies beyond is infinite as float16, and every score with it."""

BLOCK_BYTES = 64 << 20
"""Vectors are decoded in blocks of about so many bytes, whatever the catalogue."""


BYTES_PER_NUMBER: dict[Storage, int] = {"float32": 4, "float16": 2, "int8": 1}


def new_codec(
    dimension: int,
    storage: Storage,
    *,
    low_D: Floats | None = None,
    high_D: Floats | None = None,
) -> Any:
    """Return an empty FAISS index that says how a vector is stored.

    Args:
        dimension: numbers per vector.
        storage: `int8` cuts each dimension's range into 256 equal steps.
        low_D: for `int8`, the least value of each dimension; what lies below is stored as this.
        high_D: the greatest.

    Raises:
        ValueError: for `int8`, a range that is no number as float32.
    """
    if storage == "float32":
        return faiss.IndexFlatIP(dimension)
    if storage == "float16":
        half = faiss.ScalarQuantizer.QT_fp16
        codec = faiss.IndexScalarQuantizer(dimension, half, faiss.METRIC_INNER_PRODUCT)
        codec.is_trained = True
        return codec
    assert low_D is not None
    assert high_D is not None
    with np.errstate(over="ignore"):
        range_D = (high_D - low_D).astype(np.float32)
    if len(endless := np.flatnonzero(~np.isfinite(range_D))):
        at = endless[0]
        raise ValueError(
            f"vectors: dimension {at} goes from {low_D[at]:.9g} to {high_D[at]:.9g}, too far for "
            "int8; normalise the vectors, or keep them as float32"
        )
    byte = faiss.ScalarQuantizer.QT_8bit
    codec = faiss.IndexScalarQuantizer(dimension, byte, faiss.METRIC_INNER_PRODUCT)
    copy_ranges(np.concatenate([low_D, range_D]).astype(np.float32), codec)
    return codec


def copy_ranges(ranges: Floats, index: Any) -> None:
    """Make a scalar quantizer, or the lists of one, store vectors with these ranges."""
    faiss.copy_array_to_vector(ranges, index.sq.trained)
    index.is_trained = True


def checked_storage(storage: str) -> Storage:
    """Return the storage.

    Raises:
        ValueError: it is none of ours.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage is {storage!r}; use one of {', '.join(get_args(Storage))}")
    return cast(Storage, storage)


def check_storable(
    vectors: Floats, storage: Storage, place: Callable[[int], str], *, first_row: int = 0
) -> None:
    """Check that no number becomes infinite by being stored.

    Args:
        vectors: [n, D].
        storage: of them. Ranges of `int8` are checked by `new_codec`.
        place: says where a row lies.
        first_row: that of the first vector.

    Raises:
        ValueError: one does.
    """
    if storage != "float16" or len(vectors) == 0:
        return
    if vectors.max() <= MAX_FLOAT16 and vectors.min() >= -MAX_FLOAT16:
        return
    row, column = np.argwhere(np.abs(vectors) > MAX_FLOAT16)[0]
    raise ValueError(
        f"{place(first_row + int(row))} holds {vectors[row, column]:.9g}, and float16 nothing "
        f"beyond ±{MAX_FLOAT16:,.0f}; normalise the vectors, or keep them as float32"
    )


@dataclass(frozen=True, slots=True, eq=False)
class VectorStore:
    """Stored vectors, and a FAISS index that compares with each of them.

    Attributes:
        codec: an empty FAISS index that encodes and decodes.
        codes: uint8 [n, S]; may be memory-mapped. Never written to again.
        flat: a FAISS index over `codes`, without a copy.
    """

    codec: Any
    codes: Codes
    flat: Any

    @classmethod
    def over(cls, codec: Any, codes: Codes) -> "VectorStore":
        """Look at codes as vectors. Nothing is copied."""
        flat = faiss.clone_index(codec)
        # A view with no owner: this object holds the array, and so outlives the view's use.
        nobody = faiss.MaybeOwnedVectorUInt8().owner
        view = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(codes), codes.size, nobody)
        flat.codes, flat.ntotal = view, len(codes)
        return cls(codec, codes, flat)

    def __len__(self) -> int:
        """How many vectors are stored."""
        return len(self.codes)

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        return int(self.codec.d)

    @property
    def vectors_per_block(self) -> int:
        """How many vectors are decoded at once."""
        return max(1, BLOCK_BYTES // (4 * self.dimension))

    def at(self, positions: Rows | slice) -> Floats:
        """Decode vectors, float32 [m, D]."""
        codes = np.ascontiguousarray(self.codes[positions])
        if isinstance(self.codec, faiss.IndexFlat):
            return codes.view(np.float32)
        return cast(Floats, self.codec.sa_decode(codes))

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Decode all vectors: where a block starts, and float32 [≤ `vectors_per_block`, D]."""
        for start in range(0, len(self), self.vectors_per_block):
            yield start, self.at(slice(start, start + self.vectors_per_block))


def rounded(codec: Any, vectors: Floats) -> Floats:
    """Vectors as they come back from being stored; doing it twice changes nothing more."""
    if isinstance(codec, faiss.IndexFlat):
        return vectors
    return cast(Floats, codec.sa_decode(codec.sa_encode(vectors)))
