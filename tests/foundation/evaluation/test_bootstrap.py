"""The bootstrap: statistics against plain ones on repeated data, intervals by simulation."""

import numpy as np
import pytest

from foundation.evaluation import (
    auc,
    auc_of_users,
    bootstrap_interval,
    bootstrap_users,
    equal_mass_bins,
    expected_calibration_error,
    gap_of_users,
    mean_of_users,
    paired_bootstrap,
)


@pytest.fixture
def events():
    """Users, labels and tied probabilities of 300 events."""
    rng = np.random.default_rng(0)
    user = rng.integers(20, size=300)
    labels = rng.random(300) < 0.4
    scores = np.round(0.7 * rng.random(300) + 0.3 * labels, 2)
    return user, labels, scores


def test_weights_are_repeats(events):
    user, labels, scores = events
    weights = np.random.default_rng(1).integers(0, 4, size=(5, 20)).astype(float)
    for weight, area, mean in zip(
        weights,
        auc_of_users(labels, scores, user, 20)(weights),
        mean_of_users(scores, user, 20)(weights),
        strict=True,
    ):
        again = np.repeat(np.arange(300), weight[user].astype(int))
        assert area == pytest.approx(auc(labels[again], scores[again]))
        assert mean == pytest.approx(scores[again].mean())


def test_calibration_error_of_all_users_is_the_plain_one(events):
    user, labels, scores = events
    statistic = gap_of_users(labels - scores, equal_mass_bins(scores, 15), user, 20)
    plain = expected_calibration_error(labels, scores)
    assert statistic(np.ones((1, 20)))[0] == pytest.approx(plain)
    # The events of one user, in the bins of all.
    only = statistic(np.eye(20)[:1])[0]
    mine = user == 0
    order = np.searchsorted(np.sort(scores), scores) * 15 // 300
    gaps = [abs((labels - scores)[mine & (order == one)].sum()) for one in range(15)]
    assert only == pytest.approx(sum(gaps) / mine.sum())


def test_interval_covers_as_often_as_it_says():
    """Users with their own means: the naive interval over targets would cover about 60 %."""
    rng = np.random.default_rng(3)
    num_covered = 0
    for trial in range(200):
        means = rng.normal(size=60)
        user = np.repeat(np.arange(60), 8)
        values = means[user] + rng.normal(size=480)
        interval = bootstrap_interval(values, user, confidence=0.9, num_samples=300, seed=trial)
        assert interval.value == pytest.approx(values.mean())
        num_covered += interval.low <= 0 <= interval.high
    assert 166 <= num_covered <= 192


def test_users_may_be_any_integers_in_any_order(events):
    user, _, scores = events
    expected = bootstrap_interval(scores, user)
    order = np.random.default_rng(0).permutation(300)
    assert bootstrap_interval(scores[order], 7 * user[order] - 50).low == pytest.approx(
        expected.low
    )


def test_seed_decides():
    values, user = np.random.default_rng(0).random(50), np.arange(50)
    assert bootstrap_interval(values, user, seed=1) == bootstrap_interval(values, user, seed=1)
    assert bootstrap_interval(values, user, seed=1) != bootstrap_interval(values, user, seed=2)


def test_pairing_removes_what_is_common():
    rng = np.random.default_rng(0)
    user = np.arange(500)
    a = 1 + rng.random(500)
    paired = paired_bootstrap(a, 0.95 * a, user)
    assert paired.value == pytest.approx(0.05)
    assert paired.high - paired.low < 1e-9
    difference = paired_bootstrap(a, 0.95 * a, user, statistic="difference")
    assert difference.value == pytest.approx(-0.05 * a.mean())
    apart = paired_bootstrap(a, 0.95 * rng.permutation(a), user)
    assert apart.high - apart.low > 0.01


def test_one_sided_bound_is_that_of_the_wider_interval():
    rng = np.random.default_rng(0)
    a, b, user = rng.random(400), rng.random(400), np.repeat(np.arange(100), 4)
    upper = paired_bootstrap(a, b, user, alternative="less", confidence=0.95)
    lower = paired_bootstrap(a, b, user, alternative="greater", confidence=0.95)
    both = paired_bootstrap(a, b, user, confidence=0.90)
    assert upper.low == -np.inf
    assert lower.high == np.inf
    assert upper.high == pytest.approx(both.high)
    assert lower.low == pytest.approx(both.low)


def test_one_user_says_nothing():
    interval = bootstrap_interval(np.array([0.2, 0.4]), np.array([3, 3]))
    assert (interval.value, interval.low, interval.high) == (pytest.approx(0.3), -np.inf, np.inf)


def test_draws_without_a_number_say_nothing():
    labels = np.array([True, False, False])
    statistic = auc_of_users(labels, np.array([0.9, 0.5, 0.1]), np.arange(3), 3)
    interval = bootstrap_users(statistic, 3)
    assert (interval.value, interval.low, interval.high) == (1, -np.inf, np.inf)


def test_batches_do_not_change_the_interval(events):
    user, _, scores = events
    statistic = mean_of_users(scores, user, 20)
    whole = bootstrap_users(statistic, 20)
    batched = bootstrap_users(statistic, 20, numbers_per_draw=100_000)
    assert (batched.low, batched.high) == pytest.approx((whole.low, whole.high))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="user is empty"):
        bootstrap_interval(np.empty(0), np.empty(0, int))
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        bootstrap_interval(np.array([1, np.nan]), np.arange(2))
    with pytest.raises(ValueError, match="2, 1 and 2 entries"):
        paired_bootstrap(np.ones(2), np.ones(1), np.arange(2))
