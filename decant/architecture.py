"""Search a run's foundation for the shape that a budget buys best; the report shows what was tried.

    decant search-shape RUN --latency 0.3

Writes `architecture.html`, its plots, `shapes.csv` (every shape that was tried) and `draws.json`,
which the search goes on from. The shape that is found is a ladder's end: `decant ladder RUN
--shape 4x240x2x160`, where the gate judges it as any other.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from decant.judging import milliseconds
from decant.layout import FOUNDATION, RunLayout
from decant.plots import SizePoint
from decant.processes import training_device
from decant.recipes import recipe_of
from decant.recommender import Recommender, build_index
from decant.report import Report, TableRow, write_report
from decant.run_data import load_book, load_model
from decant.run_record import RunRecord
from distill.anatomy import shape_of
from distill.architecture import ArchitectureSearch, Found, SearchConfig, Tried, check_folder
from foundation import Foundation
from foundation.checkpoint import weights_hash
from promptify.assembly import PromptBook
from promptify.splits import Targets
from promptify.validation import BadInput
from promptify.whole import write_whole

_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What a search leaves to be said.

    Attributes:
        folder: that holds its report.
        found: what was tried, and the best of it.
        table: the front, as text.
    """

    folder: Path
    found: Found
    table: str


class LatencyRatio:
    """A model's median time for a request as a share of another's, measured in turn.

    Args:
        top: the other.
        book: pieces of the interactions.
        targets: whose requests.
        requests: how many.
    """

    def __init__(
        self, top: Foundation, book: PromptBook, targets: Targets, *, requests: int
    ) -> None:
        self._book, self._targets, self._requests = book, targets, requests
        self._top = self._served(top)

    def __call__(self, model: Foundation) -> float:
        """See the class."""
        both = {"top": self._top, "model": self._served(model)}
        taken = milliseconds(both, self._targets, self._requests)
        return float(np.median(taken["model"]) / np.median(taken["top"]))

    def _served(self, model: Foundation) -> Recommender:
        return Recommender(model, build_index(model, model_hash="unsaved"), self._book)


def search_config(folder: Path, *, epochs: float, **changes: Any) -> SearchConfig:
    """The configuration of a search in a run folder: the schedule of the run's own rung, but short.

    Args:
        folder: a run folder.
        epochs: of each distillation.
        changes: fields of `SearchConfig`.

    Raises:
        BadInput: a field has a value that it cannot have.
    """
    recipe = recipe_of(folder)
    try:
        fit = replace(recipe.rung.fit, epochs=epochs, evaluate_steps=0, patience=0)
        return SearchConfig(
            **{"fit": fit, "teacher": recipe.rung.teacher, "seed": recipe.seed, **changes}
        )
    except ValueError as error:
        raise BadInput(str(error)) from error


def search_shape(folder: Path, *, config: SearchConfig, out: Path | None = None) -> Searched:
    """Search below a run's foundation, or go on with it.

    Args:
        folder: a run with a finished foundation, left as it is but for `out`.
        config: the budget.
        out: takes the search; `architecture` in the run folder when left out.

    Raises:
        BadInput: no shape is within the budget, the folder holds no finished foundation, or `out`
            holds another search or something else, or is written to by one.
    """
    layout = RunLayout(folder)
    path = layout.model(FOUNDATION)
    out = folder / "architecture" if out is None else out
    check_folder(out)
    record = RunRecord.start({"search": asdict(config)}, seed=config.seed)
    book, split = load_book(layout)
    top = load_model(path)
    search = ArchitectureSearch(
        top,
        book,
        split,
        config=config,
        latency=LatencyRatio(top, book, split.valid, requests=config.timed_requests),
        device=training_device(),
    )
    found = search.run(out, mark=weights_hash(path))
    _write_csv(out / "shapes.csv", found.tried)
    write_report(out, _report(found, top, config, record.finish()), name="architecture")
    return Searched(folder=out, found=found, table=shapes_table(found))


def shapes_table(found: Found) -> str:
    """The front, the ladder's own shape and the best one, fastest first, as aligned text."""
    lines = [("shape", "body", "time", "divergence", "NDCG@10", "")]
    for one in _told(found):
        notes = ["best"] if one == found.best else []
        notes += ["the ladder's"] if one.is_ladders else []
        lines.append(
            (
                one.shape.code,
                f"{one.parameters:.1%}",
                f"{one.latency:.1%}",
                "–" if one.divergence is None else f"{one.divergence:.4f}",
                "–" if one.ndcg is None else f"{one.ndcg:.4f}",
                ", ".join(notes or ([] if one.ended == "scored" else [one.ended])),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _told(found: Found) -> list[Tried]:
    """What is worth a line: most of the front, the ladder's own shape and the best."""
    front = list(found.front())
    chosen = front[-_SHOWN:] + [one for one in found.tried if one.is_ladders]
    chosen += [found.best] if found.best else []
    return sorted(dict.fromkeys(chosen), key=lambda one: one.latency)


def _report(found: Found, top: Foundation, config: SearchConfig, run: RunRecord) -> Report:
    told = _told(found)
    body = top.num_parameters()
    rows = [
        TableRow(
            model=one.shape.code,
            params=round(one.parameters * body),
            ndcg_at_10=one.ndcg,
            note=f"{one.latency:.1%} of the top's time"
            + (", the best" if one == found.best else "")
            + (", the ladder's own" if one.is_ladders else ""),
        )
        for one in told
    ]
    budget = " and ".join(
        f"{share:.1%} of the top's {what}"
        for share, what in ((config.parameters, "body parameters"), (config.latency, "time"))
        if share is not None
    )
    counts = {
        ended: sum(one.ended == ended for one in found.tried)
        for ended in ("scored", "slow", "hopeless")
    }
    return Report(
        title="Decant: a shape for a budget",
        summary=(
            f"{len(found.tried)} shapes of the top ({shape_of(top.decoder)}) at no more than "
            f"{budget}: {counts['scored']} were taught and scored, {counts['slow']} were too slow, "
            f"{counts['hopeless']} were worse after the repair than half of the others."
        ),
        table=rows,
        by_size=_points(told, "parameters"),
        by_latency=_points(told, "latency"),
        notes=[
            "Shapes are layers x neurons x groups of heads x hidden width.",
            "Divergence: nats a request from the top, of what it retrieves and of what it says of "
            "actions, on validation requests. The search makes it small; the test targets are not "
            "looked at.",
            "The axis of time is in percent of the top's, measured in turn on this machine.",
        ],
        run=run,
    )


def _points(told: Sequence[Tried], size: str) -> list[SizePoint]:
    return [
        SizePoint(
            model=one.shape.code,
            params=100 * getattr(one, size),
            metric=name,
            value=value,
        )
        for one in told
        for name, value in (("divergence", one.divergence), ("NDCG@10", one.ndcg))
        if value is not None
    ]


def _write_csv(path: Path, tried: Sequence[Tried]) -> None:
    columns = [f.name for f in fields(Tried)]
    said = io.StringIO()
    writer = csv.writer(said, lineterminator="\n")
    writer.writerow(columns)
    for one in tried:
        cells = {**{name: getattr(one, name) for name in columns}, "shape": one.shape.code}
        writer.writerow(["" if cells[name] is None else cells[name] for name in columns])
    write_whole(path, said.getvalue())
