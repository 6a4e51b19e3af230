"""The log: what is shown on each visit, with which note or query, and what comes of it.

Slates come from a logging policy that mixes relevance, popularity and chance, and that never shows
the same thing to the same person twice.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptify.sources.job_market import contexts
from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.population import Bool, Float32, Int64, Members, stream
from promptify.sources.job_market.search import Search
from promptify.sources.job_market.truth import Truth
from promptify.sources.job_market.visits import JOBS, MAX_SLATE, PEOPLE, Slates

# The logging policy's mixture, and how sharply each part prefers the best.
_RELEVANT, _POPULAR, _ANYTHING = 0.8, 0.1, 0.1
_JOB_SHARPNESS, _PERSON_SHARPNESS, _POPULAR_SHARPNESS = 1.05, 0.9, 1.0
_SHARE_WITH_NOTE = 0.5
_SLATES_AT_ONCE = 1024


def _softmax(logits: Float32) -> Float32:
    odds: Float32 = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return odds


def _shown_share(relevance: Float32, appeal: Float32, open_: Bool, sharpness: float) -> Float32:
    """The logging policy: the chance of each thing to be drawn first, [n, I]; rows sum to 1."""
    closed = np.float32(-1e9)
    share: Float32 = _RELEVANT * _softmax(np.where(open_, sharpness * relevance, closed))
    popular = np.where(open_, (_POPULAR_SHARPNESS * appeal)[None, :], closed)
    share += _POPULAR * _softmax(popular)
    num_open = open_.sum(axis=1, keepdims=True, dtype=np.float32)
    # A member who has seen everything gets an empty slate rather than a closed thing.
    share += _ANYTHING / np.maximum(num_open, 1)
    share *= open_
    return share


def share_of_jobs(
    truth: Truth, utility: Float32, day: NDArray[np.float64], unseen: Bool
) -> Float32:
    """The chance of each job to be drawn first into a slate.

    Args:
        truth: for what is posted when and liked by all.
        utility: float32 [n, J], at that moment and with that note.
        day: float64 [n, 1].
        unseen: bool [n, J], not shown to this member before.

    Returns:
        float32 [n, J]; each row sums to 1.
    """
    open_ = unseen & (truth.jobs.posted_day[None, :] <= day)
    return _shown_share(utility, truth.jobs.quality, open_, _JOB_SHARPNESS)


def share_of_persons(search: Search, relevance: Float32, unseen: Bool) -> Float32:
    """The chance of each person to be drawn first into a slate, as in `share_of_jobs`."""
    return _shown_share(relevance, search.appeal, unseen, _PERSON_SHARPNESS)


def shown_probability(share: Float32, num_shown: Int64) -> Float32:
    """The chance of each thing to be among those drawn without replacement.

    Args:
        share: float32 [n, I], of being drawn first.
        num_shown: int64 [n], how many are drawn.

    Returns:
        float32 [n, I]; each row sums to `num_shown` to 1 %.

    Source: Rosén (1997), order sampling: each thing arrives at the rate of its share, the first
    are shown, and the moment when so many are there is taken as known.
    """
    low = np.zeros((len(share), 1), dtype=np.float32)
    high = np.full((len(share), 1), 1e4, dtype=np.float32)
    for _ in range(40):
        middle = (low + high) / 2
        enough = -np.expm1(-middle * share).sum(axis=1, keepdims=True) >= num_shown[:, None]
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    probability: Float32 = -np.expm1(-high * share)
    return probability


def _draw(rng: np.random.Generator, share: Float32, size: Int64) -> tuple[Int64, Int64]:
    """Draw slates without replacement: (row of the slate, thing) pairs, in order of the slates."""
    keys = rng.standard_exponential(share.shape, dtype=np.float32)
    # A closed thing never arrives, and the first arrivals are what is shown.
    keys = np.divide(keys, share, out=np.full_like(keys, np.inf), where=share > 0)
    first = np.argpartition(keys, MAX_SLATE - 1, axis=1)[:, :MAX_SLATE]
    by_arrival = np.take_along_axis(keys, first, axis=1)
    first = np.take_along_axis(first, by_arrival.argsort(axis=1), axis=1)
    taken = np.arange(MAX_SLATE) < size[:, None]
    taken &= np.isfinite(np.take_along_axis(keys, first, axis=1))
    return np.nonzero(taken)[0], first[taken]


def _in_rounds(user: Int64) -> list[Int64]:
    """Slates as rounds: the first of everybody, then the second of everybody, and so on.

    A big round comes in parts, so that memory does not grow with the number of members.
    """
    rank = np.arange(len(user)) - np.searchsorted(user, user)
    rounds = [np.flatnonzero(rank == turn) for turn in range(int(rank.max(initial=-1)) + 1)]
    return [
        some[start : start + _SLATES_AT_ONCE]
        for some in rounds
        for start in range(0, len(some), _SLATES_AT_ONCE)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Impressions:
    """What was shown and what came of it, one surface's slates. Legend: E events."""

    slate: Int64  # [E], row of the planned slates
    item: Int64  # [E], row of jobs, or of persons
    action: Int64  # [E], index into the surface's actions


def show_jobs(seed: int, truth: Truth, slates: Slates, notes: Int64) -> Impressions:
    """Fill the job slates and draw what their readers do.

    Args:
        seed: of the market.
        truth: utilities and action probabilities.
        slates: S planned slates.
        notes: int64 [S], the meaning of each slate's note, or `NO_NOTE`.
    """
    rng = stream(seed, "jobs.shown")
    rows = np.flatnonzero(slates.surface == JOBS)
    seen = np.zeros((len(truth.members), len(truth.jobs)), dtype=bool)
    every = np.arange(len(truth.jobs))[None, :]
    shown: list[tuple[Int64, Int64]] = []
    for turn in _in_rounds(slates.user[rows]):
        these = rows[turn]
        user, day = slates.user[these], slates.day[these]
        utility = truth.utility(user[:, None], every, day[:, None], notes[these][:, None])
        share = share_of_jobs(truth, utility, day[:, None], ~seen[user])
        row, item = _draw(rng, share, slates.size[these])
        seen[user[row], item] = True
        shown.append((these[row], item))
    slate = np.concatenate([part for part, _ in shown])
    item = np.concatenate([part for _, part in shown])
    order = np.argsort(slate, kind="stable")
    slate, item = slate[order], item[order]
    user = slates.user[slate]
    utility = truth.utility(user, item, slates.day[slate], notes[slate])
    probabilities = truth.action_probabilities(user, utility)
    return Impressions(slate=slate, item=item, action=_acts(seed, "jobs.acts", probabilities))


def show_people(seed: int, search: Search, slates: Slates) -> Impressions:
    """Fill the people slates, one query each in their order, and draw the grades."""
    rng = stream(seed, "people.shown")
    rows = np.flatnonzero(slates.surface == PEOPLE)
    seen = np.zeros((len(search.members), len(search.persons)), dtype=bool)
    # Nobody finds themselves.
    seen[search.persons, np.arange(len(search.persons))] = True
    every = np.arange(len(search.persons))[None, :]
    shown: list[tuple[Int64, Int64]] = []
    for turn in _in_rounds(slates.user[rows]):
        user = slates.user[rows[turn]]
        relevance = search.relevance(turn[:, None], every)
        share = share_of_persons(search, relevance, ~seen[user])
        row, item = _draw(rng, share, slates.size[rows[turn]])
        seen[user[row], item] = True
        shown.append((turn[row], item))
    query = np.concatenate([part for part, _ in shown])
    item = np.concatenate([part for _, part in shown])
    order = np.argsort(query, kind="stable")
    query, item = query[order], item[order]
    probabilities = search.action_probabilities(search.relevance(query, item))
    return Impressions(
        slate=rows[query], item=item, action=_acts(seed, "people.acts", probabilities)
    )


def draw_notes(seed: int, slates: Slates) -> Int64:
    """A meaning for about half of the job slates, `NO_NOTE` for the rest and for searches."""
    draw = stream(seed, "slates.notes").random((len(slates), 2))
    meaning = (draw[:, 1] * len(contexts.NOTE_MEANINGS)).astype(np.int64)
    noted = (draw[:, 0] < _SHARE_WITH_NOTE) & (slates.surface == JOBS)
    return np.where(noted, meaning, contexts.NO_NOTE)


def draw_logged_queries(seed: int, members: Members, slates: Slates) -> contexts.Queries:
    """One query per people slate: two fifths about the searcher's own trade, the rest about any."""
    user = slates.user[slates.surface == PEOPLE]
    draw = stream(seed, "queries.subject").random((len(user), 2))
    first = np.searchsorted(words.OCCUPATION_OF_SPECIALTY, members.occupation[user])
    own = first + (draw[:, 1] * 3).astype(np.int64)
    anything = (draw[:, 1] * len(words.SPECIALTIES)).astype(np.int64)
    specialty = np.where(draw[:, 0] < 0.4, own, anything)
    return contexts.draw_queries(seed, specialty, members.city[user])


def _acts(seed: int, name: str, probabilities: Float32) -> Int64:
    draw = stream(seed, name).random(len(probabilities))
    action: Int64 = (draw[:, None] >= np.cumsum(probabilities, axis=1)[:, :-1]).sum(axis=1)
    return action
