"""Rows of quality against the length of a history: of one run, or of the mean of several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.histories import POLICIES, Policy
from benchmarks.measured import Measured
from decant.measure import Answers
from foundation.evaluation import (
    Interval,
    UserStatistic,
    bootstrap_users,
    mean_of_users,
    ndcg,
    paired_bootstrap,
)

Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """One point of a curve.

    Attributes:
        policy: what of a history is told.
        events: so many of it; None where tokens limit it.
        tokens: of the whole prompt; None where events limit it.
        scaled: whether positions are set to that length; only beyond the trained.
    """

    policy: Policy
    events: int | None = None
    tokens: int | None = None
    scaled: bool = False

    @property
    def name(self) -> str:
        """A short name without spaces."""
        unit = f"{self.events}-events" if self.tokens is None else f"{self.tokens}-tokens"
        return f"{self.policy}-{unit}" + "-scaled" * self.scaled


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What was said at one length, beside what happened.

    Attributes:
        answers: ranks and probabilities.
        read_tokens: int64 [n], positions of each prompt that was read.
    """

    answers: Answers
    read_tokens: NDArray[np.int64]


AtLengths = dict[tuple[str, str], dict[Length, Answered]]
"""What was said at each length, by the unit of the lengths and who was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthRows:
    """What the rows of one model have in common at every length.

    Attributes:
        measured: where they go.
        task: of the rows.
        model: its name.
        params: of its body.
        split: its name.
        trained_tokens: longest prompt that it was trained on.
        reserved_tokens: of that, kept for the question and its answer.
        seed: of its training.
    """

    measured: Measured
    task: str
    model: str
    params: int
    split: str
    trained_tokens: int
    reserved_tokens: int
    seed: int | Literal["mean"]

    def write(self, at_lengths: AtLengths) -> None:
        """Rows of what was answered, and where it is best."""
        for (unit, who), answered in at_lengths.items():
            for length, one in answered.items():
                self._quality(length, one, who)
            for policy in POLICIES:
                some = {one: part for one, part in answered.items() if one.policy == policy}
                self._peak(some, unit, who)

    def kind(self, length: Length, read_tokens: NDArray[np.int64]) -> str:
        """Whether a length was trained on; else how its positions were told.

        Args:
            length: what was asked for.
            read_tokens: int64 [n], positions of each prompt that was read.
        """
        longest = length.tokens or int(read_tokens.max()) + self.reserved_tokens
        if longest <= self.trained_tokens:
            return "trained"
        return "scaled" if length.scaled else "plain"

    def split_of(self, kind: str, who: str) -> str:
        """The name of a split in the rows, by a length's `kind` and who was asked."""
        how = "trained length" if kind == "trained" else f"extrapolated, {kind} positions"
        return f"{self.split}, {who}, {how}"

    def add(self, interval: Interval, length: Length, **cells: object) -> None:
        """Add a row; see `Measured.add`."""
        self.measured.add(
            task=self.task,
            model=f"{self.model}, {length.policy}",
            params=self.params,
            context_tokens=length.tokens or self.trained_tokens,
            history_events=length.events,
            seed=self.seed,
            interval=interval,
            **cells,
        )

    def _quality(self, length: Length, answered: Answered, who: str) -> None:
        split = self.split_of(self.kind(length, answered.read_tokens), who)
        for metric, (interval, n) in answered.answers.metrics().items():
            if metric in ("ndcg@10", "hr@10", "auc"):
                self.add(interval, length, split=split, metric=metric, n=n)
        tokens = answered.read_tokens
        interval = Interval(value=float(tokens.mean()), low=-np.inf, high=np.inf)
        self.add(interval, length, split=split, metric="read_tokens", n=len(tokens))

    def _peak(self, answered: dict[Length, Answered], unit: str, who: str) -> None:
        """Where quality is best, and how much better than at the longest length.

        Once among trained lengths alone, and once more with each way of going beyond them.
        """
        kinds = {one: self.kind(one, part.read_tokens) for one, part in answered.items()}
        for kind in dict.fromkeys(("trained", *kinds.values())):
            lengths = [one for one in answered if kinds[one] in ("trained", kind)]
            values = {one: ndcg(_rank_of(answered[one]), 10) for one in lengths}
            user = answered[lengths[0]].answers.user
            users, row = np.unique(user, return_inverse=True)
            means = [mean_of_users(values[one], row, len(users)) for one in lengths]
            size_L = np.array([getattr(one, unit) for one in lengths], np.float64)
            place = partial(_place_of_best, means=means, size_L=size_L)
            peak = bootstrap_users(place, len(users))
            at = lengths[int(np.flatnonzero(size_L == peak.value)[0])]
            split = self.split_of("trained", who)
            if kind != "trained":
                split = f"{self.split}, {who}, trained and {kind} positions"
            every = Length(policy=at.policy)
            self.add(peak, every, split=split, metric=f"peak_{unit}", n=len(user))
            above = paired_bootstrap(values[lengths[-1]], values[at], user, statistic="difference")
            metric = f"ndcg@10_peak_vs_longest_{unit}"
            self.add(above, every, split=split, metric=metric, n=len(user))
            # What lies beyond the training, against the longest that does not, target by target.
            last = [one for one in lengths if kinds[one] == "trained"][-1]
            for one in lengths:
                if kinds[one] != "trained":
                    beyond = paired_bootstrap(
                        values[last], values[one], user, statistic="difference"
                    )
                    split = self.split_of(kind, who)
                    metric = "ndcg@10_vs_trained"
                    self.add(beyond, one, split=split, metric=metric, n=len(user))


def joined(seeds: Sequence[AtLengths]) -> AtLengths:
    """What was answered under several seeds, of people and lengths that every one of them has.

    Those of a generated market are its own.
    """
    common = {
        key: [n for n in lengths if all(n in one.get(key, {}) for one in seeds)]
        for key, lengths in seeds[0].items()
    }
    return {
        key: {n: _pooled([one[key][n] for one in seeds]) for n in lengths}
        for key, lengths in common.items()
        if lengths
    }


def _pooled(parts: Sequence[Answered]) -> Answered:
    """Answers under several seeds, one after the other; no probabilities.

    An AUC over all of them would hold what one model says against what another says.
    """
    answers = [part.answers for part in parts]
    return Answered(
        answers=Answers(
            user=np.concatenate([one.user for one in answers]),
            rank=np.concatenate([_rank_of(part) for part in parts]),
            is_positive_target=np.concatenate([one.is_positive_target for one in answers]),
            action_user=np.concatenate([one.action_user for one in answers]),
            action_positive=np.concatenate([one.action_positive for one in answers]),
            action_probability=None,
        ),
        read_tokens=np.concatenate([part.read_tokens for part in parts]),
    )


def _rank_of(answered: Answered) -> NDArray[np.int64]:
    rank = answered.answers.rank
    assert rank is not None
    return rank


def _place_of_best(
    weights: NDArray[np.floating[Any]], *, means: Sequence[UserStatistic], size_L: Float64
) -> Float64:
    """The size whose mean is best in each draw, float64 [S]; the smallest of equal ones."""
    found: Float64 = size_L[np.argmax([mean(weights) for mean in means], axis=0)]
    return found
