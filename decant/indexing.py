"""`decant index`: a run's catalogue anew, or the items of a file, embedded and indexed.

Legend: N items of the file.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from numpy.typing import NDArray

from decant import processes
from decant.catalogue import SavedCatalogue
from decant.embedding import ShardFolder, ShardPlan, as_lists, embed_shards, look_through
from decant.fingerprints import fingerprint
from decant.layout import RunLayout
from decant.pipeline import index_again
from decant.run_data import load_book, load_model, sample_targets
from decant.served import Served, told_table
from decant.serving_cli import index_parser
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.int8 import is_int8
from foundation.told_items import ItemReadings
from promptify.ingest import item_types
from promptify.validation import BadInput, BadRows
from promptify.whole import remove_whole
from retrieval import IndexManifest, ItemIndex
from retrieval.shards import Shards
from retrieval.streaming import build_from_shards

logger = logging.getLogger(__name__)

# People of a run's log who stand for those who will ask, when the index is tuned.
NUM_SAMPLED_PEOPLE = 1024


def index(options: Namespace) -> list[str]:
    """Carry out the `index` command; every process of a launch calls it.

    Returns:
        Lines to print.

    Raises:
        ValueError: the folder is neither a run nor a model, an option does not go with it, or an
            item does not fit.
    """
    if options["items"] is None:
        _refuse_of_items(options)
        if not processes.leads():
            return []
        return [f"indexed {index_again(RunLayout(options.run), width=options.width):,} items"]
    layout = None if (options.run / "foundation.json").exists() else RunLayout(options.run)
    if layout is None and options.out is None:
        raise BadInput(
            f"{options.run} is a model without a run; say with --out where the index goes."
        )
    model = options.run if layout is None else layout.model(layout.served())
    serves = layout is not None and options.out is None
    out = layout.catalogue_scratch if layout and serves else options.out
    shards = ShardFolder(folder=out)
    foundation = load_model(model, text_encoder=options.text_encoder)
    if not is_int8(foundation.decoder):  # which a processor alone computes
        foundation.to(processes.training_device())
    width = foundation.checked_width(options.width)
    with _one_writer(out):
        plan = _plan(options, model, foundation, shards, width=width, with_items=serves)
        embed_shards(
            foundation,
            options["items"],
            plan,
            shards,
            process=processes.number(),
            num_processes=processes.count(),
        )
        processes.gather("shards are embedded")
        if not processes.leads():
            return []
        foundation.to("cpu")
        people = None if layout is None else _people(layout, foundation, width)
        built = _build(options, plan, shards, people)
        said = [_said(built, options.run if serves else out / "index")]
        if layout is not None and serves:
            _serve(layout, foundation, plan, shards)
            remove_whole(out)
    return said


def _refuse_of_items(options: Namespace) -> None:
    """A run's own catalogue lies in the run, and is indexed as the run itself did."""
    usual = index_parser().get_defaults()
    for name in (
        "out",
        "text_encoder",
        "kind",
        "storage",
        "target_recall",
        "shard_items",
        "on_bad_rows",
    ):
        if options[name] != usual[name]:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} goes with --items FILE; give one, or leave {option} out.")


def _plan(
    options: Namespace,
    model: Path,
    foundation: Foundation,
    shards: ShardFolder,
    *,
    width: int,
    with_items: bool,
) -> ShardPlan:
    """The leader looks through the file and makes room; the others are told."""
    if not processes.leads():
        told = processes.hear("shards")
        return ShardPlan(**{**told, "repeated_lines": tuple(told["repeated_lines"])})
    quarantine = None
    if options.on_bad_rows == "quarantine":
        named = options.out or options.run
        quarantine = named.with_name(f"{named.name}-quarantine.jsonl")
    with BadRows(on_bad_rows=options.on_bad_rows, quarantine=quarantine) as bad_rows:
        plan = look_through(
            options["items"],
            foundation.prompter.words.schema,
            shard_items=options.shard_items,
            width=width,
            with_items=with_items,
            model_hash=weights_hash(model),
            file=fingerprint(options["items"]),
            bad_rows=bad_rows,
        )
    shards.start(plan)
    processes.tell("shards", asdict(plan))
    return plan


def _build(
    options: Namespace, plan: ShardPlan, shards: ShardFolder, people: NDArray[np.float32] | None
) -> IndexManifest:
    """The index of a plan's shards, in their folder."""
    paths = [shards.vectors(shard) for shard in range(plan.num_shards)]
    with TemporaryDirectory(dir=shards.folder, prefix=".people.") as scratch:
        sample = None
        if people is not None:
            path = Path(scratch) / "people.parquet"
            pq.write_table(pa.table({"vector": as_lists(people)}), path)
            sample = Shards.open([path], id_column=None, vector_column="vector")
        return build_from_shards(
            Shards.open(paths, id_column="item_id", vector_column="vector"),
            shards.folder / "index",
            model_hash=plan.model_hash,
            kind=options.kind,
            storage=options.storage,
            target_recall=options.target_recall,
            sample=sample,
            progress=True,
        )


def _said(built: IndexManifest, where: Path) -> str:
    return (
        f"indexed {built.count:,} items into {where}: {built.kind}, {built.storage}, "
        f"recall ceiling {built.recall_ceiling:.4f} of the nearest 100"
    )


def _people(layout: RunLayout, foundation: Foundation, width: int) -> NDArray[np.float32] | None:
    """Vectors of people of a run's log: what will be searched for lies where they do."""
    book, split = load_book(layout)
    some = sample_targets(split.valid, NUM_SAMPLED_PEOPLE)
    if len(some) < 2:
        return None
    return foundation.embed_users(book.prefixes(some, task=0), width=width)


def _serve(layout: RunLayout, foundation: Foundation, plan: ShardPlan, shards: ShardFolder) -> None:
    """Let a run recommend the items of the shards from now on, and no others."""
    book, _ = load_book(layout)
    catalogue = SavedCatalogue(layout.catalogue)
    saved = catalogue.read(book.interactions.schema)
    if saved is not None:
        # Histories may name what is recommended no more.
        foundation, book = saved.put_into(foundation, book, model_hash=plan.model_hash)
    parts = [pq.read_table(shards.items(shard)) for shard in range(plan.num_shards)]
    table = pa.concat_tables(parts)
    items = table.select(list(item_types(book.interactions.schema)))
    extended = book.with_items(items)
    ids = items["item_id"].to_pylist()
    rows_N = np.array([extended.interactions.item_row(item) for item in ids], np.int64)
    read = {
        name: torch.from_numpy(_matrix(table[name]))
        for name in ("reading_ND", "encoding_NW")
        if name in table.column_names
    }
    told = ItemReadings(
        pieces=extended.item_pieces.take(rows_N),
        reading_ND=read["reading_ND"],
        encoding_NW=read.get("encoding_NW"),
    )
    index = ItemIndex.load(shards.folder / "index", model_hash=plan.model_hash)
    told_now = told_table(saved and saved.told, items)
    served = Served.of(foundation.with_items(ids, told), extended, index, told=told_now)
    catalogue.write(served, index)


def _matrix(lists: pa.ChunkedArray) -> NDArray[np.float32]:
    """Lists of equal length as float32 [N, length]."""
    width = lists.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in lists.chunks]
    matrix: NDArray[np.float32] = np.concatenate(parts).reshape(-1, width)
    return matrix


@contextmanager
def _one_writer(out: Path) -> Iterator[None]:
    """Keep a second command from writing the same shards; the others of a launch write with us."""
    if not processes.leads():
        yield
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise BadInput(
            f"{out}: another process is writing there; wait until it ends, or give another folder."
        ) from None
