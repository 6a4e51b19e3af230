"""How fast candidates are scored after a prefix, against four other ways with the same weights.

    python -m benchmarks.scoring [--smoke] [--out FILE.csv] [--plot FILE.png]

Ours and each other way are timed in turn (A B A B), neighbours in time, so that a slow minute of
the machine falls on both; a speedup is the median over rounds of the ratio within a round, with a
bootstrap interval. Before a way is timed its scores must be ours. Parts, in the column `split`:

    main            512 prefix tokens x 100 candidates x 16, 8 layers of 256: the claim. One by one
                    with the last position's logits, with all logits, and a repeated KV cache, each
                    with the best of some batch sizes
    cross_encoder   sentence-transformers' CrossEncoder, in an environment of its own
    slots           candidates of one position
    cache           the same person asked again, and asked again after one more event
    bf16            top-1 where the fp32 margin is larger than the bf16 error, overlap of the top 10
    memory          most memory held over that of the model, each way in a process of its own
    qwen3           the shape of Qwen3-0.6B with random weights, in fp32, with fewer candidates
    curve           prefix x candidates

Rows are written shape by shape; what FILE.csv has already is not measured again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks.peers.environment import PeerError
from benchmarks.scoring_parts import Job, Parts
from benchmarks.scoring_rounds import Found
from benchmarks.scoring_ways import CLAIM
from decant.results import ResultRow, append_csv, read_csv
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now

TARGETS = {"speedup_vs_one_by_one": 20.0, "speedup_vs_kv_repeat": 2.0}
PARTS = ("main", "cross_encoder", "slots", "cache", "bf16", "memory", "qwen3", "curve")


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
            print(f"\n{split:16}{'shape':14}{'model':28}{'metric':32}{'value':>12}  95 % interval")
        for row in some:
            interval = "" if row.ci_low is None else f"{row.ci_low:,.4g} to {row.ci_high:,.4g}"
            value = f"{row.value:.1e}" if row.value < 1e-3 else f"{row.value:,.4g}"
            print(f"{'':16}{row.task:14}{row.model:28}{row.metric:32}{value:>12}  {interval}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and few rounds")
    parser.add_argument("--out", type=Path, help="rows as CSV; what is there is kept")
    parser.add_argument("--plot", type=Path, help="draw the curve as PNG")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for every way")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = {"smoke": options.smoke, "threads": options.threads, "shape": asdict(CLAIM)}
    config_hash, failed = json_hash({**settings, "seed": options.seed}), False
    known = read_csv(options.out) if options.out and options.out.exists() else []
    parts = Parts(smoke=options.smoke, threads=options.threads, seed=options.seed)
    jobs = [job for job in parts.jobs() if job.part in options.parts]
    rows: list[ResultRow] = []
    print(f"{options.threads} threads. {hardware()}")
    for job in tqdm(jobs, desc="shapes"):
        asked = (job.part, job.task, config_hash)
        kept = [row for row in known if (row.split, row.task, row.config_hash) == asked]
        if kept:
            rows += kept
            continue
        began = time.perf_counter()
        try:
            found = job.measure()
        except (ValueError, PeerError) as error:
            print(f"benchmarks.scoring: error: {job.part} {job.task}: {error}", file=sys.stderr)
            failed = True
            continue

        def row_of(one: Found, job: Job = job, began: float = began) -> ResultRow:
            model, metric, value, interval, n = one
            return ResultRow(
                benchmark="scoring",
                task=job.task,
                split=job.part,
                model=model,
                context_tokens=job.shape[0],
                metric=metric,
                value=value,
                ci_low=interval and interval[0],
                ci_high=interval and interval[1],
                n=n,
                seconds=time.perf_counter() - began,
                peak_bytes=peak_rss_bytes(),
                hardware=hardware(),
                commit=git_commit(),
                config_hash=config_hash,
                seed=options.seed,
                timestamp=utc_now(),
            )

        measured = [row_of(one) for one in found]
        if options.out and measured:
            append_csv(options.out, measured)
        rows += measured
    report(rows)
    for note in parts.notes:
        print(note)
    for row in rows:
        if row.split == "main" and row.metric in TARGETS:
            print(f"{row.metric} {row.value:.1f}; target {TARGETS[row.metric]:.0f}")
    if options.plot:
        plot(rows, options.plot)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
