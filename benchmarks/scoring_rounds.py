"""Ways of scoring timed in turn, A B A B, after a check that they score alike."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.scoring_ways import Request, Scores, Way

TOLERANCE = 1e-4

# A timed way: seconds of one scoring, and its scores.
Timed = Callable[[], tuple[float, Scores]]
# split, shape in words, model, metric, value, interval, n
Found = tuple[str, str, str, str, float, tuple[float, float] | None, int]


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


def against(
    split: str, shape: str, mine: Timed, others: dict[str, Timed], *, rounds: int, candidates: int
) -> Iterator[Found]:
    """Speedups over other ways, items per second of all, and how far their scores are apart.

    Raises:
        ValueError: a way's scores are not ours; nothing is measured.
    """
    _, scores = mine()
    errors = {name: float(np.abs(other()[1] - scores).max()) for name, other in others.items()}
    wrong = {name: error for name, error in errors.items() if error > TOLERANCE}
    if wrong:
        raise ValueError(f"{shape}: scores differ from ours: {wrong}; nothing was measured.")
    seconds = np.zeros((rounds, len(others), 2))
    for round_seconds in tqdm(seconds, desc=shape, leave=False, delay=2):
        for at, other in enumerate(others.values()):
            round_seconds[at] = mine()[0], other()[0]
    for at, name in enumerate(others):
        ratio, interval = median(seconds[:, at, 1] / seconds[:, at, 0])
        yield split, shape, "foundation", f"speedup_vs_{name}", ratio, interval, rounds
        rate, interval = median(candidates / seconds[:, at, 1])
        yield split, shape, name.replace("_", "-"), "items_per_s", rate, interval, rounds
    rate, interval = median(candidates / seconds[:, :, 0].mean(1))
    yield split, shape, "foundation", "items_per_s", rate, interval, rounds
    error = errors.get("one_by_one", max(errors.values()))
    yield split, shape, "foundation", "max_abs_error_fp32", error, None, candidates
