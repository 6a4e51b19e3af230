"""What is kept with a collection: who made its vectors, and how it is searched."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, Self

from retrieval.manifest import IndexMismatch


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

    def text(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, where: str, text: str | None) -> Self:
        """Read what `text` wrote.

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
