"""Probabilities that mean what they say: what a model says of actions, against what people did.

    calibration = fit_calibration(log_probs_NA, label_N, group_N)
    calibrated_NA = calibration(log_probs_NA)

A model learns from all of a log and is asked about the end of it, where people may act otherwise
than they used to. A few numbers per task, fitted on validation, carry the difference.

Legend: N events, A actions of the task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

Method = Literal["none", "temperature", "vector", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)
"""From the fewest numbers to the most; of equal ones the first is taken."""

NUM_FOLDS = 5
# Sharper or flatter than this says that validation is too small, not that the model is that wrong.
_SHARPNESS = (0.1, 10.0)

Logs = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A rising line through points, flat beyond its ends.

    Args:
        said: what the model said, rising, in [0, 1].
        meant: what that turned out to mean, never falling, in (0, 1).
    """

    said: tuple[float, ...]
    meant: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("said", "meant"):
            values = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, values)
            rises = all(a <= b for a, b in pairwise(values))
            if not (values and rises and values[0] >= 0 and values[-1] <= 1):
                raise ValueError(f"Curve.{name} must rise within [0, 1], got {values[:5]}.")
        if len(self.said) != len(self.meant):
            raise ValueError(
                f"Curve.said has {len(self.said)} points and Curve.meant {len(self.meant)}; "
                "give as many of each."
            )
        if not 0 < self.meant[0] <= self.meant[-1] < 1:
            raise ValueError("Curve.meant must lie between 0 and 1, without them: logs are taken.")

    def __call__(self, probabilities: Logs) -> NDArray[np.float64]:
        """Read off the line, float64 in (0, 1)."""
        return np.interp(probabilities, self.said, self.meant)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What makes a task's action probabilities calibrated; by default nothing.

    softmax(log p / temperature + bias), then a curve per action, and again to a sum of 1.

    A temperature keeps the order of the actions of one event, and the order of events by any one
    action where there are two actions; a bias per action keeps only the latter, and with three
    actions both may change a little. Curves have flat steps: events that the model told apart on
    one come out equal, AUC counts such pairs as halves, and p(item next) alone orders them.

    Args:
        temperature: above 1 where the model is too sure.
        bias: added to each action, in nats; empty for none.
        curves: one per action; empty for none.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", tuple(map(float, self.bias)))
        curves = tuple(Curve(**c) if isinstance(c, Mapping) else c for c in self.curves)
        object.__setattr__(self, "curves", curves)
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"Calibration.temperature={self.temperature} must be above 0.")
        if not np.isfinite(self.bias).all():
            raise ValueError(f"Calibration.bias={self.bias} must be finite.")

    @property
    def method(self) -> Method:
        """Which of `METHODS` this is."""
        if self.curves:
            return "isotonic"
        if self.bias:
            return "vector"
        return "none" if self.temperature == 1 else "temperature"

    def __call__(self, log_probs_NA: Logs) -> NDArray[np.float32]:
        """Calibrated log-probabilities.

        Args:
            log_probs_NA: of the task's actions, in nats; any dtype, finite, N may be 0.

        Returns:
            float32 [N, A], in nats; exp of each row sums to 1.

        Raises:
            ValueError: this calibration is for another number of actions.
        """
        for name, numbers in (("bias", self.bias), ("curves", self.curves)):
            if numbers and len(numbers) != log_probs_NA.shape[-1]:
                raise ValueError(
                    f"Calibration.{name} is for {len(numbers)} actions, but there are "
                    f"{log_probs_NA.shape[-1]}; was it fitted for another task?"
                )
        if self.method == "none":
            return log_probs_NA.astype(np.float32)
        logits_NA = log_probs_NA.astype(np.float64) / self.temperature
        if self.bias:
            logits_NA = logits_NA + np.array(self.bias)
        if self.curves:
            said_NA = np.exp(log_softmax(logits_NA, axis=-1))
            columns = [curve(said_NA[..., a]) for a, curve in enumerate(self.curves)]
            logits_NA = np.log(np.stack(columns, axis=-1))
        calibrated_NA: NDArray[np.float32] = log_softmax(logits_NA, axis=-1).astype(np.float32)
        return calibrated_NA


def fit_calibration(log_probs_NA: Logs, label_N: Ints, group_N: Ints) -> Calibration:
    """The method with the smallest cross-validated log loss, fitted on all of the events.

    Args:
        log_probs_NA: what the model says of events that it was not trained on, in nats, finite.
        label_N: int in [0, A), what was done.
        group_N: whose event it is; nobody is on both sides of a fold.

    Returns:
        No calibration where nothing beats it, or where fewer than `NUM_FOLDS` people are known.

    Raises:
        ValueError: shapes disagree, a label is out of range, or a log-probability is not finite.
    """
    _check(log_probs_NA, label_N, group_N)
    if len(np.unique(group_N)) < NUM_FOLDS:
        return Calibration()
    losses = [
        log_loss_of(calibrate_others(log_probs_NA, label_N, group_N, method=method), label_N)
        for method in METHODS
    ]
    return _FITS[METHODS[int(np.argmin(losses))]](log_probs_NA, label_N)


def calibrate_others(
    log_probs_NA: Logs, label_N: Ints, group_N: Ints, *, method: Method
) -> NDArray[np.float32]:
    """Log-probabilities of events, each calibrated on other people's events.

    What a calibration does to events that it has not seen, where there are no others than those
    it was fitted on.

    Args:
        log_probs_NA: of the task's actions, in nats, finite.
        label_N: int in [0, A), what was done.
        group_N: whose event it is.
        method: what is fitted.

    Returns:
        float32 [N, A]; as they are where fewer than `NUM_FOLDS` people are known.

    Raises:
        ValueError: as for `fit_calibration`.
    """
    _check(log_probs_NA, label_N, group_N)
    calibrated_NA = log_probs_NA.astype(np.float32)
    if method == "none" or len(np.unique(group_N)) < NUM_FOLDS:
        return calibrated_NA
    for others, fold in GroupKFold(NUM_FOLDS).split(log_probs_NA, groups=group_N):
        calibration = _FITS[method](log_probs_NA[others], label_N[others])
        calibrated_NA[fold] = calibration(log_probs_NA[fold])
    return calibrated_NA


def log_loss_of(log_probs_NA: Logs, label_N: Ints) -> float:
    """Mean −log p of what was done, in nats."""
    return float(-log_probs_NA[np.arange(len(label_N)), label_N].mean(dtype=np.float64))


def _scaled(log_probs_NA: Logs, label_N: Ints, *, with_bias: bool) -> Calibration:
    """Temperature, and a bias per action, by maximum likelihood.

    One imagined event pulls each number towards changing nothing, so that an action which was
    never taken keeps a probability. Convex in 1 / temperature and bias.

    Source: Guo et al. (arXiv 1706.04599), temperature and vector scaling, the latter with one
    temperature for all actions.
    """
    log_probs_NA = log_probs_NA.astype(np.float64)
    num_events, num_actions = log_probs_NA.shape
    taken_NA = np.eye(num_actions)[label_N]

    def loss(numbers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        sharpness, bias_A = numbers[0], numbers[1:]
        scaled_NA = log_softmax(sharpness * log_probs_NA + bias_A, axis=-1)
        surplus_NA = np.exp(scaled_NA) - taken_NA
        value = -(scaled_NA * taken_NA).sum() + ((sharpness - 1) ** 2 + (bias_A**2).sum()) / 2
        slope = [(surplus_NA * log_probs_NA).sum() + sharpness - 1]
        slopes = np.concatenate([slope, surplus_NA.sum(0) + bias_A])
        return value / num_events, slopes / num_events

    free = (None, None) if with_bias else (0.0, 0.0)
    found = scipy.optimize.minimize(
        loss,
        np.concatenate([[1.0], np.zeros(num_actions)]),
        jac=True,
        method="L-BFGS-B",
        bounds=[_SHARPNESS, *[free] * num_actions],
        options={"ftol": 1e-12, "gtol": 1e-7},
    )
    bias = tuple(found.x[1:].tolist()) if with_bias else ()
    return Calibration(temperature=float(1 / found.x[0]), bias=bias)


def _isotonic(log_probs_NA: Logs, label_N: Ints) -> Calibration:
    """A rising step curve per action, each against all others.

    Source: Zadrozny and Elkan, KDD 2002; the steps are scikit-learn's, kept within half an event
    of 0 and 1.
    """
    least = 0.5 / (len(label_N) + 1)
    curves = []
    for action in range(log_probs_NA.shape[1]):
        fitted = IsotonicRegression(y_min=least, y_max=1 - least)
        fitted.fit(np.exp(log_probs_NA[:, action].astype(np.float64)), label_N == action)
        curves.append(
            Curve(
                said=tuple(np.clip(fitted.X_thresholds_, 0, 1).tolist()),
                meant=tuple(fitted.y_thresholds_.tolist()),
            )
        )
    return Calibration(curves=tuple(curves))


_FITS: Mapping[Method, Callable[[Logs, Ints], Calibration]] = {
    "none": lambda log_probs_NA, label_N: Calibration(),
    "temperature": lambda log_probs_NA, label_N: _scaled(log_probs_NA, label_N, with_bias=False),
    "vector": lambda log_probs_NA, label_N: _scaled(log_probs_NA, label_N, with_bias=True),
    "isotonic": _isotonic,
}


def _check(log_probs_NA: Logs, label_N: Ints, group_N: Ints) -> None:
    lengths: Sequence[int] = [len(log_probs_NA), len(label_N), len(group_N)]
    if log_probs_NA.ndim != 2 or len(set(lengths)) > 1:
        raise ValueError(
            f"log_probs_NA of shape {log_probs_NA.shape}, {len(label_N)} labels and {len(group_N)} "
            "groups; give a row of log-probabilities, a label and a group for each event."
        )
    if not np.isfinite(log_probs_NA).all():
        raise ValueError(
            "log_probs_NA holds numbers that are not finite; the model's training has gone wrong."
        )
    if len(label_N) and not (label_N.min() >= 0 and label_N.max() < log_probs_NA.shape[1]):
        raise ValueError(
            f"label_N lies in [{label_N.min()}, {label_N.max()}]; give indices of the "
            f"{log_probs_NA.shape[1]} actions."
        )
