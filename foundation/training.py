"""Train a foundation with Hugging Face's `Trainer`, subclassed for loss, batches and evaluation.

    result = foundation.fit(book, split, config=FitConfig(epochs=8), out=Path("run/train"))

Killed at any moment, the same call goes on from the last checkpoint and ends with the same weights.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from foundation.checkpoint import write_weights
from foundation.plan import TrainingPlan

if TYPE_CHECKING:
    from foundation.model import Foundation
    from promptify.assembly import PromptBook
    from promptify.splits import Split

logger = logging.getLogger(__name__)

LOSSES = ("next_item", "action", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Schedule and losses of one training.

    Args:
        epochs: passes over the training events.
        positions_per_batch: padded positions of one micro-batch.
        accumulate: micro-batches per optimiser step.
        learning_rate: peak of a cosine schedule with a linear warm-up.
        table_rate: how much faster embeddings and residuals learn than matrices.
        warmup_fraction: share of the steps that warm up.
        weight_decay: of matrices; norms, biases, residuals and embeddings are not decayed.
        next_item_weight: of the retrieval loss.
        action_weight: of the action loss.
        text_weight: of the LM loss.
        text_positions: positions of each micro-batch that the LM loss is drawn from: profiles and
            instructions repeat, and the product with the vocabulary is dear.
        reread_items: items of each micro-batch whose text is read again with gradient.
        refresh_steps: optimiser steps between two readings of the whole catalogue.
        full_softmax_items: largest catalogue whose retrieval softmax runs over every item.
        num_negatives: sampled items per optimiser step for larger catalogues.
        evaluate_steps: optimiser steps between two validations; 0 for none.
        checkpoint_seconds: time between two checkpoints: the most that a kill can cost.
        bf16: compute in bfloat16 where autocast allows.
        seed: of every shuffle and draw.
    """

    epochs: int = 4
    positions_per_batch: int = 8192
    accumulate: int = 1
    learning_rate: float = 1e-3
    table_rate: float = 10.0
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    next_item_weight: float = 1.0
    action_weight: float = 1.0
    text_weight: float = 0.1
    text_positions: int = 1024
    reread_items: int = 64
    refresh_steps: int = 100
    full_softmax_items: int = 50_000
    num_negatives: int = 8192
    evaluate_steps: int = 0
    checkpoint_seconds: float = 60.0
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "positions_per_batch",
            "accumulate",
            "refresh_steps",
            "num_negatives",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"FitConfig.{name}={getattr(self, name)} must be at least 1.")
        if self.learning_rate <= 0:
            raise ValueError(f"FitConfig.learning_rate={self.learning_rate} must be above 0.")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss by name."""
        return {
            "next_item": self.next_item_weight,
            "action": self.action_weight,
            "text": self.text_weight,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """What training leaves beside the weights.

    Attributes:
        history: what was logged, by name: (optimiser step, value) pairs.
        steps: optimiser steps.
        seconds: wall time of this call (a resumed call counts only itself).
    """

    history: dict[str, list[tuple[int, float]]]
    steps: int
    seconds: float


def fit(
    foundation: "Foundation",
    book: "PromptBook",
    split: "Split",
    *,
    config: FitConfig,
    out: Path,
    objective: nn.Module | None = None,
    loss_weights: Mapping[str, float] | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train; see `Foundation.fit`.

    Args:
        foundation: trained in place.
        book: pieces of the interactions.
        split: which events train.
        config: schedule and losses.
        out: folder for checkpoints and TensorBoard events.
        objective: a module that holds the foundation and returns summed losses by name for a batch
            of the plan (a distillation); the foundation itself when left out.
        loss_weights: weight of each loss by name; a loss called ``teacher_X`` is divided by the
            count of ``X``. Default: the three of `config`.
        validate: called every `evaluate_steps`; what it returns is logged.

    Raises:
        FloatingPointError: a loss is not a number; the last good checkpoint is kept.
    """
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=1,  # The plan holds every epoch.
        per_device_train_batch_size=1,  # One element of the plan is one micro-batch.
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=config.warmup_fraction,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="no",  # The clock saves; see `_Clock`.
        save_total_limit=1,
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=20,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        use_cpu=foundation.device.type == "cpu",
    )
    processes = max(1, arguments.world_size)
    plan = TrainingPlan(book, split.train, config, steps_share=config.accumulate * processes)
    trainer = FoundationTrainer(
        model=objective or foundation,
        args=arguments,
        train_dataset=plan,
        data_collator=_only,
        foundation=foundation,
        config=config,
        loss_weights=loss_weights or config.loss_weights,
        validate=validate,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_QuietProgress())
    trainer.add_callback(_Clock(config.checkpoint_seconds))
    trainer.add_callback(_tensorboard(out))

    started = time.monotonic()
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    if checkpoint is not None:
        logger.info("resuming from %s", checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    foundation.refresh_readings()
    foundation.eval()
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    history: dict[str, list[tuple[int, float]]] = {}
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                history.setdefault(name, []).append((int(entry["step"]), float(value)))
    return FitResult(
        history=history, steps=trainer.state.global_step, seconds=time.monotonic() - started
    )


class FoundationTrainer(Trainer):
    """Sums each loss over the whole optimiser step and divides it by its own count.

    Args:
        foundation: the model that learns, alone or inside the objective that is trained.
        config: schedule.
        loss_weights: weight of each loss by name.
        validate: called every `evaluate_steps`; what it returns is logged.
        options: of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        foundation: "Foundation",
        config: FitConfig,
        loss_weights: Mapping[str, float],
        validate: Callable[[], dict[str, float]] | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.foundation = foundation
        self.config = config
        self.loss_weights = loss_weights
        self.validate = validate
        # The loss is already divided by the step's counts: no second division by accumulation.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._logged_sums: dict[str, float] = {}
        self._logged_counts: dict[str, int] = {}
        self._logged_tokens = 0
        self._logged_since = time.monotonic()
        self._refreshed_at = -1

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The plan in its own order: it is shuffled already."""
        assert self.train_dataset is not None
        loader = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Micro-batches of one optimiser step, and how many predictions of each kind they hold."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(len(LOSSES), device=device)
        for batch in batches:
            counts += torch.tensor(self.counts(batch), device=device, dtype=counts.dtype)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return batches, counts

    def counts(self, batch: dict[str, Tensor]) -> tuple[int, int, int]:
        """Predictions in a micro-batch, in the order of `LOSSES`."""
        pieces = self.foundation.item_pieces
        reread = batch["reread_items"].cpu().numpy()
        item_tokens = int(pieces.lengths[reread].sum()) - len(reread)
        return (
            len(batch["next_item_K"]),
            len(batch["label_M"]),
            len(batch["text_position_N"]) + item_tokens,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, in which rows of tables (embeddings, residuals) learn faster and do not decay.

        A row gets a gradient only when its token or item turns up: it must make more of each.
        """
        module = model or self.model
        decayed = set(self.get_decay_parameter_names(module))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                is_table = "embed_tokens" in name or "residual" in name
                groups.setdefault((is_table, name in decayed), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, module)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": self.args.learning_rate * (self.config.table_rate if is_table else 1),
                    "weight_decay": 0.0 if is_table or not decays else self.args.weight_decay,
                }
                for (is_table, decays), parameters in sorted(groups.items(), key=lambda g: g[0])
            ],
            **options,
        )
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the losses, each divided by its count in the whole optimiser step."""
        if (
            self.state.global_step % self.config.refresh_steps == 0
            and self._refreshed_at != self.state.global_step
        ):
            self.foundation.refresh_readings()
            self._refreshed_at = self.state.global_step
        assert isinstance(num_items_in_batch, Tensor)
        step_counts = dict(zip(LOSSES, num_items_in_batch.clamp(min=1), strict=True))
        sums = model(**inputs)
        terms = [
            weight * sums[name] / step_counts[_counted_as(name)]
            for name, weight in self.loss_weights.items()
        ]
        loss = torch.stack(terms).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}; the last checkpoint is kept. "
                f"Lower learning_rate={self.config.learning_rate} or train without bf16."
            )
        self._note(sums, inputs)
        # Gradients are averaged over processes, while the counts are summed over them.
        return loss * self.accelerator.num_processes

    def _note(self, sums: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
        """Remember losses until they are logged, each with its own count."""
        counts = dict(zip(LOSSES, self.counts(inputs), strict=True))
        for name, value in sums.items():
            self._logged_sums[name] = self._logged_sums.get(name, 0.0) + float(value.detach())
            self._logged_counts[name] = self._logged_counts.get(name, 0) + counts[_counted_as(name)]
        self._logged_tokens += int(inputs["num_tokens"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the losses apart and tokens per second (padding not counted) to what is logged."""
        if "loss" in logs:
            for name, total in self._logged_sums.items():
                logs[f"loss/{name}"] = total / max(1, self._logged_counts[name])
            elapsed = time.monotonic() - self._logged_since
            logs["tokens_per_s"] = self._logged_tokens / max(elapsed, 1e-9)
            self._logged_sums.clear()
            self._logged_counts.clear()
            self._logged_tokens, self._logged_since = 0, time.monotonic()
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        every = self.config.evaluate_steps
        if self.validate is not None and every and self.state.global_step % every == 0:
            self.foundation.refresh_readings()
            self.log({f"valid/{name}": value for name, value in self.validate().items()})
            self._logged_since = time.monotonic()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(state_dict or self.model.state_dict(), folder / "model.safetensors")


class _Clock(TrainerCallback):
    """Saves when enough time has passed since the last save."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.saved_at = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if time.monotonic() - self.saved_at >= self.seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.saved_at = time.monotonic()


class _QuietProgress(ProgressCallback):
    """The progress bar alone; losses stand beside it instead of filling the screen."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {k.removeprefix("loss/"): f"{v:.3f}" for k, v in logs.items() if "/" in k}
            self.training_bar.set_postfix(shown)


def _counted_as(name: str) -> str:
    return name.removeprefix("teacher_")


def _tensorboard(out: Path) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(out / "tensorboard")))


def _only(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    [batch] = batches
    return batch


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    The Trainer writes `trainer_state.json` last: a checkpoint without it was cut short.
    """
    whole = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda p: int(p.name.removeprefix("checkpoint-")), default=None)
