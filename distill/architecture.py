"""Which shape of a smaller model a budget buys best: searched, not drawn by hand.

    search = ArchitectureSearch(top, book, split, config=SearchConfig(parameters=0.1), latency=...)
    found = search.run(folder)

A trial draws a shape, prunes the top to it by importance, repairs what stays, teaches it for a
short while and asks how far it then is from the top on held-out requests: the divergence of what
it retrieves and of what it says of actions, which tells shapes apart with far fewer requests than
a count of hits. Time is measured before anything is repaired, so that a shape over its budget costs
seconds; and one that is worse after the repair than half of those before it is not taught at all.
The top alone teaches, and not the data: what is asked is how much of it a shape can hold.
Shapes are drawn by optuna's TPE. The first one is the ladder's own: what it would come to by going
down notch by notch; so the shape that is found is no worse by the search's own measure.

Each draw is written down when it is done, as JSON, and depends on those before it and on the seed
alone: killed at any moment, the same call draws again what was cut short and goes on from there.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import IntDistribution
from optuna.trial import TrialState
from tqdm.auto import tqdm

from distill.anatomy import (
    DIMENSIONS,
    Dimension,
    Shape,
    body_parameters,
    is_stock,
    notch,
    shape_of,
)
from distill.distillation import distil
from distill.exam import Exam
from distill.importance import measure_importance
from distill.kept import Kept
from distill.pruning import keep
from distill.repair import repair
from distill.steps import calibration_rows, next_shape
from distill.teaching import TeacherConfig
from foundation import FitConfig, Foundation
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput
from promptify.whole import write_whole

Ended = Literal["scored", "slow", "hopeless"]

# Of the ladder whose end is the first shape.
_MAX_STEP = 1 / 3
# Shapes that no budget of parameters allows, or that were drawn before, cost nothing but a draw.
_DRAWS_PER_TRIAL = 20
# Trials that are taught whatever the repair brought, so that there is a half to be worse than.
_TAUGHT_ANYWAY = 5
_RECORD = "draws.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a shape may cost, and how long it is looked for.

    Args:
        parameters: share of the top's body parameters that it may have; None for any.
        latency: share of the top's time for a request that it may take; None for any.
        num_trials: shapes that are pruned and measured; draws that no budget allows are not
            counted.
        fit: schedule of each short distillation; the data's own losses do not count in it.
        teacher: what the top teaches.
        calibration_rows: prompts that importance is measured and repairs are made on.
        requests: held-out requests that a shape is scored on.
        timed_requests: that `latency` measures on; a search is known by it.
        seed: of the draws and of the calibration prompts.
    """

    parameters: float | None = None
    latency: float | None = None
    num_trials: int = 40
    fit: FitConfig = field(default_factory=FitConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    calibration_rows: int = 1000
    requests: int = 500
    timed_requests: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if self.parameters is None and self.latency is None:
            raise ValueError(
                "SearchConfig has no budget: without one the top is the best shape. Give "
                "parameters or latency, as a share of the top's."
            )
        for name in ("parameters", "latency"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"SearchConfig.{name}={share} must lie between 0 and 1.")
        for name in ("num_trials", "calibration_rows", "requests", "timed_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"SearchConfig.{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A shape that was drawn, and how far it came.

    Attributes:
        number: of the draw.
        shape: that was drawn.
        is_ladders: whether it is where the ladder would have come by itself, with what that leaves
            of a budget of parameters given to its neurons.
        ended: ``scored``; or ``slow``, over the budget of time; or ``hopeless``, worse after the
            repair than half of the others.
        parameters: share of the top's body.
        latency: share of the top's time for a request.
        repaired: divergence from the top after the repair, nats a request; None where none was
            made.
        divergence: the same after the distillation: what the search makes small.
        ndcg: NDCG@10 on the same requests then.
        seconds: that all of it took.
    """

    number: int
    shape: Shape
    is_ladders: bool
    ended: Ended
    parameters: float
    latency: float
    repaired: float | None = None
    divergence: float | None = None
    ndcg: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search leaves.

    Attributes:
        tried: every shape, in order.
        best: of those that were scored, the one nearest to the top; None where none was.
    """

    tried: tuple[Tried, ...]
    best: Tried | None

    def front(self) -> tuple[Tried, ...]:
        """Scored shapes that no other one beats in both time and divergence, fastest first."""
        front: list[Tried] = []
        scored = [one for one in self.tried if one.divergence is not None]
        for one in sorted(scored, key=lambda one: (one.latency, one.divergence)):
            if not front or (one.divergence or 0.0) < (front[-1].divergence or 0.0):
                front.append(one)
        return tuple(front)


class ArchitectureSearch:
    """Looks for a shape; see the module.

    Args:
        top: the model that smaller ones are made of; only read.
        book: pieces of the interactions.
        split: which events train, and on which targets shapes are scored.
        config: the budget.
        latency: a model's time for a request as a share of the top's, measured in turn.
        device: where shapes are made, taught and measured; `top` is moved there.

    Raises:
        BadInput: no shape has as few parameters as the budget asks for.
    """

    def __init__(
        self,
        top: Foundation,
        book: PromptBook,
        split: Split,
        *,
        config: SearchConfig,
        latency: Callable[[Foundation], float],
        device: str = "cpu",
    ) -> None:
        self.top, self.book, self.split, self.config = top.to(device), book, split, config
        self.latency = latency
        self._sizes = {dimension: sizes(top.decoder, dimension) for dimension in DIMENSIONS}
        self._smallest = Shape(**{name: found[-1] for name, found in self._sizes.items()})
        budget, least = config.parameters, self._ratio(self._smallest)
        if budget is not None and least > budget:
            raise BadInput(
                f"parameters={budget:g} of the body is less than the smallest shape has "
                f"({self._smallest}: {least:.2g}); give {least:.2g} or more."
            )
        self._rows = calibration_rows(
            book, split.train, count=config.calibration_rows, seed=config.seed
        )
        self._importance = measure_importance(top, self._rows)
        self._exam = Exam(top, book, split.valid, requests=config.requests)
        self._times: dict[Shape, float] = {}
        # By the top alone: what the data has to say beyond it would lead away from what is scored.
        self._fit = replace(config.fit, next_item_weight=0.0, action_weight=0.0, text_weight=0.0)

    def run(self, folder: Path, *, mark: str) -> Found:
        """Search, or go on with it.

        Args:
            folder: keeps what was drawn.
            mark: of the top's weights; the folder is refused to another.

        Raises:
            BadInput: no shape is as fast as the budget asks for, or the folder holds another
                search, or one that runs, or something else.
        """
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                return self._searched_in(folder, mark)
        except Timeout:
            raise BadInput(
                f"{folder}: another process is searching there; wait until it ends, or choose "
                "another folder."
            ) from None

    def _searched_in(self, folder: Path, mark: str) -> Found:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_TAUGHT_ANYWAY)
        )
        known: dict[Shape, Tried] = {}
        draws = self._drawn_before(folder / _RECORD, mark)
        for draw in draws:
            study.add_trial(self._as_trial(draw))
            if draw["is_new"]:
                tried = _tried(draw["tried"])
                known[tried.shape] = tried
        if not draws:
            self._check_fastest()
            # Killed in the first trial, the folder is known for a search's.
            self._write_draws(folder / _RECORD, mark, draws)
            study.enqueue_trial(self._places(self.ladders_shape()))
        most = _DRAWS_PER_TRIAL * self.config.num_trials
        with tqdm(total=self.config.num_trials, initial=len(known), desc="shapes") as bar:
            while len(known) < self.config.num_trials and len(draws) < most:
                seeds = np.random.SeedSequence([self.config.seed, len(draws)])
                study.sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]))
                trial = study.ask()
                shape = self._drawn(trial)
                is_new = shape is not None and shape not in known
                if shape is not None and is_new:
                    known[shape] = self._try(
                        trial, shape, folder / "trial", is_ladders=not known, number=len(draws)
                    )
                    bar.update()
                said = known[shape] if shape is not None else None
                value = None if said is None else said.divergence
                study.tell(
                    trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE
                )
                draws.append(
                    {
                        "params": trial.params,
                        "tried": None if said is None else asdict(said),
                        "is_new": is_new,
                    }
                )
                self._write_draws(folder / _RECORD, mark, draws)
        shutil.rmtree(folder / "trial", ignore_errors=True)
        scored = [one for one in known.values() if one.divergence is not None]
        return Found(
            tried=tuple(known.values()),
            best=min(scored, key=lambda one: (one.divergence, one.latency), default=None),
        )

    def ladders_shape(self) -> Shape:
        """What the ladder would come to at the budget, by the importance of the top's parts."""
        decoder, shape = self.top.decoder, shape_of(self.top.decoder)
        share = self.config.parameters or 1.0
        while True:
            # With a budget of time the first step is due whatever its parameters.
            if self.config.latency is not None:
                share = min(share, (1 - _MAX_STEP) * self._ratio(shape))
            while self._ratio(shape) > share:
                smaller = next_shape(
                    decoder,
                    self._importance,
                    step=_MAX_STEP,
                    at_least=int(share * self.top.num_parameters()),
                    start=shape,
                )
                if smaller is None:
                    return self._smallest
                shape = smaller
            if self.config.latency is None or self._time(shape) <= self.config.latency:
                return shape

    def _try(
        self, trial: optuna.Trial, shape: Shape, folder: Path, *, is_ladders: bool, number: int
    ) -> Tried:
        began = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        said: dict[str, Any] = {"ended": "slow", "latency": self._time(shape)}
        if self.config.latency is None or said["latency"] <= self.config.latency:
            kept = Kept.most_important(self._importance, shape)
            student = keep(self.top, kept, self._importance.energy)
            repair(student, self.top, kept, self._rows)
            said["repaired"], _ = self._exam.mark(student)
            trial.report(said["repaired"], 0)
            said["ended"] = "hopeless"
            if not trial.should_prune():
                distil(
                    student,
                    self.top,
                    self.book,
                    self.split,
                    config=self._fit,
                    teacher_config=self.config.teacher,
                    out=folder,
                )
                said["divergence"], said["ndcg"] = self._exam.mark(student)
                said["ended"] = "scored"
        return Tried(
            number=number,
            shape=shape,
            is_ladders=is_ladders,
            parameters=self._ratio(shape),
            seconds=round(time.monotonic() - began, 1),
            **said,
        )

    def _drawn(self, trial: optuna.Trial) -> Shape | None:
        """A shape within the budget of parameters; None where no number of neurons is."""
        drawn = {
            name: found[trial.suggest_int(name, 0, len(found) - 1)]
            for name, found in self._sizes.items()
            if name in self._searched
        }
        neurons = self._sizes["neurons"] if "neurons" not in drawn else [drawn.pop("neurons")]
        budget = self.config.parameters or 1.0
        for most in neurons:
            shape = Shape(neurons=most, **drawn)
            if self._ratio(shape) <= budget and is_stock(self.top.decoder, shape):
                return shape
        return None

    @property
    def _searched(self) -> tuple[Dimension, ...]:
        """With a budget of parameters alone, neurons take what the others leave of it."""
        if self.config.latency is None:
            return tuple(name for name in DIMENSIONS if name != "neurons")
        return DIMENSIONS

    def _places(self, shape: Shape) -> dict[str, int]:
        return {name: self._sizes[name].index(shape.size(name)) for name in self._searched}

    def _as_trial(self, draw: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
        tried = draw["tried"]
        value = tried and tried["divergence"]
        is_reported = draw["is_new"] and tried["repaired"] is not None
        return optuna.trial.create_trial(
            state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
            value=value,
            params=draw["params"],
            distributions={
                name: IntDistribution(0, len(self._sizes[name]) - 1) for name in self._searched
            },
            intermediate_values={0: tried["repaired"]} if is_reported else None,
        )

    def _check_fastest(self) -> None:
        budget = self.config.latency
        if budget is None:
            return
        fastest = self._time(self._smallest)
        if fastest > budget:
            raise BadInput(
                f"latency={budget:g} is out of reach: the smallest shape ({self._smallest}) takes "
                f"{fastest:.2f} of the top's time here; give more than that."
            )

    def _time(self, shape: Shape) -> float:
        if shape not in self._times:
            kept = Kept.most_important(self._importance, shape)
            self._times[shape] = self.latency(keep(self.top, kept, self._importance.energy))
        return self._times[shape]

    def _ratio(self, shape: Shape) -> float:
        return body_parameters(self.top.decoder, shape) / self.top.num_parameters()

    def _identity(self, mark: str) -> dict[str, Any]:
        # More trials are the same search, for longer.
        config: dict[str, Any] = json.loads(json.dumps(asdict(self.config)))
        return {"top": mark, "config": {k: v for k, v in config.items() if k != "num_trials"}}

    def _write_draws(self, path: Path, mark: str, draws: list[dict[str, Any]]) -> None:
        record = {"search": self._identity(mark), "draws": draws}
        write_whole(path, json.dumps(record, indent=1) + "\n")

    def _drawn_before(self, path: Path, mark: str) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        try:
            record = json.loads(path.read_text("utf-8"))
            draws: list[dict[str, Any]] = list(record["draws"])
            search = dict(record["search"])
            config = dict(search["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path} is damaged ({error}); delete it to search anew, or copy it again."
            ) from error
        # One of before says nothing of how many requests were timed.
        search["config"] = {"timed_requests": self.config.timed_requests, **config}
        if draws and search != self._identity(mark):
            raise BadInput(
                f"{path} is of another search: another top, budget or schedule. Choose another "
                "folder, or delete this one first."
            )
        return draws


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a search, which would write over it.

    Raises:
        BadInput: it does, or it is no folder.
    """
    if not folder.exists() or (folder / _RECORD).exists():
        return
    # Hidden is our lock, and what a kill left of a first write.
    if not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir()):
        raise BadInput(
            f"{folder} holds something else than a search; give another --out, or delete this "
            "one first."
        )


def sizes(decoder: Any, dimension: Dimension) -> list[int]:
    """The sizes that a dimension can be pruned to, largest first, by the notches of the ladder.

    Args:
        decoder: whose family must take them, of some families only beside some sizes of another
            dimension: a width that the heads divide.
        dimension: which.
    """
    there = shape_of(decoder)
    shapes = [there]
    if dimension == "hidden":
        shapes = [there.with_size("groups", size) for size in range(there.groups, 0, -1)]
    elif dimension == "groups":
        shapes += [there.with_size("hidden", size) for size in range(there.hidden // 8 * 8, 0, -8)]
    found = {there.size(dimension)}
    for beside in shapes:
        shape = beside
        while (smaller := notch(decoder, shape, dimension)) is not None:
            shape = smaller
            found.add(shape.size(dimension))
    return sorted(found, reverse=True)


def _tried(content: Mapping[str, Any]) -> Tried:
    return Tried(**{**content, "shape": Shape(**content["shape"])})
