"""What retrieval costs and what it misses, against FAISS itself and against comparing with all.

    python -m benchmarks.retrieval [--smoke] [--parts PART …] [--out FILE.csv]

Vectors lie as learned ones do (`benchmarks.retrieval.vectors`). Parts, in the column `split`:

    kinds       each kind of index: recall@100 against comparing with all, build time, memory,
                p50/p99 of one request, queries/s of 64 at once; each beside the FAISS index that it
                holds, in turn: rows beside rows, and ids beside FAISS's rows in an array of ids
    auto        whether `auto` keeps the recall it was asked for
    filters     `allow` and `deny` by ids and `allow` by a mask, of 0.1, 1, 10 and 50 %: answers
                against brute force, latency
    churn       items added and removed while two threads search: wrong answers
    corruption  saved files corrupted at random and loaded in other processes: what became of each
    ranking     retrieve-then-rank against ranking everything, with the ceiling

Rows are written as they are known; what FILE.csv has already, of the same scale, model, threads and
seed, is not measured again. Vectors and indexes are made in the folder --work, in one of their own
for each of these, and used again from there.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.isolated import ProcessDied
from benchmarks.measured import Measured
from benchmarks.retrieval import ranking
from benchmarks.retrieval.parts import FLAT, HNSW, IVF, IVF_PQ, Parts, Scale
from benchmarks.retrieval.vectors import Process
from decant.layout import RunLayout
from decant.results import ResultRow
from decant.run_record import hardware
from foundation.checkpoint import weights_hash

PARTS = ("kinds", "auto", "filters", "churn", "corruption", "ranking")

FULL = Scale(
    kinds={
        100_000: (FLAT, IVF, IVF_PQ, HNSW),
        1_000_000: (FLAT, IVF, IVF_PQ, HNSW),
        5_000_000: (IVF_PQ,),
    },
    process=Process(),
    num_sample=1000,
    num_auto_sample=8192,
    num_queries=1000,
    plain_items=100_000,
    num_ones=300,
    num_batches=45,
    filter_items=1_000_000,
    num_filtered=60,
    churn_items=100_000,
    churn_batch=250,
    num_corruptions=10_000,
    ranking=ranking.FULL,
    widths=(50, 200),
    auto={100_000: (0.9, 0.95, 0.99), 1_000_000: (0.95,)},
)
SMOKE = Scale(
    kinds={3000: (FLAT, IVF, IVF_PQ, HNSW)},
    process=Process(dimension=32, intrinsic=16, num_topics=50),
    num_sample=100,
    num_auto_sample=100,
    num_queries=100,
    plain_items=3000,
    num_ones=20,
    num_batches=5,
    filter_items=3000,
    num_filtered=10,
    churn_items=1000,
    churn_batch=200,
    num_corruptions=80,
    ranking=ranking.SMOKE,
    widths=(20,),
    auto={3000: (0.9,)},
)

TARGETS = {
    "overhead_vs_faiss_batch64": ("at most", 0.05),
    "overhead_us_batch1": ("at most", 100.0),
    "overhead_with_ids_vs_faiss_batch64": ("at most", 0.05),
    "overhead_with_ids_us_batch1": ("at most", 100.0),
    "recall_above_target": ("at least", -0.01),
    "forbidden_answers": ("at most", 0.0),
    "short_answers": ("at most", 0.0),
    "inexact_answers": ("at most", 0.0),
    "wrong_answers": ("at most", 0.0),
    "not_refused_or_harmless": ("at most", 0.0),
    "searchable_ms_worst": ("at most", 1000.0),
}

# Columns of the table of kinds: metric, heading, what a number is multiplied with, its format.
_KINDS = (
    ("recall@100", "recall@100", 1.0, ".4f"),
    ("build_seconds", "build s", 1.0, ",.1f"),
    ("disk_bytes", "disk MB", 1e-6, ",.0f"),
    ("rss_bytes", "RSS MB", 1e-6, ",.0f"),
    ("p50_ms", "p50 ms", 1.0, ",.3f"),
    ("p99_ms", "p99 ms", 1.0, ",.3f"),
    ("queries_per_s", "queries/s", 1.0, ",.0f"),
    ("overhead_us_batch1", "over µs", 1.0, ",.1f"),
    ("overhead_vs_faiss_batch64", "over, 64", 100.0, ".2f %"),
    ("overhead_with_ids_us_batch1", "ids µs", 1.0, ",.1f"),
    ("overhead_with_ids_vs_faiss_batch64", "ids, 64", 100.0, ".2f %"),
    ("overhead_ids_vs_faiss_rows_batch64", "ids/rows", 100.0, ".2f %"),
)


def table(rows: Sequence[ResultRow]) -> str:
    """The rows as text: a line for each index in `kinds`, a line for each number elsewhere."""
    lines = []
    kinds = [row for row in rows if row.split == "kinds"]
    if kinds:
        lines.append(
            f"{'kinds':14}{'index':28}" + "".join(f"{title:>11}" for _, title, *_ in _KINDS)
        )
        for task, model in dict.fromkeys((row.task, row.model) for row in kinds):
            known = {
                row.metric: row.value for row in kinds if (row.task, row.model) == (task, model)
            }
            cells = [
                _cell(known[metric] * scale, form) if metric in known else ""
                for metric, _, scale, form in _KINDS
            ]
            lines.append(f"{task:14}{model:28}" + "".join(f"{cell:>11}" for cell in cells))
    for part in PARTS[1:]:
        some = [row for row in rows if row.split == part]
        if some:
            lines.append(
                f"\n{part:38}{'model':26}{'metric':26}{'value':>12}{'n':>8}  95 % interval"
            )
        for row in some:
            ends = "" if row.ci_low is None else f"{row.ci_low:,.4g} to {row.ci_high:,.4g}"
            lines.append(
                f"{row.task:38}{row.model:26}{row.metric:26}{row.value:>12,.4g}{row.n:>8}  {ends}"
            )
    return "\n".join(lines)


def _cell(value: float, form: str) -> str:
    number, _, unit = form.partition(" ")
    return f"{value:{number}}" + (f" {unit}" if unit else "")


def verdicts(rows: Sequence[ResultRow]) -> str:
    """Each target with the worst number that it is held against."""
    lines = []
    for metric, (side, target) in TARGETS.items():
        some = [row for row in rows if row.metric == metric]
        if some:
            pick = max if side == "at most" else min
            worst = pick(some, key=lambda row: row.value)
            is_met = worst.value <= target if side == "at most" else worst.value >= target
            lines.append(
                f"{metric} {side} {target:g}: {'met' if is_met else 'MISSED'}, the worst of "
                f"{len(some)} is {worst.value:,.4g} ({worst.model}, {worst.task})"
            )
    return "\n".join(lines)


def _served_weights(run: Path) -> str:
    """What says which model ranks."""
    layout = RunLayout(run)
    return weights_hash(layout.model(layout.served()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether everything could be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="tiny indexes, under a minute")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--out", type=Path, help="rows as CSV; what is there is kept")
    parser.add_argument("--work", type=Path, help="folder for vectors and indexes; kept")
    parser.add_argument("--run", type=Path, help="a finished run whose model ranks")
    parser.add_argument("--threads", type=int, default=2, help="of FAISS, for every index")
    parser.add_argument("--seed", type=int, default=0, help="of corruptions and the model")
    options = parser.parse_args(arguments)
    scale = SMOKE if options.smoke else FULL
    try:
        measured = Measured(
            "retrieval",
            {
                "scale": asdict(scale),
                "run": None if options.run is None else _served_weights(options.run),
                "threads": options.threads,
                "seed": options.seed,
            },
            out=options.out,
            threads=options.threads,
        )
    except (ValueError, OSError) as error:
        print(f"benchmarks.retrieval: error: {error}", file=sys.stderr)
        return 1
    print(f"{options.threads} threads. {hardware()}")
    failed = False
    with tempfile.TemporaryDirectory(prefix="retrieval-") as scratch:
        parts = Parts(
            measured,
            scale,
            work=(options.work or Path(scratch)) / measured.config_hash,
            threads=options.threads,
            seed=options.seed,
            run=options.run,
        )
        jobs = [(part, *job) for part in options.parts for job in parts.jobs(part)]
        for part, name, job in tqdm(jobs, desc="retrieval", unit="part"):
            try:
                job()
            except (ValueError, OSError, ProcessDied) as error:
                print(f"benchmarks.retrieval: error: {part}, {name}: {error}", file=sys.stderr)
                failed = True
    print(table(measured.rows))
    print(verdicts(measured.rows))
    return int(failed)
