from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.anatomy import shape_of
from distill.distillation import Distillation, distil, whole_inputs
from distill.importance import measure_importance
from distill.losses import Classes, distance
from distill.pruning import prune
from distill.signals import LiveTeacher
from distill.teaching import Lesson, TeacherConfig
from foundation import FitConfig
from foundation.objective import READ_INPUTS, read_step
from foundation.plan import TrainingPlan
from foundation.slots import StepSlots
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

TEACHES = TeacherConfig(temperature=2.0)


SMALL = FitConfig(epochs=1, positions_per_batch=2048, reread_items=4, text_positions=16)


def batch_of(book: PromptBook, split: Split, **config: Any) -> dict[str, Tensor]:
    plan = TrainingPlan(book, split.train, replace(SMALL, **config))
    batch = plan[0]
    batch.pop("num_tokens")
    return batch


@pytest.mark.parametrize("sampling", [{}, {"full_softmax_items": 10, "num_negatives": 20}])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    make: Any, book: PromptBook, split: Split, sampling: dict[str, int]
) -> None:
    sums = Distillation(make(), [(make(), TEACHES)])(**batch_of(book, split, **sampling))
    assert sums["teacher_next_item"].item() == pytest.approx(0, abs=1e-3)
    assert sums["teacher_action"].item() == pytest.approx(0, abs=1e-3)
    assert min(sums[name].item() for name in ("next_item", "action", "text")) > 0.1
    other = Distillation(make(), [(make(seed=1), TEACHES)])(**batch_of(book, split, **sampling))
    assert other["teacher_next_item"].item() > 0.1
    assert other["teacher_action"].item() > 0.1


def test_the_data_s_own_losses_are_the_student_s(make: Any, book: PromptBook, split: Split) -> None:
    student, batch = make(), batch_of(book, split)
    sums = Distillation(student, [(make(seed=1, size="mini"), TeacherConfig())])(**batch)
    for name, value in student(**batch).items():
        torch.testing.assert_close(sums[name], value)


@pytest.mark.parametrize("data_weight", [0.0, 0.1])
def test_inputs_are_dropped_for_the_data_s_sake_alone(
    make: Any, book: PromptBook, split: Split, tmp_path: Path, data_weight: float
) -> None:
    student = make()
    student.input_dropout.p = 0.5
    config = replace(
        SMALL, epochs=0.1, next_item_weight=data_weight, action_weight=0.0, text_weight=0.0
    )
    result = distil(
        student, make(), book, split, config=config, teacher_config=TEACHES, out=tmp_path
    )
    [(_, first), *_] = result.history["loss/teacher_next_item"]
    if data_weight:
        assert first > 0.01
    else:  # The teacher is the same model.
        assert first == pytest.approx(0, abs=1e-3)
    assert student.input_dropout.p == 0.5


def test_whole_inputs_have_their_residuals(make: Any) -> None:
    student = make().train()
    student.items.exposure_I.fill_(5)
    student.items.config = config = replace(student.settings, residual_dropout=0.5)
    items = torch.arange(student.num_items)
    with whole_inputs(student):
        assert torch.equal(student.slots(items), student.slots(items))
    assert student.items.config == config
    assert not torch.equal(student.slots(items), student.slots(items))


def test_a_teacher_reads_the_catalogue_once(make: Any, book: PromptBook, split: Split) -> None:
    teacher = make(seed=1)
    live, batches = LiveTeacher(teacher), TrainingPlan(book, split.train, SMALL)
    read: list[int] = []
    item_vectors = teacher.item_vectors
    teacher.item_vectors = lambda slots_ND: read.append(len(slots_ND)) or item_vectors(slots_ND)
    for step in (0, 1):
        batch = {name: value for name, value in batches[step].items() if name != "num_tokens"}
        said = live.teach(batch, TEACHES)
        assert isinstance(said.candidates, Classes)
        with torch.no_grad():
            whole = read_step(teacher, **{name: batch[name] for name in READ_INPUTS})
        torch.testing.assert_close(said.candidates.at_NV, whole.person_KV)
        torch.testing.assert_close(said.candidates.class_CV, whole.item_CV)
        assert said.label_ML is not None
        told_ML = teacher.action_log_probs(whole.arrow_MD, batch["task_M"])
        torch.testing.assert_close(said.label_ML, told_ML)
    # Besides the whole readings here, one item a step and the catalogue once.
    everything = teacher.num_items
    assert sorted(read) == [1, 1, everything, everything, everything]


def test_losses_that_weigh_nothing_are_said_and_teach_nothing(
    make: Any, book: PromptBook, split: Split
) -> None:
    batch = batch_of(book, split)
    said, gradients = [], []
    for learns_of_data in (True, False):
        student = make()
        objective = Distillation(student, [(make(seed=1), TEACHES)], learns_of_data=learns_of_data)
        sums = objective(**batch)
        for name in ("next_item", "action", "text"):
            assert sums[name].requires_grad == learns_of_data
        (sums["teacher_next_item"] + sums["teacher_action"]).backward()
        said.append(sums)
        gradients.append(student.person_head.weight.grad)
    torch.testing.assert_close(said[1], said[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_only_the_student_learns(make: Any, book: PromptBook, split: Split) -> None:
    student, teacher = make(), make(seed=1, size="mini", vector_dim=8)
    objective = Distillation(student, [(teacher, TeacherConfig())])
    sums = objective(**batch_of(book, split))
    (sums["teacher_next_item"] + sums["teacher_action"]).backward()
    assert all(p.grad is None for p in teacher.parameters())
    for weight in (student.person_head.weight, student.decoder.model.layers[0].mlp.up_proj.weight):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    assert {id(p) for p in objective.parameters()} == {id(p) for p in student.parameters()}


def test_distilled_the_student_comes_nearer(
    make: Any, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    student, teacher = make(), make(seed=1)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    batch = batch_of(book, split)

    def gap() -> float:
        with torch.no_grad():
            sums = Distillation(student, [(teacher, TeacherConfig())])(**batch)
        return float(sums["teacher_next_item"] + sums["teacher_action"])

    at_first = gap()
    distil(
        student,
        teacher,
        book,
        split,
        config=FitConfig(
            epochs=3,
            positions_per_batch=2048,
            reread_items=4,
            text_positions=16,
        ),
        teacher_config=TeacherConfig(weight=5.0),
        out=tmp_path,
    )
    assert gap() < 0.8 * at_first
    after = teacher.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    [weights] = (tmp_path / "checkpoints").glob("*/model.safetensors")
    names = load_file(weights).keys()
    assert names
    assert all(name.startswith("student.") for name in names)


def test_a_teacher_of_another_catalogue_is_refused(
    make: Any, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    student, teacher = make(), make()
    options = {"config": FitConfig(), "teacher_config": TeacherConfig(), "out": tmp_path}
    teacher.item_ids = teacher.item_ids[::-1]
    with pytest.raises(ValueError, match="different catalogues"):
        distil(student, teacher, book, split, **options)


def test_a_training_by_another_teacher_is_another(
    make: Any, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    config = replace(SMALL, epochs=0.1)

    def taught(teacher: Any, teaches: TeacherConfig) -> Tensor:
        student = make()
        distil(student, teacher, book, split, config=config, teacher_config=teaches, out=tmp_path)
        return student.person_head.weight.detach()

    first = taught(make(seed=1), TEACHES)
    for teacher, teaches in (
        (make(seed=1), TeacherConfig()),
        (make(seed=1), replace(TEACHES, weight=0.0)),
        (make(seed=2), TEACHES),
    ):
        with pytest.raises(BadInput, match="of a training with another teacher;"):
            taught(teacher, teaches)
    # Loaded anew it is the same.
    assert torch.equal(taught(make(seed=1), TEACHES), first)


@pytest.mark.parametrize(("name", "value"), [("weight", -1.0), ("temperature", 0.0)])
def test_a_teacher_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"TeacherConfig.{name}={value} must"):
        TeacherConfig(**{name: value})


def test_a_rung_keeps_its_widths(make: Any, book: PromptBook, split: Split) -> None:
    teacher = make(size="mini")
    teacher.settings = replace(teacher.settings, vector_widths=(4, 8))
    windows = book.windows(split.train, seed=0, epoch=0)
    rows = book.assemble(windows[:4], seed=0, epoch=0)
    shape = shape_of(teacher.decoder).with_size("layers", 1)
    student = prune(teacher, measure_importance(teacher, rows), shape, rows=rows)
    assert student.settings.widths == (4, 8, 16)
    batch, taught = batch_of(book, split), [(teacher, TeacherConfig())]
    wide = Distillation(student, taught)(**batch)
    student.settings = replace(student.settings, vector_widths=())
    whole = Distillation(student, taught)(**batch)
    # The narrow widths are taught too.
    assert wide["teacher_next_item"].item() != pytest.approx(whole["teacher_next_item"].item())


EVERYTHING = TeacherConfig(
    weight=0.5,
    lessons=(
        Lesson(subject="labels", kind="jensen_shannon"),
        Lesson(subject="candidates", kind="reverse_kl", weight=2.0),
        Lesson(subject="vocabulary"),
        Lesson(subject="hidden"),
        Lesson(subject="attention", weight=3.0),
    ),
)


def test_everything_can_be_taught_and_its_weights_are_used_as_given(
    make: Any, book: PromptBook, split: Split
) -> None:
    student, teacher = make(), make(seed=1, size="mini")
    batch = batch_of(book, split)
    objective = Distillation(student, [(teacher, EVERYTHING)])
    sums = objective(**batch)
    taught = {name for name in sums if name.startswith("teacher_")}
    assert taught == {
        "teacher_action",
        "teacher_next_item",
        "teacher_text",
        "teacher_next_item/hidden",
        "teacher_next_item/attention",
    }
    assert objective.loss_weights(FitConfig()) == FitConfig().loss_weights | dict.fromkeys(
        taught, 1.0
    )
    for lesson in EVERYTHING.lessons:
        alone = replace(EVERYTHING, weight=1.0, lessons=(replace(lesson, weight=1.0),))
        found = Distillation(student, [(teacher, alone)])(**batch)
        [name] = taught & set(found)
        expected = found[name] * 0.5 * lesson.weight
        torch.testing.assert_close(sums[name], expected, rtol=1e-4, atol=1e-4)
    torch.stack([sums[name] for name in taught]).sum().backward()
    # Of other widths, the states are projected; the projections learn too.
    assert objective.projections
    learns = {n: float(p.weight.grad.abs().sum()) for n, p in objective.projections.items()}
    assert min(learns.values()) > 0, learns
    assert all(p.grad is None for p in teacher.parameters())


def test_of_itself_a_student_learns_nothing_of_any_subject(
    make: Any, book: PromptBook, split: Split
) -> None:
    objective = Distillation(make(), [(make(), EVERYTHING)])
    assert not objective.projections
    sums = objective(**batch_of(book, split))
    for name, value in sums.items():
        if name.startswith("teacher_"):
            assert value.item() == pytest.approx(0, abs=2e-3), name


def test_two_teachers_are_summed(make: Any, book: PromptBook, split: Split) -> None:
    student, one, other = make(), make(seed=1), make(seed=2, size="mini")
    batch, half = batch_of(book, split), TeacherConfig(weight=0.5)
    sums = Distillation(student, [(one, half), (other, TeacherConfig())])(**batch)
    alone = [
        Distillation(student, [(t, c)])(**batch) for t, c in ((one, half), (other, TeacherConfig()))
    ]
    for name in ("teacher_action", "teacher_next_item"):
        torch.testing.assert_close(sums[name], alone[0][name] + alone[1][name])


@pytest.mark.parametrize("subject", ["hidden", "attention"])
def test_states_of_the_rows_alone_are_matched(
    make: Any, book: PromptBook, split: Split, subject: Any
) -> None:
    """Items are read in passes of their own, which are not what the teacher is asked about."""
    student, teacher = make(), make(seed=1)
    batch = batch_of(book, split)
    config = TeacherConfig(lessons=(Lesson(subject=subject),))
    got = Distillation(student, [(teacher, config)])(**batch)[f"teacher_next_item/{subject}"]
    states = []
    for model in (student, teacher):
        every = torch.arange(model.num_items)
        slots = StepSlots(items_N=every, slots_ND=model.slots(every))
        embeds, inner = model.embed_ids(batch["ids_RT"], slots=slots), model.decoder.model
        norms = [
            norm
            for layer in inner.layers
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        seen: list[torch.Tensor] = []
        handles = [
            norm.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
            for norm in (*norms, inner.norm)
        ]
        inner(inputs_embeds=embeds)
        for handle in handles:
            handle.remove()
        # Before and after each attention, and at the end.
        before, middle, after = seen[0:-1:2], seen[1::2], seen[2::2]
        said = (
            after if subject == "hidden" else [m - b for m, b in zip(middle, before, strict=True)]
        )
        states.append([one.flatten(0, 1)[batch["next_position_K"]] for one in said])
    wanted = torch.stack([distance(s, t) for s, t in zip(*states, strict=True)]).mean()
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"subject": "gossip"}, "must be one of labels"),
        ({"subject": "labels", "kind": "l2"}, "must be one of forward_kl"),
        ({"subject": "labels", "weight": -1.0}, "must not be negative"),
        ({"subject": "labels", "top": 5}, "is for candidates and vocabulary"),
        ({"subject": "candidates", "top": 0}, "must be at least 1"),
    ],
)
def test_a_lesson_that_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Lesson(**values)


def test_each_subject_is_taught_once() -> None:
    with pytest.raises(ValueError, match="each subject once"):
        TeacherConfig(lessons=(Lesson(subject="labels"), Lesson(subject="labels", weight=2.0)))
