"""Searches that hold to their filters, over a database that does not promise to.

Shapes: `B` requests, `D` numbers per vector, `k` candidates, `R` rows, `n` rows read at once.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from retrieval.checks import Bools, Floats, IdFilter, checked_filter, checked_texts
from retrieval.milvus.collection import MOST_HITS, Collection, Hit, Row

MOST_COMPARED = 16_384
"""Of so many allowed items the vectors are fetched: 8 MB, of 128 numbers each."""
MOST_EXCLUDED = 100_000
"""Keys in one expression: 3.5 MB, far below Milvus's limit of 64 MB on a message."""
SPARE = 1_024
"""Most candidates asked for beyond k at first; who comes back short is asked for more."""
WIDER = 4

logger = logging.getLogger(__name__)


class RowTable:
    """Numbers for the ids that this process has met, in the order in which it met them.

    The database knows no rows. Who wants them, for masks or for tables beside the index, has them
    from here: they stay as they are while the index is open, and no longer.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._adding = threading.Lock()

    def row_of(self, item_id: str) -> int:
        """The row of an id; a new one if it was not met before."""
        row = self._row_of.get(item_id)
        if row is not None:
            return row
        with self._adding:
            if item_id not in self._row_of:
                self.ids.append(item_id)
                self._row_of[item_id] = len(self.ids) - 1
            return self._row_of[item_id]

    def met_row(self, item_id: str) -> int | None:
        """The row of an id; None if it was not met before."""
        return self._row_of.get(item_id)


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A set of ids that is said by rows; rows beyond the mask are not in it.

    Attributes:
        is_in: bool [≤ R].
        table: whose rows.
    """

    is_in: Bools
    table: RowTable

    def __len__(self) -> int:
        """How many rows are in it."""
        return int(np.count_nonzero(self.is_in))

    def __iter__(self) -> Iterator[str]:
        return (self.table.ids[row] for row in np.flatnonzero(self.is_in))

    def __contains__(self, item_id: object) -> bool:
        """Whether the id is in it."""
        row = self.table.met_row(cast(str, item_id))
        return row is not None and row < len(self.is_in) and bool(self.is_in[row])


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """What one request may find.

    Attributes:
        allowed: only these; None for all.
        denied: none of these.
    """

    allowed: frozenset[str] | Mask | None
    denied: frozenset[str] | Mask

    def keeps(self, item_id: str) -> bool:
        """Whether the item may come back."""
        return item_id not in self.denied and (self.allowed is None or item_id in self.allowed)


def filters_of(
    allow: IdFilter | None, deny: IdFilter | None, num_requests: int, table: RowTable
) -> list[Filter]:
    """A filter for each request; one object where they share it.

    Raises:
        ValueError: as many lists or masks as there are not requests, neither of the two, or an id
            that is not a text.
    """
    allowed = [None] if allow is None else _sets("allow", allow, num_requests, table)
    denied = _sets("deny", () if deny is None else deny, num_requests, table)
    if len(allowed) == len(denied) == 1:
        return [Filter(allowed[0], denied[0])] * num_requests
    return [
        Filter(allowed[request % len(allowed)], denied[request % len(denied)])
        for request in range(num_requests)
    ]


def search(
    collection: Collection, queries: Floats, k: int, filters: Sequence[Filter]
) -> list[list[Hit]]:
    """The k nearest of each request that it may find.

    Args:
        collection: is searched.
        queries: float32 [B, D].
        k: at most `MOST_HITS`.
        filters: one for each request.
    """
    is_compared = np.array(
        [one.allowed is not None and len(one.allowed) <= MOST_COMPARED for one in filters], bool
    )
    found: list[list[Hit]] = [[] for _ in filters]
    for answer, requests in (
        (_compared, np.flatnonzero(is_compared)),
        (_nearest, np.flatnonzero(~is_compared)),
    ):
        if len(requests):
            own = [filters[request] for request in requests.tolist()]
            some = answer(collection, queries[requests], k, own)
            for request, hits in zip(requests.tolist(), some, strict=True):
                found[request] = hits
    return found


def _sets(
    name: str, ids: IdFilter, num_requests: int, table: RowTable
) -> Sequence[frozenset[str] | Mask]:
    """One set of ids for all requests, or one for each."""
    chosen = checked_filter(name, ids, num_requests, len(table.ids))
    if isinstance(chosen, np.ndarray):
        return [Mask(one, table) for one in chosen]
    for one in chosen:
        checked_texts(name, one)
    return [frozenset(one) for one in chosen]


def _compared(
    collection: Collection, queries: Floats, k: int, filters: Sequence[Filter]
) -> list[list[Hit]]:
    """The k nearest of each request among its allowed ones, by comparing with each."""
    ids = {item for one in set(filters) for item in one.allowed or ()}
    return _best(queries, k, collection.rows(ids, ["item_id", "vector"]), filters)


def _nearest(
    collection: Collection, queries: Floats, k: int, filters: Sequence[Filter]
) -> list[list[Hit]]:
    """The k nearest of each request that it may find, as good as the index's kind.

    The k + d nearest hold the k nearest that are not among d.
    """
    is_open = all(one.allowed is None for one in filters)
    spare = max(len(one.denied) for one in filters) if is_open else SPARE
    limit = min(k + min(spare, SPARE), MOST_HITS)
    found = []
    for request, hits in enumerate(collection.hits(queries, limit)):
        kept = [hit for hit in hits if filters[request].keeps(hit[1])]
        if len(kept) < k:
            one = queries[request : request + 1]
            kept = _asked_again(collection, one, k, filters[request], hits, limit)
        found.append(kept)
    return found


def _asked_again(
    collection: Collection, query_1D: Floats, k: int, only: Filter, hits: list[Hit], limit: int
) -> list[Hit]:
    """The nearest of one request of which the first `hits` left fewer than k.

    More are asked for, as many as Milvus gives at once. Then those that stand in the way are
    excluded, and Milvus asked again, until none come. Is it short even so, every row is read.
    """
    excluded: set[str] = set()
    num_items = collection.count()
    while True:
        kept = [hit for hit in hits if only.keeps(hit[1])]
        if len(kept) >= k or len(hits) + len(excluded) >= num_items:
            return kept
        if len(hits) == limit < MOST_HITS:
            limit = min(WIDER * limit, MOST_HITS)
        else:
            in_the_way = {item for _, item in hits if not only.keeps(item)}
            if not in_the_way or len(excluded) + len(in_the_way) > MOST_EXCLUDED:
                logger.warning("Milvus came back short; every row of %s is read", collection.name)
                rows = collection.all_rows(["item_id", "vector"])
                return _best(query_1D, k, rows, [only])[0]
            excluded |= in_the_way
        [hits] = collection.hits(query_1D, limit, without=excluded)


def _best(
    queries: Floats, k: int, batches: Iterable[list[Row]], filters: Sequence[Filter]
) -> list[list[Hit]]:
    """The k nearest of each request among rows that come some at a time."""
    best: list[list[Hit]] = [[] for _ in queries]
    for rows in batches:
        if not rows:
            continue
        names = [row["item_id"] for row in rows]
        scores_Bn = queries @ np.array([row["vector"] for row in rows], np.float32).T
        # Requests that share a filter share its answer.
        kept = {one: np.flatnonzero([one.keeps(name) for name in names]) for one in set(filters)}
        for request, hits in enumerate(best):
            places = kept[filters[request]]
            order = np.argsort(-scores_Bn[request, places], kind="stable")[:k]
            hits += ((float(scores_Bn[request, row]), names[row]) for row in places[order])
            hits.sort(key=lambda hit: -hit[0])
            del hits[k:]
    return best
