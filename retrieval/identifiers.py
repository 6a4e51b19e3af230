"""Item ids as an Arrow array, and the way back from an id to its place without a dict of them.

The way back is a table of 64-bit hashes in order: a binary search finds where an id may be, the id
that stands there says whether it is. Both lie in one Arrow file that is memory-mapped, so that a
hundred million ids cost no memory that is not used. The ids of a smaller table are kept as texts
once they are asked for: to make six thousand texts for a batch takes longer than to find them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from retrieval.checks import ItemIds, Rows, checked_texts

Hashes = npt.NDArray[np.uint64]

HASHES_PER_PART = 4_000_000
"""Hashes are put in order in parts of about so many, so that a sort needs memory for one part."""

MOST_KEPT_TEXTS = 1 << 20
"""Tables of up to so many ids keep them as texts, some seventy bytes each."""


@dataclass(frozen=True, eq=False)
class IdTable:
    """Ids by position, and positions by id.

    Attributes:
        ids: Arrow large_string [n].
        rows: int64 [n], ascending: the row of each position; None where each is its own row.
        sorted_hash: uint64 [n], ascending.
        sorted_position: int64 [n], whose hash it is.
    """

    ids: pa.LargeStringArray
    rows: Rows | None
    sorted_hash: Hashes
    sorted_position: Rows

    @classmethod
    def of(cls, ids: pa.LargeStringArray, rows: Rows | None = None) -> "IdTable":
        """Make the table.

        Raises:
            ValueError: an id that stands there twice.
        """
        hashes, positions = in_order(hash_ids(ids))
        table = cls(ids, rows, hashes, positions)
        if (twice := table.first_repeat()) is not None:
            raise ValueError(f"ids: {ids[twice[0]].as_py()!r} stands there twice; give each once")
        return table

    def __len__(self) -> int:
        """How many ids."""
        return len(self.ids)

    def first_repeat(self) -> tuple[int, int] | None:
        """Two positions with the same id, the first such pair by hash; None if there is none."""
        for start in range(0, len(self), HASHES_PER_PART):
            part = self.sorted_hash[start : start + HASHES_PER_PART + 1]
            for place in (np.flatnonzero(part[1:] == part[:-1]) + start).tolist():
                # Equal hashes stand side by side; other ids may share them, if rarely.
                run = place + 1
                while run < len(self) and self.sorted_hash[run] == self.sorted_hash[place]:
                    first, other = self.sorted_position[[place, run]].tolist()
                    if self.ids[first] == self.ids[other]:
                        return min(first, other), max(first, other)
                    run += 1
        return None

    def positions_of(self, ids: Sequence[str], name: str = "ids") -> Rows:
        """Positions of ids, int64 [m]; −1 for an id that is not here.

        Raises:
            ValueError: one that is not a text.
        """
        texts = checked_texts(name, ids)
        found = np.full(len(ids), -1, np.int64)
        if len(self) == 0 or len(ids) == 0:
            return found
        hashes = hash_ids(texts)
        # Neighbours in the table are looked for one after the other, while they are in the cache;
        # for that their leading bits will do, which sort by counting.
        asked = np.argsort((hashes >> np.uint64(48)).astype(np.uint16), kind="stable")
        place = np.searchsorted(self.sorted_hash, hashes[asked])
        # One round, but for ids whose hash another one shares.
        while len(asked):
            is_near = place < len(self)
            asked, place = asked[is_near], place[is_near]
            is_near = self.sorted_hash[place] == hashes[asked]
            asked, place = asked[is_near], place[is_near]
            position = self.sorted_position[place]
            is_same = (
                pa.compute.equal(self.ids.take(pa.array(position)), texts.take(pa.array(asked)))
                .to_numpy(zero_copy_only=False)
                .astype(bool)
            )
            found[asked[is_same]] = position[is_same]
            asked, place = asked[~is_same], place[~is_same] + 1
        return found

    def positions_of_rows(self, rows: Rows) -> Rows:
        """Positions of rows, int64 [m]; −1 for a row that is not here."""
        if self.rows is None:
            return np.where((rows >= 0) & (rows < len(self)), rows, -1)
        if len(self) == 0:
            return np.full(len(rows), -1, np.int64)
        place = np.minimum(np.searchsorted(self.rows, rows), len(self) - 1)
        return np.where(self.rows[place] == rows, place, -1)

    def rows_at(self, positions: Rows) -> Rows:
        """Rows of positions, of any shape; −1 stays −1."""
        if self.rows is None:
            return positions
        if len(self) == 0:
            return np.full_like(positions, -1)
        return np.where(positions < 0, -1, self.rows[positions])

    def at(self, positions: Rows) -> ItemIds:
        """Ids at positions [m], object [m]; None for −1."""
        if len(self) <= MOST_KEPT_TEXTS:
            return self._texts[positions]
        places = pa.array(positions, mask=positions < 0)
        return cast(ItemIds, self.ids.take(places).to_numpy(zero_copy_only=False))

    @cached_property
    def _texts(self) -> ItemIds:
        """The ids, object [n + 1]; None at the end, where −1 points."""
        texts = np.full(len(self) + 1, None, object)
        texts[:-1] = self.ids.to_numpy(zero_copy_only=False)
        return texts

    def write(self, path: Path) -> None:
        """Write one Arrow file of one batch, so that each column is one array when mapped."""
        columns = {
            "id": self.ids,
            "sorted_hash": pa.array(self.sorted_hash),
            "sorted_position": pa.array(self.sorted_position),
        }
        if self.rows is not None:
            columns["row"] = pa.array(self.rows)
        batch = pa.record_batch(columns)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)

    @classmethod
    def map(cls, path: Path) -> "IdTable":
        """Map a file that `write` wrote; nothing is read before it is used.

        Raises:
            ValueError: the file is not such a one.
            OSError: it cannot be read.
        """
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if file.num_record_batches != 1:
            raise ValueError(f"{path.name} holds {file.num_record_batches} batches, not one")
        batch = file.get_batch(0)
        rows = batch["row"].to_numpy() if "row" in batch.schema.names else None
        return cls(
            batch["id"],
            rows,
            batch["sorted_hash"].to_numpy(),
            batch["sorted_position"].to_numpy(),
        )


def hash_ids(ids: pa.LargeStringArray) -> Hashes:
    """XXH3 of each id's UTF-8, uint64 [n]. It is written to disk, so it must never change."""
    texts = ids.cast(pa.large_binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))


def in_order(
    hashes: Hashes, *, out: tuple[Hashes, Rows] | None = None, per_part: int = HASHES_PER_PART
) -> tuple[Hashes, Rows]:
    """Put hashes in order, equal ones by position.

    Args:
        hashes: uint64 [n]; may be memory-mapped.
        out: uint64 [n] and int64 [n] to write to, such as memory-mapped ones; made when left out.
        per_part: how many are sorted at once.

    Returns:
        The hashes in order, and the position of each.
    """
    into = out or (np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.int64))
    # Hashes spread evenly, so that those with the same leading bits are a part.
    bits = max(0, int(len(hashes) / per_part - 1e-9)).bit_length()
    start = 0
    for part in range(1 << bits):
        positions = _positions_of_part(hashes, part, bits, per_part)
        own = hashes[positions]
        order = np.argsort(own, kind="stable")
        end = start + len(own)
        into[0][start:end], into[1][start:end] = own[order], positions[order]
        start = end
    return into


def _positions_of_part(hashes: Hashes, part: int, bits: int, per_part: int) -> Rows:
    if bits == 0:
        return np.arange(len(hashes), dtype=np.int64)
    shift = np.uint64(64 - bits)
    found = [
        start + np.flatnonzero(hashes[start : start + per_part] >> shift == np.uint64(part))
        for start in range(0, len(hashes), per_part)
    ]
    return np.concatenate(found)
