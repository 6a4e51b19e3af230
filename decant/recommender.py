"""Predict what a person does next: retrieve candidates, rank them, apply constraints.

from decant import Recommender
recommender = Recommender.load("runs/films")
recommender.predict_next_actions({"age": "25-34"}, [{"item": "1", "action": "liked"}], k=10)
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from decant.history import HistoryItem, history_event
from decant.layout import INDEX, RunLayout
from decant.run_data import load_model, reading
from decant.search import FacetUse, Found, SearchWords, search, search_task
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.predictions import served_items
from foundation.prefix_cache import PrefixCache
from foundation.scoring import PrefixReading
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.rows import Rows
from promptify.splits import Targets
from promptify.validation import BadInput, shown
from promptify.words import item_titles
from retrieval import ItemIndex

logger = logging.getLogger(__name__)

# Candidates that retrieval hands to the ranker, as in the `system` rows of every table.
NUM_RETRIEVED = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One item for one person.

    Attributes:
        item_id: the item.
        title: the item in words.
        score: log p(item next) up to a constant + w · log p(positive action); higher is better.
        probabilities: of each action, if the item is shown, calibrated; they sum to 1.
        retrieval_score: the inner product of person and item vector: log p(item next) up to a
            constant of the request.
        retrieval_rank: place among what retrieval returned, from 1; None for a given candidate.
    """

    item_id: str
    title: str
    score: float
    probabilities: dict[str, float]
    retrieval_score: float
    retrieval_rank: int | None


class Recommender:
    """A trained model, its index and its catalogue. Build one with `load`.

    Args:
        foundation: the served rung.
        index: its items' vectors.
        book: prompts over the catalogue and the log.
        prefix_cache: readings of prompts, kept between requests; a new one when left out. Its
            `hit_rate` says how many requests needed no reading.
    """

    def __init__(
        self,
        foundation: Foundation,
        index: ItemIndex,
        book: PromptBook,
        *,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.foundation = foundation
        # `or` would not do: an empty cache is falsy.
        self.prefix_cache = PrefixCache() if prefix_cache is None else prefix_cache
        self.index = index
        self.book = book
        self.interactions = book.interactions
        self._vectors_IV: NDArray[np.float32] | None = None
        self._search_words: dict[int, SearchWords] = {}
        self._is_served = [served_items(book, task) for task in range(len(book.prompter.tasks))]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        max_prompt_tokens: int | None = None,
    ) -> Self:
        """Load a run folder.

        Args:
            folder: written by `decant run` or `decant demo`.
            model: which model serves, ``"foundation"`` or a rung; the smallest rung when left out.
                Another than the one that made the index gets an index of its own, in memory.
            max_prompt_tokens: longest prompt, if not that of the training: more history for those
                who have it. A model that is asked beyond its trained length says so once.

        Raises:
            ValueError: the folder holds no finished run, or a part of it is damaged.
        """
        layout = RunLayout(Path(folder))
        served = model or layout.served()
        path = layout.model(served)
        foundation = load_model(path)
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
        if (layout.folder / INDEX).exists() and served == layout.served():
            index = _load_index(layout, made_with)
        else:
            index = build_index(foundation, model_hash=made_with)
        return cls(foundation, index, book)

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
        exclude_seen: bool = True,
    ) -> list[Prediction]:
        """The `k` items somebody is most likely to act on well, best first.

        Args:
            profile: profile fields of the schema; any may be missing, and it may be empty.
            history: events, oldest first, as `HistoryItem` or mappings with its keys; may be empty.
            task: the surface that is asked about; the first of the model when left out.
            query: a query or a note for this request, in words.
            candidates: item ids to rank; retrieved from the index when left out. One that is given
                twice is answered once.
            k: items wanted; fewer come back where there are fewer.
            allow: only these item ids.
            deny: none of these item ids.
            exclude_seen: leave out items of the history.

        Raises:
            ValueError: `k` is below 1, or an id, a field, a task or an action is unknown.
        """
        if isinstance(history, str | Mapping) or not isinstance(history, Sequence):
            raise BadInput(f"history={shown(history)} must be a list of events, oldest first.")
        asked = self._task(task)
        events = [history_event(event, place) for place, event in enumerate(history)]
        prefix = self.book.inline(
            profile, events, task=self.book.prompter.tasks[asked].name, context=query
        )
        seen = [event.item for event in events if isinstance(event.item, str)]
        return self._predict(
            prefix,
            task=asked,
            seen=seen if exclude_seen else [],
            candidates=candidates,
            k=k,
            allow=allow,
            deny=deny,
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
        exclude_seen: bool = True,
    ) -> list[Prediction]:
        """As `predict_user`, by row of `users`, with only the last `num_events` if given."""
        asked = self._task(task)
        start, end = self.interactions.user_offsets[user : user + 2].tolist()
        if num_events is not None:
            start = max(start, end - num_events)
        return self._predict(
            self.book.of_user(user, start, end, task=asked, context=query),
            task=asked,
            seen=self._item_ids(start, end) if exclude_seen else [],
            candidates=candidates,
            k=k,
            allow=allow,
            deny=deny,
        )

    def predict_target(self, target: Targets, *, task: int = 0, k: int = 10) -> list[Prediction]:
        """What would have been predicted at the moment of one held-out slate.

        Args:
            target: one target.
            task: index of the task.
            k: items wanted.
        """
        seen = self._item_ids(int(target.history_start[0]), int(target.history_end[0]))
        return self._predict(
            self.book.prefixes(target, task=task),
            task=task,
            seen=seen,
            candidates=None,
            k=k,
            allow=None,
            deny=None,
        )

    def _item_ids(self, start: int, end: int) -> list[str]:
        """Ids of the items of some events."""
        ids = self.interactions.item_ids
        return [ids[item] for item in self.interactions.event_item[start:end].tolist()]

    def predict_many(
        self,
        user_ids: Sequence[str],
        *,
        task: str | None = None,
        k: int = 10,
        progress: bool = False,
    ) -> Iterator[tuple[str, list[Prediction]]]:
        """Predictions for many people of the log, one after another.

        Args:
            user_ids: of the log.
            task: as `predict_next_actions`.
            k: items wanted for each.
            progress: show a bar.

        Yields:
            A user id and its predictions.

        Raises:
            ValueError: a user is unknown; raised before the first prediction.
        """
        for user_id in user_ids:
            self.interactions.user_row(user_id)
        for user_id in tqdm(user_ids, desc="predict", unit="user", disable=not progress):
            yield user_id, self.predict_user(user_id, task=task, k=k)

    def search(
        self,
        query: str,
        *,
        profile: Mapping[str, Any] | None = None,
        user: str | None = None,
        task: str | None = None,
        k: int = 10,
        where: NDArray[np.bool_] | None = None,
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
            where: bool [I], the items that may be found; all when left out.
            facets: ``prefer`` items that have what the query says of a column, ``require`` it, or
                ``ignore`` that there are columns.
            ignore_facets: columns that the query says nothing about, whatever stands in it.

        Raises:
            ValueError: the query holds no word, or an id, a field, a task or another argument does
                not fit.
        """
        if profile is not None and user is not None:
            raise BadInput("profile and user both say who asks; give one.")
        asked = search_task(self, task)
        if user is None:
            name = self.book.prompter.tasks[asked].name

            def prefix_of(context: str | None) -> Rows:
                return self.book.inline(profile or {}, task=name, context=context)
        else:
            row = self.interactions.user_row(user)
            start, end = self.interactions.user_offsets[row : row + 2].tolist()

            def prefix_of(context: str | None) -> Rows:
                return self.book.of_user(row, start, end, task=asked, context=context)

        return search(
            self,
            query,
            prefix_of=prefix_of,
            task=asked,
            k=k,
            where=where,
            facets=facets,
            ignore_facets=tuple(ignore_facets),
        )

    def search_words(self, task: int) -> SearchWords:
        """What search knows of the words of a task's items; made when it is first asked for."""
        known = self._search_words.get(task)
        if known is None or known.interactions is not self.interactions:
            known = self._search_words[task] = SearchWords(self, task)
        return known

    def retrieve(
        self, person: PrefixReading, open_I: NDArray[np.bool_], *, k: int
    ) -> NDArray[np.int64]:
        """Rows of the catalogue that the index holds nearest to a person, the nearest first.

        Args:
            person: who asks.
            open_I: bool [I], the items that may be found.
            k: how many are wanted in the end; no fewer are retrieved than for every request.
        """
        found = self.index.search(
            person.vector_V[None],
            min(max(NUM_RETRIEVED, int(k)), len(self.index)),
            allow=[self.interactions.item_ids[row] for row in np.flatnonzero(open_I)],
        )
        ids = [item for item in found.ids[0] if item is not None]
        return np.array([self.interactions.item_row(item) for item in ids], np.int64)

    def rank(
        self,
        person: PrefixReading,
        rows_C: NDArray[np.int64],
        *,
        task: int,
        bonus_I: NDArray[np.float32],
    ) -> list[Prediction]:
        """Candidates by the full score and a bonus, the best first.

        Args:
            person: who asks.
            rows_C: int64 [C], rows of the catalogue.
            task: index of the task.
            bonus_I: float32 [I], added to each item's score, in nats.
        """
        scores_C = self._item_vectors()[rows_C] @ person.vector_V
        return self._ranked(
            person,
            rows_C,
            scores_C,
            [None] * len(rows_C),
            task=task,
            k=len(rows_C),
            bonus_C=bonus_I[rows_C],
        )

    def _predict(
        self,
        prefix: Rows,
        *,
        task: int,
        seen: Sequence[str],
        candidates: Sequence[str] | None,
        k: int,
        allow: Sequence[str] | None,
        deny: Sequence[str] | None,
    ) -> list[Prediction]:
        if not isinstance(k, Integral) or k < 1:
            raise BadInput(f"k={shown(k)} must be at least 1, and a whole number.")
        if dropped := int(prefix.num_dropped_events[0]):
            logger.info(
                "the oldest %s events of the history are left out: a prompt holds %s tokens",
                f"{dropped:,}",
                f"{self.book.prompter.config.max_prompt_tokens:,}",
            )
        for name, ids in (("allow", allow), ("deny", deny), ("candidates", candidates)):
            self._check_ids(name, ids)
        # Read once: retrieval takes the person vector from it, ranking the rest.
        person = self.prefix_cache.read(self.foundation, prefix)
        refused = set(deny or ()) | set(seen)
        if candidates is not None:
            admitted = [
                item
                for item in dict.fromkeys(candidates)
                if item not in refused and (allow is None or item in set(allow))
            ]
            rows_C = np.array([self.interactions.item_row(item) for item in admitted], np.int64)
            scores_C = self._item_vectors()[rows_C] @ person.vector_V
            ranks: Sequence[int | None] = [None] * len(rows_C)
        else:
            result = self.index.search(
                person.vector_V[None],
                min(max(NUM_RETRIEVED, int(k)), len(self.index)),
                allow=self._allowed(task, allow),
                deny=sorted(refused) or None,
            )
            found = [item for item in result.ids[0] if item is not None]
            rows_C = np.array([self.interactions.item_row(item) for item in found], np.int64)
            scores_C = result.scores[0, : len(rows_C)]
            ranks = range(1, len(rows_C) + 1)
        return self._ranked(person, rows_C, scores_C, ranks, task=task, k=k)

    def _ranked(
        self,
        person: PrefixReading,
        rows_C: NDArray[np.int64],
        retrieval_C: NDArray[np.float32],
        ranks: Sequence[int | None],
        *,
        task: int,
        k: int,
        bonus_C: NDArray[np.float32] | None = None,
    ) -> list[Prediction]:
        asked = self.book.prompter.tasks[task]
        said_CA = self.foundation.score(person, rows_C, task=task)
        log_probs_CA = self.foundation.calibration(task)(said_CA)
        total_C = retrieval_C + self.foundation.rank_weight(task) * log_positive(
            log_probs_CA, np.array(asked.is_positive)
        )
        if bonus_C is not None:
            total_C = total_C + bonus_C
        best = np.argsort(-total_C, kind="stable")[:k]
        titles = item_titles(self.book.prompter.words, self.interactions, rows_C[best])
        return [
            Prediction(
                item_id=self.interactions.item_ids[rows_C[place]],
                title=title,
                score=float(total_C[place]),
                probabilities={
                    action: float(p)
                    for action, p in zip(asked.actions, np.exp(log_probs_CA[place]), strict=True)
                },
                retrieval_score=float(retrieval_C[place]),
                retrieval_rank=ranks[place],
            )
            for place, title in zip(best.tolist(), titles, strict=True)
        ]

    def _task(self, name: str | None) -> int:
        return 0 if name is None else self.book.prompter.task_index(name)

    def _check_ids(self, name: str, ids: Sequence[str] | None) -> None:
        if isinstance(ids, str):
            raise BadInput(f"{name}={ids!r} is a text; give a list of item ids.")
        for item in ids or ():
            try:
                self.interactions.item_row(item)
            except ValueError as error:
                raise BadInput(f"{name}: {error}") from None

    def _allowed(self, task: int, allow: Sequence[str] | None) -> Sequence[str] | None:
        """Ids that may be retrieved; None where the whole catalogue may."""
        served_I = self._is_served[task]
        if allow is not None:
            return [item for item in allow if served_I[self.interactions.item_row(item)]]
        if served_I.all():
            return None
        return [self.interactions.item_ids[row] for row in np.flatnonzero(served_I)]

    def _item_vectors(self) -> NDArray[np.float32]:
        if self._vectors_IV is None:
            self._vectors_IV = self.foundation.embed_items()
        return self._vectors_IV


def log_positive(
    log_probs_CA: NDArray[np.float32], is_positive_A: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Log of the summed probability of the positive actions, float32 [C], in nats."""
    total: NDArray[np.float32] = np.logaddexp.reduce(log_probs_CA[:, is_positive_A], axis=1)
    return total


def build_index(foundation: Foundation, *, model_hash: str) -> ItemIndex:
    """Embed a model's catalogue and index it.

    Args:
        foundation: makes the vectors.
        model_hash: `foundation.checkpoint.weights_hash` of its folder.
    """
    return ItemIndex.build(foundation.embed_items(), foundation.item_ids, model_hash=model_hash)


def _load_index(layout: RunLayout, model_hash: str) -> ItemIndex:
    try:
        return ItemIndex.load(layout.index, model_hash=model_hash)
    except ValueError as error:
        said = str(error).rstrip(".")
        raise BadInput(f"{said}: `decant index {layout.folder}` does.") from error
