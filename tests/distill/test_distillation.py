import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.distillation import Distillation, TeacherConfig, chunked_kl, distil, label_kl
from foundation import FitConfig
from foundation.plan import TrainingPlan
from promptify.assembly import PromptBook
from promptify.splits import Split

NO = float("-inf")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of rows of logits, term by term."""
    total = torch.zeros(())
    for s, t in zip(student, teacher, strict=True):
        p = torch.exp(t / temperature) / torch.exp(t / temperature).sum()
        q = torch.exp(s / temperature) / torch.exp(s / temperature).sum()
        for class_p, class_q in zip(p, q, strict=True):
            if class_p > 0:
                total = total + class_p * (class_p / class_q).log()
    return total * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_label_kl_is_the_plain_sum(temperature: float) -> None:
    student, teacher = drawn(5, 4), drawn(5, 4, seed=1)
    student[:2, 3] = teacher[:2, 3] = NO  # not an action of their task
    got = label_kl(
        student.log_softmax(-1).requires_grad_(), teacher.log_softmax(-1), temperature=temperature
    )
    torch.testing.assert_close(got.detach(), reference(student, teacher, temperature))


def test_label_kl_worked_by_hand() -> None:
    # The teacher says 3/4, 1/4, the student a half each: 3/4 ln 3/2 + 1/4 ln 1/2.
    student = torch.tensor([[0.5, 0.5, 0.0]]).log()
    teacher = torch.tensor([[0.75, 0.25, 0.0]]).log()
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert label_kl(student, teacher, temperature=1.0).item() == pytest.approx(wanted)


def test_label_kl_has_a_gradient_where_labels_are_left_out() -> None:
    logits = drawn(3, 4).requires_grad_()
    allowed = torch.tensor([True, True, True, False])
    teacher = drawn(3, 4, seed=1).masked_fill(~allowed, NO).log_softmax(-1)
    log_probs = logits.masked_fill(~allowed, NO).log_softmax(-1)
    label_kl(log_probs, teacher, temperature=2.0).backward()
    assert logits.grad is not None
    # The gradient of T² KL in the logits is T (q − p).
    q, p = (log_probs.detach() / 2).softmax(-1), (teacher / 2).softmax(-1)
    torch.testing.assert_close(logits.grad, 2 * (q - p))


@pytest.mark.parametrize("max_logits", [1, 14, 10_000])
def test_chunked_kl_is_the_plain_sum_in_value_and_gradient(max_logits: int) -> None:
    student, items = drawn(9, 4).requires_grad_(), drawn(7, 4, seed=1).requires_grad_()
    teacher, teacher_items = drawn(9, 6, seed=2), drawn(7, 6, seed=3)  # its own width
    plain = reference(student @ items.T, teacher @ teacher_items.T, 2.0)
    got = chunked_kl(student, items, teacher, teacher_items, temperature=2.0, max_logits=max_logits)
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, [student, items]),
        torch.autograd.grad(plain, [student, items]),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def batch_of(book: PromptBook, split: Split, **config: Any) -> dict[str, Tensor]:
    small = {"epochs": 1, "positions_per_batch": 2048, "reread_items": 4, "text_positions": 16}
    plan = TrainingPlan(book, split.train, FitConfig(**{**small, **config}))
    batch = plan[0]
    batch.pop("num_tokens")
    return batch


@pytest.mark.parametrize("sampling", [{}, {"full_softmax_items": 10, "num_negatives": 20}])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    make: Any, book: PromptBook, split: Split, sampling: dict[str, int]
) -> None:
    sums = Distillation(make(), make(), temperature=2.0)(**batch_of(book, split, **sampling))
    assert sums["teacher_next_item"].item() == pytest.approx(0, abs=1e-3)
    assert sums["teacher_action"].item() == pytest.approx(0, abs=1e-3)
    assert min(sums[name].item() for name in ("next_item", "action", "text")) > 0.1
    other = Distillation(make(), make(seed=1), temperature=2.0)(**batch_of(book, split, **sampling))
    assert other["teacher_next_item"].item() > 0.1
    assert other["teacher_action"].item() > 0.1


def test_the_data_s_own_losses_are_the_student_s(make: Any, book: PromptBook, split: Split) -> None:
    student, batch = make(), batch_of(book, split)
    sums = Distillation(student, make(seed=1, size="mini"), temperature=1.0)(**batch)
    for name, value in student(**batch).items():
        torch.testing.assert_close(sums[name], value)


def test_only_the_student_learns(make: Any, book: PromptBook, split: Split) -> None:
    student, teacher = make(), make(seed=1, size="mini", vector_dim=8)
    objective = Distillation(student, teacher, temperature=1.0)
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
            sums = Distillation(student, teacher, temperature=1.0)(**batch)
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


@pytest.mark.parametrize(("name", "value"), [("weight", -1.0), ("temperature", 0.0)])
def test_a_teacher_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"TeacherConfig.{name}={value} must"):
        TeacherConfig(**{name: value})


def test_every_width_of_the_student_is_taught_the_teacher_s_whole_vectors() -> None:
    student, items = drawn(9, 4).requires_grad_(), drawn(7, 4, seed=1).requires_grad_()
    teacher, teacher_items = drawn(9, 6, seed=2), drawn(7, 6, seed=3)
    taught = teacher @ teacher_items.T
    widths = [reference(student[:, :w] @ items[:, :w].T, taught, 2.0) for w in (1, 3, 4)]
    plain = torch.stack(widths).mean()
    got = chunked_kl(
        student, items, teacher, teacher_items, temperature=2.0, widths=(1, 3, 4), max_logits=14
    )
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, [student, items]),
        torch.autograd.grad(plain, [student, items]),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_a_rung_keeps_its_widths(make: Any, book: PromptBook, split: Split) -> None:
    from dataclasses import replace

    from distill.pruning import measure_importance, prune

    teacher = make(size="mini")
    teacher.settings = replace(teacher.settings, vector_widths=(4, 8))
    windows = book.windows(split.train, seed=0, epoch=0)
    rows = book.assemble(windows[:4], seed=0, epoch=0)
    student = prune(teacher, measure_importance(teacher, rows), num_layers=1)
    assert student.settings.widths == (4, 8, 16)
    batch = batch_of(book, split)
    wide = Distillation(student, teacher, temperature=1.0)(**batch)
    student.settings = replace(student.settings, vector_widths=())
    whole = Distillation(student, teacher, temperature=1.0)(**batch)
    # The narrow widths are taught too.
    assert wide["teacher_next_item"].item() != pytest.approx(whole["teacher_next_item"].item())
