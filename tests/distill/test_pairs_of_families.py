from typing import Any

import numpy as np
import pytest

from foundation.predictions import read_pairs
from promptify.assembly import PromptBook
from promptify.splits import leave_last


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("form", ["slot", "text"])
def test_windows_count_positions_and_not_columns(
    of_family: Any, book: PromptBook, text_book: PromptBook, family: str, form: str
) -> None:
    """Questions far behind their prefix in the row see as much of it as they would alone."""
    model, book_of = of_family(family, form), {"slot": book, "text": text_book}[form]
    targets = leave_last(book_of.interactions, num=5, surface="jobs").valid
    rows = book_of.prefixes(targets, task=0)
    request = np.repeat(np.arange(8), 5)
    items = np.arange(40, dtype=np.int32)
    people, said = read_pairs(model, rows, request, items, task=0)
    for pair in range(0, 40, 7):
        one = slice(pair, pair + 1)
        alone = read_pairs(model, rows, request[one], items[one], task=0)
        np.testing.assert_allclose(people[pair], alone[0][0], atol=1e-3)
        np.testing.assert_allclose(said[pair], alone[1][0], atol=1e-3)
