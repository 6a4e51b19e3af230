"""A Milvus collection behind an alias, asked in calls of bounded size.

Shapes: `n` rows, `D` numbers per vector, `B` requests.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from tqdm.auto import tqdm

from retrieval.checks import Floats
from retrieval.manifest import IndexMismatch
from retrieval.milvus.manifest import CollectionManifest

MOST_HITS = 16_384
"""Milvus's limit on the hits of one request."""
MOST_ID_BYTES = 65_535
"""Milvus's limit on a text."""
KEYS_PER_CALL = 2_048
BYTES_PER_CALL = 8 << 20
CONNECT_SECONDS = 10.0

Hit = tuple[float, str]
"""Inner product and item id."""
Row = dict[str, Any]

_MANIFEST = "decant.manifest"
_NAME = "decant.name"


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """One collection; every verb raises what `answers` does.

    Attributes:
        client: a `pymilvus.MilvusClient`.
        name: of the collection itself, not its alias.
        manifest: what it holds.
    """

    client: Any
    name: str
    manifest: CollectionManifest

    @classmethod
    def create(
        cls,
        client: Any,
        alias: str,
        manifest: CollectionManifest,
        build_params: Mapping[str, int | float],
    ) -> Self:
        """Make an empty collection that is behind no alias yet."""
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("item_id", DataType.VARCHAR, max_length=MOST_ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=manifest.dimension)
        indexes = client.prepare_index_params()
        indexes.add_index(
            "vector", index_type=manifest.kind, metric_type="IP", params=dict(build_params)
        )
        name = f"{alias}__{secrets.token_hex(4)}"
        client.create_collection(
            name,
            schema=schema,
            index_params=indexes,
            # Whoever adds an item finds it with the next search.
            consistency_level="Strong",
            properties={_NAME: alias, _MANIFEST: manifest.text()},
        )
        return cls(client, name, manifest)

    @classmethod
    def behind(cls, client: Any, alias: str, where: str) -> Self:
        """Open the collection behind an alias.

        Raises:
            IndexMismatch: there is none, or it is not ours.
        """
        name = _behind(client, alias)
        if name is None:
            raise IndexMismatch(f"{where}: there is no such index; build one")
        described = client.describe_collection(name)
        client.load_collection(name)
        manifest = CollectionManifest.parse(where, described["properties"].get(_MANIFEST))
        widths = [field["params"].get("dim") for field in described["fields"]]
        if manifest.dimension not in widths:
            raise IndexMismatch(
                f"{where}: the manifest says {manifest.dimension} numbers per vector, the "
                f"collection {widths}; build it again"
            )
        return cls(client, name, manifest)

    def take_alias(self, alias: str) -> None:
        """Go behind an alias, at once."""
        if _behind(self.client, alias) is None:
            self.client.create_alias(self.name, alias)
        else:
            self.client.alter_alias(self.name, alias)

    def drop_others(self, alias: str) -> None:
        """Drop what else was made for the alias, whole or not."""
        for other in _made_for(self.client, alias):
            if other != self.name:
                self.client.drop_collection(other)

    def drop(self) -> None:
        """Drop the collection."""
        self.client.drop_collection(self.name)

    def count(self) -> int:
        """How many rows there are."""
        return int(self.client.query(self.name, output_fields=["count(*)"])[0]["count(*)"])

    def insert(self, vectors: Floats, ids: Sequence[str]) -> None:
        """Write rows that are new for sure."""
        self._write(self.client.insert, vectors, ids)
        self.client.flush(self.name)

    def upsert(self, vectors: Floats, ids: Sequence[str]) -> None:
        """Write rows; one that somebody else wrote meanwhile is not there twice then."""
        self._write(self.client.upsert, vectors, ids)

    def _write(
        self, write: Callable[[str, list[Row]], object], vectors: Floats, ids: Sequence[str]
    ) -> None:
        row_bytes = 4 * vectors.shape[1] + 32
        part = np.cumsum([row_bytes + len(item.encode()) for item in ids]) // BYTES_PER_CALL
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        with tqdm(total=len(ids), desc="to Milvus", disable=len(starts) < 10) as bar:
            for start, stop in pairwise([*starts.tolist(), len(ids)]):
                rows = [
                    {"key": _key(item), "item_id": item, "vector": vector}
                    for item, vector in zip(ids[start:stop], vectors[start:stop], strict=True)
                ]
                write(self.name, rows)
                bar.update(stop - start)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete rows."""
        for keys in _in_parts(map(_key, ids)):
            self.client.delete(self.name, ids=keys)

    def compact(self) -> None:
        """Have Milvus take back the room of what was deleted, in its own time."""
        self.client.flush(self.name)
        self.client.compact(self.name)

    def rows(self, ids: Iterable[str], columns: list[str]) -> Iterator[list[Row]]:
        """The rows of those ids that there are, some at a time."""
        for keys in _in_parts(map(_key, ids)):
            yield self.client.query(self.name, filter=_among(keys), output_fields=columns)

    def all_rows(self, columns: list[str]) -> Iterator[list[Row]]:
        """Every row, some at a time."""
        rows = self.client.query_iterator(
            self.name, batch_size=KEYS_PER_CALL, output_fields=columns
        )
        try:
            yield from iter(rows.next, [])
        finally:
            rows.close()

    def hits(self, queries: Floats, limit: int, *, without: Iterable[str] = ()) -> list[list[Hit]]:
        """What Milvus finds for each request, best first; it may be less than there is.

        Args:
            queries: float32 [B, D].
            limit: hits of each, at most `MOST_HITS`.
            without: ids that are not looked at.
        """
        keys = [_key(item) for item in without]
        found: list[Any] = []
        step = max(1, MOST_HITS // limit)
        for start in range(0, len(queries), step):
            found += self.client.search(
                self.name,
                data=queries[start : start + step],
                limit=limit,
                filter=_among(keys, "not in") if keys else "",
                output_fields=["item_id"],
                search_params={"params": dict(self.manifest.search_params)},
            )
        return [[(hit["distance"], hit["entity"]["item_id"]) for hit in hits] for hits in found]


def connect(uri: str, token: str) -> Any:
    """A client of the database.

    Raises:
        ImportError: pymilvus is not installed.
        OSError: nobody answers there, or for a path Milvus Lite is not installed.
    """
    try:
        from pymilvus import MilvusClient  # Half a second, and an optional extra.
    except ImportError as error:
        raise ImportError(
            "an index in Milvus needs pymilvus: pip install -e '.[milvus]' in decant's folder"
        ) from error
    with answers(f"connect to {without_password(uri)}"):
        return MilvusClient(uri=uri, token=token, timeout=CONNECT_SECONDS)


def without_password(uri: str) -> str:
    """The URI without what stands before an @ in it."""
    return re.sub(r"//[^@/]*@", "//", uri)


@contextmanager
def answers(verb: str) -> Iterator[None]:
    """Say what was tried when Milvus refuses.

    Raises:
        OSError: in place of what pymilvus raises.
    """
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise OSError(f"Milvus could not {verb}: {error.message}") from error


def _key(item_id: str) -> str:
    """The key of an item's row: 32 hexadecimal digits, which need no quoting anywhere."""
    return hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _among(keys: list[str], verb: Literal["in", "not in"] = "in") -> str:
    return f"key {verb} {json.dumps(keys)}"


def _in_parts(keys: Iterable[str]) -> Iterator[list[str]]:
    every = list(keys)
    for start in range(0, len(every), KEYS_PER_CALL):
        yield every[start : start + KEYS_PER_CALL]


def _behind(client: Any, alias: str) -> str | None:
    """The collection behind an alias of ours; None where there is none."""
    for name in _made_for(client, alias):
        if alias in client.list_aliases(name)["aliases"]:
            return name
    return None


def _made_for(client: Any, alias: str) -> list[str]:
    return [
        name
        for name in client.list_collections()
        if re.fullmatch(rf"{re.escape(alias)}__[0-9a-f]{{8}}", name)
        and client.describe_collection(name)["properties"].get(_NAME) == alias
    ]
