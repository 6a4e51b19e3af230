"""What is left when a loss is not a number any more: one line, and the batch to look at."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from foundation.checkpoint import write_weights

logger = logging.getLogger(__name__)


class DivergedError(ValueError):
    """A loss or a gradient is not a number any more; the message says where, and what to change."""


def check_step(
    losses: Sequence[Tensor],
    grad_norm: float,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    step: int,
    path: Path,
    learning_rate: float,
) -> None:
    """Let a step pass whose losses and gradients are numbers, before it changes the weights.

    Args:
        losses: of the step's micro-batches, here; of other processes the gradients tell.
        grad_norm: of the whole step, over all processes.
        batches: those micro-batches, ids and positions only.
        step: optimiser steps before this one.
        path: file that the batches to blame are written to.
        learning_rate: for the message.

    Raises:
        DivergedError: one of them is not.
    """
    values = torch.stack(list(losses)).float() if losses else torch.zeros(1)
    # With infinite gradients the norm is no number either.
    if bool(torch.isfinite(values).all()) and torch.isfinite(torch.tensor(grad_norm)):
        return
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        what = f"the loss is {values[bad[0]].item()} at step {step}, micro-batch {bad[0] + 1}"
    else:
        what = f"the gradient's norm is {grad_norm} at step {step}"
    # When the losses are numbers, any batch of the step may have spoilt the gradient.
    told = {
        f"{index}.{name}": tensor
        for index, batch in enumerate(batches)
        if index in bad or not bad
        for name, tensor in batch.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(told, path)
    raise DivergedError(
        f"{what} of {len(batches)}; the last checkpoint is kept, and the batch is in {path}. "
        f"Lower learning_rate={learning_rate} or train without bf16."
    )
