"""One request answered: retrieve candidates from what is served, rank them, apply constraints.

Legend: I items of the catalogue, C candidates, V vector width, A actions of the task.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.constraints import Constraint, ruled
from decant.served import Admitted, Served
from decant.where import Where, check_where, parse_where
from foundation.predictions import log_policy, log_positive
from foundation.prefix_cache import PrefixCache
from foundation.scoring import PrefixReading
from promptify.rows import Rows
from promptify.validation import BadInput, shown

logger = logging.getLogger(__name__)

NUM_RETRIEVED = 200
"""Candidates that retrieval hands to the ranker, as in the `system` rows of every table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cascade:
    """How many items each stage of a request hands on to the next.

    Attributes:
        retrieved: of what the index finds nearest; no fewer than are asked for.
        ranked: of these, the best by the inner product of whole vectors, that the model reads and
            the full score puts in order; no fewer than are asked for, and all when None.

    Raises:
        BadInput: a number is below 1, or more are ranked than retrieved.
    """

    retrieved: int = NUM_RETRIEVED
    ranked: int | None = None

    def __post_init__(self) -> None:
        for name in ("retrieved", "ranked"):
            value = getattr(self, name)
            if name == "ranked" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise BadInput(f"num_{name}={shown(value)} must be at least 1, and a whole number.")
        if self.ranked is not None and self.ranked > self.retrieved:
            raise BadInput(
                f"num_ranked={self.ranked} must not be above num_retrieved={self.retrieved}: what "
                "is not retrieved cannot be ranked."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One item for one person.

    Attributes:
        item_id: the item.
        title: the item in words.
        score: log p(item next) up to a constant + w · log p(positive action), mixed with policy
            where the request asked for it; higher is better.
        probabilities: of each action, if the item is shown, calibrated; they sum to 1.
        retrieval_score: the inner product of person and item vector: log p(item next) up to a
            constant of the request.
        retrieval_rank: place among what retrieval returned, from 1; None for a given candidate.
        grades: probability of each policy grade, worst first, as the model says it; empty where the
            task has none.
    """

    item_id: str
    title: str
    score: float
    probabilities: dict[str, float]
    retrieval_score: float
    retrieval_rank: int | None
    grades: dict[str, float] = field(default_factory=dict)

    @property
    def policy(self) -> float | None:
        """The expected grade as a share of the best, in [0, 1]; None where there are no grades."""
        if not self.grades:
            return None
        share_G = np.array(list(self.grades.values()))
        return float(share_G @ np.linspace(0, 1, len(share_G)))


def admitted_items(
    now: Served,
    task: int,
    *,
    where: str | Where | None = None,
    constraints: Sequence[Constraint] = (),
    candidates: Sequence[str] | None = None,
) -> Admitted:
    """What may be in the answer to a request, as far as that is said by columns.

    It is asked before a turn is taken: who wrote a filter wrong keeps nobody waiting.

    Args:
        now: what is served.
        task: index of the task.
        where: only items like this.
        constraints: what they never show is left out.
        candidates: what is to be ranked, which may be of another kind than the task ranks; None
            for what retrieval finds.

    Raises:
        BadInput: `where` or a constraint is none, or does not fit the items.
    """
    asked = task if candidates is None else None
    return now.admitted(asked, ruled(parsed(where), constraints))


def answer(
    now: Served,
    prefix_cache: PrefixCache,
    prefix: Rows,
    *,
    task: int,
    seen: Sequence[str],
    k: int,
    cascade: Cascade,
    admitted: Admitted,
    candidates: Sequence[str] | None = None,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    blend: float | None = None,
    constraints: Sequence[Constraint] = (),
) -> list[Prediction]:
    """The `k` best items for one prefix; see `Recommender.predict_next_actions`.

    Args:
        now: what is served.
        prefix_cache: where readings are kept.
        prefix: one row.
        task: index of the task.
        seen: item ids that are left out.
        k: items wanted.
        cascade: how many are retrieved and ranked for them.
        admitted: what the request's filter and its constraints let through; see `admitted_items`.
        candidates: item ids to rank; retrieved when left out.
        allow: only these item ids.
        deny: none of these item ids.
        blend: how much policy counts; clicks alone when left out.
        constraints: what may stand beside what, one after the other.

    Raises:
        BadInput: `k` is below 1, an id is unknown, a constraint does not fit the items, or `blend`
            does not fit the task.
    """
    if not isinstance(k, Integral) or k < 1:
        raise BadInput(f"k={shown(k)} must be at least 1, and a whole number.")
    _check_blend(now, task, blend)
    if dropped := int(prefix.num_dropped_events[0]):
        say_cut(now.book.prompter.config.max_prompt_tokens)
        logger.debug("the oldest %s events of the history are left out", f"{dropped:,}")
    allow, deny, candidates = (
        None if ids is None else checked_ids(now, name, ids)
        for name, ids in (("allow", allow), ("deny", deny), ("candidates", candidates))
    )
    # Read once: retrieval takes the person vector from it, ranking the rest.
    person = prefix_cache.read(now.foundation, prefix)
    order: dict[str, Any] = {"task": task, "k": k, "blend": blend, "constraints": constraints}
    refused = set(deny or ()) | set(seen)
    if candidates is not None:
        allowed = None if allow is None else set(allow)
        rows = [
            now.interactions.item_row(item)
            for item in dict.fromkeys(candidates)
            if item not in refused and (allowed is None or item in allowed)
        ]
        rows_C = np.array(rows, np.int64)
        rows_C = rows_C[admitted.items_I[rows_C]]
        scores_C = now.item_vectors_IV[rows_C] @ person.vector_V
        ranks: Sequence[int | None] = [None] * len(rows_C)
        return _ranked(now, person, rows_C, scores_C, ranks, **order)
    filters: dict[str, Any] = {"deny": sorted(refused)} if refused else {}
    if allow is not None:
        filters["allow"] = [
            item for item in allow if admitted.items_I[now.interactions.item_row(item)]
        ]
    elif admitted.chosen_R is not None:
        filters["allow"] = admitted.chosen_R
    elif admitted.other_R is not None:
        filters["deny"] = now.passed_over(admitted.other_R, refused)
    most = min(max(cascade.retrieved, int(k)), now.interactions.num_items)
    rows_C, scores_C = now.nearest(person.vector_V, most, **filters)
    place_C = np.arange(len(rows_C))
    if cascade.ranked is not None:
        # Where the index holds less than whole vectors, its order is not theirs.
        nearest_C = np.argsort(-scores_C, kind="stable")
        place_C = np.sort(nearest_C[: max(cascade.ranked, int(k))])
    ranks = (place_C + 1).tolist()
    return _ranked(now, person, rows_C[place_C], scores_C[place_C], ranks, **order)


@cache
def say_cut(max_prompt_tokens: int) -> None:
    """Say that prompts have no room for whole histories, once for each size of prompts."""
    logger.info(
        "a history does not fit into a prompt of %s tokens: its oldest events are left out. "
        "Recommender.load(max_prompt_tokens=...) tells more of them. This is said once.",
        f"{max_prompt_tokens:,}",
    )


def retrieve(
    now: Served, person: PrefixReading, open_I: NDArray[np.bool_], *, k: int, is_filtered: bool
) -> NDArray[np.int64]:
    """Rows of the catalogue that the index holds nearest to a person, the nearest first.

    Args:
        now: what is served.
        person: who asks.
        open_I: bool [I], the items that may be found.
        k: how many are wanted in the end; no fewer are retrieved than for every request.
        is_filtered: whether a filter chose them, which search holds to exactly; else the others
            are passed over.
    """
    most = min(max(NUM_RETRIEVED, int(k)), now.interactions.num_items)
    open_R = open_I[now.row_of_index] & (now.row_of_index >= 0)
    filters = {"allow": open_R} if is_filtered else {"deny": ~open_R}
    rows_C, _ = now.nearest(person.vector_V, most, **filters)
    return rows_C


def rank(
    now: Served,
    person: PrefixReading,
    rows_C: NDArray[np.int64],
    *,
    task: int,
    bonus_I: NDArray[np.float32],
) -> list[Prediction]:
    """Candidates by the full score and a bonus, the best first.

    Args:
        now: what is served.
        person: who asks.
        rows_C: int64 [C], rows of the catalogue.
        task: index of the task.
        bonus_I: float32 [I], added to each item's score, in nats.
    """
    scores_C = now.item_vectors_IV[rows_C] @ person.vector_V
    nowhere: list[int | None] = [None] * len(rows_C)
    bonus_C = bonus_I[rows_C]
    return _ranked(
        now, person, rows_C, scores_C, nowhere, task=task, k=len(rows_C), bonus_C=bonus_C
    )


def _ranked(
    now: Served,
    person: PrefixReading,
    rows_C: NDArray[np.int64],
    retrieval_C: NDArray[np.float32],
    ranks: Sequence[int | None],
    *,
    task: int,
    k: int,
    bonus_C: NDArray[np.float32] | None = None,
    blend: float | None = None,
    constraints: Sequence[Constraint] = (),
) -> list[Prediction]:
    asked = now.book.prompter.tasks[task]
    said = now.foundation.score_both(person, rows_C, task=task)
    log_probs_CA = now.foundation.calibration(task)(said.action_CA)
    total_C = retrieval_C + now.foundation.rank_weight(task) * log_positive(
        log_probs_CA, np.array(asked.is_positive)
    )
    if bonus_C is not None:
        total_C = total_C + bonus_C
    if blend:
        # A share of nothing is left out: policy alone knows no click, be it ever so unlikely.
        policy_C = blend * log_policy(said.grade_CG)
        total_C = policy_C if blend == 1 else (1 - blend) * total_C + policy_C
    best = np.argsort(-total_C, kind="stable")
    for constraint in constraints:
        best = best[constraint.order(rows_C[best], now)]
    best = best[:k]
    titles = now.titles(rows_C[best])
    return [
        Prediction(
            item_id=now.interactions.item_ids[rows_C[place]],
            title=title,
            score=float(total_C[place]),
            probabilities={
                action: float(p)
                for action, p in zip(asked.actions, np.exp(log_probs_CA[place]), strict=True)
            },
            retrieval_score=float(retrieval_C[place]),
            retrieval_rank=ranks[place],
            grades={
                grade: float(p)
                for grade, p in zip(asked.grades, np.exp(said.grade_CG[place]), strict=True)
            },
        )
        for place, title in zip(best.tolist(), titles, strict=True)
    ]


def _check_blend(now: Served, task: int, blend: float | None) -> None:
    if blend is None:
        return
    name, grades = (getattr(now.book.prompter.tasks[task], part) for part in ("name", "grades"))
    if not grades:
        raise BadInput(
            f"blend={shown(blend)} mixes in policy, but task {name!r} has no grades; leave it out, "
            "or train a model with Task.grades."
        )
    if isinstance(blend, bool) or not isinstance(blend, Real) or not 0 <= blend <= 1:
        raise BadInput(
            f"blend={shown(blend)} must be a number in [0, 1]: 0 is clicks alone, 1 policy alone."
        )


def task_of(now: Served, name: str | None) -> int:
    """The index of the task of that name; the first of the model for None."""
    return 0 if name is None else now.book.prompter.task_index(name)


def event_items(now: Served, start: int, end: int) -> list[str]:
    """Ids of the items of events `start` to `end` of the log."""
    log = now.interactions
    return [log.item_ids[item] for item in log.event_item[start:end].tolist()]


def parsed(where: str | Where | None) -> Where | None:
    """A filter that was written, read; any other as it is.

    Raises:
        BadInput: it is none.
    """
    if isinstance(where, str):
        return parse_where(where)
    if where is not None:
        check_where(where)
    return where


def checked_ids(now: Served, name: str, ids: Iterable[str]) -> list[str]:
    """Ids of the catalogue as a list, whatever they stand in: an array has no truth.

    Raises:
        BadInput: it is a text or no list, or one of the ids is unknown; `name` says in which
            argument.
    """
    if isinstance(ids, str):
        raise BadInput(f"{name}={ids!r} is a text; give a list of item ids.")
    if isinstance(ids, Mapping) or not isinstance(ids, Iterable):
        raise BadInput(f"{name}={shown(ids)} must be a list of item ids.")
    listed = list(ids)
    for item in listed:
        try:
            now.interactions.item_row(item)
        except ValueError as error:
            raise BadInput(f"{name}: {error}") from None
    return listed
