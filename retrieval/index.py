"""`ItemIndex`: item vectors behind `build`, `search`, `add`, `remove`, `save` and `load`.

Shapes: `I` items, `D` numbers per vector, `B` requests, `k` candidates per request.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.checks import Floats, ItemIds, checked_ids, checked_vectors, object_array
from retrieval.ivf import build_ivf
from retrieval.manifest import MANIFEST_NAME, IndexManifest, IndexMismatch, sha256_of

Rows = npt.NDArray[np.int64]
IdFilter = Sequence[str] | Sequence[Sequence[str]]

INDEX_NAME = "index.faiss"
IDS_NAME = "ids.json"

FLAT_BELOW = 50_000
"""`auto` stays flat below this many items: a search is then a few milliseconds, and exact."""
SAMPLE_SIZE = 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Candidates, best first.

    Attributes:
        item_rows: int64 [B, k]; row `r` is the `r`-th item ever given to the index (so the row of
            `build`'s arguments), and stays so when others are removed; −1 where there are no more.
        scores: float32 [B, k] inner products; −inf where `item_rows` is −1.
    """

    item_rows: Rows
    scores: Floats
    _all_ids: ItemIds

    @property
    def ids(self) -> ItemIds:
        """Object [B, k]: the item ids; None where `item_rows` is −1."""
        found = self._all_ids[self.item_rows]
        found[self.item_rows < 0] = None
        return found


class ItemIndex:
    """Item vectors and their ids, searched by inner product (normalise first for the cosine).

    Any number of threads may search at once, but nobody may `add` or `remove` meanwhile.

    Example:
        >>> index = ItemIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m1")
        >>> index.search([[0.0, 1.0, 0.5]], 2).ids.tolist()
        [['b', 'c']]
        >>> index.search([[0.0, 1.0, 0.5]], 2, deny=["b"]).ids.tolist()
        [['c', 'a']]
    """

    def __init__(self, faiss_index: Any, ids: ItemIds, manifest: IndexManifest) -> None:
        """Put the parts together; `build` and `load` are the way in.

        Args:
            faiss_index: whose labels are rows of `ids`.
            ids: object [rows ever given]; None where the item was removed.
            manifest: what `faiss_index` holds.
        """
        self._index = faiss_index
        self._ids = ids
        self._row_of = {item: row for row, item in enumerate(ids) if item is not None}
        self._manifest = manifest

    def __len__(self) -> int:
        """How many items can be found."""
        return len(self._row_of)

    def __contains__(self, item_id: str) -> bool:
        """Whether the item can be found."""
        return item_id in self._row_of

    @property
    def ids(self) -> ItemIds:
        """Object [rows]: the id at each row, None where it was removed. Not to be written to."""
        return self._ids

    @property
    def num_rows(self) -> int:
        """Rows ever given: every row that a search returns is below it."""
        return len(self._ids)

    def vectors_at(self, rows: npt.ArrayLike) -> Floats:
        """Vectors of items, float32 [n, D], as the index holds them.

        Args:
            rows: int [n], of items that can be found.

        Raises:
            ValueError: a row that the index never gave, or whose item was removed.
        """
        wanted = np.asarray(rows, np.int64)
        if self._manifest.kind == "ivf":
            self._index.set_direct_map_type(faiss.DirectMap.Hashtable)
            held, vectors = wanted, self._index.reconstruct_batch
        else:
            place = {row: at for at, row in enumerate(faiss.vector_to_array(self._index.id_map))}
            held = np.array([place.get(row, -1) for row in wanted.tolist()], np.int64)
            vectors = self._index.index.reconstruct_batch
        if (held < 0).any() or any(self._ids[row] is None for row in wanted):
            raise ValueError("rows: one of them holds no item")
        return cast(Floats, vectors(held))

    @property
    def manifest(self) -> IndexManifest:
        """What the index holds now; `files` is empty until it is saved."""
        return replace(self._manifest, count=len(self))

    @classmethod
    def build(
        cls,
        vectors: npt.ArrayLike,
        ids: Sequence[str],
        *,
        model_hash: str,
        kind: Literal["flat", "ivf", "auto"] = "auto",
        target_recall: float = 0.95,
        sample_vectors: npt.ArrayLike | None = None,
    ) -> Self:
        """Make an index of vectors that one model made.

        Args:
            vectors: float32 [I, D], finite.
            ids: one per vector, no repeats.
            model_hash: of the model that made `vectors`; `load` compares it.
            kind: `auto` is `flat` below 50,000 items, else `ivf`.
            target_recall: for `ivf`, the share of the true nearest 100 that a search must find; it
                reads as few lists as that takes.
            sample_vectors: for `ivf`, float32 [≥ 2, D] vectors like those that will be searched
                for. Half choose `num_probes`, half measure `recall_ceiling`. Without them items
                stand in for people, who may lie elsewhere: give people's vectors where you can.

        Raises:
            ValueError: no items, ids that repeat or do not match the vectors, numbers that are not
                finite, or a target recall outside (0, 1].
        """
        if kind not in ("flat", "ivf", "auto"):
            raise ValueError(f"kind is {kind!r}; use 'flat', 'ivf' or 'auto'")
        if not 0 < target_recall <= 1:
            raise ValueError(f"target_recall is {target_recall}; use a share in (0, 1]")
        if len(ids) == 0:
            raise ValueError("ids is empty: an index needs at least one item")
        checked = checked_vectors("vectors", vectors)
        names = checked_ids(ids, len(checked))
        num_items, dimension = checked.shape
        if kind == "auto":
            kind = "flat" if num_items < FLAT_BELOW else "ivf"
        manifest = IndexManifest(
            model_hash=model_hash, kind=kind, dimension=dimension, count=num_items, files={}
        )
        rows = np.arange(num_items, dtype=np.int64)
        if kind == "flat":
            index = faiss.index_factory(dimension, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
            index.add_with_ids(checked, rows)
            return cls(index, names, manifest)
        sample = (
            checked[np.random.default_rng(0).permutation(num_items)[:SAMPLE_SIZE]]
            if sample_vectors is None
            else checked_vectors("sample_vectors", sample_vectors, dimension)
        )
        index, recall = build_ivf(checked, rows, sample, target_recall=target_recall)
        tuned = replace(
            manifest, num_lists=index.nlist, num_probes=index.nprobe, recall_ceiling=recall
        )
        logger.info("index of %d items: %s", num_items, tuned)
        return cls(index, names, tuned)

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int,
        *,
        allow: IdFilter | None = None,
        deny: IdFilter | None = None,
    ) -> SearchResult:
        """Find each request's nearest items.

        `flat` is exact, filtered or not. `ivf` is exact under `allow`, and otherwise finds
        `recall_ceiling` of the nearest; it never comes back short while there are items left.

        Args:
            vectors: float32 [B, D] from the model that made the items' vectors.
            k: candidates per request; above the catalogue, the rest is padding.
            allow: only these ids; one list for all requests, or a list per request. Ids that the
                index does not hold have no effect.
            deny: none of these ids; as `allow`, and stronger.

        Raises:
            ValueError: `k` below 1, vectors of another width or not finite, or as many filter lists
                as there are not requests.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least 1 candidate")
        queries = checked_vectors("vectors", vectors, self._manifest.dimension)
        num_requests = len(queries)
        allow_rows = self._filter_rows("allow", allow, num_requests)
        deny_rows = self._filter_rows("deny", deny, num_requests)
        item_rows = np.full((num_requests, k), -1, np.int64)
        scores = np.full((num_requests, k), -np.inf, np.float32)

        def put(where: slice, found: tuple[Floats, Rows]) -> None:
            width = found[1].shape[1]
            scores[where, :width], item_rows[where, :width] = found

        if isinstance(allow_rows, list) or (allow_rows is not None and isinstance(deny_rows, list)):
            for request in range(num_requests):
                one = slice(request, request + 1)
                allowed = allow_rows[request] if isinstance(allow_rows, list) else allow_rows
                denied = deny_rows[request] if isinstance(deny_rows, list) else deny_rows
                put(one, self._nearest(queries[one], k, allowed, denied))
        elif isinstance(deny_rows, list):
            put(slice(None), self._nearest_but(queries, k, deny_rows))
        else:
            put(slice(None), self._nearest(queries, k, allow_rows, deny_rows))
        scores[item_rows < 0] = -np.inf
        return SearchResult(item_rows, scores, self._ids)

    def add(
        self, vectors: npt.ArrayLike, ids: Sequence[str], *, model_hash: str | None = None
    ) -> None:
        """Add items; `ivf` keeps the lists and probes of its build.

        Args:
            vectors: float32 [n, D] from the model that made the others.
            ids: one per vector, none of them in the index.
            model_hash: where given, must be that of the index.

        Raises:
            IndexMismatch: another model's vectors.
            ValueError: as `build`, or an id that is there already (remove it first). Nothing was
                added then.
        """
        self._check_model(model_hash)
        checked = checked_vectors("vectors", vectors, self._manifest.dimension)
        names = checked_ids(ids, len(checked))
        if present := [item for item in names if item in self._row_of]:
            raise ValueError(f"ids: {present[0]!r} is in the index already; remove it first")
        rows = np.arange(len(self._ids), len(self._ids) + len(names), dtype=np.int64)
        self._index.add_with_ids(checked, rows)
        self._ids = np.concatenate([self._ids, names])
        self._row_of.update(zip(names, rows.tolist(), strict=True))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove items; the rows of the others stay as they are.

        Raises:
            ValueError: an id that the index does not hold. Nothing was removed then.
        """
        if absent := [item for item in ids if item not in self._row_of]:
            raise ValueError(f"ids: {absent[0]!r} is not in the index, so it cannot be removed")
        rows = np.array([self._row_of[item] for item in ids], np.int64)
        self._index.remove_ids(rows)
        # A copy, since results that were handed out read their ids from the old one.
        self._ids = self._ids.copy()
        self._ids[rows] = None
        for item in ids:
            self._row_of.pop(item, None)

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder, whole or not at all; an index that is there is replaced.

        Raises:
            FileExistsError: the folder holds something that is not an index.
            OSError: the disk is full or not writable. What was there is still there then.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / MANIFEST_NAME).is_file() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds other files than an index; save elsewhere")
        whole = folder.with_name(f".{folder.name}.{os.getpid()}.new")
        old = whole.with_suffix(".old")
        try:
            whole.mkdir(parents=True)
            (whole / IDS_NAME).write_text(json.dumps(self._ids.tolist()), "utf-8")
            try:
                faiss.write_index(self._index, str(whole / INDEX_NAME))
            except RuntimeError as error:
                raise OSError(f"{folder}: the index could not be written ({error})") from error
            digests = {name: sha256_of(whole / name) for name in (INDEX_NAME, IDS_NAME)}
            replace(self.manifest, files=digests).write(whole)
            # A folder cannot be renamed onto a full one, so the old one steps aside first.
            if folder.exists():
                folder.rename(old)
            whole.rename(folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(whole, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path, *, model_hash: str | None = None) -> Self:
        """Read an index that `save` wrote.

        Args:
            folder: where it lies.
            model_hash: of the model whose vectors will be searched for; where given, it must be
                that of the model that made the index.

        Raises:
            IndexMismatch: the folder holds no index, one that was cut or changed, or another
                model's.
        """
        folder = Path(folder)
        manifest = IndexManifest.read(folder)
        try:
            ids = object_array(json.loads((folder / IDS_NAME).read_text("utf-8")))
            faiss_index = faiss.read_index(str(folder / INDEX_NAME))
        except (RuntimeError, ValueError, OSError) as error:
            raise IndexMismatch(f"{folder} cannot be read ({error}); build it again") from error
        index = cls(faiss_index, ids, replace(manifest, files={}))
        held = (faiss_index.d, faiss_index.ntotal, len(index))
        if held != (manifest.dimension, manifest.count, manifest.count):
            raise IndexMismatch(
                f"{folder}: the manifest says {manifest.count} vectors of {manifest.dimension} "
                f"numbers, the files hold {held[1]} of {held[0]} and {held[2]} ids; build it again"
            )
        index._check_model(model_hash)
        return index

    def _check_model(self, model_hash: str | None) -> None:
        if model_hash is not None and model_hash != self._manifest.model_hash:
            raise IndexMismatch(
                f"model_hash is {model_hash!r}, but the index was made by "
                f"{self._manifest.model_hash!r}: vectors of two models cannot be compared; build "
                "the index again with this model"
            )

    def _filter_rows(
        self, name: str, ids: IdFilter | None, num_requests: int
    ) -> Rows | list[Rows] | None:
        """Rows of the ids that the index holds: one array for all, or one per request."""
        if ids is None:
            return None
        if isinstance(ids, str):
            raise ValueError(f"{name} is the text {ids!r}; give a list of ids")
        if len(ids) == 0 or isinstance(ids[0], str):
            return self._rows(cast(Sequence[str], ids))
        if len(ids) != num_requests:
            raise ValueError(f"{name} has {len(ids)} lists for {num_requests} requests")
        return [self._rows(one) for one in ids]

    def _rows(self, ids: Sequence[str]) -> Rows:
        held = (row for row in map(self._row_of.get, ids) if row is not None)
        return np.unique(np.fromiter(held, np.int64))

    def _nearest(
        self, queries: Floats, k: int, allowed: Rows | None, denied: Rows | None
    ) -> tuple[Floats, Rows]:
        """Scores and rows [B, ≤ k] under one filter for all requests."""
        if allowed is None and denied is None:
            return self._faiss_search(queries, min(k, len(self)), None, exact=False)
        keep = np.zeros(len(self._ids), bool) if allowed is not None else self._is_held()
        if allowed is not None:
            keep[allowed] = True
        if denied is not None:
            keep[denied] = False
        bits = np.packbits(keep, bitorder="little")
        width = min(k, int(keep.sum()))
        selector = faiss.IDSelectorBitmap(bits)
        return self._faiss_search(queries, width, selector, exact=allowed is not None)

    def _nearest_but(self, queries: Floats, k: int, denied: list[Rows]) -> tuple[Floats, Rows]:
        """Scores and rows [B, ≤ k] without each request's own denied rows.

        One search for all requests with room for what is then dropped: the k + d nearest hold the k
        nearest that are not among d. A selector would be a search per request, without BLAS.
        """
        num_denied = np.array([len(rows) for rows in denied])
        width = min(k + int(num_denied.max(initial=0)), len(self))
        scores, found = self._faiss_search(queries, width, None, exact=False)
        request = np.repeat(np.arange(len(queries)), num_denied)
        is_denied = np.isin(
            found + np.arange(len(queries))[:, None] * len(self._ids),
            request * len(self._ids) + np.concatenate([*denied, np.empty(0, np.int64)]),
        ) & (found >= 0)
        scores[is_denied], found[is_denied] = -np.inf, -1
        # Stable: the kept stay in order and the dropped go last.
        order = np.argsort(found < 0, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)

    def _faiss_search(
        self, queries: Floats, k: int, selector: Any | None, *, exact: bool
    ) -> tuple[Floats, Rows]:
        """Scores and rows [B, k]; asks again, of every list, those who came back short of k."""
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if self._manifest.kind == "flat":
            params = faiss.SearchParameters(sel=selector)
            return cast(tuple[Floats, Rows], self._index.search(queries, k, params=params))
        nprobe = self._index.nlist if exact else self._index.nprobe
        params = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        scores, rows = self._index.search(queries, k, params=params)
        if nprobe < self._index.nlist and (short := rows[:, -1] < 0).any():
            params = faiss.SearchParametersIVF(nprobe=self._index.nlist, sel=selector)
            scores[short], rows[short] = self._index.search(queries[short], k, params=params)
        return scores, rows

    def _is_held(self) -> npt.NDArray[np.bool_]:
        held = np.zeros(len(self._ids), bool)
        held[list(self._row_of.values())] = True
        return held
