from typing import Any

import numpy as np
import pytest
import torch

from foundation import Foundation, pair_reading
from foundation.pair_reading import pair_states
from foundation.predictions import read_pairs
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.rows import Rows
from promptify.splits import leave_last

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}


@pytest.fixture
def histories(book: PromptBook, market: Interactions) -> Rows:
    """What people had done before each of their last slates."""
    return book.prefixes(leave_last(market, num=6, surface="jobs").valid, task=0)


@pytest.fixture
def pairs(histories: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Requests in no order, some asked often, some never."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(histories), size=12, replace=False)
    return rng.choice(chosen, size=60), rng.integers(0, 50, 60)


def by_hand(
    foundation: Foundation, rows: Rows, request: np.ndarray, items: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair in a row of its own."""
    arrows, before = [], []
    for one, item in zip(request, items, strict=True):
        prefix = rows.ids[rows.row_offsets[one] : rows.row_offsets[one + 1]]
        ids = np.concatenate([prefix, foundation.questions(np.array([item])).ids]).astype(np.int64)
        slots = foundation.inline_slots(rows)
        hidden = foundation.hidden(torch.from_numpy(ids)[None], inline_slots_JD=slots)[0]
        arrows.append(hidden[-1])
        before.append(hidden[len(prefix) - 1])
    return torch.stack(arrows), torch.stack(before)


@pytest.mark.parametrize("longest", [4096, 60])
@torch.no_grad()
def test_pairs_read_together_are_what_they_are_alone(
    make: Any, form: str, histories: Rows, pairs: Any, monkeypatch: Any, longest: int
) -> None:
    monkeypatch.setattr(pair_reading, "_LONGEST_MASKED", longest)
    foundation, (request, items) = make(form), pairs
    found = [torch.full((len(items), foundation.decoder.config.hidden_size), np.nan)] * 2
    found = [one.clone() for one in found]
    for chosen, arrow, before in pair_states(
        foundation, histories, request, items, max_positions=700, progress=False
    ):
        assert torch.isnan(found[0][chosen]).all()
        found[0][chosen], found[1][chosen] = arrow, before
    for got, wanted in zip(found, by_hand(foundation, histories, request, items), strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


def test_all_slates_of_a_person_come_from_one_pass(
    make: Any, books: dict[str, PromptBook], market: Interactions, monkeypatch: Any
) -> None:
    foundation, book = make("slot"), books["slot"]
    targets = leave_last(market, num=6, surface="jobs").valid
    rows = book.prefixes(targets[targets.user == np.bincount(targets.user).argmax()], task=0)
    assert len(rows) > 1
    assert rows.num_dropped_events.max() == 0
    shapes = []
    embed = Foundation.embed_ids

    def noted(self: Foundation, ids: torch.Tensor, **kind: Any) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return embed(self, ids, **kind)

    monkeypatch.setattr(Foundation, "embed_ids", noted)
    asked = np.repeat(np.arange(len(rows)), 3)
    read_pairs(foundation, rows, asked, np.arange(len(asked), dtype=np.int32), task=0)
    assert shapes == [(1, int(rows.lengths[-1]) + len(asked))]


def test_nothing_asked_is_nothing_read(make: Any, histories: Rows, form: str) -> None:
    nothing = np.zeros(0, np.int64)
    people, said = read_pairs(make(form), histories, nothing, nothing.astype(np.int32), task=0)
    assert people.shape[0] == said.shape[0] == 0
