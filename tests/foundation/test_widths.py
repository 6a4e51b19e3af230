"""One model, several widths: the first numbers of its vectors retrieve by themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation import FitConfig, Foundation, FoundationConfig
from foundation.losses import chunked_cross_entropy
from foundation.new_items import fit_new_item_bias
from foundation.objective import READ_INPUTS, read_step
from foundation.plan import TrainingPlan
from promptify.assembly import PromptBook
from promptify.splits import Split, cold_item

FIT = FitConfig(epochs=1, positions_per_batch=2048, reread_items=4, text_positions=16)


@pytest.fixture
def wide(make: Any) -> Foundation:
    model: Foundation = make("slot", dropout=0.0)
    model.settings = replace(model.settings, vector_widths=(4, 8))
    return model


def test_widths_end_with_the_whole_vector() -> None:
    assert FoundationConfig(vector_dim=16).widths == (16,)
    assert FoundationConfig(vector_dim=16, vector_widths=(4, 8)).widths == (4, 8, 16)
    assert FoundationConfig(vector_dim=16, vector_widths=(4, 16)).widths == (4, 16)


@pytest.mark.parametrize("widths", [(8, 4), (4, 4), (0, 4), (4, 32)])
def test_widths_that_do_not_rise_within_the_vector_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"vector_widths=.* must rise.*vector_dim=16"):
        FoundationConfig(vector_dim=16, vector_widths=widths)


@pytest.mark.parametrize("sampling", [{}, {"full_softmax_items": 10, "num_negatives": 30}])
def test_the_loss_is_the_mean_over_models_of_each_width(
    wide: Foundation, books: dict[str, PromptBook], split: Split, sampling: dict[str, int]
) -> None:
    batch = TrainingPlan(books["slot"], split.train, replace(FIT, **sampling))[0]
    got = wide(**batch)["next_item"]
    losses = []
    for width in (4, 8, 16):
        narrow = Foundation(
            wide.decoder,
            prompter=wide.prompter,
            config=FoundationConfig(vector_dim=width, dropout=0.0),
            item_ids=wide.item_ids,
            item_pieces=wide.item_pieces,
        ).eval()
        narrow.items.load_state_dict(wide.items.state_dict())
        for name in ("person_head", "item_head"):
            head, whole = getattr(narrow, name), getattr(wide, name)
            head.weight.data.copy_(whole.weight[:width])
            head.bias.data.copy_(whole.bias[:width])
        losses.append(narrow(**batch)["next_item"])
    torch.testing.assert_close(got, torch.stack(losses).mean())
    assert len({round(loss.item(), 3) for loss in losses}) == 3


def test_unset_the_loss_is_that_of_the_whole_vector_to_the_bit(
    make: Any, books: dict[str, PromptBook], split: Split
) -> None:
    model = make("slot", dropout=0.0)
    batch = TrainingPlan(books["slot"], split.train, FIT)[0]
    reading = read_step(model, **{name: batch[name] for name in READ_INPUTS})
    bias = torch.where(model.items.exposure_I == 0, -torch.inf, 0.0)
    bias[batch["next_item_K"]] = 0
    plain = chunked_cross_entropy(
        reading.person_KV, reading.item_CV, batch["next_item_K"], class_bias_C=bias
    )
    assert torch.equal(model(**batch)["next_item"], plain)


def test_a_cut_vector_is_the_beginning_of_the_whole(
    wide: Foundation, books: dict[str, PromptBook], split: Split
) -> None:
    rows = books["slot"].prefixes(split.test)
    for width in (4, 8, 16):
        assert np.array_equal(
            wide.embed_users(rows, width=width), wide.embed_users(rows)[:, :width]
        )
        items = wide.embed_items(width=width)
        assert items.flags.c_contiguous
        assert np.array_equal(items, wide.embed_items()[:, :width])
    for embed in (lambda: wide.embed_users(rows, width=6), lambda: wide.embed_items(width=6)):
        with pytest.raises(ValueError, match=r"width=6 is none .* one of 4, 8, 16"):
            embed()


def test_a_bias_for_new_items_is_the_same_at_every_width(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    book = books["slot"]
    held = cold_item(book.interactions, split, fraction=0.2, seed=0)
    model = make("slot", dropout=0.0)
    model.settings = replace(model.settings, vector_widths=(4, 8))
    model.count_exposure(book.interactions.event_item[held.train])
    rows = book.prefixes(split.valid)
    persons, before = model.embed_users(rows), model.embed_items()
    found = fit_new_item_bias(model, book, split.valid, max_warm_loss=0.9)
    assert found.bias > 0
    moved = model.embed_items() - before
    steps = [persons[:, :width] @ moved[:, :width].T for width in (4, 8, 16)]
    np.testing.assert_allclose(steps[0], steps[2], atol=1e-4)
    np.testing.assert_allclose(steps[1], steps[2], atol=1e-4)
    assert np.abs(steps[0]).max() > 0.1


def test_widths_travel_with_the_model(wide: Foundation, tmp_path: Path) -> None:
    wide.save_pretrained(tmp_path / "model")
    again = Foundation.from_pretrained(tmp_path / "model")
    assert again.settings.widths == (4, 8, 16)
    assert np.array_equal(again.embed_items(width=4), wide.embed_items(width=4))
