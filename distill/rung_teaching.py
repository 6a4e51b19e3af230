"""How a ladder's rungs are taught: by whom, for how long, on which schedule."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.anatomy import shape_of
from distill.distillation import Distillation, Teacher, distil, whole_inputs
from distill.ladder_config import LadderConfig
from distill.teaching import TeacherConfig
from foundation import FitResult, Foundation
from foundation.plan import TrainingPlan
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
        fit = self.config.schedule(epochs)
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
        plan = TrainingPlan(self.book, self.split.train, replace(self.config.fit, epochs=1.0))
        objective.train()
        seconds = 0.0
        chosen = np.linspace(0, len(plan) - 1, _TIMED_BATCHES + 1).astype(int)
        for number, step in enumerate(chosen):
            batch = {
                name: value.to(student.device)
                for name, value in plan[int(step)].items()
                if name != "num_tokens"
            }
            began = time.perf_counter()
            sum(objective(**batch).values()).backward()
            # The first one pays for loading kernels.
            seconds += time.perf_counter() - began if number else 0.0
        student.zero_grad(set_to_none=True)
        student.eval()
        of_epoch = seconds / _TIMED_BATCHES * len(plan)
        epochs = 60 * minutes * _SHARE_OF_PASSES / of_epoch
        return max(1 / len(plan), float(f"{epochs:.3g}"))
