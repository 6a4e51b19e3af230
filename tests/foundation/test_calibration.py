import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax

from foundation import FoundationConfig
from foundation.calibration import (
    METHODS,
    Calibration,
    Curve,
    calibrate_others,
    fit_calibration,
    log_loss_of,
)
from foundation.evaluation import auc, expected_calibration_error

NUM_EVENTS = 4000


def drawn(
    *, temperature: float = 1.0, bias: Any = 0.0, num_actions: int = 3, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Log-probabilities, labels drawn from softmax(log p / temperature + bias), and people."""
    rng = np.random.default_rng(seed)
    said = log_softmax(rng.normal(size=(NUM_EVENTS, num_actions)) * 1.5, axis=1)
    truth = np.exp(log_softmax(said / temperature + bias, axis=1))
    label = (truth.cumsum(1) < rng.random((NUM_EVENTS, 1))).sum(1).clip(max=num_actions - 1)
    return said.astype(np.float32), label, np.arange(NUM_EVENTS) // 4


def positive_error(log_probs: Any, label: Any) -> float:
    return expected_calibration_error(label == 0, np.exp(log_probs[:, 0].astype(np.float64)))


def test_a_planted_temperature_and_bias_are_found() -> None:
    bias = np.array([-0.8, 0.2, 0.6])
    said, label, person = drawn(temperature=2.0, bias=bias)
    found = fit_calibration(said, label, person)
    assert found.method == "vector"
    assert found.temperature == pytest.approx(2, rel=0.1)
    # Adding the same to every action changes nothing.
    np.testing.assert_allclose(np.array(found.bias) - np.mean(found.bias), bias, atol=0.1)
    fresh_said, fresh_label, _ = drawn(temperature=2.0, bias=bias, seed=1)
    assert positive_error(fresh_said, fresh_label) > 0.1
    assert positive_error(found(fresh_said), fresh_label) < 0.03


def test_where_sharpness_alone_is_wrong_no_bias_is_spent() -> None:
    said, label, person = drawn(temperature=3.0)
    found = fit_calibration(said, label, person)
    assert found.method in ("temperature", "vector")
    assert found.temperature == pytest.approx(3, rel=0.1)


def test_a_bent_scale_is_mended_by_curves_and_their_steps_are_ties() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.02, 0.98, NUM_EVENTS)
    truth = np.where(said < 0.5, 0.1, 0.7)  # what no temperature can bend to
    label = (rng.random(NUM_EVENTS) > truth).astype(int)
    log_probs = np.log(np.stack([said, 1 - said], axis=1))
    found = fit_calibration(log_probs, label, np.arange(NUM_EVENTS))
    assert found.method == "isotonic"
    calibrated = found(log_probs)
    assert positive_error(calibrated, label) < 0.02
    assert len(np.unique(calibrated[:, 0])) < len(np.unique(said)) / 2


def test_nothing_is_changed_without_reason_or_without_people() -> None:
    said, label, person = drawn()
    found = fit_calibration(said, label, person)
    assert found.temperature == pytest.approx(1, abs=0.05)
    assert abs(log_loss_of(found(said), label) - log_loss_of(said, label)) < 0.002
    assert fit_calibration(said[:16], label[:16], person[:16]) == Calibration()
    assert fit_calibration(said[:0], label[:0], person[:0]) == Calibration()
    np.testing.assert_array_equal(Calibration()(said), said)


@pytest.mark.parametrize("method", METHODS)
def test_with_two_actions_only_curves_move_the_auc(method: Any) -> None:
    said, label, person = drawn(temperature=2.0, bias=[0.7, 0.0], num_actions=2)
    calibrated = calibrate_others(said[:400], label[:400], person[:400], method=method)
    assert calibrated.dtype == np.float32
    one = fit_calibration(said, label, person)
    if method != "isotonic":
        assert one.method != "isotonic"
        before, after = (auc(label == 0, scores[:, 0]) for scores in (said, one(said)))
        assert after == pytest.approx(before, abs=1e-5)


def test_a_temperature_keeps_the_order_of_the_actions_of_an_event() -> None:
    said, _, _ = drawn(num_actions=4)
    cooled = Calibration(temperature=2.5)(said)
    np.testing.assert_array_equal(np.argsort(cooled, axis=1), np.argsort(said, axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_nobody_is_calibrated_on_what_they_did_themselves(method: Any) -> None:
    said, label, person = drawn(temperature=2.0, bias=[1.0, 0.0, 0.0])
    said, label, person = said[:200], label[:200], person[:200]
    before = calibrate_others(said, label, person, method=method)
    mine = person == 7
    changed = np.where(mine, (label + 1) % 3, label)
    after = calibrate_others(said, changed, person, method=method)
    np.testing.assert_array_equal(before[mine], after[mine])
    if method == "none":
        np.testing.assert_array_equal(before, said)
    else:
        assert not np.array_equal(before[~mine], after[~mine])


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_action_that_was_never_taken_keeps_a_probability(method: Any) -> None:
    said, label, person = drawn()
    label = np.where(label == 2, 0, label)
    calibrated = calibrate_others(said, label, person, method=method)
    assert np.isfinite(calibrated).all()
    assert method == "temperature" or np.exp(calibrated[:, 2]).mean() < 0.01


@given(
    said=hnp.arrays(np.float32, (5, 3), elements=st.floats(-60, 0, width=32)),
    temperature=st.sampled_from([0.1, 1.0, 10.0]),
    bias=st.sampled_from([(), (0.0, -2.0, 3.0)]),
    curves=st.sampled_from([(), (Curve(said=(0.1, 0.1, 0.6), meant=(0.001, 0.2, 0.999)),) * 3]),
)
def test_what_comes_out_is_always_a_distribution(
    said: Any, temperature: float, bias: Any, curves: Any
) -> None:
    calibration = Calibration(temperature=temperature, bias=bias, curves=curves)
    if calibration.method == "none":
        said = log_softmax(said, axis=1)
    calibrated = calibration(said)
    assert calibrated.dtype == np.float32
    assert np.isfinite(calibrated).all()
    np.testing.assert_allclose(np.exp(calibrated.astype(np.float64)).sum(1), 1, atol=1e-4)
    assert calibration(said[:0]).shape == (0, 3)


def test_a_config_holds_one_per_task_and_comes_back_from_json() -> None:
    said, label, person = drawn(temperature=2.0)
    isotonic = Calibration(curves=(Curve(said=(0.0, 0.5), meant=(0.2, 0.4)),) * 3)
    config = FoundationConfig(calibration=(fit_calibration(said, label, person), isotonic))
    again = FoundationConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config
    np.testing.assert_array_equal(again.calibration[1](said), isotonic(said))
    assert FoundationConfig().calibration == ()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0 must be above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"bias": (0.0, float("inf"))}, "bias"),
        ({"curves": ({"said": (0.5, 0.1), "meant": (0.1, 0.2)},)}, r"Curve\.said must rise"),
        ({"curves": ({"said": (0.1, 0.5), "meant": (0.1,)},)}, "as many"),
        ({"curves": ({"said": (0.1, 0.5), "meant": (0.0, 0.2)},)}, "between 0 and 1"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(numbers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration(**numbers)


def test_what_does_not_belong_together_is_refused() -> None:
    said, label, person = drawn()
    with pytest.raises(ValueError, match="fitted for another task"):
        Calibration(bias=(0.0, 1.0))(said)
    with pytest.raises(ValueError, match="not finite"):
        fit_calibration(np.where(said < -4, -np.inf, said), label, person)
    with pytest.raises(ValueError, match=r"indices of the 3 actions"):
        fit_calibration(said, label - 1, person)
    with pytest.raises(ValueError, match="a label and a group"):
        fit_calibration(said, label[1:], person)
