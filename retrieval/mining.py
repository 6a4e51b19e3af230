"""Hard negatives: what an index puts near a query and is not its answer.

Shapes: `n` queries, `D` numbers per vector, `k` negatives per query.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from retrieval.checks import Floats, checked_vectors
from retrieval.index import ItemIndex

Rows = npt.NDArray[np.int64]

QUERIES_PER_SEARCH = 1024


def mine_hard_negatives(
    index: ItemIndex,
    queries: npt.ArrayLike,
    right_rows: npt.ArrayLike,
    *,
    k: int,
    skip: int = 0,
    margin: float | None = None,
    deny_rows: Sequence[npt.ArrayLike] | None = None,
    max_depth: int = 1000,
    progress: bool = False,
) -> npt.NDArray[np.int32]:
    """Find each query's nearest items that are not its answer.

    What lies nearest of all may be an answer that nobody labelled: `skip` leaves out a fixed number
    of the nearest, `margin` those that come too close to the right item's own score. Where both
    are given, an item must pass both.

    Args:
        index: holds the items; the rows here are its rows.
        queries: float32 [n, D], from the model that made the items' vectors.
        right_rows: int [n], the row of each query's answer.
        k: negatives per query.
        skip: how many of the nearest are left out, not counting the answer and what is denied.
        margin: a negative scores at most the right item's inner product less this; None for no
            such limit.
        deny_rows: int [any] for each query: rows that are no negatives of it, such as what the
            person liked before.
        max_depth: nearest items that are looked at for a query, besides those denied.
        progress: show a bar.

    Returns:
        int32 [n, k] rows, nearest first; −1 where there are no more within `max_depth`.

    Raises:
        ValueError: not one right row and one array of denied rows per query, a row that the index
            never gave or (with `margin`) that was removed, or a number out of its range.

    Source: skipping the nearest, DPR and ANCE practice; the margin, NV-Retriever
    (arXiv 2407.15831) section 3.2, "TopK-MarginPos".
    """
    for name, value, least in (("k", k, 1), ("skip", skip, 0), ("max_depth", max_depth, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; give at least {least}")
    if margin is not None and not np.isfinite(margin):
        raise ValueError(f"margin is {margin}; give a finite number, or None for no limit")
    vectors = checked_vectors("queries", queries, index.manifest.dimension)
    right = _checked_rows("right_rows", right_rows, index.num_rows)
    if right.shape != (len(vectors),):
        raise ValueError(f"right_rows has the shape {right.shape}; give one per query")
    if deny_rows is not None and len(deny_rows) != len(vectors):
        raise ValueError(f"deny_rows has {len(deny_rows)} entries for {len(vectors)} queries")
    denied = [
        np.append(_checked_rows("deny_rows", rows, index.num_rows), row)
        for rows, row in zip(
            [np.empty(0, np.int64)] * len(right) if deny_rows is None else deny_rows,
            right,
            strict=True,
        )
    ]
    limit = np.full(len(right), np.inf, np.float32)
    if margin is not None:
        limit = np.einsum("nd,nd->n", vectors, index.vectors_at(right)) - np.float32(margin)
    mined = np.full((len(right), k), -1, np.int32)
    for start in tqdm(
        range(0, len(right), QUERIES_PER_SEARCH), desc="mine negatives", disable=not progress
    ):
        part = slice(start, start + QUERIES_PER_SEARCH)
        mined[part] = _mine(
            index, vectors[part], denied[part], limit[part], k=k, skip=skip, max_depth=max_depth
        )
    return mined


def _mine(
    index: ItemIndex,
    queries: Floats,
    denied: list[Rows],
    limit: Floats,
    *,
    k: int,
    skip: int,
    max_depth: int,
) -> npt.NDArray[np.int32]:
    """Negatives of one batch; looks deeper for those that have too few, up to `max_depth`."""
    mined = np.full((len(queries), k), -1, np.int32)
    wanting, depth = np.arange(len(queries)), skip + k
    while len(wanting):
        depth = min(depth, max_depth)
        num_denied = np.array([len(denied[query]) for query in wanting])
        width = depth + int(num_denied.max())
        found = index.search(queries[wanting], width)
        # One number says query and row, so that one `isin` looks everywhere.
        keys = found.item_rows + np.arange(len(wanting))[:, None] * index.num_rows
        denied_keys = np.concatenate([denied[query] for query in wanting]) + np.repeat(
            np.arange(len(wanting)) * index.num_rows, num_denied
        )
        is_free = (found.item_rows >= 0) & ~np.isin(keys, denied_keys)
        place = np.cumsum(is_free, axis=1)
        is_negative = (
            is_free
            & (place > skip)
            & (place <= max_depth)
            & (found.scores <= limit[wanting][:, None])
        )
        # Stable: negatives stay in order, nearest first, and the others go last.
        order = np.argsort(~is_negative, axis=1, kind="stable")[:, :k]
        rows = np.where(
            np.take_along_axis(is_negative, order, 1),
            np.take_along_axis(found.item_rows, order, 1),
            -1,
        )
        mined[wanting, : rows.shape[1]] = rows
        if depth == max_depth or width >= len(index):
            break
        wanting = wanting[is_negative.sum(1) < k]
        depth *= 4
    return mined


def _checked_rows(name: str, rows: npt.ArrayLike, num_rows: int) -> Rows:
    """Return rows as int64; numpy makes floats of an empty list, which is no mistake."""
    array = np.asarray(rows)
    if array.size == 0:
        return np.empty(array.shape, np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype} numbers; rows are whole numbers")
    if array.min() < 0 or array.max() >= num_rows:
        wrong = array[(array < 0) | (array >= num_rows)][0]
        raise ValueError(f"{name}: {wrong} is no row of the index; it has {num_rows} rows")
    return array.astype(np.int64)
