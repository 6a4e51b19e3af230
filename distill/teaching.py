"""What a teacher teaches, and how much of it counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from distill.losses import KINDS, Kind

Subject = Literal["labels", "candidates", "vocabulary", "hidden", "attention", "slates"]
Role = Literal["policy", "click"]

# What each is divided by: the count of the data's own loss at the same positions.
LOSS_NAMES: dict[Subject, str] = {
    "labels": "teacher_action",
    "candidates": "teacher_next_item",
    "vocabulary": "teacher_text",
    "hidden": "teacher_next_item/hidden",
    "attention": "teacher_next_item/attention",
    "slates": "teacher_slate",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One loss of a teacher's.

    Args:
        subject: ``labels``, the actions at every arrow; ``candidates``, the retrieval softmax
            wherever an item must be predicted; ``vocabulary``, the next token of text; ``hidden``
            and ``attention``, the layers' states and attention outputs where an item must be
            predicted; ``slates``, the order of co-shown items, by all teachers of it together, see
            `distill.student`.
        weight: used as given.
        kind: of the divergence; of no account for hidden states, attention outputs and slates.
        top: of candidates and vocabulary, the teacher's so many most probable classes, all others
            as one; None for every class.
    """

    subject: Subject
    weight: float = 1.0
    kind: Kind = "forward_kl"
    top: int | None = None

    def __post_init__(self) -> None:
        if self.subject not in get_args(Subject):
            raise ValueError(
                f"Lesson.subject={self.subject!r} must be one of {', '.join(get_args(Subject))}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"Lesson.kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"Lesson.weight={self.weight} must not be negative.")
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
        temperature: softens what both say; losses are scaled by its square, as usual.
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
