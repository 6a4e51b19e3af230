"""What a training shows while it runs: a progress bar, and curves for TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from foundation.plan import LOSSES, counted_as


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


class SinceLog:
    """What has been seen since the last log, kept on the device: reading it would make it wait.

    Args:
        names: of the losses that are summed.
        device: where they are computed.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        self._names = names
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=self._device)
        self._counts = torch.zeros(len(LOSSES), dtype=torch.float64, device=self._device)
        self._tokens = torch.zeros((), dtype=torch.float64, device=self._device)
        self._positions = 0
        self._since = time.monotonic()

    def add(self, sums: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Count a micro-batch, each loss with its own count."""
        self._sums += torch.stack([sums[name].detach() for name in self._names])
        self._counts += batch["counts"]
        self._tokens += batch["num_tokens"]
        self._positions += batch["ids_RT"].numel()

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training."""
        self._since += seconds

    def curves(self, accelerator: Any) -> dict[str, float]:
        """Means of the losses, speed and padding since the last call, over all processes."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        positions = self._tokens.new_tensor(float(self._positions))
        seen = torch.cat([self._sums, self._counts, torch.stack([self._tokens, positions])])
        if accelerator.num_processes > 1:
            seen = accelerator.reduce(seen, reduction="sum")
        values = seen.tolist()
        counts = dict(zip(LOSSES, values[len(self._names) : -2], strict=True))
        tokens, all_positions = values[-2:]
        self._clear()
        means = {
            f"loss/{name}": total / max(1.0, counts[counted_as(name)])
            for name, total in zip(self._names, values, strict=False)
        }
        return {
            **means,
            "tokens_per_s": tokens / elapsed,
            "padding": 1 - tokens / max(1.0, all_positions),
        }
