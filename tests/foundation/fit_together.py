"""What each process of a launch runs: the same training twice, replicated and sharded.

accelerate launch --config_file foundation/configs/fsdp2.yaml fit_together.py FOLDER OUT CONFIG
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from foundation import FitConfig, Foundation
from foundation.checkpoint import write_weights
from foundation.trainer import FoundationTrainer
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.splits import leave_one_out

SHARDED = "ACCELERATE_USE_FSDP"


class Killed(Exception):
    """Stands for a kill of all processes at once."""


def fit(folder: Path, out: Path, config: FitConfig) -> None:
    """Train a saved foundation, and write down what every process ends with."""
    foundation = Foundation.from_pretrained(folder / "model")
    market = Interactions.load(folder / "interactions")
    book = PromptBook(foundation.prompter, market)
    split = leave_one_out(market, surface="jobs")
    validated: list[float] = []

    def validate() -> dict[str, float]:
        validated.append(float(foundation.embed_items().sum()))
        return {"ndcg@10": validated[-1]}

    result = foundation.fit(
        book,
        split,
        config=config,
        out=out / "fit",
        validate=validate,
        hard_negatives=np.load(folder / "hard_negatives.npy", mmap_mode="r"),
    )
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    write_weights(foundation.state_dict(), out / f"model-{rank}.safetensors")
    told = {"history": result.history, "best_step": result.best_step, "validated": len(validated)}
    (out / f"result-{rank}.json").write_text(json.dumps(told))


def fit_sharded(folder: Path, out: Path, config: FitConfig) -> None:
    """Train with every layer in shards of its own, killed once."""
    _shard_between_processes()
    plain, FoundationTrainer.compute_loss = FoundationTrainer.compute_loss, _killed_in_step_three
    with suppress(Killed):
        fit(folder, out, config)
    FoundationTrainer.compute_loss = plain
    fit(folder, out, config)


def main(folder: Path, out: Path, config: FitConfig) -> None:
    torch.set_num_threads(1)
    if os.environ["RANK"] != "0":
        # Its clock never asks for a checkpoint: the main process's must do for both.
        config = replace(config, checkpoint_seconds=1e9)
    sharding = os.environ.pop(SHARDED)
    fit(folder, out / "replicated", config)
    os.environ[SHARDED] = sharding
    fit_sharded(folder, out / "sharded", config)


def _killed_in_step_three(trainer: FoundationTrainer, *arguments: Any, **options: Any) -> Any:
    if trainer.state.global_step == 2:
        layers = trainer.foundation.decoder._no_split_modules
        names = [type(module).__name__ for module in trainer.model.modules()]
        # Of every kind of layer, one that is sharded by itself.
        assert {f"FSDP{layer}" for layer in layers} <= set(names)
        raise Killed
    return _COMPUTE_LOSS(trainer, *arguments, **options)


_COMPUTE_LOSS = FoundationTrainer.compute_loss


def _shard_between_processes() -> None:
    """Let accelerate shard without a GPU: it does so for every kind of device but this."""
    plain = PartialState.__init__

    def told(state: PartialState, *arguments: Any, **options: Any) -> None:
        plain(state, *arguments, **options)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = told  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), FitConfig(**json.loads(sys.argv[3])))
