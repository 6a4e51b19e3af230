from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from distill.anatomy import DIMENSIONS, Shape, body_parameters, check_shape, shape_of
from distill.architecture import sizes
from distill.importance import Importance
from distill.ladder import newest, rungs_left, together
from distill.ladder_config import LadderConfig
from distill.steps import next_shape, relative_importance
from foundation.training import FitConfig
from promptify.splits import Targets
from promptify.validation import BadInput


def even(decoder: Any, **changes: Any) -> Importance:
    """Every part counts as much as its fellows."""
    there = shape_of(decoder)
    importance = Importance(
        layers=(1.0,) * there.layers,
        neurons=(torch.ones(there.neurons),) * there.layers,
        groups=(torch.ones(there.groups),) * there.layers,
        hidden=torch.ones(there.hidden),
        energy={},
    )
    return replace(importance, **changes)


def test_parts_that_count_as_much_as_the_others_stand_at_one(make: Any) -> None:
    decoder = make(size="mini").decoder
    importance = even(decoder)
    for dimension, before, after in (("layers", 3, 2), ("neurons", 192, 184), ("hidden", 64, 8)):
        assert relative_importance(importance, dimension, before, after) == pytest.approx(1)
    # Of 1, 2, 3 the least is a sixth of the importance and a third of the parts.
    rising = even(decoder, layers=(2.0, 1.0, 3.0))
    assert relative_importance(rising, "layers", 3, 2) == pytest.approx(0.5)
    # Once it has gone, the next is two of five, half of the parts.
    assert relative_importance(rising, "layers", 2, 1) == pytest.approx(0.8)


@pytest.mark.parametrize("step", [0.1, 1 / 3])
def test_a_step_takes_what_it_may_and_not_more(make: Any, step: float) -> None:
    decoder = make(size="small").decoder
    there = body_parameters(decoder, shape_of(decoder))
    shape = next_shape(decoder, even(decoder), step=step, at_least=0)
    assert shape is not None
    left = body_parameters(decoder, shape) / there
    assert 1 - step <= left < 1 - step / 2


def test_a_width_that_needs_fewer_heads_waits_for_them() -> None:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    decoder = AutoModelForCausalLM.from_config(config)
    end = Shape(layers=2, neurons=64, groups=2, hidden=120)
    check_shape(decoder, end)
    idle = torch.ones(128)
    idle[:8] = 0  # Width would go first.
    reached, importance = shape_of(decoder), even(decoder, hidden=idle)
    while reached != end:
        shape = next_shape(decoder, importance, step=0.4, at_least=0, start=reached, until=end)
        assert shape is not None
        check_shape(decoder, shape)
        reached = shape
    # Where half of the heads are more than a step, there is none.
    assert next_shape(decoder, importance, step=0.1, at_least=0, until=end) is None
    # Those of a search are all that any number of heads has.
    assert {128, 120, 112, 104} < set(sizes(decoder, "hidden"))
    assert sizes(decoder, "groups") == [4, 3, 2, 1]


def test_the_neurons_of_a_wide_model_go_by_128_and_of_a_narrower_one_by_64() -> None:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=64,
        intermediate_size=14336,
        num_hidden_layers=2,
        num_attention_heads=1,
    )
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config)
    idle = torch.ones(14336)
    idle[4000:] = 0  # Neurons go first.
    importance = even(decoder, neurons=(idle, idle))
    for neurons, step, by in ((14336, 0.2, 128), (14300, 0.1, 128), (8192, 0.2, 64)):
        there = replace(shape_of(decoder), neurons=neurons)
        floor = (1 - step) * body_parameters(decoder, there)
        shape = next_shape(decoder, importance, step=step, at_least=0, start=there)
        assert shape is not None
        assert shape == replace(there, neurons=shape.neurons)
        assert shape.neurons % by == 0
        # Not one notch more fits in the step.
        less = replace(shape, neurons=shape.neurons - by)
        assert body_parameters(decoder, less) < floor <= body_parameters(decoder, shape)


def test_what_counts_least_goes_first(make: Any) -> None:
    decoder = make(size="small").decoder
    there = shape_of(decoder)
    idle = torch.ones(there.neurons)
    idle[100:300] = 0.01
    importance = even(decoder, neurons=(idle,) * there.layers)
    shape = next_shape(decoder, importance, step=0.2, at_least=0)
    assert shape is not None
    assert shape == replace(there, neurons=shape.neurons)
    assert 184 <= shape.neurons < 300
    # Half of a dimension is the most, however little it counts.
    shape = next_shape(decoder, importance, step=0.6, at_least=0)
    assert shape is not None
    assert shape.neurons == 192
    one_layer = even(decoder, layers=(1.0, 0.001, 1.0))
    shape = next_shape(decoder, one_layer, step=0.34, at_least=0)
    assert shape is not None
    assert shape.layers == 2


def test_it_stops_at_the_end_of_the_ladder(make: Any) -> None:
    decoder = make(size="small").decoder
    there = body_parameters(decoder, shape_of(decoder))
    shape = next_shape(decoder, even(decoder), step=0.3, at_least=int(0.9 * there))
    assert shape is not None
    assert 0.85 < body_parameters(decoder, shape) / there <= 0.9


def test_steps_lead_to_the_shape_that_was_asked_for(make: Any) -> None:
    decoder = make(size="small").decoder
    # 100 neurons and 4 groups lie on no notch, or need none.
    until = Shape(layers=2, neurons=100, groups=4, hidden=72)
    end = body_parameters(decoder, until)
    shape: Shape | None = shape_of(decoder)
    steps = 0
    while shape is not None and shape != until:
        before = shape
        shape = next_shape(
            decoder, even(decoder), step=1 / 3, at_least=end, start=before, until=until
        )
        assert shape is not None
        for dimension in DIMENSIONS:
            assert until.size(dimension) <= shape.size(dimension) <= before.size(dimension)
        assert body_parameters(decoder, shape) >= 2 / 3 * body_parameters(decoder, before)
        steps += 1
    assert shape == until
    assert steps >= 3


def test_a_shape_is_said_and_read(make: Any) -> None:
    shape = Shape(layers=2, neurons=100, groups=4, hidden=72)
    assert shape.code == "2x100x4x72"
    assert Shape.parse(" 2 x 100 x 4 x 72 ") == shape
    for text in ("2x100x4", "2x100x4x-8", "2,100,4,72", ""):
        with pytest.raises(BadInput, match="four whole numbers"):
            Shape.parse(text)
    with pytest.raises(BadInput, match=r"shape\.layers=4 must be between 1 and 3"):
        check_shape(make(size="small").decoder, replace(shape, layers=4))


def test_no_notch_is_small_enough(make: Any) -> None:
    decoder = make().decoder
    assert next_shape(decoder, even(decoder), step=0.001, at_least=0) is None


def test_a_rung_fails_with_any_verdict_and_passes_with_all() -> None:
    assert together(["pass", "fail"]) == "fail"
    assert together(["undecided", "fail"]) == "fail"
    assert together(["pass", "undecided"]) == "undecided"
    assert together(["pass", "pass"]) == "pass"


def targets(users: list[int]) -> Targets:
    rows = np.arange(len(users), dtype=np.int64)
    return Targets(
        user=np.array(users, np.int32),
        first_event=rows,
        last_event=rows + 1,
        history_start=np.zeros_like(rows),
        history_end=rows,
    )


def test_the_newest_targets_are_each_persons_last() -> None:
    assert newest(targets([0, 0, 0, 4, 7, 7])).first_event.tolist() == [2, 3, 5]
    assert len(newest(targets([0, 4, 7]))) == 3


def test_rungs_to_the_end() -> None:
    assert rungs_left(0.1, 1.0, 1 / 3) == 6
    assert rungs_left(0.5, 0.5, 1 / 3) == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"to": 0.0}, r"LadderConfig\.to=0\.0 must lie between"),
        ({"max_step": 1.0}, r"LadderConfig\.max_step=1\.0 must lie between"),
        ({"num_halvings": -1}, r"LadderConfig\.num_halvings=-1 must not be negative"),
        ({"taught_by": "nobody"}, "must be above, top or both"),
        ({"calibration_rows": 0}, "must be at least 1"),
        ({"data_weight": -0.1}, "data_weight=-0.1 must not be negative"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LadderConfig(**values)


def test_a_teacher_is_followed_and_without_one_the_data_is() -> None:
    fit = FitConfig(epochs=9, action_weight=0.5, text_weight=0.1)
    followed = LadderConfig(fit=fit).schedule(2.0, above=0)
    assert followed.epochs == 2.0
    assert set(followed.loss_weights.values()) == {0.0}
    mixed = LadderConfig(fit=fit, data_weight=0.5).schedule(2.0, above=0)
    assert mixed.loss_weights == {"next_item": 0.5, "action": 0.25, "text": 0.05}
    plain = LadderConfig(fit=fit, teacher=None).schedule(2.0, above=0)
    assert plain == replace(fit, epochs=2.0)
