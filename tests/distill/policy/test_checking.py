"""`check` finds what is wrong with a policy, `compare` what another version moves."""

import numpy as np
import pytest

from distill.policy import Grader, Policy, differences
from distill.policy.agreement import weighted_kappa
from distill.policy.checking import check
from distill.policy.differences import compare
from distill.policy.drawing import SOURCES, draw_pairs, pair_keys
from promptify.validation import BadInput

PAY = "## 1. Pay\n```rule\nvalue: ramp(item.pay / user.expected_pay, 0.85, 1)\n```\n"


@pytest.fixture(scope="module")
def pairs(market_tables):
    return draw_pairs(market_tables, 6000, seed=1).pairs


@pytest.fixture(scope="module")
def found_in(market_tables, pairs, document):
    """Kinds and lines of what is found in a policy of these rules."""

    def found(rules, head=""):
        return check(Policy.parse(document(rules, head=head)), market_tables, pairs)

    return found


def test_a_ramp_is_no_jump_and_a_threshold_is(found_in):
    assert found_in(PAY) == []
    sharp = found_in(
        PAY.replace("ramp(item.pay / user.expected_pay, 0.85, 1)", "item.pay >= user.expected_pay")
    )
    assert {(one.kind, one.lines) for one in sharp} == {("jump", (6,))}
    assert [one.message.split(" ")[0] for one in sharp] == ["item.pay", "user.expected_pay"]
    assert "it goes from 0 to 4" in sharp[0].message or "it goes from 4 to 0" in sharp[0].message
    assert "Put a ramp(…)" in sharp[0].message


def test_a_nudge_stays_within_what_there_is(found_in):
    # Somebody without a year would have minus one, and a weight below zero is refused. That the
    # only rule falls silent at zero is a jump.
    (found,) = found_in(PAY.replace("value", "weight: user.years\nvalue"))
    assert found.kind == "jump"
    assert "from 1 to 0" in found.message


def test_a_jump_names_the_rule_that_makes_it(found_in):
    rules = PAY + "## 2. Years\n```rule\nat_most: 0 if user.years < item.years else 4\n```\n"
    assert {one.lines for one in found_in(rules) if one.kind == "jump"} == {(10,)}


def test_rules_that_no_pair_can_please_contradict_each_other(found_in):
    rules = (
        '## 1. At home\n```rule\nvalue: item.workplace == "remote"\n```\n'
        '## 2. At work\n```rule\nvalue: item.workplace == "on site"\n```\n'
    )
    (found,) = found_in(rules)
    assert (found.kind, found.lines) == ("contradiction", (6, 10))
    assert "none of them both" in found.message
    # One of them goes first where it is asked for: no contradiction.
    rules = rules.replace('"remote"\n', '"remote"\nwhen: user.workplace == "remote"\n')
    rules = rules.replace('"on site"\n', '"on site"\nunless: user.workplace == "remote"\n')
    assert found_in(rules) == []
    # Hybrid contents both: a compromise.
    rules = (
        '## 1. At home\n```rule\nvalue: 1 if item.workplace == "remote" else 0.7\n```\n'
        '## 2. At work\n```rule\nvalue: 1 if item.workplace == "on site" else 0.7\n```\n'
    )
    assert [one.kind for one in found_in(rules)] == []


def test_limits_that_leave_no_grade_contradict_each_other(found_in):
    rules = (
        PAY
        + '## 2. Up\n```rule\nat_least: 3\nwhen: item.workplace == "remote"\n```\n'
        + "## 3. Down\n```rule\nat_most: 1\nwhen: user.years < 4\n```\n"
    )
    found = [one for one in found_in(rules) if one.kind == "contradiction"]
    assert [one.lines for one in found] == [(10, 15)]
    assert "no grade is within both" in found[0].message
    # A limit between two grades allows the lower one, so that grade 1 is within both of these.
    fits = rules.replace("at_least: 3", "at_least: 1.9").replace("at_most: 1", "at_most: 1.2")
    assert [one for one in found_in(fits) if one.kind == "contradiction"] == []


def test_rules_that_do_nothing_are_told(found_in):
    rules = (
        PAY
        + "## 2. Nobody\n```rule\nvalue: 1\nwhen: user.years > 400\n```\n"
        + "## 3. Feather\n```rule\nvalue: 1\nweight: 0.0000001\n```\n"
    )
    assert [(one.kind, one.lines) for one in found_in(rules)] == [
        ("never fires", (10,)),
        ("changes nothing", (15,)),
    ]
    rules = (
        "## 1. Pay\n```rule\nvalue: 1\n```\n"
        '## 2. Home\n```rule\nvalue: 0\nwhen: item.workplace == "remote"\n```\n'
        '## 3. Never remote\n```rule\nat_most: 0\nwhen: item.workplace == "remote"\n```\n'
    )
    overruled = [one for one in found_in(rules) if one.kind == "changes nothing"]
    assert [one.lines for one in overruled] == [(10, 15)]
    assert "rule 3 always overrules it" in overruled[0].message


def test_values_that_nothing_has_and_rules_for_a_judge_are_told(found_in):
    head = '```terms\nhome = item.workplace in ("remote", "remot")\n```\n'
    (found,) = found_in("value: 1 if home else 0", head=head)
    assert (found.kind, found.lines) == ("unknown value", (6,))
    assert "no item has workplace 'remot', so this is the same for all" in found.message
    (found,) = found_in(PAY + "## 2. Tone\n```rule\njudge: Kind?\n```\n")
    assert (found.kind, found.lines) == ("judge", (10,))


def test_the_policy_that_comes_with_the_package_is_sound(market_tables, pairs, job_policy):
    # Five hundred members would show all; in two hundred a rule for notes may meet none of them.
    found = check(job_policy, market_tables, pairs)
    assert [one for one in found if one.kind not in ("changes nothing", "jump")] == []


def test_the_same_version_moves_nothing(market_tables, pairs, job_policy):
    same = compare(job_policy, job_policy, market_tables, pairs)
    assert (same.num_moved, same.kappa, same.rules, len(same.examples)) == (0, 1.0, (), 0)
    assert same.num_pairs == len(pairs)


def test_kappa_is_by_the_whole_scale_whatever_occurs(market_tables, pairs, monkeypatch):
    # 0, 1 and 4: between the last two lie grades that nobody gives.
    old, new = [0, 0, 0, 1, 1, 1, 4, 4, 4, 4], [0, 0, 1, 1, 1, 4, 4, 4, 4, 1]
    given = map(np.array, (old, new))

    class Given:
        def __init__(self, *_):
            self.grade = next(given)
            self.needs_judge = np.zeros(len(self.grade), bool)

        def grades(self, _):
            return self

    monkeypatch.setattr(differences, "Grader", Given)
    monkeypatch.setattr(differences, "_single_differences", lambda *_: ())
    found = compare(None, None, market_tables, pairs[np.arange(10)])
    assert found.kappa == pytest.approx(0.678, abs=5e-4)


def test_a_changed_rule_answers_for_what_it_moves(market_tables, pairs, job_policy):
    text = job_policy.text.replace("ramp(pay_ratio, 0.85, 0.97)", "ramp(pay_ratio, 1.0, 1.2)")
    text = text.replace("version: 1.0", "version: 2.0")
    changed = compare(job_policy, Policy.parse(text), market_tables, pairs)
    old, new = (
        Grader(policy, market_tables).grades(pairs).grade
        for policy in (job_policy, Policy.parse(text))
    )
    assert changed.num_moved == (old != new).sum() > 0
    assert changed.moves[2, 1] == ((old == 2) & (new == 1)).sum() > 0
    assert changed.mean_move < 0
    (rule,) = changed.rules
    assert (rule.what, rule.how) == ("rule 8. Pay (line 156)", "changed")
    assert (rule.num_moved, rule.mean_move) == (changed.num_moved, changed.mean_move)
    assert changed.kappa == pytest.approx(weighted_kappa(old, new))
    user, item = int(changed.examples.users[0]), int(changed.examples.items[0])
    place = np.flatnonzero((pairs.users == user) & (pairs.items == item))[0]
    assert abs(int(new[place]) - int(old[place])) == np.abs(new.astype(int) - old).max()


def test_every_kind_of_difference_is_told(market_tables, pairs, document):
    head = "```terms\nratio = item.pay / user.expected_pay\n```\n```table t\na: x\n```\n"
    before = Policy.parse(document(PAY + "## 2. Old\n```rule\nat_most: 2\n```\n", head=head))
    text = document(
        PAY + "## 2. New\n```rule\nat_most: 3 if more else 4\n```\n",
        head=head.replace("user.", "1.1 * user.").replace("a: x", "a: y")
        + "```terms\nmore = true\n```\n",
    ).replace("version: 1", "version: 2\ncuts: [0.1, 0.2, 0.3, 0.4]")
    told = compare(before, Policy.parse(text), market_tables, pairs).rules
    assert {(one.what.split(" (")[0], one.how) for one in told} == {
        ("rule 2. Old", "removed"),
        ("rule 2. New", "added"),
        ("term ratio", "changed"),
        ("table t", "changed"),
        ("cuts", "changed"),
    }


def test_pairs_are_drawn_once_each_from_three_sources(market_tables):
    drawn = draw_pairs(market_tables, 5000, seed=2, shares=(0.2, 0.5, 0.3), with_queries=True)
    keys = pair_keys(drawn.pairs, market_tables)
    assert len(np.unique(keys)) == 5000
    assert np.isin(drawn.pairs.items, market_tables.candidates).all()
    assert np.bincount(drawn.source).tolist() == [1000, 2500, 1500]
    log = market_tables.interactions
    shown = set((log.event_user.astype(int) * log.num_items + log.event_item).tolist())
    assert set(keys[drawn.source == SOURCES.index("shown")].tolist()) <= shown
    assert drawn.pairs.contexts is not None
    assert (drawn.pairs.contexts >= 0).any()
    again = draw_pairs(market_tables, 5000, seed=2, shares=(0.2, 0.5, 0.3))
    assert (pair_keys(again.pairs, market_tables) == keys).all()
    assert again.pairs.contexts is None


def test_similar_pairs_are_closer_to_the_policy_than_random_ones(market_tables, job_grader):
    drawn = draw_pairs(market_tables, 4000, seed=3, shares=(0, 0.5, 0.5))
    grade = job_grader.grades(drawn.pairs).grade
    similar = grade[drawn.source == SOURCES.index("similar")]
    at_random = grade[drawn.source == SOURCES.index("random")]
    assert similar.mean() > at_random.mean() + 0.3
    assert (similar <= 1).mean() > 0.2  # and hard negatives among them


def test_pairs_left_out_are_never_drawn_and_all_others_can_be(small_tables):
    every = draw_pairs(small_tables, 9)
    assert sorted(pair_keys(every.pairs, small_tables)) == list(range(9))
    rest = draw_pairs(small_tables, 7, without=np.array([0, 4, 4]))
    assert sorted(pair_keys(rest.pairs, small_tables)) == [1, 2, 3, 5, 6, 7, 8]
    with pytest.raises(BadInput, match="make 7 that are free"):
        draw_pairs(small_tables, 8, without=np.array([0, 4]))
    with pytest.raises(BadInput, match="add up to 1"):
        draw_pairs(small_tables, 2, shares=(0.5, 0.2, 0.2))


def test_of_very_many_pairs_some_are_compared(market_tables, monkeypatch):
    monkeypatch.setattr("distill.policy.drawing._MOST_NUMBERED", 10)
    drawn = draw_pairs(market_tables, 3000, seed=4, shares=(0, 0, 1))
    assert len(np.unique(pair_keys(drawn.pairs, market_tables))) == 3000
    assert np.isin(drawn.pairs.items, market_tables.candidates).all()


def test_for_few_alike_pairs_of_very_many_some_people_are_compared(market_tables, monkeypatch):
    monkeypatch.setattr("distill.policy.drawing._MOST_COMPARED", 1000)
    few = draw_pairs(market_tables, 80, seed=4, shares=(0, 0.5, 0.5))
    assert np.bincount(few.source).tolist() == [0, 40, 40]
    people = np.unique(few.pairs.users[few.source == SOURCES.index("similar")])
    # Eight have ten each, twice as many as are wanted.
    assert 4 <= len(people) <= 8
    assert people.max() > 20
    again = draw_pairs(market_tables, 80, seed=4, shares=(0, 0.5, 0.5))
    assert (pair_keys(again.pairs, market_tables) == pair_keys(few.pairs, market_tables)).all()
    many = draw_pairs(market_tables, 4000, seed=4, shares=(0, 0.5, 0.5))
    monkeypatch.undo()
    whole = draw_pairs(market_tables, 4000, seed=4, shares=(0, 0.5, 0.5))
    assert (pair_keys(many.pairs, market_tables) == pair_keys(whole.pairs, market_tables)).all()
