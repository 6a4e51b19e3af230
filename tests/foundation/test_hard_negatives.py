"""Mined negatives: drawn once for an optimiser step, counted once, never against an answer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation import FitConfig
from foundation.hard_negatives import draw_hard_negatives, left_out
from foundation.losses import chunked_cross_entropy, sampled_cross_entropy
from foundation.plan import TrainingPlan
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.splits import Split

SAMPLED = {
    "epochs": 2,
    "positions_per_batch": 1024,
    "reread_items": 0,
    "text_positions": 10**6,
    "full_softmax_items": 10,
    "num_negatives": 24,
    "num_hard_negatives": 12,
}
Mined = np.ndarray[Any, np.dtype[np.int32]]


@pytest.fixture(scope="module")
def mined(market: Interactions) -> Mined:
    """Four items for each event, some of them missing."""
    rng = np.random.default_rng(0)
    return rng.integers(-1, market.num_items, (market.num_events, 4), dtype=np.int32)


@pytest.fixture
def plan_of(books: dict[str, PromptBook], split: Split, mined: Mined) -> Callable[..., Any]:
    def plan(*, processes: int = 1, hard: Mined | None = mined, **config: Any) -> TrainingPlan:
        whole = FitConfig(**{**SAMPLED, **config})
        return TrainingPlan(
            books["slot"], split.train, whole, processes=processes, hard_negatives=hard
        )

    return plan


def test_what_is_left_out_worked_by_hand() -> None:
    # Two items, 3 and 5, are right at the first position, 4 at the second.
    position, item = torch.tensor([7, 7, 9]), torch.tensor([3, 5, 4])
    sample, hard = torch.tensor([5, 2, 4, 8, 5]), torch.tensor([2, 4, 5])
    sampled, mined = left_out(position, item, sample, hard)
    # 5 is an answer at 7: no hard negative there, and left to the sample but for itself.
    assert mined.tolist() == [[False, False, True], [False, False, True], [False, True, False]]
    # What the sample drew of a hard negative is left out: it is counted already.
    assert sampled.tolist() == [
        [False, True, True, False, False],
        [True, True, True, False, True],
        [True, True, True, False, True],
    ]


def test_without_hard_negatives_the_accidental_hits_are_left() -> None:
    position, item, sample = torch.tensor([1, 1]), torch.tensor([0, 2]), torch.tensor([2, 1])
    sampled, mined = left_out(position, item, sample, torch.zeros(0, dtype=torch.long))
    assert sampled.tolist() == [[False, False], [True, False]]
    assert mined.shape == (2, 0)


@pytest.mark.parametrize("is_slate", [False, True])
def test_the_normaliser_stays_unbiased_and_varies_less(is_slate: bool) -> None:
    # Items 6, 7 and 8 are mined and draw near; of a slate, 7 is another answer.
    generator = torch.Generator().manual_seed(0)
    person = torch.randn(1, 4, generator=generator)
    items = torch.randn(9, 4, generator=generator) * 0.3
    items[6:] += person * 0.3
    target, position = torch.tensor([3, 7]), torch.tensor([0, 0 if is_slate else 1])
    chance = torch.softmax(torch.randn(9, generator=generator), 0)
    full = chunked_cross_entropy(person, items, target[:1]).exp()

    def ratios(hard: Tensor) -> Tensor:
        found = []
        for _ in range(3000):
            sample = torch.multinomial(chance, 16, replacement=True, generator=generator)
            log_q = torch.cat([(16 * chance[sample]).log(), torch.zeros(len(hard))])
            collides = torch.cat(left_out(position, target, sample, hard), dim=1)
            others = items[torch.cat([sample, hard])]
            found.append(
                sampled_cross_entropy(
                    person,
                    items[target[:1]],
                    others,
                    collides_KS=collides[:1],
                    log_expected_S=log_q,
                ).exp()
            )
        return torch.stack(found)

    plain, stratified = ratios(torch.zeros(0, dtype=torch.long)), ratios(torch.tensor([6, 7, 8]))
    assert stratified.mean().item() == pytest.approx(full.item(), rel=0.02)
    # An answer is left to the sample, and so to chance.
    assert is_slate or stratified.std() < 0.5 * plain.std()


def test_drawn_items_are_different_and_come_as_often_as_they_were_mined() -> None:
    mined = np.array([[1, 2], [1, -1], [1, 3], [1, -1]], np.int32)
    draws = [draw_hard_negatives(mined, 1, np.random.default_rng(seed)) for seed in range(300)]
    counts = np.bincount(np.concatenate(draws), minlength=4)
    assert counts[0] == 0
    # Item 1 was mined four times of six.
    assert 160 < counts[1] < 240
    everything = draw_hard_negatives(mined, 99, np.random.default_rng(0))
    assert everything.tolist() == [1, 2, 3]
    nothing = draw_hard_negatives(np.full((3, 2), -1, np.int32), 5, np.random.default_rng(0))
    assert nothing.shape == (0,)


def test_a_step_s_hard_negatives_were_mined_for_its_events(
    plan_of: Any, mined: Mined, split: Split
) -> None:
    plan = plan_of(accumulate=3, num_hard_negatives=10**6)
    for step in (0, len(plan) - 1):
        mates = range(step - step % 3, min(step - step % 3 + 3, len(plan)))
        events = np.concatenate([plan[mate]["next_event_K"].numpy() for mate in mates])
        assert split.train[events].all()
        wanted = set(mined[events].ravel().tolist()) - {-1}
        # And for those of other tasks, which are history in the same windows.
        assert set(plan[step]["hard_negatives"].tolist()) >= wanted
    assert len(plan_of()[0]["hard_negatives"]) == SAMPLED["num_hard_negatives"]


def test_only_training_events_are_mined_for(plan_of: Any, mined: Mined, split: Split) -> None:
    # What stands in the rows of held-out events is never looked at.
    other = mined.copy()
    other[~split.train] = 0
    left, right = plan_of(), plan_of(hard=other)
    for step in range(len(left)):
        assert torch.equal(left[step]["hard_negatives"], right[step]["hard_negatives"])


def test_one_draw_for_a_step_however_it_is_cut(plan_of: Any) -> None:
    alone, shared, apart = plan_of(accumulate=6), plan_of(accumulate=2, processes=3), plan_of()
    assert len(alone) > 6
    for step in range(len(alone)):
        assert torch.equal(alone[step]["hard_negatives"], shared[step]["hard_negatives"])
        # Read after nothing else, as a resumed run does.
        fresh = plan_of(accumulate=6)[step]["hard_negatives"]
        assert torch.equal(fresh, alone[step - step % 6]["hard_negatives"])
    assert not torch.equal(alone[0]["hard_negatives"], alone[6]["hard_negatives"])
    assert not torch.equal(apart[0]["hard_negatives"], apart[1]["hard_negatives"])
    assert not torch.equal(
        alone[0]["hard_negatives"], plan_of(accumulate=6, seed=1)[0]["hard_negatives"]
    )


def test_mined_items_are_read_again_like_others_of_the_softmax(plan_of: Any) -> None:
    plan = plan_of(reread_items=10**6)
    batch = plan[0]
    of_softmax = [batch[name] for name in ("next_item_K", "negatives", "hard_negatives")]
    # All but what was mined though nobody trained on it.
    competing = np.intersect1d(torch.cat(of_softmax).numpy(), plan._competing)
    assert np.isin(batch["hard_negatives"].numpy(), competing).any()
    assert batch["reread_items"].tolist() == competing.tolist()


def test_pairs_know_their_events(plan_of: Any, market: Interactions) -> None:
    batch = plan_of()[0]
    events = batch["next_event_K"].numpy()
    assert len(events) == len(batch["next_item_K"])
    assert (market.event_item[events] == batch["next_item_K"].numpy()).all()
    # The same slate is predicted from the same position.
    slates = market.event_slate[events]
    assert len(np.unique(slates)) == len(batch["next_position_K"].unique()) < len(slates)


def test_parts_of_a_step_add_up_to_the_whole(
    plan_of: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(16)
    gradients = []
    for groups in ([rows], [rows[:3], rows[3:4], rows[4:11], rows[11:]]):
        monkeypatch.setattr(TrainingPlan, "_groups", lambda *_, groups=groups: groups)
        model, plan = make("slot", dropout=0.0), plan_of(accumulate=len(groups), epochs=1)
        for step in range(len(groups)):
            model(**plan[step])["next_item"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


def test_hard_negatives_are_in_the_loss_once_each(plan_of: Any, make: Any) -> None:
    model, batch = make("slot", dropout=0.0), plan_of()[0]
    none = torch.zeros(0, dtype=torch.long)
    without = model(**{**batch, "hard_negatives": none})["next_item"]
    assert model(**batch)["next_item"] != without
    # Every item mined: the sample has nothing left to say, and but for a slate's other answers
    # the softmax runs over the catalogue.
    everything = torch.arange(model.num_items)
    exact = model(**{**batch, "hard_negatives": everything})["next_item"].item()
    others = {"negatives": none, "negative_log_expected": torch.zeros(0)}
    full = model(**{**batch, **others})["next_item"].item()
    assert abs(exact - full) < 0.5 * abs(without.item() - full)
    alone = _one_answer_each(batch)
    exact = model(**{**alone, "hard_negatives": everything})["next_item"].item()
    assert exact == pytest.approx(model(**{**alone, **others})["next_item"].item(), rel=1e-5)


def _one_answer_each(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with one next item for each position."""
    _, first = np.unique(batch["next_position_K"].numpy(), return_index=True)
    kept = torch.from_numpy(first)
    names = ("next_position_K", "next_item_K", "next_event_K")
    return {**batch, **{name: batch[name][kept] for name in names}}


def test_hard_negatives_beside_the_full_softmax_are_refused(
    make: Any, books: dict[str, PromptBook], split: Split, mined: Mined, tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=r"no place beside the softmax over .*full_softmax_items"):
        make().fit(books["slot"], split, config=FitConfig(), out=tmp_path, hard_negatives=mined)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda mined: mined[:-1], r"give int32 \[\d+, n\]"),
        (lambda mined: mined[:, 0], r"give int32 \[\d+, n\]"),
        (lambda mined: mined.astype(float), "is float64"),
        (lambda mined: mined + 1000, "rows of the catalogue"),
        (lambda mined: mined - 1, "holds -2 to"),
    ],
)
def test_what_does_not_fit_is_refused(plan_of: Any, mined: Mined, spoil: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan_of(hard=spoil(mined))
