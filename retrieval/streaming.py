"""An index built from shards, in a folder, without holding them.

Vectors go from the shards into a mapped file, ids into another; lists are made block by block and
merged on disk. What memory holds is a batch, a block of lists and the training sample, besides what
a kind holds by nature: `hnsw` its graph and vectors while it is made, `flat` nothing, since its
vectors stay mapped.

Shapes: `I` items, `D` numbers per vector, `S` bytes per stored vector.
"""

import errno
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from faiss.contrib.ondisk import merge_ondisk
from tqdm import tqdm

from retrieval import folder as folders
from retrieval.building import describe, drawn, tuned
from retrieval.checks import Floats
from retrieval.identifiers import IdTable, hash_ids, in_order
from retrieval.kinds import (
    Plan,
    fill,
    has_movable_lists,
    inverted_lists,
    new_structure,
    plan,
    refined,
    share_store,
)
from retrieval.manifest import IndexManifest
from retrieval.shards import Shards
from retrieval.storage import Storage, VectorStore, check_storable, checked_storage, new_codec
from retrieval.tuning import SAMPLE_SIZE

LIST_BLOCK_BYTES = 256 << 20
"""Lists are made in memory for so many bytes of vectors at a time, then merged on disk."""

logger = logging.getLogger(__name__)


def build_from_shards(
    shards: Shards,
    out: Path,
    *,
    model_hash: str,
    kind: str = "auto",
    storage: Storage = "float32",
    target_recall: float = 0.95,
    max_bytes: int | None = None,
    sample: Shards | None = None,
    progress: bool = False,
) -> IndexManifest:
    """Build an index in a folder; an index that is there is replaced when the new one is whole.

    Args:
        shards: the items.
        out: the folder.
        model_hash: of the model that made the vectors.
        kind: as `ItemIndex.build`.
        storage: as `ItemIndex.build`.
        target_recall: as `ItemIndex.build`.
        max_bytes: as `ItemIndex.build`.
        sample: vectors like those that will be searched for; items stand in when left out.
        progress: show bars.

    Returns:
        What was built.

    Raises:
        FileExistsError: the folder holds something that is not an index.
        ValueError: as `ItemIndex.build` and `Shards.batches`, or an id that stands there twice;
            file and row are named.
        OSError: the disk is full or not writable. What was there is still there then.
    """
    if not 0 < target_recall <= 1:
        raise ValueError(f"target_recall is {target_recall}; use a share in (0, 1]")
    num_items, dimension = shards.num_rows, shards.dimension
    chosen = plan(kind, num_items, dimension, checked_storage(storage), max_bytes)
    manifest = IndexManifest(
        model_hash=model_hash,
        kind=chosen.kind,
        dimension=dimension,
        count=num_items,
        num_rows=num_items,
        storage=storage,
        files={},
    )
    asked = None
    if sample is not None:
        if sample.dimension != dimension:
            raise ValueError(
                f"{sample.paths[0]}: vectors are {sample.dimension} numbers long, those of the "
                f"items {dimension}"
            )
        asked = sample.rows_at(drawn(sample.num_rows, SAMPLE_SIZE))
    folders.check_target(out)
    out.mkdir(parents=True, exist_ok=True)
    with _written_to(out), tempfile.TemporaryDirectory(prefix=folders.BUILDING, dir=out) as name:
        work = Path(name)
        return _Builder(shards, work, chosen, progress=progress).build(
            out, manifest, asked, target_recall
        )


@contextmanager
def _written_to(out: Path) -> Iterator[None]:
    """Say of a file that could not be written where the index was to be, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"no index was written to {out} ({error.strerror or error}); free some space or give "
            "another folder. An index that was there is whole"
        ) from error


def _check_room(folder: Path, num_bytes: int) -> None:
    """Check that the disk holds so much more: a mapped file without room ends the process.

    Raises:
        OSError: it does not.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes:,} bytes are needed, {free:,} are free")


class _Builder:
    """One build: its files lie in `work` until they are whole."""

    def __init__(self, shards: Shards, work: Path, chosen: Plan, *, progress: bool) -> None:
        self.shards, self.work, self.chosen, self.progress = shards, work, chosen, progress
        self.token = folders.new_token()
        self.names = folders.base_files(self.token)

    def build(
        self, out: Path, manifest: IndexManifest, sample: Floats | None, target_recall: float
    ) -> IndexManifest:
        """Make every file, move them to `out` and commit."""
        codec = self._codec(manifest.storage)
        training = drawn(self.shards.num_rows, self.chosen.num_training_vectors(manifest.count))
        stand_ins = drawn(self.shards.num_rows, SAMPLE_SIZE)
        vectors, items = self._store(codec, manifest.storage, training, stand_ins)
        path = self.work / self.names["vectors"]
        codes = np.memmap(path, np.uint8, "r", shape=(manifest.count, codec.code_size))
        store = VectorStore.over(codec, codes)
        folders.write_faiss(codec, self.work / self.names["codec"])
        done = describe(manifest, self.chosen)
        structure = new_structure(self.chosen, codec, vectors)
        del vectors
        if structure is not None:
            structure = self._filled(structure, store)
            searcher = refined(structure, store) if self.chosen.is_refined else structure
            done = tuned(
                done,
                searcher,
                structure,
                store,
                items if sample is None else sample,
                target_recall=target_recall,
                progress=self.progress,
            )
        digests = {
            file: folders.write_file(out / file, (self.work / file).rename)
            for file in self.names.values()
            if (self.work / file).exists()
        }
        done = replace(done, files=digests)
        folders.commit(out, done)
        return done

    def _codec(self, storage: Storage) -> Any:
        """Only bytes need to know the range of each dimension, and so a reading of their own."""
        low = high = None
        if storage == "int8":
            for _, _, vectors in self._read("ranges"):
                least, most = vectors.min(0), vectors.max(0)
                low = least if low is None else np.minimum(low, least)
                high = most if high is None else np.maximum(high, most)
        return new_codec(self.shards.dimension, storage, low_D=low, high_D=high)

    def _read(self, what: str) -> Any:
        with tqdm(total=self.shards.num_rows, desc=what, disable=not self.progress) as bar:
            for row, ids, vectors in self.shards.batches():
                yield row, ids, vectors
                bar.update(len(vectors))

    def _store(
        self, codec: Any, storage: Storage, training: np.ndarray, stand_ins: np.ndarray
    ) -> tuple[Floats, Floats]:
        """Write vectors and ids; return the vectors at two samples of rows."""
        samples = [
            (rows, np.empty((len(rows), self.shards.dimension), np.float32))
            for rows in (training, stand_ins)
        ]
        ends, texts, hashes = (self.work / name for name in ("ends", "texts", "hashes"))
        with (
            (self.work / self.names["vectors"]).open("wb") as vector_file,
            ends.open("wb") as end_file,
            texts.open("wb") as text_file,
            hashes.open("wb") as hash_file,
        ):
            # `tofile` says of a full disk how much was written, and not why no more.
            end_file.write(np.zeros(1, np.int64).data)
            for row, ids, vectors in self._read("vectors"):
                check_storable(vectors, storage, self.shards.place, first_row=row)
                vector_file.write(codec.sa_encode(vectors))
                for rows, kept in samples:
                    low, high = np.searchsorted(rows, [row, row + len(vectors)])
                    kept[low:high] = vectors[rows[low:high] - row]
                hash_file.write(hash_ids(ids).data)
                _, offsets, data = ids.buffers()
                bounds = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
                end_file.write((bounds[1:] - bounds[0] + text_file.tell()).data)
                if bounds[-1] > bounds[0]:
                    text_file.write(memoryview(data)[bounds[0] : bounds[-1]])
        self._write_ids(ends, texts, hashes)
        return samples[0][1], samples[1][1]

    def _write_ids(self, ends: Path, texts: Path, hashes: Path) -> None:
        """Put the ids into one Arrow file, mapped from what was written, and find repeats."""
        count = self.shards.num_rows
        # Of each id its hash and its position.
        _check_room(self.work, count * 16)
        ids = pa.LargeStringArray.from_buffers(count, _mapped_buffer(ends), _mapped_buffer(texts))
        out = (
            np.memmap(self.work / "sorted_hash", np.uint64, "w+", shape=count),
            np.memmap(self.work / "sorted_position", np.int64, "w+", shape=count),
        )
        table = IdTable(ids, None, *in_order(np.memmap(hashes, np.uint64, "r"), out=out))
        if (twice := table.first_repeat()) is not None:
            first, other = (self.shards.place(row) for row in twice)
            raise ValueError(
                f"{other}: the id {ids[twice[0]].as_py()!r} stands there twice; first at {first}"
            )
        table.write(self.work / self.names["ids"])
        for path in (ends, texts, hashes, self.work / "sorted_hash", self.work / "sorted_position"):
            path.unlink()

    def _filled(self, structure: Any, store: VectorStore) -> Any:
        """Put the vectors into the structure and write it."""
        path = self.work / self.names["index"]
        if has_movable_lists(structure) and store.codes.nbytes > LIST_BLOCK_BYTES:
            return self._merged(structure, store, path)
        fill(structure, store, progress=self.progress)
        flags = 0
        if isinstance(structure, faiss.IndexHNSW):
            flags = faiss.IO_FLAG_SKIP_STORAGE
            share_store(structure, store)
        folders.write_faiss(structure, path, flags)
        return structure

    def _merged(self, structure: Any, store: VectorStore, path: Path) -> Any:
        """Make lists of a block of vectors at a time, and merge them into one file on disk."""
        per_block = max(1, LIST_BLOCK_BYTES // store.codes.shape[1])
        blocks: list[Path] = []
        with tqdm(total=len(store), desc="lists", disable=not self.progress) as bar:
            for start in range(0, len(store), per_block):
                block = faiss.clone_index(structure)
                stop = min(start + per_block, len(store))
                for place in range(start, stop, store.vectors_per_block):
                    part = slice(place, min(place + store.vectors_per_block, stop))
                    block.add_with_ids(store.at(part), np.arange(part.start, part.stop))
                    bar.update(part.stop - part.start)
                blocks.append(self.work / f"block-{len(blocks)}")
                folders.write_faiss(block, blocks[-1])
        lists_path = self.work / self.names["lists"]
        # Of each vector its code and its label.
        _check_room(self.work, len(store) * (inverted_lists(structure).code_size + 8))
        try:
            merge_ondisk(structure, [str(one) for one in blocks], str(lists_path))
        except RuntimeError as error:
            raise OSError(f"{lists_path} could not be written ({error})") from error
        for one in blocks:
            one.unlink()
        lists = faiss.downcast_InvertedLists(inverted_lists(structure).invlists)
        # The index says where its lists lie; beside it, wherever that is.
        lists.filename, lists.prefetch_nthread = lists_path.name, 0
        folders.write_faiss(structure, path)
        return structure


def _mapped_buffer(path: Path) -> pa.Buffer:
    if path.stat().st_size == 0:
        return pa.py_buffer(b"")
    return pa.py_buffer(np.memmap(path, np.uint8, "r"))
