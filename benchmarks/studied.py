"""A finished run, opened up: its data, its split and its recipe, to train alike on less of it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.arms import Arm, Bed, Prepared, trained
from decant import recipes
from decant.layout import FOUNDATION, RunLayout
from decant.recipes import Recipe, recipe_of
from decant.run_data import load_book, load_model, load_tasks, split_of
from foundation import Foundation
from foundation.checkpoint import weights_hash
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.schema import Schema
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Studied:
    """A run, as far as this asks of it.

    Attributes:
        recipe: of every training of ours.
        data: log and tasks.
        split: which events train, and whose last ones are asked.
        book: the run's prompts.
        foundation: the run's top model.
        weights: its hash.
        fit_seconds: what its training took.
    """

    recipe: Recipe
    data: SourceData
    split: Split
    book: PromptBook
    foundation: Foundation
    weights: str
    fit_seconds: float


def of_run(folder: Path) -> Studied:
    """A finished run.

    Raises:
        BadInput: the folder is no run, or its foundation is not finished.
    """
    layout = RunLayout(folder)
    recipe = recipe_of(folder)
    book, split = load_book(layout)
    model = layout.model(FOUNDATION)
    history = json.loads((folder / FOUNDATION / "history.json").read_text("utf-8"))
    return Studied(
        recipe=recipe,
        data=SourceData(interactions=book.interactions, tasks=load_tasks(layout)),
        split=split,
        book=book,
        foundation=load_model(model),
        weights=weights_hash(model),
        fit_seconds=float(history["seconds"]),
    )


def smoke(scratch: Path) -> Studied:
    """A tiny market, and a model trained for a moment."""
    data = job_market(num_members=300, num_jobs=80, num_impressions=4000)
    demo = recipes.demo()
    fit = replace(demo.fit, epochs=0.2, evaluate_steps=0, reread_items=4)
    recipe = replace(demo, size="tiny", fit=fit)
    split = split_of(data.interactions, data.tasks)
    prepared, arm = prepared_like(recipe, data, split)
    book = prepared.book(arm)
    foundation = trained(prepared, arm, book, encoder=None, scratch=scratch / "run")
    return Studied(
        recipe=recipe,
        data=data,
        split=split,
        book=book,
        foundation=foundation,
        weights="smoke",
        fit_seconds=2.0,
    )


def without_profiles(log: Interactions) -> Interactions:
    """The same log of people of whom nothing but their events is known."""
    return Interactions(
        schema=Schema(user=(), items=log.schema.items),
        users=log.users.select_columns(["user_id"]),
        items=log.items,
        events=log.events,
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )


def prepared_like(recipe: Recipe, data: SourceData, split: Split) -> tuple[Prepared, Arm]:
    """Some data to be trained on as a run was, on another split or another log."""
    # Nothing watches these trainings, so none of them is stopped or chosen by validation.
    recipe = replace(recipe, fit=replace(recipe.fit, evaluate_steps=0, patience=0))
    bed = Bed(name=recipe.name, load=lambda _: data, recipe=recipe)
    arm = Arm(name="like the run's", encoder=recipe.text_encoder is not None)
    return Prepared(bed=bed, data=data, split=split, seed=recipe.seed), arm
