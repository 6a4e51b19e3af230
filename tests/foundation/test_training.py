import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from foundation import FitConfig, Foundation
from foundation.diverging import DivergedError
from foundation.plan import TrainingPlan
from foundation.resuming import last_whole_checkpoint
from promptify.assembly import PromptBook
from promptify.splits import Split

QUICK = FitConfig(
    epochs=2,
    positions_per_batch=4096,
    learning_rate=3e-3,
    reread_items=8,
    refresh_steps=3,
    text_positions=64,
)

Fit = Callable[..., Foundation]


def changed(config: FitConfig, **values: Any) -> FitConfig:
    from dataclasses import replace

    return replace(config, **values)


@pytest.fixture
def fit(make: Any, books: dict[str, PromptBook], split: Split) -> Fit:
    def run(out: Path, *, dropout: float = 0.1, validate: Any = None, **config: Any) -> Foundation:
        foundation: Foundation = make("slot", dropout=dropout)
        foundation.fit(
            books["slot"], split, config=changed(QUICK, **config), out=out, validate=validate
        )
        return foundation

    return run


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


def killed_at(step: int) -> Callable[[], dict[str, float]]:
    """A validation that ends the training when it is called for the `step`-th time."""
    calls = []

    def validate() -> dict[str, float]:
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return {}

    return validate


def assert_same(left: Foundation, right: Foundation) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def unbroken(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path_factory: Any
) -> Foundation:
    foundation: Foundation = make("slot")
    config = changed(QUICK, evaluate_steps=1)
    out = tmp_path_factory.mktemp("unbroken")
    foundation.fit(books["slot"], split, config=config, out=out, validate=dict)
    return foundation


def test_losses_fall_and_the_curves_are_written(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot")
    result = foundation.fit(
        books["slot"],
        split,
        config=changed(QUICK, epochs=6, positions_per_batch=1024, evaluate_steps=14),
        out=tmp_path,
        validate=lambda: {"answer": 42.0},
    )
    for name in ("next_item", "action", "text"):
        curve = [value for _, value in result.history[f"loss/{name}"]]
        assert len(curve) >= 2
        assert curve[-1] < curve[0]
    assert {value for _, value in result.history["valid/answer"]} == {42.0}
    steps = [step for step, _ in result.history["valid/answer"]]
    # Once each, the last step among them.
    assert steps == [14, 28, 42]
    assert result.steps == 42
    assert not foundation.training
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert any("next_item" in tag for tag in log.Tags()["scalars"])


def test_the_same_seed_gives_the_same_weights(
    fit: Fit, unbroken: Foundation, tmp_path: Path
) -> None:
    calls: list[int] = []

    def validate() -> dict[str, float]:
        calls.append(1)
        return {}

    assert_same(fit(tmp_path, evaluate_steps=1, validate=validate), unbroken)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"checkpoint-{len(calls)}"]
    other = fit(tmp_path / "other", evaluate_steps=1, validate=dict, seed=1)
    assert not torch.equal(other.person_head.weight, unbroken.person_head.weight)


@pytest.fixture(scope="module")
def interrupted(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path_factory: Any
) -> Path:
    """The folder of a training that was killed in its third step."""
    out: Path = tmp_path_factory.mktemp("interrupted")
    config = changed(QUICK, evaluate_steps=1, checkpoint_seconds=0)
    with pytest.raises(Killed):
        make("slot").fit(books["slot"], split, config=config, out=out, validate=killed_at(3))
    return out


def test_killed_twice_and_resumed_is_unbroken(
    fit: Fit, unbroken: Foundation, interrupted: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    with pytest.raises(Killed):
        fit(out, evaluate_steps=1, checkpoint_seconds=0, validate=killed_at(2))
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    assert_same(fit(out, evaluate_steps=1, validate=dict), unbroken)


def test_a_finished_training_is_not_done_again(
    fit: Fit, unbroken: Foundation, tmp_path: Path
) -> None:
    fit(tmp_path, evaluate_steps=1, validate=dict)
    # Cut short after training, before anybody saved the model.
    again = fit(tmp_path, evaluate_steps=1, validate=killed_at(1))
    assert_same(again, unbroken)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_checkpoint_cut_in_half_is_passed_over(
    interrupted: Path, tmp_path: Path, name: str, is_gone: bool
) -> None:
    shutil.copytree(interrupted / "checkpoints", tmp_path, dirs_exist_ok=True)
    [whole] = tmp_path.iterdir()
    newer = whole.with_name("checkpoint-3")
    newer.mkdir()
    for file in whole.iterdir():
        content = file.read_bytes()
        if file.name == name:
            content = content[: len(content) // 2]
        if file.name != name or not is_gone:
            (newer / file.name).write_bytes(content)
    assert last_whole_checkpoint(tmp_path) == whole


def test_with_no_whole_checkpoint_training_starts_anew(
    fit: Fit, unbroken: Foundation, interrupted: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    for state in out.glob("checkpoints/*/trainer_state.json"):
        state.unlink()
    assert last_whole_checkpoint(out / "checkpoints") is None
    assert last_whole_checkpoint(out / "nothing") is None
    assert_same(fit(out, evaluate_steps=1, validate=dict), unbroken)


def gradients(run: Callable[[], Any]) -> dict[int, Tensor]:
    """The gradients that the first optimiser step of a run sees, by place."""
    seen: list[dict[int, Tensor]] = []

    def look(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = {at: p.grad.clone() for at, p in enumerate(parameters) if p.grad is not None}
        seen.append(found)

    handle = register_optimizer_step_pre_hook(look)
    try:
        run()
    finally:
        handle.remove()
    return seen[0]


def test_accumulating_two_halves_is_one_whole(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Uneven on purpose: a mean of means would differ.
    parts = {"whole": [np.arange(9)], "halves": [np.arange(2), np.arange(2, 9)]}
    got = {}
    for name, groups in parts.items():
        monkeypatch.setattr(TrainingPlan, "_groups", lambda *_, groups=groups: groups)
        got[name] = gradients(
            lambda name=name, groups=groups: fit(
                tmp_path / name,
                dropout=0.0,
                epochs=1,
                accumulate=len(groups),
                reread_items=0,
                text_positions=10**6,
                # Small, so that clipping hides no difference of scale.
                next_item_weight=1e-3,
                action_weight=1e-3,
                text_weight=1e-3,
            )
        )
    assert got["whole"].keys() == got["halves"].keys()
    assert sum(float(g.norm() ** 2) for g in got["whole"].values()) ** 0.5 < 0.9
    for at, gradient in got["whole"].items():
        torch.testing.assert_close(got["halves"][at], gradient, atol=1e-7, rtol=1e-3)


def test_a_loss_that_is_no_number_ends_in_one_line(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = Foundation.forward

    def poisoned(self: Foundation, **inputs: Tensor) -> dict[str, Tensor]:
        sums = plain(self, **inputs)
        calls.append(1)
        if len(calls) == 3:
            sums["action"] = sums["action"] * float("nan")
        return sums

    monkeypatch.setattr(Foundation, "forward", poisoned)
    with pytest.raises(DivergedError, match=r"the loss is nan at step 2.*learning_rate=0.003"):
        fit(tmp_path, checkpoint_seconds=0)
    assert issubclass(DivergedError, ValueError)
    checkpoint = last_whole_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"


def test_tables_learn_faster_and_do_not_decay(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot")
    groups: list[dict[str, Any]] = []

    def look(optimizer: Any, *_: Any) -> None:
        if not groups:
            groups.extend({**group} for group in optimizer.param_groups)

    handle = register_optimizer_step_pre_hook(look)
    try:
        config = changed(QUICK, epochs=0.01, weight_decay=0.5, table_rate=7.0)
        foundation.fit(books["slot"], split, config=config, out=tmp_path)
    finally:
        handle.remove()
    rate = {id(p): g["initial_lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    table, matrix = foundation.items.residual_ID, foundation.person_head.weight
    assert rate[id(table)] == pytest.approx(7 * rate[id(matrix)])
    assert decay[id(table)] == 0
    assert decay[id(matrix)] == 0.5
    assert decay[id(foundation.person_head.bias)] == 0
    assert set(rate) == {id(p) for p in foundation.parameters()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("warmup_fraction", 1.0),
        ("reread_items", -1),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"FitConfig.{name}={value} must"):
        FitConfig(**{name: value})  # type: ignore[arg-type]
