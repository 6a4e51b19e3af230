import itertools
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks.peers import tuning
from benchmarks.peers.tuning import BestWeights, Try, best_try, untried

GRIDS = {"knn": [{}], "sasrec": [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}]}


def tried(value: float, **config: float) -> Try:
    return Try(config=config, valid_ndcg=value, seconds=3.0, curve=((1.0, value),))


def test_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    assert [(name, place) for name, place, _ in untried(tmp_path, GRIDS)] == [
        ("knn", 0),
        ("sasrec", 0),
        ("sasrec", 1),
        ("sasrec", 2),
    ]
    tried(0.1).save(tmp_path, "knn", 0, answers={"item": np.arange(3)})
    tried(0.2, lr=0.1).save(tmp_path, "sasrec", 0, answers={"item": np.arange(3)})
    # Killed here, within a model's grid.
    assert list(untried(tmp_path, GRIDS)) == [
        ("sasrec", 1, {"lr": 0.2}),
        ("sasrec", 2, {"lr": 0.3}),
    ]


def test_a_try_whose_answers_were_not_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(tuning.np, "savez", full)
    with pytest.raises(OSError, match="full"):
        tried(0.1).save(tmp_path, "knn", 0, answers={"item": np.arange(3)})
    assert next(untried(tmp_path, GRIDS)) == ("knn", 0, {})
    assert not list(tmp_path.iterdir())


def test_validation_chooses_the_entry_and_only_its_answers_are_read(tmp_path: Path) -> None:
    for place, value in enumerate((0.1, 0.3, 0.3)):
        entry = tried(value, lr=GRIDS["sasrec"][place]["lr"])
        entry.save(tmp_path, "sasrec", place, answers={"item": np.full(2, place)})
    for place in (0, 2):
        (tmp_path / f"sasrec-{place}.npz").write_bytes(b"not to be read")
    best, answers = best_try(tmp_path, "sasrec", num_tries=3)
    assert best.config == {"lr": 0.2}
    assert answers["item"].tolist() == [1, 1]


def test_an_entry_that_was_not_tried_is_missed(tmp_path: Path) -> None:
    tried(0.3, lr=0.1).save(tmp_path, "sasrec", 0, answers={"item": np.arange(3)})
    with pytest.raises(FileNotFoundError, match="sasrec-1"):
        best_try(tmp_path, "sasrec", num_tries=3)


class Training:
    """A module of one number, the steps it has made, with a clock that others may move on."""

    def __init__(self, values: list[float], *, look_seconds: float = 0.0) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.now, self.steps, self.looks = 100.0, 0, 0
        self.values, self.look_seconds = values, look_seconds
        self.best = BestWeights(seconds=100, measure=self.measure, clock=lambda: self.now)

    def measure(self) -> float:
        self.now += self.look_seconds
        self.looks += 1
        return self.values[min(self.steps, len(self.values) - 1)]

    def run(self, *, step_seconds: float) -> None:
        for self.steps in itertools.count(1):
            self.now += step_seconds
            nn.init.constant_(self.module.weight, self.steps)
            if self.best.step(self.module):
                break
        self.best.finish(self.module)


def test_the_weights_are_those_of_the_best_look_and_not_of_the_last() -> None:
    training = Training([0.0, 0.1, 0.4, 0.3, 0.4, 0.2])
    training.run(step_seconds=10)
    assert training.steps == 10
    assert training.module.weight.item() == 2
    assert training.best.curve[:3] == [(10.0, 0.1), (20.0, 0.4), (30.0, 0.3)]


def test_the_last_weights_are_looked_at_too() -> None:
    training = Training([0.0] * 10 + [0.5])
    training.run(step_seconds=10)
    assert training.module.weight.item() == 10


def test_looks_are_about_twenty_and_take_their_time_from_the_training() -> None:
    free = Training([0.1])
    free.run(step_seconds=1)
    assert (free.steps, free.looks) == (100, tuning.LOOKS)
    dear = Training([0.1], look_seconds=5)
    dear.run(step_seconds=1)
    # Five steps and a look of five seconds, ten times over; then a step and the last look.
    assert (dear.steps, dear.looks) == (51, 11)


def test_a_look_that_leaves_dropout_off_is_noticed() -> None:
    training = Training([0.1])
    training.module.eval()
    with pytest.raises(AssertionError, match="as it is trained"):
        training.best.step(training.module)
