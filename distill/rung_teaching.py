"""How a ladder's rungs are taught: by whom, for how long, on which schedule."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.anatomy import shape_of
from distill.distillation import Distillation, Teacher, distil, whole_inputs
from distill.ladder_config import LadderConfig
from distill.teaching import TeacherConfig
from foundation import FitResult, Foundation
from foundation.adapters import adapted
from foundation.computing import computing
from foundation.plan import TrainingPlan
from foundation.training import attention_and_packing
from promptify.assembly import PromptBook
from promptify.splits import Split

logger = logging.getLogger(__name__)

# Of the time a rung has, what goes to the optimiser and to checkpoints; what micro-batches took
# when they were timed does not hold them.
_SHARE_OF_PASSES = 0.85
_TIMED_BATCHES = 4


class RungTeaching:
    """Teaches pruned models, each what is above it; see `distill.ladder`.

    Args:
        top: the model at the top; only read.
        book: pieces of the interactions.
        split: which events train.
        config: whose `teacher`, `taught_by`, `fit` and `minutes_per_rung` count.
    """

    def __init__(
        self, top: Foundation, book: PromptBook, split: Split, *, config: LadderConfig
    ) -> None:
        self.top, self.book, self.split, self.config = top, book, split, config

    def teach(
        self,
        student: Foundation,
        above: Foundation,
        *,
        epochs: float,
        out: Path,
        watch: Callable[[Foundation], dict[str, float]],
    ) -> FitResult:
        """Distil in place, or train where the config has no teacher.

        No input is dropped, whoever teaches (decision 61).

        Args:
            student: that is taught.
            above: the rung above.
            epochs: of the training events.
            out: folder for checkpoints; a call that was cut short goes on from them.
            watch: a model's metrics while it is trained, of which ``ndcg@10`` chooses the weights.
        """
        fit = self.config.schedule(epochs, above=above.num_parameters())
        steps = len(TrainingPlan(self.book, self.split.train, fit)) // fit.accumulate
        if fit.evaluate_steps:
            fit = replace(fit, evaluate_steps=max(1, min(fit.evaluate_steps, steps // 4)))
        options: dict[str, Any] = {
            "config": fit,
            "out": out,
            "validate": (lambda: watch(student)) if fit.evaluate_steps else None,
        }
        logger.info(
            "%s body parameters (%s); %.3g epochs, %d steps",
            f"{student.num_parameters():,}",
            shape_of(student.decoder),
            epochs,
            steps,
        )
        with whole_inputs(student):
            if self.config.teacher is None:
                return student.fit(self.book, self.split, **options)
            (teacher, teaches), *also = self._teachers(above)
            return distil(
                student,
                teacher,
                self.book,
                self.split,
                teacher_config=teaches,
                also=also,
                **options,
            )

    def _teachers(self, above: Foundation) -> list[tuple[Teacher, TeacherConfig]]:
        config = self.config.teacher
        assert config is not None
        if self.config.taught_by == "both" and above is not self.top:
            half = replace(config, weight=config.weight / 2)
            return [(above, half), (self.top, half)]
        return [(self.top if self.config.taught_by == "top" else above, config)]

    def affordable_epochs(self, student: Foundation, above: Foundation, *, minutes: float) -> float:
        """Epochs that fit in so many minutes here, by a few micro-batches that are timed.

        They are read as the teaching will read them: in its precision, with its attention, packed,
        recomputed, compiled and adapted as it is.

        Args:
            student: that will be taught; nothing of it changes.
            above: the rung above.
            minutes: of a whole teaching.
        """
        objective: Any = student
        if self.config.teacher is not None:
            objective = Distillation(
                student, self._teachers(above), learns_of_data=self.config.data_weight > 0
            )
        fit = self.config.schedule(1.0, above=above.num_parameters())
        attention, packed = attention_and_packing(student, fit)
        plan = TrainingPlan(self.book, self.split.train, fit, packed=packed)
        seconds = 0.0
        chosen = np.linspace(0, len(plan) - 1, _TIMED_BATCHES + 1).astype(int)
        with (
            whole_inputs(student),
            adapted(student, fit.lora, seed=fit.seed),
            computing(student.decoder, fit, attention=attention),
        ):
            objective.train()
            for number, step in enumerate(chosen):
                batch = {
                    name: value.to(student.device)
                    for name, value in plan[int(step)].items()
                    if name != "num_tokens"
                }
                taken = _pass_seconds(objective, batch, student.device, bf16=fit.bf16)
                # The first one pays for loading kernels.
                seconds += taken if number else 0.0
            student.zero_grad(set_to_none=True)
        student.eval()
        of_epoch = seconds / _TIMED_BATCHES * len(plan)
        epochs = 60 * minutes * _SHARE_OF_PASSES / of_epoch
        return max(1 / len(plan), float(f"{epochs:.3g}"))


def _pass_seconds(
    objective: Any, batch: Mapping[str, Tensor], device: torch.device, *, bf16: bool
) -> float:
    """Seconds of one micro-batch, forth and back, as the Trainer computes it."""
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss = torch.stack(list(objective(**batch).values())).sum()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # until then it has been asked, not done
    return time.perf_counter() - began
