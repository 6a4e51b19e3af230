"""`MilvusIndex`: `build`, `load`, `search`, `add`, `remove` and `compact` over a database.

Shapes: `I` items, `D` numbers per vector, `B` requests, `k` candidates per request, `R` rows.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from retrieval.checks import (
    Floats,
    IdFilter,
    ItemIds,
    Rows,
    check_once,
    checked_count,
    checked_items,
    checked_texts,
    checked_vectors,
    object_array,
)
from retrieval.manifest import check_model
from retrieval.milvus.collection import (
    MOST_HITS,
    MOST_ID_BYTES,
    Collection,
    answers,
    connect,
    without_password,
)
from retrieval.milvus.manifest import CollectionManifest
from retrieval.milvus.searching import RowTable, filters_of, search


@dataclass(frozen=True, slots=True, eq=False)
class FoundItems:
    """Candidates, best first.

    Attributes:
        ids: object [B, k] item ids; None where there are no more.
        scores: float32 [B, k] inner products; −inf where `ids` is None.
    """

    ids: ItemIds
    scores: Floats
    _table: RowTable

    @property
    def item_rows(self) -> Rows:
        """Int64 [B, k]: row `r` is the r-th id that the index has met since it was opened.

        −1 where there are no more.
        """
        rows = [-1 if item is None else self._table.row_of(item) for item in self.ids.ravel()]
        return np.array(rows, np.int64).reshape(self.ids.shape)


class MilvusIndex:
    """Item vectors in a Milvus collection, searched by inner product.

    Any number of threads and processes may search; writes of one process take turns. An index is a
    collection behind an alias, `name`: `build` makes a new collection and switches the alias when
    it is whole, so that a crash leaves the old index. Who has the old one open is refused from then
    on, and never searched with another model's vectors.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with MilvusIndex.build(
        ...     np.eye(3), ["a", "b", "c"], model_hash="m1", uri=f"{folder}/films.db", name="films"
        ... ) as index:
        ...     index.search([[0.0, 1.0, 0.5]], 2, deny=["b"]).ids.tolist()
        [['c', 'a']]
    """

    def __init__(self, collection: Collection) -> None:
        """Put the parts together; `build` and `load` are the way in.

        Args:
            collection: is searched, and written to.
        """
        self._collection = collection
        self._table = RowTable()
        self._writing = threading.Lock()

    def __len__(self) -> int:
        """How many items can be found; asks the database."""
        with answers("count"):
            return self._collection.count()

    def __contains__(self, item_id: str) -> bool:
        """Whether the item can be found; asks the database."""
        with answers("look an item up"):
            return bool(self._held([item_id]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._collection.client.close()

    @property
    def manifest(self) -> CollectionManifest:
        """What the index holds now."""
        return replace(self._collection.manifest, count=len(self))

    @property
    def ids(self) -> ItemIds:
        """Object [R]: the id at each row, None where it is not held. Reads all ids there are."""
        with answers("read ids"):
            held = [
                row["item_id"] for rows in self._collection.all_rows(["item_id"]) for row in rows
            ]
        for item in held:
            self._table.row_of(item)
        is_held = set(held)
        return object_array([item if item in is_held else None for item in self._table.ids])

    @classmethod
    def build(
        cls,
        vectors: npt.ArrayLike,
        ids: Sequence[str],
        *,
        model_hash: str,
        uri: str,
        name: str,
        token: str = "",
        kind: str = "AUTOINDEX",
        build_params: Mapping[str, int | float] | None = None,
        search_params: Mapping[str, int | float] | None = None,
    ) -> Self:
        """Make an index of vectors that one model made; an index of that name is replaced.

        One process at a time may build under a name.

        Args:
            vectors: float32 [I, D], finite.
            ids: one per vector, no repeats, at most 65,535 bytes each.
            model_hash: of the model that made `vectors`; `load` compares it.
            uri: the server's URL, or a path that ends in `.db` for the embedded Milvus Lite.
            name: of the index: letters, digits and underscores.
            token: `user:password` or an API key, where the server asks for one.
            kind: Milvus's name of an index; `FLAT` is exact once rows have settled.
            build_params: of that kind: `nlist`, `M`, `efConstruction`, …
            search_params: of that kind: `nprobe`, `ef`, …

        Raises:
            ValueError: no items, ids that repeat or do not match the vectors, or are too long,
                numbers that are not finite, a name that Milvus would not take.
            ImportError: pymilvus is not installed.
            OSError: the database does not answer, or refuses. An older index is still there then.
        """
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
            raise ValueError(
                f"name is {name!r}; use up to 200 letters, digits and underscores, no digit first"
            )
        checked, names = _checked(vectors, ids)
        manifest = CollectionManifest(
            model_hash=model_hash,
            dimension=checked.shape[1],
            kind=kind,
            search_params=dict(search_params or {}),
        )
        client = connect(uri, token)
        with answers("build"):
            collection = Collection.create(client, name, manifest, build_params or {})
            try:
                collection.insert(checked, names)
                collection.take_alias(name)
            except BaseException:
                collection.drop()
                raise
            collection.drop_others(name)
        return cls(collection)

    @classmethod
    def load(cls, *, uri: str, name: str, token: str = "", model_hash: str | None = None) -> Self:
        """Open an index that `build` made.

        Args:
            uri: as `build`.
            name: as `build`.
            token: as `build`.
            model_hash: of the model whose vectors will be searched for; where given, it must be
                that of the model that made the index.

        Raises:
            IndexMismatch: there is no such index, or it is another model's.
            ImportError: pymilvus is not installed.
            OSError: the database does not answer.
        """
        client = connect(uri, token)
        with answers("open the index"):
            where = f"{name!r} in {without_password(uri)}"
            index = cls(Collection.behind(client, name, where))
        check_model(model_hash, index._collection.manifest.model_hash)
        return index

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int,
        *,
        allow: IdFilter | None = None,
        deny: IdFilter | None = None,
    ) -> FoundItems:
        """Find each request's nearest items.

        Up to 16,384 allowed items are fetched and compared with, exactly. Else the answer is as
        good as the index's kind, and what may not be found is over-fetched and dropped. It never
        comes back short while there are items left.

        Args:
            vectors: float32 [B, D] from the model that made the items' vectors.
            k: candidates per request, at most 16,384; above the catalogue, the rest is padding.
            allow: only these: ids, one list for all requests or a list per request; or bool [R] or
                [B, R], a mask over rows (one made before rows were met covers them with False). Ids
                that the index does not hold have no effect.
            deny: none of these; as `allow`, and stronger.

        Raises:
            ValueError: `k` out of range, vectors of another width or not finite, as many filter
                lists as there are not requests, ids that are no texts, or a mask of another shape.
            OSError: the database does not answer, or the index was replaced: load it again.
        """
        k = checked_count(k, MOST_HITS)
        queries = checked_vectors("vectors", vectors, self._collection.manifest.dimension)
        filters = filters_of(allow, deny, len(queries), self._table)
        with answers("search"):
            found = search(self._collection, queries, k, filters)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        names = np.full((len(queries), k), None, object)
        for request, hits in enumerate(found):
            for place, (score, item) in enumerate(hits[:k]):
                scores[request, place], names[request, place] = score, item
        return FoundItems(names, scores, self._table)

    def add(
        self, vectors: npt.ArrayLike, ids: Sequence[str], *, model_hash: str | None = None
    ) -> Rows:
        """Add items; they are found at once.

        Args:
            vectors: float32 [n, D] from the model that made the others.
            ids: one per vector, none of them in the index.
            model_hash: where given, must be that of the index.

        Returns:
            The row of each, int64 [n]. An id that was met before keeps its row, and what others
            added may lie between.

        Raises:
            IndexMismatch: another model's vectors.
            ValueError: as `build`, or an id that is there already (remove it first). Nothing was
                added then.
            OSError: the database does not answer. Of many items some may have been added then.
        """
        check_model(model_hash, self._collection.manifest.model_hash)
        checked, names = _checked(vectors, ids, self._collection.manifest.dimension)
        with self._writing, answers("add"):
            if present := self._held(names):
                raise ValueError(f"ids: {min(present)!r} is in the index already; remove it first")
            self._collection.upsert(checked, names)
        return np.array([self._table.row_of(item) for item in names], np.int64)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove items.

        Raises:
            ValueError: an id that the index does not hold. Nothing was removed then.
            OSError: the database does not answer. Of many items some may be gone then.
        """
        with self._writing, answers("remove"):
            held = self._held(ids)
            if absent := [item for item in ids if item not in held]:
                raise ValueError(f"ids: {absent[0]!r} is not in the index, so it cannot be removed")
            self._collection.delete(held)

    def compact(self) -> None:
        """Have Milvus take back the room of what was removed, in its own time."""
        with self._writing, answers("compact"):
            self._collection.compact()

    def _held(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that the index holds.

        Raises:
            ValueError: one that is not a text.
        """
        checked_texts("ids", ids)
        return {row["item_id"] for rows in self._collection.rows(ids, ["item_id"]) for row in rows}


def _checked(
    vectors: npt.ArrayLike, ids: Sequence[str], dimension: int | None = None
) -> tuple[Floats, list[str]]:
    """Vectors float32 [n, D] and ids that Milvus can keep; `dimension` as in `checked_items`.

    Raises:
        ValueError: as `checked_items`, or an id that is too long or that repeats.
    """
    checked, texts = checked_items(vectors, ids, dimension)
    names: list[str] = texts.to_pylist()
    check_once(names)
    for item in names:
        if (size := len(item.encode())) > MOST_ID_BYTES:
            raise ValueError(
                f"ids: {item[:40]!r}… has {size:,} bytes; Milvus keeps {MOST_ID_BYTES:,} at most"
            )
    return checked, names
