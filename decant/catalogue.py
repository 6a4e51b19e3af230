"""What became of a run's catalogue since its log was read: items added, told anew, withdrawn.

current.json                  which version is whole, whose vectors it holds, SHA-256 of its files
v3-1f…/items.parquet          items that are not as the log has them
v3-1f…/removed.parquet        ids of items that are recommended no more
v3-1f…/readings.safetensors   what the model read of those items
v3-1f…/index/                 vectors of all that is recommended

A version is written beside the one that is there; renaming `current.json` puts it in its place.

Legend: N items that are told, D hidden width, W text encoder's width.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from decant.layout import RunLayout
from decant.served import Served
from foundation import Foundation
from foundation.told_items import ItemReadings
from promptify.assembly import PromptBook
from promptify.ingest import item_types, read_items
from promptify.inline import is_missing
from promptify.schema import Schema
from promptify.sources.files import json_columns
from promptify.validation import BadInput, BadRows, OnBadRows, shown
from promptify.whole import sync, write_whole
from retrieval import IndexManifest, IndexMismatch, ItemIndex
from retrieval.manifest import sha256_of

if TYPE_CHECKING:
    import pandas as pd

_CURRENT = "current.json"
_ITEMS, _REMOVED, _READINGS = "items.parquet", "removed.parquet", "readings.safetensors"
_FORMAT_VERSION = 1
_VERSION = re.compile(r"v\d+-[0-9a-f]+")
_UNREADABLE = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    pa.ArrowException,
    SafetensorError,
)
# Saving a large index takes minutes, not more.
_PATIENCE_SECONDS = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedItems:
    """One version as it was written.

    Attributes:
        index: folder of its index.
        told: items that are not as the log has them, N rows.
        removed: ids of items that are recommended no more.
        reading_ND: what the decoder read of `told`, float32.
        encoding_NW: what the text encoder read of it; None without one.
        model_hash: of the model that read them and made the index.
    """

    index: Path
    told: pa.Table
    removed: frozenset[str]
    reading_ND: Any
    encoding_NW: Any
    model_hash: str

    def put_into(
        self, foundation: Foundation, book: PromptBook, *, model_hash: str
    ) -> tuple[Foundation, PromptBook]:
        """A model and its prompts over the catalogue with these items.

        Args:
            foundation: over the log's catalogue.
            book: of the log.
            model_hash: of that model; another than the one that read the items reads them again.
        """
        if not len(self.told):
            return foundation, book
        extended = book.with_items(self.told)
        ids = self.told["item_id"].to_pylist()
        rows_N = np.array([extended.interactions.item_row(item) for item in ids], np.int64)
        pieces = extended.item_pieces.take(rows_N)
        if model_hash == self.model_hash:
            told = ItemReadings(
                pieces=pieces, reading_ND=self.reading_ND, encoding_NW=self.encoding_NW
            )
        else:
            told = foundation.read_items(pieces)
        return foundation.with_items(ids, told), extended


class SavedCatalogue:
    """The folder of a run where its catalogue is kept, and the version that was last seen there.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version: str | None = None

    def read(self, schema: Schema) -> SavedItems | None:
        """The version that is whole; None where nothing was ever saved.

        Args:
            schema: of the items.

        Raises:
            BadInput: a file is missing, cut or changed, or may not be read by this user, or its
                columns are not those of the schema.
        """
        if not (self.folder / _CURRENT).exists():
            return None
        try:
            current = self._read_current()
            try:
                saved = self._read_version(current, schema)
            except OSError:
                # Another process may have saved meanwhile, and deleted what this one was reading.
                if (now := self._read_current()) == current:
                    raise
                current, saved = now, self._read_version(now, schema)
        except PermissionError as error:
            raise BadInput(
                f"{self.folder} may not be read by this user (PermissionError: {error.filename}); "
                "have its owner let others read it."
            ) from error
        except _UNREADABLE as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise BadInput(
                f"{self.folder} is damaged or of other data ({said}). Copy it again, or delete it: "
                "the items of the log are served then."
            ) from error
        self._version = current["version"]
        return saved

    def _read_version(self, current: Mapping[str, Any], schema: Schema) -> SavedItems:
        version = self.folder / current["version"]
        for name, digest in current["sha256"].items():
            if sha256_of(version / name) != digest:
                raise ValueError(f"{name} is cut or was changed")
        told = pq.read_table(version / _ITEMS)
        if told.schema.remove_metadata() != pa.schema(list(item_types(schema).items())):
            raise ValueError(f"{_ITEMS} holds {', '.join(told.column_names)}")
        readings = load_file(version / _READINGS)
        if len(readings["reading_ND"]) != len(told):
            raise ValueError(f"{_READINGS} is of other items")
        return SavedItems(
            index=version / "index",
            told=told,
            removed=frozenset(pq.read_table(version / _REMOVED)["item_id"].to_pylist()),
            reading_ND=readings["reading_ND"],
            encoding_NW=readings.get("encoding_NW"),
            model_hash=current["model_hash"],
        )

    def write(self, served: Served, index: ItemIndex, *, while_serving: bool = False) -> None:
        """Make what is served the version that is read from now on, whole or not at all.

        Args:
            served: is written.
            index: the one of `served`; nobody may add to it meanwhile.
            while_serving: by a recommender, which may have been loaded long ago: its model must be
                the one that the run is indexed for. A command that indexes for another leaves it.

        Raises:
            BadInput: another process saved since this folder was read, another model serves, or
                the folder is a link.
            OSError: the disk is full or not writable; what was there is still there then.
        """
        if self.folder.is_symlink():
            raise BadInput(
                f"{self.folder} is a link to another place, where old versions would be deleted; "
                "remove it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock", timeout=_PATIENCE_SECONDS):
            before = self._current_version()
            if before != self._version:
                raise BadInput(
                    f"{self.folder}: another process saved items since this one read them; load "
                    "the run again and make the changes anew."
                )
            if while_serving:
                self._check_model(index.manifest.model_hash)
            version = self.folder / f"v{_number(before) + 1}-{secrets.token_hex(4)}"
            try:
                version.mkdir()
                if before is not None:
                    _share_files(self.folder / before / "index", version / "index")
                self._write_version(served, version)
                index.save(version / "index")
                sync(version)
                current = {
                    "format_version": _FORMAT_VERSION,
                    "version": version.name,
                    "model_hash": index.manifest.model_hash,
                    "sha256": {
                        name: sha256_of(version / name) for name in (_ITEMS, _REMOVED, _READINGS)
                    },
                }
                write_whole(self.folder / _CURRENT, json.dumps(current, indent=2) + "\n")
            except BaseException:
                # An interrupt may come when it is the version that is read already.
                if self._current_version() == version.name:
                    self._version = version.name
                else:
                    shutil.rmtree(version, ignore_errors=True)
                raise
            self._version = version.name
            for old in self.folder.iterdir():
                if _VERSION.fullmatch(old.name) and old != version:
                    shutil.rmtree(old, ignore_errors=True)

    def _check_model(self, model_hash: str) -> None:
        """Refuse to write what no load would take: the index of a model that serves no more."""
        try:
            indexed = IndexManifest.read(RunLayout(self.folder.parent).index)
        except IndexMismatch:  # None is there, or a damaged one, of which a load tells.
            return
        if indexed.model_hash != model_hash:
            raise BadInput(
                f"{self.folder.parent}: another model serves this run now than the one that was "
                "loaded; load the run again and make the changes anew."
            )

    def _write_version(self, served: Served, version: Path) -> None:
        log, table = served.interactions, served.foundation.items
        types = item_types(log.schema)
        told = served.told
        if told is None:
            told = pa.table({name: pa.array([], kind) for name, kind in types.items()})
        pq.write_table(told.select(list(types)), version / _ITEMS)
        removed = [log.item_ids[row] for row in np.flatnonzero(~served.is_held_I)]
        pq.write_table(pa.table({"item_id": pa.array(removed, pa.string())}), version / _REMOVED)
        rows_N = [log.item_row(item) for item in told["item_id"].to_pylist()]
        readings = {"reading_ND": table.reading_ID[rows_N]}
        if table.encoding_IW is not None:
            readings["encoding_NW"] = table.encoding_IW[rows_N]
        readings = {name: tensor.cpu().contiguous() for name, tensor in readings.items()}
        save_file(readings, version / _READINGS)

    def _current_version(self) -> str | None:
        return self._read_current()["version"] if (self.folder / _CURRENT).exists() else None

    def _read_current(self) -> dict[str, Any]:
        current = json.loads((self.folder / _CURRENT).read_text("utf-8"))
        if current["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format {current['format_version']!r} is not known here")
        # A name that leads out of the folder is nobody's version.
        if not _VERSION.fullmatch(current["version"]):
            raise ValueError(f"{_CURRENT} names the version {shown(current['version'])}")
        if set(current["sha256"]) != {_ITEMS, _REMOVED, _READINGS}:
            raise ValueError(f"{_CURRENT} does not name the files")
        return dict(current)


def _share_files(old: Path, new: Path) -> None:
    """Let a new index start as the old one's files, so that only what changed is written."""
    try:
        shutil.copytree(old, new, copy_function=os.link)
    except OSError:  # a file system without links, or an old index that is damaged
        shutil.rmtree(new, ignore_errors=True)


def _number(version: str | None) -> int:
    return 0 if version is None else int(version[1:].partition("-")[0])


def read_new_items(
    items: "Sequence[Mapping[str, Any]] | pa.Table | pd.DataFrame",
    schema: Schema,
    *,
    on_bad_rows: OnBadRows = "fail",
) -> pa.Table:
    """Items from outside as the columns of `items`.

    Args:
        items: mappings, in which any field may be missing, None or NaN, or a table.
        schema: what the fields are.
        on_bad_rows: ``"fail"`` or ``"skip"``.

    Raises:
        BadInput: a field is unknown, a column is missing, or a row does not fit.
    """
    if hasattr(items, "to_dict") and not isinstance(items, pa.Table):
        items = pa.Table.from_pandas(items, preserve_index=False)
    if not isinstance(items, pa.Table):
        items = _table_of(items, schema)
    with BadRows(on_bad_rows=on_bad_rows, remedy="on_bad_rows='skip'") as bad_rows:
        return read_items(items, schema, bad_rows)


def _table_of(items: Sequence[Mapping[str, Any]], schema: Schema) -> pa.Table:
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
        raise BadInput(f"items={shown(items)} must be a list of mappings, or a table.")
    known = item_types(schema)
    for place, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise BadInput(f"items[{place}]={shown(item)} must be a mapping of fields.")
        if unknown := [name for name in item if name not in known]:
            raise BadInput(
                f"items[{place}] has no field {shown(unknown[0])}; an item has {', '.join(known)}."
            )
    columns = json_columns(
        [
            {name: None if is_missing(value) else value for name, value in item.items()}
            for item in items
        ]
    )
    only_kind = len(schema.items) == 1
    for name, kind in known.items():
        if name not in columns and not (name == "kind" and not only_kind):
            columns[name] = pa.nulls(len(items), kind)
    return pa.table(columns)
