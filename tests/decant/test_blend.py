"""Policy and clicks from one student, mixed by the request; and rules on what comes back."""

import json
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decant import Recommender
from decant.cli import main
from decant.constraints import AtMost, Never
from decant.recommender import build_index
from foundation import Foundation, FoundationConfig
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import leave_one_out
from promptify.validation import BadInput

GRADES = ("unfit", "doubtful", "passable", "fitting", "ideal")
PROFILE = {"headline": "Nurse in oncology", "place": "Berlin, Germany"}
HISTORY = [{"item": "job-00001", "action": "apply"}]


@pytest.fixture(scope="module")
def graded() -> Recommender:
    """An untrained student whose two sides disagree."""
    log = job_market(num_members=60, num_jobs=50, num_impressions=600).interactions
    split = leave_one_out(log, surface="jobs")
    config = PrompterConfig(
        vocab_size=700,
        max_prompt_tokens=192,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    tasks = (replace(TASKS[0], grades=GRADES), TASKS[1])
    book = Prompter.fit(log, split.train, tasks, config=config).book(log)
    model = Foundation.create(
        book.prompter,
        book,
        split.train,
        size="tiny",
        config=FoundationConfig(vector_dim=16, dropout=0.0, rank_weight=(2.0, 0.0)),
    ).eval()
    return Recommender(model, build_index(model, model_hash="unsaved"), book)


def ids(found) -> list[str]:
    return [one.item_id for one in found]


def ask(graded, **options):
    return graded.predict_next_actions(PROFILE, HISTORY, **{"k": 49, **options})


def test_both_probabilities_come_with_every_item(graded):
    for one in ask(graded):
        assert list(one.grades) == list(GRADES)
        assert sum(one.grades.values()) == pytest.approx(1, abs=1e-5)
        share = sum(p * g / 4 for g, p in enumerate(one.grades.values()))
        assert one.policy == pytest.approx(share)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
    [found] = graded.predict_next_actions(PROFILE, task="people", k=1)
    assert found.grades == {}
    assert found.policy is None


def test_a_request_chooses_the_blend(graded):
    clicks = ask(graded)
    assert ids(ask(graded, blend=0)) == ids(clicks)
    policy = ask(graded, blend=1)
    assert ids(policy) != ids(clicks)
    shares = [one.policy for one in policy]
    assert shares == sorted(shares, reverse=True)
    click = {one.item_id: one.score for one in clicks}
    for one in ask(graded, blend=0.25):
        wanted = 0.75 * click[one.item_id] + 0.25 * np.log(one.policy)
        assert one.score == pytest.approx(wanted, abs=1e-4)


def test_everybody_and_given_candidates_are_blended_alike(graded):
    user = graded.interactions.users["user_id"][0]
    many = dict(graded.predict_many([user], k=5, blend=1.0))
    assert ids(many[user]) == ids(graded.predict_user(user, k=5, blend=1.0))
    some = ["job-00004", "job-00007", "job-00009"]
    found = ask(graded, candidates=some, blend=1.0)
    order = [item for item in ids(ask(graded, blend=1.0)) if item in some]
    assert ids(found) == order


@pytest.mark.parametrize("blend", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_a_blend_out_of_range_is_refused(graded, blend):
    with pytest.raises(BadInput, match=r"blend=.* must be a number in \[0, 1\]"):
        ask(graded, blend=blend)


@pytest.mark.parametrize("blend", [0, 0.5])
def test_a_task_without_grades_has_nothing_to_blend(graded, blend):
    with pytest.raises(BadInput, match="task 'people' has no grades"):
        graded.predict_next_actions(PROFILE, task="people", blend=blend)


def test_the_command_line_blends_and_refuses(tiny_run, capsys, tmp_path):
    call = ["predict", str(tiny_run), "--user", "member-00001", "--json", "-k", "2"]
    main(call)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["grades"] for one in told] == [{}, {}]
    with pytest.raises(SystemExit):
        main([*call, "--blend", "0.5"])
    assert "has no grades" in capsys.readouterr().err
    (tmp_path / "users").write_text("member-00001\n")
    out = tmp_path / "told.parquet"
    main(["predict", str(tiny_run), "--users", str(tmp_path / "users"), "--out", str(out)])
    assert pq.read_table(out)["grades"].to_pylist()[0] == []


# Rules.


def test_what_is_never_shown_leaves_nobody_short(graded):
    jobs = graded.interactions.items
    place = dict(zip(jobs["item_id"], jobs["workplace"], strict=True))
    without = [item for item in ids(ask(graded)) if place[item] != "remote"]
    found = ids(ask(graded, constraints=[Never(like="workplace = remote")]))
    assert found == without
    assert 0 < len(found) < 49
    few = ids(ask(graded, k=3, constraints=[Never(like="workplace = remote")]))
    assert few == without[:3]
    candidates = ids(ask(graded))[:9]
    kept = ask(graded, candidates=candidates, constraints=[Never(like="workplace = remote")])
    assert ids(kept) == [item for item in candidates if place[item] != "remote"]


def test_at_most_so_many_of_a_value_stand_together(graded):
    jobs = graded.interactions.items
    size = dict(zip(jobs["item_id"], jobs["company_size"], strict=True))
    plain = ids(ask(graded))
    found = ids(ask(graded, constraints=[AtMost(num=1, column="company_size", among=2)]))
    assert sorted(found) == sorted(plain)
    assert found[0] == plain[0]
    repeats = [a for a, b in pairwise(found) if size[a] == size[b]]
    # Only where nothing else is left.
    tail = [size[item] for item in found[found.index(repeats[0]) + 1 :]] if repeats else []
    assert len(set(tail)) <= 1
    assert any(size[a] == size[b] for a, b in pairwise(plain))
    for value in set(size.values()):
        assert [i for i in found if size[i] == value] == [i for i in plain if size[i] == value]


def test_constraints_are_steps_one_after_the_other(graded):
    jobs = graded.interactions.items
    place = dict(zip(jobs["item_id"], jobs["workplace"], strict=True))
    company = dict(zip(jobs["item_id"], jobs["company"], strict=True))
    rules = [
        Never(like="workplace = remote"),
        AtMost(num=2, column="company", among=10),
        AtMost(num=3, column="industry", among=6),
    ]
    found = ids(ask(graded, k=5, blend=0.5, constraints=rules))
    assert len(found) == 5
    assert "remote" not in {place[item] for item in found}
    assert max(Counter(company[item] for item in found).values()) <= 2


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from(["a", "b", "c", None]), max_size=14),
    num=st.integers(1, 3),
    more=st.one_of(st.none(), st.integers(1, 4)),
)
def test_the_rule_holds_wherever_it_can(values, num, more):
    rule = AtMost(num=num, column="of", among=None if more is None else num + more)
    order = rule.order(np.arange(len(values)), served(values, pa.string())).tolist()
    assert sorted(order) == list(range(len(values)))
    for at, place in enumerate(order):
        start = 0 if rule.among is None else max(0, at - rule.among + 1)
        before = Counter(values[p] for p in order[start:at])
        allowed = [p for p in order[at:] if values[p] is None or before[values[p]] < num]
        # The best that is allowed; where none is, the best there is.
        assert place == min(allowed or order[at:])


def recounted(values, num, among):
    """The rule as it reads: at each place all that stands before it is counted anew."""
    left, chosen = list(range(len(values))), []
    while left:
        near = chosen if among is None else chosen[max(0, len(chosen) - among + 1) :]
        counts = Counter(value for place in near for value in values[place])
        allowed = [p for p in left if all(counts[value] < num for value in values[p])]
        chosen.append((allowed or left)[0])
        left.remove(chosen[-1])
    return chosen


def served(values, arrow_type):
    """What a rule reads of what is served: the items, with a column."""
    table = pa.table(
        {"item_id": list(map(str, range(len(values)))), "of": pa.array(values, arrow_type)}
    )
    items = SimpleNamespace(data=SimpleNamespace(table=table))
    return SimpleNamespace(interactions=SimpleNamespace(items=items))


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=3), max_size=14),
    num=st.integers(1, 3),
    more=st.one_of(st.none(), st.integers(1, 4)),
)
def test_counts_that_are_kept_say_what_counting_anew_says(values, num, more):
    rule = AtMost(num=num, column="of", among=None if more is None else num + more)
    order = rule.order(np.arange(len(values)), served(values, pa.list_(pa.string())))
    assert order.dtype == np.int64
    assert order.tolist() == recounted(values, num, rule.among)


def test_very_many_candidates_are_looked_at_once_each():
    values = [f"company {at % 300}" for at in range(4000)]
    now = served(values, pa.string())
    began = time.process_time()
    assert AtMost(num=2, column="of").order(np.arange(4000), now).tolist() == list(range(4000))
    near = AtMost(num=1, column="of", among=9)
    assert near.order(np.arange(4000), served(["c"] * 4000, pa.string())).tolist()[-1] == 3999
    # Where each is held against all others: several seconds.
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AtMost(num=0, column="company"), "num=0"),
        (lambda: AtMost(num=2, column="company", among=2), "among=2"),
        (lambda: AtMost(num=1.5, column="company"), r"AtMost.num=1\.5 must be at least 1"),
        (lambda: AtMost(num=True, column="company"), "AtMost.num=True must be"),
        (lambda: AtMost(num="2", column="company"), "AtMost.num='2' must be"),
        (lambda: AtMost(num=1, column="company", among=2.5), r"among=2\.5 must be"),
    ],
)
def test_rules_that_say_nothing_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (AtMost(num=1, column="nothing"), "AtMost.column='nothing' is no column"),
        (Never(like="nothing = 3"), "no column 'nothing'"),
        (Never(like="workplace ="), "a value is expected"),
    ],
)
def test_rules_that_do_not_fit_are_refused(graded, rule, said):
    with pytest.raises(ValueError, match=said):
        ask(graded, constraints=[rule])


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        (AtMost(num=1, column="company"), r"constraints=AtMost\(.* must be a list of rules"),
        ("company", "constraints='company' must be a list of rules"),
        (None, "constraints=None must be a list of rules"),
        (["company"], r"constraints\[0\]='company' is no rule; .* Never and AtMost"),
        ([Never(like="kind = job"), AtMost], r"constraints\[1\]=<class .* is no rule"),
    ],
)
def test_constraints_are_a_list_of_rules(graded, constraints, said):
    with pytest.raises(BadInput, match=said):
        ask(graded, constraints=constraints)
    with pytest.raises(BadInput, match=said):
        next(graded.predict_many([graded.interactions.user_ids[0]], constraints=constraints))
