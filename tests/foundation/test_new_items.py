"""A bias for new items: chosen on validation, carried by vectors, saved with the model."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation import Foundation, new_items, predictions
from foundation.evaluation import ndcg
from foundation.new_items import fit_new_item_bias
from foundation.predictions import predict_targets, ranking_targets
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput


@pytest.fixture
def foundation(make: Any, books: dict[str, PromptBook], split: Split) -> Foundation:
    """A third of the items of validation targets were never trained on, and lie far below."""
    made: Foundation = make("slot")
    # What people have in common, as any trained head comes to say.
    torch.nn.init.constant_(made.person_head.bias, 2.0)
    wanted = ranking_targets(books["slot"], split.valid, task=0)
    new = np.unique(wanted.item)[::3]
    made.items.exposure_I.fill_(1000.0)
    made.items.exposure_I[new] = 0
    return made


def cold_and_warm(foundation: Foundation, book: PromptBook, split: Split) -> tuple[float, float]:
    wanted = ranking_targets(book, split.valid, task=0)
    gain = ndcg(predict_targets(foundation, book, split.valid).rank, 10)
    is_cold = foundation.items.exposure_I.numpy()[wanted.item] == 0
    return float(gain[is_cold].mean()), float(gain[~is_cold].mean())


@pytest.mark.parametrize("max_warm_loss", [0.0, 0.5, 0.99])
def test_new_items_gain_and_known_ones_lose_no_more_than_allowed(
    foundation: Foundation, books: dict[str, PromptBook], split: Split, max_warm_loss: float
) -> None:
    book = books["slot"]
    before = cold_and_warm(foundation, book, split)
    fitted = fit_new_item_bias(foundation, book, split.valid, max_warm_loss=max_warm_loss)
    cold, warm = cold_and_warm(foundation, book, split)
    assert (fitted.cold_ndcg[0], fitted.warm_ndcg[0]) == pytest.approx(before, abs=0.02)
    assert warm >= (1 - max_warm_loss) * before[1] - 0.02
    assert cold >= before[0]
    if max_warm_loss == 0.99:
        assert fitted.bias > 0
        assert cold > before[0]
    assert fitted.spread < 0.2


def test_the_bias_is_by_exposure_and_in_the_vectors(
    foundation: Foundation, books: dict[str, PromptBook], split: Split
) -> None:
    book = books["slot"]
    plain = foundation.embed_items()
    fitted = fit_new_item_bias(foundation, book, split.valid, max_warm_loss=0.99)
    step = foundation.embed_items() - plain
    people = foundation.embed_users(book.prefixes(split.test, task=0))
    exposure = foundation.items.exposure_I.numpy()
    half = foundation.settings.half_exposure
    added = people @ step.T
    wanted = fitted.bias * half / (exposure + half)
    np.testing.assert_allclose(added.mean(0), wanted, rtol=0.1, atol=1e-4)
    # An item given by its text alone has never been met either.
    pieces = foundation.item_pieces.take(np.array([0]))
    shifted = foundation.embed_items(pieces)
    foundation.new_item_shift_V.zero_()
    np.testing.assert_allclose(
        (people @ (shifted - foundation.embed_items(pieces)).T).mean(), fitted.bias, rtol=0.1
    )


def test_people_by_items_are_never_held_at_once(
    foundation: Foundation,
    books: dict[str, PromptBook],
    split: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book, times = books["slot"], 100
    persons = foundation.embed_users(book.prefixes(split.valid, task=0))
    many = split.valid[np.tile(np.arange(len(split.valid)), times)]
    fitted = fit_new_item_bias(foundation, book, split.valid, max_warm_loss=0.5)

    def embed_users(rows: Any) -> Any:
        # Prompts of as many people weigh more than what is promised here.
        tracemalloc.start()
        return np.tile(persons, (times, 1))

    monkeypatch.setattr(foundation, "embed_users", embed_users)
    monkeypatch.setattr(predictions, "MAX_SCORES", 1 << 14)
    try:
        again = fit_new_item_bias(foundation, book, many, max_warm_loss=0.5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(many) * book.interactions.num_items * 8
    # The same people a hundred times over are served as they are once.
    for field in ("bias", "cold_ndcg", "warm_ndcg", "spread"):
        np.testing.assert_allclose(getattr(again, field), getattr(fitted, field), rtol=1e-9)


def test_how_far_a_bias_may_go_is_what_all_logits_at_once_say() -> None:
    random = np.random.default_rng(0)
    persons = random.normal(3, 1, (40, 6)) * random.uniform(0.1, 2, 6)
    items = random.normal(-1, 2, (70, 6))
    logits, is_new = persons @ items.T, np.arange(70) % 3 == 0
    gap = logits[:, ~is_new].mean() - logits[:, is_new].mean()
    for sign in (1, -1):
        found = new_items._furthest(sign * persons, items, is_new)
        assert found == pytest.approx(2 * logits.std() + max(0, sign * gap), rel=1e-12)


def test_the_bias_is_saved(
    foundation: Foundation, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    fit_new_item_bias(foundation, books["slot"], split.valid, max_warm_loss=0.99)
    foundation.save_pretrained(tmp_path / "model")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    assert loaded.new_item_shift_V.abs().sum() > 0
    np.testing.assert_allclose(loaded.embed_items(), foundation.embed_items(), atol=1e-5)


def test_what_cannot_be_chosen_is_said(
    foundation: Foundation, books: dict[str, PromptBook], split: Split
) -> None:
    with pytest.raises(ValueError, match="max_warm_loss"):
        fit_new_item_bias(foundation, books["slot"], split.valid, max_warm_loss=1.0)
    foundation.items.exposure_I.fill_(3.0)
    with pytest.raises(BadInput, match="needs both kinds"):
        fit_new_item_bias(foundation, books["slot"], split.valid)
