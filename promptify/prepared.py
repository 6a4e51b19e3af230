"""A prompt book in a folder, for a machine that has neither the tables nor what reads them.

    save_prepared(book, split, Path("prepared"))
    book, split = load_prepared(Path("prepared"))

It holds events as small integers, people and items as the tokens that prompts tell them in, the
split and the prompter. Windows are cut and rows assembled where it is read, epoch after epoch, so
it is a few megabytes where the rows of one epoch would be many times that.

Legend: E events of the log, U users, I items.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.piece_table import LogPieces
from promptify.pieces import Pieces
from promptify.prompter import Prompter
from promptify.splits import Split, Targets
from promptify.validation import BadInput
from promptify.whole import whole_folder

Arrays = dict[str, NDArray[Any]]

_MANIFEST = "prepared.json"
_ARRAYS = "prepared.safetensors"
_PROMPTER = "prompter"
_FORMAT_VERSION = 1
_EVENTS = {
    "item": np.int32,
    "action": np.int16,
    "timestamp": np.int64,
    "surface": np.int16,
    "slate": np.int64,
    "context": np.int32,
}
_PIECES = ("items", "profiles", "contexts")
_INTEGERS = (np.int8, np.int16, np.int32, np.int64)


class PreparedLog(Interactions):
    """The events of a log whose tables were left behind: ids of items, and no word of anybody.

    Args:
        events: the integer columns of the log by name, but `user`, int [E] each.
        user_offsets: int64 [U+1], where each user's events start.
        item_ids: I of them.
        item_kinds: I of them.
        actions: what `events["action"]` indexes.
        surfaces: what `events["surface"]` indexes.
    """

    def __init__(
        self,
        *,
        events: Arrays,
        user_offsets: NDArray[np.int64],
        item_ids: Sequence[str],
        item_kinds: Sequence[str],
        actions: Sequence[str],
        surfaces: Sequence[str],
    ) -> None:
        self.actions, self.surfaces, self.contexts = tuple(actions), tuple(surfaces), ()
        self.user_offsets = user_offsets.astype(np.int64)
        # These stand in place of the properties that look them up in the tables.
        self.item_ids = tuple(item_ids)
        self.item_kinds = np.array(item_kinds, dtype=np.str_)
        self.event_user = np.repeat(
            np.arange(self.num_users, dtype=np.int32), np.diff(self.user_offsets)
        )
        for name, dtype in _EVENTS.items():
            setattr(self, f"event_{name}", events[name].astype(dtype))

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_offsets) - 1

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.item_ids)

    @property
    def num_events(self) -> int:
        """E."""
        return int(self.user_offsets[-1])


def save_prepared(book: PromptBook, split: Split, folder: Path) -> None:
    """Write a book and a split to a folder that does not exist yet, whole or not at all.

    Args:
        book: of any log.
        split: of the same log.
        folder: is made.

    Raises:
        BadInput: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise BadInput(f"{folder} exists already; choose another folder or remove it.")
    log = book.interactions
    with whole_folder(folder) as part:
        arrays = _arrays(book, split)
        save_file({name: _narrow(array) for name, array in arrays.items()}, part / _ARRAYS)
        book.prompter.save(part / _PROMPTER)
        manifest = {
            "format_version": _FORMAT_VERSION,
            "actions": log.actions,
            "surfaces": log.surfaces,
            "item_ids": log.item_ids,
            "item_kinds": log.item_kinds.tolist(),
            "split": split.name,
            "sha256": _checksums(part),
        }
        text = json.dumps(manifest, ensure_ascii=False) + "\n"
        (part / _MANIFEST).write_text(text, encoding="utf-8")


def load_prepared(folder: Path) -> tuple[PromptBook, Split]:
    """Read what `save_prepared` wrote.

    Raises:
        BadInput: a file is missing, cut or changed.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format_version"] != _FORMAT_VERSION:
            raise BadInput(
                f"{folder} is of format {manifest['format_version']}, this version reads format "
                f"{_FORMAT_VERSION}; prepare it again."
            )
        found = _checksums(folder)
        changed = [name for name, told in manifest["sha256"].items() if found.get(name) != told]
        if changed:
            raise BadInput(
                f"{folder}: {', '.join(changed)} is missing, cut or changed; copy it again."
            )
        arrays = load_file(folder / _ARRAYS)
        log = PreparedLog(
            events={name: arrays[f"event.{name}"] for name in _EVENTS},
            user_offsets=arrays["user_offsets"],
            **{name: manifest[name] for name in ("item_ids", "item_kinds", "actions", "surfaces")},
        )
        said = LogPieces(
            item_time=arrays["item_time"].astype(np.int64),
            **{
                name: Pieces(
                    ids=arrays[f"{name}.ids"].astype(np.int32),
                    offsets=arrays[f"{name}.offsets"].astype(np.int64),
                )
                for name in _PIECES
            },
        )
        split = Split(
            name=manifest["split"],
            train=arrays["train"],
            valid=_targets(arrays, "valid"),
            test=_targets(arrays, "test"),
            cold_items=arrays.get("cold_items"),
        )
        return PromptBook(Prompter.load(folder / _PROMPTER), log, said), split
    except BadInput:
        raise
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BadInput(
            f"{folder} does not hold prepared prompts, or they are damaged ({error}); prepare them "
            "again."
        ) from error


def _arrays(book: PromptBook, split: Split) -> Arrays:
    log, said = book.interactions, book.said
    arrays: Arrays = {f"event.{name}": getattr(log, f"event_{name}") for name in _EVENTS}
    arrays |= {"user_offsets": log.user_offsets, "item_time": said.item_time, "train": split.train}
    if split.cold_items is not None:
        arrays["cold_items"] = split.cold_items
    for name in _PIECES:
        pieces: Pieces = getattr(said, name)
        arrays |= {f"{name}.ids": pieces.ids, f"{name}.offsets": pieces.offsets}
    for part, targets in (("valid", split.valid), ("test", split.test)):
        arrays |= {f"{part}.{f.name}": getattr(targets, f.name) for f in fields(Targets)}
    return arrays


def _targets(arrays: Arrays, part: str) -> Targets:
    rows = {
        f.name: arrays[f"{part}.{f.name}"].astype(np.int64)
        for f in fields(Targets)
        if f.name != "user"
    }
    return Targets(user=arrays[f"{part}.user"].astype(np.int32), **rows)


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The same integers in the smallest type that holds them."""
    if array.dtype == np.bool_ or not array.size:
        return np.ascontiguousarray(array)
    low, high = int(array.min()), int(array.max())
    fits = [t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max]
    return np.ascontiguousarray(array.astype(fits[0]))


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }
