"""What is written beside an index: who made it, what it holds, and the digests of its files."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from retrieval.storage import Storage

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_DIMENSION = 1 << 16
MAX_ROWS = 1 << 40

FILE_NAME = re.compile(
    r"(codec|vectors|ids|index|lists|delta|removed)-[0-9a-f]{12}\.(faiss|codes|arrow|ivfdata|npy)"
)
"""What the files of an index are called; nothing else in a folder is ours."""


class IndexMismatch(ValueError):
    """The folder is no whole index, or not the index that was asked for."""


def check_model(model_hash: str | None, made_by: str) -> None:
    """Check that vectors are of the model that made an index.

    Args:
        model_hash: of their model; None is not checked.
        made_by: of the index's.

    Raises:
        IndexMismatch: they are another model's.
    """
    if model_hash is not None and model_hash != made_by:
        raise IndexMismatch(
            f"model_hash is {model_hash!r}, but the index was made by {made_by!r}: vectors of two "
            "models cannot be compared; build the index again with this model"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexManifest:
    """What an index holds and who made it.

    Attributes:
        model_hash: of the model that made the vectors; any text, compared as it stands.
        kind: `flat` compares with every vector, `ivf` with the nearest `num_probes` lists of them,
            `ivf-pq` with those lists by short codes and then with the best of them, `hnsw` walks a
            graph; anything else is the FAISS factory string of the index.
        dimension: numbers per vector.
        count: items that can be found.
        num_rows: rows ever given; those of removed items stay empty.
        storage: of the vectors.
        factory: FAISS's words for what finds the near vectors; "" for `flat`.
        num_lists: lists the vectors are divided into; 1 where there are none.
        num_probes: lists that a search reads.
        ef_search: nodes of a graph that a search keeps in view; 1 where there is none.
        refine_factor: candidates per item asked for that are compared by their stored vectors.
        target_recall: what the last three were chosen for.
        recall_ceiling: share of the true nearest 100 that a search finds, measured when the index
            was built on vectors that did not choose; 1 for `flat`. What ranks the candidates
            cannot do better than this.
        num_bytes: what a search without filters reads of the base, and so wants in memory.
        metric: how vectors are compared; larger is nearer.
        files: SHA-256 of every other file of the index, by name; empty until saved.
    """

    model_hash: str
    kind: str
    dimension: int
    count: int
    num_rows: int
    storage: Storage = "float32"
    factory: str = ""
    num_lists: int = 1
    num_probes: int = 1
    ef_search: int = 1
    refine_factor: int = 1
    target_recall: float = 1.0
    recall_ceiling: float = 1.0
    num_bytes: int = 0
    metric: Literal["inner_product"] = "inner_product"
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.model_hash:
            raise ValueError(
                "model_hash is empty; give the hash of the model that made the vectors"
            )

    def to_bytes(self) -> bytes:
        """The manifest as JSON, with a checksum of itself."""
        content = asdict(self) | {"files": dict(self.files)}
        return (json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's manifest; its files are not looked at.

        Raises:
            IndexMismatch: no manifest, one that is cut, changed or not ours, or numbers in it that
                no index has.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise IndexMismatch(f"{folder} holds no index: {MANIFEST_NAME} is missing; build one")
        try:
            with path.open("rb") as file:
                text = file.read(MAX_MANIFEST_BYTES + 1)
            if len(text) > MAX_MANIFEST_BYTES:
                raise ValueError(f"it is longer than {MAX_MANIFEST_BYTES:,} bytes")
            content = json.loads(text.decode("utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
            checksum = content.pop("checksum", None)
            if set(content) != {field.name for field in fields(cls)}:
                raise ValueError("its fields are not those of an index")
            if checksum != _checksum(content):
                raise ValueError("it was cut or changed since it was written")
            _check_values(content)
            return cls(**content)
        except (ValueError, TypeError, RecursionError, OSError) as error:
            raise IndexMismatch(
                f"{path} cannot be read ({error}); build the index again"
            ) from error


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_values(content: Mapping[str, Any]) -> None:
    """Check what FAISS would believe; a folder may come from anywhere."""
    bounds = {
        "dimension": (1, MAX_DIMENSION),
        "count": (0, content["num_rows"]),
        "num_rows": (0, MAX_ROWS),
        "num_lists": (1, MAX_ROWS),
        "num_probes": (1, content["num_lists"] if content["kind"] == "ivf" else MAX_ROWS),
        "ef_search": (1, MAX_ROWS),
        "refine_factor": (1, 1 << 20),
        "num_bytes": (0, 1 << 60),
    }
    for name, (least, most) in bounds.items():
        value = content[name]
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} is {value!r}, not a whole number in [{least}, {most}]")
    for name in ("target_recall", "recall_ceiling"):
        if type(content[name]) not in (int, float) or not 0 <= content[name] <= 1:
            raise ValueError(f"{name} is {content[name]!r}, not a share")
    for name in ("model_hash", "kind", "factory"):
        if not isinstance(content[name], str):
            raise ValueError(f"{name} is {content[name]!r}, not a text")
    if content["metric"] != "inner_product":
        raise ValueError(f"metric {content['metric']!r} is not known here")
    if content["storage"] not in get_args(Storage):
        raise ValueError(f"storage {content['storage']!r} is not known here")
    if not isinstance(content["files"], dict):
        raise ValueError("files is no table of digests")
    for name, digest in content["files"].items():
        if not FILE_NAME.fullmatch(name) or not isinstance(digest, str):
            raise ValueError(f"{name!r} is no file of an index")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
