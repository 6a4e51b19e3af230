"""How fast candidates are scored after a prefix, against four other ways with the same weights.

    python -m benchmarks.scoring [--smoke] [--out FILE.csv] [--plot FILE.png]

Ours and each other way are timed in turn (A B A B), neighbours in time, so that a slow minute of
the machine falls on both; a speedup is the median over rounds of the ratio within a round, with a
bootstrap interval. Before a way is timed its scores must be ours. Parts, in the column `split`:

    main     512 prefix tokens x 100 candidates x 16, 8 layers of 256: the claim. One by one with
             the last position's logits, with all logits, a repeated KV cache (each with the best
             of some batch sizes), and sentence-transformers' CrossEncoder in an environment of its
             own
    slots    one position a candidate, where reading once helps least
    curve    prefix x candidates
    cache    the same person asked again, and asked again after one more event
    bf16     top-1 where the fp32 margin is larger than the bf16 error, and overlap of the top 10
    memory   most memory held over that of the model, each way in a process of its own
    qwen3    the shape of Qwen3-0.6B with random weights, fewer candidates

What is in FILE.csv already is not measured again.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.peers.cross_encoder import PEER, CrossEncoderWorker, export
from benchmarks.peers.environment import PeerError, built
from benchmarks.scoring_rounds import Found, Timed, against, fastest, median, timed
from benchmarks.scoring_ways import (
    CLAIM,
    QWEN3_0_6B,
    TINY,
    Request,
    Scores,
    kv_repeat,
    one_by_one,
    ours,
    random_foundation,
    row_of,
)
from decant.results import ResultRow, append_csv, read_csv
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation import Foundation
from foundation.prefix_cache import PrefixCache

TARGETS = {"speedup_vs_one_by_one": 20.0, "speedup_vs_kv_repeat": 2.0}
BATCHES = (4, 8, 25, 50, 100)
# A repeated cache of 50 prefixes of 2,048 tokens is 1.7 GB.
MOST_REPEATED = 50


def shape_of(request: Request) -> str:
    """`prefix x candidates x candidate tokens`."""
    pieces = request.pieces
    return f"{len(request.prefix.ids)}x{len(pieces)}x{int(pieces.lengths[0])}"


class Benchmark:
    """The parts, each a generator of what it found."""

    def __init__(self, *, smoke: bool, threads: int, seed: int) -> None:
        self.smoke, self.threads, self.seed = smoke, threads, seed
        self.rounds = 3 if smoke else 7
        self.small = TINY if smoke else CLAIM
        self.claim = (96, 20, 8) if smoke else (512, 100, 16)
        self.notes: list[str] = []
        self._foundation: Foundation | None = None
        self._batches: tuple[int, int] | None = None

    @property
    def foundation(self) -> Foundation:
        """The model of all parts but the last, made when it is first asked for."""
        if self._foundation is None:
            self._foundation = random_foundation(self.small, seed=self.seed)
        return self._foundation

    def request(self, prefix: int, candidates: int, tokens: int, *, seed: int = 0) -> Request:
        """A request to that model."""
        return Request.draw(
            self.foundation,
            prefix_tokens=prefix,
            candidates=candidates,
            candidate_tokens=tokens,
            seed=self.seed + seed,
        )

    def peers(self, request: Request) -> dict[str, Timed]:
        """One by one and repeated cache, with the batch sizes that were fastest at the claim."""
        if self._batches is None:
            claim, model = self.request(*self.claim), self.foundation
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
            "one_by_one": timed(one_by_one(self.foundation, batch=alone), request),
            "kv_repeat": timed(kv_repeat(self.foundation, batch=repeated), request),
        }

    def main(self) -> Iterator[Found]:
        """The claim."""
        request, model = self.request(*self.claim), self.foundation
        others = self.peers(request)
        sizes = [size for size in BATCHES if size <= min(25, self.claim[1])]
        ways = {n: one_by_one(model, batch=n, default_logits=True) for n in sizes}
        others["one_by_one_default_logits"] = timed(fastest(ways, request)[1], request)
        worker: CrossEncoderWorker | None = None
        with tempfile.TemporaryDirectory() as folder:
            try:
                # A smoke run builds no environment.
                if not self.smoke or built(PEER):
                    labels = model.label_ids_L[model.prompter.task_label_index(0)]
                    export(
                        model.decoder,
                        Path(folder),
                        label_ids=labels.tolist(),
                        prefix_ids=request.prefix.ids.tolist(),
                        candidate_ids=[
                            request.pieces[at].tolist() for at in range(len(request.pieces))
                        ],
                    )
                    worker = CrossEncoderWorker(Path(folder), threads=self.threads)
                    others["cross_encoder"] = log_probs_of(worker)
                else:
                    self.notes.append("no CrossEncoder row: its environment is not built")
                yield from against(
                    "main",
                    shape_of(request),
                    timed(ours(model), request),
                    others,
                    rounds=self.rounds,
                    candidates=len(request.pieces),
                )
            finally:
                if worker is not None:
                    worker.close()

    def _shapes(self, split: str, shapes: Sequence[tuple[int, int, int]]) -> Iterator[Found]:
        for shape in shapes:
            request = self.request(*shape)
            yield from against(
                split,
                shape_of(request),
                timed(ours(self.foundation), request),
                self.peers(request),
                rounds=3 if split == "curve" else self.rounds,
                candidates=len(request.pieces),
            )

    def slots(self) -> Iterator[Found]:
        """Candidates of one position."""
        few = [(64, 20, 1)]
        return self._shapes("slots", few if self.smoke else [(512, 200, 1), (64, 200, 1)])

    def curve(self) -> Iterator[Found]:
        """Prefix x candidates."""
        prefixes, candidates = ((32, 128), (1, 10)) if self.smoke else (CURVE, (1, 10, 100))
        tokens = self.claim[2]
        return self._shapes("curve", [(p, c, tokens) for p in prefixes for c in candidates])

    def cache(self) -> Iterator[Found]:
        """Person asked again: all of the prefix is there, or all but one event's tokens."""
        prefix_tokens, _, tokens = self.claim
        again, longer, rates = [], [], []
        for number in range(self.rounds):
            request = self.request(*self.claim, seed=number)
            # What the person did next lengthens the prefix, as one more event.
            event = self.request(tokens, 1, 1, seed=1000 + number).prefix.ids
            grown = row_of(np.concatenate([request.prefix.ids, event]))
            prefixes = PrefixCache()
            model, seconds = self.foundation, []
            for prefix in (request.prefix, request.prefix, grown):
                began = time.perf_counter()
                model.score(prefixes.read(model, prefix), request.pieces)
                seconds.append(time.perf_counter() - began)
            if (prefixes.misses, prefixes.hits, prefixes.extensions) != (1, 1, 1):
                raise ValueError("the cache did not hit where it must; nothing was measured.")
            again.append(seconds[0] / seconds[1])
            longer.append(seconds[0] / seconds[2])
            rates.append(len(request.pieces) / seconds[1])
        shape, n = f"{prefix_tokens}x{self.claim[1]}x{tokens}", self.rounds
        for model_name, metric, values in (
            ("prefix-cache hit", "speedup_vs_no_cache", again),
            ("prefix-cache, one more event", "speedup_vs_no_cache", longer),
            ("prefix-cache hit", "items_per_s", rates),
        ):
            value, interval = median(values)
            yield "cache", shape, model_name, metric, value, interval, n

    def bf16(self) -> Iterator[Found]:
        """Many requests scored in both precisions by the same weights."""
        prefix, candidates, tokens = (64, 20, 8) if self.smoke else (256, 100, 16)
        requests = [
            self.request(prefix, candidates, tokens, seed=2000 + number)
            for number in range(5 if self.smoke else 40)
        ]
        fp32 = np.stack([ours(self.foundation)(request)[:, 0] for request in requests])
        half = random_foundation(self.small, seed=self.seed).to(torch.bfloat16)
        bf16 = np.stack([ours(half)(request)[:, 0] for request in tqdm(requests, delay=2)])
        alone = np.stack(
            [one_by_one(half, batch=4)(request)[:, 0] for request in tqdm(requests, delay=2)]
        )
        error = np.abs(bf16 - fp32).max(1)
        best = np.sort(fp32, 1)
        sure = best[:, -1] - best[:, -2] > error
        same = bf16.argmax(1) == fp32.argmax(1)
        top = [np.argsort(-scores, 1)[:, :10] for scores in (bf16, fp32)]
        overlap = [len(set(a) & set(b)) / 10 for a, b in zip(*top, strict=True)]
        shape, n = f"{prefix}x{candidates}x{tokens}", len(requests)
        rows: list[tuple[str, str, float, int]] = [
            ("foundation", "max_abs_error_bf16", float(error.max()), n),
            ("one-by-one", "max_abs_error_bf16", float(np.abs(alone - fp32).max()), n),
            ("foundation", "top10_overlap_bf16", float(np.mean(overlap)), n),
        ]
        if sure.any():
            agreed = float(same[sure].mean())
            rows.append(("foundation", "top1_agreement_bf16", agreed, int(sure.sum())))
        else:
            self.notes.append("bf16: no request's fp32 margin exceeds its error")
        for model_name, metric, value, count in rows:
            yield "bf16", shape, model_name, metric, value, None, count

    def memory(self) -> Iterator[Found]:
        """Peak over the loaded model of each way at four shapes, each in a fresh process."""
        shapes = [(p, c) for p in (256, 1024) for c in (50, 200)]
        for prefix, candidates in [(64, 10)] if self.smoke else shapes:
            for way in MEMORY_WAYS[:1] if self.smoke else MEMORY_WAYS:
                command = [sys.executable, "-m", "benchmarks.scoring_memory", way]
                numbers = [prefix, candidates, self.claim[2], int(self.smoke), self.threads]
                done = subprocess.run(
                    [*command, *map(str, numbers)],
                    capture_output=True,
                    text=True,
                    cwd=Path(__file__).parents[1],
                )
                if done.returncode != 0:
                    raise ValueError(f"memory of {way}: {done.stderr.strip().splitlines()[-1]}")
                held = float(done.stdout.split()[-1])
                shape = f"{prefix}x{candidates}x{self.claim[2]}"
                yield "memory", shape, way, "bytes_over_model", held, None, 1

    def qwen3(self) -> Iterator[Found]:
        """The published shape; in a smoke run a tiny one with as many key-value groups."""
        prefix, candidates, tokens = (32, 4, 4) if self.smoke else (512, 16, 16)
        model = random_foundation(TINY if self.smoke else QWEN3_0_6B, seed=self.seed)
        request = Request.draw(
            model,
            prefix_tokens=prefix,
            candidates=candidates,
            candidate_tokens=tokens,
            seed=self.seed,
        )
        others = {
            "one_by_one": timed(one_by_one(model, batch=4), request),
            "kv_repeat": timed(kv_repeat(model, batch=candidates), request),
        }
        yield from against(
            "qwen3",
            shape_of(request),
            timed(ours(model), request),
            others,
            rounds=3,
            candidates=candidates,
        )


CURVE = (64, 256, 1024, 2048)
MEMORY_WAYS = ("foundation", "kv-repeat", "one-by-one")
PARTS = ("main", "slots", "curve", "cache", "bf16", "memory", "qwen3")


def log_probs_of(worker: CrossEncoderWorker) -> Timed:
    def once() -> tuple[float, Scores]:
        seconds, logits = worker.score()
        return seconds, torch.tensor(logits).log_softmax(-1).numpy()

    return once


def plot(rows: Sequence[ResultRow], path: Path) -> None:
    """Items per second and speedups over the prefix, a line for each number of candidates."""
    from matplotlib.figure import Figure

    metrics = ("items_per_s", "speedup_vs_one_by_one", "speedup_vs_kv_repeat")
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    curve = [row for row in rows if row.split == "curve" and row.model == "foundation"]
    for axes, metric in zip(figure.subplots(1, 3), metrics, strict=True):
        lines: dict[int, list[tuple[int, float]]] = {}
        for row in curve:
            if row.metric == metric:
                prefix, candidates, _ = map(int, row.task.split("x"))
                lines.setdefault(candidates, []).append((prefix, row.value))
        for candidates, points in sorted(lines.items()):
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{candidates}")
        axes.set(xscale="log", yscale="log", xlabel="prefix tokens", title=metric)
        axes.legend(title="candidates")
    figure.savefig(path, dpi=150)


def report(rows: Sequence[ResultRow]) -> None:
    for split in PARTS:
        some = [row for row in rows if row.split == split]
        if some:
            print(f"\n{split:12}{'shape':14}{'model':28}{'metric':32}{'value':>12}  95 % interval")
        for row in some:
            interval = "" if row.ci_low is None else f"{row.ci_low:,.4g} to {row.ci_high:,.4g}"
            value = f"{row.value:.1e}" if row.value < 1e-3 else f"{row.value:,.4g}"
            print(f"{'':12}{row.task:14}{row.model:28}{row.metric:32}{value:>12}  {interval}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and few rounds")
    parser.add_argument("--out", type=Path, help="write the rows as CSV, each part when it is done")
    parser.add_argument("--plot", type=Path, help="draw the curve as PNG")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for every way")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    benchmark = Benchmark(smoke=options.smoke, threads=options.threads, seed=options.seed)
    settings = {"smoke": options.smoke, "threads": options.threads, "shape": asdict(CLAIM)}
    rows: list[ResultRow] = []
    failed = False
    print(f"{options.threads} threads. {hardware()}")
    for part in tqdm(options.parts, desc="parts"):
        try:
            known = read_csv(options.out) if options.out and options.out.exists() else []
            kept = [
                row for row in known if (row.split, row.config_hash) == (part, json_hash(settings))
            ]
            rows += kept
            if kept:
                continue
            began = time.perf_counter()
            found = list(getattr(benchmark, part)())
        except (ValueError, PeerError) as error:
            print(f"benchmarks.scoring: error: {part}: {error}", file=sys.stderr)
            failed = True
            continue
        measured = [
            ResultRow(
                benchmark="scoring",
                task=shape,
                split=split,
                model=model,
                context_tokens=int(shape.split("x")[0]),
                metric=metric,
                value=value,
                ci_low=interval and interval[0],
                ci_high=interval and interval[1],
                n=n,
                seconds=time.perf_counter() - began,
                peak_bytes=peak_rss_bytes(),
                hardware=hardware(),
                commit=git_commit(),
                config_hash=json_hash(settings),
                seed=options.seed,
                timestamp=utc_now(),
            )
            for split, shape, model, metric, value, interval, n in found
        ]
        if options.out:
            append_csv(options.out, measured)
        rows += measured
    report(rows)
    for note in benchmark.notes:
        print(note)
    for row in rows:
        if row.split == "main" and row.metric in TARGETS:
            print(f"{row.metric} {row.value:.1f}; target {TARGETS[row.metric]:.0f}")
    if options.plot:
        plot(rows, options.plot)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
