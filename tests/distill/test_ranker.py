"""The retrieval softmax learns what the ranker says of the candidates."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.ranker import (
    RankedCandidates,
    RankerDistillation,
    candidate_kl,
    distil_ranker,
    rank_candidates,
)
from distill.teaching import TeacherConfig
from foundation import FitConfig, Foundation
from foundation.batches import take_rows
from foundation.plan import TrainingPlan
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

NO = float("-inf")
SMALL = FitConfig(epochs=1, positions_per_batch=2048, reread_items=4, text_positions=16)
SAMPLED = replace(SMALL, full_softmax_items=10, num_negatives=20)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(person: Tensor, items: Tensor, place: Tensor, scores: Tensor, t: float) -> Tensor:
    """KL(ranker ‖ retriever) over each row's candidates, term by term."""
    total = torch.zeros(())
    for vector, places, told in zip(person, place, scores, strict=True):
        there = torch.isfinite(told)
        logits = torch.stack([vector @ items[p] for p in places[there]])
        p, q = (told[there] / t).softmax(0), (logits / t).softmax(0)
        total = total + (p * (p / q).log()).sum()
    return total * t**2


@pytest.mark.parametrize("max_numbers", [1, 60, 10_000])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_candidate_kl_is_the_plain_sum_in_value_and_gradient(
    temperature: float, max_numbers: int
) -> None:
    person, items = drawn(6, 4).requires_grad_(), drawn(9, 4, seed=1).requires_grad_()
    place, scores = torch.arange(18).reshape(6, 3) % 9, drawn(6, 3, seed=2)
    scores[1, 2] = scores[4, 1] = NO
    plain = reference(person, items, place, scores, temperature)
    options = {"temperature": temperature, "max_numbers": max_numbers}
    got = candidate_kl(person, items, place, scores, **options)
    torch.testing.assert_close(got, plain)
    for ours, wanted in zip(
        torch.autograd.grad(got, [person, items]),
        torch.autograd.grad(plain, [person, items]),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_candidate_kl_worked_by_hand() -> None:
    # The ranker says 3/4, 1/4, the retriever a half each: 3/4 ln 3/2 + 1/4 ln 1/2.
    items, place = torch.tensor([[1.0], [1.0], [5.0]]), torch.tensor([[0, 1, 2]])
    scores = torch.tensor([[math.log(3.0), 0.0, NO]])
    got = candidate_kl(torch.ones(1, 1), items, place, scores, temperature=1.0)
    assert got.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_candidate_kl_at_several_widths_is_their_mean() -> None:
    person, items = drawn(6, 5), drawn(9, 5, seed=1)
    place, scores = torch.arange(18).reshape(6, 3) % 9, drawn(6, 3, seed=2)
    apart = [
        candidate_kl(person[:, :w], items[:, :w], place, scores, temperature=2.0) for w in (2, 5)
    ]
    got = candidate_kl(person, items, place, scores, temperature=2.0, widths=(2, 5))
    torch.testing.assert_close(got, (apart[0] + apart[1]) / 2)


def test_without_candidates_there_is_nothing_to_learn() -> None:
    person, items = drawn(2, 4).requires_grad_(), drawn(9, 4, seed=1).requires_grad_()
    nowhere = torch.zeros(2, 3, dtype=torch.long)
    loss = candidate_kl(person, items, nowhere, torch.full((2, 3), NO), temperature=1.0)
    assert loss.item() == 0
    loss.backward()
    assert items.grad is not None
    assert not items.grad.any()
    none = candidate_kl(person[:0], items, nowhere[:0], torch.zeros(0, 3), temperature=1.0)
    assert none.item() == 0


def all_told(book: PromptBook, split: Split, told: Foundation | None = None) -> RankedCandidates:
    """Eight candidates for every training event, scored by a model's vectors or at random."""
    log = book.interactions
    rng = np.random.default_rng(0)
    row_E = np.where(split.train, np.arange(log.num_events), -1).astype(np.int32)
    candidates = np.array(
        [rng.choice(log.num_items, 8, replace=False) for _ in range(log.num_events)], np.int32
    )
    candidates[::3, 6:] = -1
    scores = rng.normal(size=candidates.shape).astype(np.float32)
    if told is not None:
        for step, batch in enumerate_batches(book, split):
            del step
            persons = persons_of(told, batch)
            events = batch["next_event_K"].numpy()
            vectors = told.embed_items()[candidates[events]]
            scores[events] = np.einsum("kcv,kv->kc", vectors, persons)
    scores[candidates < 0] = -np.inf
    return RankedCandidates(row_E=row_E, candidates_nC=candidates, scores_nC=scores)


def enumerate_batches(book: PromptBook, split: Split) -> Any:
    plan = TrainingPlan(book, split.train, SMALL)
    return ((step, plan[step]) for step in range(len(plan)))


@torch.no_grad()
def persons_of(model: Foundation, batch: dict[str, Tensor]) -> Any:
    hidden = model.hidden(batch["ids_RT"]).flatten(0, 1)
    return model.person_head(hidden[batch["next_position_K"]]).numpy()


@pytest.mark.parametrize("config", [SMALL, SAMPLED], ids=["full", "sampled"])
def test_a_retriever_that_says_what_the_ranker_says_has_nothing_to_learn(
    make: Any, book: PromptBook, split: Split, config: FitConfig
) -> None:
    student = make()
    batch = TrainingPlan(book, split.train, config)[0]
    same = RankerDistillation(student, all_told(book, split, student), temperature=2.0)(**batch)
    assert same["teacher_next_item"].item() == pytest.approx(0, abs=1e-3)
    other = RankerDistillation(student, all_told(book, split), temperature=2.0)(**batch)
    assert other["teacher_next_item"].item() > 0.1
    # The data's own losses are those without a ranker.
    for name, value in student(**batch).items():
        torch.testing.assert_close(other[name], value)


def test_events_without_a_row_teach_nothing(make: Any, book: PromptBook, split: Split) -> None:
    student, told = make(), all_told(book, split)
    batch = TrainingPlan(book, split.train, SMALL)[0]

    def loss(ranked: RankedCandidates) -> float:
        sums = RankerDistillation(student, ranked, temperature=1.0)(**batch)
        return float(sums["teacher_next_item"].detach())

    events = batch["next_event_K"].numpy()
    parts = []
    for half in (events[::2], events[1::2]):
        row_E = told.row_E.copy()
        row_E[half] = -1
        parts.append(loss(replace(told, row_E=row_E)))
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(loss(told), rel=1e-4)
    assert loss(replace(told, row_E=np.full_like(told.row_E, -1))) == 0


def test_distilled_the_retriever_comes_nearer_and_resumes(
    make: Any, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    student, told = make(), all_told(book, split)
    batch = TrainingPlan(book, split.train, SMALL)[0]

    def gap() -> float:
        with torch.no_grad():
            sums = RankerDistillation(student, told, temperature=1.0)(**batch)
        return float(sums["teacher_next_item"])

    at_first = gap()
    options: dict[str, Any] = {
        "config": replace(SMALL, epochs=3),
        "teacher_config": TeacherConfig(weight=5.0),
        "out": tmp_path,
    }
    result = distil_ranker(student, told, book, split, **options)
    assert gap() < 0.9 * at_first
    assert "loss/teacher_next_item" in result.history
    again = make()
    distil_ranker(again, told, book, split, **options)
    assert torch.equal(again.person_head.weight, student.person_head.weight)
    # What another ranker said, or the same one softer, is another training.
    other = replace(told, scores_nC=2 * told.scores_nC)
    softer = {**options, "teacher_config": TeacherConfig(weight=5.0, temperature=4.0)}
    for ranked, asked in ((other, options), (told, softer)):
        with pytest.raises(BadInput, match="of a training with another teacher;"):
            distil_ranker(make(), ranked, book, split, **asked)


def test_the_ranker_is_asked_as_a_request_would(make: Any, book: PromptBook, split: Split) -> None:
    ranker = make()
    ranker.settings = replace(ranker.settings, rank_weight=(0.5, 2.0))
    rows = take_rows(book.prefixes(split.test, task=0), np.arange(3))
    candidates = np.array([[3, 1, 4], [1, 5, -1], [9, 2, 6]], np.int32)
    scores = rank_candidates(ranker, rows, candidates, task=0)
    positive = np.array(book.prompter.tasks[0].is_positive)
    assert 0 < positive.sum() < len(positive)
    vectors, persons = ranker.embed_items(), ranker.embed_users(rows)
    for row, column in ((0, 0), (1, 1), (2, 2)):
        item = candidates[row, column]
        said = ranker.score(take_rows(rows, np.array([row])), np.array([item]), task=0)[0]
        liked = np.log(np.exp(said[positive]).sum())
        assert scores[row, column] == pytest.approx(
            persons[row] @ vectors[item] + 0.5 * liked, abs=1e-4
        )
    assert scores[1, 2] == -np.inf


def test_what_a_ranker_said_of_something_else_is_refused(
    make: Any, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    told = all_told(book, split)
    options: dict[str, Any] = {
        "config": SMALL,
        "teacher_config": TeacherConfig(),
        "out": tmp_path,
    }
    with pytest.raises(ValueError, match="events, but the log has"):
        distil_ranker(make(), replace(told, row_E=told.row_E[:-1]), book, split, **options)
    other = replace(told, candidates_nC=np.where(told.candidates_nC >= 0, 10**6, -1))
    with pytest.raises(ValueError, match="holds item 1000000"):
        distil_ranker(make(), other, book, split, **options)
    with pytest.raises(ValueError, match="a score for each"):
        replace(told, scores_nC=told.scores_nC[:, :-1])
    with pytest.raises(ValueError, match="row_E holds"):
        replace(told, row_E=told.row_E + 10**6)
    with pytest.raises(ValueError, match="not finite"):
        replace(told, scores_nC=np.full_like(told.scores_nC, np.nan))
