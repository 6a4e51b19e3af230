"""Why a pair has its grade, rule by rule."""

import numpy as np

from distill.policy.document import MAX_GRADE
from distill.policy.grading import Grader, combined
from distill.policy.rules import Rule
from distill.policy.tables import Pairs
from promptify.validation import BadInput, shown


def explain(grader: Grader, user_id: str, item_id: str, *, query: str | None = None) -> list[str]:
    """The grade of a pair and what each rule says of it, as lines of text.

    Args:
        grader: the policy over a log.
        user_id: of the log.
        item_id: of the log.
        query: one of the log's contexts, or None.

    Raises:
        BadInput: the log does not have them.
    """
    log = grader.tables.interactions
    if query is not None and query not in log.contexts:
        raise BadInput(
            f"query={shown(query)} is not in the log, which has {len(log.contexts):,} queries and "
            f"notes, such as {', '.join(map(shown, log.contexts[:3])) or 'none'}."
        )
    contexts = None if query is None else np.array([log.contexts.index(query)])
    pairs = Pairs(
        users=np.array([log.user_row(user_id)]),
        items=np.array([log.item_row(item_id)]),
        contexts=contexts,
    )
    outcomes = grader.outcomes(pairs)
    judged = combined(grader.policy, outcomes)
    cuts = ", ".join(
        f"{grade} from {cut:.2f}" for grade, cut in enumerate(grader.policy.cuts, start=1)
    )
    lines = [
        f"{user_id} and {item_id}: grade {judged.grade[0]} of {MAX_GRADE} by {grader.policy.name} "
        f"{grader.policy.version}",
        f"score {judged.score[0]:.2f} (grade {cuts})",
    ]
    for place, rule in enumerate(grader.policy.rules):
        said = _said(
            rule,
            speaks=bool(outcomes.speaks[place, 0]),
            value=float(outcomes.value[place, 0]),
            weight=float(outcomes.weight[place, 0]),
            unanswered=bool(outcomes.unanswered[place, 0]),
            without=int(combined(grader.policy, outcomes.without(place)).grade[0]),
            grade=int(judged.grade[0]),
        )
        lines.append(f"  {rule.number}. {rule.title} (line {rule.line}): {said}")
    return lines


def _said(
    rule: Rule,
    *,
    speaks: bool,
    value: float,
    weight: float,
    unanswered: bool,
    without: int,
    grade: int,
) -> str:
    if unanswered:
        return "asks a judge, who was not asked"
    if not speaks:
        return "silent"
    if rule.scores:
        return f"value {value:.2f}, weight {weight:.2f}"
    how = rule.effect.replace("_", " ")
    does = "changes nothing" if without == grade else f"decides: without it {without}"
    return f"{how} {int(value + 1e-6)}, which {does}"
