"""What validation decides of a trained model: its calibration, the weight `w`, its best weights.

`w` of the ranking formula (`decant.answering`) is how much calibrated actions count beside what is
next.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from decant.measure import Asked, Reranked, rerank
from decant.recommender import Recommender, build_index
from decant.run_data import sample_targets
from foundation import Foundation
from foundation.calibration import fit_calibration
from foundation.evaluation import auc, ndcg
from foundation.predictions import (
    Predictions,
    action_labels,
    positive_actions,
    predict_targets,
    read_pairs,
)
from promptify.assembly import PromptBook
from promptify.splits import Targets, slate_events

logger = logging.getLogger(__name__)

RANK_WEIGHTS = (0.0, *(2.0**power for power in range(-4, 4)))
"""What `w` of the ranking formula is chosen from."""
NUM_WATCHED_REQUESTS = 500
"""Validation requests that are measured while training."""


def watch(foundation: Foundation, book: PromptBook, valid: Targets) -> dict[str, float]:
    """NDCG@10 and AUC on some validation requests, for the training curves."""
    some = sample_targets(valid, NUM_WATCHED_REQUESTS)
    asked = Asked(book, some)
    answers = asked.of(predict_targets(foundation, book, some))
    found = {}
    if answers.rank is not None and len(answers.rank):
        found["ndcg@10"] = float(ndcg(answers.rank, 10).mean())
    if answers.action_probability is not None:
        found["auc"] = auc(answers.action_positive, answers.action_probability)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def fit_on_validation(
    foundation: Foundation,
    book: PromptBook,
    valid: Targets,
    *,
    task: int,
    requests: int,
    predict: Callable[..., Predictions] | None = None,
) -> None:
    """Set a task's calibration, then its `w`, which weighs calibrated probabilities.

    A task without validation targets keeps what it has.

    Args:
        foundation: changed in place.
        book: pieces of the interactions.
        valid: held-out slates.
        task: index of the task.
        requests: that `w` is chosen on, at most; 0 leaves `w` as it is.
        predict: a `predict_targets` that remembers what it read, for whom else asks; without one
            nobody is ranked whom `w` is not chosen on.
    """
    log = book.interactions
    surface_n = np.array(log.surfaces)[log.event_surface[valid.first_event]]
    mine = valid[surface_n == book.prompter.tasks[task].name]
    if len(mine) == 0:
        return
    asks_all, rank = requests >= len(mine), None
    if predict is None and not asks_all:
        said = _actions(foundation, book, mine, task=task)
    else:
        found = (predict or predict_targets)(foundation, book, mine, task=task)
        said = (found.action_log_probs, found.action_label, found.action_user)
        rank = found.rank if asks_all else None
    calibration = fit_calibration(*said)
    tasks = range(len(book.prompter.tasks))
    calibrations = [calibration if t == task else foundation.calibration(t) for t in tasks]
    foundation.settings = replace(foundation.settings, calibration=tuple(calibrations))
    if requests:
        some = sample_targets(mine, requests)
        weight = fit_rank_weight(foundation, book, some, task=task, ranked=rank)
        weights = [weight if t == task else foundation.rank_weight(t) for t in tasks]
        foundation.settings = replace(foundation.settings, rank_weight=tuple(weights))
    logger.info(
        "%s: calibration %s, w=%g",
        book.prompter.tasks[task].name,
        calibration.method,
        foundation.rank_weight(task),
    )


def _actions(
    foundation: Foundation, book: PromptBook, targets: Targets, *, task: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Of each event of the slates: log-probabilities, the action taken, and whose it is."""
    event = slate_events(targets)
    request = np.repeat(np.arange(len(targets)), targets.last_event - targets.first_event)
    items = book.interactions.event_item[event]
    rows = book.prefixes(targets, task=task)
    _, log_probs_eA = read_pairs(foundation, rows, request, items, task=task)
    label_e = action_labels(book, event, task=task)
    return log_probs_eA, label_e, targets.user[request].astype(np.int64)


def fit_rank_weight(
    foundation: Foundation,
    book: PromptBook,
    valid: Targets,
    *,
    task: int = 0,
    ranked: NDArray[np.int64] | None = None,
) -> float:
    """The `w` that ranks best, on validation, what was acted on well; 0 where nothing was.

    Args:
        foundation: calibrated already, so that `w` weighs what a request does.
        book: pieces of the interactions.
        valid: held-out slates of the task.
        task: index of the task.
        ranked: int64 [m], the rank of each target by p(item next), where it is known.
    """
    asked = Asked(book, valid, task=task)
    # `w` puts good items first: a film that was seen and disliked does not speak for it.
    good = positive_actions(book, task)[book.interactions.event_action[asked.wanted.event]]
    if not good.any():
        return 0.0
    recommender = Recommender(foundation, build_index(foundation, model_hash="unsaved"), book)
    if ranked is None:
        ranked = predict_targets(foundation, book, valid, task=task).rank
    return best_rank_weight(rerank(recommender, asked), ranked, good)


def best_rank_weight(
    reranked: Reranked, rank: NDArray[np.int64], counts: NDArray[np.bool_]
) -> float:
    """The `w` of `RANK_WEIGHTS` with the best mean NDCG@10; the smallest of equals.

    Args:
        reranked: what the ranker said of what retrieval found.
        rank: int64 [m], of each target by retrieval alone.
        counts: bool [m], the targets that are looked at; at least one.
    """
    quality = [float(ndcg(reranked.ranks(w, rank)[counts], 10).mean()) for w in RANK_WEIGHTS]
    best = RANK_WEIGHTS[int(np.argmax(quality))]
    logger.info("w=%g: NDCG@10 %.4f on validation, %.4f with w=0", best, max(quality), quality[0])
    return best
