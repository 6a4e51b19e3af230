"""Ways of scoring timed in turn, A B A B, after a check that they score alike."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.scoring_ways import Request, Scores, Way

TOLERANCE = 1e-4

# A timed way: seconds of one scoring, and its scores.
Timed = Callable[[], tuple[float, Scores]]
# model, metric, value, its interval, n
Found = tuple[str, str, float, tuple[float, float] | None, int]


def timed(way: Way, request: Request) -> Timed:
    def once() -> tuple[float, Scores]:
        began = time.perf_counter()
        scores = way(request)
        return time.perf_counter() - began, scores

    return once


def median(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """A median and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), (float(low), float(high))


def fastest(ways: dict[int, Way], request: Request) -> tuple[int, Way]:
    """The batch size that is fastest after a warm-up; each is tried twice."""
    seconds = {}
    for batch, way in tqdm(ways.items(), desc="batch size", leave=False, delay=2):
        once = timed(way, request)
        seconds[batch] = min(once()[0] for _ in range(2))
    best = min(seconds, key=lambda batch: seconds[batch])
    return best, ways[best]


def against(mine: Timed, others: dict[str, Timed], *, rounds: int, candidates: int) -> list[Found]:
    """Speedups over other ways, items per second of all, and how far their scores are apart.

    Raises:
        ValueError: a way's scores are not ours; nothing is measured.
    """
    _, scores = mine()
    errors = {name: float(np.abs(other()[1] - scores).max()) for name, other in others.items()}
    wrong = {name: error for name, error in errors.items() if error > TOLERANCE}
    if wrong:
        raise ValueError(f"scores differ from ours: {wrong}; nothing was measured.")
    seconds = np.zeros((rounds, len(others), 2))
    for round_seconds in tqdm(seconds, desc="rounds", leave=False, delay=2):
        for at, other in enumerate(others.values()):
            round_seconds[at] = mine()[0], other()[0]
    rows: list[Found] = []
    for at, name in enumerate(others):
        ratio = median(seconds[:, at, 1] / seconds[:, at, 0])
        rate = median(candidates / seconds[:, at, 1])
        rows.append(("foundation", f"speedup_vs_{name}", *ratio, rounds))
        rows.append((name.replace("_", "-"), "items_per_s", *rate, rounds))
    rate = median(candidates / seconds[:, :, 0].mean(1))
    rows.append(("foundation", "items_per_s", *rate, rounds))
    rows.append(("foundation", "max_abs_error_fp32", max(errors.values()), None, candidates))
    return rows
