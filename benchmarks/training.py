"""Training speed: events a second against TRL and plain Trainers, and slots against text.

    python -m benchmarks.training [--smoke] [--out FILE.csv] [--data ml-1m.zip]

Three parts, each of sides that take turns (A B A B), a process each, on the same prompts with the
same weights in float32; a speed is the median over the rounds, a ratio the median of the rounds'
ratios:

    job_market   ours, in text and in slots; TRL's SFTTrainer, packed; a padded Trainer, with length
                 grouping and without (each is described in `benchmarks.peers.trainers`)
    ml1m         ours, in text and in slots: items of a dozen tokens
    scoring      one prefix of 200 events and 100 candidates, in text and in slots

An event counts when it stands in a prompt that is trained on. Passes over items and padding are
work, not work done; ours is charged its share of reading the whole catalogue again. `mfu` is
6 · parameters without embeddings · tokens/s, over the peak of a matrix product measured in every
round.

The first use builds an environment for TRL (see `benchmarks.peers.environment`). With the same
--out, parts that are in the file already are not measured again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.peers.environment import PeerError, built, ensure
from benchmarks.peers.turns import WorkerError
from benchmarks.training_parts import (
    FILM_PROMPTS,
    JOB_PROMPTS,
    SMOKE,
    Measured,
    Settings,
    score_requests,
    train_on_films,
    train_on_jobs,
)
from decant.results import ResultRow, append_csv, read_csv
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from promptify.sources.job_market import job_market
from promptify.sources.movielens import ml_1m
from promptify.validation import BadInput

# The metrics that a target is set for, by the name of their part.
TARGETS = {
    ("job_market", "speedup_vs_trl_packed"): 1.0,
    ("job_market", "speedup_vs_padded"): 1.5,
    ("job_market", "slot_speedup_events"): 8.0,
    ("ml1m", "slot_speedup_events"): 3.0,
    ("job_market scoring", "slot_speedup_events"): 5.0,
    ("ml1m scoring", "slot_speedup_events"): 5.0,
}


def show(task: str, measured: Sequence[Measured]) -> None:
    """One table per part: a line per side, then the ratios with their targets."""
    print(f"\n{task}")
    print(f"{'':18}{'events/s':>12}{'tokens/s':>12}{'mfu':>8}{'peak MiB':>10}")
    by_side: dict[str, dict[str, Measured]] = {}
    for row in measured:
        if row.metric in ("events_per_s", "tokens_per_s", "mfu"):
            by_side.setdefault(row.model, {})[row.metric] = row
    for side, rows in by_side.items():
        line = f"{side:18}{rows['events_per_s'].interval.value:12,.0f}"
        if "mfu" in rows:
            line += f"{rows['tokens_per_s'].interval.value:12,.0f}"
            line += f"{rows['mfu'].interval.value:8.3f}"
            line += f"{(rows['mfu'].peak_bytes or 0) / 2**20:10,.0f}"
        print(line)
    for row in measured:
        if "speedup" in row.metric:
            ratio = row.interval
            target = TARGETS.get((task, row.metric))
            verdict = "" if target is None else f"; target {target:g}"
            if target is not None and ratio.value < target:
                verdict += ", missed"
            print(f"{row.metric}: {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}){verdict}")


def trl_python(*, smoke: bool) -> Path | None:
    """TRL's environment; in smoke mode only if it is there already."""
    python = built("trl") if smoke else ensure("trl")
    if python is None:
        print("TRL's environment is not built yet, so its rows are left out of the smoke run.")
    return python


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model and two rounds")
    parser.add_argument("--out", type=Path, help="add the results to this CSV, part by part")
    parser.add_argument("--data", type=Path, help="ml-1m.zip; its rows are left out without it")
    parser.add_argument("--threads", type=int, default=2, help="of each process (default 2)")
    parser.add_argument("--size", help="of the decoder (default small)")
    parser.add_argument("--seed", type=int, default=0, help="of data and weights")
    options = parser.parse_args(arguments)
    settings = SMOKE if options.smoke else Settings()
    settings = replace(
        settings,
        threads=options.threads,
        size=options.size or settings.size,
        seed=options.seed,
        fit=replace(settings.fit, seed=options.seed),
    )
    threads_before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        run(settings, options)
    except (PeerError, WorkerError, BadInput, ValueError) as error:
        print(f"benchmarks.training: error: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads_before)
    return 0


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Measure every part that is not in the file yet, and write each as soon as it is known."""
    how = f"{settings.rounds} rounds, {settings.threads} threads"
    print(f"Decoder {settings.size}, {how}. {hardware()}")
    with tempfile.TemporaryDirectory(prefix="decant-training-") as folder:
        scratch = Path(folder)
        parts: dict[str, Callable[[], list[Measured]]] = {
            "job_market": lambda: train_on_jobs(
                settings, scratch, trl=trl_python(smoke=options.smoke)
            ),
            "job_market scoring": lambda: score_requests(
                settings,
                job_market(seed=settings.seed, **settings.market),
                JOB_PROMPTS,
                title="job market",
            ),
        }
        if options.data:
            films = ml_1m(options.data)
            parts["ml1m"] = lambda: train_on_films(settings, scratch, films)
            parts["ml1m scoring"] = lambda: score_requests(
                settings, films, FILM_PROMPTS, title="ml1m"
            )
        else:
            print("Without --data ml-1m.zip the rows of MovieLens-1M are left out.")
        done = set()
        if options.out and options.out.exists():
            done = {row.config_hash for row in read_csv(options.out)}
        for task, measure in parts.items():
            config_hash = json_hash({"part": task, "settings": asdict(settings)})
            if config_hash in done:
                print(f"\n{task}: measured already, in {options.out.name}")
                continue
            began = time.perf_counter()
            measured = measure()
            show(task, measured)
            if options.out:
                append_csv(
                    options.out,
                    [
                        ResultRow(
                            benchmark="training",
                            task=task.removesuffix(" scoring"),
                            split="scoring" if task.endswith("scoring") else "training",
                            model=row.model,
                            params=row.params,
                            context_tokens=row.context_tokens,
                            history_events=row.history_events,
                            metric=row.metric,
                            value=row.interval.value,
                            ci_low=row.interval.low,
                            ci_high=row.interval.high,
                            n=settings.rounds,
                            seconds=time.perf_counter() - began,
                            peak_bytes=row.peak_bytes or peak_rss_bytes(),
                            hardware=hardware(),
                            commit=git_commit(),
                            config_hash=config_hash,
                            seed=settings.seed,
                            timestamp=utc_now(),
                        )
                        for row in measured
                    ],
                )


if __name__ == "__main__":
    sys.exit(main())
