"""Tasks that a model was never trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
