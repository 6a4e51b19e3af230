"""How far down a ladder goes, in what steps, and what may be lost on the way."""

from dataclasses import dataclass, field, replace
from typing import Literal

from distill.anatomy import Shape
from distill.teaching import TeacherConfig
from foundation import FitConfig
from promptify.splits import Split, fewer_people

_SEEDS = 2**32
"""As many as NumPy takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LadderConfig:
    """Configuration of a `distill.ladder.Ladder`.

    Args:
        to: share of the top's body parameters at which the ladder ends; embeddings are not counted.
        p99_ms: milliseconds of a whole request, on this machine, that the ladder goes down to: it
            ends at the first rung of whose requests no more than one in a hundred takes longer, and
            at `to` or `shape` at the latest; None for no such budget.
        max_loss: share of AUC and NDCG@10 that a rung may lose against the one above.
        max_loss_vs_top: the same against the top.
        max_miscalibration: by which the calibration error may rise against either.
        max_slowdown: share by which a rung's latency may come out higher: more than the same model
            timed twice on 300 requests does in nineteen of twenty cases.
        max_step: share of the body parameters that a rung may give up at once.
        num_halvings: how often a step that fails is halved before the ladder ends.
        minutes_per_rung: time for the distillation of a rung, on this machine; None to train for
            `fit.epochs`.
        fit: schedule of the distillations.
        teacher: what is taught, and how much it counts; None for plain training.
        data_weight: how much the data's own losses count beside a teacher's, as a share of what
            `fit` gives them. A repaired student is near its teacher, and noisy labels lead it away.
        taught_by: the rung above, the top, or both, each for half.
        calibration_rows: prompts that importance is measured on, and repairs are made on where they
            have no more than `distill.repair.MAX_POSITIONS` positions: of long prompts fewer then,
            evenly spaced among them, which is logged.
        gate_people: whose held-out slates the gate rests on, the same whatever the seed; all when
            None.
        repair: whether what stays is repaired by least squares.
        shape: that the ladder ends at, whatever `to` says; None to end at `to`.
        seed: of the calibration prompts.
    """

    to: float = 0.1
    p99_ms: float | None = None
    max_loss: float = 0.01
    max_loss_vs_top: float = 0.03
    max_miscalibration: float = 0.005
    max_slowdown: float = 0.02
    max_step: float = 1 / 3
    num_halvings: int = 3
    minutes_per_rung: float | None = 3.0
    fit: FitConfig = field(default_factory=FitConfig)
    teacher: TeacherConfig | None = field(default_factory=TeacherConfig)
    data_weight: float = 0.0
    taught_by: Literal["above", "top", "both"] = "above"
    calibration_rows: int = 1000
    gate_people: int | None = None
    repair: bool = True
    shape: Shape | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("to", "max_step"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"LadderConfig.{name}={getattr(self, name)} must lie between 0 and 1."
                )
        for name in (
            "max_loss",
            "max_loss_vs_top",
            "max_miscalibration",
            "max_slowdown",
            "num_halvings",
            "data_weight",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"LadderConfig.{name}={getattr(self, name)} must not be negative.")
        for name in ("minutes_per_rung", "p99_ms"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(
                    f"LadderConfig.{name}={getattr(self, name)} must be above 0, or None."
                )
        if self.taught_by not in ("above", "top", "both"):
            raise ValueError(
                f"LadderConfig.taught_by={self.taught_by!r} must be above, top or both."
            )
        if self.calibration_rows < 1:
            raise ValueError(
                f"LadderConfig.calibration_rows={self.calibration_rows} must be at least 1."
            )
        if self.gate_people is not None and self.gate_people < 1:
            raise ValueError(
                f"LadderConfig.gate_people={self.gate_people} must be at least 1, or None for all."
            )

    def asked(self, split: Split) -> Split:
        """The split with the targets that a ladder measures its rungs on."""
        if self.gate_people is None:
            return split
        # Ladders of several seeds are compared target by target.
        return fewer_people(split, self.gate_people)

    def schedule(self, epochs: float, *, above: int) -> FitConfig:
        """Of a distillation, or of plain training where there is no teacher.

        Args:
            epochs: how many.
            above: body parameters of the rung above, which seed the order of the data: of one seed
                every rung would read the same part of an epoch, the same people's.
        """
        fit, share = self.fit, 1.0 if self.teacher is None else self.data_weight
        return replace(
            fit,
            seed=(fit.seed + above) % _SEEDS,
            epochs=epochs,
            next_item_weight=share * fit.next_item_weight,
            action_weight=share * fit.action_weight,
            text_weight=share * fit.text_weight,
        )
