from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.distillation import Distillation, distil
from distill.on_policy import next_tokens, sample
from distill.stored import StoredSignal, store_signal
from distill.teaching import Lesson, TeacherConfig
from foundation import FitConfig, Foundation
from foundation.plan import LOSSES, TrainingPlan
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

TEACHES = TeacherConfig(
    weight=0.5, lessons=(Lesson(subject="on_policy", kind="reverse_kl", samples=3, tokens=6),)
)
FIT = FitConfig(epochs=0.5, positions_per_batch=2048, reread_items=4, text_positions=64)


def batch_of(book: PromptBook, split: Split, *, packed: bool = False) -> dict[str, Tensor]:
    batch = TrainingPlan(book, split.train, FIT, packed=packed)[0]
    batch.pop("num_tokens")
    return batch


@pytest.fixture(scope="module")
def batch(text_book: PromptBook, split: Split) -> dict[str, Tensor]:
    return batch_of(text_book, split)


@pytest.fixture(scope="module")
def student(make: Any, text_book: PromptBook) -> Foundation:
    return make(of=text_book)


@pytest.fixture(scope="module")
def teacher(make: Any, text_book: PromptBook) -> Foundation:
    return make(of=text_book, seed=1, size="mini")


def beginnings(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Rows up to each place where a person is read."""
    ids, positions = batch["ids_RT"].flatten(), batch["position_RT"].flatten()
    found = []
    for place in batch["next_position_K"].tolist():
        start = place - int(positions[place])
        found.append(ids[start : place + 1].tolist())
    return found


@pytest.mark.parametrize("packed", [False, True])
def test_a_student_goes_on_where_a_person_is_read(
    student: Foundation, text_book: PromptBook, split: Split, packed: bool
) -> None:
    batch = batch_of(text_book, split, packed=packed)
    written = sample(student, batch, samples=5, tokens=7, seed=0)
    assert len(written.ids_ST) == 5
    rows = [
        row[:length].tolist()
        for row, length in zip(written.ids_ST, written.prefix_S.tolist(), strict=True)
    ]
    known = beginnings(batch)
    assert all(row in known for row in rows)
    assert len({tuple(row) for row in rows}) == 5
    said = torch.stack(
        [row[n : n + 7] for row, n in zip(written.ids_ST, written.prefix_S, strict=True)]
    )
    assert len(torch.unique(said)) > 5
    again = sample(student, batch, samples=5, tokens=7, seed=0)
    torch.testing.assert_close(again.ids_ST, written.ids_ST)
    other = sample(student, batch, samples=5, tokens=7, seed=1)
    assert not torch.equal(other.ids_ST, written.ids_ST)


def test_what_it_says_is_its_own(make: Any, text_book: PromptBook, batch: Any) -> None:
    sure = make(of=text_book, seed=2)
    with torch.no_grad():
        sure.decoder.model.norm.weight *= 1000  # as good as certain of every token
    state = torch.random.get_rng_state()
    sure.train()
    written = sample(sure, batch, samples=3, tokens=6, seed=0)
    assert sure.training
    torch.testing.assert_close(torch.random.get_rng_state(), state)
    sure.eval()
    for row, start in zip(written.ids_ST, written.prefix_S.tolist(), strict=True):
        ids = row[:start]
        for _ in range(6):
            ids = torch.cat([ids, sure.decoder(ids[None]).logits[0, -1].argmax()[None]])
        assert row[: start + 6].tolist() == ids.tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely(student: Foundation, batch: Any) -> None:
    [place] = batch["next_position_K"][3:4]
    one = {**batch, "next_position_K": place[None]}
    with torch.no_grad():
        start = place - batch["position_RT"].flatten()[place]
        ids = batch["ids_RT"].flatten()[start : place + 1]
        said = student.decoder(ids[None]).logits[0, -1].softmax(-1)
    drawn = torch.stack(
        [sample(student, one, samples=1, tokens=1, seed=n).ids_ST[0, -1] for n in range(150)]
    )
    likely = said.argsort(descending=True)[:60]
    wanted = float(said[likely].sum())
    got = float(torch.isin(drawn, likely).float().mean())
    assert got == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / 150) ** 0.5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_the_loss_is_the_plain_mean_for_as_many_tokens_as_text_has(
    student: Foundation, teacher: Foundation, batch: Any, kind: Any
) -> None:
    lesson = Lesson(subject="on_policy", kind=kind, beta=0.3, samples=3, tokens=6)
    config = TeacherConfig(weight=0.5, temperature=2.0, lessons=(lesson,))
    got = Distillation(student, [(teacher, config)])(**batch)["teacher_text/on_policy"]
    seed = int(batch["ids_RT"].sum()) * 31
    written = sample(student, batch, samples=3, tokens=6, seed=seed)
    total, count = torch.zeros(()), 0
    for row, start in zip(written.ids_ST, written.prefix_S.tolist(), strict=True):
        ids = row[None, : start + 6]
        p, q = (
            (m.decoder(ids).logits[0, start - 1 : -1] / 2.0).softmax(-1) for m in (teacher, student)
        )
        m = 0.3 * p + 0.7 * q
        far = {
            "forward_kl": p * (p / q).log(),
            "reverse_kl": q * (q / p).log(),
            "jensen_shannon": 0.3 * p * (p / m).log() + 0.7 * q * (q / m).log(),
        }[kind]
        total, count = total + far.sum(), count + 6
    text = int(batch["counts"][LOSSES.index("text")])
    torch.testing.assert_close(got, 0.5 * 4.0 * total / count * text, rtol=1e-3, atol=1e-3)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    student: Foundation, batch: Any
) -> None:
    sums = Distillation(student, [(student, TEACHES)])(**batch)
    assert sums["teacher_text/on_policy"].item() == pytest.approx(0, abs=1e-2)


def test_only_the_student_learns(make: Any, text_book: PromptBook, batch: Any) -> None:
    student, teacher = make(of=text_book), make(of=text_book, seed=1)
    sums = Distillation(student, [(teacher, TEACHES)])(**batch)
    sums["teacher_text/on_policy"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    grad = student.decoder.model.layers[0].mlp.up_proj.weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_taught_on_what_it_writes_a_student_comes_nearer(
    make: Any, text_book: PromptBook, split: Split, batch: Any, tmp_path: Path
) -> None:
    student, teacher = make(of=text_book), make(of=text_book, seed=1)

    def gap() -> float:
        with torch.no_grad():
            sums = Distillation(student, [(teacher, TEACHES)])(**batch)
        return float(sums["teacher_text/on_policy"])

    before = gap()
    result = distil(
        student, teacher, text_book, split, config=FIT, teacher_config=TEACHES, out=tmp_path
    )
    assert gap() < 0.9 * before
    assert "teacher_text/on_policy" in str(result.history)


def test_ids_that_only_the_decoder_knows_are_never_said(
    of_family: Any, text_book: PromptBook, split: Split
) -> None:
    model = of_family("gemma2", "text")
    known = model.prompter.vocab_size
    assert model.decoder.config.vocab_size > known
    with torch.no_grad():
        model.decoder.get_output_embeddings().weight[known:] *= 100
    written = sample(model, batch_of(text_book, split), samples=4, tokens=12, seed=0)
    assert int(written.ids_ST.max()) < known
    assert torch.isfinite(next_tokens(model, written).at_NV).all()


def test_what_cannot_be_taught_so_is_refused(
    make: Any, book: PromptBook, text_book: PromptBook, split: Split, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="in slot form a student has no tokens"):
        Distillation(make(), [(make(seed=1), TEACHES)])
    with pytest.raises(BadInput, match="not known yet"):
        store_signal(
            make(of=text_book),
            text_book,
            split,
            config=FIT,
            teacher_config=TEACHES,
            path=tmp_path / "said.arrow",
        )
    stored = object.__new__(StoredSignal)
    with pytest.raises(ValueError, match="what a student will write"):
        Distillation(make(of=text_book), [(stored, TEACHES)])
    for wrong, says in (
        ({"beta": 1.0}, r"beta=1\.0 must lie between 0 and 1"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"tokens": np.int64(-1)}, "tokens=-1 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            Lesson(subject="on_policy", **wrong)
