"""Tasks that a model was never trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation import Foundation
from foundation.batches import take_rows
from foundation.calibration import Calibration
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.task import Task
from promptify.validation import BadInput

FIT = Task(
    name="fit",
    instruction="Predict how well each job fits.",
    actions=("excellent", "poor"),
    positive=("excellent",),
    item_kind="job",
)


def test_a_new_task_is_scored_and_the_old_ones_are_as_they_were(
    make: Any, form: str, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    old = make(form)
    warm = Calibration(temperature=1.5)
    old.settings = replace(old.settings, rank_weight=(0.5, 2.0), calibration=(warm, warm))
    new = old.with_tasks([FIT])
    new_book = new.prompter.book(book.interactions)
    some, items = split.test[np.array([0])], np.arange(4)
    for task in (0, 1):
        before = old.score(book.prefixes(some, task=task), items, task=task)
        after = new.score(new_book.prefixes(some, task=task), items, task=task)
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(old.embed_items(), new.embed_items())
    assert [new.rank_weight(task) for task in range(3)] == [0.5, 2.0, 0.0]

    rows = take_rows(new_book.prefixes(some, task=2), np.array([0]))
    assert "how well each job fits" in new_book.render(rows, 0)
    log_probs = new.score(rows, items, task=2)
    assert log_probs.shape == (4, 2)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-5)

    new.save_pretrained(tmp_path / "model")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.score(rows, items, task=2), log_probs)


def test_a_task_with_another_ones_name_or_a_label_of_two_tokens_is_refused(make: Any) -> None:
    foundation = make("slot")
    with pytest.raises(BadInput, match="different names"):
        foundation.with_tasks([replace(FIT, name="jobs")])
    with pytest.raises(BadInput, match="incomprehensible"):
        foundation.with_tasks([replace(FIT, actions=("excellent", "incomprehensible"))])


def word_of_items(foundation: Foundation) -> str:
    """A word that the catalogue's texts say in one token, and no label begins like."""
    decode, pieces = foundation.prompter.decode, foundation.item_pieces
    said = {decode(pieces.ids[at : at + 1]) for at in range(len(pieces.ids))}
    labels = foundation.prompter.label_words
    words = (one[1:] for one in sorted(said) if one.startswith(" ") and one[1:].islower())
    return next(word for word in words if len(word) > 2 and word.isalpha() and word not in labels)


def test_no_text_says_the_label_of_a_new_task(make: Any, book: PromptBook, tmp_path: Path) -> None:
    old = make(book.prompter.config.form)
    word = word_of_items(old)
    new = old.with_tasks([replace(FIT, actions=(word, "poor"), positive=(word,))])
    [label] = [new.prompter.label_ids[new.prompter.label_index(2, word)]]
    assert label in old.item_pieces.ids
    assert label not in new.item_pieces.ids
    if new.uses_slots:
        read = new.readings_of(new.item_pieces)
        torch.testing.assert_close(new.items.reading_ID, read, atol=1e-5, rtol=0)
    # A copy that was saved and read reads as it does, and so does a book of either.
    new.save_pretrained(tmp_path / "model")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    for model in (new, loaded):
        told = model.prompter.book(book.interactions)
        assert label not in told.item_pieces.ids
        np.testing.assert_array_equal(told.item_pieces.ids, model.item_pieces.ids)
    np.testing.assert_allclose(loaded.embed_items(), new.embed_items(), atol=1e-6)
    told_otherwise = [
        row
        for row in range(len(old.item_pieces))
        if not np.array_equal(old.item_pieces[row], new.item_pieces[row])
    ]
    assert 0 < len(told_otherwise) < len(old.item_pieces)


def test_a_model_that_serves_reads_on_when_a_task_is_added(
    make: Any, form: str, book: PromptBook, split: Split
) -> None:
    old = make(form)
    prefix = old.read_prefix(take_rows(book.prefixes(split.test[:1]), np.array([0])))
    before = old.score(prefix, np.arange(3))
    old.with_tasks([FIT])
    np.testing.assert_array_equal(old.score(prefix, np.arange(3)), before)
