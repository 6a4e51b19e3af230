"""What `benchmarks.scoring` measures: jobs, each one shape of one part."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.peers.cross_encoder import PEER, CrossEncoderWorker, export
from benchmarks.peers.environment import built
from benchmarks.scoring_rounds import Found, against, fastest, median, timed
from benchmarks.scoring_ways import (
    CLAIM,
    QWEN3_0_6B,
    TINY,
    Request,
    Scores,
    Way,
    kv_repeat,
    one_by_one,
    ours,
    random_foundation,
    row_of,
)
from foundation import Foundation
from foundation.prefix_cache import PrefixCache

BATCHES = (4, 8, 16, 25, 50, 100)
# A repeated cache of 50 prefixes of 2,048 tokens is 1.7 GB.
MOST_REPEATED = 50
CURVE = (64, 256, 1024, 2048)
MEMORY_WAYS = ("foundation", "kv-repeat", "one-by-one")


# Prefix tokens, candidates, tokens of each.
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One shape of one part.

    Attributes:
        part: its name, the column `split`.
        shape: prefix tokens, candidates, tokens of each.
        measure: makes the rows.
    """

    part: str
    shape: Shape
    measure: Callable[[], list[Found]]

    @property
    def task(self) -> str:
        """The shape in words, the column `task`."""
        return "x".join(map(str, self.shape))


class Parts:
    """All jobs, and the model that most of them share.

    Args:
        smoke: tiny shapes and few rounds.
        threads: of processes that are started.
        seed: of weights and tokens.
    """

    def __init__(self, *, smoke: bool, threads: int, seed: int) -> None:
        self.smoke, self.threads, self.seed = smoke, threads, seed
        self.rounds = 3 if smoke else 7
        self.small = TINY if smoke else CLAIM
        self.notes: list[str] = []
        self._foundation: Foundation | None = None
        self._batches: tuple[int, int] | None = None
        self.claim = (96, 20, 8) if smoke else (512, 100, 16)

    def jobs(self) -> Iterator[Job]:
        """Every job, the most telling first."""
        tokens, smoke = self.claim[2], self.smoke
        yield Job(part="main", shape=self.claim, measure=self.main)
        yield Job(part="cross_encoder", shape=self.claim, measure=self.cross_encoder)
        for shape in [(64, 20, 1)] if smoke else [(512, 200, 1), (64, 200, 1)]:
            yield self._compared("slots", shape, rounds=self.rounds)
        yield Job(part="cache", shape=self.claim, measure=self.cache)
        yield self._of_shape("bf16", (64, 20, 8) if smoke else (256, 100, 16), self.bf16)
        corners = [(prefix, count, tokens) for prefix in (256, 1024) for count in (50, 200)]
        for shape in [(64, 10, 8)] if smoke else corners:
            yield self._of_shape("memory", shape, self.memory)
        yield self._of_shape("qwen3", (32, 4, 4) if smoke else (512, 16, 16), self.qwen3)
        for prefix in (32, 128) if smoke else CURVE:
            for candidates in (1, 10) if smoke else (1, 10, 100):
                yield self._compared("curve", (prefix, candidates, tokens), rounds=3)

    @property
    def foundation(self) -> Foundation:
        """The model of all parts but the last, made when it is first asked for."""
        if self._foundation is None:
            self._foundation = random_foundation(self.small, seed=self.seed)
        return self._foundation

    def request(self, shape: Shape, *, seed: int = 0) -> Request:
        """A request to that model."""
        return Request.draw(self.foundation, shape, seed=self.seed + seed)

    def main(self) -> list[Found]:
        """The claim, with a row for the logits that a caller gets who asks for nothing."""
        request, model = self.request(self.claim), self.foundation
        few = [size for size in BATCHES if size <= min(25, self.claim[1])]
        ways = {n: one_by_one(model, batch=n, default_logits=True) for n in few}
        batch, with_all_logits = fastest(ways, request)
        self.notes.append(f"batches with all logits: {batch} prompts")
        others = self._others(request) | {"one_by_one_default_logits": with_all_logits}
        return self._against_ours(model, request, others, rounds=self.rounds)

    def cross_encoder(self) -> list[Found]:
        """The same weights as a classifier, in another process that waits its turn."""
        if self.smoke and not built(PEER):
            self.notes.append("no CrossEncoder row: a smoke run does not build its environment")
            return []
        request, model = self.request(self.claim), self.foundation
        labels = model.label_ids_L[model.prompter.task_label_index(0)]
        with tempfile.TemporaryDirectory() as folder:
            export(
                model.decoder,
                Path(folder),
                label_ids=labels.tolist(),
                prefix_ids=request.prefix.ids.tolist(),
                candidate_ids=[request.pieces[at].tolist() for at in range(len(request.pieces))],
            )
            worker = CrossEncoderWorker(Path(folder), threads=self.threads)

            def once() -> tuple[float, Scores]:
                seconds, logits = worker.score()
                return seconds, torch.from_numpy(logits).log_softmax(-1).numpy()

            try:
                return against(
                    timed(ours(model), request),
                    {"cross_encoder": once},
                    rounds=self.rounds,
                    candidates=self.claim[1],
                )
            finally:
                worker.close()

    def cache(self) -> list[Found]:
        """Person asked again: all of the prefix is there, or all but one event's tokens."""
        again, longer, rates = [], [], []
        model = self.foundation
        ours(model)(self.request(self.claim))
        for number in range(self.rounds):
            request = self.request(self.claim, seed=number)
            # What the person did next lengthens the prefix, as one more event.
            event = self.request((self.claim[2], 1, 1), seed=1000 + number).prefix.ids
            grown = row_of(np.concatenate([request.prefix.ids, event]))
            prefixes = PrefixCache()
            seconds = []
            for prefix in (request.prefix, request.prefix, grown):
                began = time.perf_counter()
                model.score(prefixes.read(model, prefix), request.pieces)
                seconds.append(time.perf_counter() - began)
            if (prefixes.misses, prefixes.hits, prefixes.extensions) != (1, 1, 1):
                raise ValueError("the cache did not hit where it must; nothing was measured.")
            again.append(seconds[0] / seconds[1])
            longer.append(seconds[0] / seconds[2])
            rates.append(len(request.pieces) / seconds[1])
        return [
            ("prefix-cache-hit", "speedup_vs_no_cache", *median(again), self.rounds),
            ("prefix-cache-one-more-event", "speedup_vs_no_cache", *median(longer), self.rounds),
            ("prefix-cache-hit", "items_per_s", *median(rates), self.rounds),
        ]

    def bf16(self, shape: Shape) -> list[Found]:
        """Many requests scored in both precisions by the same weights."""
        n = 5 if self.smoke else 40
        requests = [self.request(shape, seed=2000 + number) for number in range(n)]
        half = random_foundation(self.small, seed=self.seed).to(torch.bfloat16)

        def first_label(way: Way) -> Scores:
            scores = [way(request)[:, 0] for request in tqdm(requests, leave=False, delay=2)]
            return np.stack(scores)

        fp32_nC, bf16_nC = first_label(ours(self.foundation)), first_label(ours(half))
        alone_nC = first_label(one_by_one(half, batch=4))
        error_n = np.abs(bf16_nC - fp32_nC).max(1)
        best_nC = np.sort(fp32_nC, 1)
        is_sure_n = best_nC[:, -1] - best_nC[:, -2] > error_n
        is_same_n = bf16_nC.argmax(1) == fp32_nC.argmax(1)
        top = [np.argsort(-scores, 1)[:, :10] for scores in (bf16_nC, fp32_nC)]
        overlap = [len(set(a) & set(b)) / 10 for a, b in zip(*top, strict=True)]
        alone_error = float(np.abs(alone_nC - fp32_nC).max())
        rows: list[Found] = [
            ("foundation", "max_abs_error_bf16", float(error_n.max()), None, n),
            ("one-by-one", "max_abs_error_bf16", alone_error, None, n),
            ("foundation", "top10_overlap_bf16", *median(overlap), n),
        ]
        if not is_sure_n.any():
            self.notes.append("bf16: no request's fp32 margin exceeds its error")
            return rows
        agreed, num_sure = float(is_same_n[is_sure_n].mean()), int(is_sure_n.sum())
        return [*rows, ("foundation", "top1_agreement_bf16", agreed, None, num_sure)]

    def memory(self, shape: Shape) -> list[Found]:
        """Peak over the loaded model of each way, each in a fresh process."""
        rows: list[Found] = []
        for way in MEMORY_WAYS[:1] if self.smoke else MEMORY_WAYS:
            numbers = [*shape, int(self.smoke), self.threads]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scoring_memory", way, *map(str, numbers)],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[1],
            )
            if done.returncode != 0:
                raise ValueError(f"memory of {way}: {done.stderr.strip().splitlines()[-1]}")
            rows.append((way, "bytes_over_model", float(done.stdout.split()[-1]), None, 1))
        return rows

    def qwen3(self, shape: Shape) -> list[Found]:
        """The published shape, with random weights in float32."""
        model = random_foundation(TINY if self.smoke else QWEN3_0_6B, seed=self.seed)
        others = {
            "one_by_one": one_by_one(model, batch=4),
            "kv_repeat": kv_repeat(model, batch=shape[1]),
        }
        request = Request.draw(model, shape, seed=self.seed)
        return self._against_ours(model, request, others, rounds=3)

    def _of_shape(self, part: str, shape: Shape, measure: Callable[[Shape], list[Found]]) -> Job:
        return Job(part=part, shape=shape, measure=lambda: measure(shape))

    def _compared(self, part: str, shape: Shape, *, rounds: int) -> Job:
        def measure() -> list[Found]:
            request = self.request(shape)
            others = self._others(request)
            return self._against_ours(self.foundation, request, others, rounds=rounds)

        return Job(part=part, shape=shape, measure=measure)

    def _others(self, request: Request) -> dict[str, Way]:
        """One by one and repeated cache, with the batch sizes that were fastest at the claim."""
        if self._batches is None:
            claim, model = self.request(self.claim), self.foundation
            sizes = [size for size in BATCHES if size <= self.claim[1]]
            few = [size for size in sizes if size <= 50]
            alone, _ = fastest({n: one_by_one(model, batch=n) for n in few}, claim)
            repeated, _ = fastest({n: kv_repeat(model, batch=n) for n in sizes}, claim)
            self._batches = alone, repeated
            self.notes.append(f"batches: {alone} prompts one by one, {repeated} repeated caches")
        alone, repeated = self._batches
        if len(request.prefix.ids) > self.claim[0]:
            repeated = min(repeated, MOST_REPEATED)
        return {
            "one_by_one": one_by_one(self.foundation, batch=alone),
            "kv_repeat": kv_repeat(self.foundation, batch=repeated),
        }

    def _against_ours(
        self, model: Foundation, request: Request, others: dict[str, Way], *, rounds: int
    ) -> list[Found]:
        return against(
            timed(ours(model), request),
            {name: timed(way, request) for name, way in others.items()},
            rounds=rounds,
            candidates=len(request.pieces),
        )
