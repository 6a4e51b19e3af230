"""What could be known of somebody in the generated job market: the best that any model could rank.

A profile leaves open what its member really wants, and what they were shown and did narrows it
down. The generator says how, so that the chance of each job to be shown next and to end well can be
worked out for somebody who knows the generator and reads the profile and so many events: hidden
sides are drawn as the generator draws them, each counts by how well it explains the events (the
sequential draws of the slates and the actions, exactly), and chances are means over them. Beside
the oracle, which knows the hidden side, that tells what reading can gain and where.

Read are the profile's facts and the slates of jobs with their notes; what searches for people show
of the searcher, and the hint at urgency that some profiles have, are left out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from promptify.interactions import Interactions
from promptify.sources.job_market import SCHEMA, job_market_with_truth, visits
from promptify.sources.job_market.contexts import NO_NOTE, note_meaning
from promptify.sources.job_market.log import share_of_jobs, shown_probability
from promptify.sources.job_market.population import members_alike
from promptify.sources.job_market.truth import Truth
from promptify.splits import Targets

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

JOBS = "jobs"
"""The surface that is read."""
DRAWS = 1000
"""How many hidden sides are drawn for each request."""


class IdealReader:
    """Reads profiles and events as well as they can be read. Legend: J jobs, D draws.

    Args:
        log: of a market.
        truth: of the same market.
        draws: hidden sides for each request; too few make the reader worse, never better than it
            can be.
        seed: of them.
    """

    def __init__(
        self, log: Interactions, truth: Truth, *, draws: int = DRAWS, seed: int = 0
    ) -> None:
        self._log, self._truth, self._draws, self._seed = log, truth, draws, seed
        self._surface = log.surfaces.index(JOBS)
        first_action = log.actions.index("apply")
        self._num_jobs = len(truth.jobs)
        self._action_E = log.event_action.astype(np.int64) - first_action
        self._note_C = np.full(len(log.contexts) + 1, NO_NOTE)  # context -1: none
        # On the other surface contexts are queries.
        for context in np.unique(log.event_context[log.event_surface == self._surface]):
            if context >= 0:
                self._note_C[context] = note_meaning(log.contexts[context])

    def scores(self, targets: Targets, lengths: Sequence[int | None]) -> dict[int | None, Float32]:
        """The chance of each item to be shown in a target's slate and applied to.

        Args:
            targets: n slates of jobs.
            lengths: how many of the newest events of the history are read, and what the slates that
                they are of began with; None for all.

        Returns:
            By length float32 [n, I]; zero for what is no job.

        Raises:
            ValueError: a target is a search.
        """
        if not self._is_job(targets.first_event).all():
            raise ValueError("targets hold searches for people, and slates of jobs alone are read.")
        found = {
            length: np.zeros((len(targets), self._log.num_items), np.float32) for length in lengths
        }
        for row in tqdm(range(len(targets)), desc="ideal reader"):
            target = targets[np.array([row])]
            first, last = int(target.first_event[0]), int(target.last_event[0])
            history = np.arange(int(target.history_start[0]), int(target.history_end[0]))
            truth = self._alike(int(target.user[0]), first)
            chance_DJ = self._chances(truth, first, last - first)
            explained_ED = self.explained(truth, history)
            for length in lengths:
                read = (
                    explained_ED
                    if length is None
                    else explained_ED[max(0, len(history) - length) :]
                )
                weight_D = _weights(read.sum(axis=0))
                found[length][row, : self._num_jobs] = weight_D @ chance_DJ
        return found

    def explained(self, truth: Truth, history: Int64) -> Float64:
        """Log-likelihood of events if it were those people's, float64 [E, D]; 0 of searches'.

        Slate mates stand in the order in which they were drawn without replacement.

        Args:
            truth: of D people.
            history: int64 [E], rows of one person's events.
        """
        log = self._log
        found_ED = np.zeros((len(history), self._draws))
        place = np.flatnonzero(self._is_job(history))
        slate = log.event_slate[history[place]]
        users_D1 = np.arange(self._draws)[:, None]
        for mates in np.split(place, np.flatnonzero(np.diff(slate)) + 1):
            if not len(mates):
                continue
            events = history[mates]
            item = log.event_item[events].astype(np.int64)
            utility_DJ, share_DJ = self._policy(truth, int(events[0]))
            share_Dm = share_DJ[:, item].astype(np.float64)
            drawn_before_Dm = np.cumsum(share_Dm, axis=1) - share_Dm
            shown_Dm = share_Dm / np.maximum(1 - drawn_before_Dm, 1e-9)
            acts_DmA = truth.action_probabilities(users_D1, utility_DJ[:, item])
            acted_Dm = np.take_along_axis(
                acts_DmA, self._action_E[events][None, :, None], axis=2
            ).squeeze(2)
            found_ED[mates] = (np.log(shown_Dm) + np.log(acted_Dm)).T
        return found_ED

    def _alike(self, user: int, first_event: int) -> Truth:
        """The market as it is for people who say what somebody says; drawn anew for each target."""
        seed = self._seed * self._log.num_events + first_event
        alike = members_alike(self._truth.members, user, count=self._draws, seed=seed)
        return Truth(alike, self._truth.jobs)

    def _chances(self, truth: Truth, first_event: int, size: int) -> Float32:
        """Of each job, for each draw, to be shown in a slate and applied to, float32 [D, J]."""
        utility_DJ, share_DJ = self._policy(truth, first_event)
        shown_DJ = shown_probability(share_DJ, np.full(self._draws, size))
        apply_DJ = truth.action_probabilities(np.arange(self._draws)[:, None], utility_DJ)[..., 0]
        return np.asarray(shown_DJ * apply_DJ, np.float32)

    def _policy(self, truth: Truth, first_event: int) -> tuple[Float32, Float32]:
        """Utility and share of each job when a slate is filled, each float32 [D, J]."""
        log = self._log
        users_D1, jobs_1J = np.arange(self._draws)[:, None], np.arange(self._num_jobs)[None, :]
        day_D1 = np.full((self._draws, 1), visits.day_of(log.event_timestamp[first_event]))
        note_D1 = np.full((self._draws, 1), self._note_C[log.event_context[first_event]])
        utility_DJ = truth.utility(users_D1, jobs_1J, day_D1, note_D1)
        unseen_J = np.ones(self._num_jobs, np.bool_)
        before = np.arange(log.user_offsets[log.event_user[first_event]], first_event)
        unseen_J[log.event_item[before[self._is_job(before)]]] = False
        unseen_DJ = np.broadcast_to(unseen_J, utility_DJ.shape)
        return utility_DJ, share_of_jobs(truth, utility_DJ, day_D1, unseen_DJ)

    def _is_job(self, events: Int64) -> Bool:
        is_job: Bool = self._log.event_surface[events] == self._surface
        return is_job


def truth_of(log: Interactions, *, seed: int) -> Truth | None:
    """The truth behind a log, or None where the generator did not make it with this seed.

    A market with more or fewer searches than `job_market` gives by itself is not recognised.

    Args:
        log: any.
        seed: of the market that it may be.
    """
    if log.schema != SCHEMA:
        return None
    is_job = log.event_surface == log.surfaces.index(JOBS)
    made, truth, _ = job_market_with_truth(
        seed=seed,
        num_members=log.num_users,
        num_jobs=int((log.item_kinds == "job").sum()),
        num_impressions=int(is_job.sum()),
    )
    again = made.interactions
    is_same = all(
        np.array_equal(getattr(log, name), getattr(again, name))
        for name in ("user_ids", "item_ids", "event_user", "event_item", "event_action")
    )
    return truth if is_same else None


def _weights(log_likelihood_D: Float64) -> Float32:
    weight_D = np.exp(log_likelihood_D - log_likelihood_D.max())
    return np.asarray(weight_D / weight_D.sum(), np.float32)
