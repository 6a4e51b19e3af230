"""Where things are in a run folder: the one place that knows the names.

data/interactions/        the validated log
data/source.json          tasks, and what was set aside
data/trained_on.parquet   of a run that goes on from another: what the models before were trained on
prompter/                 words and tokenizer, fitted on the training events
foundation/model/         the top model; rung-1/model/, … the smaller ones
rung-2/rung.json          of a rung of the ladder: what was tried, what came out, what it rests on
rung-2/verdict-above.json the gate's verdict against the rung above; verdict-top.json: the top
waivers.json              signed exceptions to undecided verdicts, written by hand; see `waivers`
labels/judged/            of a run with a policy: every label, with the rules that made it
labels/held_out.parquet   of these, what is measured on and never learned
policy-teacher/model/, click-teacher/model/, student/model/   of a run with a policy; student serves
evaluation/               predictions, metrics and tables
index/items/              the served model's index of the log's items
catalogue/                items added, told anew or withdrawn since, with their index
trimmed.json              what `decant trim` left out of this run's vocabulary
report.html, ladder.html, results.csv, run.json
"""

import json
from dataclasses import dataclass
from pathlib import Path

from promptify.validation import BadInput

DATA, PROMPTER, FOUNDATION, RUNG, EVALUATION, INDEX, CATALOGUE = (
    "data",
    "prompter",
    "foundation",
    "rung-1",
    "evaluation",
    "index",
    "catalogue",
)
LABELS, POLICY_TEACHER, CLICK_TEACHER, STUDENT = (
    "labels",
    "policy-teacher",
    "click-teacher",
    "student",
)
RUNG_RECORD = "rung.json"
TRAINED_ON = "trained_on.parquet"


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Paths inside a run folder.

    Args:
        folder: the run folder.
    """

    folder: Path

    @property
    def interactions(self) -> Path:
        """The validated log."""
        return self.folder / DATA / "interactions"

    @property
    def trained_on(self) -> Path:
        """Events that the models before this run's were trained on, where it goes on from another.

        Columns `user_id`, `item_id`, `timestamp`, and `had_three`: whether the person had slates
        enough for some to be held out.
        """
        return self.folder / DATA / TRAINED_ON

    @property
    def index(self) -> Path:
        """The served model's index of the log's items."""
        return self.folder / INDEX / "items"

    @property
    def catalogue(self) -> Path:
        """What became of the catalogue since the log was read; see `decant.catalogue`."""
        return self.folder / CATALOGUE

    @property
    def catalogue_scratch(self) -> Path:
        """Shards of a catalogue that is being embedded; kept until it is whole."""
        return self.folder / ".scratch" / CATALOGUE

    def model(self, name: str) -> Path:
        """The saved foundation of a model of the run.

        Raises:
            BadInput: the run has no model of that name.
        """
        path = self.folder / name / "model"
        if name == FOUNDATION and self.top == STUDENT:
            raise BadInput(
                f"{self.folder} is a run with a policy, whose top is its student; what goes down "
                "from a foundation would lose the grades. Ask for the student, or train a run "
                "without --policy."
            )
        if not path.is_dir():
            names = ", ".join(self.models()) or "none yet"
            raise BadInput(
                f"{self.folder} holds no finished model {name!r} (it has: {names}). "
                f"Give the same `decant run` command again to finish the run."
            )
        return path

    def models(self) -> list[str]:
        """Names of the finished models, the largest first."""
        rungs = [p.name for p in self.folder.glob("rung-*") if _number(p.name) is not None]
        tops = [FOUNDATION, POLICY_TEACHER, CLICK_TEACHER, STUDENT]
        names = [*tops, *sorted(rungs, key=lambda name: _number(name) or 0)]
        return [name for name in names if (self.folder / name / "model").is_dir()]

    @property
    def top(self) -> str:
        """The model that rungs go down from: the student of a run with a policy."""
        return STUDENT if (self.folder / STUDENT).is_dir() else FOUNDATION

    def compared(self) -> tuple[str, ...]:
        """The models that an evaluation compares, the largest first; the last one serves."""
        if self.top == FOUNDATION:
            return FOUNDATION, RUNG
        has_rung = (self.folder / RUNG).is_dir() and not self.is_of_ladder(RUNG)
        return (CLICK_TEACHER, STUDENT, RUNG) if has_rung else (CLICK_TEACHER, STUDENT)

    def is_of_ladder(self, name: str) -> bool:
        """Whether a model is a rung that `decant ladder` made."""
        return (self.folder / name / RUNG_RECORD).is_file()

    def is_accepted(self, name: str) -> bool:
        """Whether a model may serve: a rung of the ladder only if the gate let it through.

        The rung that a run makes itself has no such record, and may whatever its verdict is.
        """
        from decant.run_data import reading  # It imports this module.

        path = self.folder / name / RUNG_RECORD
        if not path.is_file():
            return True
        with reading(path):
            return bool(json.loads(path.read_text("utf-8"))["accepted"])

    def served(self, *, accepting: str | None = None) -> str:
        """The model that serves: the lowest rung that may, and no teacher.

        Of the rungs of a ladder, and of few bits, those that the gate let through may. The run's
        own rung serves whatever the gate said of it, which the run tells where it ends.

        Args:
            accepting: a rung that is about to be let through, and counts as one that was.

        Raises:
            BadInput: the folder is missing, is no run, or no model is finished.
        """
        if not self.folder.is_dir():
            raise BadInput(f"{self.folder} is not a folder; give the --out of a `decant run`.")
        if not (self.folder / "recipe.json").exists():
            raise BadInput(f"{self.folder} is not a run folder; give the --out of a `decant run`.")
        names = [name for name in self.models() if name not in (POLICY_TEACHER, CLICK_TEACHER)]
        if not names:
            raise BadInput(
                f"{self.folder} holds no finished model yet. "
                f"Give the same `decant run` command again."
            )
        return [name for name in names if name == accepting or self.is_accepted(name)][-1]


def _number(name: str) -> int | None:
    digits = name.removeprefix("rung-")
    return int(digits) if digits.isdigit() else None
