"""A run with a policy: what it is given beside its recipe, on the command line too.

    decant run demo --policy mine.md --out runs/two

A policy, a golden set, the number of labels and the weights of the student's objective may change
in the same run folder: what depends on them runs again (`decant.taught`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from decant.policy_data import POLICY_HELP, read_policy
from promptify.validation import BadInput

if TYPE_CHECKING:
    from distill.policy import Policy
    from distill.policy.golden import GoldenSet
    from distill.student import StudentConfig


WEIGHTS = {"alpha": 3.0, "beta": 1.0, "gamma": 1.0}
"""Of a student's objective, where the command line says no others. Graded pairs are many and soon
learned: with an alpha of 1 a student of the job market fell 4 % behind its policy teacher, with 3
one of a hundred, and its clicks were no worse (`benchmarks/teacher_arms.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teaching:
    """How a run is taught policy.

    Args:
        policy: what a good recommendation is.
        student: how much policy, clicks and the teachers' order count.
        golden: a golden set, whose held-out part is not labelled; None for none.
        labels: pairs that are judged.
        questions_per_row: graded pairs asked in each row of a training.
        slates_per_row: slates whose items are compared in each row.
        ladder: whether a rung goes down from the student, and serves.

    Raises:
        BadInput: a number is below 1, or a rule is for a judge, whom a run does not ask.
    """

    policy: "Policy"
    student: "StudentConfig"
    golden: "GoldenSet | None" = None
    labels: int = 400_000
    questions_per_row: int = 128
    slates_per_row: int = 4
    ladder: bool = False

    def __post_init__(self) -> None:
        for name in ("labels", "questions_per_row", "slates_per_row"):
            if getattr(self, name) < 1:
                raise BadInput(f"Teaching.{name}={getattr(self, name)} must be at least 1.")
        for rule in self.policy.rules:
            if rule.effect == "judge":
                raise BadInput(
                    f"{self.policy.file} line {rule.line}: rule {rule.number} asks a judge, and a "
                    "run asks none; give it a value, or leave it out of the run's policy."
                )

    @classmethod
    def of(cls, options: Namespace) -> "Teaching | None":
        """What the command line says; None without a policy.

        Raises:
            BadInput: the policy cannot be read, or an option does not fit.
        """
        told = {name: options.get(name) for name in WEIGHTS}
        told = {name: value for name, value in told.items() if value is not None}
        if options.get("policy") is None:
            given = [*told]
            given += [name for name in ("golden", "labels", "ladder") if options.get(name)]
            if given:
                raise BadInput(f"--{given[0]} is of a run with a policy; give --policy too.")
            return None
        if options.get("continue"):
            raise BadInput("--policy and --continue exclude each other; give one.")
        from distill.policy.golden import GoldenSet
        from distill.student import StudentConfig

        try:
            student = StudentConfig(**(WEIGHTS | told))
        except ValueError as error:
            raise BadInput(str(error)) from None
        labels = {} if options.labels is None else {"labels": options.labels}
        return cls(
            policy=read_policy(options.policy),
            student=student,
            golden=None if options.golden is None else GoldenSet.load(options.golden),
            ladder=options.ladder,
            **labels,
        )

    def label_inputs(self) -> dict[str, Any]:
        """All that labels depend on beside the data: the policy by its rules, not by its prose."""
        return {
            "policy": self.policy.meaning,
            "golden": None if self.golden is None else self.golden.about["sha256"],
            "labels": self.labels,
        }

    def told(self) -> dict[str, Any]:
        """What a run folder and a result say of it, JSON values only."""
        policy = self.policy
        return {
            **self.label_inputs(),
            "policy": {
                "name": policy.name,
                "version": policy.version,
                "digest": policy.digest,
                **policy.meaning,
            },
            "student": asdict(self.student),
            "questions_per_row": self.questions_per_row,
            "slates_per_row": self.slates_per_row,
            "ladder": self.ladder,
        }


def add_teaching(parser: ArgumentParser) -> None:
    """Add the options of a run with a policy."""
    parser.add_argument(
        "--policy",
        type=str,
        help=f"{POLICY_HELP}. Then a policy teacher and a click teacher are trained, and one "
        "student of both, which serves. Another policy in the same folder runs again what depends "
        "on it",
    )
    parser.add_argument(
        "--golden", type=Path, help="a golden set, whose held-out part no training may touch"
    )
    parser.add_argument("--labels", type=int, help="pairs that the policy judges; 400,000")
    for name, what in (
        ("alpha", "the policy's grades"),
        ("beta", "what people did"),
        ("gamma", "the teachers' order of what was shown together"),
    ):
        parser.add_argument(
            f"--{name}", type=float, help=f"how much {what} count; {WEIGHTS[name]:g} by default"
        )
    parser.add_argument(
        "--ladder",
        action="store_true",
        help="a rung below the student, of half its layers (or neurons), taught by both teachers; "
        "it serves then",
    )
