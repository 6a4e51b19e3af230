"""Items added and removed while others search: no answer may hold what was not there.

Every item has a time before it was added, a time it was there for sure, and a time it was gone for
sure. An answer is wrong if it names an item that was not yet being added when the search ended or
was removed for sure before the search began, names one twice, gives one another vector's score, or
leaves out an item that was there throughout and is nearer than the last it names. The last is asked
where the index compares with all.
"""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.retrieval.vectors import Floats
from retrieval import ItemIndex

_K = 10
_NEVER = np.inf


@dataclass(slots=True)
class Churned:
    """What came of it.

    Attributes:
        num_added: items that were added, and removed again.
        num_searches: requests answered meanwhile.
        wrong: answers of each kind that were wrong.
        searchable_seconds: from the call of `add` until a search found what it added, per batch.
        seconds: of all of it.
        errors: what searches raised.
    """

    num_added: int = 0
    num_searches: int = 0
    wrong: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("gone", "twice", "score", "missing"), 0)
    )
    searchable_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Times:
    """When each item came and went, `time.perf_counter()`; written by one thread.

    Attributes:
        adding: float64 [I], before `add` was called.
        added: float64 [I], after it returned.
        removing: float64 [I], before `remove` was called.
        removed: float64 [I], after it returned.
    """

    adding: NDArray[np.float64]
    added: NDArray[np.float64]
    removing: NDArray[np.float64]
    removed: NDArray[np.float64]


def churn(
    index: ItemIndex,
    vectors: Floats,
    queries: Floats,
    *,
    first_new: int,
    batch: int,
    num_searchers: int,
    is_exact: bool,
) -> Churned:
    """Add the items behind `first_new` and remove them again, with searches all along.

    Half of each batch is removed at once, the rest at the end, and the index is compacted on the
    way, so that items come and go in the base and beside it.

    Args:
        index: holds the items before `first_new`, named `item-<row>`.
        vectors: float32 [I, D], of items there and new.
        queries: float32 [B, D].
        first_new: the row of the first new item.
        batch: items per call.
        num_searchers: threads that search.
        is_exact: whether the index compares with all, so that a missing item is a wrong answer.
    """
    num_items = len(vectors)
    times = _Times(*(np.full(num_items, _NEVER) for _ in range(4)))
    times.adding[:first_new] = times.added[:first_new] = -_NEVER
    result, stop, lock = Churned(), threading.Event(), threading.Lock()

    def search_on(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                query = queries[rng.integers(len(queries))]
                wrong = _wrong(index, vectors, query, times, is_exact=is_exact)
                with lock:
                    result.num_searches += 1
                    for kind in wrong:
                        result.wrong[kind] += 1
        except Exception as error:
            result.errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=search_on, args=(seed,)) for seed in range(num_searchers)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    try:
        _come_and_go(index, vectors, times, result, first_new=first_new, batch=batch)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    result.seconds = time.perf_counter() - began
    return result


def _come_and_go(
    index: ItemIndex,
    vectors: Floats,
    times: _Times,
    result: Churned,
    *,
    first_new: int,
    batch: int,
) -> None:
    new = np.arange(first_new, len(vectors))
    kept = []
    for turn, start in enumerate(tqdm(range(0, len(new), batch), desc="come and go")):
        rows = new[start : start + batch]
        began = time.perf_counter()
        times.adding[rows] = began
        index.add(vectors[rows], [f"item-{row}" for row in rows])
        times.added[rows] = time.perf_counter()
        [found] = index.search(vectors[rows[-1:]], 1, allow=[f"item-{rows[-1]}"]).ids[0]
        if found != f"item-{rows[-1]}":
            result.wrong["missing"] += 1
        result.searchable_seconds.append(time.perf_counter() - began)
        result.num_added += len(rows)
        _remove(index, rows[::2], times)
        kept.append(rows[1::2])
        if turn == len(new) // batch // 2:
            index.compact()
    for rows in tqdm(kept, desc="go"):
        _remove(index, rows, times)


def _remove(index: ItemIndex, rows: NDArray[np.int64], times: _Times) -> None:
    if len(rows):
        times.removing[rows] = time.perf_counter()
        index.remove([f"item-{row}" for row in rows])
        times.removed[rows] = time.perf_counter()


def _wrong(
    index: ItemIndex, vectors: Floats, query: Floats, times: _Times, *, is_exact: bool
) -> set[str]:
    """What is wrong with the answer to one request."""
    began = time.perf_counter()
    was_there = times.added < began
    found = index.search(query[None], _K)
    ended = time.perf_counter()
    rows = np.array([int(name.removeprefix("item-")) for name in found.ids[0] if name is not None])
    scores = found.scores[0, : len(rows)]
    wrong = set()
    if (times.adding[rows] > ended).any() or (times.removed[rows] < began).any():
        wrong.add("gone")
    if len(set(rows.tolist())) < len(rows):
        wrong.add("twice")
    if not np.allclose(vectors[rows] @ query, scores, atol=1e-4):
        wrong.add("score")
    if is_exact:
        throughout = was_there & (times.removing > ended)
        throughout[rows] = False
        nearer = vectors @ query > scores.min(initial=np.inf) + 1e-4
        if len(rows) < _K or (throughout & nearer).any():
            wrong.add("missing")
    return wrong
