"""Grades: words that a task reads and never writes, and pairs that somebody graded."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptify.grades import GradedPairs
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import leave_one_out
from promptify.task import Task
from promptify.validation import BadInput

GRADES = ("unfit", "doubtful", "passable", "fitting", "ideal")
GRADED = (replace(TASKS[0], grades=GRADES), TASKS[1])
SMALL = PrompterConfig(
    vocab_size=700,
    max_prompt_tokens=192,
    max_item_tokens=24,
    max_profile_tokens=32,
    max_context_tokens=16,
)


@pytest.fixture(scope="module")
def market():
    return job_market(num_members=60, num_jobs=50, num_impressions=600).interactions


@pytest.fixture(scope="module")
def prompter(market) -> Prompter:
    return Prompter.fit(market, leave_one_out(market, surface="jobs").train, GRADED, config=SMALL)


def test_grades_are_single_tokens_of_their_own(prompter):
    assert prompter.grade_words == GRADES
    assert len(set(prompter.grade_ids) | set(prompter.label_ids)) == 5 + 6
    assert [prompter.tokenizer.decode([i]) for i in prompter.grade_ids] == [f" {g}" for g in GRADES]
    assert prompter.task_grade_index(0).tolist() == [0, 1, 2, 3, 4]
    assert prompter.task_grade_index(1).tolist() == []


def test_a_task_without_grades_has_the_prompts_it_had(market, prompter):
    train = leave_one_out(market, surface="jobs").train
    plain = Prompter.fit(market, train, TASKS, config=SMALL, tokenizer=prompter.tokenizer)
    assert plain.grade_words == ()
    assert len(plain.grade_ids) == 0
    graded = Prompter.fit(market, train, GRADED, config=SMALL, tokenizer=prompter.tokenizer)
    rows, same = (
        p.book(market).prefixes(leave_one_out(market, surface="jobs").test) for p in (plain, graded)
    )
    np.testing.assert_array_equal(rows.ids, same.ids)


def test_no_text_from_outside_holds_a_grade(prompter):
    text = prompter.item_text({"title": "An ideal job, unfitting hours"}, kind="job")
    ids = prompter.item_pieces([text]).ids
    assert not set(ids.tolist()) & set(prompter.grade_ids.tolist())
    assert "Ideal" in text


def test_grades_are_saved_with_the_prompter(prompter, tmp_path):
    prompter.save(tmp_path)
    again = Prompter.load(tmp_path)
    assert again.grade_words == GRADES
    assert again.words.neutralize("ideal") == "Ideal"


@pytest.mark.parametrize(
    ("grades", "said"),
    [
        (("good",), "two or more"),
        (("good", "good"), "two or more"),
        (("bad", "apply"), "names its actions apply too"),
    ],
)
def test_a_scale_that_is_none_is_refused(grades, said):
    with pytest.raises(ValueError, match=said):
        replace(TASKS[0], grades=grades)


def test_a_grade_that_is_an_action_of_another_task_is_refused(market):
    tasks = (replace(TASKS[0], grades=("poor", "ideal")), TASKS[1])
    with pytest.raises(BadInput, match="poor is a grade of one task and an action of another"):
        Prompter.fit(market, np.ones(market.num_events, bool), tasks, config=SMALL)


def test_a_task_without_grades_is_read_from_old_files():
    values = TASKS[0].to_dict()
    del values["grades"]
    assert Task.from_dict(values) == TASKS[0]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 2)), max_size=40),
    st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 7)), max_size=20),
)
def test_pairs_hold_each_pair_once_with_the_shares_of_its_grades(given_, asked):
    user, item, grade = np.array(given_, np.int64).reshape(-1, 3).T
    pairs = GradedPairs.of(user, item, grade, num_grades=3)
    wanted: dict[tuple[int, int], list[int]] = {}
    for u, i, g in given_:
        wanted.setdefault((u, i), []).append(g)
    assert list(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)) == sorted(wanted)
    for key, share in zip(sorted(wanted), pairs.share_PG, strict=True):
        counts = np.bincount(wanted[key], minlength=3)
        np.testing.assert_allclose(share, counts / counts.sum(), atol=1e-6)
    users, items = np.array(asked, np.int64).reshape(-1, 2).T
    order = sorted(wanted)
    found = [order.index(key) if key in wanted else -1 for key in asked]
    assert pairs.find(users, items).tolist() == found
    start, end = pairs.of_users(np.arange(6))
    assert [e - s for s, e in zip(start, end, strict=True)] == [
        sum(u == user for u, _ in wanted) for user in range(6)
    ]


def test_pairs_are_read_from_a_table_of_ids(market):
    table = pa.table(
        {
            "user_id": ["member-00003", "member-00001", "member-00003"],
            "item_id": ["job-00002", "job-00000", "job-00002"],
            "grade": pa.array([4, 0, 3], pa.int8()),
            "rules": ["far", "near", "far"],
        }
    )
    pairs = GradedPairs.of_table(table, market, num_grades=5)
    assert [market.user_row("member-00001"), market.user_row("member-00003")] == list(pairs.user)
    assert pairs.share_PG.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user_id": ["nobody"]}, "user_id 'nobody' of the table of grades is not in the log"),
        ({"item_id": [None]}, "item_id None of the table of grades is not in the log"),
        ({"grade": pa.array([7], pa.int8())}, "grade 7 must be a whole number in"),
        ({"grade": pa.array([-1], pa.int8())}, "grade -1 must be a whole number in"),
        ({"grade": pa.array([None], pa.int8())}, "column grade .* whole numbers alone"),
        ({"grade": [0.5]}, "column grade .* whole numbers alone"),
        ({"grade": None}, "lacks the column grade"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(market, change, said):
    good = {
        "user_id": ["member-00003"],
        "item_id": ["job-00002"],
        "grade": pa.array([4], pa.int8()),
    }
    columns = {name: values for name, values in {**good, **change}.items() if values is not None}
    with pytest.raises(BadInput, match=said):
        GradedPairs.of_table(pa.table(columns), market, num_grades=5)


def test_distributions_must_be_some():
    one = np.array([0]), np.array([1])
    soft = GradedPairs.of(*one, np.array([[0.25, 0.75]]), num_grades=2)
    assert soft.share_PG.tolist() == [[0.25, 0.75]]
    for wrong in ([[0.5, 0.4]], [[1.5, -0.5]], [[1.0, 0.0, 0.0]]):
        with pytest.raises(BadInput, match="probabilities that sum to 1"):
            GradedPairs.of(*one, np.array(wrong), num_grades=2)
    for grade in (0.7, float("nan")):
        with pytest.raises(BadInput, match=f"grade {grade} must be a whole number"):
            GradedPairs.of(*one, np.array([grade]), num_grades=2)
    with pytest.raises(BadInput, match="1, 1 and 2 entries"):
        GradedPairs.of(*one, np.array([0, 1]), num_grades=2)
