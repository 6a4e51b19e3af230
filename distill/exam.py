"""How far a model is from another on held-out requests: what tells shapes and steps apart early.

    exam = Exam(top, book, split.valid, requests=500)
    divergence, ndcg_at_10 = exam.mark(model)

Legend: n requests, e events of their slates, I items, A actions.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from distill.losses import divergence
from foundation import Foundation
from foundation.evaluation import ndcg
from foundation.predictions import (
    rank_catalogue,
    ranking_targets,
    read_pairs,
    served_items,
    slate_events,
)
from promptify.assembly import PromptBook
from promptify.splits import Targets


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
        self._said = self._read(top)

    def mark(self, model: Foundation) -> tuple[float, float]:
        """How far a model is from the top, in nats a request, and its NDCG@10.

        The divergence is KL(top ‖ model) of the retrieval softmax over the items that are served,
        plus that of the actions, each as a mean.
        """
        next_nI, action_eA = self._read(model)
        top_nI, top_eA = self._said
        far = sum(
            float(divergence(torch.from_numpy(said), torch.from_numpy(told), "forward_kl"))
            / len(said)
            for said, told in ((next_nI, top_nI), (action_eA, top_eA))
        )
        rank = rank_catalogue(
            lambda start, stop: next_nI[start:stop],
            self._wanted,
            self._book,
            seen=self._targets,
            task=0,
        )
        return far, float(ndcg(rank, 10).mean()) if len(rank) else 0.0

    def _read(self, model: Foundation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log-probabilities of what is next, float32 [n, I], and of actions, float32 [e, A]."""
        vectors_eV, action_eA = read_pairs(model, self._rows, self._request, self._items, task=0)
        first_n = np.searchsorted(self._request, np.arange(len(self._targets)))
        logits_nI = torch.from_numpy(vectors_eV[first_n] @ model.embed_items().T)
        logits_nI[:, ~torch.from_numpy(served_items(self._book, 0))] = float("-inf")
        next_nI: NDArray[np.float32] = logits_nI.log_softmax(1).numpy()
        return next_nI, action_eA
