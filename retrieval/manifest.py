"""What is written beside an index, and the checks that a folder must pass to be read as one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Self

IndexKind = Literal["flat", "ivf"]

MANIFEST_NAME = "manifest.json"


class IndexMismatch(ValueError):
    """The folder is no whole index, or not the index that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexManifest:
    """What an index holds and who made it.

    Attributes:
        model_hash: of the model that made the vectors; any text, compared as it stands.
        kind: `flat` compares with every vector, `ivf` with the nearest `num_probes` lists.
        dimension: numbers per vector.
        count: vectors in the index.
        num_lists: lists the vectors are divided into; 1 for `flat`.
        num_probes: lists that a search reads; 1 for `flat`.
        recall_ceiling: share of the true nearest that a search finds, measured when the index was
            built on vectors that did not choose `num_probes`; 1 for `flat`. What ranks the
            candidates cannot do better than this.
        metric: how vectors are compared; larger is nearer.
        files: SHA-256 of every other file in the folder, by name; empty until saved.
    """

    model_hash: str
    kind: IndexKind
    dimension: int
    count: int
    num_lists: int = 1
    num_probes: int = 1
    recall_ceiling: float = 1.0
    metric: Literal["inner_product"] = "inner_product"
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.model_hash:
            raise ValueError(
                "model_hash is empty; give the hash of the model that made the vectors"
            )

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder that nobody reads yet."""
        (folder / MANIFEST_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's manifest, and check its files against it.

        Raises:
            IndexMismatch: no manifest, one that is not ours, or a file that is missing, cut or
                changed since it was written.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise IndexMismatch(f"{folder} holds no index: {MANIFEST_NAME} is missing; build one")
        try:
            content = json.loads(path.read_text("utf-8"))
            if set(content) != {field.name for field in fields(cls)}:
                raise ValueError("its fields are not those of an index")
            manifest = cls(**content)
            expected = dict(manifest.files)
        except (ValueError, TypeError, UnicodeDecodeError) as error:
            raise IndexMismatch(
                f"{path} cannot be read ({error}); build the index again"
            ) from error
        if manifest.metric != "inner_product":
            raise IndexMismatch(f"{path}: metric {manifest.metric!r} is not known here")
        for name, digest in expected.items():
            if not (folder / name).is_file():
                raise IndexMismatch(f"{folder / name} is missing; build the index again")
            if sha256_of(folder / name) != digest:
                raise IndexMismatch(
                    f"{folder / name} is cut or was changed since it was saved (its SHA-256 is not "
                    "the manifest's); build the index again"
                )
        return manifest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
