from dataclasses import fields
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from foundation import predictions
from foundation.predictions import (
    predict_targets,
    rank_catalogue,
    ranking_targets,
    served_items,
    tie_order,
)
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.splits import Split, Targets, slate_events


@pytest.fixture
def jobs(books: dict[str, PromptBook]) -> PromptBook:
    return books["slot"]


def everything(split: Split) -> Targets:
    """All held-out slates of a split."""
    both = [[getattr(part, f.name) for part in (split.valid, split.test)] for f in fields(Targets)]
    user, first, last, start, end = map(np.concatenate, both)
    return Targets(
        user=user, first_event=first, last_event=last, history_start=start, history_end=end
    )


def test_ranks_are_among_unseen_items_of_the_kind(
    make: Any, book: PromptBook, form: str, split: Split
) -> None:
    log = book.interactions
    foundation, targets = make(form), everything(split)
    found = predict_targets(foundation, book, targets)
    wanted = ranking_targets(book, targets, task=0)
    rows = book.prefixes(targets, task=0)
    scores = foundation.embed_users(rows) @ foundation.embed_items().T
    kinds = np.array(log.items["kind"][:])
    assert set(kinds) == {"job", "person"}
    for at, (request, item) in enumerate(zip(wanted.request, wanted.item, strict=True)):
        history = slice(targets.history_start[request], targets.history_end[request])
        # Another right answer of the same request is no rival.
        right = set(wanted.item[wanted.request == request])
        rivals = set(np.flatnonzero(kinds == "job")) - set(log.event_item[history]) - right
        better = sum(scores[request, rival] > scores[request, item] for rival in rivals)
        assert found.rank[at] == better + 1
    assert len(wanted.item) > 8
    assert found.rank.max() > 10


def test_the_actions_read_are_what_score_says(
    make: Any, book: PromptBook, form: str, split: Split
) -> None:
    foundation, log, targets = make(form), book.interactions, split.test[:6]
    found = predict_targets(foundation, book, targets)
    events = np.concatenate(
        [np.arange(*pair) for pair in zip(targets.first_event, targets.last_event, strict=True)]
    )
    np.testing.assert_array_equal(slate_events(targets), events)
    np.testing.assert_array_equal(found.action_user, log.event_user[events])
    actions = book.prompter.tasks[0].actions
    did = [actions.index(log.actions[action]) for action in log.event_action[events]]
    assert found.action_label.tolist() == did
    at = 0
    for request in range(len(targets)):
        one = targets[request]
        items = log.event_item[one.first_event[0] : one.last_event[0]].astype(np.int64)
        scores = foundation.score(book.prefixes(one, task=0), items)
        np.testing.assert_allclose(
            found.action_log_probs[at : at + len(items)], scores, atol=1e-4, rtol=0
        )
        at += len(items)
    assert at == len(found.action_log_probs)


def test_a_cut_history_still_hides_all_that_was_seen(
    jobs: PromptBook, make: Any, split: Split
) -> None:
    foundation, targets = make("slot"), split.test
    cold = targets.cut(0)
    found = predict_targets(foundation, jobs, cold, full_history=targets)
    unfiltered = predict_targets(foundation, jobs, cold)
    assert (found.rank <= unfiltered.rank).all()
    assert (found.rank < unfiltered.rank).any()
    np.testing.assert_array_equal(found.action_log_probs, unfiltered.action_log_probs)


def test_which_items_should_have_been_first(jobs: PromptBook, split: Split) -> None:
    log, targets = jobs.interactions, split.test
    wanted = ranking_targets(jobs, targets, task=0)
    counts = targets.last_event - targets.first_event
    is_applied = np.array(log.actions)[log.event_action[wanted.event]] == "apply"
    # Of a slate what was acted on well; an event that stands alone whatever was done.
    assert (is_applied | (counts[wanted.request] == 1)).all()
    events = slate_events(targets)
    applied = np.array(log.actions)[log.event_action[events]] == "apply"
    assert set(events[applied]) <= set(wanted.event)
    np.testing.assert_array_equal(log.event_item[wanted.event], wanted.item)
    assert (wanted.event >= targets.first_event[wanted.request]).all()
    assert (wanted.event < targets.last_event[wanted.request]).all()


def with_other_items(book: PromptBook, event: Any, item: Any) -> PromptBook:
    """The same log, in which some events are on other items."""
    log = book.interactions
    event_item = log.event_item.copy()
    event_item[event] = item
    events = log.events.data.table
    events = events.set_column(
        events.column_names.index("item"), "item", pa.array(event_item, pa.int32())
    )
    changed = Interactions(
        schema=log.schema,
        users=log.users,
        items=log.items,
        events=datasets.Dataset(datasets.table.InMemoryTable(events)),
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )
    return PromptBook(book.prompter, changed)


def test_what_was_seen_before_is_no_target(jobs: PromptBook, make: Any, split: Split) -> None:
    """It would be known by being ranked, where all that was seen is not."""
    targets = everything(split)
    before = ranking_targets(jobs, targets, task=0)
    has_history = (targets.history_end > targets.history_start)[before.request]
    again = np.flatnonzero(has_history)[::3]
    first_of_history = targets.history_start[before.request[again]]
    book = with_other_items(jobs, first_of_history, before.item[again])
    wanted = ranking_targets(book, targets, task=0)
    assert wanted.num_seen - before.num_seen >= len(again) > 0
    assert not np.isin(before.event[again], wanted.event).any()
    found = predict_targets(make("slot"), book, targets)
    assert len(found.rank) == len(wanted.event)
    # A cut history says nothing of what was seen.
    cut = predict_targets(make("slot"), book, targets.cut(0), full_history=targets)
    assert len(cut.rank) == len(wanted.event)
    assert len(ranking_targets(book, targets.cut(0), task=0).event) == len(before.event)


def test_events_on_items_of_another_kind_are_no_targets(
    jobs: PromptBook, make: Any, split: Split
) -> None:
    log, targets = jobs.interactions, everything(split)
    before = ranking_targets(jobs, targets, task=0)
    moved = before.event[::3]
    people = np.flatnonzero(log.item_kinds == "person")[: len(moved)]
    book = with_other_items(jobs, moved, people)
    wanted = ranking_targets(book, targets, task=0)
    kept = before.event[~np.isin(before.event, moved)]
    np.testing.assert_array_equal(wanted.event, kept)
    assert (before.num_unserved, wanted.num_unserved) == (0, len(moved))
    found = predict_targets(make("slot"), book, targets)
    assert len(found.rank) == len(wanted.event)
    # What is done with them is still predicted: candidates that are given may be of any kind.
    assert len(found.action_label) == len(slate_events(targets))


def test_slices_of_requests_give_the_same_ranks(
    jobs: PromptBook, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, wanted = split.test, ranking_targets(jobs, split.test, task=0)
    num_items = jobs.interactions.num_items
    scores = np.random.default_rng(0).normal(size=(len(targets), num_items))

    def ranks() -> Any:
        return rank_catalogue(lambda a, b: scores[a:b], wanted, jobs, seen=targets, task=0)

    whole = ranks()
    monkeypatch.setattr(predictions, "MAX_SCORES", 7 * num_items)
    np.testing.assert_array_equal(ranks(), whole)


def test_served_items_are_the_tasks_kind(jobs: PromptBook) -> None:
    kinds = np.array(jobs.interactions.items["kind"][:])
    np.testing.assert_array_equal(served_items(jobs, 0), kinds == "job")
    np.testing.assert_array_equal(served_items(jobs, 1), kinds == "person")


def test_ties_go_by_id() -> None:
    assert tie_order(("b", "c", "a")).tolist() == [1, 2, 0]


def test_no_targets_ask_for_nothing(jobs: PromptBook, split: Split) -> None:
    none = split.test[:0]
    assert len(slate_events(none)) == 0
    assert len(ranking_targets(jobs, none, task=0).item) == 0
