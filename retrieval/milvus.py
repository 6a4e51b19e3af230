"""`MilvusIndex`: the verbs of `ItemIndex` over a collection of a Milvus database.

For a catalogue that one machine is too small for. The same code runs against a server (a URL) and
against the embedded Milvus Lite (a path that ends in `.db`). Needs `pip install 'decant[milvus]'`.

What Milvus does not promise is made good here. Its indexes are approximate under a filter, even
`FLAT` while rows are fresh, and may come back short: so `allow` fetches the vectors of the allowed
and compares them here, and an answer that is short is asked for again, in the end by reading every
row. Ids are never put into an expression, where quotes and backslashes would have to be escaped: a
row's key is a hash of its id, 32 hexadecimal digits.

Shapes: `I` items, `D` numbers per vector, `B` requests, `k` candidates per request.
"""

import hashlib
import json
import logging
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from retrieval.checks import Floats, ItemIds, checked_count, checked_texts, checked_vectors
from retrieval.manifest import IndexMismatch
from retrieval.protocol import IdFilter

MOST_HITS = 16_384
"""Milvus's limit on the hits of one call."""
MOST_EXCLUDED = 100_000
"""Keys in one expression: 3.5 MB, far below Milvus's limit of 64 MB on a message."""
KEYS_PER_CALL = 2_048
BYTES_PER_CALL = 8 << 20
CONNECT_SECONDS = 10.0
MOST_ID_BYTES = 65_535
"""Milvus's limit on a text."""

logger = logging.getLogger(__name__)

_MANIFEST = "decant.manifest"
_NAME = "decant.name"

Hit = tuple[float, str]
"""Inner product and item id."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundItems:
    """Candidates, best first.

    Attributes:
        ids: object [B, k] item ids; None where there are no more.
        scores: float32 [B, k] inner products; −inf where `ids` is None.
    """

    ids: ItemIds
    scores: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """What one request may find.

    Attributes:
        allowed: only these; None for all.
        denied: none of these.
    """

    allowed: frozenset[str] | None
    denied: frozenset[str]

    def keeps(self, item_id: str) -> bool:
        """Whether the item may come back."""
        return item_id not in self.denied and (self.allowed is None or item_id in self.allowed)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionManifest:
    """What a collection holds and who made it; kept in the collection's properties.

    Attributes:
        model_hash: of the model that made the vectors; any text, compared as it stands.
        dimension: numbers per vector.
        kind: Milvus's name of the index: `FLAT`, `IVF_FLAT`, `HNSW`, `DISKANN`, …
        search_params: handed to Milvus with every search: `nprobe`, `ef`, …
        metric: how vectors are compared; larger is nearer.
        count: vectors in the collection when this was asked for.
    """

    model_hash: str
    dimension: int
    kind: str
    search_params: Mapping[str, int | float]
    metric: Literal["inner_product"] = "inner_product"
    count: int = 0

    def __post_init__(self) -> None:
        if not self.model_hash:
            raise ValueError(
                "model_hash is empty; give the hash of the model that made the vectors"
            )

    @classmethod
    def parse(cls, where: str, text: str | None) -> Self:
        """Read what `build` wrote.

        Raises:
            IndexMismatch: it is not there, or not ours.
        """
        try:
            content = json.loads(text or "")
            if set(content) != {field.name for field in fields(cls)}:
                raise ValueError("its fields are not those of an index")
            manifest = cls(**content)
        except (ValueError, TypeError) as error:
            raise IndexMismatch(f"{where} is no index of ours ({error}); build one") from error
        if manifest.metric != "inner_product":
            raise IndexMismatch(f"{where}: metric {manifest.metric!r} is not known here")
        return manifest


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

    def __init__(self, client: Any, collection: str, manifest: CollectionManifest) -> None:
        """Put the parts together; `build` and `load` are the way in.

        Args:
            client: a `pymilvus.MilvusClient`.
            collection: the collection itself, not its alias.
            manifest: what it holds.
        """
        self._client = client
        self._collection = collection
        self._manifest = manifest
        self._writing = threading.Lock()

    def __len__(self) -> int:
        """How many items can be found; asks the database."""
        with _answers("count"):
            rows = self._client.query(self._collection, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def __contains__(self, item_id: str) -> bool:
        """Whether the item can be found; asks the database."""
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
        self._client.close()

    @property
    def manifest(self) -> CollectionManifest:
        """What the index holds now."""
        return replace(self._manifest, count=len(self))

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
        if len(ids) == 0:
            raise ValueError("ids is empty: an index needs at least one item")
        checked = checked_vectors("vectors", vectors)
        names = _checked_ids(ids, len(checked))
        manifest = CollectionManifest(
            model_hash=model_hash,
            dimension=checked.shape[1],
            kind=kind,
            search_params=dict(search_params or {}),
        )
        client = _connect(uri, token)
        collection = f"{name}__{secrets.token_hex(4)}"
        with _answers("build"):
            _create(client, collection, name, manifest, build_params or {})
            try:
                index = cls(client, collection, manifest)
                index._put(checked, names, client.insert)
                client.flush(collection)
                if _behind(client, name) is None:
                    client.create_alias(collection, name)
                else:
                    client.alter_alias(collection, name)
            except BaseException:
                client.drop_collection(collection)
                raise
            for other in _of_name(client, name):
                if other != collection:
                    client.drop_collection(other)
        return index

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
        client = _connect(uri, token)
        where = f"{name!r} in {_without_password(uri)}"
        with _answers("open the index"):
            collection = _behind(client, name)
            if collection is None:
                raise IndexMismatch(f"{where}: there is no such index; build one")
            described = client.describe_collection(collection)
            client.load_collection(collection)
        manifest = CollectionManifest.parse(where, described["properties"].get(_MANIFEST))
        widths = [field["params"].get("dim") for field in described["fields"]]
        if manifest.dimension not in widths:
            raise IndexMismatch(
                f"{where}: the manifest says {manifest.dimension} numbers per vector, the "
                f"collection {widths}; build it again"
            )
        index = cls(client, collection, manifest)
        index._check_model(model_hash)
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

        Under `allow` the answer is exact, and costs the transfer of the allowed items' vectors.
        Otherwise it is as good as the index's kind; denied items are over-fetched and dropped. It
        never comes back short while there are items left.

        Args:
            vectors: float32 [B, D] from the model that made the items' vectors.
            k: candidates per request, at most 16,384; above the catalogue, the rest is padding.
            allow: only these ids; one list for all requests, or a list per request. Ids that the
                index does not hold have no effect.
            deny: none of these ids; as `allow`, and stronger.

        Raises:
            ValueError: `k` out of range, vectors of another width or not finite, or as many filter
                lists as there are not requests.
            OSError: the database does not answer, or the index was replaced: load it again.
        """
        if not 1 <= k <= MOST_HITS:
            raise ValueError(f"k is {k}; ask for 1 to {MOST_HITS:,} candidates")
        queries = checked_vectors("vectors", vectors, self._manifest.dimension)
        filters = _filters(allow, deny, len(queries))
        with _answers("search"):
            if allow is None:
                found = self._nearest(queries, k, filters)
            else:
                ids = frozenset[str]().union(*(one.allowed or () for one in filters))
                found = _best(queries, k, self._rows(ids, ["item_id", "vector"]), filters)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        names = np.full((len(queries), k), None, object)
        for request, hits in enumerate(found):
            for place, (score, item) in enumerate(hits[:k]):
                scores[request, place], names[request, place] = score, item
        return FoundItems(names, scores)

    def add(
        self, vectors: npt.ArrayLike, ids: Sequence[str], *, model_hash: str | None = None
    ) -> None:
        """Add items.

        Args:
            vectors: float32 [n, D] from the model that made the others.
            ids: one per vector, none of them in the index.
            model_hash: where given, must be that of the index.

        Raises:
            IndexMismatch: another model's vectors.
            ValueError: as `build`, or an id that is there already (remove it first). Nothing was
                added then.
            OSError: the database does not answer. Of many items some may have been added then.
        """
        self._check_model(model_hash)
        checked = checked_vectors("vectors", vectors, self._manifest.dimension)
        names = _checked_ids(ids, len(checked))
        with self._writing, _answers("add"):
            if present := self._held(names):
                raise ValueError(f"ids: {min(present)!r} is in the index already; remove it first")
            # Upserted: two who add an item at once shall not leave it there twice.
            self._put(checked, names, self._client.upsert)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove items.

        Raises:
            ValueError: an id that the index does not hold. Nothing was removed then.
            OSError: the database does not answer. Of many items some may be gone then.
        """
        with self._writing, _answers("remove"):
            held = self._held(ids)
            if absent := [item for item in ids if item not in held]:
                raise ValueError(f"ids: {absent[0]!r} is not in the index, so it cannot be removed")
            keys = [_key(item) for item in held]
            for start in range(0, len(keys), KEYS_PER_CALL):
                self._client.delete(self._collection, ids=keys[start : start + KEYS_PER_CALL])

    def compact(self) -> None:
        """Have Milvus take back the room of what was removed, in its own time."""
        with self._writing, _answers("compact"):
            self._client.flush(self._collection)
            self._client.compact(self._collection)

    def _check_model(self, model_hash: str | None) -> None:
        if model_hash is not None and model_hash != self._manifest.model_hash:
            raise IndexMismatch(
                f"model_hash is {model_hash!r}, but the index was made by "
                f"{self._manifest.model_hash!r}: vectors of two models cannot be compared; build "
                "the index again with this model"
            )

    def _put(self, vectors: Floats, ids: Sequence[str], write: Any) -> None:
        """Write rows, a bounded number of bytes at a time."""
        row_bytes = 4 * vectors.shape[1] + 32
        part = np.cumsum([row_bytes + len(item.encode()) for item in ids]) // BYTES_PER_CALL
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        with tqdm(total=len(ids), desc="to Milvus", disable=len(starts) < 10) as bar:
            for start, stop in pairwise([*starts.tolist(), len(ids)]):
                rows = [
                    {"key": _key(item), "item_id": item, "vector": vector}
                    for item, vector in zip(ids[start:stop], vectors[start:stop], strict=True)
                ]
                write(self._collection, rows)
                bar.update(stop - start)

    def _held(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that the index holds."""
        return {row["item_id"] for rows in self._rows(ids, ["item_id"]) for row in rows}

    def _rows(self, ids: Iterable[str], columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """The rows of those ids that the index holds, some at a time."""
        keys = [_key(item) for item in ids]
        for start in range(0, len(keys), KEYS_PER_CALL):
            some = _in(keys[start : start + KEYS_PER_CALL])
            if rows := self._client.query(self._collection, filter=some, output_fields=columns):
                yield rows

    def _hits(self, queries: Floats, limit: int, filter: str = "") -> list[list[Hit]]:
        """The nearest of each request as Milvus finds them, a bounded number of hits at a time."""
        found: list[Any] = []
        step = max(1, MOST_HITS // limit)
        for start in range(0, len(queries), step):
            found += self._client.search(
                self._collection,
                data=queries[start : start + step],
                limit=limit,
                filter=filter,
                output_fields=["item_id"],
                search_params={"params": dict(self._manifest.search_params)},
            )
        return [[(hit["distance"], hit["entity"]["item_id"]) for hit in hits] for hits in found]

    def _nearest(self, queries: Floats, k: int, filters: Sequence[Filter]) -> list[list[Hit]]:
        """The k nearest of each request but its denied ones.

        The k + d nearest hold the k nearest that are not among d.
        """
        limit = min(k + max((len(one.denied) for one in filters), default=0), MOST_HITS)
        found = []
        for request, hits in enumerate(self._hits(queries, limit)):
            kept = [hit for hit in hits if filters[request].keeps(hit[1])]
            if len(kept) < k:
                kept = self._more(queries[request : request + 1], k, filters[request], hits)
            found.append(kept)
        return found

    def _more(self, query_1D: Floats, k: int, only: Filter, hits: list[Hit]) -> list[Hit]:
        """The nearest of one request of which the first `hits` left fewer than k.

        The denied among the hits are excluded and Milvus is asked again, until none come: only
        those that stand in the way need to be named. Is it short even so, every row is read.
        """
        excluded: set[str] = set()
        num_items = len(self)
        while True:
            kept = [hit for hit in hits if only.keeps(hit[1])]
            if len(kept) >= k or len(hits) + len(excluded) >= num_items:
                return kept
            in_the_way = {item for _, item in hits if not only.keeps(item)}
            if not in_the_way or len(excluded) + len(in_the_way) > MOST_EXCLUDED:
                return self._read_all(query_1D, k, only)
            excluded |= in_the_way
            [hits] = self._hits(query_1D, MOST_HITS, _in(map(_key, excluded), "not in"))

    def _read_all(self, query_1D: Floats, k: int, only: Filter) -> list[Hit]:
        """The k nearest of one request, compared with every row."""
        logger.warning("Milvus came back short; every row of %s is read", self._collection)
        rows = self._client.query_iterator(
            self._collection, batch_size=KEYS_PER_CALL, output_fields=["item_id", "vector"]
        )
        try:
            return _best(query_1D, k, iter(rows.next, []), [only])[0]
        finally:
            rows.close()


def _best(
    queries: Floats,
    k: int,
    batches: Iterable[list[dict[str, Any]]],
    filters: Sequence[Filter],
) -> list[list[Hit]]:
    """The k nearest of each request among rows that come some at a time."""
    best: list[list[Hit]] = [[] for _ in queries]
    for rows in batches:
        names = [row["item_id"] for row in rows]
        scores_Bn = queries @ np.array([row["vector"] for row in rows], np.float32).T
        # Requests that share a filter share its answer.
        kept = {one: np.flatnonzero([one.keeps(name) for name in names]) for one in set(filters)}
        for request, hits in enumerate(best):
            places = kept[filters[request]]
            order = np.argsort(-scores_Bn[request, places], kind="stable")[:k]
            hits += ((float(scores_Bn[request, row]), names[row]) for row in places[order])
            hits.sort(key=lambda hit: -hit[0])
            del hits[k:]
    return best


def _key(item_id: str) -> str:
    """The key of an item's row: 32 hexadecimal digits, which need no quoting anywhere."""
    return hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _in(keys: Iterable[str], verb: Literal["in", "not in"] = "in") -> str:
    return f"key {verb} {json.dumps(list(keys))}"


def _checked_ids(ids: Sequence[str], num_vectors: int) -> list[str]:
    """Ids that Milvus can keep.

    Raises:
        ValueError: not one per vector, not a text, one that is too long or that repeats.
    """
    checked_count(ids, num_vectors)
    names: list[str] = checked_texts("ids", ids).to_pylist()
    seen: set[str] = set()
    for item in names:
        if item in seen:
            raise ValueError(f"ids: {item!r} stands there twice; give each item once")
        seen.add(item)
        if (size := len(item.encode())) > MOST_ID_BYTES:
            raise ValueError(
                f"ids: {item[:40]!r}… has {size:,} bytes; Milvus keeps {MOST_ID_BYTES:,} at most"
            )
    return names


def _filters(allow: IdFilter | None, deny: IdFilter | None, num_requests: int) -> Sequence[Filter]:
    """A filter for each request; one object where they share it."""

    def sets(name: str, ids: IdFilter) -> list[frozenset[str]]:
        if isinstance(ids, str):
            raise ValueError(f"{name} is the text {ids!r}; give a list of ids")
        if len(ids) == 0 or isinstance(ids[0], str):
            return [frozenset(cast(Sequence[str], ids))]
        if len(ids) != num_requests:
            raise ValueError(f"{name} has {len(ids)} lists for {num_requests} requests")
        return [frozenset(one) for one in ids]

    allowed = [None] if allow is None else sets("allow", allow)
    denied = sets("deny", deny or [])
    if len(allowed) == len(denied) == 1:
        return [Filter(allowed[0], denied[0])] * num_requests
    return [
        Filter(allowed[request % len(allowed)], denied[request % len(denied)])
        for request in range(num_requests)
    ]


def _connect(uri: str, token: str) -> Any:
    """A client of the database.

    Raises:
        ImportError: pymilvus is not installed, or for a path Milvus Lite is not.
        OSError: nobody answers there.
    """
    try:
        from pymilvus import MilvusClient  # Half a second, and an optional extra.
    except ImportError as error:
        raise ImportError(
            "an index in Milvus needs pymilvus: pip install 'decant[milvus]'"
        ) from error
    with _answers(f"connect to {_without_password(uri)}"):
        return MilvusClient(uri=uri, token=token, timeout=CONNECT_SECONDS)


def _without_password(uri: str) -> str:
    """The URI without what stands before an @ in it."""
    return re.sub(r"//[^@/]*@", "//", uri)


@contextmanager
def _answers(verb: str) -> Iterator[None]:
    """Say what was tried when Milvus refuses.

    Raises:
        OSError: in place of what pymilvus raises.
    """
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise OSError(f"Milvus could not {verb}: {error.message}") from error


def _create(
    client: Any,
    collection: str,
    name: str,
    manifest: CollectionManifest,
    build_params: Mapping[str, int | float],
) -> None:
    """Make an empty collection that can be searched at once."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("item_id", DataType.VARCHAR, max_length=MOST_ID_BYTES)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=manifest.dimension)
    indexes = client.prepare_index_params()
    indexes.add_index(
        "vector", index_type=manifest.kind, metric_type="IP", params=dict(build_params)
    )
    client.create_collection(
        collection,
        schema=schema,
        index_params=indexes,
        # Whoever adds an item finds it with the next search.
        consistency_level="Strong",
        properties={_NAME: name, _MANIFEST: json.dumps(asdict(manifest))},
    )


def _behind(client: Any, name: str) -> str | None:
    """The collection behind an alias; None where there is no such alias."""
    for collection in _of_name(client, name):
        if name in client.list_aliases(collection)["aliases"]:
            return collection
    return None


def _of_name(client: Any, name: str) -> list[str]:
    """Collections that were made for an index of this name, whole or not."""
    return [
        collection
        for collection in client.list_collections()
        if re.fullmatch(rf"{name}__[0-9a-f]{{8}}", collection)
        and client.describe_collection(collection)["properties"].get(_NAME) == name
    ]
