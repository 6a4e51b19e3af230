"""An exam of many requests over many items: logits of some of them at a time."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.overrides import TorchFunctionMode

from distill import exam, losses
from distill.exam import Exam
from foundation import predictions
from foundation.evaluation import ndcg
from foundation.predictions import rank_catalogue, ranking_targets, served_items
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import leave_one_out

VECTOR_DIM, ACTIONS = 4, 3


class LargestTensor(TorchFunctionMode):
    """Notes how many numbers the largest tensor holds that torch makes meanwhile."""

    num_numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.num_numbers = max(self.num_numbers, made.numel())
        return made


def test_requests_by_items_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log = job_market(num_members=60, num_jobs=1000, num_impressions=600).interactions
    split = leave_one_out(log, surface="jobs")
    book = PromptBook(
        Prompter.fit(log, split.train, TASKS, config=PrompterConfig(vocab_size=700)), log
    )
    monkeypatch.setattr(book, "prefixes", lambda *_, **__: None)
    valid = split.valid[np.repeat(np.arange(len(split.valid)), 50)]
    count_n = valid.last_event - valid.first_event
    n, num_items = len(valid), log.num_items
    random = np.random.default_rng(0)

    def model() -> Any:
        """Stands for one that says these things: what it costs to read prompts is not asked."""
        person_nV = random.normal(size=(n, VECTOR_DIM)).astype(np.float32)
        action_eA = log_softmax(random.normal(size=(count_n.sum(), ACTIONS)), 1)
        items_IV = random.normal(size=(num_items, VECTOR_DIM)).astype(np.float32)
        return SimpleNamespace(
            person_nV=person_nV,
            said=(np.repeat(person_nV, count_n, 0), action_eA.astype(np.float32)),
            embed_items=lambda: items_IV,
        )

    top, other = model(), model()
    monkeypatch.setattr(exam, "read_pairs", lambda model, *_, **__: model.said)
    monkeypatch.setattr(losses, "MAX_LOGITS_CPU", 1 << 14)
    monkeypatch.setattr(predictions, "MAX_SCORES", 1 << 14)
    tracemalloc.start()
    try:
        with LargestTensor() as largest:
            far, hits = Exam(top, book, valid, requests=n).mark(other)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Torch's own memory is not traced, NumPy's is.
    assert peak_bytes < n * num_items * 4
    assert largest.num_numbers < n * num_items / 2

    served = served_items(book, 0)
    logits = [one.person_nV @ one.embed_items().T for one in (top, other)]
    log_p, log_q = (log_softmax(one[:, served].astype(np.float64), 1) for one in logits)
    whole = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    mine, theirs = (one.said[1].astype(np.float64) for one in (top, other))
    whole += (np.exp(mine) * (mine - theirs)).sum(1).mean()
    assert far == pytest.approx(whole, rel=1e-5)
    wanted = ranking_targets(book, valid, task=0)
    rank = rank_catalogue(lambda a, b: logits[1][a:b], wanted, book, seen=valid, task=0)
    assert hits == pytest.approx(ndcg(rank, 10).mean(), rel=1e-6)
