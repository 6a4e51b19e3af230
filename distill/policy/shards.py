"""Arrow files that are there whole or not at all, and say what they are of."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from promptify.whole import whole_file

logger = logging.getLogger(__name__)

_METADATA = b"decant"


def whole_shard(
    path: Path, key: dict[str, Any], num_pairs: int, vouched: str | None
) -> pa.Table | None:
    """The shard at a path if it is there and whole, else None; that it is not whole is logged.

    Args:
        path: of the file.
        key: what it must be of.
        num_pairs: that were judged for it.
        vouched: its SHA-256, where that is known.
    """
    if not path.exists():
        return None
    try:
        if vouched is not None and sha256(path) != vouched:
            raise pa.ArrowInvalid("another file")
        found = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        found.validate(full=True)
        if read_about(path) == {**key, "num_pairs": num_pairs}:
            return found
    except (OSError, pa.ArrowException):
        pass
    logger.warning("%s is cut or damaged; its %s pairs are judged again", path, f"{num_pairs:,}")
    return None


def read_about(path: Path) -> dict[str, Any] | None:
    """What a file of `write_shard` is of; None where it cannot be read."""
    try:
        schema = pa.ipc.open_file(pa.memory_map(str(path))).schema
        found: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    return found


def write_shard(path: Path, table: pa.Table, about: dict[str, Any]) -> None:
    """Write a table as an Arrow file.

    Args:
        path: of the file; one that is there is replaced.
        table: written as it is.
        about: what it is of, plain JSON values.
    """
    table = table.replace_schema_metadata({_METADATA: json.dumps(about)})
    with (
        whole_file(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
