"""One student of a policy teacher and a click teacher."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.distillation import Distillation
from distill.stored import StoredSignal, store_signal
from distill.student import SLATES, StudentConfig, StudentObjective, fit_student, slate_kl
from distill.teaching import TeacherConfig
from foundation import FitConfig, Foundation
from foundation.asking import Asking
from foundation.objective import READ_INPUTS, read_step
from foundation.plan import LOSSES, TrainingPlan, counted_as
from foundation.predictions import read_scores
from promptify.assembly import PromptBook
from promptify.grades import GradedPairs
from promptify.prompter import Prompter
from promptify.sources.job_market import TASKS
from promptify.splits import Split
from promptify.validation import BadInput

GRADES = ("unfit", "doubtful", "passable", "fitting", "ideal")
FIT = FitConfig(epochs=1, positions_per_batch=2048, reread_items=4, text_positions=16)
POLICY = TeacherConfig(role="policy", lessons=SLATES)
CLICK = TeacherConfig(role="click", lessons=SLATES)


@pytest.fixture(scope="module")
def graded(book: PromptBook, split: Split) -> PromptBook:
    tasks = (replace(TASKS[0], grades=GRADES), TASKS[1])
    log, config = book.interactions, book.prompter.config
    return Prompter.fit(log, split.train, tasks, config=config).book(log)


@pytest.fixture(scope="module")
def asking(graded: PromptBook) -> Asking:
    user, item = np.divmod(np.arange(graded.interactions.num_users * 50), 50)
    grade = np.where((user + item) % 2, 4, 0)
    pairs = GradedPairs.of(user, item, grade, num_grades=5)
    return Asking(pairs=pairs, questions_per_row=8, slates_per_row=3)


@pytest.fixture(scope="module")
def make_graded(make: Any, graded: PromptBook) -> Any:
    return partial(make, of=graded)


@pytest.fixture(scope="module")
def batch(graded: PromptBook, split: Split, asking: Asking) -> dict[str, Tensor]:
    batch = TrainingPlan(graded, split.train, FIT, asking=asking)[0]
    batch.pop("num_tokens")
    return batch


def reference(said: Tensor, told: Tensor, slate: Tensor) -> Tensor:
    """KL(told ‖ said) of each slate, one by one."""
    total = torch.zeros(())
    for number in slate.unique():
        p, q = (scores[slate == number].softmax(0) for scores in (told, said))
        total = total + (p * (p / q).log()).sum()
    return total


def test_slate_kl_is_the_plain_sum_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    slate = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
    said = torch.randn(9, generator=generator).requires_grad_()
    told = torch.randn(9, generator=generator)
    got, plain = slate_kl(said, told, slate), reference(said, told, slate)
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, said), torch.autograd.grad(plain, said), strict=True
    ):
        torch.testing.assert_close(ours, wanted)
    assert slate_kl(said[:0], told[:0], slate[:0]).item() == 0


def test_slate_kl_worked_by_hand() -> None:
    told, slate = torch.tensor([math.log(3.0), 0.0]), torch.zeros(2, dtype=torch.long)
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert slate_kl(torch.zeros(2), told, slate).item() == pytest.approx(wanted)


def test_a_student_that_is_both_its_teachers_has_nothing_to_learn(
    make_graded: Any, batch: dict[str, Tensor]
) -> None:
    for other, is_same in ((make_graded(), True), (make_graded(seed=1), False)):
        objective = StudentObjective(make_graded(), [(other, POLICY), (other, CLICK)])
        lost = objective(**batch)["teacher_slate"].item()
        assert (lost == pytest.approx(0, abs=1e-4)) is is_same
        assert lost > -1e-4


def test_scores_of_teachers_add_up_with_their_weights_as_given(
    make_graded: Any, batch: dict[str, Tensor]
) -> None:
    student, one, two = make_graded(), make_graded(seed=1), make_graded(seed=2)
    teachers = [
        (one, replace(POLICY, weight=3.0)),
        (two, replace(CLICK, weight=0.5, temperature=2.0)),
    ]
    task, slate = batch["shown_task_Y"], batch["shown_slate_Y"]

    def score(model: Foundation, role: str) -> Tensor:
        with torch.no_grad():
            shown = read_step(model, **{name: batch[name] for name in READ_INPUTS}).shown_YD
        if role == "click":
            log_probs = model.action_log_probs(shown, task).exp()
            good = [model.prompter.label_words.index(word) for word in ("apply", "excellent")]
            return log_probs[torch.arange(len(task)), torch.tensor(good)[task]].log()
        grades = model.grade_log_probs(shown, task).exp()
        return (grades @ torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).log()

    # Searches have no grades: the policy teacher says nothing there.
    told = 3 * score(one, "policy") + 0.25 * score(two, "click")
    said = 3 * score(student, "policy") + 0.25 * score(student, "click")
    wanted = reference(said[task == 0], told[task == 0], slate[task == 0])
    if (task == 1).any():
        searched = [0.25 * score(model, "click") for model in (student, two)]
        wanted = wanted + reference(*(s[task == 1] for s in searched), slate[task == 1])
    got = StudentObjective(student, teachers)(**batch)["teacher_slate"]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_only_the_student_learns(make_graded: Any, batch: dict[str, Tensor]) -> None:
    student, teacher = make_graded(), make_graded(seed=1, size="mini")
    sums = StudentObjective(student, [(teacher, POLICY)])(**batch)
    sums["teacher_slate"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    weight = student.decoder.model.layers[0].mlp.up_proj.weight
    assert torch.isfinite(weight.grad).all()
    assert weight.grad.any()
    for name, value in make_graded()(**batch).items():
        torch.testing.assert_close(sums[name], value)


def test_weights_are_used_as_given_and_losses_logged_apart(
    make_graded: Any, graded: PromptBook, split: Split, asking: Asking, tmp_path: Path
) -> None:
    config = StudentConfig(alpha=2.0, beta=0.5, gamma=3.0)
    weights = config.loss_weights(replace(FIT, text_weight=0.1, action_weight=4.0), asking)
    assert weights == {
        "next_item": 1.0,
        "action": 2.0,
        "text": 0.1,
        "policy": 2.0,
        "rare": 0.5,
        "teacher_slate": 3.0,
    }
    assert {counted_as(name) for name in weights} <= set(LOSSES)
    result = fit_student(
        make_graded(),
        [(make_graded(seed=1), POLICY)],
        graded,
        split,
        config=replace(FIT, epochs=0.5),
        asking=asking,
        student_config=config,
        out=tmp_path,
    )
    assert {name for name in result.history if name.startswith("loss/")} == {
        f"loss/{name}" for name in weights
    }


def test_teachers_are_trained_apart_and_the_student_learns_from_both(
    make_graded: Any, graded: PromptBook, split: Split, asking: Asking, tmp_path: Path
) -> None:
    rows = graded.prefixes(split.test, task=0)
    request, item = np.repeat(np.arange(20), 10), np.tile(np.arange(10, dtype=np.int64), 20)
    wanted = np.where((split.test.user[request] + item) % 2, 4, 0)

    def agreement(model: Foundation) -> float:
        said = read_scores(model, rows, request, item, task=0).grade_CG.argmax(1)
        return float((said == wanted).mean())

    fit = replace(FIT, epochs=2, learning_rate=3e-3)

    def trained(name: str, model: Foundation, teachers: Any, config: StudentConfig) -> Any:
        return fit_student(
            model,
            teachers,
            graded,
            split,
            config=fit,
            asking=asking,
            student_config=config,
            out=tmp_path / name,
        )

    policy = make_graded()
    before = policy.label_rows_LD.detach().clone()
    policy_run = trained("policy", policy, (), StudentConfig(alpha=1, beta=0, gamma=0))
    assert policy_run.history["loss/policy"][-1][1] < policy_run.history["loss/policy"][0][1] - 0.3
    assert agreement(policy) >= 0.45
    assert not torch.equal(before, policy.label_rows_LD)
    # Warm-started from the other, and from its folder, as another teacher would be.
    policy.save_pretrained(tmp_path / "warm")
    click = Foundation.from_pretrained(tmp_path / "warm")
    click_run = trained("click", click, (), StudentConfig(alpha=0, beta=1, gamma=0))
    assert click_run.history["loss/action"][-1][1] < policy_run.history["loss/action"][-1][1]
    student = make_graded(seed=3)
    run = trained("student", student, [(policy, POLICY), (click, CLICK)], StudentConfig())
    for name in ("policy", "action", "teacher_slate"):
        told = [value for _, value in run.history[f"loss/{name}"]]
        # A step's batch is few slates: the second half of the steps against the first.
        assert np.mean(told[len(told) // 2 :]) < np.mean(told[: len(told) // 2])


def test_stored_it_says_what_it_says_live(
    make_graded: Any, graded: PromptBook, split: Split, asking: Asking, tmp_path: Path
) -> None:
    path, teacher = tmp_path / "said.arrow", make_graded(seed=1)
    store_signal(
        teacher, graded, split, config=FIT, teacher_config=POLICY, path=path, asking=asking
    )
    plan, student = TrainingPlan(graded, split.train, FIT, asking=asking), make_graded()
    for step in (0, len(plan) - 1):
        batch = {name: value for name, value in plan[step].items() if name != "num_tokens"}
        live, stored = (
            StudentObjective(student, [(one, POLICY)])(**batch)["teacher_slate"]
            for one in (teacher, StoredSignal(path))
        )
        torch.testing.assert_close(live, stored, rtol=5e-3, atol=5e-3)
    for other, config, said in (
        (replace(asking, slates_per_row=2), POLICY, "about other batches"),
        (replace(asking, questions_per_row=2), POLICY, "about other batches"),
        (asking, CLICK, "teacher with role='policy'"),
    ):
        with pytest.raises(BadInput, match=said):
            fit_student(
                student,
                [(StoredSignal(path), config)],
                graded,
                split,
                config=FIT,
                asking=other,
                student_config=StudentConfig(),
                out=tmp_path / "fit",
            )


def test_what_cannot_be_learned_is_refused(
    make: Any, make_graded: Any, graded: PromptBook, split: Split, asking: Asking, tmp_path: Path
) -> None:
    def fails(said: str, *, teachers: Any = (), asking: Asking = asking, **weights: float) -> None:
        with pytest.raises(ValueError, match=said):
            fit_student(
                make_graded(),
                teachers,
                graded,
                split,
                config=FIT,
                asking=asking,
                student_config=StudentConfig(**weights),
                out=tmp_path,
            )

    teacher = make_graded(seed=1)
    fails("alpha=1.0 weighs grades", asking=Asking(slates_per_row=2), gamma=0)
    fails("gamma=1.0 weighs what teachers say")
    fails(
        "gamma=1.0 weighs what teachers say",
        teachers=[(teacher, POLICY)],
        asking=replace(asking, slates_per_row=0),
    )
    fails("one lesson, on slates", teachers=[(teacher, TeacherConfig(role="policy"))])
    fails("different grade words", teachers=[(make(seed=1), CLICK)])
    with pytest.raises(ValueError, match="beta=-1"):
        StudentConfig(beta=-1)
    with pytest.raises(ValueError, match="role='both'"):
        TeacherConfig(role="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fit_student"):
        Distillation(make_graded(), [(teacher, POLICY)])
