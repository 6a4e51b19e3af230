"""A peer's tuning: every entry of its grid is tried, with the weights that validation liked best.

    for name, place, config in untried(folder, grids):
        tried, answers = ...  # trained with a BestWeights
        tried.save(folder, name, place, answers=answers)
    tried, answers = best_try(folder, "sasrec", num_tries=4)

The worker tries and the benchmark chooses, each in its own environment: nothing here imports a
peer. What was tried is kept, so that a call that was killed goes on at the next entry.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.resuming import thread_seconds
from promptify.whole import whole_file, write_whole

LOOKS = 20
"""Looks at validation in one training, about; our SASRec takes as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """One entry of a grid, tried.

    Attributes:
        config: the entry.
        valid_ndcg: NDCG@10 on all requests of validation, which chooses between entries.
        seconds: `thread_seconds` of the training, looks included.
        curve: NDCG@10 on the watched requests, as (seconds, value); empty where nothing was.
    """

    config: dict[str, Any]
    valid_ndcg: float
    seconds: float
    curve: Sequence[Sequence[float]] = ()

    def save(self, folder: Path, name: str, place: int, *, answers: Mapping[str, Any]) -> None:
        """Keep it, and what it said of the test's requests.

        Args:
            folder: of the work.
            name: of the model.
            place: of the entry in the model's grid.
            answers: arrays by name.
        """
        path = _path(folder, name, place)
        with whole_file(path.with_suffix(".npz")) as partial, partial.open("wb") as file:
            np.savez(file, **answers)
        # Last: where there is a note, there are answers.
        write_whole(path, json.dumps(asdict(self)))


def _path(folder: Path, name: str, place: int) -> Path:
    return folder / f"{name}-{place}.json"


def untried(
    folder: Path, grids: Mapping[str, Sequence[dict[str, Any]]]
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, place and entry of whatever `folder` has no `Try` of yet, in the order of the grids."""
    for name, grid in grids.items():
        for place, config in enumerate(grid):
            if not _path(folder, name, place).exists():
                yield name, place, config


def best_try(folder: Path, name: str, *, num_tries: int) -> tuple[Try, dict[str, NDArray[Any]]]:
    """The entry of a model's grid that was best on validation, the first of equals.

    Args:
        folder: of the work.
        name: of the model.
        num_tries: entries of its grid, all of which were tried.

    Returns:
        The try, and what it said of the test's requests; no other's is read.

    Raises:
        OSError: an entry was not tried.
    """
    paths = [_path(folder, name, place) for place in range(num_tries)]
    tries = [Try(**json.loads(path.read_text("utf-8"))) for path in paths]
    best = max(range(num_tries), key=lambda place: tries[place].valid_ndcg)
    with np.load(paths[best].with_suffix(".npz"), allow_pickle=False) as kept:
        return tries[best], {key: kept[key] for key in kept.files}


class BestWeights:
    """The clock of a training, the looks at validation on the way, and the weights of the best one.

    A look takes its time from the training, as it does where the foundation and our SASRec train.

    Args:
        seconds: for training and looks together, from now on.
        measure: NDCG@10 on validation, of the weights as they are.
        clock: what the time is.
    """

    def __init__(
        self,
        *,
        seconds: float,
        measure: Callable[[], float],
        clock: Callable[[], float] = thread_seconds,
    ) -> None:
        self.curve: list[tuple[float, float]] = []
        self._seconds, self._measure, self._clock = seconds, measure, clock
        self._began = self._looked_at = clock()
        self._weights: dict[str, Tensor] | None = None

    def step(self, module: nn.Module) -> bool:
        """After an optimiser step: look where a look is due, and say whether the time is over."""
        assert module.training, "a look must leave the module as it is trained"
        now = self._clock()
        is_over = now - self._began >= self._seconds
        if not is_over and now - self._looked_at >= self._seconds / LOOKS:
            self._look(module)
        return is_over

    def finish(self, module: nn.Module) -> None:
        """Look a last time, and give the module the best weights that were seen."""
        self._look(module)
        assert self._weights is not None
        module.load_state_dict(self._weights)

    def _look(self, module: nn.Module) -> None:
        value = self._measure()
        if self._weights is None or value > max(seen for _, seen in self.curve):
            self._weights = copy.deepcopy(module.state_dict())
        self._looked_at = self._clock()
        self.curve.append((self._looked_at - self._began, value))
