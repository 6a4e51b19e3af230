from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.histories import NUM_RETRIEVED, POLICIES, Histories, best
from foundation import Foundation
from promptify.assembly import PromptBook
from promptify.prompter import Prompter
from promptify.rows import Rows
from promptify.splits import Split


@pytest.fixture(scope="module")
def histories(market_model: Foundation, market_book: PromptBook, market_split: Split) -> Histories:
    return Histories(market_model, market_book, market_split.test)


def told(rows: Rows, row: int) -> list[int]:
    return rows.event_item[rows.event_offsets[row] : rows.event_offsets[row + 1]].tolist()


def test_the_newest_events_are_those_of_a_cut_history(histories: Histories) -> None:
    for events in (0, 1, 3, 7):
        mine = histories.prefixes("recent", events=events)
        cut = histories.book.prefixes(histories.targets.cut(events), task=0)
        np.testing.assert_array_equal(mine.ids, cut.ids)


@pytest.mark.parametrize("policy", ["recent", "recent_per_action"])
def test_a_prompt_of_so_many_tokens_is_the_one_that_the_prompter_makes(
    histories: Histories, policy: str
) -> None:
    given_ = histories.trained.prompter
    shorter = Prompter(
        tasks=given_.tasks,
        config=replace(given_.config, max_prompt_tokens=150, history=policy),
        tokenizer=given_.tokenizer,
        words=given_.words,
    )
    wanted = shorter.book(histories.book.interactions).prefixes(histories.targets, task=0)
    mine = histories.prefixes(policy, tokens=150)  # type: ignore[arg-type]
    np.testing.assert_array_equal(mine.ids, wanted.ids)
    assert wanted.num_dropped_events.max() > 0


def test_the_relevant_are_nearest_to_what_is_retrieved_in_the_order_of_time(
    histories: Histories,
) -> None:
    model, targets, log = histories.foundation, histories.targets, histories.book.interactions
    items = model.embed_items()
    people = model.embed_users(histories.trained.prefixes(targets, task=0))
    rows = histories.prefixes("relevant", events=4)
    num_chosen = 0
    for row in range(len(targets)):
        mine = log.event_item[targets.history_start[row] : targets.history_end[row]]
        score = items @ people[row]
        score[log.item_kinds != "job"] = -np.inf
        score[mine] = -np.inf
        ranked_items = np.argsort(-score, kind="stable")[:NUM_RETRIEVED]
        found = items[ranked_items[np.isfinite(score[ranked_items])]]
        near = [
            np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in found]) for a in
            items[mine]
        ]  # fmt: skip
        order = sorted(range(len(mine)), key=lambda at: (-near[at], -at))[:4]
        # Where two are as near to float tolerance, either may stay.
        if len(mine) > 4:
            ranked = sorted(near, reverse=True)
            if ranked[3] - ranked[4] < 1e-5:
                continue
            num_chosen += 1
        assert told(rows, row) == mine[sorted(order)].tolist()
    assert num_chosen > 5


def test_without_a_limit_everything_is_told_whatever_the_policy(histories: Histories) -> None:
    rows = [histories.prefixes(policy) for policy in POLICIES]
    assert all((one.num_dropped_events == 0).all() for one in rows)
    np.testing.assert_array_equal(rows[0].ids, rows[1].ids)
    np.testing.assert_array_equal(rows[0].ids, rows[2].ids)
    np.testing.assert_array_equal(rows[0].lengths, histories.num_tokens)


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=8),
            st.integers(-2, 20),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_best_that_fit_are_kept(drawn: list[tuple[list[tuple[int, int]], int]]) -> None:
    events = [event for row, _ in drawn for event in row]
    kept = best(
        np.array([cost for cost, _ in events], np.int64),
        np.array([value for _, value in events], np.float32),
        np.cumsum([0, *(len(row) for row, _ in drawn)]),
        np.array([budget for _, budget in drawn]),
    )
    wanted: list[bool] = []
    for row, budget in drawn:
        order = sorted(range(len(row)), key=lambda at: (-row[at][1], -at))
        paid, chosen = 0, set()
        for at in order:
            paid += row[at][0]
            if paid <= budget:
                chosen.add(at)
        wanted += [at in chosen for at in range(len(row))]
    assert kept.tolist() == wanted
