"""Numbers as functions of how often each held-out person was drawn.

So one bootstrap serves means, AUC, comparisons and the mean over seeds, whose people are others: a
market's all of them, of films those whom the seed picks, an eighth of them those of another seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from foundation.evaluation import UserStatistic

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A number.

    Attributes:
        of: how it follows from how often each held-out person was drawn.
        n: what it is a mean of.
        draws: numbers that a draw holds beyond the people; bounds memory.
    """

    of: UserStatistic
    n: int
    draws: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A row as the mean over seeds needs it: a number, or one without an interval."""

    told: Told | float
    num_users: int
    n: int
    cells: Mapping[str, Any]


def mean_of_seeds(some: Sequence[Kept]) -> Kept:
    """The mean of a row over seeds; its interval is over the people of all of them."""
    tolds = [one.told for one in some]
    cells, n = some[0].cells, sum(one.n for one in some)
    if not all(isinstance(told, Told) for told in tolds):
        return Kept(told=float(np.mean(tolds)), num_users=0, n=n, cells=cells)  # type: ignore[arg-type]
    parts = [(told.of, told.draws) for told in tolds if isinstance(told, Told)]
    ends = np.cumsum([one.num_users for one in some])

    def of(weights: Floats) -> Floats:
        shares = np.split(weights, ends[:-1], axis=1)
        each = [one(share) for (one, _), share in zip(parts, shares, strict=True)]
        return np.asarray(np.mean(each, axis=0))

    told = Told(of=of, n=n, draws=max(draws for _, draws in parts))
    return Kept(told=told, num_users=int(ends[-1]), n=n, cells=cells)


def in_order(
    score: Floats, worth: NDArray[Any], user: NDArray[Any]
) -> tuple[Floats, NDArray[np.int64]]:
    """Of each person's pairs of different worth, the share that a score orders so; ties are half.

    Args:
        score: float [n].
        worth: [n], numbers.
        user: int [n].

    Returns:
        The shares of those who have such pairs, and who they are.
    """
    order = np.argsort(user, kind="stable")
    found, whose = [], []
    for mine in np.split(order, np.flatnonzero(np.diff(user[order])) + 1):
        better = np.subtract.outer(worth[mine].astype(float), worth[mine]) > 0
        if better.any():
            told = np.sign(np.subtract.outer(score[mine], score[mine]))
            found.append(float((1 + told[better]).mean() / 2))
            whose.append(int(user[mine[0]]))
    return np.array(found), np.array(whose)


def expected_auc_of_users(
    chance: Floats, scores: Floats, user_row: NDArray[np.int64], num_users: int
) -> UserStatistic:
    """AUC where each event is good with a known chance, ties one half.

    Args:
        chance: float [n] in 0..1.
        scores: float [n].
        user_row: int64 [n] in [0, U).
        num_users: U.
    """
    _, level = np.unique(scores, return_inverse=True)
    shape = num_users, int(level.max()) + 1
    good, other = (
        scipy.sparse.csr_array((part, (user_row, level)), shape=shape)
        for part in (chance, 1 - chance)
    )

    def statistic(weights: Floats) -> Floats:
        positive, negative = weights @ good, weights @ other
        below = np.cumsum(negative, axis=1)
        wins = (positive * (below - negative / 2)).sum(1)
        return np.asarray(wins / (positive.sum(1) * below[:, -1]))

    return statistic
