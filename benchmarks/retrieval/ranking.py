"""Retrieve, then rank: what is lost against ranking the whole catalogue, and what could be lost.

n requests, m targets, I items.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import subjects
from benchmarks.subjects import Sizes, Subject
from decant.measure import Asked, rerank
from decant.recommender import Recommender, build_index
from decant.run_data import sample_targets
from foundation.evaluation import ndcg
from foundation.predictions import predict_targets

FULL = replace(
    subjects.FULL, num_members=1000, num_impressions=20_000, epochs={"slot": 2.0}, num_requests=400
)
SMOKE = replace(
    subjects.SMOKE, num_members=60, num_impressions=600, epochs={"slot": 0.5}, num_requests=20
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """NDCG@10 of each target under each way of ranking.

    Attributes:
        user: int64 [m], whose target it is.
        everything: float64 [m], all items ranked by the full score.
        retrieved: by number of retrieved items, float64 [m]: those ranked, the rest behind them.
        ceiling: by number of retrieved items, float64 [m]: 1 where the target was among them, which
            is the most that any ranker could make of them.
        alone: float64 [m], in the order of retrieval.
        num_items: I.
        num_parameters: of the model.
    """

    user: NDArray[np.int64]
    everything: NDArray[np.float64]
    retrieved: dict[int, NDArray[np.float64]]
    ceiling: dict[int, NDArray[np.float64]]
    alone: NDArray[np.float64]
    num_items: int
    num_parameters: int


def subject_of(run: Path | None, sizes: Sizes, *, seed: int, scratch: Path) -> Subject:
    """The served model of a run, or a small one trained on the job market."""
    if run is not None:
        return subjects.finished(run)
    return subjects.trained("slot", sizes, seed=seed, scratch=scratch)


def ranked(subject: Subject, *, num_requests: int, widths: tuple[int, ...]) -> Ranked:
    """Rank for some test requests.

    Args:
        subject: the model; its catalogue is indexed.
        num_requests: how many at most.
        widths: items retrieved.
    """
    foundation, book = subject.foundation, subject.book
    index = build_index(foundation, model_hash="unsaved")
    recommender = Recommender(foundation, index, book)
    asked = Asked(book, sample_targets(subject.split.test, num_requests))
    weight = foundation.rank_weight(asked.task)
    alone = predict_targets(foundation, book, asked.targets).rank
    everything = rerank(recommender, asked, num_retrieved=len(index))
    retrieved, ceiling = {}, {}
    for width in widths:
        some = rerank(recommender, asked, num_retrieved=width)
        retrieved[width] = ndcg(some.ranks(weight, alone), 10)
        ceiling[width] = (some.target_place >= 0).astype(np.float64)
    return Ranked(
        user=asked.targets.user[asked.wanted.request].astype(np.int64),
        everything=ndcg(everything.ranks(weight, alone), 10),
        retrieved=retrieved,
        ceiling=ceiling,
        alone=ndcg(alone, 10),
        num_items=len(index),
        num_parameters=foundation.num_parameters(),
    )
