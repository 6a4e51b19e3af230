"""Predict what a person does next: retrieve candidates, rank them, apply constraints.

from decant import Recommender
recommender = Recommender.load("runs/films")
recommender.predict_next_actions({"age": "25-34"}, [{"item": "1", "action": "liked"}], k=10)
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from decant.answering import (
    NUM_RETRIEVED,
    Cascade,
    Prediction,
    admitted_items,
    answer,
    checked_ids,
    event_items,
    task_of,
)
from decant.catalogue import SavedCatalogue, read_new_items
from decant.constraints import Constraint
from decant.history import HistoryItem, history_event
from decant.opening import build_index, open_run
from decant.search import FacetUse, Found, SearchWords, open_items, search, search_task
from decant.served import Served
from decant.turns import Turns
from decant.where import Where
from foundation import Foundation
from foundation.prefix_cache import PrefixCache
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.rows import Rows
from promptify.splits import Targets
from promptify.validation import BadInput, OnBadRows, shown
from retrieval import CandidateIndex, ItemIndex

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recommender", "build_index"]

COMPACTED_SHARE = 0.1
"""Of an index that changed more since it was made, saving makes one anew."""


class Recommender:
    """A trained model, its index and its catalogue. Build one with `load`.

    Args:
        foundation: the served rung.
        index: its items' vectors, whole or cut to a width that the model was trained at. A narrow
            index finds; what it found is ranked by whole vectors.
        book: prompts over the catalogue and the log.
        prefix_cache: readings of prompts, kept between requests; a new one when left out. Its
            `hit_rate` says how many requests needed no reading.
        told: items of the catalogue that are not as the log has them; None for none.
        catalogue: where `save` writes what became of the catalogue; None where it has no place.
        model_hash: `foundation.checkpoint.weights_hash` of the model's folder; where given, the
            index must be that model's, and takes its vectors alone.
        num_retrieved: items that a prediction takes from the index; `search` has its own number.
        num_ranked: of these, the nearest that the model reads one by one; all when None. Fewer
            are faster.

    Any number of threads may ask, and items may be added and removed meanwhile: an answer is of one
    moment, before a change or after it. As many are answered at once as the machine has room for,
    in the order in which they asked; see `decant.turns`. A process that is forked loads the run
    anew: whatever it asks of this one raises RuntimeError.

    Raises:
        ValueError: the index is another model's or holds an item that the catalogue lacks (one in
            a database is passed over and said), or more items are ranked than retrieved.
    """

    def __init__(
        self,
        foundation: Foundation,
        index: CandidateIndex,
        book: PromptBook,
        *,
        prefix_cache: PrefixCache | None = None,
        told: pa.Table | None = None,
        catalogue: SavedCatalogue | None = None,
        model_hash: str | None = None,
        num_retrieved: int = NUM_RETRIEVED,
        num_ranked: int | None = None,
    ) -> None:
        self._cascade = Cascade(retrieved=num_retrieved, ranked=num_ranked)
        # `or` would not do: an empty cache is falsy.
        self.prefix_cache = PrefixCache() if prefix_cache is None else prefix_cache
        self._catalogue = catalogue
        self._writing = Turns(lambda: 1)
        self._turns = Turns()
        # Every request reads this once: it goes on with what it saw, whatever comes in its place.
        self._served = Served.of(foundation, book, index, told=told, model_hash=model_hash)
        self._search_words: dict[int, SearchWords] = {}
        self._making_words = Turns(lambda: 1)

    @property
    def foundation(self) -> Foundation:
        """The served rung, over the catalogue as it is now."""
        return self._served.foundation

    @property
    def index(self) -> CandidateIndex:
        """Vectors of what may be recommended."""
        return self._served.index

    @property
    def book(self) -> PromptBook:
        """Prompts over the catalogue as it is now, and the log."""
        return self._served.book

    @property
    def interactions(self) -> Interactions:
        """The log, with the catalogue as it is now."""
        return self._served.interactions

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        max_prompt_tokens: int | None = None,
        with_saved_items: bool = True,
        num_retrieved: int = NUM_RETRIEVED,
        num_ranked: int | None = None,
    ) -> Self:
        """Load a run folder.

        Args:
            folder: written by `decant run` or `decant demo`.
            model: which model serves, ``"foundation"`` or a rung; when left out the last rung that
                the gate let through, or the run's own. Another than the one that made the index
                gets an index of its own, in memory.
            max_prompt_tokens: longest prompt, if not that of the training: more history for those
                who have it. A model that must stretch its positions for that says so; see
                `foundation.positions`.
            with_saved_items: whether items are there as `save` and `decant index --items` left
                them, or as the run's log has them: what is measured is of the log alone.
            num_retrieved: items that a prediction takes from the index; `search` has its own.
            num_ranked: of these, the nearest that the model reads one by one; all when left out.

        Raises:
            ValueError: the folder holds no finished run, a part of it is damaged, its index is
                another model's, or more items are ranked than retrieved.
        """
        Cascade(retrieved=num_retrieved, ranked=num_ranked)  # Refused before anything is read.
        run = open_run(
            Path(folder),
            model=model,
            max_prompt_tokens=max_prompt_tokens,
            with_saved_items=with_saved_items,
        )
        return cls(
            run.foundation,
            run.index,
            run.book,
            told=run.told,
            catalogue=run.catalogue,
            model_hash=run.model_hash,
            num_retrieved=num_retrieved,
            num_ranked=num_ranked,
        )

    def add_items(
        self,
        items: "Sequence[Mapping[str, Any]] | pa.Table | pd.DataFrame",
        *,
        on_bad_rows: OnBadRows = "fail",
    ) -> None:
        """Recommend more items from now on, known by their text alone; only they are read.

        They may be candidates, stand in `allow` and `deny`, and be named by id in histories.
        Nothing is written until `save`.

        Args:
            items: `item_id`, `kind` where there are several, and the fields of the schema: as
                mappings, in which any field may be missing, None or NaN, or as a table of Arrow or
                pandas. Of none nothing is asked.
            on_bad_rows: ``"fail"``, or ``"skip"`` to leave out what does not fit.

        Raises:
            ValueError: an item stands in the catalogue, has a field that the schema lacks, or does
                not fit. Nothing was added then.
        """
        if isinstance(items, Sized) and not isinstance(items, str | Mapping) and not len(items):
            return
        with self._writing.turn():
            now = self._served
            new = read_new_items(items, now.interactions.schema, on_bad_rows=on_bad_rows)
            names = new["item_id"].to_pylist()
            if held := [item for item in names if now.holds(item) and item in now.index]:
                raise BadInput(
                    f"item_id {shown(held[0])} is in the catalogue already"
                    + (f" ({len(held):,} such items)" if len(held) > 1 else "")
                    + "; take it out with remove_items first, then add it again."
                )
            self._served = now.with_items(new)

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Recommend these items no more; histories may still name them.

        Args:
            item_ids: of items that are recommended, no repeats.

        Raises:
            ValueError: an id is unknown, was removed already, or stands twice. Nothing was removed
                then.
        """
        with self._writing.turn():
            now = self._served
            item_ids = checked_ids(now, "remove_items", item_ids)
            if len(set(item_ids)) < len(item_ids):
                raise BadInput("remove_items: an id stands twice; give each item once.")
            if gone := [item for item in item_ids if item not in now.index]:
                raise BadInput(f"remove_items: item {shown(gone[0])} was removed already.")
            if item_ids:
                self._served = now.without_items(item_ids)

    def save(self) -> None:
        """Write the catalogue as it is now into the run folder, whole or not at all.

        `load` finds it there; the log and the model stay as they are. Where more than a tenth of
        the index came or went since it was made, it is compacted first, which takes its size in
        memory: what came is compared with one by one in every search, and what went stands in the
        way.

        Raises:
            ValueError: this recommender is of no run folder or not its served model, its index is
                a database's, or another process saved, or gave the run another model, since this
                one was loaded.
        """
        if self._catalogue is None:
            raise BadInput(
                "only the served model of a run folder has a place to save its catalogue in; load "
                "it with Recommender.load(folder)."
            )
        with self._writing.turn():
            index = self._served.index
            if not isinstance(index, ItemIndex):
                raise BadInput(
                    "the index is a database's, which keeps vectors itself: add the items again "
                    "when the recommender starts anew. A run folder saves an ItemIndex alone."
                )
            if index.changed_share > COMPACTED_SHARE:
                index.compact()
            self._catalogue.write(self._served, index, while_serving=True)

    def predict_next_actions(
        self,
        profile: Mapping[str, Any],
        history: Sequence[HistoryItem | Mapping[str, Any]] = (),
        *,
        task: str | None = None,
        query: str | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        where: str | Where | None = None,
        blend: float | None = None,
        constraints: Sequence[Constraint] = (),
        exclude_seen: bool = True,
    ) -> list[Prediction]:
        """The `k` items somebody is most likely to act on well, best first.

        Args:
            profile: profile fields of the schema; any may be missing, and it may be empty.
            history: events, oldest first, as `HistoryItem` or mappings with its keys, whose
                `timestamp` may be a date as well; may be empty.
            task: the surface that is asked about; the first of the model when left out.
            query: a query or a note for this request, in words.
            candidates: item ids to rank; retrieved from the index when left out. One that is given
                twice is answered once.
            k: items wanted; fewer come back where there are fewer.
            allow: only these item ids.
            deny: none of these item ids.
            where: only items like this, said over their columns as in `decant.where`:
                ``"place = Berlin, Germany | workplace = remote"``.
            blend: how much policy counts in the order, in [0, 1]: 0 is clicks alone, 1 policy
                alone, of what retrieval found; clicks alone when left out.
            constraints: rules on the answer, one after the other; see `decant.constraints`.
            exclude_seen: leave out items of the history; False where people come back to things.

        Raises:
            ValueError: `k` is below 1, an id, a field, a task or an action is unknown, `where` or a
                constraint does not fit the items' columns, or `blend` is out of range or given for
                a task without grades.
        """
        if isinstance(history, str | Mapping) or not isinstance(history, Sequence):
            raise BadInput(f"history={shown(history)} must be a list of events, oldest first.")
        now = self._served
        asked = task_of(now, task)
        events = [history_event(event, place) for place, event in enumerate(history)]
        prefix = now.book.inline(
            profile, events, task=now.book.prompter.tasks[asked].name, context=query
        )
        seen = [event.item for event in events if isinstance(event.item, str)]
        admitted = admitted_items(
            now, asked, where=where, constraints=constraints, candidates=candidates
        )
        with self._turns.turn():
            return answer(
                now,
                self.prefix_cache,
                prefix,
                task=asked,
                cascade=self._cascade,
                seen=seen if exclude_seen else [],
                admitted=admitted,
                candidates=candidates,
                k=k,
                allow=allow,
                deny=deny,
                blend=blend,
                constraints=constraints,
            )

    def predict_user(
        self,
        user_id: str,
        *,
        task: str | None = None,
        query: str | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        where: str | Where | None = None,
        blend: float | None = None,
        constraints: Sequence[Constraint] = (),
        exclude_seen: bool = True,
    ) -> list[Prediction]:
        """As `predict_next_actions`, for somebody of the log, with all of their history.

        Args:
            user_id: of the log.
            task: the surface that is asked about.
            query: a query or a note for this request.
            candidates: item ids to rank.
            k: items wanted.
            allow: only these item ids.
            deny: none of these item ids.
            where: only items like this.
            blend: how much policy counts.
            constraints: rules on the answer.
            exclude_seen: leave out items of the history.

        Raises:
            ValueError: the user is unknown, or as for `predict_next_actions`.
        """
        return self.predict_row(
            self.interactions.user_row(user_id),
            task=task,
            query=query,
            candidates=candidates,
            k=k,
            allow=allow,
            deny=deny,
            where=where,
            blend=blend,
            constraints=constraints,
            exclude_seen=exclude_seen,
        )

    def predict_row(
        self,
        user: int,
        *,
        num_events: int | None = None,
        task: str | None = None,
        query: str | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        where: str | Where | None = None,
        blend: float | None = None,
        constraints: Sequence[Constraint] = (),
        exclude_seen: bool = True,
    ) -> list[Prediction]:
        """As `predict_user`, by row of `users`, with only the last `num_events` if given.

        Raises:
            ValueError: `users` has no such row, `num_events` is negative, or as for `predict_user`.
        """
        now = self._served
        asked = task_of(now, task)
        start, end = now.interactions.history_of(user, num_events)
        admitted = admitted_items(
            now, asked, where=where, constraints=constraints, candidates=candidates
        )
        with self._turns.turn():
            return answer(
                now,
                self.prefix_cache,
                now.book.of_user(user, start, end, task=asked, context=query),
                task=asked,
                cascade=self._cascade,
                seen=event_items(now, start, end) if exclude_seen else [],
                admitted=admitted,
                candidates=candidates,
                k=k,
                allow=allow,
                deny=deny,
                blend=blend,
                constraints=constraints,
            )

    def predict_target(self, target: Targets, *, task: int = 0, k: int = 10) -> list[Prediction]:
        """What would have been predicted at the moment of one held-out slate.

        Args:
            target: one target.
            task: index of the task.
            k: items wanted.
        """
        now = self._served
        with self._turns.turn():
            return answer(
                now,
                self.prefix_cache,
                now.book.prefixes(target, task=task),
                task=task,
                cascade=self._cascade,
                seen=event_items(now, int(target.history_start[0]), int(target.history_end[0])),
                admitted=admitted_items(now, task),
                k=k,
            )

    def predict_many(
        self,
        user_ids: Sequence[str],
        *,
        task: str | None = None,
        query: str | None = None,
        k: int = 10,
        where: str | Where | None = None,
        blend: float | None = None,
        constraints: Sequence[Constraint] = (),
        exclude_seen: bool = True,
        progress: bool = False,
    ) -> Iterator[tuple[str, list[Prediction]]]:
        """Predictions for many people of the log, one after another.

        Args:
            user_ids: of the log.
            task: as `predict_next_actions`.
            query: a query or a note for all of them.
            k: items wanted for each.
            where: only items like this.
            blend: how much policy counts.
            constraints: rules on the answer.
            exclude_seen: leave out items of each history.
            progress: show a bar.

        Yields:
            A user id and its predictions.

        Raises:
            ValueError: a user is unknown, or `where` does not fit; raised before the first
                prediction.
        """
        now = self._served
        for user_id in user_ids:
            now.interactions.user_row(user_id)
        admitted_items(now, task_of(now, task), where=where, constraints=constraints)
        for user_id in tqdm(user_ids, desc="predict", unit="user", disable=not progress):
            yield (
                user_id,
                self.predict_user(
                    user_id,
                    task=task,
                    query=query,
                    k=k,
                    where=where,
                    blend=blend,
                    constraints=constraints,
                    exclude_seen=exclude_seen,
                ),
            )

    def search(
        self,
        query: str,
        *,
        profile: Mapping[str, Any] | None = None,
        user: str | None = None,
        task: str | None = None,
        k: int = 10,
        where: str | Where | NDArray[np.bool_] | None = None,
        facets: FacetUse = "prefer",
        ignore_facets: Sequence[str] = (),
    ) -> Found:
        """Find people, or whatever a task ranks, by words: a name, or what is meant.

        Whoever asks needs no profile and no history.

        Args:
            query: in words, of any length; what the longest context has no room for is not read.
            profile: profile fields of who asks; may be left out, as may each of them.
            user: who asks, where they are of the log: with their profile and all of their history.
            task: the surface that is searched; the first whose items have names when left out.
            k: results wanted; fewer come back where there are fewer, or where a name says who.
            where: only items like this, as for `predict_next_actions`; or bool [I], the items that
                may be found.
            facets: ``prefer`` items that have what the query says of a column, ``require`` it, or
                ``ignore`` that there are columns.
            ignore_facets: columns that the query says nothing about, whatever stands in it.

        Raises:
            ValueError: the query holds no word, or an id, a field, a task or another argument does
                not fit.
        """
        if profile is not None and user is not None:
            raise BadInput("profile and user both say who asks; give one.")
        now = self._served
        book, log = now.book, now.interactions
        asked = search_task(now, task)
        if user is None:
            name = book.prompter.tasks[asked].name

            def prefix_of(context: str | None) -> Rows:
                return book.inline(profile or {}, task=name, context=context)
        else:
            row = log.user_row(user)
            start, end = log.history_of(row)

            def prefix_of(context: str | None) -> Rows:
                return book.of_user(row, start, end, task=asked, context=context)

        open_I, words = open_items(now, asked, where), self._words_of(now, asked)
        with self._turns.turn():
            return search(
                now,
                self.prefix_cache,
                query,
                words=words,
                prefix_of=prefix_of,
                task=asked,
                k=k,
                open_I=open_I,
                facets=facets,
                ignore_facets=ignore_facets,
            )

    def search_words(self, task: int) -> SearchWords:
        """What search knows of the words of a task's items; made when it is first asked for."""
        return self._words_of(self._served, task)

    def _words_of(self, now: Served, task: int) -> SearchWords:
        # One makes them, in no request's turn: of a large catalogue that takes minutes.
        with self._making_words.turn():
            known = self._search_words.get(task)
            if known is None or known.interactions is not now.interactions:
                known = self._search_words[task] = SearchWords(now, task, known)
            return known

    def whole_scores(
        self,
        persons_nV: NDArray[np.float32],
        items_nK: NDArray[np.int64],
        scores_nK: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Inner products of whole vectors, whatever width the index has, float32 [n, K].

        Args:
            persons_nV: person vectors.
            items_nK: rows of the catalogue that were found, −1 where nothing was.
            scores_nK: what the index said of them.
        """
        return self._served.whole_scores(persons_nV, items_nK, scores_nK)
