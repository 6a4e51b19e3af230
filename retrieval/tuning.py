"""How hard a search must look to find what it should, and what it then misses.

Shapes: `Q` sample queries, `D` numbers per vector, `k` candidates.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

from retrieval.base import merged
from retrieval.checks import Floats, Rows
from retrieval.kinds import graph_of, inverted_lists
from retrieval.storage import VectorStore

RECALL_AT = 100
SAMPLE_SIZE = 2048
"""Items that stand in for people where no sample is given; half choose, half measure."""
MOST_VISITED = 4096
"""`ef_search` is not raised beyond this; a search would cost as much as comparing with all."""
REFINE_FACTORS = (1, 2, 4, 8, 16, 32, 64)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How hard a search looks.

    Attributes:
        num_probes: inverted lists that it reads.
        ef_search: nodes of a graph that it keeps in view.
        refine_factor: candidates per item asked for that it compares by their stored vectors.
    """

    num_probes: int = 1
    ef_search: int = 1
    refine_factor: int = 1

    def apply(self, searcher: Any, structure: Any | None) -> None:
        """Make an index search so."""
        if (lists := inverted_lists(structure)) is not None:
            lists.nprobe = self.num_probes
        if (graph := graph_of(structure)) is not None:
            graph.efSearch = self.ef_search
        if isinstance(searcher, faiss.IndexRefine):
            searcher.k_factor = self.refine_factor


def true_nearest(store: VectorStore, queries: Floats, k: int, *, progress: bool = False) -> Rows:
    """Positions [Q, k] of the nearest stored vectors, by comparing with all, block by block."""
    best = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
    with tqdm(total=len(store), desc="exact neighbours", disable=not progress) as bar:
        for start, block in store.blocks():
            scores, places = faiss.knn(
                queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            best = merged(best, (scores, places + start), k)
            bar.update(len(block))
    return best[1]


def tune(
    searcher: Any,
    structure: Any,
    store: VectorStore,
    sample: Floats,
    *,
    target_recall: float,
    progress: bool = False,
) -> tuple[Effort, float]:
    """Find the least effort that finds the target share of the true nearest 100.

    Half of the sample chooses; the other half measures what is found then, since a number that was
    chosen for is no measurement.

    Args:
        searcher: is searched, and left with the effort that was found.
        structure: the FAISS index in it that has lists or a graph.
        store: what is in it.
        sample: float32 [Q ≥ 2, D], vectors like those that will be searched for.
        target_recall: in (0, 1].
        progress: show a bar.

    Returns:
        The effort, and the recall@100 of the second half, in [0, 1].

    Raises:
        ValueError: a sample of fewer than two vectors.
    """
    if len(sample) < 2:
        raise ValueError(f"sample_vectors has {len(sample)} rows; give at least 2")
    k = min(RECALL_AT, len(store))
    truth = true_nearest(store, sample, k, progress=progress)
    half = len(sample) // 2

    def recall(effort: Effort, part: slice = slice(None, half)) -> float:
        effort.apply(searcher, structure)
        found = searcher.search(sample[part], k)[1]
        shift = np.arange(len(found))[:, None] * len(store)
        # −1 is padding; one key says query and position.
        found = np.where(found < 0, -1, found + shift)
        return float(np.isin(truth[part] + shift, found[found >= 0]).mean())

    chosen = _least_effort(recall, searcher, structure, target_recall)
    chosen.apply(searcher, structure)
    return chosen, recall(chosen, slice(half, None))


def _least_effort(
    recall: Callable[[Effort], float], searcher: Any, structure: Any, target: float
) -> Effort:
    lists = inverted_lists(structure)
    is_refined = isinstance(searcher, faiss.IndexRefine)
    field, most = ("num_probes", lists.nlist) if lists is not None else ("ef_search", MOST_VISITED)
    has_knob = lists is not None or graph_of(structure) is not None
    best: tuple[float, Effort] | None = None
    effort, reached = Effort(), 0.0
    for factor in REFINE_FACTORS if is_refined else (1,):
        start = replace(effort, refine_factor=factor)
        effort, reached = (
            _climb(recall, start, field, most, target, gives_up=is_refined)
            if has_knob
            else (start, recall(start))
        )
        if reached < target:
            continue
        # A wider refinement may need fewer lists: the faster of two neighbours is taken.
        began = time.perf_counter()
        recall(effort)
        seconds = time.perf_counter() - began
        if best is not None and seconds >= best[0]:
            break
        if best is not None:
            return effort
        best = seconds, effort
        effort = replace(effort, num_probes=1, ef_search=1)
    if best is None:
        logger.warning(
            "the index finds %.3f of the nearest at most, not %.3f: %s", reached, target, effort
        )
        return effort
    return best[1]


def _climb(
    recall: Callable[[Effort], float],
    start: Effort,
    field: str,
    most: int,
    target: float,
    *,
    gives_up: bool,
) -> tuple[Effort, float]:
    """The least value of one knob that reaches the target, or where more of it stops helping."""

    def at(value: int) -> tuple[Effort, float]:
        effort = replace(start, **{field: value})
        return effort, recall(effort)

    low, value = 0, getattr(start, field)
    found = at(value)
    before, still = 0.0, 0
    while found[1] < target and value < most:
        # Twice twofold without a gain: what is missing is not lost here.
        still = still + 1 if found[1] - before < 0.0005 and found[1] > 0 else 0
        if gives_up and still == 2:
            return found
        low, before, value = value, found[1], min(2 * value, most)
        found = at(value)
    if found[1] < target:
        return found
    while value - low > 1:
        middle = (low + value) // 2
        tried = at(middle)
        if tried[1] >= target:
            value, found = middle, tried
        else:
            low = middle
    return found
