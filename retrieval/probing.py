"""How many lists a search reads that asks for more candidates than an index was tuned for."""

from typing import Any

import faiss

from retrieval.kinds import inverted_lists

RECALL_AT = 100
"""Candidates for which the effort of a search is chosen, and its recall measured."""
ENTRIES_PER_CANDIDATE = 2
"""Lists are read until they hold so many entries for each candidate, on average."""


def wider(searcher: Any, structure: Any, k: int, num_vectors: int) -> Any | None:
    """FAISS's parameters of a search that reads lists enough; None where it does so by itself.

    The few lists that find the nearest 100 may hold fewer than are asked for, and who comes back
    short is compared with everything, which takes longer than reading more lists.

    Args:
        searcher: is searched: `structure`, or what refines it.
        structure: the FAISS index that has lists; None where there is none.
        k: candidates that are wanted.
        num_vectors: in the lists.
    """
    lists = inverted_lists(structure)
    if lists is None or k <= RECALL_AT or not isinstance(searcher, faiss.Index):
        return None
    wanted = -(-ENTRIES_PER_CANDIDATE * k * lists.nlist // num_vectors)
    if min(wanted, lists.nlist) <= lists.nprobe:
        return None
    found = faiss.SearchParametersIVF(nprobe=min(wanted, lists.nlist))
    if isinstance(structure, faiss.IndexPreTransform):
        found = faiss.SearchParametersPreTransform(index_params=found)
    elif not isinstance(structure, faiss.IndexIVF):
        return None  # What else holds lists has parameters of its own.
    if isinstance(searcher, faiss.IndexRefine):
        found = faiss.IndexRefineSearchParameters(
            k_factor=searcher.k_factor, base_index_params=found
        )
    return found
