from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.peers import sasrec
from benchmarks.peers.sasrec import SASRec, SASRecConfig
from promptify.assembly import PromptBook
from promptify.splits import Split

TINY = SASRecConfig(width=16, layers=1, heads=2, max_events=8, events_per_batch=64)


def epoch(
    book: PromptBook, train: Any, seed: int = 0, *, only_good: bool = False
) -> list[sasrec.Batch]:
    predicted = sasrec.predicted_events(book, train, only_good=only_good)
    return sasrec._batches(book, train, predicted, TINY, np.random.default_rng(seed))


@pytest.mark.parametrize("only_good", [False, True])
def test_each_event_that_retrieval_learns_of_is_predicted_once_from_before_its_slate(
    market_book: PromptBook, market_split: Split, only_good: bool
) -> None:
    log, train = market_book.interactions, market_split.train
    rows = np.flatnonzero(train)
    is_wanted = log.event_surface == log.surfaces.index("jobs")
    if only_good:
        is_wanted &= log.event_action == log.actions.index("apply")
    wanted: Counter[tuple[int, int]] = Counter()
    for event in rows[is_wanted[rows]]:
        known = rows[(log.event_user[rows] == log.event_user[event]) & (rows < event)]
        known = known[log.event_slate[known] != log.event_slate[event]]
        if len(known):
            wanted[int(log.event_item[event]), int(log.event_item[known[-1]])] += 1
    assert wanted
    for seed in range(3):
        found: Counter[tuple[int, int]] = Counter()
        for batch in epoch(market_book, train, seed, only_good=only_good):
            read = batch.items_RT[batch.row_K, batch.position_K].tolist()
            found.update(zip(batch.target_K.tolist(), read, strict=True))
            assert batch.items_RT.shape[1] <= TINY.max_events
        assert found == wanted


def test_windows_move_from_epoch_to_epoch(market_book: PromptBook, market_split: Split) -> None:
    first, second = (epoch(market_book, market_split.train, seed) for seed in (0, 1))
    widths = [
        sorted(tuple(row) for batch in one for row in batch.items_RT.tolist())
        for one in (first, second)
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
    model.popularity_I[3] = 7.0
    nothing = sasrec.score_requests(model, market_book, market_split.test.cut(0))
    assert (nothing == model.popularity_I.numpy()).all()


def test_what_no_training_event_was_about_is_read_as_if_it_were_not_there(
    market_book: PromptBook, market_split: Split
) -> None:
    log, targets = market_book.interactions, market_split.test
    newest = log.event_item[targets.history_end - 1]
    hidden = int(newest[0])
    train = market_split.train & (log.event_item != hidden)
    model = sasrec.fit(
        market_book,
        replace(market_split, train=train),
        config=TINY,
        seconds=0.2,
        watch=lambda _: 0.0,
    ).model
    assert not model.is_known_I[hidden]
    assert model.is_known_I.sum() == len(np.unique(log.event_item[train]))
    here = targets[newest == hidden]
    before = replace(here, history_end=here.history_end - 1)
    twice = np.isin(log.event_item[before.history_end - 1], [hidden])
    np.testing.assert_array_equal(
        sasrec.score_requests(model, market_book, here[~twice]),
        sasrec.score_requests(model, market_book, before[~twice]),
    )
    assert len(here[~twice])


def test_it_learns_what_follows_what_and_keeps_its_best(
    market_book: PromptBook, market_split: Split
) -> None:
    # Everyone goes round seven items: the next is the last one's successor.
    log = market_book.interactions
    circle = SimpleNamespace(
        event_user=log.event_user,
        event_item=(np.arange(log.num_events) % 7).astype(np.int32),
        event_slate=np.arange(log.num_events),
        event_surface=np.zeros(log.num_events, np.int32),
        surfaces=("circle",),
        num_items=7,
    )
    task = SimpleNamespace(name="circle", next_target="any")
    book = SimpleNamespace(interactions=circle, prompter=SimpleNamespace(tasks=[task]))
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
    # Whoever has no history gets what was to be predicted most often.
    counts = np.bincount(circle.event_item[market_split.train], minlength=7)
    assert fitted.model.popularity_I.tolist() == counts.tolist()


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


@pytest.mark.parametrize(
    "good", [{}, {"max_events": 3}, {"only_good": True}, {"max_events": 3, "only_good": True}]
)
def test_the_best_is_tried_with_changes_too(
    market_book: PromptBook, market_split: Split, good: dict[str, Any]
) -> None:
    narrow, wide = TINY, replace(TINY, width=2 * TINY.width)

    def watch(model: SASRec) -> float:
        is_wide = model.config.width == wide.width
        right = sum(getattr(model.config, name) == value for name, value in good.items())
        changed = sum((model.config.max_events != TINY.max_events, model.config.only_good))
        return 0.1 * is_wide + 0.2 * right - 0.1 * changed

    fitted = sasrec.fit_best(
        market_book,
        market_split,
        configs=(narrow, wide),
        changes=({"max_events": 3}, {"only_good": True}),
        seconds=0.2,
        watch=watch,
    )
    assert fitted.model.config == replace(wide, **good)
