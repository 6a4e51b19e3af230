"""From rules to grades: what each rule says of a pair, and what comes out of all of them.

    score = sum of weight * value / sum of weight      over the rules that speak
    grade = how many of the cuts the score reaches, raised by at_least, lowered by at_most

A limit from above wins over one from below: what must not be shown is not shown. Where no rule
that scores speaks, the score is 0.

Legend: R rules, n pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distill.policy.document import MAX_GRADE, Policy
from distill.policy.evaluating import Evaluation, Scoped
from distill.policy.rules import Rule
from distill.policy.tables import Pairs, PolicyTables
from distill.policy.values import Bool, Float64

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

AnswerRule = Callable[[Rule, Pairs], Float64]
"""What a judge says of a rule in words: a value in 0..1 for each pair, NaN where it has none."""

_PAIRS_AT_ONCE = 65_536
# A third of three makes no whole, in floats.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """What each rule says of each pair.

    Attributes:
        speaks: bool [R, n], whether a rule has a say.
        value: float32 [R, n], its value in 0..1, or its limit in 0..4.
        weight: float32 [R, n], of a rule that scores.
        unanswered: bool [R, n], a rule for a judge that nobody answered.
    """

    speaks: Bool
    value: Float32
    weight: Float32
    unanswered: Bool

    def without(self, rule: int) -> "Outcomes":
        """As if the rule at a place (from 0) were not there."""
        speaks = self.speaks.copy()
        speaks[rule] = False
        return replace(self, speaks=speaks)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grades:
    """Judgements of n pairs, each with its reasons.

    Attributes:
        grade: int8 [n], 0 to 4.
        score: float32 [n], 0 to 1, before limits.
        fired: bool [R, n], the rules that spoke.
        limited_by: int8 [n], number of the rule whose limit decided, or 0.
        needs_judge: bool [n], a rule in words went unanswered, so the grade is of the others.
    """

    grade: Int8
    score: Float32
    fired: Bool
    limited_by: Int8
    needs_judge: Bool

    def __len__(self) -> int:
        return len(self.grade)

    @property
    def rules(self) -> pa.ListArray:
        """Numbers of the rules that fired, a list of int8 per pair."""
        rule, offsets = np.nonzero(self.fired.T)[1], np.cumsum(self.fired.sum(axis=0))
        numbers = pa.array((rule + 1).astype(np.int8))
        starts = np.concatenate([[0], offsets]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(starts), numbers)

    @staticmethod
    def joined(parts: "list[Grades]") -> "Grades":
        """The judgements of several lots of pairs, end to end."""
        return Grades(
            grade=np.concatenate([part.grade for part in parts]),
            score=np.concatenate([part.score for part in parts]),
            fired=np.concatenate([part.fired for part in parts], axis=1),
            limited_by=np.concatenate([part.limited_by for part in parts]),
            needs_judge=np.concatenate([part.needs_judge for part in parts]),
        )


class Grader:
    """One policy over one log.

    Args:
        policy: the rules.
        tables: what they look at.
        answer: asked for rules in words; None leaves them unanswered.
    """

    def __init__(
        self, policy: Policy, tables: PolicyTables, *, answer: AnswerRule | None = None
    ) -> None:
        self.policy = policy
        self.tables = tables
        self._answer = answer
        self._evaluation = Evaluation(tables, policy.terms, policy.tables)

    def grades(self, pairs: Pairs) -> Grades:
        """Judge pairs; a million takes seconds where no judge is asked.

        Raises:
            BadInput: an expression reads what is not there, or gives what it may not; with its
                line and, for a value out of range, the pair.
        """
        parts = [
            combined(self.policy, self.outcomes(part)) for part in _parts(pairs, _PAIRS_AT_ONCE)
        ]
        return Grades.joined(parts)

    def outcomes(self, pairs: Pairs) -> Outcomes:
        """What each rule says; as `grades`."""
        shape = (len(self.policy.rules), len(pairs))
        found = Outcomes(
            speaks=np.zeros(shape, np.bool_),
            value=np.zeros(shape, np.float32),
            weight=np.zeros(shape, np.float32),
            unanswered=np.zeros(shape, np.bool_),
        )
        shared: dict[int, Scoped] = {}
        for place, rule in enumerate(self.policy.rules):
            self._rule(rule, place, pairs, shared, found)
        return found

    def _rule(
        self, rule: Rule, place: int, pairs: Pairs, shared: dict[int, Scoped], found: Outcomes
    ) -> None:
        speaks = np.ones(len(pairs), np.bool_)
        if rule.when is not None:
            speaks &= self._evaluation.truths(rule.when, pairs, shared)
        if rule.unless is not None:
            speaks &= ~self._evaluation.truths(rule.unless, pairs, shared)
        if rule.scores:
            weight = np.ones(len(pairs))
            if rule.weight is not None:
                weight = self._evaluation.numbers(rule.weight, pairs, shared)
                self._check_range(rule, "weight", weight, speaks, np.inf, pairs)
            # What counts for nothing says nothing.
            speaks &= weight > 0
            found.weight[place] = np.where(speaks, weight, 0.0)
        value = self._said(rule, place, pairs, shared, speaks, found)
        speaks &= ~np.isnan(value)
        highest = 1.0 if rule.scores else float(MAX_GRADE)
        self._check_range(rule, rule.effect, value, speaks, highest, pairs)
        found.speaks[place] = speaks
        found.value[place] = np.where(speaks, value, 0.0)

    def _said(
        self,
        rule: Rule,
        place: int,
        pairs: Pairs,
        shared: dict[int, Scoped],
        speaks: Bool,
        found: Outcomes,
    ) -> Float64:
        if rule.body is not None:
            return self._evaluation.numbers(rule.body, pairs, shared)
        value = np.full(len(pairs), np.nan)
        asked = np.flatnonzero(speaks)
        if self._answer is not None and len(asked):
            value[asked] = self._answer(rule, pairs[asked])
        found.unanswered[place] = speaks & np.isnan(value)
        return value

    def _check_range(
        self,
        rule: Rule,
        what: str,
        values: Float64,
        speaks: Bool,
        highest: float,
        pairs: Pairs,
    ) -> None:
        with np.errstate(invalid="ignore"):
            wrong = speaks & ((values < -_ROUNDING) | (values > highest + _ROUNDING))
        if not wrong.any():
            return
        at = int(np.flatnonzero(wrong)[0])
        log = self.tables.interactions
        expression = rule.weight if what == "weight" else rule.body
        assert expression is not None
        limits = "0 or more" if np.isinf(highest) else f"from 0 to {highest:.0f}"
        raise expression.place.refusal(
            f"{what} of rule {rule.number} is {values[at]:g} for user "
            f"{log.user_ids[int(pairs.users[at])]!r} and item "
            f"{log.item_ids[int(pairs.items[at])]!r}, and must be {limits}; hold it there with "
            "ramp, min or max."
        )


def combined(policy: Policy, outcomes: Outcomes) -> Grades:
    """One judgement from what all rules say.

    Args:
        policy: whose rules they are.
        outcomes: of n pairs.
    """
    scoring = np.array([rule.scores for rule in policy.rules])
    counted = outcomes.weight * (outcomes.speaks & scoring[:, None])
    total = counted.sum(axis=0)
    score = (counted * outcomes.value).sum(axis=0) / np.where(total > 0, total, 1.0)
    grade = np.searchsorted(np.array(policy.cuts) - _ROUNDING, score, side="right").astype(np.int8)
    limited_by = np.zeros(len(grade), np.int8)
    for effect in ("at_least", "at_most"):
        for place, rule in enumerate(policy.rules):
            if rule.effect == effect:
                limit = whole_grade(outcomes.value[place])
                decides = outcomes.speaks[place] & (
                    (grade > limit) if effect == "at_most" else (grade < limit)
                )
                grade = np.where(decides, limit, grade)
                limited_by[decides] = rule.number
    return Grades(
        grade=grade,
        score=score.astype(np.float32),
        fired=outcomes.speaks,
        limited_by=limited_by,
        needs_judge=np.any(outcomes.unanswered, axis=0),
    )


def whole_grade(limit: NDArray[np.floating[Any]]) -> Int8:
    """The grade that a limit allows, int8 [n]: between two of them the lower one."""
    return cast(Int8, np.floor(limit + _ROUNDING).astype(np.int8))


def _parts(pairs: Pairs, size: int) -> Iterator[Pairs]:
    if not len(pairs):
        yield pairs
    for begin in range(0, len(pairs), size):
        yield pairs[begin : begin + size]
