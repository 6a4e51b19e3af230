"""The parts of `benchmarks.training`: which sides take turns, on what, and what is made of it."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.peers.trainers import SIDES
from benchmarks.peers.turns import Round, Worker
from benchmarks.peers.workload import Workload
from decant.run_data import split_of
from foundation import FitConfig, Foundation
from foundation.evaluation.bootstrap import Interval
from promptify.prompter import Prompter, PrompterConfig
from promptify.rows import Rows
from promptify.sources import SourceData
from promptify.sources.job_market import job_market

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
        sides: of the job market in text, as in `benchmarks.peers.trainers`.
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
    sides: tuple[str, ...] = SIDES
    seed: int = 0


SMOKE = Settings(
    size="tiny",
    rounds=2,
    steps=1,
    warm_up_steps=1,
    market={"num_members": 120, "num_jobs": 80, "num_impressions": 2500},
    fit=FitConfig(epochs=1, positions_per_batch=4096, reread_items=8, refresh_steps=120),
    scored_events=20,
    sides=("decant", "trl_packed", "padded"),
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
            # All are up, and asleep, before any is timed.
            for worker in workers.values():
                worker.round(settings.warm_up_steps)
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
        rows.append(Measured(model=ours, metric=metric, interval=median(ratio), params=params))
    return rows


def train_on_jobs(settings: Settings, scratch: Path, *, trl: Path | None) -> list[Measured]:
    """Ours in text and in slots, TRL packed both ways, padded Trainers and a grouped one."""
    data = job_market(seed=settings.seed, **settings.market)
    workloads = {
        form: Workload.make(
            scratch / f"jobs-{form}", data, config=config, size=settings.size, fit=settings.fit
        )
        for form, config in JOB_PROMPTS.items()
    }
    sides = [side for side in settings.sides if trl is not None or not side.startswith("trl")]
    commands = {
        side: training_command(
            trl if trl is not None and side.startswith("trl") else sys.executable,
            side,
            workloads["text"],
            settings,
        )
        for side in sides
    }
    commands["decant slots"] = training_command(
        sys.executable, "decant", workloads["slot"], settings
    )
    rounds, peak_flops = take_turns(commands, settings, logs=scratch, title="job market")
    ratios = {
        "speedup_vs_trl_packed": ("decant", "trl_packed"),
        "speedup_vs_trl_wrapped": ("decant", "trl_wrapped"),
        "speedup_vs_padded": ("decant", "padded"),
        "speedup_vs_padded_by_two": ("decant", "padded_by_two"),
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
    models: dict[Form, Foundation] = {}
    prefixes: dict[Form, list[Rows]] = {}
    for form, config in prompts.items():
        # A budget that leaves no event out, however long its item.
        room = count * (config.max_item_tokens + 2 * config.max_context_tokens) + 512
        prompter = Prompter.fit(
            log,
            split.train,
            data.tasks,
            config=replace(config, max_prompt_tokens=room),
            tokenizer=models["text"].prompter.tokenizer if "text" in models else None,
        )
        book = prompter.book(log)
        models[form] = Foundation.create(prompter, book, split.train, size=settings.size)
        prefixes[form] = [
            book.of_user(user, end - count, end, task=0)
            for user, end in zip(users.tolist(), log.user_offsets[users + 1].tolist(), strict=True)
        ]
    seconds: dict[Form, list[float]] = {form: [] for form in prompts}
    with tqdm(total=len(users) * len(prompts), desc=f"{title} scoring") as bar:
        for request in range(len(users)):
            for form, model in models.items():
                start = time.perf_counter()
                model.score(prefixes[form][request], candidates, task=0)
                seconds[form].append(time.perf_counter() - start)
                bar.update()
    # The first request of each warms up.
    text, slot = np.array(seconds["text"][1:]), np.array(seconds["slot"][1:])
    return [
        Measured(
            model=side,
            metric=metric,
            interval=median(values),
            params=models["text"].num_parameters(),
            history_events=count,
        )
        for side, metric, values in (
            ("decant", "events_per_s", count / text),
            ("decant slots", "events_per_s", count / slot),
            ("decant slots", "slot_speedup_events", text / slot),
        )
    ]
