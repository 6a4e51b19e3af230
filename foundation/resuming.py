"""Checkpoints of a training: when they are written, and which of them can be gone on from."""

import json
import logging
import time
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

# `torch.save` files are zip archives, which end with their index. A process has a state of its own.
_ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")


class SaveByClock(TrainerCallback):
    """Saves when enough time has passed since the last save, and after the last step.

    What comes after training (measuring, saving) may be cut short too.

    Args:
        seconds: between two saves.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.saved_at = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a save when one is due."""
        is_due = time.monotonic() - self.saved_at >= self.seconds
        if is_due or state.global_step >= state.max_steps:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count from here."""
        self.saved_at = time.monotonic()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of which every file is whole, or None; says which ones it passes over.

    Args:
        folder: holds ``checkpoint-<step>`` folders.
    """
    newest_first = sorted(
        (p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
        reverse=True,
    )
    for checkpoint in newest_first:
        if _is_whole(checkpoint):
            return checkpoint
        logger.warning("%s was cut short and is passed over", checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        # Opening compares the header with the length of the file.
        with safe_open(checkpoint / "model.safetensors", framework="pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    archives = [list(checkpoint.glob(name)) for name in _ARCHIVES]
    return all(found and all(map(zipfile.is_zipfile, found)) for found in archives)
