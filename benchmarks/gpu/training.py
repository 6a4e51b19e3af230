"""Training tokens a second at several shapes, sequences packed to 8k and rows of near-equal length.

What is timed is the model's own step: rows read, three losses, backward, clipped AdamW. The Trainer
around it is seen in part 2, where it logs the same two numbers.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.gpu.models import random_model
from benchmarks.gpu.session import Session
from benchmarks.scoring_rounds import median
from benchmarks.scoring_ways import Shape
from foundation import FitConfig, Foundation
from foundation.computing import TAKES_PACKED_ROWS, computing, training_attention
from foundation.plan import LOSSES, TrainingPlan, counted_as
from foundation.utilisation import flops_utilisation, matrix_peak_flops
from promptify.assembly import PromptBook
from promptify.splits import Split

# Micro-batches that are drawn once and gone through again and again.
_BATCHES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to compute a step.

    Attributes:
        packed: rows end to end; else padded rows of near-equal length.
        checkpointing: whether activations are computed again.
        attention: by transformers' name; None for what training takes there.
        compiled: whether layers are compiled.
    """

    packed: bool = True
    checkpointing: bool = False
    attention: str | None = None
    compiled: bool = False

    @property
    def name(self) -> str:
        """In the column `split`."""
        words = ["packed" if self.packed else "grouped"]
        words += ["checkpointed"] * self.checkpointing
        words += [self.attention] if self.attention else []
        words += ["compiled"] * self.compiled
        return "training, " + ", ".join(words)


def measure_training(
    session: Session,
    book: PromptBook,
    split: Split,
    *,
    name: str,
    shape: Shape,
    arm: Arm,
    positions: int,
    steps: int,
) -> None:
    """Rows of one shape and one arm: tokens a second and model FLOPs utilisation.

    Args:
        session: takes the rows.
        book: whose rows are trained on.
        split: which events train.
        name: of the shape, the column `model`.
        shape: of the decoder.
        arm: how it is computed.
        positions: of one step, padding among them.
        steps: that are timed, after a third as many that warm up.
    """
    device = session.device
    is_cuda = device.type == "cuda"
    session.forget_peak()
    model = random_model(book, shape, device=device)
    config = FitConfig(
        epochs=1,
        positions_per_batch=positions,
        bf16=True,
        gradient_checkpointing=arm.checkpointing,
        compile=arm.compiled,
    )
    plan = TrainingPlan(book, split.train, config, packed=arm.packed)
    batches = batches_on(plan, device)
    model.refresh_readings()
    model.train()
    attention = arm.attention or training_attention(model.decoder, device.type, bf16=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=is_cuda)
    seconds, tokens = [], []
    with computing(model.decoder, config, attention=attention):
        turns = itertools.islice(batches, steps // 3 + 1 + steps)
        for step, batch in enumerate(tqdm(turns, total=steps // 3 + 1 + steps, desc=name, delay=2)):
            taken = timed_step(model, batch, config.loss_weights, optimizer, is_cuda=is_cuda)
            if step > steps // 3:
                tokens.append(int(batch["num_tokens"]))
                seconds.append(taken)
    rates = np.array(tokens) / np.array(seconds)
    rate = median(rates)
    body = model.num_parameters()
    used = flops_utilisation(
        1.0, body_parameters=body, device_type=device.type, dtype=torch.bfloat16
    )
    cells: dict[str, Any] = {
        "task": f"rows of {book.prompter.config.max_prompt_tokens}, {positions} positions",
        "split": arm.name,
        "model": name,
        "params": body,
        "context_tokens": book.prompter.config.max_prompt_tokens,
        "n": steps,
    }
    session.add(rate, metric="tokens_per_s", **cells)
    session.add((rate[0] * used, (rate[1][0] * used, rate[1][1] * used)), metric="mfu", **cells)


def measure_peak(session: Session) -> None:
    """The matrix peak that utilisation is relative to."""
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        peak = matrix_peak_flops(session.device.type, dtype)
        session.add(
            peak / 1e12,
            task=f"matrix product, {name}",
            split="peak",
            model="hardware",
            metric="tflops",
        )


def batches_on(plan: TrainingPlan, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Some whole micro-batches, over and over; counts and tokens stay on the CPU."""
    return itertools.cycle(
        [_on(plan[step], device) for step in range(min(_BATCHES, plan.num_batches))]
    )


def _on(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    stay = {"counts", "num_tokens"}
    return {name: t if name in stay else t.to(device) for name, t in batch.items()}


def tokens_per_s(
    objective: nn.Module,
    trained: Foundation,
    loss_weights: Mapping[str, float],
    book: PromptBook,
    split: Split,
    config: FitConfig,
    *,
    steps: int,
) -> float:
    """Of a few steps, after as many that warm up: what says how many epochs fit into some time.

    Batches are assembled anew in each, as in training: small models wait for them.

    Args:
        objective: a foundation, or a distillation into one; it is changed.
        trained: the foundation itself.
        loss_weights: weight of each loss by name.
        book: whose rows are trained on.
        split: which events train.
        config: of the training that follows.
        steps: that are timed.
    """
    device, is_cuda = trained.device, trained.device.type == "cuda"
    attention = training_attention(trained.decoder, device.type, bf16=config.bf16)
    plan = TrainingPlan(book, split.train, config, packed=attention in TAKES_PACKED_ROWS)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5, fused=is_cuda)
    objective.train()
    seconds = tokens = 0.0
    with computing(trained.decoder, config, attention=attention):
        for step in range(2 * steps):
            began = time.perf_counter()
            batch = _on(plan[step % plan.num_batches], device)
            timed_step(objective, batch, loss_weights, optimizer, is_cuda=is_cuda, bf16=config.bf16)
            if step >= steps:
                seconds += time.perf_counter() - began
                tokens += int(batch["num_tokens"])
    return tokens / seconds


def timed_step(
    objective: nn.Module,
    batch: dict[str, Tensor],
    loss_weights: Mapping[str, float],
    optimizer: torch.optim.Optimizer,
    *,
    is_cuda: bool,
    bf16: bool = True,
) -> float:
    """Seconds of one optimiser step.

    Raises:
        FloatingPointError: the loss is not a number.
    """
    if is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.autocast("cuda" if is_cuda else "cpu", torch.bfloat16, enabled=bf16):
        sums = objective(**batch)
        counts = dict(zip(LOSSES, batch["counts"].clamp(min=1).tolist(), strict=True))
        loss = torch.stack(
            [w * sums[name] / counts[counted_as(name)] for name, w in loss_weights.items()]
        ).sum()
    loss.backward()
    nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not np.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}: what was timed is no training")
    return time.perf_counter() - began
