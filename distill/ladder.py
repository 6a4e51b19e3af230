"""One rung after another: prune a little, repair, ask the gate; teach where repair is not enough.

    ladder = Ladder(top, book, split, config=LadderConfig(to=0.05), hands=...)
    rung = ladder.step_down(top, scratch=folder)

A repaired model that passes is a rung as it is: teaching starts an optimiser anew, which moves it
away from the rung above before it moves it back. A step that the gate fails even when taught is
halved and taken again. Killed at any moment, the same call goes on where it stopped and ends with
the same rung: every part of an attempt is written down when it is whole, and the next begins from
what was written.

attempt-1/plan.json        the shape
attempt-1/start/           the pruned and repaired model
attempt-1/repaired/        the same, calibrated, as `model`; the gate's verdicts against the rung
                           above and the top, as `verdicts`
attempt-1/taught/          the model, distilled and calibrated, and its verdicts likewise; `fit`,
                           checkpoints of the distillation
"""

import json
import logging
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from distill.anatomy import Shape, body_parameters, check_shape
from distill.gate import GateConfig, GateVerdict, Measurements, Status, verdict
from distill.importance import Importance, measure_importance
from distill.kept import Kept
from distill.ladder_config import LadderConfig
from distill.pruning import keep
from distill.repair import repair
from distill.rung_teaching import RungTeaching
from distill.steps import calibration_rows, next_shape
from foundation import Foundation
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split, Targets
from promptify.whole import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hands:
    """What a ladder cannot do by itself.

    Args:
        measure: models by name, and targets, to what each does on them; latency is taken in turn.
        settle: calibrates a distilled model and fits what is fitted on validation, in place.
        watch: a model's metrics while it is trained, of which ``ndcg@10`` chooses the weights.
    """

    measure: Callable[[Mapping[str, Foundation], Targets], Mapping[str, Measurements]]
    settle: Callable[[Foundation], None]
    watch: Callable[[Foundation], dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One step that was tried.

    Attributes:
        step: share of the body parameters that it might give up.
        shape: what it came to; None where no notch was small enough.
        epochs: of the distillation; 0 where repair was enough.
        parameters: of its body.
        status: the gate's, against the rung above and the top together.
        failed: metrics that lost too much against either.
        num_targets: held-out slates that the gate rested on.
        measured: what the gate read of it, by metric.
        p99_ms: milliseconds that one in a hundred of its requests takes longer than; None where
            none was timed.
    """

    step: float
    shape: Shape | None
    epochs: float = 0.0
    parameters: int = 0
    status: Status = "fail"
    failed: tuple[str, ...] = ()
    num_targets: int = 0
    measured: Mapping[str, float | None] = field(default_factory=dict)
    p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A step that was taken, or why none was.

    Attributes:
        folder: of the model; None where every step failed.
        attempts: all that was tried, the last one taken.
        above: the gate's verdict against the rung above.
        top: the gate's verdict against the top.
        p99_ms: of requests to the ``top``, the rung ``above`` and the ``rung``, as `Attempt`'s.
        history: what the distillation logged, as `FitResult` has it.
    """

    folder: Path | None
    attempts: tuple[Attempt, ...]
    above: GateVerdict | None = None
    top: GateVerdict | None = None
    p99_ms: Mapping[str, float | None] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)


class Ladder:
    """Goes down from a top model; see the module.

    Args:
        top: the model at the top; only read, and moved to the device.
        book: pieces of the interactions.
        split: which events train, and on which targets the gate decides.
        config: how far, in what steps.
        hands: what measures and calibrates.
        device: where rungs are made, trained and measured.

    Raises:
        BadInput: the config ends at a shape that the top cannot be pruned to.
    """

    def __init__(
        self,
        top: Foundation,
        book: PromptBook,
        split: Split,
        *,
        config: LadderConfig,
        hands: Hands,
        device: str = "cpu",
    ) -> None:
        self.top, self.book, self.split = top.to(device), book, config.asked(split)
        self.config, self.hands, self.device = config, hands, device
        if config.shape is not None:
            check_shape(top.decoder, config.shape)
        self.teaching = RungTeaching(self.top, book, self.split, config=config)

    @property
    def end_parameters(self) -> int:
        """Body parameters at which the ladder ends."""
        if self.config.shape is not None:
            return body_parameters(self.top.decoder, self.config.shape)
        return int(self.config.to * self.top.num_parameters())

    def step_down(self, above: Foundation, *, scratch: Path, step: float | None = None) -> Rung:
        """Take the next step, or go on with it where it was cut short.

        Args:
            above: the rung above; only read, and moved to the device.
            scratch: keeps what is done so far.
            step: share of the body parameters that may go; the largest of the config when left out.
        """
        step = self.config.max_step if step is None else step
        above.to(self.device)
        attempts: list[Attempt] = []
        # The same for every step, and as dear as reading the calibration prompts.
        importance = cache(lambda: measure_importance(above, self.calibration_rows()))
        for halving in range(self.config.num_halvings + 1):
            folder = scratch / f"attempt-{halving + 1}"
            folder.mkdir(parents=True, exist_ok=True)
            part = step / 2**halving
            failed = {attempt.shape: attempt for attempt in attempts}
            shape = self._start(above, importance, part, folder, but=failed)
            if shape is None:
                logger.info("no notch is as small as %.1f %%", 100 * part)
                attempts.append(Attempt(step=part, shape=None))
                break
            if shape in failed:  # The same model would be made and fail again.
                attempts.append(replace(failed[shape], step=part))
            else:
                found, rung = self._attempt(above, shape, part, folder)
                attempts.append(found)
                if rung is not None:
                    return replace(rung, attempts=tuple(attempts))
            logger.info(
                "a step of %.1f %% fails; %s",
                100 * part,
                "half of it is tried" if halving < self.config.num_halvings else "the ladder ends",
            )
        return Rung(folder=None, attempts=tuple(attempts))

    def _attempt(
        self, above: Foundation, shape: Shape, step: float, folder: Path
    ) -> tuple[Attempt, Rung | None]:
        """Make a model of a shape that `_start` began, and judge it."""
        tried: list[tuple[float, Path, dict[str, Any]]] = []
        for make in (self._repaired, self._taught) if self.config.repair else (self._taught,):
            epochs, made = make(above, folder)
            tried.append((epochs, made, self.judge(above, made)))
            if tried[-1][2]["status"] == "pass":
                break
        epochs, made, judged = tried[place_taken([one[2]["status"] for one in tried])]
        attempt = Attempt(
            step=step,
            shape=shape,
            epochs=epochs,
            parameters=body_parameters(self.top.decoder, shape),
            status=judged["status"],
            failed=tuple(judged["failed"]),
            num_targets=judged["num_targets"],
            measured=judged["measured"],
            p99_ms=judged["p99_ms"]["rung"],
        )
        if attempt.status == "fail":
            return attempt, None
        return attempt, Rung(
            folder=made / "model",
            attempts=(),
            above=GateVerdict.load(made / "verdicts" / "above.json"),
            top=GateVerdict.load(made / "verdicts" / "top.json"),
            p99_ms=judged["p99_ms"],
            history=_read_json(made / "history.json") if epochs else {},
        )

    def _start(
        self,
        above: Foundation,
        importance: Callable[[], Importance],
        step: float,
        folder: Path,
        *,
        but: Container[Shape | None],
    ) -> Shape | None:
        """Prune and repair; nothing to shapes that failed, `but`."""
        plan = folder / "plan.json"
        if not plan.exists():
            counts = importance()
            shape = next_shape(
                above.decoder,
                counts,
                step=step,
                at_least=self.end_parameters,
                until=self.config.shape,
            )
            repairs: list[Any] = []
            if shape is not None and shape not in but:
                kept = Kept.most_important(counts, shape)
                student = keep(above, kept, counts.energy)
                if self.config.repair:
                    rows = self.calibration_rows()
                    repairs = [asdict(one) for one in repair(student, above, kept, rows)]
                student.save_pretrained(folder / "start")
            _write_json(
                plan, {"shape": None if shape is None else asdict(shape), "repairs": repairs}
            )
        shape = _read_json(plan)["shape"]
        return None if shape is None else Shape(**shape)

    def calibration_rows(self) -> Rows:
        """The prompts that decide what stays, the same on every rung."""
        config = self.config
        return calibration_rows(
            self.book, self.split.train, count=config.calibration_rows, seed=config.seed
        )

    def _repaired(self, above: Foundation, folder: Path) -> tuple[float, Path]:
        """What pruning and repair left, calibrated: after 0 epochs, and where it is."""
        made = folder / "repaired"
        if not (made / "model").exists():
            student = self._model(folder / "start")
            self.hands.settle(student)
            made.mkdir(exist_ok=True)
            student.save_pretrained(made / "model")
        return 0.0, made

    def _taught(self, above: Foundation, folder: Path) -> tuple[float, Path]:
        """The same, distilled: after how many epochs, and where it is."""
        made, timed = folder / "taught", folder / "epochs.json"
        if not timed.exists():
            # What was timed is kept: cut short, a rung is taught as long as it would have been.
            epochs, minutes = self.config.fit.epochs, self.config.minutes_per_rung
            if minutes is not None:
                student = self._model(folder / "start")
                epochs = self.teaching.affordable_epochs(student, above, minutes=minutes)
            _write_json(timed, {"epochs": epochs})
        epochs = float(_read_json(timed)["epochs"])
        if not (made / "model").exists():
            made.mkdir(exist_ok=True)
            student = self._model(folder / "start")
            result = self.teaching.teach(
                student, above, epochs=epochs, out=made / "fit", watch=self.hands.watch
            )
            self.hands.settle(student)
            _write_json(made / "history.json", asdict(result))
            student.save_pretrained(made / "model")
            shutil.rmtree(made / "fit", ignore_errors=True)
        return epochs, made

    def _model(self, folder: Path) -> Foundation:
        return Foundation.from_pretrained(folder).to(self.device)

    def judge(self, above: Foundation, folder: Path) -> dict[str, Any]:
        """Ask the gate, on all held-out slates of the people it rests on.

        Args:
            above: the rung above; only read.
            folder: holds the candidate's `model`; takes the verdicts.

        Returns:
            ``status`` against both together, the metrics that ``failed``, ``num_targets`` that it
            rests on, what was ``measured`` by metric, and ``p99_ms`` of the top, the rung above and
            the rung.
        """
        judged = folder / "judged.json"
        if not judged.exists():
            student = self._model(folder / "model")
            measured = self.hands.measure(
                {"top": self.top, "above": above, "rung": student}, self.split.valid
            )
            verdicts = {
                name: verdict(
                    measured[name],
                    measured["rung"],
                    GateConfig.with_max_loss(
                        max_loss,
                        max_miscalibration=self.config.max_miscalibration,
                        max_slowdown=self.config.max_slowdown,
                        num_looks=2 if self.config.repair else 1,
                    ),
                )
                for name, max_loss in (
                    ("above", self.config.max_loss),
                    ("top", self.config.max_loss_vs_top),
                )
            }
            (folder / "verdicts").mkdir(exist_ok=True)
            for name, one in verdicts.items():
                one.save(folder / "verdicts" / f"{name}.json")
            status = together([one.status for one in verdicts.values()])
            failed = sorted(
                {
                    metric.metric
                    for one in verdicts.values()
                    for metric in one.metrics
                    if metric.status == "fail"
                }
            )
            told = {
                "status": status,
                "failed": failed,
                "num_targets": len(self.split.valid),
                "measured": {one.metric: one.candidate for one in verdicts["top"].metrics},
                "p99_ms": {name: one.p99_ms for name, one in measured.items()},
            }
            _write_json(judged, told)
        return _read_json(judged)


def newest(valid: Targets) -> Targets:
    """Each person's newest target: enough to fit a few numbers on.

    Args:
        valid: held-out slates, each person's in time order.
    """
    return valid[np.append(valid.user[1:] != valid.user[:-1], True)]


def place_taken(statuses: Sequence[Status]) -> int:
    """Which candidate of a step is taken: what was taught, unless the gate fails that alone.

    Args:
        statuses: of what repair left and, where that was taught, of what came of it.
    """
    standing = [place for place, status in enumerate(statuses) if status != "fail"]
    return standing[-1] if standing else len(statuses) - 1


def together(statuses: list[Status]) -> Status:
    """A rung fails with any verdict and passes with all."""
    if "fail" in statuses:
        return "fail"
    return "pass" if all(status == "pass" for status in statuses) else "undecided"


def rungs_left(end: float, ratio: float, step: float) -> int:
    """How many rungs of a step it takes from a share of the top's parameters to the end's."""
    if ratio <= end:
        return 0
    return int(np.ceil(np.log(end / ratio) / np.log(1 - step)))


def body_ratio(top: Foundation, shape: Shape) -> float:
    """Body parameters of a shape as a share of the top's."""
    return body_parameters(top.decoder, shape) / top.num_parameters()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content
