"""What is wrong with a policy, seen on pairs: rules at odds or without effect, and jumps.

A rule can be read without fault and still be wrong. What it does is seen on pairs of real people
and items, so a finding is as good as the pairs that it was found on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from distill.policy.document import Policy
from distill.policy.grading import Grader, Outcomes, combined, whole_grade
from distill.policy.rules import Rule
from distill.policy.tables import Owner, Pairs, PolicyTables
from distill.policy.values import Float64, Lists, Texts

Kind = Literal["contradiction", "never fires", "changes nothing", "jump", "unknown value", "judge"]

# Two rules contradict each other if what one wants is there and what the other wants is there, and
# both together are, on fewer than this share of the pairs on which chance would have them.
_MOST_TOGETHER = 0.02
_LEAST_EXPECTED = 10.0
_MET, _UNMET = 0.75, 0.5
# A small change of a number: this share of the span between its 5th and 95th percentile, and at
# least 1 where all of its values are whole.
_SMALL_CHANGE = 0.01
_JUMP_GRADES = 2
_JUMP_PAIRS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that a policy's author should look at.

    Attributes:
        kind: of what; ``judge`` is no fault, but says what was not looked at.
        lines: of the document, the first being where to look first.
        message: what, on how many pairs, and how to mend it.
    """

    kind: Kind
    lines: tuple[int, ...]
    message: str

    def __str__(self) -> str:
        where = " and ".join(map(str, self.lines))
        return f"line {where}: {self.kind}: {self.message}"


def check(policy: Policy, tables: PolicyTables, pairs: Pairs) -> list[Finding]:
    """Look for contradictions, rules without effect, jumps and values that nothing has.

    Args:
        policy: that was read without fault.
        tables: of the log.
        pairs: to look on; several thousand show most.

    Raises:
        BadInput: the policy does not fit the tables; with the line.
    """
    grader = Grader(policy, tables)
    outcomes = grader.outcomes(pairs)
    found = [
        *_unknown_values(policy, tables),
        *_without_effect(policy, outcomes),
        *_contradictions(policy, outcomes),
        *_jumps(policy, tables, pairs[:_JUMP_PAIRS]),
    ]
    return sorted(found, key=lambda finding: finding.lines)


def _without_effect(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    grades = combined(policy, outcomes)
    num = outcomes.speaks.shape[1]
    for place, rule in enumerate(policy.rules):
        speaks = outcomes.speaks[place]
        if outcomes.unanswered[place].any():
            asked = int(outcomes.unanswered[place].sum())
            yield Finding(
                kind="judge",
                lines=(rule.line,),
                message=f"rule {rule.number} asks a judge on {asked:,} of {num:,} pairs; their "
                "grades here are those of the other rules.",
            )
        elif not speaks.any():
            yield Finding(
                kind="never fires",
                lines=(rule.line,),
                message=f"rule {rule.number} has no say on any of {num:,} pairs; loosen its `when` "
                "or `unless`, see whether what it reads is known, or leave it out.",
            )
        elif (combined(policy, outcomes.without(place)).grade == grades.grade).all():
            limits = np.unique(grades.limited_by[speaks])
            over = [policy.rules[number - 1] for number in limits if number]
            overruled = bool((grades.limited_by[speaks] > 0).all()) and rule not in over
            by = ", ".join(f"rule {other.number}" for other in over)
            yield Finding(
                kind="changes nothing",
                lines=(rule.line, *(other.line for other in over if overruled)),
                message=f"rule {rule.number} speaks on {int(speaks.sum()):,} of {num:,} pairs and "
                "no grade would be another without it"
                + (f": {by} always overrules it." if overruled else ".")
                + " Give it more weight, or leave it out.",
            )


def _contradictions(policy: Policy, outcomes: Outcomes) -> Iterator[Finding]:
    for first, one in enumerate(policy.rules):
        for second in range(first + 1, len(policy.rules)):
            other = policy.rules[second]
            both = outcomes.speaks[first] & outcomes.speaks[second]
            if not both.any():
                continue
            lines = (one.line, other.line)
            values = outcomes.value[first][both], outcomes.value[second][both]
            if one.scores and other.scores:
                said = _opposed(one, other, *values)
            elif {one.effect, other.effect} == {"at_most", "at_least"}:
                at_most, at_least = values if one.effect == "at_most" else values[::-1]
                crossed = int((whole_grade(at_least) > whole_grade(at_most)).sum())
                said = (
                    f"rules {one.number} and {other.number} limit the same {crossed:,} pairs from "
                    "above and from below, and no grade is within both; at_most wins. Give one of "
                    "them an `unless`."
                    if crossed
                    else ""
                )
            else:
                continue
            if said:
                yield Finding(kind="contradiction", lines=lines, message=said)


def _opposed(one: Rule, other: Rule, first: Float64, second: Float64) -> str:
    """What is wrong with two rules that no pair can please, or nothing."""
    met = first >= _MET, second >= _MET
    expected = met[0].mean() * met[1].mean() * len(first)
    together = int((met[0] & met[1]).sum())
    if expected < _LEAST_EXPECTED or together > _MOST_TOGETHER * expected:
        return ""
    # Where one is pleased the other may still be half content: that is a compromise.
    if second[met[0]].mean() > _UNMET or first[met[1]].mean() > _UNMET:
        return ""
    return (
        f"rules {one.number} and {other.number} both speak on {len(first):,} pairs; "
        f"{int(met[0].sum()):,} please the one and {int(met[1].sum()):,} the other, but "
        f"{together or 'none'} of them both. Say in a `when` or `unless` which of them goes first."
    )


def _jumps(policy: Policy, tables: PolicyTables, pairs: Pairs) -> Iterator[Finding]:
    grader = Grader(policy, tables)
    outcomes = grader.outcomes(pairs)
    grade = combined(policy, outcomes).grade.astype(np.int64)
    log = tables.interactions
    for owner, name in policy.fields:
        if owner not in ("user", "item"):
            continue
        value = tables.field(cast(Owner, owner), name)
        if isinstance(value, Texts | Lists) or not np.isfinite(value).any():
            continue
        value = value.astype(np.float64)
        step = _small(value)
        for change in (-step, step):
            # Not out of what there is: a rule need not make sense of years below zero.
            moved_to = np.clip(value + change, np.nanmin(value), np.nanmax(value))
            nudged = tables.with_field(cast(Owner, owner), name, moved_to)
            after = Grader(policy, nudged).outcomes(pairs)
            moved = combined(policy, after).grade - grade
            jumps = np.flatnonzero(np.abs(moved) >= _JUMP_GRADES)
            if not len(jumps):
                continue
            worst = jumps[np.argmax(np.abs(moved[jumps]))]
            rules = _deciding(policy, outcomes, after, jumps)
            user, item = int(pairs.users[worst]), int(pairs.items[worst])
            row = user if owner == "user" else item
            yield Finding(
                kind="jump",
                lines=tuple(rule.line for rule in rules),
                message=f"{owner}.{name} {'up' if change > 0 else 'down'} by {step:g} moves the "
                f"grade of {len(jumps):,} of {len(pairs):,} pairs by {_JUMP_GRADES} or more, "
                f"through rule {' and '.join(str(rule.number) for rule in rules)}: for user "
                f"{log.user_ids[user]} and item {log.item_ids[item]}, from {value[row]:g} to "
                f"{moved_to[row]:g}, it goes from {grade[worst]} to "
                f"{grade[worst] + moved[worst]}. Put a ramp(…) in the place of the threshold.",
            )
            break


def _small(value: Float64) -> float:
    known = value[np.isfinite(value)]
    low, high = np.quantile(known, [0.05, 0.95])
    step = float(_SMALL_CHANGE * (high - low))
    return max(step, 1.0) if (known == np.rint(known)).all() else step


def _deciding(
    policy: Policy, before: Outcomes, after: Outcomes, jumps: np.ndarray
) -> tuple[Rule, ...]:
    """The rules that said something else, the one that explains most of the jumps first."""
    whole = combined(policy, after).grade[jumps].astype(np.int64)
    explained: list[tuple[float, Rule]] = []
    for place, rule in enumerate(policy.rules):
        if not _differs(before, after, place)[jumps].any():
            continue
        mixed = Outcomes(
            speaks=after.speaks[:, jumps].copy(),
            value=after.value[:, jumps].copy(),
            weight=after.weight[:, jumps].copy(),
            unanswered=after.unanswered[:, jumps],
        )
        mixed.speaks[place] = before.speaks[place, jumps]
        mixed.value[place] = before.value[place, jumps]
        mixed.weight[place] = before.weight[place, jumps]
        undone = np.abs(whole - combined(policy, mixed).grade).mean()
        explained.append((float(undone), rule))
    explained.sort(key=lambda pair: (-pair[0], pair[1].number))
    return tuple(rule for undone, rule in explained if undone >= 0.5 * explained[0][0])


def _differs(before: Outcomes, after: Outcomes, place: int) -> Any:
    said = ((one.speaks, one.value, one.weight) for one in (before, after))
    return np.logical_or.reduce(
        [one[place] != other[place] for one, other in zip(*said, strict=True)]
    )


def _unknown_values(policy: Policy, tables: PolicyTables) -> Iterator[Finding]:
    """Texts that a field is compared with and never has: they are misspelt more often than rare."""
    said = [one for rule in policy.rules for one in rule.expressions]
    for expression in [*said, *policy.terms.values()]:
        for owner, name, phrase in expression.compared:
            value = tables.field(cast(Owner, owner), name)
            texts = value.flat if isinstance(value, Lists) else value
            if isinstance(texts, Texts) and phrase not in texts.words:
                yield Finding(
                    kind="unknown value",
                    lines=(expression.place.line,),
                    message=f"no {owner} has {name} {phrase!r}, so this is the same for all; it "
                    f"has {', '.join(map(repr, texts.words[:5]))}"
                    + (" …" if len(texts.words) > 5 else "")
                    + ".",
                )
