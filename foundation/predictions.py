"""What a foundation says of held-out slates: target items' ranks, and actions' probabilities.

    predictions = predict_targets(foundation, book, split.test, task=0)
    rank_metrics(predictions.rank)["ndcg@10"]

Legend: n requests, m ranking targets, e scored events, I items, A actions of the task, K retrieved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.evaluation import rank_of_targets, seen_items
from foundation.pair_reading import pair_states
from foundation.scoring import Scores
from promptify.rows import Rows
from promptify.splits import seen_in_history, slate_events

if TYPE_CHECKING:
    from foundation.model import Foundation
    from promptify.assembly import PromptBook
    from promptify.splits import Targets

# Scores of this many requests × items are held at once (float32: 64 MiB).
MAX_SCORES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingTargets:
    """The items a system should have put first.

    Attributes:
        request: int64 [m], which request each belongs to.
        item: int64 [m], the item that was next.
        event: int64 [m], its row of `events`.
        num_unserved: how many more there would be, were their items of the kind that the task
            ranks.
        num_seen: how many more there would be, were their items not in the history, whose items
            no request is answered with.
    """

    request: NDArray[np.int64]
    item: NDArray[np.int64]
    event: NDArray[np.int64]
    num_unserved: int
    num_seen: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """A system's answers to the requests of a split.

    Attributes:
        user: int64 [m], whose target it is.
        rank: int64 [m], of the target in the full catalogue without seen items; 1 is the top.
        action_user: int64 [e], whose event it is.
        action_label: int64 [e], the action taken, an index into the task's actions.
        action_log_probs: float32 [e, A], in nats.
    """

    user: NDArray[np.int64]
    rank: NDArray[np.int64]
    action_user: NDArray[np.int64]
    action_label: NDArray[np.int64]
    action_log_probs: NDArray[np.float32]


def ranking_targets(book: "PromptBook", targets: "Targets", *, task: int) -> RankingTargets:
    """The items to be ranked first.

    Of a slate, those that were acted on well. An event that stands alone is one whatever its label,
    unless the task's person vectors predict positive events only. One on an item of another kind
    than the task ranks is none: no system could put it anywhere. Nor is one on an item of the
    history: seen items are left out of what is ranked, so that a target among them would be known
    by being there.

    Args:
        book: its interactions hold the events.
        targets: held-out slates, with all of their history that is left out of the ranking.
        task: index of the task.
    """
    log = book.interactions
    counts = targets.last_event - targets.first_event
    request, event = np.repeat(np.arange(len(targets)), counts), slate_events(targets)
    wanted = positive_actions(book, task)[log.event_action[event]]
    if book.prompter.tasks[task].next_target == "any":
        wanted |= (counts == 1)[request]
    served = wanted & served_items(book, task)[log.event_item[event]]
    ranked = served & ~seen_in_history(log, targets)
    return RankingTargets(
        request=request[ranked].astype(np.int64),
        item=log.event_item[event[ranked]].astype(np.int64),
        event=event[ranked].astype(np.int64),
        num_unserved=int(wanted.sum() - served.sum()),
        num_seen=int(served.sum() - ranked.sum()),
    )


def positive_actions(book: "PromptBook", task: int) -> NDArray[np.bool_]:
    """Which of the interactions' actions count as good for a task, bool [number of actions]."""
    wanted = book.prompter.tasks[task].positive
    return np.array([action in wanted for action in book.interactions.actions])


def action_labels(book: "PromptBook", event: NDArray[np.int64], *, task: int) -> NDArray[np.int64]:
    """The action taken at events of the log, int64 [e], an index into the task's; else −1."""
    names, log = book.prompter.tasks[task].actions, book.interactions
    index = [names.index(action) if action in names else -1 for action in log.actions]
    return np.array(index, dtype=np.int64)[log.event_action[event]]


def log_positive(
    log_probs_CA: NDArray[np.float32], is_positive_A: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Log of the summed probability of the positive actions, float32 [C], in nats."""
    total: NDArray[np.float32] = np.logaddexp.reduce(log_probs_CA[:, is_positive_A], axis=1)
    return total


def log_policy(log_probs_CG: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log of the expected grade as a share of the best, float32 [C]: what policy is ranked by.

    Args:
        log_probs_CG: of the grades, worst first, in nats.
    """
    value_G = np.linspace(0, 1, log_probs_CG.shape[1], dtype=np.float32)
    total: NDArray[np.float32] = np.logaddexp.reduce(
        log_probs_CG[:, 1:] + np.log(value_G[1:]), axis=1
    )
    return total


def tie_order(item_ids: tuple[str, ...]) -> NDArray[np.int64]:
    """The place of each item when ids are sorted, int64 [I]: breaks ties in nobody's favour."""
    order = np.empty(len(item_ids), dtype=np.int64)
    # Not as an array of texts, each of which takes as much as the longest.
    order[sorted(range(len(item_ids)), key=item_ids.__getitem__)] = np.arange(len(item_ids))
    return order


def predict_targets(
    foundation: "Foundation",
    book: "PromptBook",
    targets: "Targets",
    *,
    task: int = 0,
    full_history: "Targets | None" = None,
    rows: Rows | None = None,
    progress: bool = False,
) -> Predictions:
    """Rank the whole catalogue by p(item next), and read the actions of every event of the slates.

    Args:
        foundation: the model.
        book: pieces of the interactions.
        targets: held-out slates, one request each.
        task: index of the task.
        full_history: the same targets before their history was cut: seen items are filtered by all
            of it, so that a cut says nothing about warmth.
        rows: prefixes of the targets that tell something else of their histories than `book` does.
        progress: show bars.
    """
    interactions = book.interactions
    rows = book.prefixes(targets, task=task) if rows is None else rows
    seen = targets if full_history is None else full_history
    wanted = ranking_targets(book, seen, task=task)
    event = slate_events(targets)
    request = np.repeat(np.arange(len(targets)), targets.last_event - targets.first_event)
    vectors_eV, log_probs = read_pairs(
        foundation, rows, request, interactions.event_item[event], task=task, progress=progress
    )
    # Every request has an event, and what is read of the person is the same in front of each.
    vectors_nV = vectors_eV[np.searchsorted(request, np.arange(len(targets)))]
    items_VI = foundation.embed_items().T
    rank = rank_catalogue(
        lambda start, stop: vectors_nV[start:stop] @ items_VI,
        wanted,
        book,
        seen=seen,
        task=task,
    )
    return Predictions(
        user=np.asarray(targets.user, dtype=np.int64)[wanted.request],
        rank=rank,
        action_user=np.asarray(targets.user, dtype=np.int64)[request],
        action_label=action_labels(book, event, task=task),
        action_log_probs=log_probs,
    )


def rank_catalogue(
    score_requests: Callable[[int, int], NDArray[np.floating[Any]]],
    wanted: RankingTargets,
    book: "PromptBook",
    *,
    seen: "Targets",
    task: int,
) -> NDArray[np.int64]:
    """Rank of each target among the items its task serves, int64 [m].

    Args:
        score_requests: called with the first request and the one past the last; float [n, I].
        wanted: the targets.
        book: its interactions hold the catalogue.
        seen: histories whose items are left out of the ranking.
        task: index of the task.
    """
    log = book.interactions
    rank = np.zeros(len(wanted.item), dtype=np.int64)
    unserved_I = ~served_items(book, task)
    order = tie_order(log.item_ids)
    step = max(1, MAX_SCORES // log.num_items)
    for start in range(0, len(seen), step):
        stop = min(start + step, len(seen))
        here = np.flatnonzero((wanted.request >= start) & (wanted.request < stop))
        scores = np.array(score_requests(start, stop))
        scores[:, unserved_I] = -np.inf
        rank[here] = rank_of_targets(
            scores,
            wanted.item[here],
            request=wanted.request[here] - start,
            exclude=seen_items(
                log.event_item, seen.history_start[start:stop], seen.history_end[start:stop]
            ),
            tie_order=order,
        )
    return rank


def served_items(book: "PromptBook", task: int) -> NDArray[np.bool_]:
    """Which items are of the kind that a task ranks, bool [I]."""
    item_kind = book.prompter.tasks[task].item_kind
    served: NDArray[np.bool_] = book.interactions.item_kinds == item_kind
    return served


@torch.no_grad()
def read_pairs(
    foundation: "Foundation",
    rows: Rows,
    request: NDArray[np.int64],
    items: NDArray[np.int32],
    *,
    task: int,
    max_positions: int | None = None,
    progress: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read an item after a prefix, for many pairs at once: the person before it, the action at it.

    The same numbers as `Foundation.embed_users` and `Foundation.score`, for many people with few
    candidates each; see `foundation.pair_reading`.

    Args:
        foundation: the model.
        rows: prefixes [n].
        request: int64 [e], the prefix of each pair.
        items: int [e], its item, a row of the catalogue.
        task: index of the task.
        max_positions: padded positions read at once; what suits the device when left out.
        progress: show a bar.

    Returns:
        Person vectors float32 [e, V], and action log-probabilities float32 [e, A], in nats.
    """
    actions = foundation.prompter.task_label_index(task)
    log_probs_eA = np.zeros((len(request), len(actions)), dtype=np.float32)
    vectors_eV = np.zeros((len(request), foundation.settings.vector_dim), dtype=np.float32)
    for pair_B, arrow_BD, before_BD in pair_states(
        foundation, rows, request, items, max_positions=max_positions, progress=progress
    ):
        task_B = torch.full((len(pair_B),), task, device=foundation.device)
        log_probs = foundation.action_log_probs(arrow_BD, task_B)
        log_probs_eA[pair_B] = log_probs[:, actions].cpu().numpy()
        vectors_eV[pair_B] = foundation.person_head(before_BD).float().cpu().numpy()
    return vectors_eV, log_probs_eA


@torch.no_grad()
def read_scores(
    foundation: "Foundation",
    rows: Rows,
    request: NDArray[np.int64],
    items: NDArray[np.integer[Any]],
    *,
    task: int,
    max_positions: int | None = None,
    progress: bool = False,
) -> Scores:
    """Actions and grades of many pairs at once; see `read_pairs`.

    The same numbers as `Foundation.score_both`, for many people with few candidates each.

    Args:
        foundation: the model.
        rows: prefixes [n].
        request: int64 [e], the prefix of each pair.
        items: int [e], its item, a row of the catalogue.
        task: index of the task.
        max_positions: padded positions read at once; what suits the device when left out.
        progress: show a bar.
    """
    prompter = foundation.prompter
    actions, grades = prompter.task_label_index(task), prompter.task_grade_index(task)
    action_eA = np.zeros((len(request), len(actions)), dtype=np.float32)
    grade_eG = np.zeros((len(request), len(grades)), dtype=np.float32)
    for pair_B, arrow_BD, _ in pair_states(
        foundation, rows, request, items, max_positions=max_positions, progress=progress
    ):
        task_B = torch.full((len(pair_B),), task, device=foundation.device)
        said = foundation.action_log_probs(arrow_BD, task_B)
        action_eA[pair_B] = said[:, actions].cpu().numpy()
        grade_eG[pair_B] = foundation.grade_log_probs(arrow_BD, task_B)[:, grades].cpu().numpy()
    return Scores(action_CA=action_eA, grade_CG=grade_eG)
