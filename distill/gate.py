"""The gate: may a smaller model take the place of the larger one above it?

Each metric has a tolerance. The loss is the candidate's against the reference's on the same
targets, and its bound the one-sided paired bootstrap bound over users:

- **pass**: the bound is within the tolerance;
- **fail**: the loss itself is above it (take a smaller step and try again);
- **undecided**: the loss is within, the bound is not (measure more targets, or sign a waiver).

Calibration errors of two models are of the same bins, those of the mean of what both say. A bin of
few events hides a rise behind its luck, so the bound adds what luck may hide; but never more than
the two models' difference there.

The rung fails with any metric, passes with all, and is undecided otherwise.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from foundation.evaluation import (
    Interval,
    UserStatistic,
    auc_of_users,
    bootstrap_users,
    equal_mass_bins,
    gap_of_users,
    mean_of_users,
)
from promptify.whole import write_whole

Metric = Literal["auc", "ndcg@10", "ece", "latency_ms"]
Status = Literal["pass", "fail", "undecided"]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

FEWEST_PEOPLE = 100
"""That a bound may rest on: of fewer it is too sure.

Of planted losses of 2 % 16 % passed a gate of 1 % on 30 people of one target each, 9 % on 50, 7 %
on 100 and 4 % on 200 (300 draws each), since few of them have a target that decides.
"""

_NUM_BINS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How much of a metric may be lost.

    Attributes:
        metric: `auc` and `ndcg@10` lose by falling, `ece` and `latency_ms` by rising.
        max_loss: the largest loss that is let through, at least 0.
        kind: `relative` to the reference's number, or `absolute`.
    """

    metric: Metric
    max_loss: float
    kind: Literal["relative", "absolute"]

    def __post_init__(self) -> None:
        if self.metric not in ("auc", "ndcg@10", "ece", "latency_ms"):
            raise ValueError(f"metric is {self.metric!r}; use auc, ndcg@10, ece or latency_ms")
        if self.kind not in ("relative", "absolute"):
            raise ValueError(f"kind is {self.kind!r}; use 'relative' or 'absolute'")
        if not 0 <= self.max_loss < np.inf:
            raise ValueError(f"max_loss is {self.max_loss}; use a number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """What the gate asks.

    Attributes:
        tolerances: one per metric; other metrics are not looked at.
        confidence: of the one-sided bound.
        num_samples: bootstrap draws.
        seed: of the draws.
    """

    tolerances: tuple[Tolerance, ...]
    confidence: float = 0.95
    num_samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        metrics = [tolerance.metric for tolerance in self.tolerances]
        if not metrics or len(set(metrics)) < len(metrics):
            raise ValueError(
                f"tolerances are for {metrics}; give each metric one, and at least one"
            )
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; use a share in (0.5, 1)")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; use at least 1")

    @classmethod
    def with_max_loss(
        cls,
        max_loss: float = 0.01,
        *,
        max_miscalibration: float = 0.005,
        max_slowdown: float = 0.0,
        num_looks: int = 1,
    ) -> Self:
        """AUC and NDCG@10 may lose this share; calibration .005; latency nothing.

        A rung is held against the one above with 1 %, and against the top of the ladder with 3 %.
        Bounds are those of 95 % together.

        Args:
            max_loss: share of AUC and of NDCG@10.
            max_miscalibration: by which the calibration error may rise.
            max_slowdown: share of the latency, where timing itself cannot tell less apart.
            num_looks: as of `confidence_of_each`.
        """
        return cls(
            confidence=confidence_of_each(num_looks),
            tolerances=(
                Tolerance(metric="auc", max_loss=max_loss, kind="relative"),
                Tolerance(metric="ndcg@10", max_loss=max_loss, kind="relative"),
                Tolerance(metric="ece", max_loss=max_miscalibration, kind="absolute"),
                Tolerance(metric="latency_ms", max_loss=max_slowdown, kind="relative"),
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measurements:
    """What one model did, target by target; leave out what was not measured.

    Attributes:
        target_user: int [n], whose target it is.
        target_ndcg: float [n], NDCG@10 of each target.
        event_user: int [m], who acted.
        event_label: bool [m], whether the action was positive.
        event_probability: float [m] in [0, 1], of a positive action.
        event_score: float [m], what orders the events, where probabilities of different events
            were not made alike; `event_probability` when None.
        latency_ms: milliseconds per request, measured in turn with the other model's on the same
            requests.
        p99_ms: milliseconds that one request in a hundred takes longer than; the gate does not look
            at it.
    """

    target_user: Ints | None = None
    target_ndcg: Floats | None = None
    event_user: Ints | None = None
    event_label: npt.NDArray[np.bool_] | None = None
    event_probability: Floats | None = None
    event_score: Floats | None = None
    latency_ms: float | None = None
    p99_ms: float | None = None

    def __post_init__(self) -> None:
        if self.latency_ms is not None and not 0 < self.latency_ms < np.inf:
            raise ValueError(f"latency_ms is {self.latency_ms}; give milliseconds above 0")
        scores = () if self.event_score is None else ("event_score",)
        for group in (
            ("target_user", "target_ndcg"),
            ("event_user", "event_label", "event_probability", *scores),
        ):
            given = {name: getattr(self, name) for name in group}
            lengths = {name: None if a is None else len(a) for name, a in given.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"these belong together, but have the lengths {lengths}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricVerdict:
    """How one metric came through.

    Attributes:
        metric: which.
        status: of this metric alone.
        tolerance: the largest loss that is let through.
        kind: what losses are relative to.
        reference: the reference's number, a calibration error in the bins that both share; None
            where it was not measured.
        candidate: the candidate's number likewise.
        loss: above 0 where the candidate is worse; None where there is no number.
        bound: one-sided upper bound of the loss; None where there is none.
        reason: the status in words.
    """

    metric: Metric
    status: Status
    tolerance: float
    kind: Literal["relative", "absolute"]
    reference: float | None
    candidate: float | None
    loss: float | None
    bound: float | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiver:
    """A signed exception for a metric that is undecided.

    Attributes:
        metric: which.
        loss: the loss that is accepted, not below the metric's bound.
        reason: why more targets would not do.
        bought: what the loss buys ("375 M instead of 600 M parameters").
    """

    metric: Metric
    loss: float
    reason: str
    bought: str

    def __post_init__(self) -> None:
        # As they stand in a file that was written by hand.
        for name in ("metric", "reason", "bought"):
            said: object = getattr(self, name)
            if not isinstance(said, str) or not said.strip():
                what = "empty" if said is None or isinstance(said, str) else f"{said!r}, no text"
                raise ValueError(f"{name} is {what}: a waiver says why, and what was bought")
        loss: object = self.loss
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
            raise ValueError(f"loss is {loss!r}; give the number that is accepted, such as 0.02")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateVerdict:
    """The gate's answer, with everything it rests on; JSON there and back.

    Attributes:
        status: of the rung; a waiver does not change it.
        metrics: one per tolerance.
        confidence: of the bounds.
        waivers: at most one per metric.
    """

    status: Status
    metrics: tuple[MetricVerdict, ...]
    confidence: float
    waivers: tuple[Waiver, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the rung may be used: every metric passed or was waived."""
        waived = {waiver.metric for waiver in self.waivers}
        return all(one.status == "pass" or one.metric in waived for one in self.metrics)

    def waive(self, waiver: Waiver) -> Self:
        """Return the verdict with a waiver on it.

        Raises:
            ValueError: the metric is not undecided, is waived already, or its bound is above the
                loss that the waiver accepts.
        """
        undecided = {one.metric: one for one in self.metrics if one.status == "undecided"}
        if waiver.metric not in undecided:
            raise ValueError(
                f"{waiver.metric} is not undecided, so there is nothing to waive; a metric that "
                "fails needs a smaller step"
            )
        if waiver.metric in {given.metric for given in self.waivers}:
            raise ValueError(f"{waiver.metric} is waived already")
        bound = undecided[waiver.metric].bound
        if bound is not None and waiver.loss < bound:
            raise ValueError(
                f"loss is {waiver.loss}, but {waiver.metric} may have lost {bound:.4f}; accept "
                "that or measure more targets"
            )
        return replace(self, waivers=(*self.waivers, waiver))

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        write_whole(Path(path), text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no verdict.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            metrics = tuple(MetricVerdict(**one) for one in content.pop("metrics"))
            waivers = tuple(Waiver(**one) for one in content.pop("waivers"))
            return cls(metrics=metrics, waivers=waivers, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a gate's verdict ({error})") from error


def confidence_of_each(num_looks: int) -> float:
    """Of the bound of one candidate, so that a loss above a tolerance passes in 5 % of cases.

    Args:
        num_looks: candidates of which any that passes is taken, as a ladder takes what repair left
            or what teaching made of it. Luck has as many chances, and each gets its share of the
            5 % (Bonferroni).
    """
    return 1 - 0.05 / num_looks


def verdict(
    reference: Measurements, candidate: Measurements, config: GateConfig | None = None
) -> GateVerdict:
    """Hold a candidate against a reference.

    A metric that either side lacks, or that has no number (one class only, a reference of 0), is
    undecided. Latency is one number a side, so its bound is its loss.

    Args:
        reference: the rung above, or the top of the ladder.
        candidate: the new rung, measured on the same targets in the same order.
        config: default `GateConfig.with_max_loss(0.01)`.

    Raises:
        ValueError: the two were not measured on the same targets.

    Source: ours; a non-inferiority test, as in Piaggio et al., JAMA 2012.
    """
    config = config or GateConfig.with_max_loss()
    for name in ("target_user", "event_user", "event_label"):
        before, after = getattr(reference, name), getattr(candidate, name)
        if before is not None and after is not None and not np.array_equal(before, after):
            raise ValueError(f"{name} differs: measure both models on the same targets in order")
    metrics = tuple(
        _metric_verdict(reference, candidate, tolerance, config) for tolerance in config.tolerances
    )
    statuses = [one.status for one in metrics]
    overall: Status = "undecided"
    if "fail" in statuses:
        overall = "fail"
    elif all(status == "pass" for status in statuses):
        overall = "pass"
    return GateVerdict(status=overall, metrics=metrics, confidence=config.confidence)


def _metric_verdict(
    reference: Measurements, candidate: Measurements, tolerance: Tolerance, config: GateConfig
) -> MetricVerdict:
    bins = _shared_bins(reference, candidate) if tolerance.metric == "ece" else None
    before = _per_user(reference, tolerance.metric, bins)
    after = _per_user(candidate, tolerance.metric, bins)
    rises_with_quality = tolerance.metric in ("auc", "ndcg@10")

    def lost(weights: Floats) -> Floats:
        assert before is not None
        assert after is not None
        was, now = before.statistic(weights), after.statistic(weights)
        difference = was - now if rises_with_quality else now - was
        return difference / was if tolerance.kind == "relative" else difference

    loss = bound = None
    if before is not None and after is not None:

        def interval_of(statistic: UserStatistic) -> Interval:
            return bootstrap_users(
                statistic,
                before.num_users,
                alternative="less",
                confidence=config.confidence,
                num_samples=config.num_samples,
                seed=config.seed,
                numbers_per_draw=before.num_numbers,
            )

        interval = interval_of(lost)
        loss, bound = _number(interval.value), _number(interval.high)
        if bins is not None:
            moved = interval_of(_moved(reference, candidate, bins))
            bound = _number(min(interval.high + _luck(reference, bins), moved.high))
    few = before is not None and before.num_users < FEWEST_PEOPLE
    status, reason = _judge(
        loss, bound, tolerance.max_loss, is_sure=tolerance.metric == "latency_ms" or not few
    )
    return MetricVerdict(
        metric=tolerance.metric,
        status=status,
        tolerance=tolerance.max_loss,
        kind=tolerance.kind,
        reference=None if before is None else before.value(),
        candidate=None if after is None else after.value(),
        loss=loss,
        bound=bound,
        reason=reason,
    )


def _judge(
    loss: float | None, bound: float | None, max_loss: float, *, is_sure: bool
) -> tuple[Status, str]:
    if loss is None:
        return "undecided", "no number on one side or both: measure it"
    if loss > max_loss:
        return "fail", f"lost {loss:.4f}, tolerance {max_loss:g}: take a smaller step"
    if bound is None:
        return "undecided", f"lost {loss:.4f}, but too few users for a bound: measure more"
    if bound > max_loss:
        return (
            "undecided",
            f"lost {loss:.4f}, perhaps {bound:.4f}, tolerance {max_loss:g}: measure more targets, "
            "or sign a waiver",
        )
    if not is_sure:
        return (
            "undecided",
            f"lost {loss:.4f}, perhaps no more than {bound:.4f}, but of fewer than "
            f"{FEWEST_PEOPLE} people: measure more, or sign a waiver",
        )
    return "pass", f"lost {loss:.4f}, at most {bound:.4f}, tolerance {max_loss:g}"


@dataclass(frozen=True, slots=True)
class _PerUser:
    """A metric of one model as a function of how often each user is drawn."""

    statistic: UserStatistic
    num_users: int
    num_numbers: int

    def value(self) -> float | None:
        with np.errstate(divide="ignore", invalid="ignore"):
            return _number(float(self.statistic(np.ones((1, self.num_users)))[0]))


def _shared_bins(reference: Measurements, candidate: Measurements) -> npt.NDArray[np.int64] | None:
    """Bin of each event for both models' calibration errors; None where one has none.

    In bins of its own each model's error is mostly the luck of which events fall together, and of
    two models that luck is two. In bins of the mean of their probabilities it is the same.
    """
    said = reference.event_probability, candidate.event_probability
    if said[0] is None or said[1] is None:
        return None
    return equal_mass_bins((said[0] + said[1]) / 2, _NUM_BINS)


def _per_user(
    measured: Measurements, metric: Metric, bins: npt.NDArray[np.int64] | None
) -> _PerUser | None:
    """The metric of one model; None where it was not measured.

    Args:
        measured: what the model did.
        metric: which.
        bins: of events, that a calibration error rests on; the model's own when None.
    """
    if metric == "latency_ms":
        latency_ms = measured.latency_ms
        if latency_ms is None:
            return None
        # One number, whoever is drawn: every draw agrees, and the bound is the loss.
        return _PerUser(lambda weights: np.full(len(weights), latency_ms), 2, 0)
    user = measured.target_user if metric == "ndcg@10" else measured.event_user
    if user is None or len(user) == 0:
        return None
    users, row = np.unique(user, return_inverse=True)
    num_users = len(users)
    if metric == "ndcg@10":
        assert measured.target_ndcg is not None
        statistic = mean_of_users(measured.target_ndcg, row, num_users)
    else:
        assert measured.event_label is not None
        assert measured.event_probability is not None
        label, said = measured.event_label, measured.event_probability
        if metric == "auc":
            score = said if measured.event_score is None else measured.event_score
            statistic = auc_of_users(label, score, row, num_users)
        else:
            own = equal_mass_bins(said, _NUM_BINS) if bins is None else bins
            statistic = gap_of_users(label - said, own, row, num_users)
    return _PerUser(statistic, num_users, len(user))


def _moved(
    reference: Measurements, candidate: Measurements, bins: npt.NDArray[np.int64]
) -> UserStatistic:
    """By how much the candidate says something else, a bin's mean: its error rises by no more.

    What people did is not in it.
    """
    assert reference.event_user is not None
    assert reference.event_probability is not None
    assert candidate.event_probability is not None
    users, row = np.unique(reference.event_user, return_inverse=True)
    moved = candidate.event_probability - reference.event_probability
    return gap_of_users(moved, bins, row, len(users))


def _luck(reference: Measurements, bins: npt.NDArray[np.int64]) -> float:
    """The error that a calibrated model would show in such bins: it may hide as much of a rise."""
    said = reference.event_probability
    assert said is not None
    variance_B = np.bincount(bins, said * (1 - said))
    return float(np.sqrt(2 / np.pi) * np.sqrt(variance_B).sum() / len(said))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
