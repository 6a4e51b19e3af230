"""Hugging Face's `Trainer`, with summed losses, planned batches and learning rates of their own."""

import copy
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.utils.data import DataLoader
from transformers import Trainer

from foundation.checkpoint import write_weights
from foundation.computing import attending
from foundation.curves import SinceLog
from foundation.diverging import check_step
from foundation.plan import LOSSES, counted_as
from foundation.resuming import WATCHED, Standing, best_weights, drop_weights_but
from foundation.utilisation import flops_utilisation, held_memory_bytes

if TYPE_CHECKING:
    from foundation.model import Foundation
    from foundation.training import FitConfig


logger = logging.getLogger(__name__)

RATE_WIDTH = 64
"""Hidden width of the decoder that `FitConfig.learning_rate` is stated for."""


class FoundationTrainer(Trainer):
    """Sums each loss over the whole optimiser step and divides it by its own count.

    Args:
        foundation: the model that learns, alone or inside the objective that is trained.
        config: schedule.
        loss_weights: weight of each loss by name.
        validate: called every `evaluate_steps`, on the main process; what it returns is logged.
        serving_attention: what the decoder attends with outside of training.
        options: of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        foundation: "Foundation",
        config: "FitConfig",
        loss_weights: Mapping[str, float],
        validate: Callable[[], dict[str, float]] | None,
        serving_attention: str,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.foundation = foundation
        self.config = config
        self.loss_weights = loss_weights
        self.validate = validate
        self.serving_attention = serving_attention
        # The loss is already divided by the step's counts: no second division by accumulation.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        # What is trained, as one module on this process; sharded, it is a copy that is trained, and
        # this one is filled in before it is read.
        self.whole: nn.Module = options["model"]
        if self.is_fsdp_enabled:
            self.whole.to(self.args.device)
            self._shard_anew()
        self._step_batches: list[dict[str, Tensor]] = []
        self._step_losses: list[Tensor] = []
        self._since_log = SinceLog(list(loss_weights), self.args.device)
        self._refresh_steps = self._steps_between_readings()
        self._refreshed_at = -1
        self._validated_at = -1

    def _steps_between_readings(self) -> int:
        """Optimiser steps between two readings of the catalogue, which takes no more than they do.

        A large one, read as often as is asked for, would take longer than all that is trained on.
        """
        asked, positions = self.config.refresh_steps, self.config.positions_per_batch
        if "reading" not in self.foundation.settings.slot_parts:
            return asked
        catalogue = int(self.foundation.item_pieces.lengths.sum())
        as_many = -(-catalogue // (positions * self.config.accumulate))
        if as_many <= asked:
            return asked
        logger.info(
            "the catalogue is read again every %s steps instead of %s: it holds as many positions "
            "as they do",
            f"{as_many:,}",
            f"{asked:,}",
        )
        return as_many

    def _shard_anew(self) -> None:
        self.model = self.model_wrapped = copy.deepcopy(self.whole)
        # By this name accelerate asks a model which of its layers are gathered one at a time.
        there = {type(module).__name__ for module in self.model.modules()}
        layers: Any = [n for n in self.foundation.decoder._no_split_modules or () if n in there]
        self.model._no_split_modules = layers

    # Batches and losses.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The plan in its own order: it is shuffled already."""
        assert self.train_dataset is not None
        loader = DataLoader(
            self.train_dataset,
            batch_size=1,
            shuffle=False,
            collate_fn=only_batch,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Micro-batches of one optimiser step, and how many predictions of each kind they hold."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_batches, self._step_losses = batches, []
        counts = torch.zeros(len(LOSSES), device=device)
        for batch in batches:
            counts += batch["counts"].to(device)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return batches, counts

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the losses, each divided by its count in the whole optimiser step."""
        if (
            self.state.global_step % self._refresh_steps == 0
            and self._refreshed_at != self.state.global_step
        ):
            self._refresh()
        assert isinstance(num_items_in_batch, Tensor)
        step_counts = dict(zip(LOSSES, num_items_in_batch.clamp(min=1), strict=True))
        # Nothing counts in a micro-batch that only keeps a process busy while others have one.
        counts = dict(zip(LOSSES, inputs["counts"] > 0, strict=True))
        sums = {name: s * counts[counted_as(name)] for name, s in model(**inputs).items()}
        terms = [
            weight * sums[name] / step_counts[counted_as(name)]
            for name, weight in self.loss_weights.items()
        ]
        loss = torch.stack(terms).sum()
        self._step_losses.append(loss.detach())
        self._since_log.add(sums, inputs)
        # Gradients are averaged over processes, while the counts are summed over them.
        return loss * self.accelerator.num_processes

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        # The last moment before the weights change.
        name = f"step-{self.state.global_step}-process-{self.args.process_index}.safetensors"
        check_step(
            self._step_losses,
            float(norm),
            self._step_batches,
            step=self.state.global_step,
            path=self._checkpoints.with_name("diverged") / name,
            learning_rate=self.config.learning_rate,
        )
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, in which rows of tables learn faster than matrices, and those by their width.

        A row of a table (embeddings, residuals) gets a gradient only when its token or item turns
        up: it must make more of each, and does not decay. Each entry of a matrix moves by as much a
        step, whatever its width, so that what it does to a vector moves by as much more as it is
        wide: a matrix learns by so much less. So does all of a decoder that came from a checkpoint:
        at the rate of a table that knows nothing its embeddings would be lost within some steps.
        """
        module: Any = model or self.model
        decayed = set(self.get_decay_parameter_names(module))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                is_table = "embed_tokens" in name or "residual" in name
                share = self._share(name, parameter, is_table=is_table)
                decays = name in decayed and not is_table
                groups.setdefault((share, decays), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, module)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": self.args.learning_rate * share,
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (share, decays), parameters in sorted(groups.items(), key=lambda g: g[0])
            ],
            **options,
        )
        return self.optimizer

    def _share(self, name: str, parameter: nn.Parameter, *, is_table: bool) -> float:
        """Of the learning rate that a parameter has."""
        width: int = self.foundation.decoder.config.hidden_size
        of_matrices = min(1.0, RATE_WIDTH / width)
        if "lora_" in name:  # Adapters are narrow.
            return 1.0
        if self.foundation.settings.pretrained and "decoder." in name:
            return of_matrices
        if is_table:
            return self.config.table_rate
        # Norms and biases move a vector by as much at any width.
        return 1.0 if parameter.ndim < 2 else of_matrices

    # Curves and validation.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the losses apart, speed, utilisation, padding and memory to what is logged."""
        if "loss" in logs:
            logs.update(self._since_log.curves(self.accelerator))
            logs["utilisation"] = flops_utilisation(
                logs["tokens_per_s"] / self.accelerator.num_processes,
                body_parameters=self.foundation.num_parameters(),
                device_type=self.args.device.type,
                dtype=torch.bfloat16 if self.args.bf16 else torch.float32,
            )
            logs["memory_bytes"] = held_memory_bytes(self.args.device.type)
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        every, step = self.config.evaluate_steps, self.state.global_step
        is_due = every > 0 and (step % every == 0 or step >= self.state.max_steps)
        # The Trainer comes by again at the end of the epoch, at the same step.
        if self.validate is not None and is_due and step != self._validated_at:
            self._validated_at = step
            # Logging what was validated must not stand for logging the losses of the same step.
            should_log = self.control.should_log
            self._validate(self.validate)
            self.control.should_log = should_log
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _validate(self, validate: Callable[[], dict[str, float]]) -> None:
        began = time.monotonic()
        self._refresh()
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            # What is compiled is compiled for training's shapes alone.
            with (
                attending(self.foundation.decoder, self.serving_attention),
                set_stance("force_eager"),
            ):
                found = [validate()]
        if self.accelerator.num_processes > 1:
            # All must agree on which weights are best and whether to stop.
            torch.distributed.broadcast_object_list(found, src=0)
        if self.config.patience and WATCHED not in found[0]:
            raise ValueError(
                f"FitConfig.patience={self.config.patience} waits for {WATCHED!r}, which the "
                f"validation does not return (only {', '.join(found[0]) or 'nothing'}); "
                "set patience=0."
            )
        self.log({f"valid/{name}": value for name, value in found[0].items()})
        standing = Standing.of(self.state.log_history)
        if standing.best_step == self.state.global_step and self.args.should_save:
            path = best_weights(self._checkpoints, self.state.global_step)
            path.parent.mkdir(exist_ok=True, parents=True)
            write_weights(self._learned(self.whole.state_dict()), path)
        if standing.is_over(self.config.patience):
            self.control.should_training_stop = True
            self.control.should_save = True
        self._since_log.pause(time.monotonic() - began)

    def _refresh(self) -> None:
        """Bring the whole module and the table of readings up to date."""
        self.gather()
        with self.accelerator.autocast(), set_stance("force_eager"):
            self.foundation.refresh_readings()
        self._refreshed_at = self.state.global_step
        if self.is_fsdp_enabled:
            self._copy_buffers(self.whole, self.model)

    # Weights.

    @property
    def _checkpoints(self) -> Path:
        return Path(str(self.args.output_dir))

    @torch.no_grad()
    def gather(self) -> None:
        """Fill in the whole module from its shards; every process must call it."""
        if not self.is_fsdp_enabled:
            return
        assert self.model is not None
        target = dict(self.whole.named_parameters())
        for name, parameter in self.model.named_parameters():
            shard: Any = parameter
            target[name].copy_(shard.full_tensor() if hasattr(shard, "full_tensor") else shard)
        self._copy_buffers(self.model, self.whole)

    @staticmethod
    @torch.no_grad()
    def _copy_buffers(source: Any, target: Any) -> None:
        for name, buffer in target.named_buffers():
            buffer.copy_(source.get_buffer(name))

    def load_best(self, step: int) -> None:
        """Put the weights of the best validation back into the whole module."""
        self.accelerator.wait_for_everyone()  # the main process may be writing them
        self._load(best_weights(self._checkpoints, step))

    def _load(self, path: Path) -> None:
        self._issue_warnings_after_load(self.whole.load_state_dict(load_file(path), strict=False))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer.train`; what is sharded is filled in before it is cut up."""
        if resume_from_checkpoint and self.is_fsdp_enabled:
            self._load(Path(resume_from_checkpoint) / "model.safetensors")
            self._shard_anew()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.is_fsdp_enabled:
            self._load(Path(resume_from_checkpoint) / "model.safetensors")

    def _learned(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What training changes: all of it, or what stands beside frozen weights."""
        frozen = {name for name, p in self.whole.named_parameters() if not p.requires_grad}
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The Trainer expects a PreTrainedModel. What a checkpoint lacks is the tied head and what
        # is frozen.
        frozen = {name for name, p in self.whole.named_parameters() if not p.requires_grad}
        lost = [
            name
            for name in load_result.missing_keys
            if name not in frozen and not name.endswith("decoder.lm_head.weight")
        ]
        if lost or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint lacks {lost} and has strange {load_result.unexpected_keys}; "
                "delete it to train anew."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is learned; every process must call it."""
        self.gather()
        self._save(output_dir)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self._learned(self.whole.state_dict()), folder / "model.safetensors")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer would write the weights a second time.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint, and delete the others once every process has written its part.

        The one that stays is that of this step. The Trainer would keep the folder that changed
        last, on a clock that may have gone back since.
        """
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        kept = self._checkpoints / f"checkpoint-{self.state.global_step}"
        for path in self._checkpoints.glob("checkpoint-*"):
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)
        # Only then: those that are deleted may call other weights the best.
        best = Standing.of(self.state.log_history).best_step
        if best is not None:
            drop_weights_but(best_weights(self._checkpoints, best))


def only_batch(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate a list of one: an element of the plan is a whole micro-batch."""
    [batch] = batches
    return batch
