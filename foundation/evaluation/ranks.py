"""Ranking metrics from the rank of each target in the whole catalogue.

Only ranks are kept: 6,040 requests of 3,706 scores are one array here, and millions of dictionary
entries in the libraries that we test against.

Shapes: `n` requests (rows of scores), `m` targets, `I` items. Item lists are CSR pairs
`(indptr int64 [n + 1], indices int [nnz])`: request `r` has `indices[indptr[r] : indptr[r + 1]]`.

Ties are broken by item id, the same for every request and every model, and so never in favour of
the target: among equal scores the item that comes first in `tie_order` ranks first.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
ItemLists = tuple[Ints, Ints]


def rank_of_targets(
    scores: npt.NDArray[np.floating[Any]],
    target_item: Ints,
    *,
    request: Ints | None = None,
    exclude: ItemLists | None = None,
    tie_order: Ints | None = None,
) -> npt.NDArray[np.int64]:
    """Rank of each target among all items that are neither excluded nor its fellow targets.

    A request with several positives (a slate) has a target for each, ranked without the others: the
    best model would otherwise be charged for putting one right answer below another.

    Args:
        scores: float [n, I], higher is better; infinities are scores like any other.
        target_item: int [m] in [0, I); without `request`, m = n.
        request: int [m], the row of `scores` that each target belongs to; default: one target each,
            in order.
        exclude: items that request `r` does not rank, such as those in its history. A target is
            never excluded, though it is listed; an item may be listed twice.
        tie_order: int [I], no repeats: the place of each item when ids are sorted. Default: the
            order of the rows.

    Returns:
        int64 [m], 1 is the top.

    Raises:
        ValueError: a score is NaN, a shape does not fit, or an item is outside the catalogue.
    """
    scores, order = _checked_scores(scores, tie_order)
    num_requests, num_items = scores.shape
    if request is None:
        if len(target_item) != num_requests:
            raise ValueError(
                f"target_item has {len(target_item)} entries for {num_requests} rows of scores; "
                "say with request= which row each belongs to"
            )
        own = scores
        request = np.arange(num_requests)
    else:
        _check_range("request", request, num_requests)
        if len(request) != len(target_item):
            raise ValueError(f"request has {len(request)} entries, target_item {len(target_item)}")
        own = scores[request]
    _check_range("target_item", target_item, num_items)
    num_targets = len(target_item)

    score = own[np.arange(num_targets), target_item][:, None]
    ahead: npt.NDArray[np.bool_] = own > score
    ahead |= (own == score) & (order < order[target_item][:, None])
    unranked = scipy.sparse.csr_array(
        (np.ones(num_targets, bool), (request, target_item)), shape=scores.shape
    )
    if exclude is not None:
        unranked = unranked + _item_sets(exclude, num_requests, num_items)
    ahead[unranked[request].nonzero()] = False
    return np.asarray(1 + ahead.sum(1), np.int64)


def top_items(
    scores: npt.NDArray[np.floating[Any]],
    k: int,
    *,
    exclude: ItemLists | None = None,
    tie_order: Ints | None = None,
) -> npt.NDArray[np.int64]:
    """Return each request's best items, in the order that `rank_of_targets` ranks them.

    Args:
        scores: float [n, I], higher is better.
        k: items per request.
        exclude: as `rank_of_targets`.
        tie_order: as `rank_of_targets`.

    Returns:
        int64 [n, k], −1 where a request has no more items.

    Raises:
        ValueError: as `rank_of_targets`, or `k` below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; use at least 1")
    scores, order = _checked_scores(scores, tie_order)
    num_requests, num_items = scores.shape
    by_id = np.argsort(order)
    best = by_id[np.argsort(-scores[:, by_id], axis=1, kind="stable")]
    if exclude is not None:
        dropped = _item_sets(exclude, num_requests, num_items).toarray()
        best[np.take_along_axis(dropped, best, 1)] = -1
        best = np.take_along_axis(best, np.argsort(best < 0, axis=1, kind="stable"), 1)
    padding = np.full((num_requests, max(0, k - num_items)), -1)
    return np.concatenate([best[:, :k], padding], axis=1).astype(np.int64)


def seen_items(event_item: Ints, history_start: Ints, history_end: Ints) -> ItemLists:
    """Item lists of the histories, for `exclude`.

    Args:
        event_item: int [E], the item of each event.
        history_start: int [n], the first event of each request's history.
        history_end: int [n], the event after its last.
    """
    indptr = np.concatenate([[0], np.cumsum(history_end - history_start)]).astype(np.int64)
    within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], np.diff(indptr))
    return indptr, event_item[np.repeat(history_start, np.diff(indptr)) + within]


def hit_rate(ranks: Ints, k: int) -> Floats:
    """1 for each target among the first `k`, else 0; float64 [m]. The mean is HR@k."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Ints, k: int) -> Floats:
    """1 / log2(1 + rank) for each target among the first `k`, else 0; float64 [m].

    The mean is NDCG@k with one relevant item per target, whose ideal is 1.
    """
    return np.where(ranks <= k, 1 / np.log2(1.0 + ranks), 0.0)


def mrr(ranks: Ints, k: int) -> Floats:
    """1 / rank for each target among the first `k`, else 0; float64 [m]. The mean is MRR@k."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def coverage(top_k_items: Ints, num_items: int) -> float:
    """Share of the catalogue that stands in anyone's list; int [n, k], where −1 is padding."""
    return len(np.unique(top_k_items[top_k_items >= 0])) / num_items


def rank_metrics(ranks: Ints) -> dict[str, float]:
    """The means that every table shows: `hr@10`, `ndcg@10`, `mrr@100`; NaN for no targets."""
    if len(ranks) == 0:
        return {"hr@10": np.nan, "ndcg@10": np.nan, "mrr@100": np.nan}
    return {
        "hr@10": float(hit_rate(ranks, 10).mean()),
        "ndcg@10": float(ndcg(ranks, 10).mean()),
        "mrr@100": float(mrr(ranks, 100).mean()),
    }


def _checked_scores(
    scores: npt.NDArray[np.floating[Any]], tie_order: Ints | None
) -> tuple[npt.NDArray[np.floating[Any]], Ints]:
    if scores.ndim != 2:
        raise ValueError(f"scores has the shape {scores.shape}; give [requests, items]")
    if np.isnan(scores).any():
        row, item = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores: NaN at request {row}, item {item}; a NaN has no rank")
    if tie_order is None:
        return scores, np.arange(scores.shape[1])
    different = _num_different(tie_order)
    if len(tie_order) != scores.shape[1] or different != len(tie_order):
        raise ValueError(
            f"tie_order must give each of the {scores.shape[1]} items a place of its own; it has "
            f"{len(tie_order)} entries, {different} of them different"
        )
    return scores, tie_order


def _num_different(places: Ints) -> int:
    # Asked for every few requests: of a million places in [0, I) sorting is most of a ranking.
    if len(places) and (places.min() < 0 or places.max() >= len(places)):
        return len(np.unique(places))
    taken = np.zeros(len(places), np.bool_)
    taken[places] = True
    return int(taken.sum())


def _item_sets(lists: ItemLists, num_requests: int, num_items: int) -> Any:
    """Boolean sparse [n, I] of the items listed."""
    indptr, indices = lists
    if len(indptr) != num_requests + 1 or indptr[-1] != len(indices):
        raise ValueError(
            f"exclude: indptr has {len(indptr)} entries and ends at {indptr[-1]}, for "
            f"{num_requests} requests and {len(indices)} indices"
        )
    _check_range("exclude", indices, num_items)
    return scipy.sparse.csr_array(
        (np.ones(len(indices), bool), indices, indptr), shape=(num_requests, num_items)
    )


def _check_range(name: str, values: Ints, end: int) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < end):
        raise ValueError(
            f"{name} holds {values.min()} to {values.max()}; it must lie in [0, {end})"
        )
