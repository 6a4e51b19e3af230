"""A new base out of an old one, what was removed from it and what was added since."""

from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from faiss.contrib.inspect_tools import get_invlist

from retrieval.base import Base
from retrieval.checks import Bools
from retrieval.delta import Delta
from retrieval.folder import new_token
from retrieval.identifiers import IdTable
from retrieval.kinds import (
    fill,
    has_movable_lists,
    inverted_lists,
    own_store,
    refined,
    share_store,
)
from retrieval.snapshot import Snapshot
from retrieval.storage import VectorStore
from retrieval.tuning import Effort


def compacted(
    snapshot: Snapshot, effort: Effort, *, is_refined: bool, progress: bool = False
) -> Snapshot:
    """Fold removals and fresh items into a new base, in memory.

    Lists keep their centres and the codes they hold, so that only fresh items are assigned; a graph
    that loses nodes is built anew. Rows stay what they were.

    Args:
        snapshot: is not changed.
        effort: of its searches.
        is_refined: whether candidates are compared again by their stored vectors.
        progress: show a bar.
    """
    base, delta = snapshot.base, snapshot.delta
    removed = np.zeros(len(base), bool) if snapshot.removed is None else snapshot.removed
    kept, fresh = np.flatnonzero(~removed), delta.live()
    codes = base.store.codes[kept]
    if len(fresh):
        codes = np.concatenate([codes, base.store.codec.sa_encode(delta.vectors[fresh])])
    store = VectorStore.over(base.store.codec, codes)
    rows = base.table.rows_at(kept)
    rows = np.concatenate([rows, delta.rows[fresh]])
    ids = pa.concat_arrays(
        [base.table.ids.take(pa.array(kept)), pa.array(delta.at(fresh), pa.large_string())]
    )
    is_own_row = len(rows) == 0 or rows[-1] == len(rows) - 1
    table = IdTable.of(ids, None if is_own_row else rows)
    structure, searcher = None, store.flat
    if base.structure is not None:
        structure = _rebuilt(base, store, removed, progress=progress)
        searcher = refined(structure, store) if is_refined else structure
        effort.apply(searcher, structure)
    new = Base(store, table, structure, base.empty, searcher, None, new_token())
    return replace(
        snapshot, base=new, removed=None, num_removed=0, delta=Delta.empty(store.dimension)
    )


def _rebuilt(base: Base, store: VectorStore, removed: Bools, *, progress: bool) -> Any:
    """A structure like the base's over the kept and the fresh vectors."""
    num_kept = len(base) - int(np.count_nonzero(removed))
    if isinstance(base.structure, faiss.IndexHNSW):
        is_whole = num_kept == len(base)
        structure = faiss.clone_index(base.structure if is_whole else base.empty)
        if is_whole:
            own_store(structure, base.store)
        fill(structure, store, start=num_kept if is_whole else 0, progress=progress)
        share_store(structure, store)
        return structure
    structure = faiss.clone_index(base.empty)
    is_copied = _copy_lists(base.structure, structure, removed)
    fill(structure, store, start=num_kept if is_copied else 0, progress=progress)
    return structure


def _copy_lists(old: Any, new: Any, removed: Bools) -> bool:
    """Copy codes of what was not removed, under their new positions; False where that is no way."""
    if not has_movable_lists(new):
        return False
    source, target = inverted_lists(old), inverted_lists(new)
    position = np.cumsum(~removed) - 1
    for number in range(source.nlist):
        labels, codes = get_invlist(source.invlists, number)
        stays = ~removed[labels]
        if not stays.any():
            continue
        labels, codes = position[labels[stays]], np.ascontiguousarray(codes[stays])
        target.invlists.add_entries(
            number, len(labels), faiss.swig_ptr(labels), faiss.swig_ptr(codes)
        )
    new.ntotal = target.ntotal = int(np.count_nonzero(~removed))
    return True
