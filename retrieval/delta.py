"""Fresh items: vectors that came after the base was built, compared with one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.base import Found
from retrieval.checks import Bools, Floats, ItemIds, Rows, object_array

REBUILD_DEAD = 256
"""Removed items are dropped from the buffers when they are more than this and half of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What was added, by position.

    The buffers are shared with every later state: one writer appends behind `length`, where no
    reader of this state looks.

    Attributes:
        vectors: float32 [≥ length, D], rounded as the base stores them.
        rows: int64 [≥ length], ascending.
        ids: at least `length` ids.
        positions: every position that an id had, ascending.
        length: how many there are in this state.
        dead: bool [length], removed in this state.
        num_dead: how many are.
    """

    vectors: Floats
    rows: Rows
    ids: list[str]
    positions: dict[str, tuple[int, ...]]
    length: int
    dead: Bools
    num_dead: int

    max_width = None

    @classmethod
    def empty(cls, dimension: int) -> "Delta":
        """Nothing was added."""
        none = np.empty(0, np.int64)
        vectors = np.empty((0, dimension), np.float32)
        return cls(vectors, none, [], {}, 0, np.zeros(0, bool), 0)

    def __len__(self) -> int:
        """How many vectors are compared with, removed ones among them."""
        return self.length

    def position_of(self, item_id: str) -> int:
        """The newest position of an id in this state, −1 if it has none."""
        for position in reversed(self.positions.get(item_id, ())):
            if position < self.length:
                return position
        return -1

    def positions_of(self, ids: Sequence[str]) -> Rows:
        """The newest positions of ids in this state, int64 [m]; −1 for an id that is not here."""
        found = np.full(len(ids), -1, np.int64)
        if self.length:
            for place in [place for place, item in enumerate(ids) if item in self.positions]:
                found[place] = self.position_of(ids[place])
        return found

    def positions_of_rows(self, rows: Rows) -> Rows:
        """Positions of rows, int64 [m]; −1 for a row that is not here."""
        held = self.rows[: self.length]
        if self.length == 0:
            return np.full(len(rows), -1, np.int64)
        place = np.minimum(np.searchsorted(held, rows), self.length - 1)
        return np.where(held[place] == rows, place, -1)

    def rows_at(self, positions: Rows) -> Rows:
        """Rows of positions, of any shape; −1 stays −1."""
        if self.length == 0:
            return np.full_like(positions, -1)
        return np.where(positions < 0, -1, self.rows[positions])

    def at(self, positions: Rows) -> ItemIds:
        """Ids at positions [m], object [m]; None for −1."""
        return object_array([self.ids[p] if p >= 0 else None for p in positions.tolist()])

    def live(self) -> Rows:
        """Positions of those that were not removed, int64 [m]."""
        return np.flatnonzero(~self.dead)

    def nearest(self, queries: Floats, width: int, k: int) -> Found:
        """As `Base.nearest`, of all there is: removed ones are among them."""
        del k
        return _knn(queries, self.vectors[: self.length], width)

    def exact(self, queries: Floats, k: int, keep: Bools | Rows | None) -> Found:
        """As `Base.exact`."""
        if keep is None:
            return self.nearest(queries, min(k, self.length), k)
        positions = np.flatnonzero(keep) if keep.dtype == bool else cast(Rows, keep)
        scores, places = _knn(queries, self.vectors[positions], min(k, len(positions)))
        return scores, positions[places]

    def with_items(self, vectors: Floats, ids: list[str], first_row: int) -> "Delta":
        """Append items. Only the newest state may be asked, and by one thread."""
        self._forget_unfinished()
        length = self.length + len(ids)
        rows = np.arange(first_row, first_row + len(ids), dtype=np.int64)
        held_vectors, held_rows = self.vectors, self.rows
        if length > len(held_vectors):
            capacity = max(length, 2 * len(held_vectors), 1024)
            held_vectors = np.empty((capacity, vectors.shape[1]), np.float32)
            held_vectors[: self.length] = self.vectors[: self.length]
            held_rows = np.empty(capacity, np.int64)
            held_rows[: self.length] = self.rows[: self.length]
        held_vectors[self.length : length] = vectors
        held_rows[self.length : length] = rows
        self.ids.extend(ids)
        for position, item in enumerate(ids, self.length):
            self.positions[item] = (*self.positions.get(item, ()), position)
        dead = np.concatenate([self.dead, np.zeros(len(ids), bool)])
        return replace(self, vectors=held_vectors, rows=held_rows, length=length, dead=dead)

    def _forget_unfinished(self) -> None:
        """Take out of the shared buffers what a call left there that was cut short."""
        for item in self.ids[self.length :]:
            kept = tuple(place for place in self.positions.get(item, ()) if place < self.length)
            if kept:
                self.positions[item] = kept
            else:
                self.positions.pop(item, None)
        del self.ids[self.length :]

    def without(self, positions: Rows) -> "Delta":
        """Remove positions; the buffers are made anew when most of them hold removed items."""
        dead = self.dead.copy()
        dead[positions] = True
        num_dead = int(np.count_nonzero(dead))
        marked = replace(self, dead=dead, num_dead=num_dead)
        if num_dead <= max(REBUILD_DEAD, self.length // 2):
            return marked
        return marked.copied()

    def copied(self) -> "Delta":
        """The same items in buffers of their own, without those that were removed."""
        live = self.live()
        ids = [self.ids[position] for position in live.tolist()]
        return Delta(
            vectors=self.vectors[live],
            rows=self.rows[live],
            ids=ids,
            positions={item: (position,) for position, item in enumerate(ids)},
            length=len(live),
            dead=np.zeros(len(live), bool),
            num_dead=0,
        )


def _knn(queries: Floats, vectors: npt.NDArray[np.float32], width: int) -> Found:
    if width == 0 or len(queries) == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    found = faiss.knn(queries, vectors, width, metric=faiss.METRIC_INNER_PRODUCT)
    return cast(Found, found)
