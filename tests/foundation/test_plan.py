from typing import Any

import numpy as np
import pytest
import torch

from foundation import FitConfig
from foundation.losses import chunked_cross_entropy
from foundation.plan import TrainingPlan
from foundation.slots import FreshReadings
from promptify.assembly import PromptBook
from promptify.splits import Split

SMALL = {"epochs": 2, "positions_per_batch": 1024, "reread_items": 4, "text_positions": 32}


@pytest.fixture
def plan_of(book: PromptBook, split: Split) -> Any:
    def plan(*, packed: bool = False, processes: int = 1, **config: Any) -> TrainingPlan:
        whole = FitConfig(**{**SMALL, **config})
        return TrainingPlan(book, split.train, whole, packed=packed, processes=processes)

    return plan


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_same_seed_gives_the_same_batches(plan_of: Any) -> None:
    left, right, other = plan_of(), plan_of(), plan_of(seed=1)
    assert len(left) == len(right)
    steps = [0, 1, len(left) - 1]
    assert all(same(left[step], right[step]) for step in steps)
    assert not all(same(left[step], other[step]) for step in steps)


def test_a_step_is_the_same_whatever_was_read_before(plan_of: Any) -> None:
    read_through, resumed = plan_of(), plan_of()
    batches = [read_through[step] for step in range(4)]
    assert same(resumed[3], batches[3])
    assert not same(batches[2], batches[3])


def test_every_training_event_is_a_target_once_an_epoch(
    plan_of: Any, book: PromptBook, split: Split
) -> None:
    log, plan = book.interactions, plan_of()
    # Of events shown together, one is a target.
    wanted = len(np.unique(log.event_slate[split.train]))
    per_epoch = [0, 0]
    for step in range(len(plan)):
        per_epoch[int(step >= plan._first[1])] += len(plan[step]["label_M"])
    assert per_epoch == [wanted, wanted]


def test_no_batch_is_longer_than_its_budget(plan_of: Any) -> None:
    plan = plan_of()
    for step in range(len(plan)):
        rows, width = plan[step]["ids_RT"].shape
        # Groups are made on lengths with a little noise, never more than what they hold.
        assert rows * width <= SMALL["positions_per_batch"] or rows == 1


def test_a_small_log_is_passed_over_until_its_steps_are_there_and_a_large_one_stays(
    plan_of: Any,
) -> None:
    before = plan_of()
    for shared in ({"processes": 2}, {"accumulate": 2}, {}):
        more = plan_of(least_steps=2 * len(before), **shared)
        steps = more.num_batches / more.steps_share
        assert 2 * len(before) <= steps < 2 * len(before) * 1.2
    for least_steps in (0, len(before)):
        enough = plan_of(least_steps=least_steps)
        assert len(enough) == len(before)
        assert all(same(enough[step], before[step]) for step in range(len(before)))
    assert all(same(more[step], before[step]) for step in range(len(before)))


def test_epochs_differ(plan_of: Any) -> None:
    plan = plan_of()
    first = [tuple(plan[step]["ids_RT"].shape) for step in range(int(plan._first[1]))]
    second = [tuple(plan[step]["ids_RT"].shape) for step in range(int(plan._first[1]), len(plan))]
    assert first != second


def test_negatives_are_shared_within_an_optimiser_step(plan_of: Any) -> None:
    plan = plan_of(accumulate=2, full_softmax_items=10, num_negatives=50)
    draws = [plan[step] for step in range(4)]
    assert torch.equal(draws[0]["negatives"], draws[1]["negatives"])
    assert torch.equal(draws[2]["negatives"], draws[3]["negatives"])
    assert not torch.equal(draws[0]["negatives"], draws[2]["negatives"])
    assert not same(draws[0], draws[1])


def test_what_was_expected_of_a_negative_adds_up(plan_of: Any, book: PromptBook) -> None:
    plan = plan_of(full_softmax_items=10, num_negatives=20_000)
    batch = plan[0]
    counts = np.bincount(batch["negatives"], minlength=book.interactions.num_items)
    expected = np.zeros(len(counts))
    expected[batch["negatives"]] = batch["negative_log_expected"].exp()
    assert expected.sum() == pytest.approx(20_000, rel=0.01)
    assert np.corrcoef(counts, expected)[0, 1] > 0.9


def test_a_small_catalogue_needs_no_negatives(plan_of: Any) -> None:
    assert len(plan_of()[0]["negatives"]) == 0


@pytest.mark.parametrize("sampled", [{}, {"full_softmax_items": 10, "num_negatives": 20}])
def test_which_items_are_read_again_tells_nothing_of_what_is_next(
    plan_of: Any, book: PromptBook, sampled: dict[str, int]
) -> None:
    plan, classes = plan_of(**sampled), np.arange(book.interactions.num_items)
    wanted = found = drawn = 0.0
    for step in range(len(plan)):
        batch = plan[step]
        reread, following = batch["reread_items"].numpy(), batch["next_item_K"].unique().numpy()
        if sampled:
            classes = np.union1d(following, batch["negatives"])
        assert len(np.unique(reread)) == len(reread) == SMALL["reread_items"]
        assert np.isin(reread, classes).all()
        wanted += len(reread) * len(following) / len(classes)
        found += np.isin(reread, following).sum()
        drawn += len(reread)
    # Four standard deviations of as many draws with replacement, which vary more.
    assert abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted / drawn))


@pytest.mark.parametrize("sampled", [{}, {"full_softmax_items": 10, "num_negatives": 20}])
def test_nothing_is_read_of_items_that_nobody_trained_on(
    book: PromptBook, split: Split, sampled: dict[str, int]
) -> None:
    log = book.interactions
    train = split.train & (log.event_item % 4 != 0)
    is_known = np.bincount(log.event_item[train], minlength=log.num_items) > 0
    assert 0 < is_known.sum() < log.num_items
    config = FitConfig(**{**SMALL, **sampled})

    def read(plan: TrainingPlan) -> set[int]:
        batches = [plan[step] for step in range(len(plan))]
        names = ("reread_items", "negatives")
        return {item for batch in batches for name in names for item in batch[name].tolist()}

    found = read(TrainingPlan(book, train, config))
    assert found <= set(np.flatnonzero(is_known).tolist())
    # What an earlier training knows competes on, though this log has no event of it.
    [before, *_] = np.flatnonzero(~is_known).tolist()
    competing = is_known.copy()
    competing[before] = True
    more = read(TrainingPlan(book, train, config, competing=competing))
    assert before in more <= set(np.flatnonzero(competing).tolist())


def test_readings_of_some_items_lead_where_readings_of_all_would(plan_of: Any, make: Any) -> None:
    plan, foundation = plan_of(), make("text", dropout=0.0).eval()
    batch, number = plan[0], foundation.num_items

    def gradient(items: torch.Tensor) -> torch.Tensor:
        reading = foundation.items.reading_ID[items].requires_grad_()
        fresh = FreshReadings(items, reading, number)
        vectors = foundation.item_vectors(foundation.slots(torch.arange(number), fresh))
        loss = chunked_cross_entropy(person_KV, vectors, batch["next_item_K"])
        [moved] = torch.autograd.grad(loss, reading)
        return torch.zeros(number, moved.shape[1]).index_copy_(0, items, moved)

    person_KV = torch.randn(len(batch["next_item_K"]), foundation.item_head.out_features)
    whole, draws = gradient(torch.arange(number)), 400
    found = torch.zeros_like(whole)
    for step in range(draws):
        drawn = plan._reread(
            batch["next_item_K"].numpy(), batch["negatives"], batch["hard_negatives"], step=step
        )
        found += gradient(drawn) * number / len(drawn) / draws
    # What moves all of them alike is no more of it, and what tells items apart is there.
    assert torch.cosine_similarity(found.sum(0), whole.sum(0), dim=0) > 0.9
    assert torch.cosine_similarity(found.flatten(), whole.flatten(), dim=0) > 0.9


def test_text_positions_are_drawn_from_the_batch(plan_of: Any) -> None:
    batch = plan_of()[0]
    assert len(batch["text_position_N"].unique()) == SMALL["text_positions"]
    everything = plan_of(text_positions=10**6)[0]["text_position_N"]
    assert set(batch["text_position_N"].tolist()) < set(everything.tolist())


def test_processes_share_what_one_accumulates(plan_of: Any) -> None:
    alone = plan_of(accumulate=6, full_softmax_items=10, num_negatives=50)
    shared = plan_of(accumulate=2, processes=3, full_softmax_items=10, num_negatives=50)
    assert alone.num_batches == shared.num_batches
    assert len(shared) % 3 == 0
    assert all(same(alone[step], shared[step]) for step in range(len(alone)))


def test_the_last_round_is_filled_up_with_what_does_not_count(plan_of: Any) -> None:
    processes = next(p for p in (2, 3, 4, 5) if len(plan_of()) % p)
    plan = plan_of(processes=processes)
    assert plan.num_batches < len(plan) < plan.num_batches + processes
    for step in range(plan.num_batches, len(plan)):
        batch = plan[step]
        assert not batch["counts"].any()
        assert batch["num_tokens"] == 0
        # Read like any other: sharded layers must be gathered as often by every process.
        assert all(torch.equal(batch[n], plan[0][n]) for n in ("ids_RT", "reread_items"))


def test_micro_batches_count_their_predictions(plan_of: Any, book: PromptBook) -> None:
    batch = plan_of()[0]
    tokens = sum(int(book.item_pieces.lengths[item]) - 1 for item in batch["reread_items"])
    wanted = [len(batch["next_item_K"]), len(batch["label_M"]), len(batch["text_position_N"])]
    wanted[2] += tokens
    assert batch["counts"].tolist() == [*wanted, 0, 0, 0]


def test_assembling_ahead_changes_nothing(plan_of: Any) -> None:
    in_order, jumping = plan_of(), plan_of()
    batches = [in_order[step] for step in range(len(in_order))]
    for step in (5, 2, 3, 0, 4, 1):
        assert same(jumping[step], batches[step])
