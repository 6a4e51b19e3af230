"""Searches that may find some of the items only: are the answers exact, and how long do they take.

`allow` names the items that may be found, `deny` those that may not, `mask` allows by a mask over
rows; each a random share of the catalogue, which is the hard case: nothing near is allowed
but by luck.

B requests, m allowed items.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval.vectors import Drawn, Floats, K, nearest, recall
from retrieval import ItemIndex

VERBS = ("allow", "deny", "mask")
SHARES = (0.001, 0.01, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filtered:
    """What came of searches under one filter.

    Attributes:
        num_answers: how many were looked at.
        num_forbidden: of those, with an item that may not be found.
        num_short: with fewer items than there were.
        num_inexact: with other scores than the true nearest among those that may be found.
        recall: float64 [B], the share of those that were found.
        seconds: float64 [n], of one request.
    """

    num_answers: int
    num_forbidden: int
    num_short: int
    num_inexact: int
    recall: NDArray[np.float64]
    seconds: NDArray[np.float64]


def filtered(
    index: ItemIndex, drawn: Drawn, *, verb: str, share: float, num_answers: int, num_timed: int
) -> Filtered:
    """Search under a filter, one request after another.

    Args:
        index: of the items.
        drawn: the items and requests.
        verb: of `VERBS`.
        share: of the items that the filter names.
        num_answers: requests that are compared with the truth.
        num_timed: requests that are timed; the same ones.
    """
    is_named = np.random.default_rng(int(share * 1e6)).random(drawn.num_items) < share
    may_find = ~is_named if verb == "deny" else is_named
    rows = np.flatnonzero(may_find)
    ids = drawn.ids
    names = [ids[row] for row in np.flatnonzero(is_named)]
    queries = drawn.queries[: max(num_answers, num_timed)]
    seconds = np.zeros(num_timed)
    found_rows, found_scores = [], []
    for turn, query in enumerate(queries):
        began = time.perf_counter()
        if verb == "deny":
            found = index.search(query[None], K, deny=names)
        else:
            found = index.search(query[None], K, allow=is_named if verb == "mask" else names)
        if turn < num_timed:
            seconds[turn] = time.perf_counter() - began
        found_rows.append(found.item_rows[0])
        found_scores.append(found.scores[0])
    return _checked(
        drawn, rows, may_find, np.array(found_rows), np.array(found_scores), seconds, queries
    )


def _checked(
    drawn: Drawn,
    rows: NDArray[np.int64],
    may_find: NDArray[np.bool_],
    found: NDArray[np.int64],
    scores: Floats,
    seconds: NDArray[np.float64],
    queries: Floats,
) -> Filtered:
    vectors = drawn.items
    true_rows = nearest(vectors, queries, rows)
    width = true_rows.shape[1]
    true_scores = np.einsum("bkd,bd->bk", vectors[true_rows], queries)
    is_found = found >= 0
    return Filtered(
        num_answers=len(queries),
        num_forbidden=int((is_found & ~may_find[np.maximum(found, 0)]).any(1).sum()),
        num_short=int((is_found.sum(1) < width).sum()),
        # Scores are compared: of items that are equally near any will do.
        num_inexact=int((~np.isclose(scores[:, :width], true_scores, atol=1e-4)).any(1).sum()),
        recall=recall(found, true_rows),
        seconds=seconds,
    )
