"""How far a model is from another on held-out requests: what tells shapes and steps apart early.

    exam = Exam(top, book, split.valid, requests=500)
    divergence, ndcg_at_10 = exam.mark(model)

Legend: n requests, e events of their slates, I items, S of them served, A actions, V vector width.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from distill.losses import Classes, chunked_divergence, divergence
from foundation import Foundation
from foundation.evaluation import ndcg
from foundation.predictions import rank_catalogue, ranking_targets, read_pairs, served_items
from promptify.assembly import PromptBook
from promptify.splits import Targets, slate_events


class Exam:
    """Held-out requests, and what the top says to them.

    Args:
        top: only read.
        book: pieces of the interactions.
        valid: held-out slates.
        requests: at most so many, evenly spaced.
    """

    def __init__(self, top: Foundation, book: PromptBook, valid: Targets, *, requests: int) -> None:
        count = min(requests, len(valid))
        self._targets = valid[np.linspace(0, len(valid) - 1, count).astype(np.int64)]
        self._book = book
        self._rows = book.prefixes(self._targets, task=0)
        event = slate_events(self._targets)
        counts = self._targets.last_event - self._targets.first_event
        self._request = np.repeat(np.arange(count), counts)
        self._items = book.interactions.event_item[event]
        self._wanted = ranking_targets(book, self._targets, task=0)
        self._is_served = torch.from_numpy(served_items(book, 0))
        # Vectors, and not what they say of every item: that is many times as large.
        vectors_nV, items_IV, self._top_action_eA = self._read(top)
        self._top_next = self._next(vectors_nV, items_IV)

    def mark(self, model: Foundation) -> tuple[float, float]:
        """How far a model is from the top, in nats a request, and its NDCG@10.

        The divergence is KL(top ‖ model) of the retrieval softmax over the items that are served,
        plus that of the actions, each as a mean.
        """
        vectors_nV, items_IV, action_eA = self._read(model)
        far_next = chunked_divergence(
            self._next(vectors_nV, items_IV), self._top_next, temperature=1.0
        )
        far_action = divergence(
            torch.from_numpy(action_eA), torch.from_numpy(self._top_action_eA), "forward_kl"
        )
        rank = rank_catalogue(
            lambda start, stop: vectors_nV[start:stop] @ items_IV.T,
            self._wanted,
            self._book,
            seen=self._targets,
            task=0,
        )
        return (
            float(far_next) / len(vectors_nV) + float(far_action) / len(action_eA),
            float(ndcg(rank, 10).mean()) if len(rank) else 0.0,
        )

    def _read(
        self, model: Foundation
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Vectors of requests [n, V] and of items [I, V], and log-probabilities of actions [e, A].

        What is next is the softmax of the inner products over the items that are served.
        """
        vectors_eV, action_eA = read_pairs(model, self._rows, self._request, self._items, task=0)
        first_n = np.searchsorted(self._request, np.arange(len(self._targets)))
        return vectors_eV[first_n], model.embed_items(), action_eA

    def _next(self, vectors_nV: NDArray[np.float32], items_IV: NDArray[np.float32]) -> Classes:
        items_SV = torch.from_numpy(items_IV)[self._is_served]
        return Classes(at_NV=torch.from_numpy(vectors_nV), class_CV=items_SV)
