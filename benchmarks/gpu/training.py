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
from foundation import FitConfig
from foundation.computing import computing
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
        attention: by transformers' name; None for the model's own, PyTorch's SDPA.
    """

    packed: bool = True
    checkpointing: bool = False
    attention: str | None = None

    @property
    def name(self) -> str:
        """In the column `split`."""
        words = ["packed" if self.packed else "grouped"]
        words += ["checkpointed"] * self.checkpointing
        words += [self.attention] if self.attention else []
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
    )
    plan = TrainingPlan(book, split.train, config, packed=arm.packed)
    batches = batches_on(plan, device)
    model.refresh_readings()
    model.train()
    attention = arm.attention or model.decoder.config._attn_implementation
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
    stay = {"counts", "num_tokens"}
    drawn = [plan[step] for step in range(min(_BATCHES, plan.num_batches))]
    return itertools.cycle(
        [
            {name: t if name in stay else t.to(device) for name, t in batch.items()}
            for batch in drawn
        ]
    )


def tokens_per_s(
    objective: nn.Module,
    loss_weights: Mapping[str, float],
    plan: TrainingPlan,
    device: torch.device,
    *,
    steps: int,
) -> float:
    """Of a few steps, after as many that warm up: what says how many epochs fit into some time.

    Args:
        objective: a foundation, or a distillation into one; it is changed.
        loss_weights: weight of each loss by name.
        plan: whose first micro-batches are gone through.
        device: where the objective is.
        steps: that are timed.
    """
    is_cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5, fused=is_cuda)
    objective.train()
    seconds = tokens = 0.0
    for step, batch in enumerate(itertools.islice(batches_on(plan, device), 2 * steps)):
        taken = timed_step(objective, batch, loss_weights, optimizer, is_cuda=is_cuda)
        if step >= steps:
            seconds, tokens = seconds + taken, tokens + int(batch["num_tokens"])
    return tokens / seconds


def timed_step(
    objective: nn.Module,
    batch: dict[str, Tensor],
    loss_weights: Mapping[str, float],
    optimizer: torch.optim.Optimizer,
    *,
    is_cuda: bool,
) -> float:
    """Seconds of one optimiser step in bfloat16.

    Raises:
        FloatingPointError: the loss is not a number.
    """
    if is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.autocast("cuda" if is_cuda else "cpu", torch.bfloat16):
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
