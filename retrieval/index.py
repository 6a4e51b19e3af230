"""`ItemIndex`: item vectors behind `build`, `search`, `add`, `remove`, `compact`, `save`, `load`.

Shapes: `I` items, `D` numbers per vector, `B` requests, `k` candidates per request, `R` rows.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from retrieval import folder as folders
from retrieval.base import Base
from retrieval.building import new_base
from retrieval.checks import (
    Floats,
    IdFilter,
    ItemIds,
    Rows,
    check_once,
    checked_count,
    checked_items,
    checked_rows,
    checked_vectors,
)
from retrieval.compaction import compacted
from retrieval.delta import Delta
from retrieval.gpu import Mode, placer
from retrieval.kinds import plan
from retrieval.manifest import IndexManifest, check_model
from retrieval.snapshot import SearchResult, Snapshot
from retrieval.storage import Storage, check_storable, checked_storage, rounded
from retrieval.tuning import Effort

logger = logging.getLogger(__name__)


class ItemIndex:
    """Item vectors and their ids, searched by inner product (normalise first for the cosine).

    Any number of threads may search while others add, remove, compact or save: each search sees
    one state, from before a change or from after it. Changes wait for each other.

    Example:
        >>> index = ItemIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m1")
        >>> index.search([[0.0, 1.0, 0.5]], 2).ids.tolist()
        [['b', 'c']]
        >>> index.search([[0.0, 1.0, 0.5]], 2, deny=["b"]).ids.tolist()
        [['c', 'a']]
        >>> index.add([[0.0, 2.0, 0.0]], ["d"]).tolist()
        [3]
        >>> index.search([[0.0, 1.0, 0.5]], 2).ids.tolist()
        [['d', 'b']]
    """

    def __init__(
        self,
        snapshot: Snapshot,
        manifest: IndexManifest,
        *,
        place: Callable[[Base], Base] | None = None,
    ) -> None:
        """Put the parts together; `build`, `load` and `to_gpu` are the ways in.

        Args:
            snapshot: the first state.
            manifest: of the base in it.
            place: puts a base where it is searched, such as on a GPU; asked for the first base and
                for each that `compact` makes.
        """
        self._place = place
        self._snapshot = snapshot
        if place is not None:
            self._snapshot = replace(snapshot, base=place(snapshot.base))
        self._manifest = replace(manifest, files={})
        self._saved_in: Path | None = None
        self._writing = threading.Lock()

    def __len__(self) -> int:
        """How many items can be found."""
        return len(self._snapshot)

    def __contains__(self, item_id: str) -> bool:
        """Whether the item can be found."""
        in_base, in_delta = self._snapshot.live_positions_of([item_id])
        return bool(in_base[0] >= 0 or in_delta[0] >= 0)

    @property
    def num_rows(self) -> int:
        """Rows ever given: every row that a search returns is below it."""
        return self._snapshot.num_rows

    @property
    def changed_share(self) -> float:
        """What `compact` folds in, as a share of what it folds into: slower searches, by and by."""
        snapshot = self._snapshot
        return (snapshot.num_removed + len(snapshot.delta)) / max(1, len(snapshot.base))

    @property
    def ids(self) -> ItemIds:
        """Object [R]: the id at each row, None where it was removed. Made anew when asked for."""
        snapshot = self._snapshot
        return snapshot.ids_at(np.arange(snapshot.num_rows))

    @property
    def manifest(self) -> IndexManifest:
        """What the index holds now; `files` is empty."""
        return self._manifest_of(self._snapshot)

    @classmethod
    def build(
        cls,
        vectors: npt.ArrayLike,
        ids: Sequence[str],
        *,
        model_hash: str,
        kind: str = "auto",
        storage: Storage = "float32",
        target_recall: float = 0.95,
        max_bytes: int | None = None,
        sample_vectors: npt.ArrayLike | None = None,
        progress: bool = False,
    ) -> Self:
        """Make an index of vectors that one model made, in memory.

        For more vectors than memory holds there is `python -m retrieval.build`.

        Args:
            vectors: float32 [I, D], finite.
            ids: one per vector, no repeats.
            model_hash: of the model that made `vectors`; `load` compares it.
            kind: `flat`, `ivf`, `ivf-pq`, `hnsw`, any FAISS factory string, or `auto`: `flat` below
                50,000 items, else `ivf` where `max_bytes` allows, else `ivf-pq`.
            storage: how a vector's numbers are kept: `float32`, `float16`, or `int8`, each
                dimension's range in 256 steps. Scores are inner products with what is kept.
            target_recall: the share of the true nearest 100 that a search must find; it looks no
                harder than that takes. `flat` finds all.
            max_bytes: what a search without filters may read of the index, and so want in memory:
                the lists, codes or graph. Filters and `ivf-pq` read single stored vectors besides.
            sample_vectors: float32 [≥ 2, D], vectors like those that will be searched for. Half
                choose how hard a search looks, half measure `recall_ceiling`. Without them items
                stand in for people, who may lie elsewhere: give people's vectors where you can.
            progress: show bars.

        Raises:
            ValueError: no items, ids that repeat or do not match the vectors, numbers that are not
                finite or that the storage cannot hold (float16: beyond ±65,504), a kind or storage
                that is not known, a target recall outside (0, 1], or a kind that does not fit into
                `max_bytes`.
        """
        if not 0 < target_recall <= 1:
            raise ValueError(f"target_recall is {target_recall}; use a share in (0, 1]")
        checked, texts = checked_items(vectors, ids)
        num_items, dimension = checked.shape
        manifest = IndexManifest(
            model_hash=model_hash,
            kind="flat",
            dimension=dimension,
            count=num_items,
            num_rows=num_items,
            storage=checked_storage(storage),
            files={},
        )
        check_storable(checked, manifest.storage, "vectors: row {}".format)
        sample = (
            None
            if sample_vectors is None
            else checked_vectors("sample_vectors", sample_vectors, dimension)
        )
        base, manifest = new_base(
            checked,
            texts,
            manifest,
            plan(kind, num_items, dimension, storage, max_bytes),
            sample,
            target_recall=target_recall,
            progress=progress,
        )
        logger.info(
            "index of %s items: %s in %s, %.1f MB, recall ceiling %.3f",
            f"{num_items:,}",
            manifest.factory or manifest.kind,
            manifest.storage,
            manifest.num_bytes / 1e6,
            manifest.recall_ceiling,
        )
        return cls(Snapshot(base, None, 0, Delta.empty(dimension), num_items), manifest)

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int,
        *,
        allow: IdFilter | None = None,
        deny: IdFilter | None = None,
    ) -> SearchResult:
        """Find each request's nearest items.

        `flat` is exact, filtered or not. Every kind is exact under `allow`; otherwise the others
        find `recall_ceiling` of the nearest, as measured at `k=100`: of more they may find another
        share, though more lists are read for them. None comes back short while there are items
        left.

        Args:
            vectors: float32 [B, D] from the model that made the items' vectors.
            k: candidates per request; above the catalogue, the rest is padding.
            allow: only these: ids, one list for all requests or a list per request; or bool [R] or
                [B, R], a mask over rows (one made before rows were added covers them with False).
                Ids that the index does not hold have no effect.
            deny: none of these; as `allow`, and stronger.

        Raises:
            ValueError: `k` below 1 or not whole, vectors of another width or not finite, as many
                filter lists as there are not requests, ids that are no texts, or a mask of another
                shape.
        """
        k = checked_count(k)
        snapshot = self._snapshot
        queries = checked_vectors("vectors", vectors, self._manifest.dimension)
        scores, rows = snapshot.search(queries, k, allow, deny)
        return SearchResult(rows, scores, snapshot)

    def vectors_at(self, rows: npt.ArrayLike) -> Floats:
        """Vectors of items, float32 [n, D], as they are stored.

        Args:
            rows: int [n], of items that can be found.

        Raises:
            ValueError: a row that is no whole number, that the index never gave, or whose item was
                removed.
        """
        snapshot, wanted = self._snapshot, checked_rows(rows)
        in_base, in_delta = snapshot.positions_of_rows(wanted)
        if (absent := (in_base < 0) & (in_delta < 0)).any():
            raise ValueError(f"rows: {wanted[absent][0]} holds no item")
        vectors = np.empty((len(wanted), self._manifest.dimension), np.float32)
        vectors[in_base >= 0] = snapshot.base.store.at(in_base[in_base >= 0])
        vectors[in_delta >= 0] = snapshot.delta.vectors[in_delta[in_delta >= 0]]
        return vectors

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """Rows of ids, int64 [n]; −1 for an item that cannot be found.

        Raises:
            ValueError: an id that is not a text.
        """
        snapshot = self._snapshot
        in_base, in_delta = snapshot.live_positions_of(ids)
        rows = snapshot.base.table.rows_at(in_base)
        return np.where(in_delta >= 0, snapshot.delta.rows_at(in_delta), rows)

    def add(
        self, vectors: npt.ArrayLike, ids: Sequence[str], *, model_hash: str | None = None
    ) -> Rows:
        """Add items. They are found at once, by comparing with each until `compact`.

        With `int8`, numbers outside the ranges of the build are cut to them.

        Args:
            vectors: float32 [n, D] from the model that made the others.
            ids: one per vector, none of them in the index. One that was removed may come back, as
                a new row.
            model_hash: where given, must be that of the index.

        Returns:
            The row of each, int64 [n].

        Raises:
            IndexMismatch: another model's vectors.
            ValueError: as `build`, or an id that is there already (remove it first). Nothing was
                added then.
        """
        check_model(model_hash, self._manifest.model_hash)
        checked, texts = checked_items(vectors, ids, self._manifest.dimension)
        names: list[str] = texts.to_pylist()
        check_once(names)
        check_storable(checked, self._manifest.storage, "vectors: row {}".format)
        with self._writing:
            snapshot = self._snapshot
            in_base, in_delta = snapshot.live_positions_of(names)
            if (present := (in_base >= 0) | (in_delta >= 0)).any():
                item = names[int(present.argmax())]
                raise ValueError(f"ids: {item!r} is in the index already; remove it first")
            stored = rounded(snapshot.base.store.codec, checked)
            self._snapshot = replace(
                snapshot,
                delta=snapshot.delta.with_items(stored, names, snapshot.num_rows),
                num_rows=snapshot.num_rows + len(names),
            )
        return np.arange(snapshot.num_rows, snapshot.num_rows + len(names))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove items; the rows of the others stay as they are.

        Raises:
            ValueError: an id that the index does not hold. Nothing was removed then.
        """
        with self._writing:
            snapshot = self._snapshot
            in_base, in_delta = snapshot.live_positions_of(ids)
            if (absent := (in_base < 0) & (in_delta < 0)).any():
                item = list(ids)[int(absent.argmax())]
                raise ValueError(f"ids: {item!r} is not in the index, so it cannot be removed")
            removed, gone = snapshot.removed, in_base[in_base >= 0]
            if len(gone):
                removed = np.zeros(len(snapshot.base), bool) if removed is None else removed.copy()
                removed[gone] = True
            delta, fresh = snapshot.delta, in_delta[in_delta >= 0]
            self._snapshot = replace(
                snapshot,
                removed=removed,
                num_removed=0 if removed is None else int(np.count_nonzero(removed)),
                delta=delta.without(fresh) if len(fresh) else delta,
            )

    def compact(self, *, progress: bool = False) -> None:
        """Fold removed and fresh items into the base, so that searches are as fast as at first.

        Rows stay what they are. Lists keep their centres and searches their effort: when the
        catalogue has doubled, building again finds better ones. Searches go on meanwhile; the new
        base is made in memory, even where the old one is mapped from a folder.

        Args:
            progress: show a bar.
        """
        with self._writing:
            snapshot = self._snapshot
            if snapshot.removed is None and len(snapshot.delta) == 0:
                return
            new = compacted(
                snapshot,
                self._effort(),
                is_refined=self._manifest.kind not in ("flat", "ivf", "hnsw"),
                progress=progress,
            )
            if self._place is not None:
                new = replace(new, base=self._place(new.base))
            self._snapshot = new

    def to_gpu(
        self,
        devices: Sequence[int] | None = None,
        *,
        mode: Mode = "replicate",
        float16: bool = False,
    ) -> Self:
        """Return an index of the same items that is searched on GPUs, by the same verbs.

        Each goes its own way from here: what is added to one is not in the other. Filters never
        reach a GPU, whose indexes ignore them; they are as right as on the CPU. Requests from many
        threads take turns, so hand over many at once.

        Args:
            devices: numbers of GPUs; None for all.
            mode: `replicate` copies the index to each, for more requests per second; `shard`
                divides it among them, for more items.
            float16: keep the vectors of `flat` in half the memory there.

        Raises:
            RuntimeError: this FAISS has no GPU code, or sees no GPU; says what to install.
            ValueError: a kind that FAISS has no GPU form of, a device that is not there, or a
                number beyond ±65,504 for `float16`.
        """
        place = placer(devices, mode, float16=float16, refine_factor=self._manifest.refine_factor)
        snapshot = self._snapshot
        # Buffers have one writer, and from here on there are two.
        alone = replace(snapshot, delta=snapshot.delta.copied())
        return type(self)(alone, self._manifest, place=place)

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder, whole or not at all; an index that is there is replaced.

        Files that the folder holds already are not written again: after `add` and `remove` only
        what they changed is. A crash at any point leaves the old index or the new one.

        Raises:
            FileExistsError: the folder holds something that is not an index.
            OSError: the disk is full or not writable. What was there is still there then.
        """
        with self._writing:
            snapshot, base = self._snapshot, self._snapshot.base
            if self._saved_in and base.folder and not folders.has(base.folder, base.digests):
                # What was mapped is gone from there by name; the last save has a copy.
                snapshot = replace(snapshot, base=replace(base, folder=self._saved_in))
                self._snapshot = snapshot
            folders.save(snapshot, self._manifest_of(snapshot), Path(folder))
            self._saved_in = Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, model_hash: str | None = None) -> Self:
        """Map an index that `save` or `python -m retrieval.build` wrote.

        Every file is read once, to compare its digest; what stays in memory is what is searched.

        Args:
            folder: where it lies. It may be saved to while it is mapped, but not written otherwise.
            model_hash: of the model whose vectors will be searched for; where given, it must be
                that of the model that made the index.

        Raises:
            IndexMismatch: the folder holds no index, one that was cut or changed, or another
                model's.
        """
        index = cls(*folders.load(Path(folder)))
        check_model(model_hash, index._manifest.model_hash)
        return index

    def _effort(self) -> Effort:
        manifest = self._manifest
        return Effort(
            num_probes=manifest.num_probes,
            ef_search=manifest.ef_search,
            refine_factor=manifest.refine_factor,
        )

    def _manifest_of(self, snapshot: Snapshot) -> IndexManifest:
        return replace(self._manifest, count=len(snapshot), num_rows=snapshot.num_rows)
