"""What a teacher teaches, and how much of it counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from distill.losses import KINDS, Kind

Subject = Literal[
    "labels", "candidates", "vocabulary", "on_policy", "hidden", "attention", "slates"
]
Role = Literal["policy", "click"]

# What each is divided by: the count of the data's own loss at the same positions.
LOSS_NAMES: dict[Subject, str] = {
    "labels": "teacher_action",
    "candidates": "teacher_next_item",
    "vocabulary": "teacher_text",
    "on_policy": "teacher_text/on_policy",
    "hidden": "teacher_next_item/hidden",
    "attention": "teacher_next_item/attention",
    "slates": "teacher_slate",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One loss of a teacher's.

    Args:
        subject: ``labels``, the actions at every arrow; ``candidates``, the retrieval softmax
            wherever an item must be predicted; ``vocabulary``, the next token of text;
            ``on_policy``, the next token of what the student writes of its own accord, see
            `distill.on_policy`; ``hidden`` and ``attention``, the layers' states and attention
            outputs where an item must be predicted; ``slates``, the order of co-shown items, by
            all teachers of it together, see `distill.student`.
        weight: used as given.
        kind: of the divergence; of no account for hidden states, attention outputs and slates.
        beta: of ``jensen_shannon``, the teacher's share of the mixture that both are held against.
        top: of candidates and vocabulary, the teacher's so many most probable classes, all others
            as one; None for every class.
        samples: of ``on_policy``, rows of each micro-batch that the student goes on with.
        tokens: of ``on_policy``, how far it goes.
    """

    subject: Subject
    weight: float = 1.0
    kind: Kind = "forward_kl"
    beta: float = 0.5
    top: int | None = None
    samples: int = 4
    tokens: int = 24

    def __post_init__(self) -> None:
        if self.subject not in get_args(Subject):
            raise ValueError(
                f"Lesson.subject={self.subject!r} must be one of {', '.join(get_args(Subject))}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"Lesson.kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"Lesson.weight={self.weight} must not be negative.")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"Lesson.beta={self.beta} must lie between 0 and 1; at its ends the divergence is "
                "0: use forward_kl or reverse_kl."
            )
        for name in ("samples", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Lesson.{name}={getattr(self, name)} must be at least 1.")
        if self.top is not None and self.top < 1:
            raise ValueError(f"Lesson.top={self.top} must be at least 1, or None for all.")
        if self.top is not None and self.subject not in ("candidates", "vocabulary"):
            raise ValueError(
                f"Lesson.top={self.top} is for candidates and vocabulary; leave it out of "
                f"{self.subject!r}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """How much a teacher counts.

    Args:
        weight: of all its losses, used as given, beside the data's own.
        temperature: softens what both say; losses are scaled by its square, as usual. On slates,
            where the scores of several teachers are added up, each is divided by its own, and the
            loss is left as it is.
        lessons: its losses, each subject once.
        role: what its score of a co-shown item is: ``policy``, the log of the expected grade as a
            share of the best, or ``click``, that of the probability of a good action. Of no account
            for what is not about slates.
    """

    weight: float = 1.0
    temperature: float = 1.0
    lessons: tuple[Lesson, ...] = (Lesson(subject="labels"), Lesson(subject="candidates"))
    role: Role = "click"

    def __post_init__(self) -> None:
        # As JSON has them: a recipe keeps its config there.
        told = tuple(Lesson(**one) if isinstance(one, Mapping) else one for one in self.lessons)
        object.__setattr__(self, "lessons", told)
        subjects = [lesson.subject for lesson in told]
        if not subjects or len(set(subjects)) < len(subjects):
            raise ValueError(
                f"TeacherConfig.lessons are about {subjects}; give each subject once, and one at "
                "least."
            )
        if self.weight < 0:
            raise ValueError(f"TeacherConfig.weight={self.weight} must not be negative.")
        if self.role not in get_args(Role):
            raise ValueError(
                f"TeacherConfig.role={self.role!r} must be one of {', '.join(get_args(Role))}."
            )
        if self.temperature <= 0:
            raise ValueError(f"TeacherConfig.temperature={self.temperature} must be above 0.")

    def lesson(self, subject: Subject) -> Lesson | None:
        """The lesson on a subject; None where there is none."""
        return next((one for one in self.lessons if one.subject == subject), None)
