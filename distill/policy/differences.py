"""What another version of a policy judges differently: how much, on which pairs, by which rules."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from distill.policy.document import MAX_GRADE, Policy
from distill.policy.grading import Grader
from distill.policy.rules import Rule
from distill.policy.tables import Pairs, PolicyTables


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleMoves:
    """What one difference does by itself.

    Attributes:
        what: the rule, or another part of the document, in words.
        how: ``added``, ``removed`` or ``changed``.
        num_moved: grades that would be others, were this the only difference.
        mean_move: by how much they rise on average; negative where they fall.
    """

    what: str
    how: str
    num_moved: int
    mean_move: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Difference:
    """Two versions over the same pairs.

    Attributes:
        moves: int64 [5, 5], pairs by grade before and after.
        kappa: quadratic weighted kappa of the two.
        rules: what each difference does by itself, those that move most first.
        num_unasked: pairs on which a rule in words of either version would ask a judge, who was
            not asked; their grades are of the other rules.
        examples: pairs that moved farthest.
    """

    moves: NDArray[np.int64]
    kappa: float
    rules: tuple[RuleMoves, ...]
    num_unasked: int
    examples: Pairs

    @property
    def num_pairs(self) -> int:
        """How many pairs were judged."""
        return int(self.moves.sum())

    @property
    def num_moved(self) -> int:
        """Grades that are others."""
        return self.num_pairs - int(np.trace(self.moves))

    @property
    def mean_move(self) -> float:
        """How much a moved grade rises on average; 0 where none moved."""
        by = np.arange(MAX_GRADE + 1)[None, :] - np.arange(MAX_GRADE + 1)[:, None]
        return float((self.moves * by).sum() / max(self.num_moved, 1))


def compare(
    before: Policy, after: Policy, tables: PolicyTables, pairs: Pairs, *, num_examples: int = 3
) -> Difference:
    """Judge pairs by two versions.

    Rules are the same where their titles are. Each difference is also tried alone, in the version
    before; where several act together their moves need not add up. No judge is asked, so that
    rules in words move nothing.

    Args:
        before: a policy.
        after: its other version.
        tables: of the log.
        pairs: n pairs.
        num_examples: of those that moved farthest.
    """
    judged = [Grader(policy, tables).grades(pairs) for policy in (before, after)]
    old, new = (one.grade.astype(np.int64) for one in judged)
    size = MAX_GRADE + 1
    moves = np.bincount(old * size + new, minlength=size * size).reshape(size, size)
    told = []
    for what, how, mixed in _single_differences(before, after):
        alone = Grader(mixed, tables).grades(pairs).grade - old
        moved = int((alone != 0).sum())
        mean = float(alone.sum() / max(moved, 1))
        told.append(RuleMoves(what=what, how=how, num_moved=moved, mean_move=mean))
    told.sort(key=lambda rule: -rule.num_moved)
    farthest = np.argsort(-np.abs(new - old), kind="stable")[:num_examples]
    farthest = farthest[new[farthest] != old[farthest]]
    same = bool((old == new).all())
    # All grades, whether they occur or not: how far two lie apart is a matter of the scale.
    scale = {"labels": range(size), "weights": "quadratic"}
    kappa = 1.0 if same else float(cohen_kappa_score(old, new, **scale))
    return Difference(
        moves=moves,
        kappa=kappa,
        rules=tuple(told),
        num_unasked=int((judged[0].needs_judge | judged[1].needs_judge).sum()),
        examples=pairs[farthest],
    )


def _single_differences(before: Policy, after: Policy) -> list[tuple[str, str, Policy]]:
    """Each difference by itself: what, how, and the version before with it."""
    # Names that only the new version has are needed by its rules, and change nothing by themselves.
    base = replace(
        before, terms={**after.terms, **before.terms}, tables={**after.tables, **before.tables}
    )
    old = {rule.title.casefold(): rule for rule in before.rules}
    new = {rule.title.casefold(): rule for rule in after.rules}
    found = []
    for title, rule in old.items():
        others = tuple(one for one in before.rules if one is not rule)
        if title not in new:
            found.append((_named(rule), "removed", replace(base, rules=others)))
        elif new[title].meaning != rule.meaning:
            mixed = replace(base, rules=(*others, new[title]))
            found.append((_named(new[title]), "changed", mixed))
    for title, rule in new.items():
        if title not in old:
            found.append((_named(rule), "added", replace(base, rules=(*before.rules, rule))))
    for name, term in after.terms.items():
        if name in before.terms and before.terms[name].text != term.text:
            mixed = replace(base, terms={**base.terms, name: term})
            found.append((f"term {name}", "changed", mixed))
    for name, table in after.tables.items():
        if name in before.tables and before.tables[name].rows != table.rows:
            mixed = replace(base, tables={**base.tables, name: table})
            found.append((f"table {name}", "changed", mixed))
    if before.cuts != after.cuts:
        found.append(("cuts", "changed", replace(base, cuts=after.cuts)))
    return found


def _named(rule: Rule) -> str:
    return f"rule {rule.number}. {rule.title} (line {rule.line})"
