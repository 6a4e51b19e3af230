"""The part of an index that never changes: stored vectors, their ids, and what finds the near ones.

Shapes: `n` vectors, `D` numbers per vector, `B` requests, `m` positions, `k` candidates.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from retrieval.checks import Bools, Floats, Rows
from retrieval.identifiers import IdTable
from retrieval.probing import RECALL_AT, wider
from retrieval.storage import VectorStore

Found = tuple[Floats, Rows]

FEW_REQUESTS = 4
"""For so few requests FAISS's scan with a selector beats decoding all that is allowed."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """Vectors by position, found by position.

    Attributes:
        store: the vectors.
        table: their ids and rows.
        structure: what finds the near ones without comparing with all: a FAISS index on the CPU
            whose labels are positions; None where `store.flat` does.
        empty: as `structure`, trained, with nothing in it; None where there is none to train.
        searcher: what is searched: `structure`, `store.flat`, one of them behind a refinement, or
            its copy on a GPU. Only `search(queries, k)` is asked of it, on the CPU with more lists
            to read: never a selector, since some FAISS indexes ignore them in silence.
        max_width: most candidates that `searcher` can be asked for; None for no limit.
        token: names the files of this base; no two bases share one.
        folder: where those files lie, if it was loaded.
        digests: SHA-256 of those files by name, once they are written.
    """

    store: VectorStore
    table: IdTable
    structure: Any | None
    empty: Any | None
    searcher: Any
    max_width: int | None
    token: str
    folder: Path | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many vectors."""
        return len(self.store)

    def nearest(self, queries: Floats, width: int, k: int) -> Found:
        """Scores and positions [B, width] of what the searcher finds; −1 where it finds no more.

        Args:
            queries: float32 [B, D].
            width: candidates per request, some of which may be dropped.
            k: that lists are read for: what is wanted, and what is dropped on the way to it.
        """
        params = wider(self.searcher, self.structure, k, len(self))
        more = {} if params is None else {"params": params}
        asked = width
        if isinstance(self.searcher, faiss.IndexRefine):
            # So many times as many are compared again as are asked for: for fewer than it was
            # tuned for, too few.
            asked = max(width, min(RECALL_AT, len(self)))
        scores, positions = self.searcher.search(queries, asked, **more)
        return scores[:, :width], positions[:, :width]

    def exact(self, queries: Floats, k: int, keep: Bools | Rows | None) -> Found:
        """Scores and positions [B, ≤ k] of the true nearest among those that are kept.

        Args:
            queries: float32 [B, D].
            k: candidates per request.
            keep: bool [n], or positions int64 [m] without repeats; None keeps all.
        """
        if keep is None:
            return cast(Found, self.store.flat.search(queries, min(k, len(self))))
        if keep.dtype == bool:
            num_kept = int(np.count_nonzero(keep))
            if num_kept > len(self) // 8 and len(queries) <= FEW_REQUESTS:
                bits = np.packbits(keep, bitorder="little")
                params = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
                found = self.store.flat.search(queries, min(k, num_kept), params=params)
                return cast(Found, found)
            keep = np.flatnonzero(keep)
        return compare_with(self.store, queries, k, cast(Rows, keep))


def compare_with(store: VectorStore, queries: Floats, k: int, positions: Rows) -> Found:
    """Scores and positions [B, ≤ k] of the nearest among some stored vectors, block by block."""
    best = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
    for start in range(0, len(positions), store.vectors_per_block):
        part = positions[start : start + store.vectors_per_block]
        scores, places = faiss.knn(
            queries, store.at(part), min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT
        )
        best = merged(best, (scores, part[places]), k)
    return best


def merged(one: Found, other: Found, k: int) -> Found:
    """The k best of two lists per request; of equals, those of `one` come first."""
    if one[1].shape[1] == 0:
        return other[0][:, :k], other[1][:, :k]
    scores = np.concatenate([one[0], other[0]], axis=1)
    places = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
