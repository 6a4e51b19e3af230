"""How sure we are: the bootstrap over users, for any statistic and for two systems at once.

Targets of one user are alike, so users are drawn, not targets. A draw is how often each user came
up, and a statistic is a function of that, `weights [S, U] → [S]`: the same few lines serve means,
AUC and calibration error, and a paired comparison is one function of one draw for both systems.

Shapes: `S` draws, `U` users, `n` targets or events.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.stats

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
UserStatistic = Callable[[Floats], Floats]
Alternative = Literal["two-sided", "less", "greater"]

MAX_NUMBERS_PER_BATCH = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number and where the bootstrap puts it; an end that is not asked for is infinite."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    values: Floats,
    user: Ints,
    *,
    confidence: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of a mean over targets, users drawn.

    Args:
        values: float [n], one per target, such as `ndcg(ranks, 10)`.
        user: int [n], whose target it is; any integers.
        confidence: two-sided.
        num_samples: bootstrap draws.
        seed: of the draws.
    """
    users, row = np.unique(user, return_inverse=True)
    return bootstrap_users(
        mean_of_users(values, row, len(users)),
        len(users),
        confidence=confidence,
        num_samples=num_samples,
        seed=seed,
    )


def paired_bootstrap(
    a: Floats,
    b: Floats,
    user: Ints,
    *,
    statistic: Literal["relative_loss", "difference"] = "relative_loss",
    alternative: Alternative = "two-sided",
    confidence: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of how two systems differ on the same targets, users drawn once for both.

    Args:
        a: float [n], the reference's number for each target.
        b: float [n], the candidate's.
        user: int [n], whose target it is.
        statistic: `relative_loss` is (mean a − mean b) / mean a, above 0 where the candidate is
            worse; `difference` is mean b − mean a.
        alternative: `less` gives the one-sided upper bound, `greater` the lower.
        confidence: of the interval, one- or two-sided.
        num_samples: bootstrap draws.
        seed: of the draws.
    """
    if not len(a) == len(b) == len(user):
        raise ValueError(f"a, b and user have {len(a)}, {len(b)} and {len(user)} entries")
    users, row = np.unique(user, return_inverse=True)
    mean_a, mean_b = (mean_of_users(values, row, len(users)) for values in (a, b))

    def compared(weights: Floats) -> Floats:
        before, after = mean_a(weights), mean_b(weights)
        return (before - after) / before if statistic == "relative_loss" else after - before

    return bootstrap_users(
        compared,
        len(users),
        alternative=alternative,
        confidence=confidence,
        num_samples=num_samples,
        seed=seed,
    )


def bootstrap_users(
    statistic: UserStatistic,
    num_users: int,
    *,
    alternative: Alternative = "two-sided",
    confidence: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
    numbers_per_draw: int = 0,
) -> Interval:
    """Percentile interval of any statistic of user weights.

    Args:
        statistic: from weights float64 [S, U] to float [S]; all ones is the data as it is.
        num_users: U.
        alternative: `less` gives the one-sided upper bound, `greater` the lower.
        confidence: of the interval, one- or two-sided.
        num_samples: bootstrap draws.
        seed: of the draws.
        numbers_per_draw: what `statistic` holds per draw beyond the weights; bounds memory.

    Returns:
        The value and its interval. Ends are infinite where nothing can be said: fewer than two
        users, or draws for which there is no number (an AUC without positives).

    Raises:
        ValueError: no users.
    """
    if num_users < 1:
        raise ValueError("user is empty: there is nothing to draw from")
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        warnings.catch_warnings(category=scipy.stats.DegenerateDataWarning, action="ignore"),
    ):
        value = float(statistic(np.ones((1, num_users)))[0])
        if num_users < 2:
            return Interval(value=value, low=-np.inf, high=np.inf)

        def of_draws(drawn: Ints, axis: int) -> Floats:
            del axis  # always the last
            drawn = np.atleast_2d(drawn)
            into = drawn + num_users * np.arange(len(drawn))[:, None]
            counts = np.bincount(into.ravel(), minlength=drawn.size)
            return statistic(counts.reshape(drawn.shape).astype(np.float64))

        # Percentile, not BCa: its jackknife is a draw per user, thousands more for no bias to mend.
        drawn = scipy.stats.bootstrap(
            (np.arange(num_users),),
            of_draws,
            n_resamples=num_samples,
            batch=max(1, MAX_NUMBERS_PER_BATCH // max(num_users, numbers_per_draw)),
            vectorized=True,
            confidence_level=confidence,
            alternative=alternative,
            method="percentile",
            rng=seed,
        )
    low, high = drawn.confidence_interval
    return Interval(
        value=value,
        low=-np.inf if np.isnan(low) else float(low),
        high=np.inf if np.isnan(high) else float(high),
    )


def mean_of_users(values: Floats, user_row: Ints, num_users: int) -> UserStatistic:
    """Mean over targets; values float [n], user_row int [n] in [0, U)."""
    if np.isnan(values).any():
        raise ValueError(f"values: {np.isnan(values).sum()} of {len(values)} are NaN")
    sums = np.bincount(user_row, values, minlength=num_users)
    counts = np.bincount(user_row, minlength=num_users)
    return lambda weights: (weights @ sums) / (weights @ counts)


def auc_of_users(labels: Bools, scores: Floats, user_row: Ints, num_users: int) -> UserStatistic:
    """AUC over all events, ties one half; labels bool [n], scores float [n], user_row int [n].

    Source: the Mann-Whitney form, each event weighted by the draws of its user.
    """
    if np.isnan(scores).any():
        raise ValueError(f"scores: {np.isnan(scores).sum()} of {len(scores)} are NaN")
    _, level = np.unique(scores, return_inverse=True)
    positives, negatives = (
        _user_by_group(np.ones(of.sum()), user_row[of], level[of], num_users, level.max() + 1)
        for of in (labels.astype(bool), ~labels.astype(bool))
    )

    def statistic(weights: Floats) -> Floats:
        positive, negative = weights @ positives, weights @ negatives  # [S, score levels]
        below = np.cumsum(negative, axis=1)
        wins = (positive * (below - negative / 2)).sum(1)
        return np.asarray(wins / (positive.sum(1) * below[:, -1]))

    return statistic


def gap_of_users(gaps: Floats, bins: Ints, user_row: Ints, num_users: int) -> UserStatistic:
    """Absolute mean of each bin's gaps, bins weighed by their events.

    Of labels less probabilities that is the expected calibration error. Bins are not cut anew for
    each draw: where they lie moves the error far less than who is drawn.

    Args:
        gaps: float [n], of each event.
        bins: int [n] from 0, as of `equal_mass_bins`.
        user_row: int [n] in [0, num_users), whose event it is.
        num_users: U.
    """
    gaps_UB = _user_by_group(gaps, user_row, bins, num_users, bins.max() + 1)
    counts_U = np.bincount(user_row, minlength=num_users)
    return lambda weights: np.abs(weights @ gaps_UB).sum(1) / (weights @ counts_U)


def _user_by_group(
    values: Floats, user_row: Ints, group: Ints, num_users: int, num_groups: int
) -> Any:
    """Sparse [U, groups] sums of the values."""
    return scipy.sparse.csr_array(
        (values.astype(np.float64), (user_row, group)), shape=(num_users, num_groups)
    )
