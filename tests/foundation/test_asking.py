"""Questions beside training rows are read as they are in use, and change nothing else."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from foundation import FitConfig, Foundation, FoundationConfig
from foundation.asking import Asking, by_slate
from foundation.batches import take_rows
from foundation.losses import grade_loss, rare_action_loss
from foundation.objective import LOSS_INPUTS, READ_INPUTS, StepReading, loss_sums, read_step
from foundation.plan import LOSSES, TrainingPlan
from foundation.predictions import read_scores
from promptify.assembly import PromptBook
from promptify.grades import GradedPairs
from promptify.interactions import Interactions
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS
from promptify.splits import Split

GRADED = (
    replace(TASKS[0], grades=("unfit", "doubtful", "passable", "fitting", "ideal")),
    TASKS[1],
)
FIT = FitConfig(epochs=1, positions_per_batch=2048, reread_items=4, text_positions=16)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def graded_books(market: Interactions, split: Split) -> dict[str, PromptBook]:
    def book(**config: Any) -> PromptBook:
        small = {"max_item_tokens": 24, "max_profile_tokens": 32, "max_context_tokens": 16}
        full = PrompterConfig(vocab_size=700, **{**small, **config})
        return Prompter.fit(market, split.train, GRADED, config=full).book(market)

    return {
        "slot": book(form="slot", max_prompt_tokens=192),
        "text": book(form="text", max_prompt_tokens=320),
    }


@pytest.fixture
def graded(graded_books: dict[str, PromptBook], form: str) -> PromptBook:
    return graded_books[form]


@pytest.fixture(scope="module")
def pairs(market: Interactions) -> GradedPairs:
    """Every fourth pair of a person and a job, shown or not."""
    rng = np.random.default_rng(0)
    user, item = np.divmod(np.arange(0, market.num_users * 50, 4), 50)
    return GradedPairs.of(user, item, rng.integers(0, 5, len(user)), num_grades=5)


@pytest.fixture(scope="module")
def asking(pairs: GradedPairs) -> Asking:
    return Asking(pairs=pairs, questions_per_row=5, slates_per_row=2)


def counting(book: PromptBook, split: Split, **kind: Any) -> Foundation:
    config = FoundationConfig(vector_dim=16, dropout=0.0, instruction_noise=0.0)
    made = Foundation.create(book.prompter, book, split.train, config=config, **kind)
    torch.manual_seed(100)
    for layer in (made.items.project_reading, made.person_head, made.item_head):
        nn.init.normal_(layer.weight, std=0.2)
    assert made.items.residual_ID is None or nn.init.normal_(made.items.residual_ID) is not None
    made.refresh_readings()
    return made.eval()


def read(model: Foundation, batch: dict[str, torch.Tensor]) -> StepReading:
    with torch.no_grad():
        return read_step(model, **{name: batch[name] for name in READ_INPUTS})


def questions(batch: dict[str, torch.Tensor]) -> list[tuple[int, int, list[int]]]:
    """Row, place and ids of every question, with no use of where it is read."""
    found: dict[tuple[int, int], list[int]] = {}
    for row, column in torch.nonzero(batch["question_RT"] >= 0).tolist():
        key = row, int(batch["question_RT"][row, column])
        found.setdefault(key, []).append(column)
    return [
        (row, int(batch["place_RT"][row, at[0]]), batch["ids_RT"][row, at].tolist())
        for (row, _), at in found.items()
    ]


def alone(model: Foundation, batch: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Hidden state at the end of each question's own prompt, by the flat position of its end."""
    width = batch["ids_RT"].shape[1]
    states = {}
    for row, place, ids in questions(batch):
        prompt = torch.cat([batch["ids_RT"][row, : place + 1], torch.tensor(ids)])
        question = batch["question_RT"][row]
        ends = [
            column
            for column in range(width)
            if question[column] >= 0
            and (column + 1 == width or question[column + 1] != question[column])
            and batch["ids_RT"][row, column + 1 - len(ids) : column + 1].tolist() == ids
            and batch["place_RT"][row, column] == place
        ]
        with torch.no_grad():
            state = model.hidden(prompt[None])[0, -1]
        states |= {row * width + column: state for column in ends}
    return states


TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
    "max_position_embeddings": 400,
}
KINDS: dict[str, Any] = {
    "full": Qwen3Config,
    "window of all layers": partial(MistralConfig, sliding_window=20),
    "window of some layers": partial(
        Qwen3Config,
        use_sliding_window=True,
        sliding_window=20,
        layer_types=["full_attention", "sliding_attention"],
    ),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_question_is_read_as_the_prompt_it_stands_for(
    graded: PromptBook, split: Split, asking: Asking, kind: str, tmp_path: Path
) -> None:
    config = KINDS[kind](vocab_size=graded.prompter.vocab_size, **TINY)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = counting(graded, split, model=tmp_path)
    batch = TrainingPlan(graded, split.train, FIT, asking=asking)[0]
    reading, wanted = read(model, batch), alone(model, batch)
    for where, states in (("graded_X", reading.graded_XD), ("shown_Y", reading.shown_YD)):
        told = [(at, state) for at, state in zip(batch[where].tolist(), states, strict=True)]
        asked = [(at, state) for at, state in told if at in wanted]
        assert len(asked) > 5
        for at, state in asked:
            torch.testing.assert_close(state, wanted[at], **CLOSE)


def test_what_a_row_says_is_what_it_says_without_questions(
    graded: PromptBook, split: Split, asking: Asking
) -> None:
    model = counting(graded, split, size="tiny")
    with_them, without = (
        read(model, TrainingPlan(graded, split.train, FIT, asking=one)[0]) for one in (asking, None)
    )
    for name in ("person_KV", "item_CV", "arrow_MD", "text_ND"):
        torch.testing.assert_close(getattr(with_them, name), getattr(without, name), **CLOSE)
    torch.testing.assert_close(with_them.text_target_N, without.text_target_N)
    assert not len(without.graded_XD)
    assert not len(without.shown_YD)


def test_no_grade_stands_in_a_row(graded: PromptBook, split: Split, asking: Asking) -> None:
    plan = TrainingPlan(graded, split.train, FIT, asking=asking)
    for step in range(len(plan)):
        assert not np.isin(plan[step]["ids_RT"].numpy(), graded.prompter.grade_ids).any()


def test_arrows_of_graded_pairs_are_read_and_every_question_has_its_pairs_grade(
    graded: PromptBook, split: Split, pairs: GradedPairs, asking: Asking
) -> None:
    plan = TrainingPlan(graded, split.train, FIT, asking=asking)
    batch, (windows, epoch) = plan[0], plan._windows(0)
    rows = graded.assemble(windows, seed=FIT.seed, epoch=epoch)
    width = batch["ids_RT"].shape[1]
    shares = {
        (u, i): share
        for u, i, share in zip(
            pairs.user.tolist(), pairs.item.tolist(), pairs.share_PG, strict=True
        )
    }
    wanted = []
    for row in range(len(rows)):
        for event in range(rows.event_offsets[row], rows.event_offsets[row + 1]):
            key = int(windows.user[row]), int(rows.event_item[event])
            if windows.task[row] == rows.event_task[event] == 0 and key in shares:
                wanted.append((row * width + int(rows.event_arrow[event]), shares[key]))
    assert len(wanted) > 3
    for at, share in wanted:
        [place] = torch.nonzero(batch["graded_X"] == at).tolist()
        np.testing.assert_array_equal(batch["share_XG"][place[0]], share)
    asked = len(batch["graded_X"]) - len(wanted)
    assert asked == 5 * int((windows.task == 0).sum())
    for at, share in list(zip(batch["graded_X"], batch["share_XG"], strict=True))[len(wanted) :]:
        row, column = divmod(int(at), width)
        question = int(batch["question_RT"][row, column])
        ids = batch["ids_RT"][row][batch["question_RT"][row] == question].tolist()
        user = int(windows.user[row])
        mine = [
            share
            for (u, i), share in shares.items()
            if u == user and graded.question(np.array([i]))[0].tolist() == ids
        ]
        assert any((share.numpy() == one).all() for one in mine)


def test_slates_are_compared_from_the_line_before_them(
    graded: PromptBook, split: Split, asking: Asking
) -> None:
    plan = TrainingPlan(graded, split.train, FIT, asking=asking)
    batch, (windows, epoch) = plan[0], plan._windows(0)
    rows = graded.assemble(windows, seed=FIT.seed, epoch=epoch)
    log = graded.interactions
    width = batch["ids_RT"].shape[1]
    told = {}
    for row in range(len(rows)):
        for pair in range(rows.next_offsets[row], rows.next_offsets[row + 1]):
            event = int(rows.next_event[pair])
            told[row, int(rows.next_position[pair]), int(rows.next_item[pair])] = event
    slates: dict[int, list[int]] = {}
    for at, slate, task, good in zip(
        batch["shown_Y"], batch["shown_slate_Y"], batch["shown_task_Y"],
        batch["shown_is_positive_Y"], strict=True,
    ):  # fmt: skip
        row, column = divmod(int(at), width)
        question = int(batch["question_RT"][row, column])
        ids = batch["ids_RT"][row][batch["question_RT"][row] == question].tolist()
        place = int(batch["place_RT"][row, column])
        [event] = [
            e
            for (r, p, item), e in told.items()
            if (r, p) == (row, place) and graded.question(np.array([item]))[0].tolist() == ids
        ]
        assert task == windows.task[row]
        assert bool(good) == (log.actions[log.event_action[event]] in ("apply", "excellent"))
        slates.setdefault(int(slate), []).append(event)
    assert sorted(slates) == list(range(len(slates)))
    for events in slates.values():
        assert len({int(log.event_slate[event]) for event in events}) == 1
        assert len(events) == (log.event_slate == log.event_slate[events[0]]).sum() > 1
    counts = dict(zip(LOSSES, batch["counts"].tolist(), strict=True))
    assert counts["slate"] == len(slates)
    assert counts["policy"] == len(batch["graded_X"])
    good = batch["shown_slate_Y"][batch["shown_is_positive_Y"]]
    assert counts["rare"] == len(set(good.tolist())) > 0


def test_losses_worked_by_hand() -> None:
    half = torch.tensor([[0.5, 0.5, float("-inf")]])
    half[:, :2] = half[:, :2].log()
    torch.testing.assert_close(
        grade_loss(half, torch.tensor([[0.25, 0.75, 0.0]])), torch.tensor(np.log(2.0)).float()
    )
    scores = by_slate(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 1]))
    assert scores.shape == (2, 3)
    good = torch.tensor([[True, False, False], [False, False, False]])
    # Of the first slate's two one was taken; the second's counts nothing, the padding neither.
    assert float(rare_action_loss(scores, good)) == pytest.approx(np.log(2))
    both = torch.tensor([[True, True, False], [True, False, False]])
    wanted = np.log(2) - np.log(np.e / (np.e + 2))
    assert float(rare_action_loss(scores, both)) == pytest.approx(wanted, abs=1e-6)


def test_losses_have_gradients_and_are_there_where_something_is_asked(
    graded_books: dict[str, PromptBook], split: Split, asking: Asking
) -> None:
    book = graded_books["slot"]
    model = counting(book, split, size="tiny")
    for one in (asking, None):
        batch = TrainingPlan(book, split.train, FIT, asking=one)[0]
        reading = read_step(model, **{name: batch[name] for name in READ_INPUTS})
        sums = loss_sums(model, reading, **{name: batch[name] for name in LOSS_INPUTS})
        if one is None:
            assert set(sums) == {"next_item", "action", "text"}
            break
        for name in ("policy", "rare"):
            assert sums[name] > 0
            grads = torch.autograd.grad(
                sums[name], list(model.parameters()), retain_graph=True, allow_unused=True
            )
            known = [grad for grad in grads if grad is not None]
            assert all(torch.isfinite(grad).all() for grad in known)
            assert any(grad.any() for grad in known)


@torch.no_grad()
def test_both_groups_are_read_at_the_same_arrow(graded: PromptBook, split: Split) -> None:
    model = counting(graded, split, size="tiny")
    prefixes = graded.prefixes(split.test, task=0)
    prefix = take_rows(prefixes, np.array([int(prefixes.lengths.argmax())]))
    items = np.array([5, 0, 9, 5])
    both = model.score_both(prefix, items)
    np.testing.assert_array_equal(both.action_CA, model.score(prefix, items))
    assert both.grade_CG.shape == (4, 5)
    assert both.grade_CG.dtype == np.float32
    rows_GD = model.decoder.get_output_embeddings().weight[
        torch.from_numpy(graded.prompter.grade_ids).long()
    ]
    for place, item in enumerate(items):
        piece = model.questions(np.array([item])).ids
        ids = torch.from_numpy(np.concatenate([prefix.ids, piece]).astype(np.int64))
        plain = (rows_GD @ model.hidden(ids[None])[0, -1]).log_softmax(0).numpy()
        np.testing.assert_allclose(both.grade_CG[place], plain, atol=1e-4)
    many = read_scores(model, prefix, np.zeros(4, np.int64), items, task=0)
    np.testing.assert_allclose(many.action_CA, both.action_CA, atol=1e-4)
    np.testing.assert_allclose(many.grade_CG, both.grade_CG, atol=1e-4)
    assert model.score_both(prefix, items, task=1).grade_CG.shape == (4, 0)
    assert model.score_both(prefix, items[:0]).grade_CG.shape == (0, 5)


def test_grades_survive_saving(
    graded_books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    book = graded_books["slot"]
    model = counting(book, split, size="tiny")
    model.save_pretrained(tmp_path / "model")
    again = Foundation.from_pretrained(tmp_path / "model")
    prefix = take_rows(book.prefixes(split.test, task=0), np.array([0]))
    for one in ("action_CA", "grade_CG"):
        np.testing.assert_allclose(
            getattr(again.score_both(prefix, np.arange(4)), one),
            getattr(model.score_both(prefix, np.arange(4)), one),
            atol=1e-6,
        )


def test_a_fit_learns_the_grades_it_is_asked(
    graded_books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    book = graded_books["slot"]
    log = book.interactions
    user, item = np.divmod(np.arange(log.num_users * 50), 50)
    # A rule that the job alone decides: learned in a moment, and seen only through the grades.
    pairs = GradedPairs.of(user, item, np.where(item % 2, 4, 0), num_grades=5)
    model = counting(book, split, size="tiny")
    fit = replace(FIT, epochs=8, learning_rate=3e-3, action_weight=0.0, next_item_weight=0.0)
    asking = Asking(pairs=pairs, questions_per_row=16, policy_weight=2.0)
    result = model.fit(book, split, config=fit, out=tmp_path, asking=asking)
    said = result.history["loss/policy"]
    assert said[0][1] > 1.0
    assert said[-1][1] < 0.4
    assert "loss/rare" not in result.history
    prefix = take_rows(book.prefixes(split.test, task=0), np.array([0]))
    grades = model.score_both(prefix, np.arange(50)).grade_CG.argmax(1)
    assert (grades == np.where(np.arange(50) % 2, 4, 0)).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"questions_per_row": -1}, "questions_per_row=-1"),
        ({"policy_weight": -1.0}, "policy_weight=-1.0"),
        ({"pairs": None}, "give one of them"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    pairs: GradedPairs, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Asking(**{"pairs": pairs, **change})


def test_what_does_not_fit_is_refused(
    books: dict[str, PromptBook],
    graded_books: dict[str, PromptBook],
    split: Split,
    pairs: GradedPairs,
) -> None:
    one = np.array([0]), np.array([1])
    three = GradedPairs.of(*one, np.array([1]), num_grades=3)
    far = GradedPairs.of(np.array([10**6]), np.array([1]), np.array([1]), num_grades=5)
    graded = graded_books["slot"]
    for book, asking, options, said in (
        (graded, Asking(pairs=three), {}, "have 3 grades, but task 'jobs' has 5"),
        (books["slot"], Asking(pairs=pairs), {}, "has 0"),
        (graded, Asking(pairs=pairs, task=7), {}, "task=7 is unknown"),
        (graded, Asking(pairs=far), {}, "hold user 1000000"),
        (graded, Asking(pairs=pairs), {"packed": True}, "packing=False"),
    ):
        with pytest.raises(ValueError, match=said):
            TrainingPlan(book, split.train, FIT, asking=asking, **options)
