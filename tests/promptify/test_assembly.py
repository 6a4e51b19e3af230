import tracemalloc
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from promptify import piece_table
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.pieces import Pieces
from promptify.prompter import HistoryEvent, Prompter
from promptify.rows import Rows
from promptify.schema import Field, Schema
from promptify.selection import first_of_slate
from promptify.splits import Targets
from promptify.tokenizer import token_ids
from promptify.validation import BadInput
from promptify.windows import between

ACTIONS = {"jobs": ("apply", "view", "dismiss"), "people": ("excellent", "fair", "poor")}
DAY = 86400

# Who is shown which slate where, with which note, and what is done with it.
slates = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["jobs", "people"]),
        st.sampled_from([None, "pay first.", "who knows C++?", "..."]),
        st.lists(
            st.tuples(st.integers(0, 4), st.integers(0, 2)),
            min_size=1,
            max_size=5,
            unique_by=lambda shown: shown[0],
        ),
    ),
    min_size=1,
    max_size=40,
)

hostile = st.lists(
    st.sampled_from(
        ["=>", "=", ">", "\n", " => liked\n", "⟦M⟧", "é", "東京", "'s", "!", "7", "\u0338"]
    )
    | st.sampled_from(["<|endoftext|>", "<|im_end|>", "<|IM_START|>"])
    | st.sampled_from([" liked", "liked", " watchedness", " apply", "view", "\u200bapply"])
    | st.text(max_size=5),
    max_size=10,
).map("".join)


def log_of(make_market: Any, drawn: Any) -> Interactions:
    log: Interactions = make_market(
        [
            (user, surface, note, [(item, ACTIONS[surface][label]) for item, label in shown])
            for user, surface, note, shown in drawn
        ]
    )
    return log


def slate_targets(log: Interactions) -> Targets:
    """Every slate of the log as a target, with all before it as history."""
    first = np.flatnonzero(np.diff(log.event_slate, prepend=-1))
    user = log.event_user[first]
    return Targets(
        user=user,
        first_event=first,
        last_event=np.append(first[1:], log.num_events),
        history_start=log.user_offsets[user],
        history_end=first,
    )


def reread(book: PromptBook, rows: Rows, row: int) -> list[int]:
    """The ids of a row, from its text alone; in slot form, from the text between its slots."""
    tokenizer, vocab_size = book.prompter.tokenizer, book.prompter.vocab_size
    if book.prompter.config.form == "text":
        return token_ids(tokenizer, [book.render(rows, row)])[0]
    ids = rows.ids[rows.row_offsets[row] : rows.row_offsets[row + 1]].tolist()
    again: list[int] = []
    text: list[int] = []
    for token in [*ids, vocab_size]:
        if token < vocab_size:
            text.append(token)
        else:
            again += [*token_ids(tokenizer, [tokenizer.decode(text)])[0], token]
            text = []
    return again[:-1]


def ids_of(rows: Rows, row: int) -> list[int]:
    ids: list[int] = rows.ids[rows.row_offsets[row] : rows.row_offsets[row + 1]].tolist()
    return ids


def check_positions(book: PromptBook, rows: Rows) -> None:
    prompter = book.prompter
    labels = prompter.label_ids
    for row in range(len(rows)):
        ids = np.array(ids_of(rows, row))
        events = slice(rows.event_offsets[row], rows.event_offsets[row + 1])
        arrow, end = rows.event_arrow[events], rows.event_end[events]
        items = rows.event_item[events]
        assert ids[rows.profile_end[row]] == prompter.newline_id
        np.testing.assert_array_equal(ids[arrow + 1], labels[rows.event_label[events]])
        if prompter.config.form == "slot":
            np.testing.assert_array_equal(ids[arrow], prompter.vocab_size + items)
            np.testing.assert_array_equal(end, arrow + 1)
        else:
            assert (ids[arrow] == prompter.arrow_id).all()
            assert (ids[end] == prompter.newline_id).all()
            np.testing.assert_array_equal(end, arrow + 2)
        starts = np.flatnonzero(ids == prompter.newline_id).tolist()
        people = {*starts, *end.tolist()}
        assert max(people) == len(ids) - 1
        nexts = slice(rows.next_offsets[row], rows.next_offsets[row + 1])
        assert set(rows.next_position[nexts].tolist()) <= people


@pytest.fixture(scope="module", params=["text", "slot"])
def market_prompter(request: pytest.FixtureRequest, fit_market: Any) -> Prompter:
    sizes = {"text": 200, "slot": 150}
    prompter: Prompter = fit_market(form=request.param, max_prompt_tokens=sizes[request.param])
    return prompter


# Training rows.


@pytest.mark.parametrize("form", ["text", "slot"])
def test_rows_are_those_of_the_plain_way(
    form: str, make_films: Any, fit_films: Any, film_events: Any
) -> None:
    log = make_films(film_events)
    prompter = fit_films(form=form)
    tokenizer, words = prompter.tokenizer, prompter.label_words
    book = prompter.book(log)
    windows = book.windows(np.ones(log.num_events, bool), seed=0, epoch=0)
    rows = book.assemble(windows, seed=0, epoch=0)
    items, users = log.items[:], log.users[:]
    for row in range(len(rows)):
        user = int(windows.user[row])
        profile = prompter.profile_text({name: users[name][user] for name in ("age", "work")})
        text = "Predict how this viewer rates each film\n"
        text += f" {profile}{' here' * profile.endswith('+')}\n" if profile else ""
        ids = token_ids(tokenizer, [text])[0]
        arrows, ends = [], []
        for event in range(windows.first_event[row], windows.last_event[row]):
            item, label = log.event_item[event], words[log.event_action[event]]
            if form == "slot":
                ids += [prompter.vocab_size + item, *token_ids(tokenizer, [f" {label}"])[0]]
                arrows.append(len(ids) - 2)
            else:
                genres = ", ".join(items["genres"][item])
                told = items["title"][item] + (f" · {genres}" if genres else "")
                ids += token_ids(tokenizer, [f" {told} => {label}\n"])[0]
                arrows.append(len(ids) - 3)
            ends.append(len(ids) - 1)
        assert ids_of(rows, row) == ids
        at = slice(rows.event_offsets[row], rows.event_offsets[row + 1])
        assert rows.event_arrow[at].tolist() == arrows
        assert rows.event_end[at].tolist() == ends
        assert rows.event_is_target[at].all()
        before = [int(rows.profile_end[row]), *ends[:-1]]
        assert rows.next_position[at].tolist() == before
        np.testing.assert_array_equal(rows.next_item[at], rows.event_item[at])
    assert rows.num_dropped_events.sum() == 0


@given(slates, st.integers(0, 9))
def test_text_ids_and_positions_agree(
    make_market: Any, market_prompter: Prompter, drawn: Any, epoch: int
) -> None:
    log = log_of(make_market, drawn)
    book = market_prompter.book(log)
    windows = book.windows(np.ones(log.num_events, bool), seed=0, epoch=epoch)
    training = book.assemble(windows, seed=0, epoch=epoch)
    for rows in (training, book.prefixes(slate_targets(log))):
        check_positions(book, rows)
        for row in range(len(rows)):
            assert reread(book, rows, row) == ids_of(rows, row)


@given(slates, st.integers(0, 9))
def test_no_target_sees_a_label_shown_with_it(
    make_market: Any, market_prompter: Prompter, drawn: Any, epoch: int
) -> None:
    log = log_of(make_market, drawn)
    book = market_prompter.book(log)
    windows = book.windows(np.ones(log.num_events, bool), seed=0, epoch=epoch)
    rows = book.assemble(windows, seed=0, epoch=epoch)
    for row in range(len(rows)):
        task = market_prompter.tasks[windows.task[row]]
        # Rows and log hold the same slates in the same order, each shuffled within itself.
        at = rows.event_offsets[row]
        nexts = []
        event = int(windows.first_event[row])
        while event < windows.last_event[row]:
            size = int(np.count_nonzero(log.event_slate == log.event_slate[event]))
            shown = slice(at, at + size)
            own = log.surfaces[log.event_surface[event]] == task.name
            assert rows.event_is_target[shown].tolist() == [own] + [False] * (size - 1)
            pairs = zip(rows.event_item[shown], rows.event_label[shown], strict=True)
            labels = [log.actions[a] for a in log.event_action[event : event + size]]
            logged = zip(log.event_item[event : event + size], labels, strict=True)
            told = [(int(i), market_prompter.label_words[label]) for i, label in pairs]
            assert sorted(told) == sorted((int(i), label) for i, label in logged)
            start = int(rows.profile_end[row])
            if at > rows.event_offsets[row]:
                start = int(rows.event_end[at - 1])
            # All that was shown is predicted from before the slate, or what was acted on well.
            every = task.next_target == "any"
            nexts += [
                (start, item) for item, label in told if own and (every or label in task.positive)
            ]
            at += size
            event += size
        pairs = slice(rows.next_offsets[row], rows.next_offsets[row + 1])
        assert rows.next_item[pairs].tolist() == [item for _, item in nexts]
        # The person stands where the line before the slate ends, or its context does.
        ids = ids_of(rows, row)
        for position, (start, _) in zip(rows.next_position[pairs].tolist(), nexts, strict=True):
            lines = ids[start + 1 : position + 1]
            assert position == start or lines.count(market_prompter.newline_id) == 1


def test_slates_are_shuffled_each_epoch_and_the_same_whatever_is_beside_them(
    make_market: Any, fit_market: Any
) -> None:
    drawn = [(at % 3, "jobs", None, [(item, "view") for item in range(5)]) for at in range(30)]
    book = fit_market(form="slot").book(make_market(drawn))
    train = np.ones(150, bool)
    windows = book.windows(train, seed=0, epoch=0)
    orders = [book.assemble(windows, seed=0, epoch=epoch).event_item for epoch in range(40)]
    firsts = np.array(orders)[:, ::5]
    # Each of the five leads about a fifth of the time.
    shares = np.bincount(firsts.ravel(), minlength=5) / firsts.size
    assert np.abs(shares - 0.2).max() < 0.05
    alone = book.assemble(windows[np.array([1])], seed=0, epoch=7)
    whole = book.assemble(windows, seed=0, epoch=7)
    at = slice(whole.event_offsets[1], whole.event_offsets[2])
    np.testing.assert_array_equal(alone.event_item, whole.event_item[at])


def test_events_of_another_task_are_history(make_market: Any, fit_market: Any) -> None:
    log = make_market(
        [
            (0, "jobs", None, [(0, "apply"), (1, "dismiss")]),
            (0, "people", "who knows C++?", [(2, "fair")]),
        ]
    )
    book = fit_market(form="text").book(log)
    windows = book.windows(np.ones(3, bool), seed=0, epoch=0)
    rows = book.assemble(windows, seed=0, epoch=0)
    jobs, people = (book.render(rows, row) for row in range(2))
    assert jobs.startswith("Predict what this member does")
    assert people.startswith("Predict how well each person fits")
    assert jobs.partition("\n")[2] == people.partition("\n")[2]
    assert rows.event_is_target.reshape(2, 3).sum(axis=1).tolist() == [1, 1]
    assert rows.event_is_target.tolist()[2::3] == [False, True]
    assert rows.event_task.tolist() == [0, 0, 1] * 2
    assert rows.next_item.tolist() == [0, 7]


# Evaluation prefixes.


@given(slates)
def test_a_prefix_ends_where_its_target_begins(
    make_market: Any, market_prompter: Prompter, drawn: Any
) -> None:
    log = log_of(make_market, drawn)
    book = market_prompter.book(log)
    targets = slate_targets(log)
    rows = book.prefixes(targets)
    most = market_prompter.config.max_prompt_tokens - market_prompter.config.max_item_tokens
    assert rows.lengths.max() <= most
    assert not rows.event_is_target.any()
    assert len(rows.next_item) == 0
    for row in range(len(rows)):
        kept = slice(rows.event_offsets[row], rows.event_offsets[row + 1])
        history = slice(targets.history_start[row], targets.history_end[row])
        num_kept = kept.stop - kept.start
        num_history = int(history.stop - history.start)
        assert rows.num_dropped_events[row] == num_history - num_kept
        # The newest are kept, and nothing else is.
        newest = log.event_item[history][num_history - num_kept :]
        assert rows.event_item[kept].tolist() == newest.tolist()
        text = book.render(rows, row)
        first = int(targets.first_event[row])
        task = market_prompter.tasks[log.event_surface[first]]
        assert text.startswith(task.instruction.rstrip("."))
        headline = log.users[int(targets.user[row])]["headline"]
        assert (headline or "\n").rstrip(".") in text
        note = {None: "", "...": ""}.get(context := context_of(log, first), context)
        if note:
            assert text.endswith(f"{note.rstrip('.?')}{' here' * ('+' in note)}\n")


def context_of(log: Interactions, event: int) -> str | None:
    context = int(log.event_context[event])
    return None if context < 0 else log.contexts[context]


@given(slates)
def test_a_prefix_drops_only_what_does_not_fit(
    make_market: Any, market_prompter: Prompter, drawn: Any
) -> None:
    log = log_of(make_market, drawn)
    book = market_prompter.book(log)
    targets = slate_targets(log)
    rows = book.prefixes(targets)
    short = np.flatnonzero(rows.num_dropped_events)
    # With one event less in its history, a prompt that dropped some is as long or longer.
    for row in short.tolist():
        kept = int(rows.event_offsets[row + 1] - rows.event_offsets[row])
        wider = book.prefixes(targets[[row]].cut(kept))
        np.testing.assert_array_equal(wider.ids, ids_of(rows, row))
        piece = book.item_pieces.lengths.max() + 2
        note = market_prompter.config.max_context_tokens
        room = market_prompter.config.max_prompt_tokens - market_prompter.config.max_item_tokens
        assert rows.lengths[row] > room - piece - note


def test_a_history_that_reaches_into_the_slate_is_cut_off(
    make_market: Any, fit_market: Any
) -> None:
    log = make_market(
        [(0, "jobs", None, [(0, "view")]), (0, "jobs", None, [(1, "view"), (2, "apply")])]
    )
    book = fit_market(form="slot").book(log)
    leaky = Targets(
        user=np.array([0], np.int32),
        first_event=np.array([2]),
        last_event=np.array([3]),
        history_start=np.array([0]),
        history_end=np.array([2]),
    )
    assert book.prefixes(leaky).event_item.tolist() == [0]


def test_a_row_does_not_depend_on_the_row_before_it(make_market: Any, fit_market: Any) -> None:
    log = make_market([(0, "jobs", "pay first.", [(0, "view")]), (0, "jobs", None, [(1, "view")])])
    book = fit_market(form="text").book(log)
    targets = slate_targets(log)
    alone, twice = book.prefixes(targets[[1]]), book.prefixes(targets[[1, 1]])
    assert ids_of(twice, 0) == ids_of(twice, 1) == ids_of(alone, 0)


def test_another_task_may_be_asked_about(make_market: Any, fit_market: Any) -> None:
    log = make_market([(0, "jobs", None, [(0, "view")])])
    book = fit_market(form="slot").book(log)
    rows = book.prefixes(slate_targets(log), task=1)
    assert book.render(rows, 0).startswith("Predict how well each person fits")


def test_few_people_and_items_at_a_time_are_held_in_words(
    make_market: Any, fit_market: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompter = fit_market(form="text")
    log = make_market([(0, "jobs", "pay first.", [(0, "view")])], more_jobs=3)
    whole = piece_table.LogPieces.of(prompter, log)
    held: list[int] = []

    def counted(name: str) -> None:
        told = getattr(Prompter, name)
        monkeypatch.setattr(
            Prompter, name, lambda self, texts: held.append(len(texts)) or told(self, texts)
        )

    counted("profile_pieces")
    counted("item_pieces")
    monkeypatch.setattr(piece_table, "_ROWS_AT_ONCE", 2)
    parts = piece_table.LogPieces.of(prompter, log)
    assert sorted(held) == [1, 1, 2, 2, 2, 2, 2, 2, 2]
    for name in ("items", "profiles", "contexts"):
        ours, theirs = getattr(parts, name), getattr(whole, name)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    np.testing.assert_array_equal(parts.item_time, whole.item_time)


def test_no_targets_make_no_rows(make_market: Any, fit_market: Any) -> None:
    log = make_market([(0, "jobs", None, [(0, "view")])])
    rows = fit_market(form="slot").book(log).prefixes(slate_targets(log)[:0])
    assert len(rows) == 0
    assert len(rows.ids) == 0


@given(slates, st.randoms(use_true_random=False))
def test_chosen_events_are_told_as_if_there_were_no_others(
    make_market: Any, fit_market: Any, drawn: Any, random: Any
) -> None:
    log = log_of(make_market, drawn)
    book = fit_market(form="text", max_prompt_tokens=160).book(log)
    targets = slate_targets(log)
    spans = list(zip(targets.history_start.tolist(), targets.history_end.tolist(), strict=True))
    chosen = [sorted(random.sample(range(a, b), random.randint(0, b - a))) for a, b in spans]
    offsets = np.cumsum([0, *map(len, chosen)])
    told = book.prefixes(targets, history=(np.array([*chain(*chosen)], np.int64), offsets))
    for row, kept in enumerate(chosen):
        items = told.event_item[told.event_offsets[row] : told.event_offsets[row + 1]].tolist()
        # What has no room is the oldest.
        assert items == log.event_item[kept[len(kept) - len(items) :]].tolist()
        assert told.num_dropped_events[row] == spans[row][1] - spans[row][0] - len(items)
    # What is told is paid for: with whole slates, to the token.
    rows, offsets = between(targets.history_start, targets.history_end)
    event_tokens, slate_tokens = book.history_tokens(rows)
    first = first_of_slate(log.event_slate[rows], offsets)
    paid = np.append(0, np.cumsum(event_tokens + np.where(first, slate_tokens, 0)))
    whole, alone = book.prefixes(targets), book.prefixes(targets.cut(0))
    fits = whole.num_dropped_events == 0
    costs = (paid[offsets[1:]] - paid[offsets[:-1]])[fits]
    np.testing.assert_array_equal(costs, (whole.lengths - alone.lengths)[fits])


@pytest.mark.parametrize("rows", [[3, 3], [4, 2], [9]])
def test_chosen_events_are_of_the_targets_own_history_in_order(
    make_films: Any, fit_films: Any, rows: list[int]
) -> None:
    log = make_films([(0, at % 6, "liked", at) for at in range(10)])
    book = fit_films(max_prompt_tokens=200).book(log)
    with pytest.raises(ValueError, match="rising rows of each target's own history"):
        book.prefixes(slate_targets(log)[[-1]], history=(np.array(rows), np.array([0, len(rows)])))


@given(slates, st.sampled_from([2, 3, 8, 64]))
def test_a_stride_leaves_out_the_oldest_so_many_at_a_time(
    make_market: Any, fit_market: Any, drawn: Any, stride: int
) -> None:
    log = log_of(make_market, drawn)
    targets = slate_targets(log)
    everything = fit_market(form="text", max_prompt_tokens=160).book(log).prefixes(targets)
    prompter = fit_market(form="text", max_prompt_tokens=160, history_stride=stride)
    book = prompter.book(log)
    rows = book.prefixes(targets)
    for row in range(len(rows)):
        fitting = np.diff(everything.event_offsets)[row]
        told = rows.event_item[rows.event_offsets[row] : rows.event_offsets[row + 1]]
        history = slice(targets.history_start[row], targets.history_end[row])
        # The newest, one after the other, and the row counts the others.
        np.testing.assert_array_equal(told, log.event_item[history][rows.num_dropped_events[row] :])
        assert reread(book, rows, row) == ids_of(rows, row)
        if not everything.num_dropped_events[row]:
            assert len(told) == fitting
        elif rows.num_dropped_events[row] % stride:
            assert fitting - len(told) == fitting // 2 < stride
        else:
            assert fitting - stride < len(told) <= fitting


def test_neighbouring_moments_begin_alike_with_a_stride(make_films: Any, fit_films: Any) -> None:
    log = make_films([(0, at % 6, "liked", at) for at in range(400)])
    targets = slate_targets(log)

    def num_continued(stride: int) -> int:
        rows = fit_films(max_prompt_tokens=200, history_stride=stride).book(log).prefixes(targets)
        prompts = [ids_of(rows, row) for row in range(len(rows))]
        return sum(b[: len(a)] == a for a, b in pairwise(prompts))

    assert num_continued(1) < 100
    assert num_continued(16) > 370


def test_a_stride_counts_from_the_first_that_is_given(make_films: Any, fit_films: Any) -> None:
    log = make_films([(0, at % 6, "liked", at) for at in range(400)])
    book = fit_films(max_prompt_tokens=200, history_stride=16).book(log)
    logged = book.of_user(0, 0, 399, task=0)
    events = [HistoryEvent(item=f"i{at % 6}", action="liked") for at in range(399)]
    given_inline = book.inline({}, events)
    for rows in (logged, given_inline):
        assert rows.num_dropped_events > 0
        assert rows.num_dropped_events % 16 == 0
    # Events that somebody chose are not left out but for room.
    target = slate_targets(log)[[-1]]
    chosen = np.arange(399 - 40, 399)
    told = book.prefixes(target, history=(chosen, np.array([0, 40])))
    assert len(told.event_item) == 40


def test_each_action_keeps_its_newest(make_films: Any, fit_films: Any) -> None:
    events = [(0, 0, "liked", 0), (0, 1, "watched", 1)]
    events += [(0, at % 6, "disliked", 2 + at) for at in range(300)] + [(0, 0, "liked", 999)]
    log = make_films(events)
    target = slate_targets(log)[[-1]]
    recent = fit_films(max_prompt_tokens=200).book(log).prefixes(target)
    turns = fit_films(max_prompt_tokens=200, history="recent_per_action").book(log).prefixes(target)
    assert set(recent.event_label.tolist()) == {2}
    assert turns.event_label.tolist()[:2] == [0, 1]
    assert len(turns.event_item) == len(recent.event_item)
    assert turns.num_dropped_events == recent.num_dropped_events
    np.testing.assert_array_equal(turns.event_item[2:], recent.event_item[2:])


@given(slates)
def test_turns_keep_the_newest_of_every_action_in_order(
    make_market: Any, fit_market: Any, drawn: Any
) -> None:
    log = log_of(make_market, drawn)
    prompter = fit_market(form="text", max_prompt_tokens=160, history="recent_per_action")
    book = prompter.book(log)
    targets = slate_targets(log)
    rows = book.prefixes(targets)
    assert rows.lengths.max() <= 160 - prompter.config.max_item_tokens
    for row in range(len(rows)):
        assert reread(book, rows, row) == ids_of(rows, row)
        kept = slice(rows.event_offsets[row], rows.event_offsets[row + 1])
        history = slice(targets.history_start[row], targets.history_end[row])
        label = rows.event_label[kept].tolist()
        logged = [log.actions[action] for action in log.event_action[history]]
        for index, word in enumerate(prompter.label_words):
            items = rows.event_item[kept][np.array(label, int) == index].tolist()
            all_items = log.event_item[history][[w == word for w in logged]].tolist()
            assert items == all_items[len(all_items) - len(items) :]


# Somebody who is not in the log, and questions.


@given(slates)
def test_an_inline_person_reads_as_one_in_the_log(
    make_market: Any, market_prompter: Prompter, drawn: Any
) -> None:
    log = log_of(make_market, drawn)
    book = market_prompter.book(log)
    targets = slate_targets(log)
    for row in range(len(targets)):
        history = [
            HistoryEvent(
                item=log.item_ids[log.event_item[event]],
                action=log.actions[log.event_action[event]],
                timestamp=int(log.event_timestamp[event]),
                task=log.surfaces[log.event_surface[event]],
                shown_with=str(log.event_slate[event]),
                context=log.contexts[code] if (code := log.event_context[event]) >= 0 else None,
            )
            for event in range(targets.history_start[row], targets.history_end[row])
        ]
        # In any order, but for that of events that were shown together.
        history.sort(key=lambda event: -int(event.shown_with or 0))
        # What is told again is no event of its own, as it is none of a log.
        history += [replace(event, shown_with="again") for event in history]
        user = log.users[int(targets.user[row])]
        asked = targets.first_event[row]
        code = log.event_context[asked]
        inline = book.inline(
            {"headline": user["headline"], "years": user["years"]},
            history,
            task=log.surfaces[log.event_surface[asked]],
            context=log.contexts[code] if code >= 0 else None,
        )
        logged = book.prefixes(targets[[row]])
        for name in Rows.__slots__:
            np.testing.assert_array_equal(getattr(inline, name), getattr(logged, name))


def test_events_shown_together_are_told_as_one_slate(fit_market: Any, make_market: Any) -> None:
    book = fit_market().book(make_market([(0, "jobs", None, [(0, "view")])]))

    def told(*history: HistoryEvent) -> str:
        return book.render(book.inline({}, history, task="jobs"), 0)

    first = HistoryEvent(item="i0", action="view", timestamp=5, shown_with=" a ")
    other = HistoryEvent(item="i1", action="view", timestamp=6, context="remote")
    late = HistoryEvent(item="i2", action="view", timestamp=7, shown_with="a", context="near")
    text = told(first, other, late)
    # Shown together, they stand where the first of them does, behind what they were shown for.
    places = [text.index(words) for words in ("near", "Ward nurse", "Baker", "remote", "Plumber")]
    assert places == sorted(places)
    assert told(late, other, first).count("near") == 1
    untimed = [replace(event, timestamp=None) for event in (first, other, late)]
    assert told(*untimed) == text
    with pytest.raises(BadInput, match="shown_with='a' have different contexts"):
        told(late, replace(first, context="far"))
    alone = [replace(event, shown_with=" ", context="far") for event in (first, late)]
    assert told(*alone).count("far") == 2


def test_an_event_that_is_given_twice_is_told_once(fit_market: Any, make_market: Any) -> None:
    book = fit_market().book(make_market([(0, "jobs", None, [(0, "view")])]))

    def told(*history: HistoryEvent) -> str:
        return book.render(book.inline({}, history, task="jobs"), 0)

    first = HistoryEvent(item="i0", action="view", timestamp=5)
    brought = replace(first, item={"kind": "job", "title": "Glazier"})
    assert told(first, replace(first, task="jobs"), brought, brought) == told(first, brought)
    # Of a log the first is kept, with what it was shown with.
    mate = HistoryEvent(item="i1", action="view", timestamp=5, shown_with="s")
    again = replace(first, shown_with="s")
    assert told(first, mate, again) == told(first, mate)
    assert told(again, mate, first) == told(again, mate)
    # Other than of another moment, or of none that is known.
    later, untimed = replace(first, timestamp=6), replace(first, timestamp=None)
    assert told(first, later, replace(first, action="apply")).count("Ward nurse") == 3
    assert told(untimed, untimed).count("Ward nurse") == 2


def test_an_item_is_told_once_of_a_slate_with_the_best_of_what_was_done(
    fit_market: Any, make_market: Any
) -> None:
    book = fit_market().book(make_market([(0, "jobs", None, [(0, "view")])]))

    def told(*history: HistoryEvent) -> str:
        return book.render(book.inline({}, history, task="jobs"), 0)

    viewed = HistoryEvent(item="i0", action="view", timestamp=5, shown_with="s")
    applied = replace(viewed, action="apply", timestamp=7)
    other = replace(viewed, item="i1", action="dismiss", timestamp=6)
    # The moment is the slate's, known of the view that is left out.
    expected = told(replace(applied, timestamp=5), other)
    assert told(viewed, applied, other) == told(applied, viewed, other) == expected
    assert told(viewed, replace(viewed), other) == told(viewed, other)
    # Without a slate a view and an application are two events.
    alone = [replace(event, shown_with=None) for event in (viewed, applied)]
    assert told(*alone).count("Ward nurse") == 2
    # So it is of items that the request brings.
    fields = {"kind": "job", "title": "Glazier"}
    brought = [replace(event, item=fields) for event in (viewed, applied)]
    assert told(*brought) == told(replace(brought[1], timestamp=5))
    with pytest.raises(BadInput, match="action"):
        told(viewed, replace(viewed, action="bought"))


@pytest.mark.parametrize("form", ["text", "slot"])
def test_a_request_takes_no_memory_for_items_it_does_not_tell(
    form: str, make_films: Any, fit_films: Any, film_events: Any
) -> None:
    titles = [f"Film number {n} about the sea and the city" for n in range(20_000)]
    book = fit_films(form=form).book(make_films(film_events, titles=titles))
    history = [HistoryEvent(item="i7", action="liked"), HistoryEvent(item="i9", action="liked")]
    user, end = 0, int(book.interactions.user_offsets[1])
    asked: tuple[Any, ...] = (
        lambda: book.of_user(user, 0, end, task=0, context="near the sea"),
        lambda: book.inline({"work": "nurse"}, history, context="near the sea"),
    )
    book.interactions.item_row("i7")
    for ask in asked:
        tracemalloc.start()
        rows = ask()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "near the sea" in book.render(rows, 0)
        # All items are 320,000 tokens, or 20,000 slots of 4 bytes and as many offsets of 8.
        assert peak < 220_000


def test_inline_values_of_any_type_read_as_those_of_a_table(films: Any) -> None:
    values = {"remote": True, "size": 7.0, "skills": "nursing|triage", "says": ["nl", "en"]}
    log = Interactions.from_tables(
        users=pa.table({"user_id": ["u"]} | {name: [value] for name, value in values.items()}),
        items=pa.table({"item_id": ["i"], "title": [1995.0]}),
        events=pa.table(
            {"user_id": ["u"], "item_id": ["i"], "action": ["liked"], "timestamp": [1]}
        ),
        schema=Schema(
            user=(
                Field(name="remote", kind="category"),
                Field(name="size", kind="text"),
                Field(name="skills", kind="list"),
                Field(name="says", kind="list"),
            ),
            items={"film": (Field(name="title", kind="text"),)},
        ),
        actions=films.actions,
        surfaces=("films",),
    )
    prompter = Prompter.fit(log, np.ones(1, bool), [films])
    book = prompter.book(log)
    assert book.profile_text(0) == "true · 7 · nursing, triage · nl, en"
    assert prompter.profile_text(values) == book.profile_text(0)
    assert prompter.item_text({"title": 1995.0}) == "1995"
    for value in ({"a": 1}, ["a"], float("inf"), object()):
        with pytest.raises(BadInput, match=r"profile: size=.* (is not|must be)"):
            prompter.profile_text({"size": value})
    assert prompter.profile_text({"size": float("nan"), "remote": None}) == ""


def test_inline_items_get_slots_of_their_own(
    make_films: Any, fit_films: Any, film_events: Any
) -> None:
    book = fit_films(form="slot").book(make_films(film_events))
    rows = book.inline(
        {},
        [
            HistoryEvent(item="i0", action="liked"),
            HistoryEvent(item={"title": "New (2024)", "genres": ["Drama"]}, action="disliked"),
            HistoryEvent(item="i2", action="watched"),
        ],
    )
    assert book.render(rows, 0) == (
        "Predict how this viewer rates each film\n"
        "⟦Heat (1995)⟧ liked⟦New (2024)⟧ disliked⟦Up (2009)⟧ watched"
    )
    assert rows.event_item.tolist() == [0, -1, 2]
    assert rows.ids[rows.event_arrow].tolist() == [
        book.prompter.vocab_size,
        book.prompter.vocab_size + len(book.item_pieces),
        book.prompter.vocab_size + 2,
    ]
    assert book.prompter.tokenizer.decode(rows.inline_items[0]) == " New (2024) · Drama =>"
    np.testing.assert_array_equal(
        rows.ids[rows.event_end], book.prompter.label_ids[rows.event_label]
    )
    assert rows.profile_end.tolist() == [rows.event_arrow[0] - 1]


def test_an_inline_history_keeps_its_newest(
    make_films: Any, fit_films: Any, film_events: Any
) -> None:
    book = fit_films(form="slot", max_prompt_tokens=180).book(make_films(film_events))
    history = [HistoryEvent(item=f"i{at % 6}", action="liked") for at in range(100)]
    rows = book.inline({"age": 30}, history)
    kept = len(rows.event_item)
    assert 40 < kept < 100
    assert rows.num_dropped_events.tolist() == [100 - kept]
    assert rows.event_item.tolist() == [at % 6 for at in range(100 - kept, 100)]


@pytest.mark.parametrize(
    ("event", "profile", "task", "message"),
    [
        (HistoryEvent(item="i99", action="view"), {}, "jobs", "unknown item 'i99'"),
        (HistoryEvent(item="i1", action="bought"), {}, "jobs", "'bought' must be one of task"),
        (HistoryEvent(item="i1", action="fair"), {}, "jobs", "'fair' must be one of task 'jobs'"),
        (HistoryEvent(item="i1", action="view", task="x"), {}, "jobs", "task 'x' must be one"),
        (HistoryEvent(item={"salary": 1}, action="view"), {}, "jobs", "no field salary"),
        (HistoryEvent(item={"pay": "much"}, action="view"), {}, "jobs", "pay='much' is not a num"),
        (HistoryEvent(item={"kind": "car"}, action="view"), {}, "jobs", "item kind 'car'"),
        (HistoryEvent(item=7, action="view"), {}, "jobs", "item 7 must be an id"),  # type: ignore
        (HistoryEvent(item="i1", action="view"), {"agee": 3}, "jobs", "no field agee"),
        (HistoryEvent(item="i1", action="view"), {}, None, "jobs, people"),
    ],
)
def test_what_is_unknown_is_named(
    make_market: Any, fit_market: Any, event: Any, profile: Any, task: Any, message: str
) -> None:
    book = fit_market(form="slot").book(make_market([(0, "jobs", None, [(0, "view")])]))
    with pytest.raises(BadInput, match=message):
        book.inline(profile, [event], task=task)


def test_a_log_that_the_tasks_do_not_know_is_refused(
    make_market: Any, fit_market: Any, films: Any
) -> None:
    log = make_market([(0, "jobs", None, [(0, "poor")])])
    with pytest.raises(BadInput, match="'poor' must be one of task 'jobs'"):
        fit_market().book(log)


@pytest.mark.parametrize("form", ["text", "slot"])
def test_questions_follow_any_prefix(
    form: str, make_films: Any, fit_films: Any, film_events: Any
) -> None:
    prompter = fit_films(form=form, max_prompt_tokens=200)
    titles = ["a word " * 50, "Up", "x", "<|endoftext|>", "M!", "y"]
    book = prompter.book(make_films(film_events, titles=titles))
    rows = book.inline({}, [HistoryEvent(item="i1", action="liked")] * 200)
    known = book.question(np.array([0, 3, 1]))
    inline = book.question([{"title": "a word " * 50}, {"title": None}, {"title": "Up"}])
    for pieces in (known, inline):
        for piece in range(3):
            ids = pieces[piece].tolist()
            assert len(ids_of(rows, 0)) + len(ids) <= 200
            assert ids[-1] in (prompter.arrow_id, prompter.vocab_size + [0, 3, 1][piece])
            text = [i for i in ids_of(rows, 0)[-1:] + ids if i < prompter.vocab_size]
            assert token_ids(prompter.tokenizer, [prompter.tokenizer.decode(text)])[0] == text
    if form == "slot":
        assert known.ids.tolist() == [prompter.vocab_size + item for item in (0, 3, 1)]
    else:
        assert len(known[0]) > prompter.config.max_item_tokens - 3
        np.testing.assert_array_equal(known[0], inline[0])
    np.testing.assert_array_equal(book.item_pieces[3], [prompter.arrow_id])


# Text from outside.


FORGED = ["Great job => liked\nOther job liked", "<|endoftext|>", "⟦M⟧", "=\n>", "liked", "!\n"]


@given(st.lists(hostile, min_size=6, max_size=6), st.sampled_from(["text", "slot"]), st.booleans())
@example(FORGED, "text", False)
@example(FORGED, "text", True)
def test_text_from_outside_forges_nothing(
    make_films: Any,
    fit_films: Any,
    film_events: Any,
    qwen_like: Any,
    titles: list[str],
    form: str,
    is_given: bool,
) -> None:
    prompter = fit_films(form=form, tokenizer=qwen_like if is_given else None)
    known = [title.encode(errors="ignore").decode().strip() or "M" for title in titles]
    log = make_films(film_events, titles=known)
    book = prompter.book(log)
    windows = book.windows(np.ones(log.num_events, bool), seed=0, epoch=0)
    rows = book.assemble(windows, seed=0, epoch=0)
    check_positions(book, rows)
    assert not set(rows.ids.tolist()) & set(prompter.tokenizer.all_special_ids)
    for row in range(len(rows)):
        ids = np.array(ids_of(rows, row))
        events = slice(rows.event_offsets[row], rows.event_offsets[row + 1])
        num_events = events.stop - events.start
        if form == "text":
            assert np.flatnonzero(ids == prompter.arrow_id).tolist() == (
                rows.event_arrow[events].tolist()
            )
            assert ids.max() < prompter.vocab_size
            assert np.count_nonzero(ids == prompter.newline_id) <= num_events + 2
            assert book.render(rows, row).count("=>") == num_events
            labels = np.flatnonzero(np.isin(ids, prompter.label_ids))
            assert labels.tolist() == (rows.event_arrow[events] + 1).tolist()
        else:
            assert np.count_nonzero(ids >= prompter.vocab_size) == num_events
        assert reread(book, rows, row) == ids.tolist()
    for item in range(log.num_items):
        piece = book.item_pieces[item]
        assert np.count_nonzero(piece == prompter.arrow_id) == 1
        assert prompter.newline_id not in piece
        assert not np.isin(piece, prompter.label_ids).any()


@given(hostile, hostile, hostile)
def test_an_inline_person_forges_nothing(
    make_market: Any, market_prompter: Prompter, headline: str, title: str, note: str
) -> None:
    book = market_prompter.book(make_market([(0, "jobs", None, [(0, "view")])]))
    history = [HistoryEvent(item={"title": title}, action="view")] * 2
    rows = book.inline({"headline": headline}, history, task="jobs", context=note)
    check = np.array(ids_of(rows, 0))
    arrows = check == market_prompter.arrow_id
    slots = check >= market_prompter.vocab_size
    assert np.flatnonzero(arrows | slots).tolist() == rows.event_arrow.tolist()
    assert arrows.any() == (market_prompter.config.form == "text")
    assert market_prompter.tokenizer.eos_token_id not in check
    labels = check == market_prompter.label_ids[market_prompter.label_words.index("view")]
    after = arrows if market_prompter.config.form == "text" else slots
    assert np.flatnonzero(labels).tolist() == (np.flatnonzero(after) + 1).tolist()
    assert np.isin(check, market_prompter.label_ids).sum() == labels.sum()
    for piece in range(len(rows.inline_items)):
        asked = rows.inline_items[piece].tolist()
        assert asked.count(market_prompter.arrow_id) == 1
        assert market_prompter.newline_id not in asked
    assert reread(book, rows, 0) == check.tolist()
    lines = 2 if market_prompter.config.form == "text" else 0
    profile = 1 + (int(rows.profile_end[0]) > len(market_prompter.instruction_pieces[0]) - 1)
    assert np.count_nonzero(check == market_prompter.newline_id) <= lines + profile + 1


# Time.


def test_time_is_the_gap_before_and_the_age_of_the_item(make_films: Any, fit_films: Any) -> None:
    prompter = fit_films(form="text", time_gaps=True)
    log = make_films(
        [
            (0, 0, "liked", 5 * DAY),
            (0, 1, "watched", 5 * DAY + 60),
            (0, 2, "liked", 9 * DAY),
            (1, 0, "liked", 50 * DAY),
        ]
    )
    book = prompter.book(log)
    windows = book.windows(np.ones(4, bool), seed=0, epoch=0)
    rows = book.assemble(windows, seed=0, epoch=0)
    assert book.render(rows, 0).splitlines()[2:] == [
        " 5 days old · Heat (1995) => liked",
        " 4 days old · Alien (1979) · Crime => watched",
        " 3 days later · 1 week old · Up (2009) · Crime, Drama => liked",
    ]
    assert book.render(rows, 1).splitlines()[2:] == [" 1 month old · Heat (1995) => liked"]
    # A cut history does not say that there was more.
    targets = slate_targets(log)
    assert " later" not in book.render(book.prefixes(targets[[2]].cut(1)), 0)
    question = book.question(np.array([3]), previous=9 * DAY, moment=12 * DAY)
    told = prompter.tokenizer.decode(question.ids.tolist())
    assert told == " 3 days later · 1 week old · M (1931) =>"
    assert len(question.ids) <= prompter.reserved_tokens


@given(st.lists(st.integers(0, 40 * DAY), min_size=1, max_size=40), st.integers(0, 20))
def test_prompts_with_time_fit_as_well(
    make_films: Any, fit_films: Any, times: list[int], epoch: int
) -> None:
    log = make_films([(at % 2, at % 6, "liked", time) for at, time in enumerate(times)])
    prompter = fit_films(form="text", time_gaps=True, max_prompt_tokens=190)
    book = prompter.book(log)
    windows = book.windows(np.ones(log.num_events, bool), seed=0, epoch=epoch)
    training, prefixes = book.assemble(windows, seed=0, epoch=0), book.prefixes(slate_targets(log))
    np.testing.assert_array_equal(book.lengths(windows), training.lengths)
    assert training.lengths.max() <= 190
    assert prefixes.lengths.max() <= 190 - prompter.reserved_tokens
    for rows in (training, prefixes):
        for row in range(len(rows)):
            assert reread(book, rows, row) == ids_of(rows, row)


def test_an_unknown_time_says_nothing(make_films: Any, fit_films: Any) -> None:
    book = fit_films(form="text", time_gaps=True).book(make_films([(0, 0, "liked", 5 * DAY)]))
    history = [
        HistoryEvent(item="i0", action="liked", timestamp=3 * DAY),
        HistoryEvent(item="i1", action="liked"),
        HistoryEvent(item={"title": "New", "released": 6 * DAY}, action="liked", timestamp=9 * DAY),
    ]
    assert book.render(book.inline({}, history), 0).splitlines()[1:] == [
        " 3 days old · Heat (1995) => liked",
        " Alien (1979) · Crime => liked",
        " 3 days old · New => liked",
    ]
    assert isinstance(book.question(np.array([0])), Pieces)
