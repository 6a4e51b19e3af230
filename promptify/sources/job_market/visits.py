"""Who comes to the platform when: members' visits as empty slates, to be filled by `log`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptify.sources.job_market.population import (
    NUM_DAYS,
    SECONDS_PER_DAY,
    START,
    Int64,
    Members,
    stream,
)
from promptify.sources.job_market.search import searcher_appetite

SURFACES = ("jobs", "people")
JOBS, PEOPLE = range(2)

# How members come to the platform: some never, some for one short slate of one or two jobs.
SHARE_WITHOUT_EVENTS = 0.06
SHARE_WITH_ONE_OR_TWO_EVENTS = 0.08
MIN_SLATE, MEAN_SLATE, MAX_SLATE = 4, 5, 6
MAX_SLATES = 60
_MIN_GAP_SECONDS = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Slates:
    """What is shown together, by member and time. Legend: S slates."""

    user: Int64  # [S]
    surface: Int64  # [S], index into `SURFACES`
    timestamp: Int64  # [S], seconds
    size: Int64  # [S]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def day(self) -> NDArray[np.float64]:
        """Days since the log's start."""
        return day_of(self.timestamp)


def day_of(timestamp: Int64) -> NDArray[np.float64]:
    """Days since the log's start of times in seconds."""
    return (timestamp - START) / SECONDS_PER_DAY


def _apportion(
    rng: np.random.Generator, appetite: NDArray[np.floating], total: int, most: int
) -> Int64:
    """Share out `total` slates by appetite, at most `most` to anyone."""
    counts = np.zeros(len(appetite), dtype=np.int64)
    while (left := total - counts.sum()) > 0:
        weight = np.where(counts < most, appetite, 0.0)
        if not weight.any():
            raise ValueError(
                f"{total} slates do not fit {len(appetite)} members with at most {most} each; "
                "lower num_impressions, or raise num_members or num_jobs."
            )
        counts += np.bincount(
            rng.choice(len(appetite), size=left, p=weight / weight.sum()), minlength=len(appetite)
        )
        counts = np.minimum(counts, most)
    return counts


def _sizes(rng: np.random.Generator, num_slates: int, total: int) -> Int64:
    """Sizes of 4 to 6 that add up to `total`; the last slates bend where chance did not hit it."""
    sizes = rng.integers(MIN_SLATE, MAX_SLATE + 1, size=num_slates)
    for row in range(num_slates):
        gap = total - int(sizes.sum())
        if gap == 0:
            break
        sizes[row] = np.clip(sizes[row] + gap, MIN_SLATE, MAX_SLATE)
    return sizes


def plan_slates(
    seed: int, members: Members, *, num_impressions: int, num_searches: int, num_jobs: int
) -> Slates:
    """Who comes when: heavy-tailed numbers of slates, spread over the half year.

    Args:
        seed: of the market.
        members: M members.
        num_impressions: jobs shown in all.
        num_searches: slates of people shown in all.
        num_jobs: size of the catalogue, which bounds how many slates one member can see.

    Raises:
        ValueError: so few members and jobs cannot take so many impressions.
    """
    num_members = len(members)
    warmth = stream(seed, "member.warmth").random(num_members)
    cold = warmth < SHARE_WITHOUT_EVENTS
    barely = ~cold & (warmth < SHARE_WITHOUT_EVENTS + SHARE_WITH_ONE_OR_TWO_EVENTS)
    appetite = np.exp(1.1 * stream(seed, "member.appetite").standard_normal(num_members))
    appetite = np.where(cold | barely, 0.0, appetite)

    short = stream(seed, "slates.short").integers(1, 3, size=num_members)[barely]
    regular = max(num_impressions - int(short.sum()), 0)
    num_regular = max(round(regular / MEAN_SLATE), 1)
    most = min(MAX_SLATES, max(num_jobs // (2 * MAX_SLATE), 1))
    counts = (~cold & ~barely).astype(np.int64)
    if counts.sum() < num_regular:
        rng = stream(seed, "slates.jobs")
        counts += _apportion(rng, appetite, num_regular - int(counts.sum()), most - 1)
    else:
        counts[np.cumsum(counts) > num_regular] = 0
    searcher = searcher_appetite(members) * appetite
    searches = _apportion(stream(seed, "slates.people"), searcher, num_searches, MAX_SLATES)

    user = np.repeat(
        np.tile(np.arange(num_members), 2), np.concatenate([counts + barely, searches])
    )
    surface = np.repeat([JOBS, PEOPLE], [counts.sum() + barely.sum(), searches.sum()])
    size = np.empty(len(user), dtype=np.int64)
    is_short = (surface == JOBS) & barely[user]
    size[is_short] = short
    is_regular = (surface == JOBS) & ~is_short
    size[is_regular] = _sizes(stream(seed, "slates.sizes"), int(is_regular.sum()), regular)
    size[surface == PEOPLE] = stream(seed, "slates.people.sizes").integers(
        MIN_SLATE, MAX_SLATE + 1, size=int(searches.sum())
    )

    # The busiest have been there longest; cold members come at any time.
    joined = stream(seed, "member.joined").random(num_members) * 0.85 / (1 + counts / 8)
    when = stream(seed, "slates.when").random(len(user))
    day = NUM_DAYS * (joined[user] + (1 - joined[user]) * when)
    order = np.lexsort((day, user))
    user, day = user[order], day[order]
    seconds = START + np.floor(day * SECONDS_PER_DAY).astype(np.int64)
    return Slates(
        user=user,
        surface=surface[order],
        timestamp=_apart(user, seconds),
        size=size[order],
    )


def _apart(user: Int64, seconds: Int64) -> Int64:
    """Move slates of one member, in order of time, to at least ten minutes from each other."""
    rank = np.arange(len(user)) - np.searchsorted(user, user)
    lane = user * (4 * NUM_DAYS * SECONDS_PER_DAY) - rank * _MIN_GAP_SECONDS
    return np.maximum.accumulate(seconds + lane) - lane
