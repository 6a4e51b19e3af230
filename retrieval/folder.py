"""An index as a folder: data files with names of their own, and the manifest that says which count.

The manifest is the one commit point. Data files are written and synced first, under names that no
earlier index used; then the manifest is written beside the old one, synced and renamed over it. A
crash before the rename leaves the old index whole, a crash after it the new one; files that no
manifest names are swept up by the next save. One process may write a folder, any number read it.

    manifest.json          what the index holds, and the SHA-256 of every file below
    codec-TOKEN.faiss      how a vector is stored: an empty FAISS index
    vectors-TOKEN.codes    uint8 [n, bytes per vector], the stored vectors end to end
    ids-TOKEN.arrow        ids, rows where they are not 0 … n − 1, and the look-up by hash
    index-TOKEN.faiss      what finds the near vectors; none for `flat`
    lists-TOKEN.ivfdata    inverted lists of an index that was built from shards
    delta-TOKEN.arrow      fresh items: id, row, stored vector
    removed-TOKEN.npy      bool [n], which of the base were removed
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.base import Base
from retrieval.checks import Floats, Rows
from retrieval.delta import Delta
from retrieval.identifiers import IdTable
from retrieval.kinds import emptied, inverted_lists, refined, share_store
from retrieval.manifest import FILE_NAME, MANIFEST_NAME, IndexManifest, IndexMismatch, sha256_of
from retrieval.snapshot import Snapshot
from retrieval.storage import BYTES_PER_NUMBER, Codes, VectorStore
from retrieval.tuning import Effort

BUILDING = ".building-"
"""A folder of this name inside an index holds a build that is not whole yet."""
_NEW = re.compile(r"(\.[0-9a-f]{12})?\.new$")
"""What the name of a file ends with until it is whole."""


def new_token() -> str:
    """Twelve hexadecimal digits that no other base or delta has."""
    return secrets.token_hex(6)


def base_files(token: str) -> dict[str, str]:
    """Names of the files that a base may have, by what they hold."""
    return {
        "codec": f"codec-{token}.faiss",
        "vectors": f"vectors-{token}.codes",
        "ids": f"ids-{token}.arrow",
        "index": f"index-{token}.faiss",
        "lists": f"lists-{token}.ivfdata",
    }


def check_target(folder: Path) -> None:
    """Check that an index may be written there.

    Raises:
        FileExistsError: the folder holds something that is not an index.
    """
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    # Not by the manifest: web apps have a manifest.json too, and ours may be cut.
    is_index = any(map(FILE_NAME.fullmatch, names))
    if not is_index and not all(map(_is_ours, names)):
        raise FileExistsError(f"{folder} holds other files than an index; save elsewhere")


def save(snapshot: Snapshot, manifest: IndexManifest, folder: Path) -> None:
    """Write one state; files that the folder has already are left as they are.

    Args:
        snapshot: is written.
        manifest: of it; its `files` are filled in.
        folder: made if it is not there.

    Raises:
        FileExistsError: the folder holds something that is not an index.
        OSError: the disk is full or not writable. What was there is still there then.
    """
    check_target(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = snapshot.base
    if not has(folder, base.digests):
        for name, write in _base_writers(base).items():
            base.digests[name] = write_file(folder / name, write)
    digests, token = dict(base.digests), new_token()
    if len(snapshot.delta) > snapshot.delta.num_dead:
        name = f"delta-{token}.arrow"
        digests[name] = write_file(folder / name, lambda path: _write_delta(snapshot, path))
    if snapshot.removed is not None:
        name, removed = f"removed-{token}.npy", snapshot.removed
        digests[name] = write_file(folder / name, lambda path: _write_bools(removed, path))
    commit(folder, replace(manifest, files=digests))


def commit(folder: Path, manifest: IndexManifest) -> None:
    """Make a manifest that of the folder, at once, and sweep up what it does not name."""
    write_file(folder / MANIFEST_NAME, lambda path: path.write_bytes(manifest.to_bytes()))
    for path in folder.iterdir():
        if path.name.startswith(BUILDING):
            shutil.rmtree(path, ignore_errors=True)
        elif _is_ours(path.name) and path.name not in manifest.files:
            path.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[Path], object]) -> str:
    """Write a file under another name, sync it and rename it.

    Nobody can tell that name before: a link that waited there would be written through.

    Returns:
        Its SHA-256.

    Raises:
        OSError: it could not be written; nothing of it is left then.
    """
    new = path.with_name(f"{path.name}.{new_token()}.new")
    try:
        write(new)
        digest = sha256_of(new)
        _sync(new)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    # Windows cannot, and some network drives will not; what the file holds is safe without.
    with suppress(OSError):
        _sync(path.parent)
    return digest


def write_faiss(index: Any, path: Path, flags: int = 0) -> None:
    """Write a FAISS index into a file.

    Raises:
        OSError: it could not be written.
    """
    try:
        faiss.write_index(index, str(path), flags)
    except RuntimeError as error:
        # FAISS knows no other error.
        said = str(error).split("Error: ")[-1]
        raise OSError(f"{path} could not be written ({said})") from error


def load(folder: Path) -> tuple[Snapshot, IndexManifest]:
    """Map an index that `save` wrote; every file is checked against its digest first.

    Raises:
        IndexMismatch: the folder holds no index, or one that was cut or changed.
    """
    manifest = IndexManifest.read(folder)
    try:
        return _load(folder, manifest), manifest
    except IndexMismatch:
        # Somebody may have saved meanwhile, and swept up what the old manifest named.
        newer = IndexManifest.read(folder)
        if newer == manifest:
            raise
        return _load(folder, newer), newer


def _load(folder: Path, manifest: IndexManifest) -> Snapshot:
    for name, digest in manifest.files.items():
        try:
            found = sha256_of(folder / name)
        except (FileNotFoundError, IsADirectoryError):
            raise IndexMismatch(f"{folder / name} is missing; build the index again") from None
        if found != digest:
            raise IndexMismatch(
                f"{folder / name} is cut or was changed since it was saved (its SHA-256 is not "
                "the manifest's); build the index again"
            )
    try:
        snapshot = _mapped(folder, manifest)
    except (RuntimeError, ValueError, KeyError, OSError, pa.ArrowException) as error:
        raise IndexMismatch(f"{folder} cannot be read ({error}); build it again") from error
    if len(snapshot) != manifest.count:
        raise IndexMismatch(
            f"{folder}: the manifest says {manifest.count} items, the files hold "
            f"{len(snapshot)}; build it again"
        )
    return snapshot


def _mapped(folder: Path, manifest: IndexManifest) -> Snapshot:
    by_content = {name.partition("-")[0]: name for name in manifest.files}
    base = map_base(folder, by_content, manifest)
    removed = None
    if "removed" in by_content:
        removed = np.load(folder / by_content["removed"], allow_pickle=False)
        if removed.dtype != bool or removed.shape != (len(base),):
            raise ValueError(f"{by_content['removed']} is not one bool per stored vector")
    delta = Delta.empty(manifest.dimension)
    if "delta" in by_content:
        delta = _read_delta(folder / by_content["delta"], base.store, delta, manifest.num_rows)
    num_removed = 0 if removed is None else int(np.count_nonzero(removed))
    return Snapshot(base, removed, num_removed, delta, manifest.num_rows)


def map_base(folder: Path, by_content: dict[str, str], manifest: IndexManifest) -> Base:
    """Map the files of a base.

    Raises:
        ValueError: they do not fit each other or the manifest.
        KeyError: one is missing.
    """
    codec = faiss.read_index(str(folder / by_content["codec"]))
    size = manifest.dimension * BYTES_PER_NUMBER[manifest.storage]
    if (codec.d, codec.ntotal, codec.code_size) != (manifest.dimension, 0, size):
        raise ValueError(
            f"{by_content['codec']} stores {codec.d} numbers in {codec.code_size} bytes, not "
            f"{manifest.dimension} in {size}"
        )
    table = IdTable.map(folder / by_content["ids"])
    path = folder / by_content["vectors"]
    if path.stat().st_size != len(table) * codec.code_size:
        raise ValueError(f"{path.name} does not hold one vector for each of {len(table)} ids")
    store = VectorStore.over(codec, _map_codes(path, len(table), codec.code_size))
    structure = empty = None
    if "index" in by_content:
        structure = _map_structure(
            folder / by_content["index"], store, has_lists="lists" in by_content
        )
        empty = emptied(structure, codec)
    elif manifest.kind != "flat":
        raise ValueError(f"there is no index file for the kind {manifest.kind!r}")
    is_refined = manifest.kind not in ("flat", "ivf", "hnsw")
    searcher = store.flat if structure is None else structure
    searcher = refined(structure, store) if is_refined else searcher
    Effort(
        num_probes=manifest.num_probes,
        ef_search=manifest.ef_search,
        refine_factor=manifest.refine_factor,
    ).apply(searcher, structure)
    token = by_content["codec"].partition("-")[2].partition(".")[0]
    digests = {name: manifest.files[name] for name in manifest.files if token in name}
    return Base(store, table, structure, empty, searcher, None, token, folder, digests)


def _map_codes(path: Path, count: int, size: int) -> npt.NDArray[np.uint8]:
    if count == 0:
        return np.empty((0, size), np.uint8)
    return np.memmap(path, np.uint8, "r", shape=(count, size))


def _map_structure(path: Path, store: VectorStore, *, has_lists: bool) -> Any:
    # FAISS maps lists in a file of their own by one way, and lists inside the index by another.
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
    structure = faiss.read_index(str(path), flags if has_lists else faiss.IO_FLAG_MMAP_IFC)
    lists = inverted_lists(structure)
    if lists is None:
        # What is mapped cannot grow, not even a copy of it; only lists are set aside for a copy.
        structure = faiss.read_index(str(path))
    if isinstance(structure, faiss.IndexHNSW):
        share_store(structure, store)
    if lists is not None:
        kept = faiss.downcast_InvertedLists(lists.invlists)
        if isinstance(kept, faiss.OnDiskInvertedLists):
            # Threads of its own for reading ahead cost a small search more than they bring.
            kept.prefetch_nthread = 0
    if (structure.d, structure.ntotal) != (store.dimension, len(store)):
        raise ValueError(
            f"{path.name} holds {structure.ntotal} vectors of {structure.d} numbers, not "
            f"{len(store)} of {store.dimension}"
        )
    return structure


def _base_writers(base: Base) -> dict[str, Callable[[Path], object]]:
    """What writes each file of a base, by the file's name; the lists come before their index."""
    names = base_files(base.token)
    structure = base.structure
    writers: dict[str, Callable[[Path], object]] = {
        names["codec"]: lambda path: write_faiss(base.store.codec, path),
        names["vectors"]: lambda path: _write_codes(base.store.codes, path),
        names["ids"]: base.table.write,
    }
    if names["lists"] in base.digests:
        # FAISS would write where the lists lie; as a copy, both keep the names of their own.
        folder = cast(Path, base.folder)
        for name in (names["lists"], names["index"]):
            writers[name] = partial(shutil.copyfile, folder / name)
    elif structure is not None:
        is_graph = isinstance(structure, faiss.IndexHNSW)
        flags = faiss.IO_FLAG_SKIP_STORAGE if is_graph else 0
        writers[names["index"]] = lambda path: write_faiss(structure, path, flags)
    return writers


def _write_codes(codes: Codes, path: Path) -> None:
    # `tofile` says of a full disk how much was written, and not why no more.
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(codes).data)


def _write_delta(snapshot: Snapshot, path: Path) -> None:
    delta, codec = snapshot.delta, snapshot.base.store.codec
    live = delta.live()
    codes = np.ascontiguousarray(codec.sa_encode(delta.vectors[live]))
    batch = pa.record_batch(
        {
            "id": pa.array(delta.at(live), pa.large_string()),
            "row": pa.array(delta.rows[live]),
            "code": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(codes.shape[1]), len(codes), [None, pa.py_buffer(codes)]
            ),
        }
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _read_delta(path: Path, store: VectorStore, empty: Delta, num_rows: int) -> Delta:
    with pa.OSFile(str(path), "rb") as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    rows: Rows = batch["row"].to_numpy().copy()
    if batch["code"].type != pa.binary(store.codec.code_size):
        raise ValueError(f"{path.name} holds vectors of another storage")
    if np.any(rows[1:] <= rows[:-1]) or rows[0] < 0 or rows[-1] >= num_rows:
        raise ValueError(f"{path.name}: its rows are not in order")
    codes = np.frombuffer(batch["code"].buffers()[1], np.uint8).reshape(len(rows), -1)
    vectors: Floats = store.codec.sa_decode(np.ascontiguousarray(codes))
    delta = empty.with_items(vectors, batch["id"].to_pylist(), 0)
    delta.rows[: len(rows)] = rows
    return delta


def _write_bools(values: npt.NDArray[np.bool_], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def has(folder: Path, digests: dict[str, str]) -> bool:
    """Whether the folder's own manifest vouches for these files."""
    try:
        there = IndexManifest.read(folder).files
    except IndexMismatch:
        return False
    return bool(digests) and all(
        there.get(name) == digest and (folder / name).is_file() for name, digest in digests.items()
    )


def _is_ours(name: str) -> bool:
    whole_name = _NEW.sub("", name)
    is_new_manifest = whole_name == MANIFEST_NAME != name
    return bool(FILE_NAME.fullmatch(whole_name)) or is_new_manifest or name.startswith(BUILDING)


def _sync(path: Path) -> None:
    """Have what was written on the disk, not on its way there."""
    # Windows syncs what is open for writing alone.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
