"""The gate: its rule by hand, its errors by simulation, its record on the disk."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import norm

from distill.gate import (
    GateConfig,
    GateVerdict,
    Measurements,
    Tolerance,
    Waiver,
    verdict,
)
from foundation.evaluation import expected_calibration_error

NDCG = GateConfig(
    tolerances=(Tolerance(metric="ndcg@10", max_loss=0.01, kind="relative"),), num_samples=400
)


def measured(seed=0, num_users=400, **changes):
    """A model with some skill, four targets and events per user."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), 4)
    probability = rng.random(len(user))
    values = {
        "target_user": user,
        "target_ndcg": rng.random(len(user)),
        "event_user": user,
        "event_label": rng.random(len(user)) < probability,
        "event_probability": probability,
        "latency_ms": 10.0,
    }
    return Measurements(**(values | changes))


def by_name(given):
    """Verdicts by metric."""
    return {one.metric: one for one in given.metrics}


def worse_ndcg(model, loss, rng):
    """Another model on the same targets: its own noise, and on average `loss` of the NDCG less."""
    noise = rng.normal(scale=0.15, size=len(model.target_ndcg))
    return replace(model, target_ndcg=(1 - loss) * model.target_ndcg + noise)


def test_the_same_model_passes():
    given = verdict(measured(), measured())
    assert given.status == "pass"
    assert given.accepted
    assert [one.metric for one in given.metrics] == ["auc", "ndcg@10", "ece", "latency_ms"]
    assert all(one.loss == one.bound == 0 for one in given.metrics)


def test_default_tolerances_are_the_protocols():
    tolerances = {one.metric: one for one in GateConfig.with_max_loss().tolerances}
    assert (tolerances["auc"].max_loss, tolerances["auc"].kind) == (0.01, "relative")
    assert (tolerances["ndcg@10"].max_loss, tolerances["ndcg@10"].kind) == (0.01, "relative")
    assert (tolerances["ece"].max_loss, tolerances["ece"].kind) == (0.005, "absolute")
    assert (tolerances["latency_ms"].max_loss, tolerances["latency_ms"].kind) == (0, "relative")
    against_top = GateConfig.with_max_loss(0.03).tolerances
    assert [one.max_loss for one in against_top] == [0.03, 0.03, 0.005, 0]


def test_losses_are_worse_upwards_for_every_metric():
    reference = measured()
    rng = np.random.default_rng(1)
    blurred = np.clip(reference.event_probability + rng.normal(scale=0.5, size=1600), 0, 1)
    candidate = replace(
        reference,
        target_ndcg=0.5 * reference.target_ndcg,
        event_probability=blurred,
        latency_ms=12.0,
    )
    metrics = by_name(verdict(reference, candidate))
    assert all(one.status == "fail" for one in metrics.values())
    assert metrics["ndcg@10"].loss == pytest.approx(0.5)
    assert metrics["latency_ms"].loss == pytest.approx(0.2)
    assert metrics["auc"].loss > 0.05
    auc = metrics["auc"]
    assert auc.loss == pytest.approx((auc.reference - auc.candidate) / auc.reference)
    ece = metrics["ece"]
    assert ece.loss == pytest.approx(ece.candidate - ece.reference)
    better = by_name(verdict(candidate, reference))
    assert all(one.status == "pass" and one.bound < 0 for one in better.values())


def test_a_planted_loss_never_passes_and_no_loss_passes_with_enough_targets():
    rng = np.random.default_rng(0)
    planted, unchanged = [], []
    for seed in range(20):
        reference = measured(seed, num_users=2500)
        planted.append(verdict(reference, worse_ndcg(reference, 0.05, rng), NDCG).status)
        unchanged.append(verdict(reference, worse_ndcg(reference, 0.0, rng), NDCG).status)
    assert planted.count("pass") == 0
    assert planted.count("fail") >= 19
    assert unchanged.count("pass") >= 17


def test_a_loss_at_the_tolerance_rarely_passes():
    """The error that the gate's confidence is about: 5 % of the time."""
    rng = np.random.default_rng(0)
    passes = 0
    for seed in range(150):
        reference = measured(seed, num_users=300)
        passes += verdict(reference, worse_ndcg(reference, 0.01, rng), NDCG).status == "pass"
    assert passes <= 16


def test_of_two_looks_each_is_surer() -> None:
    """A ladder takes whichever passes of what repair left and what teaching made of it."""
    rng = np.random.default_rng(0)
    config = replace(NDCG, confidence=GateConfig.with_max_loss(num_looks=2).confidence)
    passes = 0
    for seed in range(150):
        reference = measured(seed, num_users=300)
        candidates = [worse_ndcg(reference, 0.01, rng) for _ in range(2)]
        passes += any(verdict(reference, one, config).status == "pass" for one in candidates)
    assert GateConfig.with_max_loss().confidence == 0.95
    assert passes <= 12  # At 95 % each 18 of them do.


def test_events_are_in_the_order_of_their_scores_where_there_are_any() -> None:
    reference = measured()
    # Of one fold of people all probabilities are said lower.
    low = np.where(reference.event_user % 5 == 0, 0.5, 1) * reference.event_probability
    candidate = replace(reference, event_probability=low)
    config = GateConfig(
        tolerances=(Tolerance(metric="auc", max_loss=0.01, kind="relative"),), num_samples=100
    )
    assert verdict(reference, candidate, config).status == "fail"
    told = replace(candidate, event_score=reference.event_probability)
    [auc] = verdict(reference, told, config).metrics
    assert (auc.status, auc.loss, auc.bound) == ("pass", 0, 0)
    with pytest.raises(ValueError, match="belong together"):
        replace(candidate, event_score=low[1:])


def calibrated_twins(
    seed: int, num_events: int = 5000
) -> tuple[Measurements, npt.NDArray[np.float64]]:
    """One of two models that know nearly the same and are both calibrated, and what the other says.

    Their probabilities are .03 apart, as those of neighbouring rungs are.
    """
    rng = np.random.default_rng(seed)
    wants = rng.normal(size=num_events)
    # Each sees the wants with an error of its own of which the most is shared.
    shared, *own = 0.5 * rng.normal(size=(3, num_events))
    said = [norm.cdf(0.8 * (wants + 0.985 * shared + 0.17 * error) / np.sqrt(1.2)) for error in own]
    label = wants + rng.normal(size=num_events) > 0
    user = np.arange(num_events) // 5
    return Measurements(event_user=user, event_label=label, event_probability=said[0]), said[1]


CALIBRATION = GateConfig(
    tolerances=(Tolerance(metric="ece", max_loss=0.005, kind="absolute"),), num_samples=200
)


def test_a_calibrated_twin_is_not_refused_for_the_luck_of_its_bins():
    """In bins of their own one twin in seven looks worse by .005 than the other on 5,000 events."""
    statuses, apart = [], []
    for seed in range(60):
        reference, said = calibrated_twins(seed)
        candidate = replace(reference, event_probability=said)
        [found] = verdict(reference, candidate, CALIBRATION).metrics
        statuses.append(found.status)
        own = [
            expected_calibration_error(reference.event_label, one)
            for one in (reference.event_probability, said)
        ]
        apart.append(own[1] - own[0])
    assert statuses.count("fail") == 0
    assert statuses.count("pass") >= 50
    assert sum(one > 0.005 for one in apart) >= 4


@pytest.mark.parametrize("shift", [0.01, 0.02])
def test_a_rise_that_few_events_hide_does_not_pass(shift: float):
    """Bins of 5,000 events err by .03: a rise of .01 hardly shows in their errors."""
    for seed in range(20):
        reference, said = calibrated_twins(seed)
        candidate = replace(reference, event_probability=said + shift * (1 - said))
        [found] = verdict(reference, candidate, CALIBRATION).metrics
        assert found.status != "pass"
    grown, said = calibrated_twins(0, num_events=200_000)
    candidate = replace(grown, event_probability=said + 2 * shift * (1 - said))
    assert verdict(grown, candidate, CALIBRATION).status == "fail"


def test_few_targets_are_undecided():
    rng = np.random.default_rng(0)
    statuses = [
        verdict(reference, worse_ndcg(reference, -0.005, rng), NDCG).status
        for reference in (measured(seed, num_users=60) for seed in range(20))
    ]
    assert statuses.count("undecided") >= 8
    assert statuses.count("pass") == 0


def test_fewer_than_a_hundred_people_never_let_a_rung_pass():
    """A few hits decide there, and a loss that falls on nobody asked would pass."""
    for count, status in ((99, "undecided"), (100, "pass")):
        reference = measured(num_users=count)
        found = by_name(verdict(reference, reference))
        assert {found[name].status for name in ("auc", "ndcg@10", "ece")} == {status}
        assert found["latency_ms"].status == "pass"
        assert found["ndcg@10"].bound == 0
    assert (
        "fewer than 100 people"
        in by_name(verdict(measured(num_users=99), measured(num_users=99)))["auc"].reason
    )


def test_one_metric_that_fails_fails_the_rung():
    reference = measured()
    slower = replace(reference, latency_ms=10.1)
    given = verdict(reference, slower)
    assert given.status == "fail"
    assert not given.accepted
    assert by_name(given)["latency_ms"].status == "fail"
    both = replace(slower, target_user=None, target_ndcg=None)
    assert verdict(reference, both).status == "fail"


def test_what_was_not_measured_is_undecided():
    reference = measured()
    candidate = replace(reference, latency_ms=None)
    for one, other in ((reference, candidate), (candidate, reference)):
        given = verdict(one, other)
        assert given.status == "undecided"
        assert by_name(given)["latency_ms"].loss is None
    one_class = np.ones(1600, bool)
    given = verdict(measured(event_label=one_class), measured(event_label=one_class))
    assert by_name(given)["auc"].status == "undecided"
    assert by_name(given)["auc"].reference is None
    single = by_name(verdict(measured(num_users=1), measured(num_users=1)))
    assert (single["ndcg@10"].loss, single["ndcg@10"].bound) == (0, None)
    assert single["ndcg@10"].status == "undecided"


def test_users_are_drawn_not_targets():
    """Forty equal targets of a user are one."""
    rng = np.random.default_rng(0)
    ndcg = rng.random(100)
    lower = ndcg - rng.random(100) * 0.02

    def bound(repeats):
        user = np.repeat(np.arange(100), repeats)
        before, after = (
            Measurements(target_user=user, target_ndcg=np.repeat(values, repeats))
            for values in (ndcg, lower)
        )
        return verdict(before, after, NDCG).metrics[0].bound

    assert bound(40) == pytest.approx(bound(1))


def test_waiver_is_for_the_undecided_and_covers_the_bound():
    reference = measured()
    given = verdict(reference, replace(reference, latency_ms=None))
    waiver = Waiver(
        metric="latency_ms", loss=0.0, reason="no quiet machine", bought="half the size"
    )
    waived = given.waive(waiver)
    assert not given.accepted
    assert waived.accepted
    assert (waived.status, waived.waivers) == ("undecided", (waiver,))
    with pytest.raises(ValueError, match="waived already"):
        waived.waive(waiver)
    with pytest.raises(ValueError, match="auc is not undecided"):
        given.waive(replace(waiver, metric="auc"))
    rng = np.random.default_rng(0)
    few = measured(num_users=60)
    noisy = verdict(few, worse_ndcg(few, 0.0, rng), NDCG)
    assert noisy.status == "undecided"
    bound = noisy.metrics[0].bound
    with pytest.raises(ValueError, match="may have lost"):
        noisy.waive(replace(waiver, metric="ndcg@10", loss=bound - 1e-6))
    assert noisy.waive(replace(waiver, metric="ndcg@10", loss=bound)).accepted


def test_verdict_comes_back_from_json(tmp_path):
    reference = measured()
    given = verdict(reference, replace(reference, latency_ms=None)).waive(
        Waiver(metric="latency_ms", loss=0.0, reason="none at hand", bought="half the size")
    )
    given.save(tmp_path / "gate.json")
    assert GateVerdict.load(tmp_path / "gate.json") == given
    assert [path.name for path in tmp_path.iterdir()] == ["gate.json"]
    for text in ("{}", "[]", "{", '{"metrics": [{"metric": "auc"}], "waivers": []}'):
        (tmp_path / "gate.json").write_text(text)
        with pytest.raises(ValueError, match=r"gate.json is not a gate's verdict"):
            GateVerdict.load(tmp_path / "gate.json")


def test_other_targets_are_refused():
    reference = measured()
    with pytest.raises(ValueError, match="target_user differs"):
        verdict(reference, replace(reference, target_user=reference.target_user[::-1]))
    with pytest.raises(ValueError, match="event_label differs"):
        verdict(reference, replace(reference, event_label=~reference.event_label))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tolerance(metric="f1", max_loss=0.1, kind="relative"), "'f1'"),
        (lambda: Tolerance(metric="auc", max_loss=-0.1, kind="relative"), "-0.1"),
        (lambda: Tolerance(metric="auc", max_loss=float("nan"), kind="relative"), "nan"),
        (lambda: Tolerance(metric="auc", max_loss=0.1, kind="squared"), "squared"),
        (lambda: GateConfig(tolerances=()), "at least one"),
        (lambda: GateConfig(tolerances=NDCG.tolerances * 2), "each metric one"),
        (lambda: replace(NDCG, confidence=0.4), "confidence is 0.4"),
        (lambda: replace(NDCG, num_samples=0), "num_samples is 0"),
        (lambda: measured(target_ndcg=None), "belong together"),
        (lambda: measured(event_label=np.ones(3, bool)), "belong together"),
        (lambda: measured(latency_ms=0.0), "latency_ms is 0.0"),
        (lambda: Waiver(metric="auc", loss=0.1, reason=" ", bought="x"), "reason is empty"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
