"""How long a whole request takes, asked by one person at a time and by many at once.

    python -m benchmarks.latency RUN [--out FILE.csv]
    python -m benchmarks.latency --smoke

A request is somebody of the log with all that they did: the prompt is assembled and read, 500 items
are retrieved from the index, the first 100 are ranked by the full score, and the ten best come back
with their probabilities. Beside it stands what a `Recommender` does unasked, 200 retrieved and all
of them ranked. So many callers ask in a closed loop: each waits for its answer and asks again.

Nobody is asked for twice by a round, and a round begins with an empty prefix cache, so no reading
is found there. Levels and ways take turns in rounds; percentiles are over all requests of all
rounds, with a bootstrap interval over requests. `requests_per_s` is of a round.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.measured import Measured
from benchmarks.studied import named_run, run_parser
from benchmarks.subjects import SMOKE, Subject, finished, trained
from decant.answering import NUM_RETRIEVED
from decant.layout import RunLayout
from decant.recommender import Recommender, build_index
from decant.run_record import hardware
from foundation.checkpoint import weights_hash
from foundation.evaluation import Interval

LEVELS = (1, 2, 4, 8, 16, 32)
"""Callers at once."""
RETRIEVED, RANKED = 500, 100
NUM_ROUNDS = 3
NUM_REQUESTS = 300
"""Of each level, over all rounds."""

WAYS: dict[str, Callable[..., Recommender]] = {
    f"retrieve {RETRIEVED}, rank {RANKED}": partial(
        Recommender, num_retrieved=RETRIEVED, num_ranked=RANKED
    ),
    f"retrieve {NUM_RETRIEVED}, rank {NUM_RETRIEVED}": Recommender,
}


def measure(
    subject: Subject, measured: Measured, *, name: str, levels: Sequence[int], requests: int
) -> None:
    """Write the rows of every way at every level.

    Args:
        subject: the model and the log.
        measured: where rows go.
        name: of the model in its rows.
        levels: callers at once.
        requests: of each, over all rounds.
    """
    index = build_index(subject.foundation, model_hash="timed")
    log = subject.book.interactions
    active = np.flatnonzero(np.diff(log.user_offsets) > 0)
    users = np.random.default_rng(0).permutation(active)
    per_round = max(1, min(requests // NUM_ROUNDS, len(users)))
    took: dict[tuple[str, int], list[float]] = {}
    rates: dict[tuple[str, int], list[float]] = {}
    todo = [(at, way, level) for at in range(-1, NUM_ROUNDS) for level in levels for way in WAYS]
    for at, way, level in tqdm(todo, desc="rounds"):
        recommender = WAYS[way](subject.foundation, index, subject.book)
        # The round before the first warms up, with a few of each.
        count = per_round if at >= 0 else min(per_round, 2 * level)
        asked = np.roll(users, -max(at, 0) * per_round)[:count].tolist()
        began = time.perf_counter()
        with ThreadPoolExecutor(level) as callers:
            seconds = list(callers.map(partial(_timed, recommender), asked))
        if at >= 0:
            took.setdefault((way, level), []).extend(1000 * one for one in seconds)
            rates.setdefault((way, level), []).append(count / (time.perf_counter() - began))
    for (way, level), values in took.items():
        add = partial(
            measured.add,
            task=subject.task,
            split=f"{level} at once",
            model=f"{name}, {way}",
            params=subject.foundation.num_parameters(),
            context_tokens=subject.book.prompter.config.max_prompt_tokens,
            seed=subject.seed,
        )
        for percent in (50, 95, 99):
            interval = percentile(np.array(values), percent)
            add(metric=f"p{percent}_ms", interval=interval, n=len(values))
        rate = rates[way, level]
        interval = Interval(value=float(np.median(rate)), low=min(rate), high=max(rate))
        add(metric="requests_per_s", interval=interval, n=len(rate))


def percentile(values: NDArray[np.float64], percent: float) -> Interval:
    """A percentile and its 95 % bootstrap interval."""
    value = float(np.percentile(values, percent))
    if len(values) < 2:
        return Interval(value=value, low=-np.inf, high=np.inf)
    drawn = scipy.stats.bootstrap(
        (values,),
        lambda x, axis: np.percentile(x, percent, axis=axis),
        n_resamples=1000,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Interval(value=value, low=float(drawn.low), high=float(drawn.high))


def _timed(recommender: Recommender, user: int) -> float:
    began = time.perf_counter()
    recommender.predict_row(user, k=10)
    return time.perf_counter() - began


def table(measured: Measured) -> str:
    """A line per way and level."""
    lines = [f"{'':40}{'':12}{'p50':>8}{'p95':>8}{'p99 ms':>8}{'requests/s':>12}"]
    rows = measured.rows
    for key in dict.fromkeys((row.model, row.split) for row in rows):
        found = {row.metric: row.value for row in rows if (row.model, row.split) == key}
        cells = "".join(f"{found[f'p{percent}_ms']:8.1f}" for percent in (50, 95, 99))
        lines.append(f"{key[0]:40}{key[1]:12}{cells}{found['requests_per_s']:12.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__, has_work=False)
    parser.add_argument("--model", help="of the run; default: the one that serves")
    options = parser.parse_args(arguments)
    try:
        if options.smoke:
            with tempfile.TemporaryDirectory() as scratch:
                subject = trained("slot", SMOKE, seed=0, scratch=Path(scratch))
            name, weights = "smoke", "smoke"
        else:
            folder = named_run(options)
            layout = RunLayout(folder)
            name = options.model or layout.served()
            subject = finished(folder, model=name)
            weights = weights_hash(layout.model(name))
        threads = torch.get_num_threads()
        settings = {
            "weights": weights,
            "threads": threads,
            "shape": [RETRIEVED, RANKED, NUM_RETRIEVED],
            "requests": [NUM_ROUNDS, NUM_REQUESTS],
            "hardware": hardware(),
        }
        measured = Measured("latency", settings, out=options.out, threads=threads)
        levels = (1, 4) if options.smoke else LEVELS
        # The row that is written last.
        way, level = f"{name}, {tuple(WAYS)[-1]}", f"{levels[-1]} at once"
        if not measured.has(model=way, split=level, metric="requests_per_s"):
            # All of them or none: ways and levels took turns, and are told of one afternoon.
            with measured.at_once():
                measure(
                    subject,
                    measured,
                    name=name,
                    levels=levels,
                    requests=12 if options.smoke else NUM_REQUESTS,
                )
    except (ValueError, OSError) as error:
        print(f"benchmarks.latency: error: {error}", file=sys.stderr)
        return 1
    log = subject.book.interactions
    print(f"{subject.task}, {log.num_items:,} items, {threads} threads. {hardware()}")
    print(table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
