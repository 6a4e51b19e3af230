"""Sources by name: what `decant run` and `decant sweep` read, and what a run's data depends on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from decant import recipes
from decant.fingerprints import fingerprint
from decant.inferred import tell_inferred
from decant.recipes import Form, Recipe
from promptify.sources import SourceData
from promptify.validation import BadInput

OnBadRows = Literal["fail", "skip", "quarantine"]

_FILES = {
    "job_market": (),
    "ml1m": ("data",),
    "ml100k": ("data",),
    "table": ("users", "items", "events", "task"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Data that a run may be made of.

    Args:
        name: job_market, ml1m, ml100k or table.
        files: paths by what they are: `data`, or `users`, `items`, `events` and `task`.
        on_bad_rows: what is done with a row that does not fit.
        quarantine: where such rows go.

    Raises:
        BadInput: there is no such source, it needs other files, or its task cannot be.
        OSError: a file cannot be read.
    """

    name: str
    files: Mapping[str, Path]
    on_bad_rows: OnBadRows = "fail"
    quarantine: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in _FILES:
            raise BadInput(f"source {self.name!r} is unknown; choose one of {', '.join(_FILES)}.")
        wanted = _FILES[self.name]
        if set(self.files) != set(wanted):
            raise BadInput(
                f"source {self.name} needs {', '.join(wanted) or 'no file'}, and was given "
                f"{', '.join(sorted(self.files)) or 'none'}."
            )
        for path in self.files.values():
            with path.open("rb"):
                pass
        if "task" in self.files:
            from promptify.sources.task_file import TaskFile

            # Before the tables, which may be large.
            TaskFile.read(self.files["task"])

    def recipe(self, form: Form = "slot") -> Recipe:
        """The recipe that a run of it begins with.

        Raises:
            BadInput: there is no such form, or no recipe of the source in it.
        """
        if form not in get_args(Form):
            raise BadInput(f"form {form!r} is unknown; choose {' or '.join(get_args(Form))}.")
        if self.name == "job_market":
            if form != "slot":
                raise BadInput(f"form {form!r} is not of source job_market; leave form out.")
            return recipes.demo()
        return {"ml1m": recipes.ml1m, "ml100k": recipes.ml100k, "table": recipes.table}[self.name](
            form
        )

    def described(self) -> dict[str, Any]:
        """What the data depends on, JSON values: files by their content."""
        return {
            "source": self.name,
            "on_bad_rows": self.on_bad_rows,
            "files": {name: fingerprint(path) for name, path in self.files.items()},
        }

    def load(self) -> SourceData:
        """Read the data.

        Raises:
            BadInput: a row does not fit, and was not to be set aside.
        """
        if self.name == "job_market":
            from promptify.sources.generated import generated_job_market

            return generated_job_market()
        how: dict[str, Any] = {"on_bad_rows": self.on_bad_rows}
        if self.on_bad_rows == "quarantine":
            how["quarantine"] = self.quarantine
        if self.name == "table":
            from promptify.sources.table import table

            files = self.files
            data = table(
                users=files["users"],
                items=files["items"],
                events=files["events"],
                task=files["task"],
                **how,
            )
            tell_inferred(data.interactions, files["task"])
            return data
        from promptify.sources import movielens

        reader = movielens.ml_1m if self.name == "ml1m" else movielens.ml_100k
        return reader(self.files["data"], **how)
