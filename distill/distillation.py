"""Learn from a bigger model: the student's objective with teachers beside it.

    distil(student, teacher, book, split, config=fit, teacher_config=TeacherConfig(), out=folder)

Legend: K next-item pairs, M action targets, N text positions, D hidden width of a teacher.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses import chunked_divergence, distance, label_divergence
from distill.on_policy import next_tokens, sample
from distill.signals import LiveTeacher, Signal, Taught, candidates, vocabulary, watching
from distill.stored import StoredSignal
from distill.teaching import LOSS_NAMES, Lesson, TeacherConfig
from foundation import Foundation
from foundation.asking import Asking
from foundation.beginning import hash_tensors
from foundation.objective import LOSS_INPUTS, READ_INPUTS, loss_sums, read_step
from foundation.plan import LOSSES
from foundation.training import FitConfig, FitResult, fit
from promptify.assembly import PromptBook
from promptify.splits import Split

Teacher = Foundation | Signal


def distil(
    student: Foundation,
    teacher: Teacher,
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    teacher_config: TeacherConfig,
    also: Sequence[tuple[Teacher, TeacherConfig]] = (),
    out: Path,
    validate: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train `student` on the data and on what `teacher` thinks of it; resumes as `fit` does.

    Where the data's own losses weigh nothing no input is dropped: a teacher reads all of its own,
    and most of what a student of it would learn is to do with less (decision 60).

    Args:
        student: trained in place.
        teacher: a model, only read; or what one said before, from `stored.store_signal`.
        book: pieces of the interactions.
        split: which events train.
        config: schedule and the weights of the data's own losses.
        teacher_config: what is taught, and how much it counts.
        also: more teachers, each with what it teaches.
        out: folder for checkpoints and TensorBoard events.
        validate: called every `config.evaluate_steps`.

    Raises:
        ValueError: a teacher and the student do not share a catalogue and label words, or a stored
            signal is of other batches or lacks what is to be taught.
    """
    teachers = [(teacher, teacher_config), *also]
    check_teachers(student, teachers, book, split, config=config)
    learns_of_data = any(config.loss_weights.values())
    objective = Distillation(student, teachers, learns_of_data=learns_of_data)
    with nullcontext() if learns_of_data else whole_inputs(student):
        return fit(
            student,
            book,
            split,
            config=config,
            out=out,
            objective=objective,
            loss_weights=objective.loss_weights(config),
            validate=validate,
        )


@contextmanager
def whole_inputs(student: Foundation) -> Iterator[None]:
    """Drop none of a model's inputs, nor a residual of its items, for a while."""
    dropped, of_items = student.input_dropout.p, student.items.config
    student.input_dropout.p = 0.0
    student.items.config = replace(of_items, residual_dropout=0.0)
    try:
        yield
    finally:
        student.input_dropout.p, student.items.config = dropped, of_items


def check_teachers(
    student: Foundation,
    teachers: Sequence[tuple[Teacher, TeacherConfig]],
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    asking: Asking | None = None,
) -> None:
    """Refuse teachers of other items, words or trainings than their student's.

    Args:
        student: that will learn.
        teachers: each with what it teaches.
        book: pieces of the interactions.
        split: which events train.
        config: of the training.
        asking: what it asks beside the rows.

    Raises:
        ValueError: one of them does not fit.
    """
    for one, taught in teachers:
        if isinstance(one, Foundation):
            _check_shared(student, one)
        elif isinstance(one, StoredSignal):
            one.check(student, book, split, config=config, teacher_config=taught, asking=asking)


def as_signals(
    teachers: Sequence[tuple[Teacher, TeacherConfig]],
) -> tuple[tuple[Signal, TeacherConfig], ...]:
    """Teachers as what they say; in tuples, whose weights no module trains or saves."""
    return tuple(
        (LiveTeacher(one) if isinstance(one, Foundation) else one, config)
        for one, config in teachers
    )


def known_by(teachers: Sequence[tuple[Signal, TeacherConfig]]) -> dict[str, Any]:
    """What tells a training from one by other teachers, JSON values by name.

    Args:
        teachers: each with what it teaches.
    """
    return {
        "teacher": [
            {**asdict(config), "signal": type(one).__name__, "weights": _weights_of(one)}
            for one, config in teachers
        ]
    }


def _weights_of(signal: Signal) -> str | None:
    """A hash of the weights that speak, as far as they are known."""
    if isinstance(signal, LiveTeacher):
        return hash_tensors(signal.foundation.state_dict().values())
    return signal.teacher if isinstance(signal, StoredSignal) else None


def _check_shared(student: Foundation, teacher: Foundation) -> None:
    if teacher.item_ids != student.item_ids:
        raise ValueError(
            "teacher and student know different catalogues; prune the student from it."
        )
    for words in ("label_words", "grade_words"):
        if getattr(teacher.prompter, words) != getattr(student.prompter, words):
            raise ValueError(
                f"teacher and student have different {words.replace('_', ' ')}; use one prompter "
                "for both."
            )


class Distillation(nn.Module):
    """A student's losses on a batch, its own and its teachers'.

    It has the student's parameters, and those of projections from the student's width to a
    teacher's where layers are matched; these are of no use afterwards.

    Args:
        student: learns.
        teachers: each with what it teaches; read without gradient.
        learns_of_data: False where the data's own losses weigh nothing: they are logged alone, and
            no gradient is sought.
    """

    def __init__(
        self,
        student: Foundation,
        teachers: Sequence[tuple[Teacher, TeacherConfig]],
        *,
        learns_of_data: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self._learns_of_data = learns_of_data
        self._teachers = as_signals(teachers)
        self.subjects = {lesson.subject for _, config in teachers for lesson in config.lessons}
        if "slates" in self.subjects:
            raise ValueError(
                "a lesson on slates is given by several teachers together; train the student with "
                "distill.student.fit_student."
            )
        if "on_policy" in self.subjects:
            self._check_on_policy()
        self.projections = nn.ModuleDict()
        for number, (signal, config) in enumerate(self._teachers):
            if config.lesson("hidden") or config.lesson("attention"):
                self._add_projections(number, signal)

    def _check_on_policy(self) -> None:
        if self.student.uses_slots:
            raise ValueError(
                "a lesson on_policy is about items in words: in slot form a student has no tokens "
                "to say an item by. Teach it candidates, or fit the prompter with form='text'."
            )
        for signal, config in self._teachers:
            if config.lesson("on_policy") and not isinstance(signal, LiveTeacher):
                raise ValueError(
                    "a stored signal cannot say anything of what a student will write; give the "
                    "model itself as a teacher of on_policy."
                )

    def _add_projections(self, number: int, signal: Signal) -> None:
        if not isinstance(signal, LiveTeacher):
            raise ValueError(
                "a stored signal holds no hidden states and no attention outputs; give the model "
                "itself as a teacher of those."
            )
        near = self.student.decoder.config.hidden_size
        far = signal.foundation.decoder.config.hidden_size
        if near == far:
            return
        generator = torch.Generator().manual_seed(number)
        for place in range(len(self.student.decoder.model.layers)):
            for what in ("hidden", "attention"):
                projection = nn.Linear(near, far, bias=False)
                nn.init.orthogonal_(projection.weight, generator=generator)
                self.projections[f"{number}-{what}-{place}"] = projection.to(self.student.device)

    def loss_weights(self, config: FitConfig) -> dict[str, float]:
        """Weight of each loss by name: the data's own; the teachers' are weighted already."""
        return {**config.loss_weights, **{LOSS_NAMES[one]: 1.0 for one in sorted(self.subjects)}}

    def identity(self) -> dict[str, Any]:
        """What tells this training from another; see `foundation.training.fit`."""
        return known_by(self._teachers)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Summed losses: the student's three, and the teachers' by `teaching.LOSS_NAMES`."""
        student = self.student
        watches = {"hidden", "attention"} & self.subjects
        layers = tuple(range(len(student.decoder.model.layers))) if watches else ()
        with watching(student.decoder, layers) as seen:
            reading = read_step(student, **{name: inputs[name] for name in READ_INPUTS})
        with nullcontext() if self._learns_of_data else torch.no_grad():
            sums = loss_sums(student, reading, **{name: inputs[name] for name in LOSS_INPUTS})
        student_label_ML = student.action_log_probs(reading.arrow_MD, inputs["task_M"])
        words = vocabulary(student, reading, len(inputs["text_position_N"]))
        for number, (signal, config) in enumerate(self._teachers):
            taught = signal.teach(inputs, config)
            for lesson in config.lessons:
                if lesson.subject == "labels":
                    assert taught.label_ML is not None
                    loss = label_divergence(
                        student_label_ML,
                        taught.label_ML,
                        temperature=config.temperature,
                        kind=lesson.kind,
                        beta=lesson.beta,
                    )
                elif lesson.subject == "on_policy":
                    loss = self._on_policy(number, lesson, config, inputs)
                elif lesson.subject in ("candidates", "vocabulary"):
                    said = candidates(reading) if lesson.subject == "candidates" else words
                    told = getattr(taught, lesson.subject)
                    assert told is not None
                    is_retrieval = lesson.subject == "candidates"
                    loss = chunked_divergence(
                        said,
                        told,
                        temperature=config.temperature,
                        kind=lesson.kind,
                        beta=lesson.beta,
                        widths=student.settings.widths if is_retrieval else (),
                    )
                else:
                    near = seen.at(inputs["next_position_K"], lesson.subject)
                    loss = self._matched(number, lesson.subject, near, taught)
                name = LOSS_NAMES[lesson.subject]
                sums[name] = sums.get(name, 0.0) + config.weight * lesson.weight * loss
        return sums

    def _on_policy(
        self, number: int, lesson: Lesson, config: TeacherConfig, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Mean divergence over what the student wrote, for as many tokens as the text loss has."""
        signal = self._teachers[number][0]
        assert isinstance(signal, LiveTeacher)
        # Of the batch: a training that was cut short and goes on hears the same.
        seed = int(inputs["ids_RT"].sum()) * 31 + number
        written = sample(
            self.student, inputs, samples=lesson.samples, tokens=lesson.tokens, seed=seed
        )
        with torch.no_grad():
            told = next_tokens(signal.foundation, written)
        total = chunked_divergence(
            next_tokens(self.student, written),
            told,
            temperature=config.temperature,
            kind=lesson.kind,
            beta=lesson.beta,
        )
        counted = inputs["counts"][LOSSES.index("text")]
        return total / max(1, len(told.at_NV)) * counted

    def _matched(self, number: int, what: str, near: tuple[Tensor, ...], taught: Taught) -> Tensor:
        """Mean over the student's layers of their distance to the teacher's at the same depth."""
        far: tuple[Tensor, ...] = getattr(taught, what)
        losses = []
        for place, state_KD in enumerate(near):
            name = f"{number}-{what}-{place}"
            if name in self.projections:
                state_KD = self.projections[name](state_KD)
            # The last is matched with the last, the others as far up as they stand.
            depth = round((place + 1) * len(far) / len(near)) - 1
            losses.append(distance(state_KD, far[depth]))
        return torch.stack(losses).mean()
