"""Training speed: events a second against TRL and plain Trainers, and slots against text.

    python -m benchmarks.training [--smoke] [--out FILE.csv] [--ml1m ml-1m.zip]

Three parts, each of sides that take turns (A B A B), a process each, on the same prompts with the
same weights in float32; a speed is the median over the rounds, a ratio the median of the rounds'
ratios:

    job_market   ours, in text and in slots; TRL's SFTTrainer, packed; a padded Trainer, with length
                 grouping and without
    ml1m         ours, in text and in slots: items of a dozen tokens
    scoring      one prefix of 200 events and 100 candidates, in text and in slots

An event counts when it stands in a prompt that is trained on. Passes over items and padding are
work, not work done. `mfu` is 6 · parameters without embeddings · tokens/s, over the peak of a
matrix product measured in every round.

The first use builds an environment for TRL (see `benchmarks.peers.environment`). With the same
--out, parts that are in the file already are not measured again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.peers.environment import PeerError, built, ensure
from benchmarks.peers.turns import Round, Worker, WorkerError
from benchmarks.peers.workload import Workload
from decant.results import ResultRow, append_csv, read_csv
from decant.run_data import split_of
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation import FitConfig, Foundation
from foundation.evaluation.bootstrap import Interval
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.sources.movielens import ml_1m
from promptify.validation import BadInput

Form = Literal["text", "slot"]

# In text the budget holds the history of the median member; in slots it holds four times as many.
JOB_PROMPTS: dict[Form, PrompterConfig] = {
    "text": PrompterConfig(form="text", max_prompt_tokens=2048, max_item_tokens=96),
    "slot": PrompterConfig(form="slot", max_prompt_tokens=448, max_item_tokens=96),
}
FILM_PROMPTS: dict[Form, PrompterConfig] = {
    "text": PrompterConfig(form="text", max_prompt_tokens=512, max_item_tokens=32),
    "slot": PrompterConfig(form="slot", max_prompt_tokens=512, max_item_tokens=32),
}
# The metrics that a target is set for, by the name of their part.
TARGETS = {
    ("job_market", "speedup_vs_trl_packed"): 1.0,
    ("job_market", "speedup_vs_padded"): 1.5,
    ("job_market", "slot_speedup_events"): 8.0,
    ("ml1m", "slot_speedup_events"): 3.0,
    ("job_market scoring", "slot_speedup_events"): 5.0,
    ("ml1m scoring", "slot_speedup_events"): 5.0,
}
NUM_CANDIDATES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much is measured.

    Args:
        size: of the decoder, a name in `foundation.sizes.SHAPES`.
        rounds: of every part; each gives one ratio.
        steps: optimiser steps of one side in one round.
        warm_up_steps: of each side before the first round.
        threads: of every process; only one works at a time.
        market: arguments of the generated job market.
        fit: how ours is trained; the others take its step size and schedule.
        scored_events: history of the scoring requests.
        seed: of data and weights.
    """

    size: str = "small"
    rounds: int = 9
    steps: int = 3
    warm_up_steps: int = 2
    threads: int = 2
    market: Mapping[str, int] = field(default_factory=dict)
    # Items of the job market are long: as many are read again per position as in the demo.
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=1, reread_items=32, refresh_steps=120)
    )
    scored_events: int = 200
    seed: int = 0


SMOKE = Settings(
    size="tiny",
    rounds=2,
    steps=1,
    warm_up_steps=1,
    market={"num_members": 120, "num_jobs": 80, "num_impressions": 2500},
    fit=FitConfig(epochs=1, positions_per_batch=4096, reread_items=8, refresh_steps=120),
    scored_events=20,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One number of the table."""

    model: str
    metric: str
    interval: Interval
    params: int | None = None
    context_tokens: int | None = None
    history_events: int | None = None
    peak_bytes: int | None = None


def median(values: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """The median over rounds with its bootstrap interval, rounds drawn."""
    if len(values) < 2 or np.ptp(values) == 0:
        middle = float(np.median(values))
        return Interval(value=middle, low=middle, high=middle)
    found = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=2000, rng=seed
    ).confidence_interval
    return Interval(value=float(np.median(values)), low=float(found.low), high=float(found.high))


def matrix_peak_flops(size: int = 2048) -> float:
    """Floating-point operations a second of a float32 matrix product, the best of three."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def take_turns(
    commands: Mapping[str, Sequence[str | Path]], settings: Settings, *, logs: Path, title: str
) -> tuple[dict[str, list[Round]], float]:
    """Rounds of every side in turn, and the matrix peak measured between them.

    Args:
        commands: of each side's process, by the side's name.
        settings: how many rounds of how many steps.
        logs: folder for what the processes print.
        title: of the progress bar.

    Raises:
        WorkerError: a process ended before its time.
    """
    rounds: dict[str, list[Round]] = {side: [] for side in commands}
    peaks = []
    workers: dict[str, Worker] = {}
    try:
        with tqdm(total=len(commands) * (settings.rounds + 1), desc=title) as bar:
            for side, command in commands.items():
                workers[side] = Worker(command, log=logs / f"{side.replace(' ', '_')}.log")
                # Waiting for its first steps here keeps one process from starting while another
                # is timed.
                workers[side].round(settings.warm_up_steps)
                bar.update()
            for _ in range(settings.rounds):
                for side, worker in workers.items():
                    rounds[side].append(worker.round(settings.steps))
                    bar.update()
                peaks.append(matrix_peak_flops())
    finally:
        for worker in workers.values():
            worker.close()
    return rounds, float(np.median(peaks))


def training_command(
    python: Path | str, side: str, workload: Workload, settings: Settings
) -> list[str | Path]:
    module = ["-m", "benchmarks.peers.trainers", side, str(workload.folder)]
    return [python, *module, "--threads", str(settings.threads)]


def events_per_s(rounds: Iterable[Round]) -> NDArray[np.float64]:
    return np.array([done.events / done.seconds for done in rounds])


def training_rows(
    rounds: Mapping[str, list[Round]],
    contexts: Mapping[str, int],
    *,
    params: int,
    peak_flops: float,
    ratios: Mapping[str, tuple[str, str]],
) -> list[Measured]:
    """What the rounds say: each side's speeds, and ratios of events per second.

    Args:
        rounds: of each side.
        contexts: budget of each side's prompts, in tokens.
        params: of the decoder without embeddings.
        peak_flops: of a matrix product on this machine.
        ratios: metric → (our side, the other).
    """
    rows = []
    for side, done in rounds.items():
        tokens = np.array([one.tokens / one.seconds for one in done])
        for metric, values in (
            ("events_per_s", events_per_s(done)),
            ("tokens_per_s", tokens),
            ("mfu", 6 * params * tokens / peak_flops),
        ):
            rows.append(
                Measured(
                    model=side,
                    metric=metric,
                    interval=median(values),
                    params=params,
                    context_tokens=contexts[side],
                    peak_bytes=done[-1].peak_bytes,
                )
            )
    for metric, (ours, other) in ratios.items():
        ratio = events_per_s(rounds[ours]) / events_per_s(rounds[other])
        rows.append(
            Measured(model=ours, metric=metric, interval=median(ratio), params=params)
        )
    return rows


def train_on_jobs(settings: Settings, scratch: Path, *, trl: Path | None) -> list[Measured]:
    """Ours in text and in slots, TRL packed both ways, a padded Trainer and a grouped one."""
    data = job_market(seed=settings.seed, **settings.market)
    workloads = {
        form: Workload.make(
            scratch / f"jobs-{form}", data, config=config, size=settings.size, fit=settings.fit
        )
        for form, config in JOB_PROMPTS.items()
    }
    pythons: dict[str, Path | str] = {"decant": sys.executable}
    if trl is not None:
        pythons |= {"trl_packed": trl, "trl_wrapped": trl}
    pythons |= {"padded": sys.executable, "grouped": sys.executable}
    commands = {
        side: training_command(python, side, workloads["text"], settings)
        for side, python in pythons.items()
    }
    commands["decant slots"] = training_command(
        sys.executable, "decant", workloads["slot"], settings
    )
    rounds, peak_flops = take_turns(commands, settings, logs=scratch, title="job market")
    ratios = {
        "speedup_vs_trl_packed": ("decant", "trl_packed"),
        "speedup_vs_trl_wrapped": ("decant", "trl_wrapped"),
        "speedup_vs_padded": ("decant", "padded"),
        "speedup_vs_grouped": ("decant", "grouped"),
        "slot_speedup_events": ("decant slots", "decant"),
    }
    return training_rows(
        rounds,
        {side: budget(JOB_PROMPTS, side) for side in rounds},
        params=workloads["text"].foundation().num_parameters(),
        peak_flops=peak_flops,
        ratios={metric: pair for metric, pair in ratios.items() if set(pair) <= set(rounds)},
    )


def train_on_films(settings: Settings, scratch: Path, data: SourceData) -> list[Measured]:
    """Ours in text and in slots, on items of a dozen tokens."""
    fit = replace(settings.fit, reread_items=64, refresh_steps=100)
    workloads = {
        form: Workload.make(
            scratch / f"films-{form}", data, config=config, size=settings.size, fit=fit
        )
        for form, config in FILM_PROMPTS.items()
    }
    names: dict[str, Form] = {"decant": "text", "decant slots": "slot"}
    commands = {
        side: training_command(sys.executable, "decant", workloads[form], settings)
        for side, form in names.items()
    }
    rounds, peak_flops = take_turns(commands, settings, logs=scratch, title="ml1m")
    return training_rows(
        rounds,
        {side: budget(FILM_PROMPTS, side) for side in rounds},
        params=workloads["text"].foundation().num_parameters(),
        peak_flops=peak_flops,
        ratios={"slot_speedup_events": ("decant slots", "decant")},
    )


def budget(prompts: Mapping[Form, PrompterConfig], side: str) -> int:
    return prompts["slot" if side == "decant slots" else "text"].max_prompt_tokens


def score_requests(
    settings: Settings, data: SourceData, prompts: Mapping[Form, PrompterConfig], *, title: str
) -> list[Measured]:
    """The same requests in text and in slots, in turn: events of the prefix a second.

    Raises:
        ValueError: nobody in the log has a history as long as is asked for.
    """
    log = data.interactions
    split = split_of(log, data.tasks)
    count = settings.scored_events
    long_enough = np.flatnonzero(np.diff(log.user_offsets) >= count)
    if len(long_enough) == 0:
        raise ValueError(f"{title}: nobody has {count} events; generate more impressions.")
    rng = np.random.default_rng(settings.seed)
    users = rng.choice(long_enough, size=settings.rounds + 1)
    candidates = np.sort(rng.choice(log.num_items, size=NUM_CANDIDATES, replace=False))
    asked: dict[str, Callable[[int], None]] = {}
    params = 0
    tokenizer = None
    for form, config in prompts.items():
        # A budget that leaves no event out, however long its item.
        room = count * (config.max_item_tokens + 2 * config.max_context_tokens) + 512
        prompter = Prompter.fit(
            log,
            split.train,
            data.tasks,
            config=replace(config, max_prompt_tokens=room),
            tokenizer=tokenizer,
        )
        tokenizer = prompter.tokenizer
        book = prompter.book(log)
        model = Foundation.create(prompter, book, split.train, size=settings.size)
        params = model.num_parameters()
        prefixes = [
            book.of_user(int(user), end - count, end, task=0)
            for user, end in zip(users, log.user_offsets[users + 1].tolist(), strict=True)
        ]
        assert all(int(prefix.num_dropped_events[0]) == 0 for prefix in prefixes)

        def ask(number: int, model: Foundation = model, prefixes: list = prefixes) -> None:
            model.score(prefixes[number], candidates, task=0)

        asked[form] = ask
    seconds: dict[str, list[float]] = {form: [] for form in asked}
    with tqdm(total=len(users) * len(asked), desc=f"{title} scoring") as bar:
        for number in range(len(users)):
            for form, ask in asked.items():
                start = time.perf_counter()
                ask(number)
                if number:  # The first of each warms up.
                    seconds[form].append(time.perf_counter() - start)
                bar.update()
    spent = {form: np.array(values) for form, values in seconds.items()}
    names = {"text": "decant", "slot": "decant slots"}
    found = [(names[form], "events_per_s", count / values) for form, values in spent.items()]
    found.append(("decant slots", "slot_speedup_events", spent["text"] / spent["slot"]))
    return [
        Measured(
            model=model_name,
            metric=metric,
            interval=median(values),
            params=params,
            history_events=count,
        )
        for model_name, metric, values in found
    ]


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
    parser.add_argument("--ml1m", type=Path, help="ml-1m.zip; without it those rows are left out")
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
    print(f"Decoder {settings.size}, {settings.rounds} rounds, {settings.threads} threads. {hardware()}")
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
        if options.ml1m:
            films = ml_1m(options.ml1m)
            parts["ml1m"] = lambda: train_on_films(settings, scratch, films)
            parts["ml1m scoring"] = lambda: score_requests(
                settings, films, FILM_PROMPTS, title="ml1m"
            )
        else:
            print("Without --ml1m the rows of MovieLens-1M are left out.")
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
