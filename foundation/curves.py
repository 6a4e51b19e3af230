"""What a training shows while it runs: a progress bar, and curves for TensorBoard."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class QuietProgress(ProgressCallback):
    """The progress bar alone; losses stand beside it instead of filling the screen."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the losses and what was validated."""
        if self.training_bar is not None and logs:
            shown = {k.removeprefix("loss/"): f"{v:.3f}" for k, v in logs.items() if "/" in k}
            self.training_bar.set_postfix(shown)


class Curves(TrainerCallback):
    """Writes every number that is logged to TensorBoard, under its own name.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open a file, whose points replace those a killed run wrote after its checkpoint."""
        if state.is_world_process_zero:
            self._writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write a point of each curve."""
        if self._writer is None or not logs:
            return
        for name, value in logs.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, state.global_step)
        self._writer.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
