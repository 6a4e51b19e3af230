"""One student of two teachers: what policy wants, what people do, and the order both would give.

    pairs = GradedPairs.of_table(pq.read_table("labels.parquet"), interactions, num_grades=5)
    asking = Asking(pairs=pairs, slates_per_row=4)
    policy, click = (TeacherConfig(role=role, lessons=SLATES) for role in ("policy", "click"))
    fit_student(student, [(policy_teacher, policy), (click_teacher, click)], book, split,
                config=FitConfig(), asking=asking, student_config=StudentConfig(), out=folder)

What is minimised is `alpha · policy + beta · click + gamma · distil`, beside the retrieval and text
losses of `FitConfig`. `policy` is the cross-entropy to graded pairs; `click` the action loss, and
which of the co-shown items was acted on well; `distil` the KL, over the items of a slate, from the
softmax of what all teachers say together to that of what the student says, added up alike. Weights
are used as given, and each loss is divided by its own count and logged apart: `policy`, `action`
and `rare`, `teacher_slate`.

A teacher is trained by the same verb with the others' weights at zero and nobody to teach it, so
that each is trained again without the other, from any foundation (`Foundation.from_pretrained`).

Legend: Y items of slates, S slates, C items of the longest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.distillation import Teacher, as_signals, check_teachers, known_by
from distill.losses import divergence
from distill.signals import role_score
from distill.teaching import Lesson, TeacherConfig
from foundation import Foundation
from foundation.asking import Asking, by_slate
from foundation.objective import LOSS_INPUTS, READ_INPUTS, loss_sums, read_step
from foundation.training import FitConfig, FitResult, fit
from promptify.assembly import PromptBook
from promptify.splits import Split

SLATES = (Lesson(subject="slates"),)
"""What a teacher of a student teaches here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """How much each part of the objective counts, used as given.

    Losses are means over their own predictions, so that a thousand grades which are mostly learned
    pull less than ten actions: where a student falls behind on one side, raise that side's weight.

    Args:
        alpha: of the grades.
        beta: of what people did.
        gamma: of the teachers' order of co-shown items.
    """

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(
                    f"StudentConfig.{field.name}={getattr(self, field.name)} must not be negative."
                )

    def loss_weights(self, config: FitConfig, asking: Asking) -> dict[str, float]:
        """Weight of each loss by name.

        Args:
            config: whose weights of the data's own losses stand beside.
            asking: what is asked; what is not has no loss.
        """
        weights = {**config.loss_weights, **asking.loss_weights}
        weights["action"] *= self.beta
        if "policy" in weights:
            weights["policy"] *= self.alpha
        if "rare" in weights:
            weights["rare"] *= self.beta
        return weights | ({"teacher_slate": self.gamma} if self.gamma else {})


def fit_student(
    student: Foundation,
    teachers: Sequence[tuple[Teacher, TeacherConfig]],
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    asking: Asking,
    student_config: StudentConfig,
    out: Path,
    validate: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train on graded pairs, on the log and on what teachers say; resumes as `fit` does.

    Args:
        student: trained in place.
        teachers: models, only read, or what they said before, from `stored.store_signal`; each with
            a lesson on `slates`, its role and how much it counts among the teachers. Not asked
            where gamma is 0.
        book: pieces of the interactions.
        split: which events train.
        config: schedule, and the weights of the data's own losses.
        asking: graded pairs, and how many slates are compared.
        student_config: how much each part counts.
        out: folder for checkpoints and TensorBoard events.
        validate: called every `config.evaluate_steps`.

    Raises:
        ValueError: what has a weight cannot be learned: there are no pairs, slates or teachers of
            them; or a teacher does not fit.
    """
    _check(teachers, asking, student_config)
    asked = teachers if student_config.gamma else ()
    check_teachers(student, asked, book, split, config=config, asking=asking)
    return fit(
        student,
        book,
        split,
        config=config,
        out=out,
        objective=StudentObjective(student, asked),
        loss_weights=student_config.loss_weights(config, asking),
        validate=validate,
        asking=asking,
    )


def _check(
    teachers: Sequence[tuple[Teacher, TeacherConfig]], asking: Asking, config: StudentConfig
) -> None:
    if config.alpha and asking.pairs is None:
        raise ValueError(
            f"StudentConfig.alpha={config.alpha} weighs grades, but Asking has no pairs; give "
            "some, or set alpha=0."
        )
    if not config.gamma:
        return
    if not teachers or not asking.slates_per_row:
        raise ValueError(
            f"StudentConfig.gamma={config.gamma} weighs what teachers say of slates; give teachers "
            "and Asking.slates_per_row above 0, or set gamma=0."
        )
    for _, taught in teachers:
        if [lesson.subject for lesson in taught.lessons] != ["slates"]:
            raise ValueError(
                "a teacher of a student gives one lesson, on slates; set "
                "TeacherConfig.lessons=distill.student.SLATES."
            )


class StudentObjective(nn.Module):
    """A student's losses on a batch, and `teacher_slate`.

    Args:
        student: learns; it alone has parameters here.
        teachers: each with its role and weight; none for the student's own losses alone.
    """

    def __init__(
        self, student: Foundation, teachers: Sequence[tuple[Teacher, TeacherConfig]]
    ) -> None:
        super().__init__()
        self.student = student
        self._teachers = as_signals(teachers)

    def identity(self) -> dict[str, Any]:
        """What tells this training from another; see `foundation.training.fit`."""
        return known_by(self._teachers)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Summed losses by name."""
        student = self.student
        reading = read_step(student, **{name: inputs[name] for name in READ_INPUTS})
        sums = loss_sums(student, reading, **{name: inputs[name] for name in LOSS_INPUTS})
        if not self._teachers:
            return sums
        said_Y = told_Y = torch.zeros(len(inputs["shown_Y"]), device=student.device)
        for signal, config in self._teachers:
            taught = signal.teach(inputs, config)
            assert taught.slate_Y is not None
            weight = config.weight * config.lessons[0].weight / config.temperature
            own_Y = role_score(student, reading.shown_YD, inputs["shown_task_Y"], config.role)
            told_Y = told_Y + weight * taught.slate_Y
            said_Y = said_Y + weight * own_Y
        sums["teacher_slate"] = slate_kl(said_Y, told_Y, inputs["shown_slate_Y"])
        return sums


def slate_kl(student_Y: Tensor, teacher_Y: Tensor, slate_Y: Tensor) -> Tensor:
    """Sum over slates of KL(teachers ‖ student) over the items shown together, in nats.

    Args:
        student_Y: score of each item.
        teacher_Y: the same, without gradient.
        slate_Y: int64, counted from 0, the items of each side by side.

    Returns:
        float32 scalar, 0 when there is no slate.

    Source: ListNet's top-one cross-entropy (Cao et al., ICML 2007), less the teacher's entropy.
    """
    student_SC, teacher_SC = (
        by_slate(said, slate_Y).log_softmax(-1) for said in (student_Y, teacher_Y)
    )
    return divergence(student_SC, teacher_SC, "forward_kl")
