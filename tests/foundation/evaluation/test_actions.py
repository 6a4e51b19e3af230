"""Action metrics: against loops, by hand, and where there is no number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.evaluation import (
    auc,
    expected_calibration_error,
    log_loss,
    precision_recall,
    reliability,
)
from foundation.evaluation.actions import equal_mass_bins


def test_auc_is_the_share_of_pairs_in_order_and_ties_are_half():
    labels = np.array([True, True, False, False])
    assert auc(labels, np.array([0.9, 0.4, 0.4, 0.1])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_no_number_is_nan():
    assert np.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))
    assert np.isnan(auc(np.array([], bool), np.array([])))
    assert np.isnan(log_loss(np.array([], int), np.empty((0, 2))))
    assert np.isnan(expected_calibration_error(np.array([], bool), np.array([])))


def test_nan_that_goes_in_is_an_error():
    bad = np.array([0.5, np.nan])
    labels = np.array([True, False])
    for metric in (auc, expected_calibration_error):
        with pytest.raises(ValueError, match="1 of 2 are NaN"):
            metric(labels, bad)
    with pytest.raises(ValueError, match="NaN"):
        log_loss(np.array([0]), bad[None])


def test_log_loss_is_in_nats_and_knows_labels_that_did_not_happen():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    expected = -(np.log(0.25) + np.log(0.8)) / 2
    assert log_loss(np.array([1, 1]), probabilities) == pytest.approx(expected)


def test_calibration_error_by_hand():
    probabilities = np.array([0.1, 0.1, 0.8, 0.6])
    labels = np.array([False, True, True, True])
    # Two bins: (.1, .1) say .1 and get .5; (.6, .8) say .7 and get 1.
    error = expected_calibration_error(labels, probabilities, num_bins=2)
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.3)


def test_reliability_by_hand_adds_up_to_the_calibration_error():
    probabilities = np.array([0.1, 0.1, 0.8, 0.6])
    labels = np.array([False, True, True, True])
    said, happened, counts = reliability(labels, probabilities, num_bins=2)
    np.testing.assert_allclose(said, [0.1, 0.7])
    np.testing.assert_allclose(happened, [0.5, 1.0])
    assert counts.tolist() == [2, 2]
    many = np.random.default_rng(0).random((2, 500))
    said, happened, counts = reliability(many[0] < many[1] ** 2, many[1])
    error = expected_calibration_error(many[0] < many[1] ** 2, many[1])
    assert error == pytest.approx((np.abs(said - happened) * counts).sum() / 500)


def test_one_probability_for_all_is_one_bin_in_any_order():
    labels = np.arange(100) < 30
    assert expected_calibration_error(labels, np.full(100, 0.3)) == pytest.approx(0, abs=1e-12)


def test_calibrated_is_near_zero_and_bent_is_not():
    rng = np.random.default_rng(0)
    truth = rng.random(50_000)
    labels = rng.random(50_000) < truth
    assert expected_calibration_error(labels, truth) < 0.01
    assert expected_calibration_error(labels, truth**2) > 0.1


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=1), st.integers(1, 20))
def test_bins_follow_the_probabilities_and_never_part_equals(values, num_bins):
    probabilities = np.array(values)
    bins = equal_mass_bins(probabilities, num_bins)
    assert (bins >= 0).all()
    assert (bins < num_bins).all()
    order = np.argsort(probabilities)
    assert (np.diff(bins[order]) >= 0).all()
    for value in set(values):
        assert len(set(bins[probabilities == value])) == 1


def test_bins_of_different_probabilities_hold_equally_many():
    counts = np.bincount(equal_mass_bins(np.random.default_rng(0).random(1000), 15))
    assert len(counts) == 15
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("bad", [[-0.1, 0.5], [0.5, 1.2]])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="not logits"):
        expected_calibration_error(np.array([True, False]), np.array(bad))


def test_precision_and_recall_of_each_label():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    precision, recall = precision_recall(labels, predicted, num_labels=4)
    np.testing.assert_array_equal(precision, [1, 0.5, 0, np.nan])
    np.testing.assert_array_equal(recall, [0.5, 0.5, np.nan, np.nan])
