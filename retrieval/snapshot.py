"""One state of an index: what a search sees, whatever writers do meanwhile.

Shapes: `B` requests, `D` numbers per vector, `k` candidates, `R` rows ever given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np

from retrieval.base import Base, Found, merged
from retrieval.checks import Bools, Floats, IdFilter, ItemIds, Rows, checked_filter
from retrieval.delta import Delta
from retrieval.filters import MOST_CANDIDATES, Filter, filled, nothing, search_part

MASK_SHARE = 256
"""Of more positions than one in so many a mask is made sooner than they are put in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Base, removals and fresh items that belong together. Never changed; replaced by the next.

    Attributes:
        base: what was built.
        removed: bool [positions of the base]; None for none.
        num_removed: how many those are.
        delta: what was added since.
        num_rows: R, rows ever given.
    """

    base: Base
    removed: Bools | None
    num_removed: int
    delta: Delta
    num_rows: int

    def __len__(self) -> int:
        """How many items can be found."""
        return len(self.base) - self.num_removed + len(self.delta) - self.delta.num_dead

    def search(
        self, queries: Floats, k: int, allow: IdFilter | None, deny: IdFilter | None
    ) -> Found:
        """Scores float32 and rows int64 [B, k], as `ItemIndex.search` says."""
        if allow is None and deny is None and self.removed is None and len(self.delta) == 0:
            if len(self.base) == 0 or len(queries) == 0:
                return _padded(*nothing(len(queries)), k)
            scores, places = filled(self.base, queries, k)
            rows = self.base.table.rows_at(places)
            return (scores, rows) if rows.shape[1] == k else _padded(scores, rows, k)
        in_base, in_delta = self._filters(allow, deny, len(queries))
        base, delta = self.base, self.delta
        scores, places = search_part(base, queries, k, self.removed, self.num_removed, in_base)
        rows = base.table.rows_at(places)
        dead = delta.dead if delta.num_dead else None
        fresh = search_part(delta, queries, k, dead, delta.num_dead, in_delta)
        found = merged((scores, rows), (fresh[0], delta.rows_at(fresh[1])), k)
        return _padded(*found, k)

    def positions_of(self, ids: Sequence[str], name: str = "ids") -> tuple[Rows, Rows]:
        """Positions of ids in base and delta, int64 [m] each; −1 where an id is not there."""
        return self.base.table.positions_of(ids, name), self.delta.positions_of(ids)

    def live_positions_of(self, ids: Sequence[str]) -> tuple[Rows, Rows]:
        """As `positions_of`; −1 where the item was removed, too."""
        in_base, in_delta = self.positions_of(ids)
        if self.removed is not None:
            in_base[(in_base >= 0) & self.removed[in_base]] = -1
        if self.delta.num_dead:
            in_delta[(in_delta >= 0) & self.delta.dead[in_delta]] = -1
        return in_base, in_delta

    def positions_of_rows(self, rows: Rows) -> tuple[Rows, Rows]:
        """Positions of rows [m] in base and delta; −1 where an item was removed or never was."""
        in_base = self.base.table.positions_of_rows(rows)
        in_delta = self.delta.positions_of_rows(rows)
        if self.removed is not None:
            in_base[(in_base >= 0) & self.removed[in_base]] = -1
        if self.delta.num_dead:
            in_delta[(in_delta >= 0) & self.delta.dead[in_delta]] = -1
        return in_base, in_delta

    def ids_at(self, rows: Rows) -> ItemIds:
        """Ids of rows [m] in [−1, R), object [m]; None where there is no item."""
        if self.removed is None and self.num_rows == len(self.base):  # Nothing came or went.
            return self.base.table.at(rows)
        in_base, in_delta = self.positions_of_rows(rows)
        ids = self.base.table.at(in_base)
        if len(self.delta):
            fresh = in_delta >= 0
            ids[fresh] = self.delta.at(in_delta[fresh])
        return ids

    def _filters(
        self, allow: IdFilter | None, deny: IdFilter | None, num_requests: int
    ) -> tuple[Filter, Filter]:
        """The filters in positions of base and delta."""
        allowed = self._positions("allow", allow, num_requests)
        denied = self._positions("deny", deny, num_requests)
        sizes = (len(self.base), len(self.delta))
        base, delta = (
            Filter(allowed[part], _spread(denied[part], num_requests, sizes[part]))
            for part in (0, 1)
        )
        return base, delta

    def _positions(
        self, name: str, ids: IdFilter | None, num_requests: int
    ) -> tuple[Bools | Rows | list[Rows] | None, ...]:
        """One filter in positions of base and delta: a mask, an array for all, or one for each."""
        if ids is None:
            return None, None
        chosen = checked_filter(name, ids, num_requests, self.num_rows)
        if isinstance(chosen, np.ndarray):
            masks = [self._masks(one) for one in chosen]
            if len(masks) == 1:
                return masks[0]
            return tuple([np.flatnonzero(one[part]) for one in masks] for part in (0, 1))
        if len(chosen) == 1:
            found = self.positions_of(chosen[0], name)
            return tuple(map(_distinct, found, (len(self.base), len(self.delta))))
        # All lists are looked up at once, since a look-up has a cost of its own.
        ends = np.cumsum([len(one) for one in chosen])[:-1]
        return tuple(
            [np.unique(one[one >= 0]) for one in np.split(places, ends)]
            for places in self.positions_of(list(chain.from_iterable(chosen)), name)
        )

    def _masks(self, mask: Bools) -> tuple[Bools, Bools]:
        """A mask over rows as one over positions of base and delta."""
        missing = self.num_rows - len(mask)
        if missing:
            mask = np.concatenate([mask, np.zeros(missing, bool)])
        rows = self.base.table.rows
        base = mask[: len(self.base)] if rows is None else mask[rows]
        return base, mask[self.delta.rows[: len(self.delta)]]


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Candidates, best first.

    Attributes:
        item_rows: int64 [B, k]; row `r` is the `r`-th item ever given to the index (so the row of
            `build`'s arguments), and stays so when others are removed or the index is compacted;
            −1 where there are no more.
        scores: float32 [B, k] inner products with the stored vectors; −inf where `item_rows` is −1.
    """

    item_rows: Rows
    scores: Floats
    _snapshot: Snapshot

    @property
    def ids(self) -> ItemIds:
        """Object [B, k]: the item ids; None where `item_rows` is −1."""
        return self._snapshot.ids_at(self.item_rows.ravel()).reshape(self.item_rows.shape)


def _distinct(places: Rows, num_positions: int) -> Bools | Rows:
    """The positions that are not −1, each once: ascending where they are few, else as a mask."""
    found = places[places >= 0]
    if len(found) <= max(MOST_CANDIDATES // 4, num_positions // MASK_SHARE):
        return np.unique(found)
    mask = np.zeros(num_positions, bool)
    mask[found] = True
    return mask


def _spread(
    denied: Bools | Rows | list[Rows] | None, num_requests: int, num_positions: int
) -> Bools | list[Rows] | None:
    """What is denied to all: few positions as each request's own, many as a mask."""
    if denied is None or isinstance(denied, list) or denied.dtype == bool:
        return cast(Bools | list[Rows] | None, denied)
    if len(denied) <= MOST_CANDIDATES // 4:
        return [cast(Rows, denied)] * num_requests
    mask = np.zeros(num_positions, bool)
    mask[denied] = True
    return mask


def _padded(scores: Floats, rows: Rows, k: int) -> Found:
    """Scores and rows [B, k], −inf and −1 behind the last one found."""
    if rows.shape[1] == k and rows.size and rows[:, -1].min() >= 0:
        return scores, rows
    wide_scores = np.full((len(rows), k), -np.inf, np.float32)
    wide_rows = np.full((len(rows), k), -1, np.int64)
    wide_scores[:, : rows.shape[1]], wide_rows[:, : rows.shape[1]] = scores, rows
    wide_scores[wide_rows < 0] = -np.inf
    return wide_scores, wide_rows
