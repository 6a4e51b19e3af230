"""How good the predicted actions are: discrimination, calibration, and errors per label.

Shapes: `n` events, `A` action labels. A number that the data cannot give (AUC of one class, the
precision of a label that is never predicted) is NaN, not 0 and not an error: segments of real data
are often that small, and a table shows the gap. A NaN that goes in is an error.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]


def auc(labels: Bools, scores: Floats) -> float:
    """Area under the ROC curve; ties count one half. NaN where all labels are the same.

    Args:
        labels: bool [n], whether the action was positive.
        scores: float [n], higher is more likely positive.
    """
    _check_finite("scores", scores)
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(sklearn.metrics.roc_auc_score(labels, scores))


def log_loss(labels: Ints, probabilities: Floats) -> float:
    """Mean −log p(label), in nats; NaN for no events.

    A probability counts as at least the spacing of its dtype's numbers at 1: a 0 of float32 costs
    15.9 nats, of float64 36.0.

    Args:
        labels: int [n] in [0, A).
        probabilities: float [n, A], each row sums to 1.
    """
    _check_finite("probabilities", probabilities)
    if len(labels) == 0:
        return float("nan")
    num_labels = probabilities.shape[1]
    return float(sklearn.metrics.log_loss(labels, probabilities, labels=range(num_labels)))


def expected_calibration_error(
    labels: Bools, probabilities: Floats, *, num_bins: int = 15
) -> float:
    """Mean gap between what was said and what happened, over bins of equal mass.

    Args:
        labels: bool [n], whether the action was positive.
        probabilities: float [n] in [0, 1], of a positive action.
        num_bins: bins asked for; see `equal_mass_bins`.

    Returns:
        In [0, 1]; NaN for no events. Small samples read high: noise alone moves a bin.

    Source: Naeini et al., AAAI 2015, with the equal-mass bins of Nixon et al. (arXiv 1904.01685).
    """
    if len(labels) == 0:
        return float("nan")
    bins = equal_mass_bins(probabilities, num_bins)
    gap = np.bincount(bins, labels - np.asarray(probabilities, np.float64), minlength=num_bins)
    return float(np.abs(gap).sum() / len(labels))


def reliability(
    labels: Bools, probabilities: Floats, *, num_bins: int = 15
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """What was said and what happened in each bin: the points of a reliability plot.

    Args:
        labels: bool [n], whether the action was positive.
        probabilities: float [n] in [0, 1], of a positive action.
        num_bins: bins asked for; see `equal_mass_bins`.

    Returns:
        Mean probability and share of positives, float64, and events, int64, of each bin that holds
        any.
    """
    bins = equal_mass_bins(probabilities, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    held = counts > 0
    said, happened = (
        np.bincount(bins, np.asarray(values, np.float64), minlength=num_bins)[held] / counts[held]
        for values in (probabilities, labels)
    )
    return said, happened, counts[held]


def equal_mass_bins(probabilities: Floats, num_bins: int) -> npt.NDArray[np.int64]:
    """Bin of each probability, int64 [n] in [0, num_bins).

    Bins hold equally many events, but equal probabilities are never parted: a bin that was cut
    through a tie would depend on the order of the events.

    Raises:
        ValueError: a probability outside [0, 1], or NaN; fewer than one bin.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; use at least 1")
    _check_finite("probabilities", probabilities)
    if len(probabilities) and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(
            f"probabilities lie in [{probabilities.min()}, {probabilities.max()}]; give numbers "
            "in [0, 1], not logits or logarithms"
        )
    num_below = np.searchsorted(np.sort(probabilities), probabilities)
    return num_below * num_bins // max(1, len(probabilities))


def precision_recall(
    labels: Ints, predicted: Ints, *, num_labels: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Precision and recall of each label.

    Args:
        labels: int [n] in [0, num_labels), what happened.
        predicted: int [n] in [0, num_labels), what was predicted.
        num_labels: A.

    Returns:
        Two float64 [A]; NaN where a label was never predicted (precision) or never happened
        (recall).
    """
    precision, recall, _, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(num_labels), zero_division=np.nan
    )
    return precision, recall


def _check_finite(name: str, values: Floats) -> None:
    if np.isnan(values).any():
        raise ValueError(f"{name}: {np.isnan(values).sum()} of {values.size} are NaN")
