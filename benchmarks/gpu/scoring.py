"""Scoring at the shape of Qwen3-0.6B: latency, other ways with the same weights, errors, memory.

Legend: C candidates, n requests.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.gpu.models import in_both_precisions, random_model
from benchmarks.gpu.session import Session
from benchmarks.scoring_rounds import fastest, median, timed
from benchmarks.scoring_ways import (
    QWEN3_0_6B,
    TINY,
    Request,
    Scores,
    Way,
    kv_repeat,
    one_by_one,
    ours,
)
from foundation import Foundation
from foundation.prefix_cache import PrefixCache
from foundation.utilisation import held_memory_bytes
from promptify.assembly import PromptBook

Floats = NDArray[np.floating]

_PERCENTILES = (50, 95, 99)
OTHERS: dict[str, Callable[..., Way]] = {"one_by_one": one_by_one, "kv_repeat": kv_repeat}
"""Ways that ours is held against, by what their rows call them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked.

    Attributes:
        name: in the column `split`.
        shape: prefix tokens, candidates, tokens of each.
        timed_requests: for latency, each with another prefix.
        rounds: in which the ways take turns.
        checked_requests: whose scores are compared between ways and precisions.
        batches: prompts, or repeated caches, that another way reads at once; the best is taken.
    """

    name: str
    shape: tuple[int, int, int]
    timed_requests: int
    rounds: int
    checked_requests: int
    batches: tuple[int, ...]

    @property
    def task(self) -> str:
        """The shape in words."""
        return "x".join(map(str, self.shape))


OPTIONS = Load(
    name="score 16 options",
    shape=(1024, 16, 16),
    timed_requests=300,
    rounds=15,
    checked_requests=40,
    batches=(4, 8, 16),
)
LONG = Load(
    name="score after 12k tokens",
    shape=(12288, 50, 150),
    timed_requests=30,
    rounds=5,
    checked_requests=4,
    batches=(5, 10, 25),
)
SMOKE_OPTIONS = Load(
    name="score 16 options",
    shape=(40, 4, 3),
    timed_requests=4,
    rounds=2,
    checked_requests=3,
    batches=(2, 4),
)
SMOKE_LONG = Load(
    name="score after 12k tokens",
    shape=(120, 5, 6),
    timed_requests=2,
    rounds=2,
    checked_requests=2,
    batches=(5,),
)


class Scoring:
    """One model in two precisions, and the loads it is put under.

    Args:
        session: takes the rows.
        book: whose prompter and items the model has.
        smoke: a tiny model.
    """

    def __init__(self, session: Session, book: PromptBook, *, smoke: bool) -> None:
        self.session, self.book, self.smoke = session, book, smoke
        self._models: tuple[Foundation, Foundation] | None = None

    @property
    def models(self) -> tuple[Foundation, Foundation]:
        """In float32 and in bfloat16; made when first asked for."""
        if self._models is None:
            shape = TINY if self.smoke else QWEN3_0_6B
            model = random_model(self.book, shape, device=self.session.device)
            self._models = in_both_precisions(model)
        return self._models

    def request(self, load: Load, seed: int) -> Request:
        """A request of random tokens; the same again for the same seed."""
        return Request.draw(self.models[1], load.shape, seed=seed)

    def latency(self, load: Load) -> None:
        """Milliseconds of a request whose prefix is new, and of one whose prefix is kept."""
        half, prefixes = self.models[1], PrefixCache(max_bytes=4 * 2**30)
        requests = [self.request(load, seed) for seed in range(min(20, load.timed_requests))]
        for request in requests[:3]:
            half.score(prefixes.read(half, request.prefix), request.pieces)
        prefixes.clear()
        self.session.forget_peak()
        seconds = np.zeros((2, load.timed_requests))
        for number in tqdm(range(load.timed_requests), desc="requests", delay=2):
            request = requests[number % len(requests)]
            prefixes.clear()
            for again in (0, 1):
                began = time.perf_counter()
                half.score(prefixes.read(half, request.prefix), request.pieces)
                seconds[again, number] = time.perf_counter() - began
        for again, model in enumerate(("foundation, new prefix", "foundation, kept prefix")):
            for percentile in _PERCENTILES:
                value = 1000 * float(np.percentile(seconds[again], percentile))
                self._add(load, model, f"p{percentile}_ms", value, n=load.timed_requests)

    def against(self, load: Load, name: str) -> None:
        """Ours and another way of `OTHERS` in turn, A B A B, in bfloat16."""
        half, request = self.models[1], self.request(load, 0)
        mine = timed(ours(half), request)
        mine()
        self._memory(load, "foundation", ours(half), request)
        ways = {batch: OTHERS[name](half, batch=batch) for batch in load.batches}
        batch, way = fastest(ways, request)
        self.session.say(f"         {load.name}: {name} is fastest with {batch} at once")
        self._memory(load, name, way, request)
        other = timed(way, request)
        turns = np.array([(mine()[0], other()[0]) for _ in range(load.rounds)])
        ratio = median(turns[:, 1] / turns[:, 0])
        self._add(load, "foundation", f"speedup_vs_{name}", ratio, n=load.rounds)
        for model, column in (("foundation", 0), (name, 1)):
            self._add(load, model, "turn_ms", median(1000 * turns[:, column]), n=load.rounds)
            rate = median(load.shape[1] / turns[:, column])
            self._add(load, model, "items_per_s", rate, n=load.rounds)

    def errors(self, load: Load) -> None:
        """How far bfloat16 is from float32 by each way, and whether first candidates agree."""
        whole, half = self.models
        batch = load.batches[0]
        ways: dict[str, Way] = {
            "foundation": ours(half),
            "one_by_one": one_by_one(half, batch=batch),
            "kv_repeat": kv_repeat(half, batch=batch),
        }
        requests = [self.request(load, 1000 + number) for number in range(load.checked_requests)]
        exact = _first_label(ours(whole), requests)
        # In float32 a prompt for each candidate takes long.
        few = requests[: max(1, len(requests) // 20)]
        alone = _first_label(one_by_one(whole, batch=batch), few)
        error = float(np.abs(alone - exact[: len(alone)]).max())
        self._add(load, "foundation", "max_abs_error_fp32", error, n=len(alone))
        for name, way in ways.items():
            said_nC = _first_label(way, requests)
            error_n = np.abs(said_nC - exact).max(1)
            self._add(load, name, "max_abs_error_bf16", float(error_n.max()), n=len(requests))
            best_nC = np.sort(exact, 1)
            # Only where float32's margin is larger than the error can the top be held to be wrong.
            is_sure_n = best_nC[:, -1] - best_nC[:, -2] > 2 * error_n
            is_same_n = said_nC.argmax(1) == exact.argmax(1)
            if is_sure_n.any():
                agreed, sure = float(is_same_n[is_sure_n].mean()), int(is_sure_n.sum())
                self._add(load, name, "top1_agreement_bf16", agreed, n=sure)
            self._add(load, name, "top1_agreement_all", float(is_same_n.mean()), n=len(requests))
            self._add(load, name, "top10_overlap_bf16", _overlap(said_nC, exact), n=len(requests))

    def _memory(self, load: Load, model: str, way: Way, request: Request) -> None:
        """Most memory that a way allocates beside the models (on a GPU)."""
        if self.session.device.type != "cuda":
            way(request)
            return
        torch.cuda.empty_cache()
        self.session.forget_peak()
        before = torch.cuda.memory_allocated()
        way(request)
        over = held_memory_bytes("cuda") - before
        self._add(load, model, "bytes_over_model", float(over), n=1)

    def _add(
        self,
        load: Load,
        model: str,
        metric: str,
        value: float | tuple[float, tuple[float, float]],
        *,
        n: int,
    ) -> None:
        self.session.add(
            value,
            task=load.task,
            split=load.name,
            model=model,
            params=self.models[1].num_parameters(),
            context_tokens=load.shape[0],
            metric=metric,
            n=n,
        )


def _first_label(way: Way, requests: list[Request]) -> Scores:
    """Log-probability of the first label, float32 [n, C]."""
    return np.stack([way(request)[:, 0] for request in tqdm(requests, leave=False, delay=2)])


def _overlap(a_nC: Floats, b_nC: Floats) -> float:
    top = min(10, a_nC.shape[1])
    tops = zip(np.argsort(-a_nC, 1)[:, :top], np.argsort(-b_nC, 1)[:, :top], strict=True)
    return float(np.mean([len(set(a) & set(b)) / top for a, b in tops]))
