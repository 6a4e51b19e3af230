"""Hugging Face's `Trainer`, with summed losses, planned batches and two learning rates."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from foundation.checkpoint import write_weights

if TYPE_CHECKING:
    from foundation.model import Foundation
    from foundation.training import FitConfig

LOSSES = ("next_item", "action", "text")


class DivergedError(ValueError):
    """A loss is not a number any more; the message says what to change."""


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
        config: "FitConfig",
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
        self._validated_at = -1

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The plan in its own order: it is shuffled already."""
        assert self.train_dataset is not None
        loader = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=only_batch)
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
        module: Any = model or self.model
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
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step}; the last checkpoint "
                f"is kept. Lower learning_rate={self.config.learning_rate} or train without bf16."
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
        step = self.state.global_step
        is_due = every > 0 and step % every == 0 and step != self._validated_at
        if self.validate is not None and is_due:
            # The Trainer comes by again at the end of the epoch, at the same step.
            self._validated_at = step
            self.foundation.refresh_readings()
            self.log({f"valid/{name}": value for name, value in self.validate().items()})
            self._logged_since = time.monotonic()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The Trainer expects a PreTrainedModel. What a checkpoint lacks is the tied head alone.
        lost = [n for n in load_result.missing_keys if not n.endswith("decoder.lm_head.weight")]
        if lost or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint lacks {lost} and has strange {load_result.unexpected_keys}; "
                "delete it to train anew."
            )

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        assert self.model is not None
        write_weights(state_dict or self.model.state_dict(), folder / "model.safetensors")


def _counted_as(name: str) -> str:
    return name.removeprefix("teacher_")


def only_batch(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate a list of one: an element of the plan is a whole micro-batch."""
    [batch] = batches
    return batch
