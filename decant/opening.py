"""A run folder opened to serve: its model, prompts over its catalogue, the index of its items."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from decant.catalogue import SavedCatalogue, SavedItems
from decant.layout import INDEX, RunLayout
from decant.run_data import load_model, reading
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.few_bits import is_meant_for_gpu, to_gpu
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.schema import Schema
from promptify.validation import BadInput
from retrieval import IndexManifest, ItemIndex


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenRun:
    """What a `Recommender` is made of.

    Attributes:
        foundation: the model that serves.
        index: its items' vectors.
        book: prompts over the catalogue and the log.
        told: items of the catalogue that are not as the log has them; None for none.
        catalogue: where what becomes of the catalogue is saved; None where it has no place.
        model_hash: of the model that serves, which made the index.
    """

    foundation: Foundation
    index: ItemIndex
    book: PromptBook
    told: pa.Table | None
    catalogue: SavedCatalogue | None
    model_hash: str


def open_run(
    folder: Path, *, model: str | None, max_prompt_tokens: int | None, with_saved_items: bool
) -> OpenRun:
    """See `Recommender.load`."""
    layout = RunLayout(folder)
    served = model or layout.served()
    path = layout.model(served)
    foundation = load_model(path)
    if is_meant_for_gpu(foundation):
        to_gpu(foundation)
    with reading(layout.interactions):
        interactions = Interactions.load(layout.interactions)
    if tuple(interactions.item_ids) != foundation.item_ids:
        raise BadInput(
            f"{folder}: the data and the model know different catalogues; "
            f"was one of them copied from another run? Run `decant run` again."
        )
    if max_prompt_tokens is not None:
        foundation.set_prompt_budget(max_prompt_tokens)
    book = foundation.prompter.book(interactions)
    made_with = weights_hash(path)
    catalogue = SavedCatalogue(layout.catalogue)
    is_indexed = served == layout.served()
    saved = held = None
    if with_saved_items and is_indexed:
        saved, held = _read_with_index(catalogue, interactions.schema, made_with, layout.folder)
    elif with_saved_items:
        saved = catalogue.read(interactions.schema)
    home = catalogue if is_indexed and with_saved_items else None
    if saved is None:
        if is_indexed and (layout.folder / INDEX).exists():
            index = _load_index(layout.index, made_with, layout.folder)
        else:
            index = build_index(foundation, model_hash=made_with)
        return OpenRun(
            foundation=foundation,
            index=index,
            book=book,
            told=None,
            catalogue=home,
            model_hash=made_with,
        )
    foundation, book = saved.put_into(foundation, book, model_hash=made_with)
    # `or` would not do: an index from which everything was removed is falsy.
    if held is None:
        held = build_index(foundation, model_hash=made_with, without=saved.removed)
    return OpenRun(
        foundation=foundation,
        index=held,
        book=book,
        told=saved.told,
        catalogue=home,
        model_hash=made_with,
    )


def build_index(
    foundation: Foundation,
    *,
    model_hash: str,
    without: Collection[str] = (),
    width: int | None = None,
    like: IndexManifest | None = None,
) -> ItemIndex:
    """Embed a model's catalogue and index it.

    Args:
        foundation: makes the vectors.
        model_hash: `foundation.checkpoint.weights_hash` of its folder.
        without: ids of items that are not recommended.
        width: the first numbers of each vector alone, one of `FoundationConfig.widths`. When left
            out that of `like`, or all numbers where there is none or the model has no such width.
        like: of an index whose kind, storage and target recall this one is to have.

    Raises:
        ValueError: no item is left, the model was not trained at that width, or its vectors cannot
            be indexed as those of `like` were.
    """
    kept = [row for row, item in enumerate(foundation.item_ids) if item not in without]
    if not kept:
        raise BadInput(
            f"all {foundation.num_items:,} items of the catalogue were removed, and an index needs "
            "one: `decant index RUN --items FILE` gives the run others; where its folder "
            "catalogue is deleted, those of its log are back."
        )
    rows = None if len(kept) == foundation.num_items else np.array(kept, np.int64)
    ids = [foundation.item_ids[row] for row in kept]
    asked: dict[str, Any] = {}
    if like is not None:
        asked = {
            "kind": like.kind,
            "storage": like.storage,
            "target_recall": like.target_recall,
        }
        if width is None and like.dimension in foundation.settings.widths:
            width = like.dimension
    vectors_IV = foundation.embed_items(rows, width=width)
    return ItemIndex.build(vectors_IV, ids, model_hash=model_hash, **asked)


def _read_with_index(
    catalogue: SavedCatalogue, schema: Schema, model_hash: str, run: Path
) -> tuple[SavedItems | None, ItemIndex | None]:
    """What was saved and its index, both of one version; None twice where nothing ever was."""
    saved = catalogue.read(schema)
    while saved is not None:
        try:
            return saved, _load_index(saved.index, model_hash, run)
        except (BadInput, OSError):
            # Another process may have saved meanwhile, and deleted what this one was reading.
            newer = catalogue.read(schema)
            if newer is None or newer.index == saved.index:
                raise
            saved = newer
    return None, None


def _load_index(path: Path, model_hash: str, run: Path) -> ItemIndex:
    try:
        return ItemIndex.load(path, model_hash=model_hash)
    except ValueError as error:
        said = str(error).rstrip(".")
        raise BadInput(f"{said}: `decant index {run}` does.") from error
