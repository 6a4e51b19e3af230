"""The generator's own probabilities, for the events and targets of a log that it wrote."""

import numpy as np
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.sources.job_market import contexts, log
from promptify.sources.job_market.population import Bool, Float32, Int64
from promptify.sources.job_market.search import Search
from promptify.sources.job_market.truth import Truth
from promptify.sources.job_market.visits import JOBS, PEOPLE, day_of
from promptify.splits import Targets

_TARGETS_AT_ONCE = 512


class JobMarketOracle:
    """What no model can beat, by the `Oracle` protocol.

    Args:
        interactions: the log; its items are all jobs, then all persons.
        truth: of the job surface.
        search: of the people surface.
    """

    def __init__(self, interactions: Interactions, truth: Truth, search: Search) -> None:
        self._log, self._truth, self._search = interactions, truth, search
        self._num_jobs = len(truth.jobs)
        rows_of_queries = {text: row for row, text in enumerate(search.queries.text)}
        # Notes mean something on the job surface, queries on the people surface.
        self._query_of = np.array([rows_of_queries.get(text, -1) for text in interactions.contexts])
        self._note_of = np.array(
            [
                contexts.NO_NOTE if text in rows_of_queries else contexts.note_meaning(text)
                for text in interactions.contexts
            ]
            + [contexts.NO_NOTE]  # context -1: none
        )

    def action_probabilities(self, events: Int64) -> Float32:
        """The probabilities each action was drawn from.

        Args:
            events: int64 [n], rows of `events`, all of one task.

        Returns:
            float32 [n, 3], columns in the order of the task's actions.

        Raises:
            ValueError: the events are of more than one task.
        """
        events = np.asarray(events)
        surfaces = np.unique(self._log.event_surface[events])
        if len(surfaces) > 1:
            names = ", ".join(self._log.surfaces[surface] for surface in surfaces)
            raise ValueError(f"events are of several tasks ({names}); ask for one task at a time.")
        item = self._log.event_item[events].astype(np.int64)
        context = self._log.event_context[events]
        if len(surfaces) and surfaces[0] == PEOPLE:
            relevance = self._search.relevance(self._query_of[context], item - self._num_jobs)
            return self._search.action_probabilities(relevance)
        user = self._log.event_user[events].astype(np.int64)
        day = day_of(self._log.event_timestamp[events])
        utility = self._truth.utility(user, item, day, self._note_of[context])
        return self._truth.action_probabilities(user, utility)

    def next_item_scores(self, targets: Targets) -> Float32:
        """The chance of each item to be shown in the target's slate and to end well.

        Items of another kind, not yet posted, or shown to this user before score 0.

        Args:
            targets: n targets.

        Returns:
            float32 [n, I].
        """
        scores = np.zeros((len(targets), self._log.num_items), dtype=np.float32)
        surface = self._log.event_surface[targets.first_event]
        for kind, columns, score in (
            (JOBS, slice(0, self._num_jobs), self._job_scores),
            (PEOPLE, slice(self._num_jobs, None), self._person_scores),
        ):
            rows = np.flatnonzero(surface == kind)
            for start in range(0, len(rows), _TARGETS_AT_ONCE):
                some = rows[start : start + _TARGETS_AT_ONCE]
                first = targets.first_event[some]
                unseen = ~self._seen(first)[:, columns]
                scores[some, columns] = score(first, targets.last_event[some] - first, unseen)
        return scores

    def _seen(self, first_event: Int64) -> Bool:
        """Which items the user was shown before: the policy's memory, not the target's history."""
        seen = np.zeros((len(first_event), self._log.num_items), dtype=bool)
        for row, end in enumerate(first_event):
            start = self._log.user_offsets[self._log.event_user[end]]
            seen[row, self._log.event_item[start:end]] = True
        return seen

    def _job_scores(self, first: Int64, size: Int64, unseen: Bool) -> NDArray[np.float32]:
        user = self._log.event_user[first].astype(np.int64)[:, None]
        day = day_of(self._log.event_timestamp[first])[:, None]
        note = self._note_of[self._log.event_context[first]][:, None]
        utility = self._truth.utility(user, np.arange(self._num_jobs)[None, :], day, note)
        share = log.share_of_jobs(self._truth, utility, day, unseen)
        good = self._truth.action_probabilities(user, utility)[..., 0]
        return log.shown_probability(share, size) * good

    def _person_scores(self, first: Int64, size: Int64, unseen: Bool) -> NDArray[np.float32]:
        query = self._query_of[self._log.event_context[first]][:, None]
        relevance = self._search.relevance(query, np.arange(len(self._search.persons))[None, :])
        user = self._log.event_user[first].astype(np.int64)[:, None]
        others = unseen & (self._search.persons[None, :] != user)
        share = log.share_of_persons(self._search, relevance, others)
        good = self._search.action_probabilities(relevance)[..., 0]
        return log.shown_probability(share, size) * good
