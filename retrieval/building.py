"""A base made in memory, of vectors that lie there."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.base import Base
from retrieval.checks import Floats, Rows
from retrieval.folder import new_token
from retrieval.identifiers import IdTable
from retrieval.kinds import (
    Plan,
    emptied,
    fill,
    inverted_lists,
    new_structure,
    refined,
    share_store,
)
from retrieval.manifest import IndexManifest
from retrieval.storage import VectorStore, new_codec
from retrieval.tuning import SAMPLE_SIZE, tune


def new_base(
    vectors: Floats,
    ids: pa.LargeStringArray,
    manifest: IndexManifest,
    chosen: Plan,
    sample: Floats | None,
    *,
    target_recall: float,
    progress: bool = False,
) -> tuple[Base, IndexManifest]:
    """Make a base.

    Args:
        vectors: [I, D].
        ids: [I].
        manifest: says how vectors are stored.
        chosen: what to build.
        sample: [≥ 2, D] vectors like those that will be searched for; None takes items.
        target_recall: what a search must find of the nearest 100.
        progress: show bars.

    Returns:
        The base, and the manifest with what was built and measured.

    Raises:
        ValueError: an id twice, a sample of one vector, or what FAISS cannot build.
    """
    table = IdTable.of(ids)
    codec = new_codec(
        manifest.dimension, manifest.storage, low_D=vectors.min(0), high_D=vectors.max(0)
    )
    store = VectorStore.over(codec, codec.sa_encode(vectors))
    num_training = chosen.num_training_vectors(len(vectors))
    structure = new_structure(chosen, codec, vectors[drawn(len(vectors), num_training)])
    if structure is None:
        done = describe(manifest, chosen)
        return Base(store, table, None, None, store.flat, None, new_token()), done
    try:
        empty = emptied(structure, codec)
    except RuntimeError as error:
        said = str(error).split("Error: ")[-1]
        raise ValueError(
            f"kind is {chosen.kind!r}: FAISS cannot copy such an index ({said}); use 'flat', "
            "'ivf', 'ivf-pq', 'hnsw', 'auto' or another factory string"
        ) from error
    fill(structure, store, progress=progress)
    if chosen.kind == "hnsw":
        share_store(structure, store)
    searcher = refined(structure, store) if chosen.is_refined else structure
    if sample is None:
        if len(vectors) == 1:
            raise ValueError(
                f"kind is {chosen.kind!r}, but how hard it looks cannot be chosen on one item; "
                "give sample_vectors, or use 'flat'"
            )
        sample = vectors[drawn(len(vectors), SAMPLE_SIZE)]
    done = tuned(
        describe(manifest, chosen),
        searcher,
        structure,
        store,
        sample,
        target_recall=target_recall,
        progress=progress,
    )
    return Base(store, table, structure, empty, searcher, None, new_token()), done


def describe(manifest: IndexManifest, chosen: Plan) -> IndexManifest:
    """The manifest of what was planned."""
    return replace(
        manifest,
        kind=chosen.kind,
        factory=chosen.factory,
        num_lists=chosen.num_lists,
        num_bytes=chosen.num_bytes,
    )


def tuned(
    manifest: IndexManifest,
    searcher: Any,
    structure: Any,
    store: VectorStore,
    sample: Floats,
    *,
    target_recall: float,
    progress: bool,
) -> IndexManifest:
    """Tune the searcher as `tune` does, and note what came of it in the manifest."""
    effort, recall = tune(
        searcher, structure, store, sample, target_recall=target_recall, progress=progress
    )
    lists = inverted_lists(structure)
    return replace(
        manifest,
        num_lists=1 if lists is None else lists.nlist,
        num_probes=effort.num_probes,
        ef_search=effort.ef_search,
        refine_factor=effort.refine_factor,
        target_recall=target_recall,
        recall_ceiling=recall,
    )


def drawn(num_items: int, count: int) -> Rows:
    """Positions of a random sample without repeats, ascending, the same each time."""
    draw = np.random.default_rng(0).choice(num_items, min(count, num_items), replace=False)
    return np.sort(draw)
