"""Items of a file, put in words and embedded shard by shard, by one process or by many.

shards.json             of which file and which model the shards are
vectors/00000.parquet   item_id: string, vector: fixed_size_list<float32>
items/00000.parquet     the items themselves and what was read of them, where that is asked for

The file is looked through once, so that what does not fit is named before anything is embedded;
then process p of P embeds shards p, p + P, …. A shard holds the same rows whoever makes it, and is
written under another name and renamed when whole: the same command goes on with those that are
missing.

Legend: N items of a shard, I of the model's catalogue, D hidden width, W text encoder's width.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from foundation import Foundation
from promptify.columns import ARROW_TYPES
from promptify.ingest import STANDS_TWICE, read_item_part
from promptify.schema import Schema
from promptify.sources.files import MAX_BATCH_ROWS, read_batches
from promptify.validation import BadInput, BadRows
from promptify.whole import whole_file, write_whole
from promptify.words import table_texts

logger = logging.getLogger(__name__)

_PLAN = "shards.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """`shards.json`: what the shards of a folder are of. Shards of another plan are other shards.

    Args:
        model_hash: of the model that embeds.
        file: fingerprint of the file of items.
        shard_items: rows of the file in each shard, those that do not fit among them.
        width: numbers of each vector.
        with_items: whether the items are kept beside their vectors.
        num_items: good rows of the file.
        num_shards: how many shards there are.
        repeated_lines: lines of the file whose id stood on an earlier one; they are left out.
    """

    model_hash: str
    file: str
    shard_items: int
    width: int
    with_items: bool
    num_items: int
    num_shards: int
    repeated_lines: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFolder:
    """Where shards are.

    Args:
        folder: need not exist.
    """

    folder: Path

    def vectors(self, shard: int) -> Path:
        """The vectors of a shard."""
        return self.folder / "vectors" / f"{shard:05}.parquet"

    def items(self, shard: int) -> Path:
        """The items of a shard, and what was read of them."""
        return self.folder / "items" / f"{shard:05}.parquet"

    def holds(self, shard: int, plan: ShardPlan) -> bool:
        """Whether a shard is there with all that its plan asks for."""
        kept = [self.vectors(shard), *([self.items(shard)] if plan.with_items else [])]
        return all(path.exists() for path in kept)

    def start(self, plan: ShardPlan) -> None:
        """Make room for a plan's shards; those of another plan are deleted, its own are kept.

        Raises:
            BadInput: the folder holds something that is not ours.
        """
        path = self.folder / _PLAN
        self.folder.mkdir(parents=True, exist_ok=True)
        # Hidden is what a kill left of a first write.
        theirs = [entry for entry in self.folder.iterdir() if not entry.name.startswith(".")]
        if theirs and not path.exists():
            raise BadInput(
                f"{self.folder} holds other files than shards of vectors; choose another folder, "
                "or delete this one first."
            )
        wanted = json.dumps(asdict(plan), indent=2) + "\n"
        if path.exists() and path.read_text("utf-8") != wanted:
            logger.info("%s holds shards of another file or model; they are made anew", self.folder)
            for name in ("vectors", "items"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        # First: by it the folder is known for ours.
        write_whole(path, wanted)
        for name in ("vectors", "items"):
            (self.folder / name).mkdir(exist_ok=True)


def look_through(
    path: Path,
    schema: Schema,
    *,
    shard_items: int,
    width: int,
    with_items: bool,
    model_hash: str,
    file: str,
    bad_rows: BadRows,
) -> ShardPlan:
    """Read a whole file of items, and plan its shards.

    Args:
        path: a CSV, TSV, Parquet or JSONL file with the columns of `items`.
        schema: what they are.
        shard_items: rows of the file in each shard.
        width: as in the plan.
        with_items: as in the plan.
        model_hash: as in the plan.
        file: as in the plan.
        bad_rows: where rows that do not fit are reported.

    Raises:
        BadInput: the file is absent or damaged, or lacks a column; or a row does not fit and
            `bad_rows` says to fail.
    """
    if not 1 <= shard_items <= MAX_BATCH_ROWS:
        raise BadInput(f"--shard-items {shard_items} must be from 1 to {MAX_BATCH_ROWS:,}.")
    hashes: list[NDArray[np.uint64]] = []
    num_shards = 0
    with tqdm(desc="check items", unit="item") as bar:
        for raw in _parts(path, schema, shard_items, bad_rows):
            items, _ = read_item_part(raw, schema, bad_rows)
            hashes.append(_hashes(items))
            num_shards += 1
            bar.update(len(items))
    repeated = _repeated_lines(path, schema, shard_items, np.concatenate(hashes), bad_rows)
    bad_rows.settle()
    num_items = sum(map(len, hashes)) - len(repeated)
    if not num_items:
        raise BadInput(f"{path.name} holds no rows that fit; give it at least one.")
    return ShardPlan(
        model_hash=model_hash,
        file=file,
        shard_items=shard_items,
        width=width,
        with_items=with_items,
        num_items=num_items,
        num_shards=num_shards,
        repeated_lines=tuple(repeated),
    )


def embed_shards(
    foundation: Foundation,
    path: Path,
    plan: ShardPlan,
    out: ShardFolder,
    *,
    process: int = 0,
    num_processes: int = 1,
) -> None:
    """Embed those of a process's shards that are not there yet.

    An item that the model knows by id keeps its residual; every other is told by its text alone.

    Args:
        foundation: makes the vectors.
        path: the file of items.
        plan: its shards.
        out: where they are written.
        process: p, this one; shards p, p + P, … are its own.
        num_processes: P.
    """
    prompter = foundation.prompter
    row_of = {item: row for row, item in enumerate(foundation.item_ids)}
    mine = range(process, plan.num_shards, num_processes)
    missing = {shard for shard in mine if not out.holds(shard, plan)}
    total = min(len(mine) * plan.shard_items, plan.num_items)
    done = min((len(mine) - len(missing)) * plan.shard_items, total)
    if done:
        logger.info("%s of %s shards are there already", len(mine) - len(missing), len(mine))
    quiet = BadRows(on_bad_rows="skip")
    schema = prompter.words.schema
    with tqdm(
        total=total, initial=done, desc="embed items", unit="item", disable=process > 0
    ) as bar:
        for shard, raw in enumerate(_parts(path, schema, plan.shard_items, quiet)):
            if shard not in missing:
                continue
            items, lines = read_item_part(raw, schema, quiet)
            items = items.filter(pa.array(~np.isin(lines, plan.repeated_lines)))
            ids = items["item_id"].to_pylist()
            told = foundation.read_items(prompter.item_pieces(table_texts(prompter.words, items)))
            known_N = np.array([row_of.get(item, -1) for item in ids], np.int64)
            vectors_NV = foundation.embed_items(told, known_N=known_N, width=plan.width)
            if plan.with_items:
                kept = _columns(items) | {"reading_ND": as_lists(told.reading_ND.cpu().numpy())}
                if told.encoding_NW is not None:
                    kept["encoding_NW"] = as_lists(told.encoding_NW.cpu().numpy())
                _write(pa.table(kept), out.items(shard))
            vectors = {"item_id": items["item_id"], "vector": as_lists(vectors_NV)}
            # Last: where the vectors are, the shard is whole.
            _write(pa.table(vectors), out.vectors(shard))
            bar.update(len(items))


def _parts(path: Path, schema: Schema, shard_items: int, bad_rows: BadRows) -> Iterator[pa.Table]:
    """A file as raw tables of so many rows."""
    for batch in read_batches(
        path, renames={}, found=set(), bad_rows=bad_rows, batch_rows=shard_items
    ):
        part = pa.Table.from_batches([batch])
        if path.suffix.lower() in (".jsonl", ".json"):
            # A name that none of these objects has may stand in the next ones.
            for field in schema.item_columns:
                if field.name not in part.column_names:
                    part = part.append_column(
                        field.name, pa.nulls(len(part), ARROW_TYPES[field.kind])
                    )
        yield part


def _repeated_lines(
    path: Path,
    schema: Schema,
    shard_items: int,
    hashes: NDArray[np.uint64],
    bad_rows: BadRows,
) -> list[int]:
    """Lines whose id stood on an earlier one; within a part they are left out already."""
    hashes = np.sort(hashes)
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(suspects):
        return []
    # Two ids may share a hash: the few that do are looked at by name.
    seen: set[str] = set()
    repeated: list[int] = []
    quiet = BadRows(on_bad_rows="skip")
    for raw in _parts(path, schema, shard_items, quiet):
        items, lines = read_item_part(raw, schema, quiet)
        places = np.flatnonzero(np.isin(_hashes(items), suspects))
        for item, line in zip(
            items["item_id"].take(pa.array(places)).to_pylist(), lines[places].tolist(), strict=True
        ):
            if item in seen:
                repeated.append(line)
                bad_rows.add(
                    file=path.name,
                    unit=raw.schema.metadata[b"unit"].decode(),
                    column="item_id",
                    reason=STANDS_TWICE,
                    num=1,
                    lines=[line],
                    rows=[{"item_id": item}],
                )
            seen.add(item)
    return repeated


def _hashes(items: pa.Table) -> NDArray[np.uint64]:
    ids = items["item_id"].to_numpy()
    found: NDArray[np.uint64] = pd.util.hash_array(ids)
    return found


def _columns(items: pa.Table) -> dict[str, Any]:
    return {name: items[name] for name in items.column_names}


def as_lists(rows_NV: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """A matrix as one list per row."""
    values = pa.array(np.ascontiguousarray(rows_NV, np.float32).ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, rows_NV.shape[1])


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as partial:
        pq.write_table(table, partial)
