"""Train a foundation with Hugging Face's `Trainer`, subclassed for loss, batches and evaluation.

    result = foundation.fit(book, split, config=FitConfig(epochs=8), out=Path("run/train"))

Killed at any moment, the same call goes on from the last checkpoint and ends with the same weights.
A finished training goes on from its end: the same call loads it, and another needs another folder.
Under `accelerate launch` the same call trains on many devices, and every process ends with the same
weights; the files in `foundation/configs` say how.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerState, TrainingArguments

from foundation.adapters import LoraOptions, adapted
from foundation.asking import Asking
from foundation.beginning import check_beginning, course_of, remember_beginning
from foundation.computing import TAKES_PACKED_ROWS, computing, training_attention
from foundation.curves import Curves, QuietProgress
from foundation.diverging import DivergedError
from foundation.plan import TrainingPlan
from foundation.resuming import (
    WATCHED,
    SaveByClock,
    Spent,
    Standing,
    last_whole_checkpoint,
    spent_until,
)
from foundation.trainer import FoundationTrainer, only_batch
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation
    from promptify.assembly import PromptBook
    from promptify.splits import Split

__all__ = ["DivergedError", "FitConfig", "FitResult", "LoraOptions", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Schedule and losses of one training.

    Args:
        epochs: passes over the training events; of a part of one, that share of its batches.
        short_window_share: share of the training windows that are cut short at a log-uniform
            length, so that short histories are learned as well as long ones.
        positions_per_batch: positions of one micro-batch, padding among them.
        least_steps: optimiser steps; a log of which `epochs` passes are fewer is passed over more
            often.
        accumulate: micro-batches per optimiser step, of each process.
        learning_rate: peak of a cosine schedule with a linear warm-up, of a decoder up to 64 wide.
            Matrices of a wider one learn at 64 / width of it (as in μP, arXiv 2203.03466), so that
            the same rate suits decoders of any size.
        table_rate: how much faster embeddings and residuals learn, at any width. A pretrained
            decoder's embeddings, norms and biases learn as its matrices do.
        warmup_fraction: share of the steps that warm up.
        weight_decay: of matrices; norms, biases, residuals and embeddings are not decayed.
        next_item_weight: of the retrieval loss.
        action_weight: of the action loss.
        text_weight: of the LM loss.
        text_positions: positions of each micro-batch that the LM loss is drawn from: profiles and
            instructions repeat, and the product with the vocabulary is dear.
        reread_items: items of the retrieval softmax whose text each micro-batch reads again with
            gradient, drawn from all of them alike (decision 69).
        refresh_steps: optimiser steps between two readings of the whole catalogue; more where it
            holds more positions than so many steps.
        full_softmax_items: largest catalogue whose retrieval softmax runs over every item.
        num_negatives: sampled items per optimiser step for larger catalogues.
        num_hard_negatives: most items per optimiser step, of those that were mined for its events,
            that stand beside the sample where `fit` is given any.
        evaluate_steps: optimiser steps between two validations, the last step being one; 0 for
            none. Training ends with the weights of the validation with the best NDCG@10.
        patience: validations without a better NDCG@10 after which training stops; 0 for never.
        checkpoint_seconds: time between two checkpoints: the most that a kill can cost.
        packing: lay rows end to end, with nothing padded; None where that pays: on a GPU in
            bfloat16, whose kernels take rows of any length. Elsewhere packed rows cost a mask over
            all pairs of positions, and rows of near-equal length are padded instead, by a few
            percent.
        bf16: compute in bfloat16 where autocast allows.
        gradient_checkpointing: keep no activations within a layer but compute them again: about a
            third more time, for a fraction of the memory.
        compile: compile the decoder's layers with `torch.compile`.
        lora: train low-rank adapters in place of the decoder's own weights; None trains them all.
        seed: of every shuffle and draw.
    """

    epochs: float = 4
    short_window_share: float = 0.25
    positions_per_batch: int = 8192
    least_steps: int = 0
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
    num_hard_negatives: int = 1024
    evaluate_steps: int = 0
    patience: int = 0
    checkpoint_seconds: float = 60.0
    packing: bool | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    lora: LoraOptions | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "positions_per_batch",
            "accumulate",
            "refresh_steps",
            "num_negatives",
            "num_hard_negatives",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"FitConfig.{name}={getattr(self, name)} must be at least 1.")
        for name in (
            "least_steps",
            "reread_items",
            "text_positions",
            "evaluate_steps",
            "patience",
            "checkpoint_seconds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"FitConfig.{name}={getattr(self, name)} must not be negative.")
        if self.patience and not self.evaluate_steps:
            raise ValueError(
                f"FitConfig.patience={self.patience} counts validations: set evaluate_steps too."
            )
        if not 0 <= self.short_window_share <= 1:
            raise ValueError(
                f"FitConfig.short_window_share={self.short_window_share} must be in [0, 1]."
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"FitConfig.warmup_fraction={self.warmup_fraction} must be in [0, 1).")
        for name in ("epochs", "learning_rate", "table_rate"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(
                    f"FitConfig.{name}={getattr(self, name)} must be above 0, and finite."
                )
        for name in ("weight_decay", "next_item_weight", "action_weight", "text_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(
                    f"FitConfig.{name}={getattr(self, name)} must be at least 0, and finite."
                )

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
        seconds: wall time of all calls, of one that was killed until its last checkpoint.
        best_step: optimiser steps after which validation was best, whose weights are kept; None
            where nothing was validated, and the last weights are kept.
        ended: why training ended.
        thread_seconds: what `seconds` says, on the clock of `foundation.resuming.thread_seconds`,
            so without what else the machine did; 0 where a GPU trained.
        threads: of torch, which that clock divides by; 0 where it was not written down.
    """

    history: dict[str, list[tuple[int, float]]]
    steps: int
    seconds: float
    best_step: int | None = None
    ended: str = ""
    thread_seconds: float = 0.0
    threads: int = 0


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
    hard_negatives: NDArray[np.int32] | None = None,
    asking: Asking | None = None,
) -> FitResult:
    """Train; see `Foundation.fit`.

    Args:
        foundation: trained in place.
        book: pieces of the interactions.
        split: which events train.
        config: schedule and losses.
        out: folder for checkpoints and TensorBoard events.
        objective: a module that holds the foundation and returns summed losses by name for a batch
            of the plan (a distillation); the foundation itself when left out. Where it has a method
            `identity`, the JSON values by name that this returns are part of what a call that goes
            on must be given again.
        loss_weights: weight of each loss by name; a loss called ``teacher_X`` is divided by the
            count of ``X``. Default: the three of `config`, and those of `asking`.
        validate: called every `evaluate_steps`, on the main process; what it returns is logged, and
            its ``ndcg@10`` decides which weights are kept.
        hard_negatives: int32 [E, n], as in `Foundation.fit`. A call that goes on where another
            stopped must be given the same.
        asking: what is asked beside the rows, as in `Foundation.fit`; the same holds of it.

    Raises:
        DivergedError: a loss is not a number; the last checkpoint is kept, and the batch written to
            `out`.
        ValueError: the validation does not return what `patience` waits for, the book is of another
            catalogue than the model, the hard negatives or what is asked do not fit, the model's
            weights are rounded, or the checkpoints in `out` are of another training: of other
            settings, data or prompts, of a model of other settings or another size, by another
            teacher, beside other weights that adapters leave alone, or by another number of
            processes. Weights that learn are not compared: a training that was stopped goes on
            with the model that it left, whose weights are others by then.
    """
    if config.patience and validate is None:
        raise ValueError(
            f"FitConfig.patience={config.patience} counts validations: give fit a validate="
        )
    _check_catalogue(foundation, book)
    decoder = foundation.decoder
    weights = foundation.settings.weights
    if weights != "float32":
        raise BadInput(f"a model in {weights} cannot be trained; train the one it was made of.")
    started = Spent.now()
    serving_attention = decoder.config._attn_implementation
    attention, packed = attention_and_packing(foundation, config, asking)
    asked_weights = {} if asking is None else asking.loss_weights
    with (
        adapted(foundation, config.lora, seed=config.seed),
        computing(decoder, config, attention=attention),
    ):
        trainer = _trainer(
            foundation,
            objective or foundation,
            book,
            split,
            config,
            out=out,
            packed=packed,
            loss_weights=loss_weights or {**config.loss_weights, **asked_weights},
            validate=validate,
            hard_negatives=hard_negatives,
            asking=asking,
            serving_attention=serving_attention,
        )
        settings = course_of(trainer, book, split)
        spent = _train(trainer, settings, out / "checkpoints")
        standing = Standing.of(trainer.state.log_history)
        if standing.best_step not in (None, trainer.state.global_step):
            trainer.load_best(standing.best_step)
    foundation.refresh_readings()
    foundation.eval()
    spent = spent.and_since(started)
    if foundation.device.type != "cpu":  # of which the processor's time says little
        spent = Spent(seconds=spent.seconds)
    return _result(trainer.state, config, spent=spent)


def _check_catalogue(foundation: "Foundation", book: "PromptBook") -> None:
    """Refuse a book of other items than the model's: a slot would stand for another one."""
    mine, others = foundation.item_pieces, book.item_pieces
    if (
        foundation.item_ids != tuple(book.interactions.item_ids)
        or not np.array_equal(mine.offsets, others.offsets)
        or not np.array_equal(mine.ids, others.ids)
    ):
        raise BadInput(
            "book holds other items than the model's catalogue, by their ids or their texts; train "
            "Foundation.with_catalogue(book, …), or give the book that the model was created with."
        )


def attention_and_packing(
    foundation: "Foundation", config: FitConfig, asking: Asking | None = None
) -> tuple[str, bool]:
    """What a training attends with, and whether its rows are packed, on the model's device.

    Args:
        foundation: that is trained.
        config: of the training.
        asking: what is asked beside the rows.
    """
    decoder = foundation.decoder
    attention = training_attention(decoder, foundation.device.type, bf16=config.bf16)
    if asking is not None and attention in TAKES_PACKED_ROWS:
        # Their kernels know no mask, which questions beside each other need.
        attention = decoder.config._attn_implementation
    packed = attention in TAKES_PACKED_ROWS if config.packing is None else config.packing
    return attention, packed


def _trainer(
    foundation: "Foundation",
    objective: nn.Module,
    book: "PromptBook",
    split: "Split",
    config: FitConfig,
    *,
    out: Path,
    packed: bool,
    loss_weights: Mapping[str, float],
    validate: Callable[[], dict[str, float]] | None,
    hard_negatives: NDArray[np.int32] | None,
    asking: Asking | None,
    serving_attention: str,
) -> FoundationTrainer:
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
        save_strategy="no",  # The clock saves; see `SaveByClock`.
        save_total_limit=None,  # By the clock too; see `FoundationTrainer`.
        eval_strategy="no",
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=foundation.device.type == "cuda",
        remove_unused_columns=False,
        use_cpu=foundation.device.type == "cpu",
        ddp_broadcast_buffers=False,  # Every process reads the catalogue with the same weights.
    )
    # A lone process that sees several GPUs would cut every tensor of a batch along its first axis
    # between them (`nn.DataParallel`); ours are of many lengths. Many devices take a launcher.
    arguments._n_gpu = min(1, arguments.n_gpu)
    processes = max(1, arguments.world_size)
    plan = TrainingPlan(
        book,
        split.train,
        config,
        packed=packed,
        processes=processes,
        competing=foundation.competing,
        hard_negatives=hard_negatives,
        asking=asking,
    )
    if len(plan) <= plan.steps_share:
        # Its one step would be the first of a warm-up, whose rate is 0.
        arguments.warmup_steps = 0
    # Twenty points make a curve, of a short training too.
    arguments.logging_steps = max(1, min(20, len(plan) // (config.accumulate * processes) // 20))
    trainer = FoundationTrainer(
        model=objective,
        args=arguments,
        train_dataset=plan,
        data_collator=only_batch,
        foundation=foundation,
        config=config,
        loss_weights=loss_weights,
        validate=validate,
        serving_attention=serving_attention,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietProgress())
    trainer.add_callback(Curves(out / "tensorboard"))
    return trainer


def _train(trainer: FoundationTrainer, settings: Mapping[str, Any], checkpoints: Path) -> Spent:
    """Train from the last whole checkpoint on, to the end; what is trained is whole again then.

    Returns:
        What earlier calls took until that checkpoint.
    """
    checkpoint = last_whole_checkpoint(checkpoints, processes=trainer.args.world_size)
    spent = Spent()
    if checkpoint is None:
        if trainer.args.should_save:
            remember_beginning(trainer.foundation, settings, checkpoints)
    else:
        check_beginning(trainer.foundation, settings, checkpoints)
        logger.info("resuming from %s", checkpoint.name)
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        spent = spent_until(state)
        if Standing.of(state.log_history).is_over(trainer.config.patience):
            # It had stopped early; the Trainer would go on. The best weights are all that is left.
            trainer.state = state
            return spent
    trainer.add_callback(SaveByClock(trainer.config.checkpoint_seconds, spent=spent))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.gather()
    return spent


def _result(state: TrainerState, config: FitConfig, *, spent: Spent) -> FitResult:
    history: dict[str, list[tuple[int, float]]] = {}
    for entry in state.log_history:
        for name, value in entry.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                history.setdefault(name, []).append((int(entry["step"]), float(value)))
    standing = Standing.of(state.log_history)
    ended = "every step was taken"
    if standing.is_over(config.patience) and state.global_step < state.max_steps:
        ended = f"no better {WATCHED} in {standing.waited} validations"
    best = "" if standing.best_step is None else f"; best at step {standing.best_step}"
    logger.info("%d steps: %s%s", state.global_step, ended, best)
    return FitResult(
        history=history,
        steps=state.global_step,
        seconds=spent.seconds,
        thread_seconds=spent.thread_seconds,
        threads=torch.get_num_threads(),
        best_step=standing.best_step,
        ended=ended,
    )
