from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.peers import sasrec
from benchmarks.peers.sasrec import SASRec, SASRecConfig
from promptify.assembly import PromptBook
from promptify.splits import Split

TINY = SASRecConfig(width=16, layers=1, heads=2, max_events=8, events_per_batch=64)


def test_every_event_but_a_users_first_is_a_target_once(
    market_book: PromptBook, market_split: Split
) -> None:
    log, train = market_book.interactions, market_split.train
    for seed in range(3):
        batches = sasrec._batches(market_book, train, TINY, np.random.default_rng(seed))
        targets = Counter(item for batch in batches for item in batch[:, 1:].flatten().tolist())
        targets.pop(log.num_items, None)
        rows = np.flatnonzero(train)
        first = np.unique(log.event_user[rows], return_index=True)[1]
        expected = Counter(np.delete(log.event_item[rows], first).tolist())
        assert targets == expected
        assert max(batch.shape[1] for batch in batches) <= TINY.max_events + 1


def test_windows_move_from_epoch_to_epoch(market_book: PromptBook, market_split: Split) -> None:
    first, second = (
        sasrec._batches(market_book, market_split.train, TINY, np.random.default_rng(seed))
        for seed in (0, 1)
    )
    widths = [
        sorted(tuple(row) for batch in epoch for row in batch.tolist()) for epoch in (first, second)
    ]
    assert widths[0] != widths[1]


def test_a_position_sees_only_what_came_before_it() -> None:
    torch.manual_seed(0)
    model = SASRec(9, TINY).eval()
    items = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 8, 0]])
    torch.testing.assert_close(model(items)[:, :3], model(changed)[:, :3])
    assert not torch.allclose(model(items)[:, 3], model(changed)[:, 3])


def test_it_scores_from_the_newest_events_alone(
    market_book: PromptBook, market_split: Split
) -> None:
    torch.manual_seed(0)
    model = SASRec(market_book.interactions.num_items, TINY).eval()
    whole = sasrec.score_requests(model, market_book, market_split.test)
    newest = sasrec.score_requests(model, market_book, market_split.test.cut(TINY.max_events))
    np.testing.assert_allclose(whole, newest, rtol=1e-5, atol=1e-6)
    nothing = sasrec.score_requests(model, market_book, market_split.test.cut(0))
    assert (nothing == 0).all()


def test_it_learns_what_follows_what_and_keeps_its_best(
    market_book: PromptBook, market_split: Split
) -> None:
    # Everyone goes round seven items: the next is the last one's successor.
    log = market_book.interactions
    circle = SimpleNamespace(
        event_user=log.event_user,
        event_item=(np.arange(log.num_events) % 7).astype(np.int32),
        num_items=7,
    )
    book = SimpleNamespace(interactions=circle)
    seen: list[float] = []

    def watch(model: SASRec) -> float:
        scores = sasrec.score_requests(model, book, market_split.valid)
        successor = (circle.event_item[market_split.valid.history_end - 1] + 1) % 7
        seen.append(float((scores.argmax(1) == successor).mean()))
        return seen[-1]

    fitted = sasrec.fit(
        book,
        market_split,
        config=replace(TINY, dropout=0.0, learning_rate=1e-2, patience=100),
        seconds=3,
        watch=watch,
    )
    assert watch(fitted.model) == pytest.approx(max(seen[:-1]), abs=0.02)
    assert max(seen) > 0.9
    assert fitted.epochs > 1


def test_it_stops_when_validation_does_not_improve(
    market_book: PromptBook, market_split: Split
) -> None:
    values = iter([0.5, *([0.1] * 100)])
    fitted = sasrec.fit(
        market_book,
        market_split,
        config=replace(TINY, patience=2),
        seconds=4,
        watch=lambda _: next(values),
    )
    assert fitted.stopped_early
    assert fitted.seconds < 4
    assert [value for _, value in fitted.curve] == [0.5, 0.1, 0.1, 0.1]


def test_the_best_of_several_on_validation_is_returned(
    market_book: PromptBook, market_split: Split
) -> None:
    narrow, wide = TINY, replace(TINY, width=2 * TINY.width)
    for good in (narrow, wide):

        def watch(model: SASRec, good: SASRecConfig = good) -> float:
            return 0.5 if model.config == good else 0.1

        fitted = sasrec.fit_best(
            market_book, market_split, configs=(narrow, wide), seconds=0.2, watch=watch
        )
        assert fitted.model.config == good
        assert fitted.best == 0.5
