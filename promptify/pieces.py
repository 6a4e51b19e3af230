"""Pieces: many short token sequences end to end, each found by its offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Token sequences in compressed-row form.

    Attributes:
        ids: int32 [N], all tokens.
        offsets: int64 [P+1], piece `p` is `ids[offsets[p]:offsets[p + 1]]`.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, piece: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[piece] : self.offsets[piece + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each piece, int64 [P]."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Lay sequences end to end.

        Example:
            >>> Pieces.of([[1, 2], [], [3]]).offsets.tolist()
            [0, 2, 2, 3]
        """
        lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
        ids = [np.asarray(s, dtype=np.int32) for s in sequences if len(s)]
        return cls(
            ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
            offsets=offsets_of(lengths),
        )

    @classmethod
    def joined(cls, parts: Sequence["Pieces"]) -> Self:
        """The pieces of several, one after the other."""
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        )

    def take(self, chosen: NDArray[np.int64]) -> "Pieces":
        """The chosen pieces, in that order."""
        return Pieces(
            ids=self.ids[gather(self.offsets, chosen)], offsets=offsets_of(self.lengths[chosen])
        )


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each sequence starts, and where the last one ends, int64 [P+1].

    Args:
        lengths: int64 [P].
    """
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def placed(num_old: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each row comes from when some are written anew: an index into the old, then the new.

    Args:
        num_old: rows there were.
        rows: int64 [N], the row that each of N new ones takes, no repeats; those from `num_old` on
            are the next ones, without a gap.

    Example:
        >>> placed(3, np.array([1, 3])).tolist()
        [0, 3, 2, 4]
    """
    order = np.arange(max(num_old, int(rows.max(initial=-1)) + 1))
    order[rows] = num_old + np.arange(len(rows))
    return order


def gather(offsets: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the elements of the chosen sequences, in order: many slices at once.

    Args:
        offsets: int64 [P+1].
        chosen: int64 [C], sequences to take, repeats allowed.

    Returns:
        int64 [sum of their lengths].

    Example:
        >>> gather(np.array([0, 2, 2, 5]), np.array([2, 0])).tolist()
        [2, 3, 4, 0, 1]
    """
    counts = offsets[chosen + 1] - offsets[chosen]
    first = np.cumsum(counts) - counts
    indices: NDArray[np.int64] = np.repeat(offsets[chosen] - first, counts)
    return indices + np.arange(len(indices))
