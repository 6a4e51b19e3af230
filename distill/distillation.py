"""Learn from a bigger model: the student's objective with a teacher beside it.

Legend: K next-item pairs, M action targets, I items, V vector width, L label words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation import Foundation
from foundation.losses import MAX_LOGITS, summed_in_chunks
from foundation.objective import LOSS_INPUTS, READ_INPUTS, loss_sums, read_step
from foundation.training import FitConfig, FitResult, fit
from promptify.assembly import PromptBook
from promptify.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """How much a teacher counts.

    Args:
        weight: of its losses, used as given, beside the data's own.
        temperature: softens both distributions; the loss is scaled by its square, as usual.
    """

    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"TeacherConfig.weight={self.weight} must not be negative.")
        if self.temperature <= 0:
            raise ValueError(f"TeacherConfig.temperature={self.temperature} must be above 0.")


def distil(
    student: Foundation,
    teacher: Foundation,
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    teacher_config: TeacherConfig,
    out: Path,
    validate: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train `student` on the data and on what `teacher` thinks of it; resumes as `fit` does.

    Args:
        student: trained in place.
        teacher: only read.
        book: pieces of the interactions.
        split: which events train.
        config: schedule and the weights of the data's own losses.
        teacher_config: how much the teacher counts.
        out: folder for checkpoints and TensorBoard events.
        validate: called every `config.evaluate_steps`.

    Raises:
        ValueError: the two do not share a catalogue and label words.
    """
    if teacher.item_ids != student.item_ids:
        raise ValueError(
            "teacher and student know different catalogues; prune the student from it."
        )
    if teacher.prompter.label_words != student.prompter.label_words:
        raise ValueError(
            "teacher and student have different label words; use one prompter for both."
        )
    objective = Distillation(student, teacher, temperature=teacher_config.temperature)
    return fit(
        student,
        book,
        split,
        config=config,
        out=out,
        objective=objective,
        loss_weights=distillation_weights(config, teacher_config),
        validate=validate,
    )


def distillation_weights(config: FitConfig, teacher_config: TeacherConfig) -> dict[str, float]:
    """Weight of each loss by name: the data's own three and the teacher's two."""
    return {
        **config.loss_weights,
        "teacher_next_item": teacher_config.weight * config.next_item_weight,
        "teacher_action": teacher_config.weight * config.action_weight,
    }


class Distillation(nn.Module):
    """A student's losses on a batch, its own and the teacher's; it alone has parameters here.

    Args:
        student: learns.
        teacher: is read without gradient.
        temperature: of both distributions.
    """

    def __init__(self, student: Foundation, teacher: Foundation, *, temperature: float) -> None:
        super().__init__()
        self.student = student
        # In a tuple, so that the teacher's weights are not part of what is trained and saved.
        self._teacher = (teacher.eval(),)
        self.temperature = temperature

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Summed losses: the student's three, `teacher_next_item` and `teacher_action`."""
        [teacher] = self._teacher
        reading = read_step(self.student, **{name: inputs[name] for name in READ_INPUTS})
        sums = loss_sums(self.student, reading, **{name: inputs[name] for name in LOSS_INPUTS})
        with torch.no_grad():
            # The teacher is not learning: its table holds every reading it needs.
            asked = {name: inputs[name] for name in READ_INPUTS}
            taught = read_step(teacher, **{**asked, "reread_items": inputs["reread_items"][:0]})
            teacher_label_ML = teacher.action_log_probs(taught.arrow_MD, inputs["task_M"])
        sums["teacher_next_item"] = chunked_kl(
            reading.person_KV,
            reading.item_CV,
            taught.person_KV,
            taught.item_CV,
            temperature=self.temperature,
            widths=self.student.settings.widths,
        )
        student_label_ML = self.student.action_log_probs(reading.arrow_MD, inputs["task_M"])
        sums["teacher_action"] = label_kl(
            student_label_ML, teacher_label_ML, temperature=self.temperature
        )
        return sums


def label_kl(student_ML: Tensor, teacher_ML: Tensor, *, temperature: float) -> Tensor:
    """Sum of KL(teacher ‖ student) over label distributions, in nats, scaled by temperature².

    Args:
        student_ML: float32 log-probabilities; −inf where a label is not the task's, in both.
        teacher_ML: the same, without gradient.
        temperature: softens both.

    Source: Hinton et al. 2015, section 2.
    """
    student = _soften(student_ML, temperature)
    teacher = _soften(teacher_ML, temperature)
    possible = torch.isfinite(teacher_ML)
    gap = torch.where(possible, teacher - student, torch.zeros_like(teacher))
    return (teacher.exp() * gap).sum() * temperature**2


def _soften(log_probs: Tensor, temperature: float) -> Tensor:
    return (log_probs / temperature).log_softmax(dim=-1)


def chunked_kl(
    student_KV: Tensor,
    student_items_NV: Tensor,
    teacher_KV: Tensor,
    teacher_items_NV: Tensor,
    *,
    temperature: float,
    widths: Sequence[int] = (),
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Sum of KL(teacher ‖ student) between retrieval softmaxes over the same items.

    Args:
        student_KV: the student's person vectors.
        student_items_NV: its item vectors.
        teacher_KV: the teacher's person vectors, without gradient.
        teacher_items_NV: its item vectors, without gradient.
        temperature: softens both.
        widths: of the student's vectors, rising, the last of them V: the mean over them, each
            taught the teacher's whole vectors. V alone when empty.
        max_logits: how many of either's logits may live at once.

    Returns:
        float32 scalar, in nats, scaled by temperature².
    """
    widths = tuple(widths) or student_KV.shape[-1:]
    total = summed_in_chunks(
        _kl,
        (student_KV, teacher_KV),
        (student_items_NV, teacher_items_NV, temperature, widths),
        rows=max_logits // max(1, len(student_items_NV)),
    )
    return total / len(widths)


def _kl(
    student_KV: Tensor,
    teacher_KV: Tensor,
    student_items_NV: Tensor,
    teacher_items_NV: Tensor,
    temperature: float,
    widths: tuple[int, ...],
) -> Tensor:
    teacher = ((teacher_KV @ teacher_items_NV.T).float() / temperature).log_softmax(-1)
    student = total = student_KV.new_zeros((), dtype=torch.float32)
    for low, high in pairwise((0, *widths)):
        student = student + (student_KV[:, low:high] @ student_items_NV[:, low:high].T).float()
        said = (student / temperature).log_softmax(-1)
        total = total + F.kl_div(said, teacher, reduction="sum", log_target=True)
    return total * temperature**2
