"""Where things are in a run folder: the one place that knows the names.

data/interactions/        the validated log
data/source.json          tasks, and what was set aside
prompter/                 words and tokenizer, fitted on the training events
foundation/model/         the top model; rung-1/model/, … the smaller ones
rung-1/verdict.json       the gate's verdict against the model above
evaluation/               predictions, metrics and tables
index/items/              the served model's index of the log's items
catalogue/                items added, told anew or withdrawn since, with their index
report.html, results.csv, run.json
"""

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
        if not path.is_dir():
            names = ", ".join(self.models()) or "none yet"
            raise BadInput(
                f"{self.folder} holds no finished model {name!r} (it has: {names}). "
                f"Give the same `decant run` command again to finish the run."
            )
        return path

    def models(self) -> list[str]:
        """Names of the finished models, the largest first."""
        names = [FOUNDATION, *sorted(p.name for p in self.folder.glob("rung-*"))]
        return [name for name in names if (self.folder / name / "model").is_dir()]

    def served(self) -> str:
        """The model that serves: the lowest rung.

        Raises:
            BadInput: the folder is missing, is no run, or no model is finished.
        """
        if not self.folder.is_dir():
            raise BadInput(f"{self.folder} is not a folder; give the --out of a `decant run`.")
        if not (self.folder / "recipe.json").exists():
            raise BadInput(f"{self.folder} is not a run folder; give the --out of a `decant run`.")
        if not self.models():
            raise BadInput(
                f"{self.folder} holds no finished model yet. "
                f"Give the same `decant run` command again."
            )
        return self.models()[-1]
