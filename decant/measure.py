"""Measure the models of a run on its held-out targets, beside what any of them has to beat.

Legend: n requests, m ranking targets, e scored events, I items, A actions, K retrieved items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from decant.answering import NUM_RETRIEVED
from decant.recommender import Recommender
from distill.gate import Measurements
from foundation.batches import take_rows
from foundation.evaluation import (
    Interval,
    ItemNeighbours,
    auc_of_users,
    bootstrap_interval,
    bootstrap_users,
    expected_calibration_error,
    hit_rate,
    log_loss,
    ndcg,
    popularity,
    reliability,
)
from foundation.predictions import (
    Predictions,
    log_policy,
    log_positive,
    rank_catalogue,
    ranking_targets,
    served_items,
)
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.sources import Oracle
from promptify.splits import Targets, slate_events

Calibrate = Callable[[NDArray[np.float32]], NDArray[np.float32]]
SliceScores = Callable[[int, int], NDArray[np.floating[Any]]]
"""Scores of all items for the requests from one to another, float [n, I]."""
NeighbourKind = Literal["last_item", "last_item_transitions", "item_knn"]
NEIGHBOURS: tuple[NeighbourKind, ...] = get_args(NeighbourKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityCurve:
    """What was said against what happened, in bins of equally many events.

    Attributes:
        calibrated: whether it is what is served, or what the model said before calibration.
        said: mean probability in each bin, rising.
        happened: share of good actions in each bin.
        num_events: in each bin.
    """

    calibrated: bool
    said: list[float]
    happened: list[float]
    num_events: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one system said of the test targets; parts that it cannot say are None.

    Attributes:
        user: int64 [m], whose ranking target it is.
        rank: int64 [m]; None for a system that ranks nothing.
        is_positive_target: bool [m], whether the target was acted on well.
        action_user: int64 [e].
        action_positive: bool [e], whether the action was a good one.
        action_probability: float64 [e], of a good action, as served; None for a system that says
            none.
        uncalibrated_probability: float64 [e], the same before calibration; None for a system that
            is not calibrated.
    """

    user: NDArray[np.int64]
    rank: NDArray[np.int64] | None
    is_positive_target: NDArray[np.bool_]
    action_user: NDArray[np.int64]
    action_positive: NDArray[np.bool_]
    action_probability: NDArray[np.float64] | None
    uncalibrated_probability: NDArray[np.float64] | None = None

    def metrics(self) -> dict[str, tuple[Interval, int]]:
        """Each metric with its 95 % interval over users and the number of targets behind it.

        Both ends are the value itself where there is no interval to be had: a calibration error,
        a log loss, or too few people for a bootstrap.
        """
        found: dict[str, tuple[Interval, int]] = {}
        if self.rank is not None and len(self.rank):
            for name, values in (
                ("hr@10", hit_rate(self.rank, 10)),
                ("ndcg@10", ndcg(self.rank, 10)),
            ):
                found[name] = _finite(bootstrap_interval(values, self.user)), len(values)
        if self.action_probability is not None and len(np.unique(self.action_positive)) == 2:
            users, row = np.unique(self.action_user, return_inverse=True)
            statistic = auc_of_users(self.action_positive, self.action_probability, row, len(users))
            interval = bootstrap_users(
                statistic, len(users), numbers_per_draw=len(self.action_probability)
            )
            found["auc"] = _finite(interval), len(self.action_positive)
            for suffix, said in (
                ("", self.action_probability),
                ("_uncalibrated", self.uncalibrated_probability),
            ):
                if said is not None:
                    error = expected_calibration_error(self.action_positive, said)
                    lost = log_loss(
                        self.action_positive.astype(int), np.stack([1 - said, said], axis=1)
                    )
                    for name, value in (("ece", error), ("log_loss", lost)):
                        interval = Interval(value=value, low=value, high=value)
                        found[name + suffix] = interval, len(said)
        return found

    def reliability(self) -> list[ReliabilityCurve]:
        """What was said against what happened, as served and before calibration.

        Empty for a system that says no probabilities.
        """
        curves = []
        for calibrated, probability in (
            (True, self.action_probability),
            (False, self.uncalibrated_probability),
        ):
            if probability is not None:
                said, happened, counts = reliability(self.action_positive, probability)
                curves.append(
                    ReliabilityCurve(
                        calibrated=calibrated,
                        said=said.tolist(),
                        happened=happened.tolist(),
                        num_events=counts.tolist(),
                    )
                )
        return curves

    def positive_targets(self) -> "Answers":
        """The same answers, ranking only the targets that were acted on well."""
        keep = self.is_positive_target
        return Answers(
            user=self.user[keep],
            rank=None if self.rank is None else self.rank[keep],
            is_positive_target=keep[keep],
            action_user=self.action_user,
            action_positive=self.action_positive,
            action_probability=None,
        )

    def for_gate(self, *, taken_ms: NDArray[np.float64] | None = None) -> Measurements:
        """What the gate looks at.

        Args:
            taken_ms: float64 [n], milliseconds of each request that was timed.
        """
        return Measurements(
            target_user=self.user,
            target_ndcg=None if self.rank is None else ndcg(self.rank, 10),
            event_user=self.action_user,
            event_label=self.action_positive,
            event_probability=self.action_probability,
            event_score=self.uncalibrated_probability,
            latency_ms=None if taken_ms is None else float(np.median(taken_ms)),
            p99_ms=None if taken_ms is None else float(np.quantile(taken_ms, 0.99)),
        )


def _finite(interval: Interval) -> Interval:
    """The interval, or the value alone where the bootstrap could say nothing."""
    if np.isfinite([interval.low, interval.high]).all():
        return interval
    return Interval(value=interval.value, low=interval.value, high=interval.value)


class Asked:
    """The requests that every system answers.

    Args:
        book: pieces of the interactions.
        targets: the requests.
        task: index of the task.
        seen: the requests with all that is known to have been seen, whose items are not ranked;
            None for `targets`, where no history was cut.
    """

    def __init__(
        self, book: PromptBook, targets: Targets, *, task: int = 0, seen: Targets | None = None
    ) -> None:
        self.book = book
        self.targets = targets
        self.task = task
        self.seen = targets if seen is None else seen
        self.wanted = ranking_targets(book, self.seen, task=task)
        self.event = slate_events(targets)

    def answers(
        self,
        rank: NDArray[np.int64] | None,
        probability: NDArray[np.float64] | None,
        *,
        uncalibrated: NDArray[np.float64] | None = None,
    ) -> Answers:
        """Answers to these requests.

        Args:
            rank: int64 [m], of each of `wanted`.
            probability: float64 [e], of a good action on each of `event`.
            uncalibrated: float64 [e], the same before calibration.
        """
        log, task = self.book.interactions, self.book.prompter.tasks[self.task]
        good = np.array([action in task.positive for action in log.actions])
        wanted, event = self.wanted, self.event
        return Answers(
            user=self.targets.user[wanted.request].astype(np.int64),
            rank=rank,
            is_positive_target=good[log.event_action[wanted.event]],
            action_user=log.event_user[event].astype(np.int64),
            action_positive=good[log.event_action[event]],
            action_probability=probability,
            uncalibrated_probability=uncalibrated,
        )

    def of(self, predictions: Predictions, calibrate: Calibrate | None = None) -> Answers:
        """Answers of a foundation.

        Args:
            predictions: what it says.
            calibrate: what makes float32 [e, A] log-probabilities what is served:
                `Foundation.calibration` of the task; None where what the model says is.
        """
        good_A = np.array(self.book.prompter.tasks[self.task].is_positive)

        def probability_of_good(log_probs_eA: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.minimum(np.exp(log_positive(log_probs_eA, good_A).astype(np.float64)), 1)

        said_eA = predictions.action_log_probs
        said = probability_of_good(said_eA)
        if calibrate is None:
            return self.answers(predictions.rank, said)
        served = probability_of_good(calibrate(said_eA))
        return self.answers(predictions.rank, served, uncalibrated=said)

    def ranks_by(self, score_requests: SliceScores) -> NDArray[np.int64]:
        """Rank of each target by scores made a slice of requests at a time, int64 [m]."""
        return rank_catalogue(
            score_requests, self.wanted, self.book, seen=self.seen, task=self.task
        )


def popularity_answers(asked: Asked, train: NDArray[np.bool_]) -> Answers:
    """Items by how often they were trained on; actions by the item's share of good ones.

    Args:
        asked: the requests.
        train: bool [E], the training events.
    """
    log = asked.book.interactions
    task = asked.book.prompter.tasks[asked.task]
    train = train & (log.event_surface == log.surfaces.index(task.name))
    train_item = log.event_item[train]
    count_I = popularity(train_item, log.num_items)
    good = np.array([action in task.positive for action in log.actions])
    good_event = good[log.event_action[train]]
    good_I = np.bincount(train_item, weights=good_event, minlength=log.num_items)
    # One imagined event at the overall rate, so that an unseen item has it.
    rate_I = (good_I + good_event.mean()) / (count_I + 1)
    rank = asked.ranks_by(lambda start, stop: np.tile(count_I, (stop - start, 1)))
    return asked.answers(rank, rate_I[log.event_item[asked.event]])


def neighbour_scores(
    log: Interactions, train: NDArray[np.bool_], kind: NeighbourKind
) -> Callable[[Targets], SliceScores]:
    """Scores of items near those of a history, a slice of requests at a time.

    Args:
        log: the interactions.
        train: bool [E], the training events.
        kind: ``last_item``, by cosine of the people who have both it and the newest item;
            ``last_item_transitions``, by what came soon after the newest item, a first-order Markov
            chain; ``item_knn``, by cosine to all items of the history, summed.
    """
    fit = ItemNeighbours.fit if kind == "last_item_transitions" else ItemNeighbours.fit_cosine
    fitted = fit(log.event_user[train], log.event_item[train], log.num_items)

    def of_requests(targets: Targets) -> SliceScores:
        if kind != "item_knn":
            targets = targets.cut(1)
        counts = targets.history_end - targets.history_start

        def scores(start: int, stop: int) -> NDArray[np.float32]:
            offsets = np.append(0, np.cumsum(counts[start:stop]))
            # A history lies in one piece: the shift from a place in these to one in the log.
            shift = np.repeat(targets.history_start[start:stop] - offsets[:-1], np.diff(offsets))
            return fitted.score(log.event_item[np.arange(offsets[-1]) + shift], offsets)

        return scores

    return of_requests


def neighbour_answers(asked: Asked, train: NDArray[np.bool_], kind: NeighbourKind) -> Answers:
    """Items near those of the history; see `neighbour_scores`."""
    scores = neighbour_scores(asked.book.interactions, train, kind)(asked.targets)
    return asked.answers(asked.ranks_by(scores), None)


def oracle_answers(asked: Asked, oracle: Oracle) -> Answers:
    """The generator's own probabilities: what no model can beat but by luck."""
    task = asked.book.prompter.tasks[asked.task]
    rank = asked.ranks_by(
        lambda start, stop: oracle.next_item_scores(asked.targets[np.arange(start, stop)])
    )
    probabilities_eA = oracle.action_probabilities(asked.event)
    good_A = np.array(task.is_positive)
    return asked.answers(rank, probabilities_eA[:, good_A].sum(1).astype(np.float64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reranked:
    """What the ranker said of the items that retrieval found.

    Attributes:
        item_nK: int64 [n, K], rows of `items`, −1 where nothing was found.
        retrieval_nK: float32 [n, K], inner products, −inf where nothing was found.
        log_positive_nK: float32 [n, K], log probability of a good action, calibrated.
        target_place: int64 [m], the target's place among the retrieved, from 0; −1 where it is not.
        request: int64 [m], the request of each target.
        log_policy_nK: float32 [n, K], log of the expected grade as a share of the best; None where
            the task has no grades.
    """

    item_nK: NDArray[np.int64]
    retrieval_nK: NDArray[np.float32]
    log_positive_nK: NDArray[np.float32]
    target_place: NDArray[np.int64]
    request: NDArray[np.int64]
    log_policy_nK: NDArray[np.float32] | None = None

    def scores(self, weight: float, *, blend: float = 0.0) -> NDArray[np.float32]:
        """What the retrieved are ordered by, float32 [n, K]; −inf where nothing was found.

        Args:
            weight: `w` of the ranking formula.
            blend: how much policy counts, as in a request; of a task with grades.
        """
        is_found_nK = np.isfinite(self.retrieval_nK)
        weighted_nK = np.float32(weight) * np.where(
            is_found_nK, self.log_positive_nK, np.float32(0)
        )
        total_nK: NDArray[np.float32] = self.retrieval_nK + weighted_nK
        if not blend:
            return total_nK
        assert self.log_policy_nK is not None
        policy_nK: NDArray[np.float32] = np.float32(blend) * self.log_policy_nK
        if blend < 1:
            policy_nK = policy_nK + np.float32(1 - blend) * total_nK
        return policy_nK

    def best_items(self, weight: float, *, blend: float = 0.0, k: int = 10) -> NDArray[np.int64]:
        """Rows of the items that stand first, int64 [n, k]; −1 where there are fewer."""
        order_nK = np.argsort(-self.scores(weight, blend=blend), axis=1, kind="stable")
        best: NDArray[np.int64] = np.take_along_axis(self.item_nK, order_nK[:, :k], axis=1)
        return best

    def ranks(
        self, weight: float, otherwise: NDArray[np.int64], *, blend: float = 0.0
    ) -> NDArray[np.int64]:
        """Rank of each target when the retrieved are ordered by the full score, int64 [m].

        Args:
            weight: `w` of the ranking formula.
            otherwise: int64 [m], the rank by retrieval alone, for a target that was not retrieved;
                it stands behind all that was.
            blend: how much policy counts.
        """
        total_nK = self.scores(weight, blend=blend)
        is_found_m = self.target_place >= 0
        # What else was acted on well in the same slate stands in nobody's way, as in the ranks of
        # the whole catalogue.
        is_target_nK = np.zeros(total_nK.shape, np.bool_)
        is_target_nK[self.request[is_found_m], self.target_place[is_found_m]] = True
        competes_mK = ~is_target_nK[self.request]
        score_mK = total_nK[self.request]
        place = np.maximum(self.target_place, 0)
        own = score_mK[np.arange(len(place)), place][:, None]
        # Equal scores: what retrieval put first stays first.
        ahead = competes_mK & (
            (score_mK > own)
            | ((score_mK == own) & (np.arange(score_mK.shape[1])[None, :] < place[:, None]))
        )
        behind = 1 + (competes_mK & np.isfinite(self.retrieval_nK)[self.request]).sum(1)
        ranks: NDArray[np.int64] = np.where(
            is_found_m, 1 + ahead.sum(1), np.maximum(otherwise, behind)
        )
        return ranks


def rerank(
    recommender: Recommender,
    asked: Asked,
    *,
    num_retrieved: int = NUM_RETRIEVED,
    progress: bool = True,
) -> Reranked:
    """Retrieve from the index and score what was found, for every request.

    Args:
        recommender: serves; its index is searched.
        asked: the requests.
        num_retrieved: items that retrieval hands to the ranker.
        progress: show a bar.
    """
    log, targets, wanted = asked.book.interactions, asked.targets, asked.wanted
    ids = np.array(log.item_ids, dtype=object)
    foundation = recommender.foundation
    rows = asked.book.prefixes(targets, task=asked.task)
    vectors_nV = foundation.embed_users(rows)
    deny = [
        ids[np.unique(log.event_item[start:end])].tolist()
        for start, end in zip(targets.history_start, targets.history_end, strict=True)
    ]
    served = served_items(asked.book, asked.task)
    found = recommender.index.search(
        vectors_nV[:, : foundation.checked_width(recommender.index.manifest.dimension)],
        num_retrieved,
        allow=None if served.all() else ids[served].tolist(),
        deny=deny,
    )
    # Its rows are the index's own: ids are what both know.
    item_nK = np.array(
        [[-1 if item is None else log.item_row(item) for item in one] for one in found.ids]
    ).reshape(found.ids.shape)
    task = asked.book.prompter.tasks[asked.task]
    calibrate = foundation.calibration(asked.task)
    log_positive_nK = np.full(item_nK.shape, -np.inf, dtype=np.float32)
    log_policy_nK = log_positive_nK.copy()
    for request in tqdm(range(len(targets)), desc="re-rank", disable=not progress):
        kept = item_nK[request] >= 0
        said = foundation.score_both(
            take_rows(rows, np.array([request])), item_nK[request][kept], task=asked.task
        )
        log_positive_nK[request, kept] = log_positive(
            calibrate(said.action_CA), np.array(task.is_positive)
        )
        if task.grades:
            log_policy_nK[request, kept] = log_policy(said.grade_CG)
    is_target_mK = item_nK[wanted.request] == wanted.item[:, None]
    place = np.where(is_target_mK.any(1), is_target_mK.argmax(1), -1)
    return Reranked(
        item_nK=item_nK,
        retrieval_nK=recommender.whole_scores(vectors_nV, item_nK, found.scores),
        log_positive_nK=log_positive_nK,
        target_place=place,
        request=wanted.request,
        log_policy_nK=log_policy_nK if task.grades else None,
    )
