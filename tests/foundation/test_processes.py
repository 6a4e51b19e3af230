"""Two processes train as one does that accumulates twice as much."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foundation import FitConfig, Foundation
from foundation.plan import TrainingPlan
from foundation.resuming import last_whole_checkpoint
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.splits import Split

CONFIG = FitConfig(
    epochs=2.4,
    positions_per_batch=2300,
    learning_rate=3e-3,
    reread_items=8,
    refresh_steps=3,
    text_positions=64,
    evaluate_steps=3,
    checkpoint_seconds=0,
    full_softmax_items=10,
    num_negatives=64,
    num_hard_negatives=16,
)
SET = {"epochs", "positions_per_batch", "learning_rate", "reread_items", "refresh_steps"}
SET |= {"text_positions", "evaluate_steps", "checkpoint_seconds", "full_softmax_items"}
SET |= {"num_negatives", "num_hard_negatives"}


@pytest.fixture(scope="module")
def launched(
    make: Any,
    market: Interactions,
    tmp_path_factory: pytest.TempPathFactory,
    launch_two: Callable[..., str],
) -> tuple[Path, Path]:
    """A saved foundation, and what two processes made of it, replicated and sharded."""
    folder, out = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    make("slot", dropout=0.0).save_pretrained(folder / "model")
    market.save(folder / "interactions")
    mined = np.random.default_rng(0).integers(-1, market.num_items, (market.num_events, 3))
    np.save(folder / "hard_negatives.npy", mined.astype(np.int32))
    for kind in ("replicated", "sharded"):
        (out / kind).mkdir()
    told = json.dumps({name: getattr(CONFIG, name) for name in SET})
    launch_two(Path(__file__).with_name("fit_together.py"), folder, out, told)
    return folder, out


@pytest.fixture(scope="module")
def alone(
    launched: tuple[Path, Path],
    books: dict[str, PromptBook],
    split: Split,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Foundation, Any]:
    model = Foundation.from_pretrained(launched[0] / "model")
    # An odd number: one process has nothing left to do in the last step.
    assert TrainingPlan(books["slot"], split.train, CONFIG).num_batches % 2 == 1
    result = model.fit(
        books["slot"],
        split,
        config=replace(CONFIG, accumulate=2),
        out=tmp_path_factory.mktemp("alone"),
        validate=lambda: {"ndcg@10": float(model.embed_items().sum())},
        hard_negatives=np.load(launched[0] / "hard_negatives.npy"),
    )
    return model, result


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_are_one(
    launched: tuple[Path, Path], alone: tuple[Foundation, Any], kind: str
) -> None:
    model, wanted = alone
    told = [json.loads((launched[1] / kind / f"result-{r}.json").read_text()) for r in range(2)]
    assert wanted.steps >= 4
    for name in ("loss", "loss/next_item", "loss/action", "loss/text", "grad_norm"):
        curve = [value for _, value in told[0]["history"][name]]
        assert len(curve) == wanted.steps
        assert curve == pytest.approx([value for _, value in wanted.history[name]], rel=1e-3)
    assert told[0]["best_step"] == told[1]["best_step"] == wanted.best_step
    # The main process validates for all.
    assert told[0]["validated"] > 0
    assert told[1]["validated"] == 0
    first, second = (load_file(launched[1] / kind / f"model-{r}.safetensors") for r in range(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        # Adam makes much of a gradient's last bits where gradients are tiny.
        torch.testing.assert_close(first[name], tensor, atol=2e-3, rtol=1e-2)


def test_one_process_writes_checkpoints_that_hold_the_state_of_all(
    launched: tuple[Path, Path],
) -> None:
    for kind, optimizer in (("replicated", "optimizer.pt"), ("sharded", "optimizer.bin")):
        [checkpoint] = (launched[1] / kind / "fit" / "checkpoints").iterdir()
        names = {path.name for path in checkpoint.iterdir()}
        assert {"model.safetensors", optimizer, "rng_state_0.pth", "rng_state_1.pth"} <= names
        assert len(list((launched[1] / kind / "fit" / "best").iterdir())) == 1
        assert last_whole_checkpoint(checkpoint.parent, processes=2) == checkpoint
        # A run that was cut short goes on in a file of its own.
        curves = list((launched[1] / kind / "fit" / "tensorboard").iterdir())
        assert len(curves) == {"replicated": 1, "sharded": 2}[kind]


def test_a_checkpoint_without_a_state_for_every_process_is_passed_over(
    launched: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(launched[1] / "replicated" / "fit", tmp_path / "fit")
    [checkpoint] = (tmp_path / "fit" / "checkpoints").iterdir()
    assert last_whole_checkpoint(checkpoint.parent, processes=2) == checkpoint
    (checkpoint / "rng_state_1.pth").unlink()
    assert last_whole_checkpoint(checkpoint.parent, processes=2) is None
