"""A training that was stopped anywhere goes on as if it never had been."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from foundation import FitConfig, FitResult, Foundation, trainer
from foundation.resuming import (
    Spent,
    Standing,
    best_weights,
    last_whole_checkpoint,
    spent_until,
)
from foundation.trainer import FoundationTrainer
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

CONFIG = FitConfig(
    epochs=3,
    positions_per_batch=2048,
    learning_rate=3e-3,
    reread_items=4,
    refresh_steps=3,
    text_positions=32,
    evaluate_steps=2,
    checkpoint_seconds=0,
    full_softmax_items=10,
    num_negatives=32,
)
# Best at step 4, nothing better after: with a patience of 2 training stops at step 8.
QUALITY = {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.3, 10: 0.25, 12: 0.1}

Fit = Callable[..., tuple[Foundation, FitResult]]


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def fit(make: Any, books: dict[str, PromptBook], split: Split) -> Fit:
    def run(
        out: Path,
        *,
        killed_in_step: int | None = None,
        quality: dict[int, float] = QUALITY,
        hard_negatives: Any = None,
        **changes: Any,
    ) -> tuple[Foundation, FitResult]:
        model: Foundation = make("slot", dropout=0.3)
        steps = []
        plain = FoundationTrainer.compute_loss

        def compute_loss(trainer: FoundationTrainer, *arguments: Any, **options: Any) -> Any:
            steps.append(trainer.state.global_step + 1)
            if steps[-1] == killed_in_step:
                raise Killed
            return plain(trainer, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FoundationTrainer, "compute_loss", compute_loss)
            result = model.fit(
                books["slot"],
                split,
                config=replace(CONFIG, **changes),
                out=out,
                validate=lambda: {"ndcg@10": quality.get(steps[-1], 0.0), "auc": 0.5},
                hard_negatives=hard_negatives,
            )
        return model, result

    return run


@pytest.fixture(scope="module")
def unbroken(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Foundation, FitResult]:
    return fit(tmp_path_factory.mktemp("unbroken"), patience=2)


def curves(result: FitResult) -> dict[str, list[tuple[int, float]]]:
    """What was logged of the training itself, not of the machine."""
    names = [name for name in result.history if name.startswith(("loss", "valid"))]
    return {name: result.history[name] for name in [*names, "grad_norm", "learning_rate"]}


def test_dropout_and_every_loss_are_in_the_trajectory(
    fit: Fit, unbroken: tuple[Foundation, FitResult], tmp_path: Path
) -> None:
    other, result = fit(tmp_path, patience=2, seed=1)
    assert not torch.equal(other.person_head.weight, unbroken[0].person_head.weight)
    assert curves(result).keys() >= {"loss", "loss/next_item", "loss/action", "loss/text"}
    assert curves(result) != curves(unbroken[1])


@pytest.mark.parametrize(
    "killed_in_step", sorted(np.random.default_rng(0).choice(range(2, 9), size=3, replace=False))
)
def test_stopped_in_any_step_the_trajectory_is_the_same(
    fit: Fit, unbroken: tuple[Foundation, FitResult], tmp_path: Path, killed_in_step: int
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=int(killed_in_step), patience=2)
    checkpoint = last_whole_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{killed_in_step - 1}"
    model, result = fit(tmp_path, patience=2)
    assert curves(result) == curves(unbroken[1])
    assert (result.best_step, result.ended) == (unbroken[1].best_step, unbroken[1].ended)
    ours, wanted = model.state_dict(), unbroken[0].state_dict()
    assert [name for name in wanted if not torch.equal(ours[name], wanted[name])] == []


def test_hard_negatives_are_the_same_after_a_stop(
    fit: Fit, books: dict[str, PromptBook], tmp_path: Path
) -> None:
    log = books["slot"].interactions
    mined = np.random.default_rng(0).integers(-1, log.num_items, (log.num_events, 3))
    options = {"hard_negatives": mined.astype(np.int32), "num_hard_negatives": 8, "epochs": 1}
    wanted, result = fit(tmp_path / "unbroken", **options)
    with pytest.raises(Killed):
        fit(tmp_path / "stopped", killed_in_step=3, **options)
    model, resumed = fit(tmp_path / "stopped", **options)
    assert curves(resumed) == curves(result)
    assert torch.equal(model.person_head.weight, wanted.person_head.weight)
    # Without them another model comes out: they are in the trajectory.
    other, _ = fit(tmp_path / "without", epochs=1)
    assert not torch.equal(other.person_head.weight, wanted.person_head.weight)


def test_it_stops_when_nothing_gets_better_and_ends_with_the_best(
    fit: Fit, unbroken: tuple[Foundation, FitResult], tmp_path: Path
) -> None:
    model, result = unbroken
    assert result.steps == 8
    assert result.best_step == 4
    assert result.ended == "no better ndcg@10 in 2 validations"
    assert [step for step, _ in result.history["valid/ndcg@10"]] == [2, 4, 6, 8]
    # The same training, cut off at the best step by its schedule of validations alone.
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=5, patience=2)
    wanted = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    ours = model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in wanted.items())


def test_a_training_that_stopped_early_does_not_go_on(
    fit: Fit, unbroken: tuple[Foundation, FitResult], tmp_path: Path
) -> None:
    fit(tmp_path, patience=2)
    again, result = fit(tmp_path, patience=2, killed_in_step=9)
    assert curves(result) == curves(unbroken[1])
    assert (result.steps, result.best_step) == (8, 4)
    assert torch.equal(again.person_head.weight, unbroken[0].person_head.weight)
    # More patience takes it up where it stopped.
    _, patient = fit(tmp_path, patience=5)
    assert patient.steps > 8
    assert patient.ended == "every step was taken"


def test_seconds_are_of_every_call_and_not_of_the_time_between(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=5)
    checkpoint = last_whole_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    path = checkpoint / "trainer_state.json"
    spent = spent_until(TrainerState.load_from_json(str(path)))
    assert spent.seconds > 0
    assert spent.thread_seconds > 0
    told = path.read_text().replace(f'"spent": {spent.seconds}', '"spent": 1000.0')
    path.write_text(
        told.replace(f'"thread_spent": {spent.thread_seconds}', '"thread_spent": 400.0')
    )
    began, working = time.monotonic(), time.process_time()
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=9)
    _, result = fit(tmp_path)
    assert 1000 < result.seconds < 1000 + time.monotonic() - began
    assert 400 < result.thread_seconds < 400 + time.process_time() - working


def test_a_checkpoint_of_before_says_the_wall_time_alone() -> None:
    state = TrainerState(stateful_callbacks={})
    state.stateful_callbacks = {"SaveByClock": {"args": {}, "attributes": {"spent": 7.0}}}
    assert spent_until(state) == Spent(seconds=7.0, thread_seconds=7.0)


def test_what_else_a_machine_does_is_in_the_wall_time_alone(fit: Fit, tmp_path: Path) -> None:
    def waits(_: object, name: str) -> float:
        time.sleep(0.2)
        return 0.5

    quality = type("Slow", (dict,), {"get": lambda *given: waits(*given[:2])})()
    _, result = fit(tmp_path, quality=quality, epochs=1)
    waited = 0.2 * len(result.history["valid/ndcg@10"])
    assert waited > 0.3
    assert 0 < result.thread_seconds < result.seconds - 0.9 * waited


def test_without_patience_every_step_is_taken_and_the_best_is_kept(
    fit: Fit, unbroken: tuple[Foundation, FitResult], tmp_path: Path
) -> None:
    model, result = fit(tmp_path)
    assert result.steps > 8
    assert result.best_step == 4
    # The last step is validated too, on the schedule or not.
    assert result.history["valid/ndcg@10"][-1][0] == result.steps
    assert torch.equal(model.person_head.weight, unbroken[0].person_head.weight)
    [kept] = (tmp_path / "best").iterdir()
    assert kept == best_weights(tmp_path / "checkpoints", 4)


def test_a_clock_that_goes_back_takes_no_checkpoint(
    fit: Fit, unbroken: tuple[Foundation, FitResult], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=4, patience=2)
    checkpoints = tmp_path / "checkpoints"
    later = time.time() + 3600
    [first] = checkpoints.iterdir()
    os.utime(first, (later, later))
    # One that is further on was cut short, and is in nobody's way.
    (checkpoints / "checkpoint-7").mkdir()
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=6, patience=2)
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-5"]
    _, result = fit(tmp_path, patience=2)
    assert curves(result) == curves(unbroken[1])


def test_killed_between_two_checkpoints_one_is_whole(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, whole = tmp_path / "checkpoints", []
    remove, drop = shutil.rmtree, trainer.drop_weights_but

    def looked(then: Callable[..., None], *given: Any, **options: Any) -> None:
        whole.append(last_whole_checkpoint(checkpoints))
        then(*given, **options)
        whole.append(last_whole_checkpoint(checkpoints))

    monkeypatch.setattr(trainer.shutil, "rmtree", partial(looked, remove))
    monkeypatch.setattr(trainer, "drop_weights_but", partial(looked, drop))
    fit(tmp_path, quality={2: 0.1, 4: 0.2}, epochs=1)
    assert len(whole) > 8
    assert None not in whole


def test_a_checkpoint_whose_best_weights_are_cut_is_passed_over(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=6)
    checkpoints = tmp_path / "checkpoints"
    assert last_whole_checkpoint(checkpoints) is not None
    best = best_weights(checkpoints, 4)
    best.write_bytes(best.read_bytes()[:1000])
    assert last_whole_checkpoint(checkpoints) is None
    shutil.rmtree(tmp_path / "best")
    assert last_whole_checkpoint(checkpoints) is None


def test_a_checkpoint_of_other_processes_is_said_and_kept(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=6)
    checkpoints = tmp_path / "checkpoints"
    checkpoint = last_whole_checkpoint(checkpoints)
    assert checkpoint is not None
    with pytest.raises(BadInput, match=r"was written by 1 process, and 2 would go on.*launch 1"):
        last_whole_checkpoint(checkpoints, processes=2)
    alone = checkpoint / "rng_state.pth"
    for process in range(2):
        shutil.copy(alone, checkpoint / f"rng_state_{process}.pth")
    alone.unlink()
    before = sorted(checkpoint.iterdir())
    with pytest.raises(BadInput, match=r"was written by 2 processes, and 1 would go on.*launch 2"):
        fit(tmp_path)
    assert sorted(checkpoint.iterdir()) == before
    assert last_whole_checkpoint(checkpoints, processes=2) == checkpoint
    # One of the two was cut short: nobody wrote it whole.
    (checkpoint / "rng_state_1.pth").write_bytes(b"PK")
    assert last_whole_checkpoint(checkpoints, processes=2) is None
    (checkpoint / "rng_state_1.pth").unlink()
    assert last_whole_checkpoint(checkpoints, processes=2) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1, "learning_rate": 0.01}, "another learning_rate, seed;"),
        ({"next_item_weight": 0.5}, "another next_item_weight, loss_weights;"),
    ],
)
def test_another_training_is_not_gone_on_with(
    fit: Fit, tmp_path: Path, change: dict[str, float], named: str
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, killed_in_step=3)
    with pytest.raises(BadInput, match=named):
        fit(tmp_path, **change)
    # How often it is saved and how long it waits are not of its course.
    _, result = fit(tmp_path, checkpoint_seconds=9.0, patience=5)
    with pytest.raises(BadInput, match="or another out="):
        fit(tmp_path, **change)
    assert result.steps > 3


def test_a_training_on_other_events_is_another(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=0.2, evaluate_steps=0)
    make("slot").fit(books["slot"], split, config=config, out=tmp_path)
    fewer = split.train.copy()
    fewer[np.flatnonzero(fewer)[0]] = False
    with pytest.raises(BadInput, match="of a training with another data;"):
        make("slot").fit(books["slot"], replace(split, train=fewer), config=config, out=tmp_path)


@pytest.mark.parametrize(
    ("changes", "max_prompt_tokens", "named"),
    [
        ({"dropout": 0.5}, 192, "another dropout;"),
        ({"size": "mini"}, 192, "another size;"),
        ({}, 140, "another max_prompt_tokens;"),
    ],
)
def test_a_training_of_another_model_or_of_other_prompts_is_another(
    make: Any,
    books: dict[str, PromptBook],
    split: Split,
    tmp_path: Path,
    changes: dict[str, Any],
    max_prompt_tokens: int,
    named: str,
) -> None:
    book, config = books["slot"], replace(CONFIG, epochs=0.2, evaluate_steps=0)
    make("slot").fit(book, split, config=config, out=tmp_path)
    other = PromptBook(book.prompter.with_budget(max_prompt_tokens), book.interactions)
    with pytest.raises(BadInput, match=f"of a training with {named}"):
        make("slot", **changes).fit(other, split, config=config, out=tmp_path)
    # What is fitted on a finished model is not of its course.
    again = make("slot")
    again.settings = replace(again.settings, rank_weight=(0.5,))
    again.fit(book, split, config=config, out=tmp_path)


def test_the_same_items_said_otherwise_are_other_prompts(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    book, config = books["slot"], replace(CONFIG, epochs=0.2, evaluate_steps=0)
    make("slot").fit(book, split, config=config, out=tmp_path)
    profiles = book.said.profiles
    backwards = replace(profiles, ids=profiles.ids[::-1].copy())
    said = replace(book.said, profiles=backwards)
    other = PromptBook(book.prompter, book.interactions, said)
    with pytest.raises(BadInput, match="of a training with another prompts;"):
        make("slot").fit(other, split, config=config, out=tmp_path)


def test_what_was_not_yet_written_down_is_not_compared(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=0.2, evaluate_steps=0)
    make("slot").fit(books["slot"], split, config=config, out=tmp_path)
    path = tmp_path / "settings.json"
    began = json.loads(path.read_text())
    path.write_text(json.dumps({name: began[name] for name in ("seed", "data")}))
    make("slot", dropout=0.5).fit(books["slot"], split, config=config, out=tmp_path)
    with pytest.raises(BadInput, match="another seed;"):
        make("slot").fit(books["slot"], split, config=replace(config, seed=1), out=tmp_path)


def test_where_a_training_stands_is_read_from_its_log() -> None:
    def logged(*values: float) -> Standing:
        entries: list[dict[str, float]] = [{"step": 1, "loss": 2.0}]
        entries += [{"step": 10 * n, "valid/ndcg@10": v} for n, v in enumerate(values, 1)]
        return Standing.of(entries)

    assert logged() == Standing()
    assert logged(0.2, 0.1) == Standing(best_step=10, best=0.2, waited=1)
    # Of equals the earliest is the best.
    assert logged(0.2, 0.2, 0.2) == Standing(best_step=10, best=0.2, waited=2)
    assert logged(0.1, 0.2) == Standing(best_step=20, best=0.2, waited=0)
    assert [logged(0.2, 0.1).is_over(patience) for patience in (0, 1, 2)] == [False, True, False]
    # A validation that is not a number is not better than anything.
    assert logged(float("nan"), 0.1).best_step == 20


def test_patience_needs_something_to_wait_for(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="patience=2 counts validations: set evaluate_steps"):
        FitConfig(patience=2)
    config = replace(CONFIG, patience=2)
    with pytest.raises(ValueError, match="patience=2 counts validations: give fit a validate="):
        make("slot").fit(books["slot"], split, config=config, out=tmp_path)
    with pytest.raises(ValueError, match=r"waits for 'ndcg@10'.*only auc"):
        make("slot").fit(
            books["slot"], split, config=config, out=tmp_path, validate=lambda: {"auc": 0.5}
        )
