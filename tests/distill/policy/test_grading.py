"""Grades, and the rules behind each of them."""

import time

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from distill.policy import Grader, Pairs, Policy, PolicyTables
from distill.policy.explaining import explain
from promptify.sources.job_market import job_market_with_truth
from promptify.validation import BadInput

TWO_RULES = """\
## 1. Pay
```rule
weight: 3
value: ramp(item.pay, 20, 30)
```
## 2. Place
```rule
weight: 1 if user.years < 5 else 0
value: item.place == user.place
unless: item.title == "Chef"
```
"""


def test_a_score_is_the_weighted_mean_of_the_rules_that_speak(grades_of):
    grades = grades_of(TWO_RULES)
    # ann: both rules; bob and cy: the second counts for nothing; the chef is excepted.
    assert grades.score.tolist() == pytest.approx([1, 0.75, 0, 1, 1, 0, 1, 1, 0])
    assert grades.grade.tolist() == [4, 3, 0, 4, 4, 0, 4, 4, 0]
    assert grades.rules.to_pylist() == [[1, 2], [1, 2], [1]] + [[1]] * 6


def test_a_rule_is_silent_where_what_it_reads_is_unknown(grades_of):
    grades = grades_of("value: user.years >= 0 and user.years - item.years > 0\nwhen: true")
    assert grades.fired.all()  # a comparison always has an answer
    grades = grades_of("value: ramp(user.years - item.years, -1, 0)")
    assert grades.fired[0].tolist() == [True] * 6 + [False] * 3
    assert grades.grade.tolist() == [4, 0, 0, 4, 4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        (["at_most: 2"], [2, 2, 0]),
        (["at_least: 1"], [4, 4, 1]),
        # What must not be shown is not shown, in whichever order it is written.
        (["at_most: 1", "at_least: 3"], [1, 1, 1]),
        (["at_least: 3", "at_most: 1"], [1, 1, 1]),
        # Between two grades a limit allows the lower one.
        (["at_most: 2.99"], [2, 2, 0]),
        (["at_most: 4 * 0.75"], [3, 3, 0]),
        (["at_most: 0\nwhen: item.title == 'Lead Programmer'"], [4, 0, 0]),
        (["at_most: 0\nunless: item.title == 'Lead Programmer'"], [0, 4, 0]),
    ],
)
def test_limits_hold_whatever_the_score(grades_of, limits, wanted):
    rules = "## 1. Pay\n```rule\nvalue: ramp(item.pay, 20, 30)\n```\n"
    for number, limit in enumerate(limits, start=2):
        rules += f"## {number}. Limit {number}\n```rule\n{limit}\n```\n"
    grades = grades_of(rules)
    assert grades.grade.tolist() == wanted * 3
    changed = grades.grade != np.array([4, 4, 0] * 3)
    assert ((grades.limited_by > 0) == changed).all()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("value: item.pay / 30", "value of rule 1 is 3 for user 'ann' and item 'code'"),
        ("value: 1 - item.pay / 30", "value of rule 1 is -2 for user 'ann' and item 'code'"),
        ("value: 1\nweight: user.years - 5", "weight of rule 1 is -4 for user 'ann'"),
        ("at_most: item.pay / 6", "at_most of rule 1 is 5 for user 'ann' and item 'ward'"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_line_and_the_pair(grades_of, body, said):
    with pytest.raises(BadInput, match=r"policy.md line \d+: ") as refused:
        grades_of(body)
    assert said in str(refused.value)


def test_a_rule_in_words_waits_for_a_judge_and_the_pair_says_so(small_tables, document):
    text = "## 1. A\n```rule\njudge: Kind?\nwhen: item.pay > 25\n```\n"
    text += "## 2. B\n```rule\nvalue: 0.5\n```\n"
    policy = Policy.parse(document(text))
    pairs = Pairs.of(users=[0, 0, 0], items=[0, 1, 2])
    alone = Grader(policy, small_tables).grades(pairs)
    assert alone.needs_judge.tolist() == [True, True, False]
    assert alone.grade.tolist() == [2, 2, 2]

    def answer(rule, asked):
        assert rule.instruction == "Kind?"
        assert asked.items.tolist() == [0, 1]  # nobody is asked about the third
        return np.array([1.0, np.nan])

    told = Grader(policy, small_tables, answer=answer).grades(pairs)
    assert told.needs_judge.tolist() == [False, True, False]
    assert told.grade.tolist() == [3, 2, 2]


def test_history_tells_only_of_the_events_it_may(small_log, small_tables):
    first_only = np.arange(small_log.num_events) == 0
    told = PolicyTables(small_log, small_tables.task, events=first_only)
    assert told.field("history", "title").lengths.tolist() == [1, 0, 0]
    with pytest.raises(BadInput, match="a mask of 2 events"):
        PolicyTables(small_log, small_tables.task, events=np.ones(2, bool))


def test_an_explanation_tells_what_every_rule_says(small_tables, document):
    policy = Policy.parse(document(TWO_RULES + "## 3. No\n```rule\nat_most: 2\n```\n"))
    lines = explain(Grader(policy, small_tables), "ann", "code", query="only remote")
    assert lines[0] == "ann and code: grade 2 of 4 by test 1"
    assert lines[1].startswith("score 0.75 (grade 1 from 0.20")
    assert lines[2:] == [
        "  1. Pay (line 6): value 1.00, weight 3.00",
        "  2. Place (line 11): value 0.00, weight 1.00",
        "  3. No (line 17): at most 2, which decides: without it 3",
    ]
    assert "silent" in explain(Grader(policy, small_tables), "ann", "cook")[3]


def test_of_two_limits_each_is_told_by_what_it_does(small_tables, document):
    limits = ((1, "value: 0"), (2, "at_least: 3"), (3, "at_most: 2"), (4, "at_most: 4"))
    rules = "".join(f"## {number}. R{number}\n```rule\n{rule}\n```\n" for number, rule in limits)
    lines = explain(Grader(Policy.parse(document(rules)), small_tables), "ann", "code")
    assert lines[0].startswith("ann and code: grade 2")
    assert [line.partition("which ")[2] for line in lines[3:]] == [
        "decides: without it 0",
        "decides: without it 3",
        "changes nothing",
    ]


def test_pairs_must_match():
    with pytest.raises(ValueError, match="2 users and 1 items"):
        Pairs.of(users=[0, 1], items=[0])


def test_grades_do_not_depend_on_which_pairs_are_judged_together(job_grader, market_tables):
    draw = np.random.default_rng(0)
    pairs = Pairs.of(
        users=draw.integers(0, market_tables.num_users, 70_000),
        items=draw.choice(market_tables.candidates, 70_000),
    )
    began = time.perf_counter()
    grades = job_grader.grades(pairs)
    assert time.perf_counter() - began < 3  # a quarter of a second where it was written
    some = draw.permutation(len(pairs))[:500]
    alone = Grader(job_grader.policy, market_tables).grades(pairs[some])
    assert (alone.grade == grades.grade[some]).all()
    assert (alone.fired == grades.fired[:, some]).all()
    assert alone.rules.to_pylist()[:20] == [
        (np.flatnonzero(grades.fired[:, pair]) + 1).tolist() for pair in some[:20]
    ]


def test_the_job_policy_reads_profiles_as_the_generator_means_them(job_policy):
    # A check of the document, not a target: it sees texts and fields, never the tables behind them.
    data, truth, _ = job_market_with_truth(
        seed=3, num_members=300, num_jobs=200, num_impressions=6000
    )
    tables = PolicyTables(data.interactions, data.tasks[0])
    log = data.interactions
    events = tables.shown_events
    pairs = Pairs.of(users=log.event_user[events], items=log.event_item[events])
    grade = Grader(job_policy, tables).grades(pairs).grade
    jobs = np.array([int(item.rpartition("-")[2]) for item in log.item_ids])[pairs.items]
    wanted = truth.policy_grades(pairs.users, jobs)
    assert cohen_kappa_score(wanted, grade, weights="quadratic") > 0.8
