"""How hard a search must look to find what it should, and what it then misses.

Shapes: `Q` sample queries, `D` numbers per vector, `k` candidates.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import faiss
import numpy as np
from tqdm import tqdm

from retrieval.base import merged
from retrieval.checks import Floats, Rows
from retrieval.kinds import graph_of, inverted_lists
from retrieval.probing import RECALL_AT
from retrieval.storage import VectorStore

SAMPLE_SIZE = 2048
"""Items that stand in for people where no sample is given; half choose, half measure."""
MOST_VISITED = 4096
"""`ef_search` is not raised beyond this; a search would cost as much as comparing with all."""
REFINE_FACTORS = (1, 2, 4, 8, 16, 32)
SPARED_FOR_CODES = 0.6
"""Share of what may be missed that is left to codes; the lists may miss the rest."""

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


def halves(num_sampled: int) -> tuple[Rows, Rows]:
    """Which of a sample choose, and which measure.

    Drawn, the same each time: a sample has an order, such as old items before new ones.
    """
    order = np.random.default_rng(0).permutation(num_sampled)
    return order[: num_sampled // 2], order[num_sampled // 2 :]


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
    chosen for is no measurement. Which half a vector is in does not depend on where it stands.

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
    choosing, measuring = halves(len(sample))
    sample, half = sample[np.concatenate([choosing, measuring])], len(choosing)
    truth = true_nearest(store, sample, k, progress=progress)

    def recall(effort: Effort, part: slice = slice(None, half)) -> float:
        effort.apply(searcher, structure)
        found = searcher.search(sample[part], k)[1]
        shift = np.arange(len(found))[:, None] * len(store)
        # −1 is padding; one key says query and position.
        found = np.where(found < 0, -1, found + shift)
        return float(np.isin(truth[part] + shift, found[found >= 0]).mean())

    lists = inverted_lists(structure)
    if lists is not None:
        ranks = _list_ranks(structure, lists, store, sample[:half], truth[:half])
        chosen = _lists_to_read(recall, searcher, lists.nlist, ranks, target_recall)
    elif graph_of(structure) is not None:
        chosen = _climb(recall, target_recall)
    else:
        chosen = Effort()
        for factor in REFINE_FACTORS:
            chosen = Effort(refine_factor=factor)
            if recall(chosen) >= target_recall:
                break
    measured = recall(chosen, slice(half, None))
    if measured < 0.99 * target_recall:
        logger.warning("the index finds %.3f of the nearest, not %.3f", measured, target_recall)
    return chosen, measured


def _list_ranks(
    structure: Any, lists: Any, store: VectorStore, queries: Floats, truth: Rows
) -> Rows:
    """How many lists a search reads before that of each true neighbour, int64 [Q · k], ascending.

    What a search of so many lists can find at most follows from this without searching.
    """
    transforms = []
    if isinstance(structure, faiss.IndexPreTransform):
        chain = structure.chain
        transforms = [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]

    def nearest_lists(vectors: Floats, count: int) -> Rows:
        for transform in transforms:
            vectors = transform.apply(vectors)
        return cast(Rows, lists.quantizer.search(vectors, count)[1])

    order = nearest_lists(queries, lists.nlist)
    rank = np.full(lists.nlist, lists.nlist, np.int64)
    found = np.empty(truth.shape, np.int64)
    for query, (nearest, places) in enumerate(zip(order, truth, strict=True)):
        rank[:] = lists.nlist
        # A quantizer that is a graph may not reach every list; it pads with −1.
        nearest = nearest[nearest >= 0]
        rank[nearest] = np.arange(len(nearest))
        found[query] = rank[nearest_lists(store.at(places), 1)[:, 0]]
    return np.sort(found, axis=None)


def _lists_to_read(
    recall: Callable[[Effort], float], searcher: Any, num_lists: int, ranks: Rows, target: float
) -> Effort:
    """The fewest lists that reach the target, and the least refinement that lets them."""

    def holding(share: float) -> int:
        place = min(int(np.ceil(share * len(ranks))), len(ranks)) - 1
        return min(int(ranks[max(place, 0)]) + 1, num_lists)

    least = holding(target)
    if not isinstance(searcher, faiss.IndexRefine):
        effort = Effort(num_probes=least)
        while recall(effort) < target and effort.num_probes < num_lists:
            effort = replace(effort, num_probes=effort.num_probes + 1 + effort.num_probes // 50)
        return replace(effort, num_probes=min(effort.num_probes, num_lists))
    # Codes lose a part of what the lists hold, so more lists are read than the target alone asks.
    most = holding(target + SPARED_FOR_CODES * (1 - target))
    effort = Effort(num_probes=most)
    for factor in REFINE_FACTORS:
        effort = replace(effort, refine_factor=factor)
        if recall(effort) >= target:
            break
    else:
        return effort
    while most - least > max(1, least // 50):
        middle = (least + most) // 2
        if recall(replace(effort, num_probes=middle)) >= target:
            most = middle
        else:
            least = middle
    return replace(effort, num_probes=most)


def _climb(recall: Callable[[Effort], float], target: float) -> Effort:
    """The least view of a graph that reaches the target."""
    low, high = 0, 16
    while high < MOST_VISITED and recall(Effort(ef_search=high)) < target:
        low, high = high, min(2 * high, MOST_VISITED)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        if recall(Effort(ef_search=middle)) >= target:
            high = middle
        else:
            low = middle
    return Effort(ef_search=high)
