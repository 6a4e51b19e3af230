"""Checkpoints of a training: when they are written, which can be gone on from, which is best."""

import json
import logging
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from promptify.validation import BadInput

logger = logging.getLogger(__name__)

# `torch.save` files are zip archives, which end with their index. Of a sharded training the
# optimizer's state is called `.bin`.
_ARCHIVES = ("optimizer.*", "scheduler.pt")

WATCHED = "ndcg@10"
"""The validation metric that decides which weights are best, and when it is time to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a training stands among its own validations; all of it is read from what was logged.

    Attributes:
        best_step: optimiser steps at the best validation, the earliest of equals; None before any.
        best: the metric there.
        waited: validations since then, none of them better.
    """

    best_step: int | None = None
    best: float = float("-inf")
    waited: int = 0

    @classmethod
    def of(cls, log_history: Iterable[Mapping[str, Any]]) -> Self:
        """Read it from a Trainer's log."""
        step, best, waited = None, float("-inf"), 0
        for entry in log_history:
            value = entry.get(f"valid/{WATCHED}")
            if value is None:
                continue
            if value > best:
                step, best, waited = int(entry["step"]), float(value), 0
            else:
                waited += 1
        return cls(best_step=step, best=best, waited=waited)

    def is_over(self, patience: int) -> bool:
        """Whether so many validations in a row brought nothing; never with a patience of 0."""
        return 0 < patience <= self.waited


def best_weights(checkpoints: Path, step: int) -> Path:
    """Where the weights of the best validation are kept, beside the checkpoints.

    Args:
        checkpoints: folder of the checkpoints.
        step: optimiser steps at that validation.
    """
    return checkpoints.with_name("best") / f"step-{step}.safetensors"


def drop_weights_but(kept: Path) -> None:
    """Delete the weights of validations that no checkpoint calls the best any more."""
    for path in kept.parent.glob("step-*.safetensors"):
        if path != kept:
            path.unlink()


def thread_seconds() -> float:
    """Processor time of this process for each of torch's threads, in seconds.

    On a machine that does nothing else this is the wall time of a training; on a shared one two
    trainings that are given as much of it are given as much computing.
    """
    return time.process_time() / torch.get_num_threads()


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Time on two clocks.

    Attributes:
        seconds: on the wall.
        thread_seconds: see the function.
    """

    seconds: float = 0.0
    thread_seconds: float = 0.0

    @classmethod
    def now(cls) -> "Spent":
        """Where the clocks stand; differences alone mean something."""
        return cls(seconds=time.monotonic(), thread_seconds=thread_seconds())

    def and_since(self, began: "Spent") -> "Spent":
        """This, and what went by since a moment."""
        now = Spent.now()
        return Spent(
            seconds=self.seconds + now.seconds - began.seconds,
            thread_seconds=self.thread_seconds + now.thread_seconds - began.thread_seconds,
        )


class SaveByClock(TrainerCallback, ExportableState):
    """Saves when enough time has passed since the last save, and after the last step.

    What comes after training (measuring, saving) may be cut short too. A checkpoint tells how long
    the training has taken: see `spent_until`.

    Args:
        seconds: between two saves.
        spent: what the training took until the checkpoint that it goes on from; nothing when None.
    """

    def __init__(self, seconds: float, *, spent: Spent | None = None) -> None:
        self.seconds = seconds
        self.spent = spent or Spent()
        self.began = Spent.now()
        self.saved_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint."""
        spent = self.spent.and_since(self.began)
        told = {"spent": spent.seconds, "thread_spent": spent.thread_seconds}
        return {"args": {"seconds": self.seconds}, "attributes": told}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a save when one is due."""
        is_due = [time.monotonic() - self.saved_at >= self.seconds]
        if args.world_size > 1:
            # A save takes all processes, and their clocks differ: the main one's counts.
            torch.distributed.broadcast_object_list(is_due, src=0)
        if is_due[0] or state.global_step >= state.max_steps:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count from here."""
        self.saved_at = time.monotonic()


def spent_until(state: TrainerState) -> Spent:
    """What a training took until a checkpoint, stops between its calls left out."""
    # A mapping by name, whatever its annotation says.
    kept: Any = state.stateful_callbacks
    told = kept[SaveByClock.__name__]["attributes"]
    seconds = float(told["spent"])
    # Checkpoints of before know the wall alone.
    return Spent(seconds=seconds, thread_seconds=float(told.get("thread_spent", seconds)))


def last_whole_checkpoint(folder: Path, *, processes: int = 1) -> Path | None:
    """The newest checkpoint of which every file is whole, or None; says which ones it passes over.

    Args:
        folder: holds ``checkpoint-<step>`` folders.
        processes: that train; each wrote a file of its own.

    Raises:
        BadInput: the newest whole one was written by another number of them.
    """
    newest_first = sorted(
        (p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
        reverse=True,
    )
    for checkpoint in newest_first:
        if _is_whole(checkpoint):
            wrote = _processes_of(checkpoint)
            if wrote == processes:
                return checkpoint
            if wrote:
                raise BadInput(
                    f"{checkpoint} was written by {wrote} process{'es' * (wrote > 1)}, and "
                    f"{processes} would go on from it: launch {wrote}, or give another folder to "
                    "begin anew."
                )
        logger.warning("%s was cut short, and is passed over", checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether all of it is whole but what each process wrote for itself."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        standing = Standing.of(state["log_history"])
        weights = [checkpoint / "model.safetensors"]
        if standing.best_step is not None:
            weights.append(best_weights(checkpoint.parent, standing.best_step))
        for path in weights:
            # Opening compares the header with the length of the file.
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False
    archives = [list(checkpoint.glob(name)) for name in _ARCHIVES]
    return all(found and all(map(zipfile.is_zipfile, found)) for found in archives)


def _processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint; 0 where what one of them wrote is not whole."""
    alone = checkpoint / "rng_state.pth"
    each = [alone] if alone.exists() else list(checkpoint.glob("rng_state_*.pth"))
    is_cut = each == [checkpoint / "rng_state_0.pth"] or not all(map(zipfile.is_zipfile, each))
    return 0 if is_cut else len(each)
