"""Inverted lists: compare with the nearest few lists of vectors only, and know what that misses."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.checks import Floats

RECALL_AT = 100
TRAIN_VECTORS_PER_LIST = 39  # FAISS warns below this many


def build_ivf(
    vectors: Floats, rows: npt.NDArray[np.int64], sample: Floats, *, target_recall: float
) -> tuple[Any, float]:
    """Divide vectors into lists and choose how many of them a search reads.

    About 4 √I lists, as FAISS advises. `nprobe` is the least power of two that finds the target
    share of the true nearest 100 for the first half of the sample; the second half measures what
    it finds, since a number that was chosen for is no measurement.

    Args:
        vectors: [I, D].
        rows: [I], the label of each.
        sample: [≥ 2, D], vectors like those that will be searched for.
        target_recall: in (0, 1].

    Returns:
        The FAISS index, and the recall@100 of the second half, in [0, 1].

    Raises:
        ValueError: a sample of fewer than two vectors.
    """
    if len(sample) < 2:
        raise ValueError(f"sample_vectors has {len(sample)} rows; give at least 2")
    num_items, dimension = vectors.shape
    num_lists = max(1, min(int(4 * num_items**0.5), num_items // TRAIN_VECTORS_PER_LIST))
    index = faiss.index_factory(dimension, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors, rows)

    exact = faiss.IndexFlatIP(dimension)
    exact.add(vectors)
    k = min(RECALL_AT, num_items)
    truth = rows[exact.search(sample, k)[1]]

    def recall(num_probes: int, part: slice) -> float:
        params = faiss.SearchParametersIVF(nprobe=num_probes)
        _, found = index.search(sample[part], k, params=params)
        pairs = zip(found, truth[part], strict=True)
        return float(np.mean([np.isin(true, here).mean() for here, true in pairs]))

    chooses, measures = slice(None, len(sample) // 2), slice(len(sample) // 2, None)
    num_probes = 1
    while num_probes < num_lists and recall(num_probes, chooses) < target_recall:
        num_probes = min(2 * num_probes, num_lists)
    index.nprobe = num_probes
    return index, recall(num_probes, measures)
