"""What a recipe makes of a model beside its training: built, pruned for a rung, finished.

Its code is part of the key of every stage that makes a model.
"""

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from decant.on_validation import fit_on_validation
from decant.processes import leads
from decant.recipes import Recipe, RungConfig
from distill.anatomy import shape_of
from distill.importance import measure_importance
from distill.ladder import newest
from distill.pruning import prune
from distill.steps import calibration_rows
from foundation import Foundation
from foundation.training import FitResult
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.whole import write_whole

logger = logging.getLogger(__name__)


def untrained(recipe: Recipe, book: PromptBook, split: Split) -> Foundation:
    """A recipe's model before its training."""
    return Foundation.create(
        book.prompter,
        book,
        split.train,
        size=recipe.size,
        model=recipe.model,
        text_encoder=recipe.text_encoder,
        config=recipe.foundation,
        seed=recipe.seed,
    )


def pruned(
    above: Foundation, rung: RungConfig, book: PromptBook, split: Split, *, seed: int
) -> Foundation:
    """What of a model a rung keeps, before it is taught."""
    rows = calibration_rows(book, split.train, count=rung.calibration_rows, seed=seed)
    there = shape_of(above.decoder)
    shape = replace(
        there,
        layers=rung.num_layers or there.layers,
        neurons=rung.intermediate_size or there.neurons,
    )
    below = prune(above, measure_importance(above, rows), shape, rows=rows)
    logger.info(
        "%s of %s body parameters are kept",
        f"{below.num_parameters():,}",
        f"{above.num_parameters():,}",
    )
    return below


def finish_model(
    foundation: Foundation,
    result: FitResult,
    book: PromptBook,
    split: Split,
    out: Path,
    scratch: Path,
    *,
    recipe: Recipe,
    calibrated: bool = True,
) -> None:
    """Calibrate and fit the rank weight on validation, save, and keep what training logged.

    Args:
        foundation: trained; stays on its device.
        result: of its training.
        book: pieces of the interactions.
        split: whose validation targets are used.
        out: the stage's folder.
        scratch: where training wrote.
        recipe: says how many requests `w` is chosen on.
        calibrated: False for a model whose actions are not asked for.
    """
    if not leads():
        return
    for task in range(len(book.prompter.tasks) if calibrated else 0):
        # A few numbers a task: each person's newest target is enough to fit them on.
        some, requests = newest(split.valid), recipe.fitting_requests
        fit_on_validation(foundation, book, some, task=task, requests=requests)
    foundation.save_pretrained(out / "model")
    write_whole(out / "history.json", json.dumps(asdict(result)) + "\n")
    for curves in sorted(scratch.rglob("tensorboard")):
        # Of each round of a training that has several.
        where = out / "tensorboard" / curves.parent.relative_to(scratch)
        shutil.copytree(curves, where, dirs_exist_ok=True)
