"""What is served at one moment: model, prompts and index over one catalogue.

A `Served` never changes. Items are added and removed by putting another in its place, so that a
request that began before goes on with what it saw.

Legend: I items of the catalogue, N items that are told, R rows of the index.
"""

import logging
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from decant.where import Where, matching
from foundation import Foundation
from foundation.predictions import served_items
from promptify.assembly import PromptBook
from promptify.pieces import placed
from promptify.validation import BadInput, shown
from promptify.words import item_titles
from retrieval import CandidateIndex, ItemIndex
from retrieval.manifest import check_model

logger = logging.getLogger(__name__)

# Filters whose answers are kept; each is two bytes per item.
MAX_KEPT_FILTERS = 64
# Items whose titles are kept, some hundred bytes each. What is answered is mostly what was before.
MAX_KEPT_TITLES = 1 << 16


class Admitted(NamedTuple):
    """What may be in an answer, as far as kinds and filters say.

    Attributes:
        items_I: bool [I], over the catalogue.
        chosen_R: bool [R], rows of the index that a filter admits; None without one. Search among
            them is exact.
        other_R: bool [R], rows of the index that are of another kind than the task ranks; None
            where there are none, and where a filter chose. They are passed over, so that search is
            as fast as without them.
    """

    items_I: NDArray[np.bool_]
    chosen_R: NDArray[np.bool_] | None
    other_R: NDArray[np.bool_] | None


class Served:
    """One state of a recommender.

    Args:
        foundation: the model; its catalogue is that of `book`.
        book: prompts over the catalogue and the log.
        index: vectors of what may be recommended. It may know of items that came later: they are
            in no answer of this state.
        row_of_index: int64 [R], the row of the catalogue of each row of the index, −1 for those of
            items that this state knows nothing of.
        is_held_I: bool [I], what the index held when this state was made.
        told: items that are not as the log has them, the columns of `items`; None for none.
        model_hash: of the model, to be compared with that of the index; None where nobody knows it.

    Attributes:
        width: numbers of a vector that the index holds; a narrow one finds, and what it found is
            ranked by whole vectors.
        admitted: what a task may recommend under a filter; see `_admitted`.
    """

    def __init__(
        self,
        foundation: Foundation,
        book: PromptBook,
        index: CandidateIndex,
        *,
        row_of_index: NDArray[np.int64],
        is_held_I: NDArray[np.bool_],
        told: pa.Table | None = None,
        model_hash: str | None = None,
    ) -> None:
        self.foundation = foundation
        self.book = book
        self.interactions = book.interactions
        self.index = index
        self.width = foundation.checked_width(index.manifest.dimension)
        self.row_of_index = row_of_index
        self.is_held_I = is_held_I
        self.told = told
        self.model_hash = model_hash
        # It knows the parts and not this object: a state that is replaced goes at once, and with it
        # the tables of a whole catalogue.
        self.admitted = lru_cache(MAX_KEPT_FILTERS)(
            partial(_admitted, book, is_held_I, row_of_index)
        )
        self._titles: dict[int, str] = {}

    @classmethod
    def of(
        cls,
        foundation: Foundation,
        book: PromptBook,
        index: CandidateIndex,
        *,
        told: pa.Table | None = None,
        model_hash: str | None = None,
    ) -> "Served":
        """The state of an index as it is now.

        Raises:
            IndexMismatch: the index is another model's than that of `model_hash`.
            BadInput: the index holds an item that the catalogue lacks. A database may, which others
                write to as well: that is said, and such an item is in no answer.
        """
        check_model(model_hash, index.manifest.model_hash)
        row_of = {item: row for row, item in enumerate(book.interactions.item_ids)}
        ids = index.ids.tolist()
        unknown = [item for item in ids if item is not None and item not in row_of]
        if unknown and not isinstance(index, ItemIndex):
            logger.warning(
                "the index holds %s items that the catalogue lacks (%s is one): they are in no "
                "answer until they are added again with add_items",
                f"{len(unknown):,}",
                shown(unknown[0]),
            )
        elif unknown:
            raise BadInput(
                f"the index holds {shown(unknown[0])} ({len(unknown):,} such items), which the "
                "catalogue lacks: index it again."
            )
        row_of_index = np.array([row_of.get(item, -1) for item in ids], np.int64)
        is_held_I = np.zeros(len(row_of), np.bool_)
        is_held_I[row_of_index[row_of_index >= 0]] = True
        return cls(
            foundation,
            book,
            index,
            row_of_index=row_of_index,
            is_held_I=is_held_I,
            told=told,
            model_hash=model_hash,
        )

    @cached_property
    def item_vectors_IV(self) -> NDArray[np.float32]:
        """Vectors of the catalogue, float32 [I, V]; made when candidates are first given.

        What an index of this very model holds to the bit is taken from there.
        """
        index, size = self.index, self.foundation.settings.vector_dim
        if not isinstance(index, ItemIndex) or self.model_hash is None or self.width < size:
            return self.foundation.embed_items()
        if index.manifest.storage != "float32":
            return self.foundation.embed_items()
        vectors_IV = np.empty((len(self.is_held_I), size), np.float32)
        try:
            vectors_IV[self.is_held_I] = index.vectors_at(self.index_row_I[self.is_held_I])
        except ValueError:  # An item of this state was removed from the index since.
            return self.foundation.embed_items()
        if not self.is_held_I.all():
            vectors_IV[~self.is_held_I] = self.foundation.embed_items(
                np.flatnonzero(~self.is_held_I)
            )
        return vectors_IV

    @cached_property
    def index_row_I(self) -> NDArray[np.int64]:
        """The row of the index of each item, int64 [I]; −1 where it has none."""
        # An id that came back has rows of which the last is held.
        index_row_I = np.full(len(self.is_held_I), -1, np.int64)
        known_R = np.flatnonzero(self.row_of_index >= 0)
        index_row_I[self.row_of_index[known_R]] = known_R
        return index_row_I

    def holds(self, item_id: str) -> bool:
        """Whether the item may be in an answer of this state."""
        try:
            return bool(self.is_held_I[self.interactions.item_row(item_id)])
        except BadInput:
            return False

    def passed_over(
        self, other_R: NDArray[np.bool_], item_ids: Collection[str]
    ) -> NDArray[np.bool_]:
        """Rows of the index that are not to be found, bool [R].

        Args:
            other_R: those of other kinds.
            item_ids: and these.
        """
        rows_N = self.index_row_I[[self.interactions.item_row(item) for item in item_ids]]
        passed_R = other_R.copy()
        passed_R[rows_N[rows_N >= 0]] = True
        return passed_R

    def titles(self, rows_C: NDArray[np.int64]) -> list[str]:
        """Items as people see them; see `promptify.words.item_titles`."""
        rows, kept = rows_C.tolist(), self._titles
        found = {row: kept[row] for row in rows if row in kept}
        new = [row for row in dict.fromkeys(rows) if row not in found]
        if new:
            told = item_titles(self.book.prompter.words, self.interactions, np.array(new))
            found |= zip(new, told, strict=True)
            if len(kept) + len(new) > MAX_KEPT_TITLES:
                # Another table: threads may be reading this one.
                kept = self._titles = {}
            kept |= zip(new, told, strict=True)
        return [found[row] for row in rows]

    def nearest(
        self, vector_V: NDArray[np.float32], k: int, **filters: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What the index finds for one person: rows of the catalogue, and scores, best first.

        Args:
            vector_V: of the person.
            k: items wanted.
            filters: as `ItemIndex.search` takes them.
        """
        cut_1V = vector_V[None, : self.width]
        found = self.index.search(cut_1V, k, **filters)
        rows_k = self._catalogue_rows(found.item_rows[0])
        if "allow" not in filters and ((rows_k < 0) & (found.item_rows[0] >= 0)).any():
            # Something came between: ask for what was there before it.
            held_R = self.is_held_I[self.row_of_index] & (self.row_of_index >= 0)
            found = self.index.search(cut_1V, k, allow=held_R, **filters)
            rows_k = self._catalogue_rows(found.item_rows[0])
        is_held = rows_k >= 0
        rows_C = rows_k[is_held]
        scores = self.whole_scores(vector_V[None], rows_C[None], found.scores[:, is_held])
        return rows_C, scores[0]

    def _catalogue_rows(self, rows_k: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the catalogue of rows of the index; −1 for what this state does not hold."""
        is_known = (rows_k >= 0) & (rows_k < len(self.row_of_index))
        rows = self.row_of_index[rows_k[is_known]]
        found_k = np.full(len(rows_k), -1, np.int64)
        found_k[is_known] = np.where(self.is_held_I[rows] & (rows >= 0), rows, -1)
        return found_k

    def whole_scores(
        self,
        persons_nV: NDArray[np.float32],
        items_nK: NDArray[np.int64],
        scores_nK: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """As `Recommender.whole_scores`."""
        if self.width == self.foundation.settings.vector_dim:
            return scores_nK
        whole_nK = np.einsum("nkv,nv->nk", self.item_vectors_IV[items_nK], persons_nV)
        return np.where(items_nK >= 0, whole_nK, -np.inf).astype(np.float32)

    def with_items(self, items: pa.Table) -> "Served":
        """The state in which these items are found; only they are read, and added to the index.

        Args:
            items: the columns of `items`, N rows, none of them held; an id that the catalogue knows
                is told anew.
        """
        ids = items["item_id"].to_pylist()
        book = self.book.with_items(items)
        rows_N = np.array([book.interactions.item_row(item) for item in ids], np.int64)
        told = self.foundation.read_items(book.item_pieces.take(rows_N))
        foundation = self.foundation.with_items(ids, told)
        vectors_NV = foundation.embed_items(rows_N)
        is_held_I = np.zeros(book.interactions.num_items, np.bool_)
        is_held_I[: len(self.is_held_I)] = self.is_held_I
        is_held_I[rows_N] = True
        told_now = told_table(self.told, items)
        vectors_IV = None
        if "item_vectors_IV" in self.__dict__:
            placed_I = placed(len(self.is_held_I), rows_N)
            vectors_IV = np.concatenate([self.item_vectors_IV, vectors_NV])[placed_I]
        # Of a call that was cut short, or of another process: in no answer of this state.
        if unknown := [item for item in ids if item in self.index]:
            self.index.remove(unknown)
        # Last: if anything failed above, nothing has changed.
        added_N = self.index.add(vectors_NV[:, : self.width], ids, model_hash=self.model_hash)
        # Where they lie is for the index to say: a database gives an id that comes back its old
        # row, and may have met others meanwhile.
        num_rows = max(len(self.row_of_index), int(added_N.max(initial=-1)) + 1)
        row_of_index = np.full(num_rows, -1, np.int64)
        row_of_index[: len(self.row_of_index)] = self.row_of_index
        row_of_index[added_N] = rows_N
        state = Served(
            foundation,
            book,
            self.index,
            row_of_index=row_of_index,
            is_held_I=is_held_I,
            told=told_now,
            model_hash=self.model_hash,
        )
        if vectors_IV is not None:
            state.item_vectors_IV = vectors_IV
        return state

    def without_items(self, item_ids: Sequence[str]) -> "Served":
        """The state in which these items are found no more; they are removed from the index.

        The catalogue goes on knowing them: histories may name them.
        """
        self.index.remove(item_ids)
        is_held_I = self.is_held_I.copy()
        is_held_I[[self.interactions.item_row(item) for item in item_ids]] = False
        state = Served(
            self.foundation,
            self.book,
            self.index,
            row_of_index=self.row_of_index,
            is_held_I=is_held_I,
            told=self.told,
            model_hash=self.model_hash,
        )
        if "item_vectors_IV" in self.__dict__:
            state.item_vectors_IV = self.item_vectors_IV
        return state


def told_table(old: pa.Table | None, new: pa.Table) -> pa.Table:
    """What was told, the newest of each item.

    Args:
        old: told before; None for nothing.
        new: told now, the same columns.
    """
    if old is None:
        return new
    is_told_again = pc.is_in(old["item_id"], new["item_id"].combine_chunks())
    # In one piece: of thousands of pieces, one for each call, every further call would walk all.
    return pa.concat_tables([old.filter(pc.invert(is_told_again)), new]).combine_chunks()


def _admitted(
    book: PromptBook,
    is_held_I: NDArray[np.bool_],
    row_of_index: NDArray[np.int64],
    task: int | None,
    where: Where | None,
) -> Admitted:
    """What a task may recommend under a filter.

    Args:
        book: prompts over the catalogue.
        is_held_I: what the index holds.
        row_of_index: int64 [R], the row of the catalogue of each row of the index.
        task: index of the task, which ranks its own kind of item; None for every kind.
        where: over the columns of the items; None admits all.

    Raises:
        BadInput: as `matching`.
    """
    is_admitted_I = is_held_I.copy()
    if task is not None:
        is_admitted_I &= served_items(book, task)
    if where is not None:
        log = book.interactions
        is_admitted_I &= matching(where, log.items.data.table, log.schema)
    if (is_admitted_I == is_held_I).all():
        return Admitted(is_admitted_I, None, None)
    is_admitted_R = is_admitted_I[row_of_index] & (row_of_index >= 0)
    if where is not None:
        return Admitted(is_admitted_I, is_admitted_R, None)
    return Admitted(is_admitted_I, None, ~is_admitted_R)
