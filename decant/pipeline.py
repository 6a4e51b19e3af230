"""The main job, stage by stage: data → prompter → foundation → rung → index → evaluation → report.

Each stage is a function of folders; `decant.stages` runs it when it must, and resumes it when it
was cut short. What a stage needs it reads from the stages before: nothing lives in memory alone.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock

from decant.catalogue import SavedCatalogue
from decant.concluding import Finished, conclude
from decant.continuing import check_continued
from decant.evaluation import evaluate
from decant.layout import (
    DATA,
    EVALUATION,
    FOUNDATION,
    INDEX,
    PROMPTER,
    RUNG,
    RUNG_RECORD,
    TRAINED_ON,
    RunLayout,
)
from decant.making import finish_model, pruned, untrained
from decant.on_validation import watch
from decant.pretrained import check_model, model_contents
from decant.processes import leads, training_device
from decant.recipes import Recipe, recipe_of, said_now
from decant.recommender import Recommender, build_index
from decant.retriever import fit_with_mining
from decant.run_data import (
    drop_rungs,
    is_made_from,
    is_rounded_from,
    load_book,
    load_model,
    load_split,
    load_tasks,
    reading,
    rung_record,
    split_of,
)
from decant.run_record import RunRecord
from decant.saved_oracle import SavedOracle
from decant.served import Served
from decant.stages import ROOMS, Stages
from distill.distillation import distil
from foundation.checkpoint import load_tokenizer, weights_hash
from foundation.text_encoder import encoder_hash
from promptify.interactions import Interactions
from promptify.prompter import Prompter
from promptify.sources import SourceData
from promptify.splits import Split, seen_in_history
from promptify.task import Task
from promptify.validation import BadInput
from promptify.whole import write_whole
from retrieval import IndexManifest, IndexMismatch

logger = logging.getLogger(__name__)

# Of all events: where fewer train, another surface was probably meant to be asked about.
_LEAST_TRAINED = 0.5
# Beyond it what is measured is no longer what people do next.
_MOST_SEEN = 0.05

CHOOSING = ("decant.making", "decant.on_validation")
"""Modules of `decant` that a trained model's numbers hang on …"""
MEASURING = (
    "decant.answering",
    "decant.evaluation",
    "decant.judging",
    "decant.measure",
    "decant.recommender",
)
"""… and those that an evaluation's do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is run, on what, where.

    Args:
        recipe: how; of an older model's decoder and prompts, that run's recipe has the say.
        load: reads the source's data; called once, when the data stage runs.
        source: what `load` depends on, JSON values only (paths by fingerprint).
        out: the run folder.
        continued_from: the run folder of an older model to train on; None to start anew.
    """

    recipe: Recipe
    load: Callable[[], SourceData]
    source: Mapping[str, Any]
    out: Path
    continued_from: Path | None = None


def run(job: Job, *, dry_run: bool = False, until: str | None = None) -> Finished:
    """Run a job, or what is left of it.

    Args:
        job: what is run.
        dry_run: say which stages would run; run none.
        until: the stage of the foundation or of its rung, to stop there: a ladder of its own goes
            on from the one, and a sweep ranks either. The whole job when left out.

    Raises:
        ValueError: the folder holds another run or a ladder where the run's own rung goes, or the
            data or the pretrained decoder cannot be used.
    """
    recipe = job.recipe
    old_model = RunLayout(job.continued_from) if job.continued_from else None
    if old_model is not None:
        recipe = recipe.with_model_of(recipe_of(old_model.folder))
    told = {"recipe": recipe.to_dict(), "source": dict(job.source)}
    record = RunRecord.start({**told, "recipe": recipe.published().to_dict()}, seed=recipe.seed)
    layout = RunLayout(job.out)
    continued = {"from": weights_hash(old_model.model(FOUNDATION))} if old_model else {}
    if old_model is None:
        check_model(recipe, layout.folder / FOUNDATION)
    with Stages(
        job.out,
        recipe={**told, "continued": continued},
        as_now=lambda found: said_now(found, job.out / "recipe.json"),
        dry_run=dry_run,
    ) as stages:
        stages.run(
            DATA,
            lambda out, _: read_data(job, out),
            inputs=data_inputs(job),
            code=("promptify",),
        )
        stages.run(
            PROMPTER,
            lambda out, _: _prompter(layout, recipe, old_model, out),
            inputs={"prompter": asdict(recipe.prompter), **continued},
            uses=(DATA,),
            code=("promptify",),
            contents={} if old_model else model_contents(recipe, weights=False),
        )
        stages.run(
            FOUNDATION,
            lambda out, scratch: _foundation(layout, recipe, old_model, out, scratch),
            inputs={
                **top_inputs(recipe),
                "mining": asdict(recipe.mining) if recipe.mining else None,
                **continued,
            },
            uses=(DATA, PROMPTER),
            code=(
                "promptify",
                "foundation",
                *CHOOSING,
                *(["decant.retriever"] if recipe.mining else []),
            ),
            contents={} if old_model else model_contents(recipe),
            output="model",
            together=True,
        )
        if until == FOUNDATION:
            return Finished(stages=stages.plan(), table="")
        if not (dry_run and stages.plan()[-1].runs):
            _refuse_taken(layout)
        stages.run(
            RUNG,
            lambda out, scratch: _rung(layout, recipe, out, scratch),
            inputs={"rung": asdict(recipe.rung), "seed": recipe.seed},
            uses=(DATA, PROMPTER, FOUNDATION),
            code=("promptify", "foundation", "distill", *CHOOSING),
            output="model",
            together=True,
        )
        if leads() and not dry_run:
            # Such as those below the foundation of before, which would serve.
            drop_rungs(layout, but=(FOUNDATION, RUNG), keep_ladder=True)
        if until == RUNG:
            return Finished(stages=stages.plan(), table="")
        stages.run(INDEX, lambda out, _: index_catalogue(layout, out), inputs={}, uses=(RUNG,))
        stages.run(
            EVALUATION,
            lambda out, _: evaluate(layout, recipe, record, out),
            inputs={"users": recipe.measured_users, "timed": recipe.timed_requests},
            uses=(DATA, FOUNDATION, RUNG, INDEX),
            code=(*ROOMS, *MEASURING),
        )
        if dry_run or not leads():
            return Finished(stages=stages.plan(), table="")
        return conclude(layout, recipe, record, stages.plan(), continued_from=job.continued_from)


def _refuse_taken(layout: RunLayout) -> None:
    """Keep a ladder of this foundation, or its rung of few bits, from the run's own rung."""
    if not layout.is_of_ladder(RUNG) or not (layout.folder / FOUNDATION / "model").is_dir():
        return
    models = {weights_hash(layout.model(FOUNDATION))}
    if is_made_from(layout, RUNG, models):
        command = "quantise" if is_rounded_from(layout, RUNG, models) else "ladder"
        raise BadInput(
            f"{layout.folder / RUNG} was made by `decant {command}`, and the run's own rung would "
            "take its place: remove it and the rungs below it to finish the run, or choose another "
            "--out."
        )


def data_inputs(job: Job) -> dict[str, Any]:
    """All that the data stage depends on."""
    return {**job.source, **_held_out(job.recipe)}


def _held_out(recipe: Recipe) -> dict[str, int]:
    held_out = {"held_out_slates": recipe.held_out_slates, "test_slates": recipe.test_slates}
    # Said where it is so, since data of before says nothing of it.
    if recipe.held_out_people is not None:
        held_out["held_out_people"] = recipe.held_out_people
    return held_out


def top_inputs(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe the model at the top depends on; a text encoder by content."""
    inputs = {
        "size": recipe.size,
        "model": recipe.model,
        "foundation": asdict(recipe.foundation),
        "fit": asdict(recipe.fit),
        "fitting_requests": recipe.fitting_requests,
        "seed": recipe.seed,
    }
    if recipe.text_encoder is not None:
        inputs["text_encoder"] = encoder_hash(Path(recipe.text_encoder))
    return inputs


def read_data(job: Job, out: Path) -> None:
    """The data stage: read a source, and keep its log, its tasks and its oracle.

    Raises:
        BadInput: the log is too short, or is none that the older model can be trained on.
    """
    data = job.load()
    # A log too short to hold anything out is refused before anything is kept of it.
    held_out = _held_out(job.recipe)
    split = split_of(data.interactions, data.tasks, **held_out)
    _tell_held_out(split, data.tasks)
    _tell_seen(data.interactions, split)
    if job.continued_from is not None:
        old = RunLayout(job.continued_from)
        pq.write_table(check_continued(old, data, split, job.recipe), out / TRAINED_ON)
    if data.oracle is not None:
        SavedOracle.of(data.oracle, split.test).save(out)
    data.interactions.save(out / "interactions")
    source = {
        "tasks": [task.to_dict() for task in data.tasks],
        "set_aside": dict(data.set_aside),
        **held_out,
    }
    write_whole(out / "source.json", json.dumps(source, indent=2, ensure_ascii=False) + "\n")


def _tell_held_out(split: Split, tasks: Sequence[Task]) -> None:
    """Say which of several surfaces is asked about, and what that leaves to train on."""
    if len(tasks) == 1:
        return
    first, *others = (task.name for task in tasks)
    share = float(split.train.mean())
    logger.info(
        "of %s everybody's last slates are held out, and %.0f%% of all events are trained on; of "
        "%s nothing is held out, so that it is neither measured nor calibrated",
        first,
        100 * share,
        ", ".join(others),
    )
    if share < _LEAST_TRAINED:
        logger.warning(
            "only %.0f%% of all events are trained on: what people did after the first held-out "
            "slate of %s is left out. Put the surface with the most events first under tasks:.",
            100 * share,
            first,
        )


def _tell_seen(interactions: Interactions, split: Split) -> None:
    """Say how much of what is held out no request would be answered with."""
    share = float(seen_in_history(interactions, split.test).mean())
    if share > _MOST_SEEN:
        logger.warning(
            "%.0f%% of the held-out events are on items that their history holds: seen items are "
            "left out of answers unless exclude_seen=False (--include-seen) asks for them, so that "
            "these events are no ranking targets. Where a look and a purchase are two events, tell "
            "them as one, with shown_with.",
            100 * share,
        )


def _prompter(layout: RunLayout, recipe: Recipe, old_model: RunLayout | None, out: Path) -> None:
    if old_model is not None:
        # The old model knows only its own tokens and words.
        with reading(old_model.folder / PROMPTER / "prompter.json"):
            Prompter.load(old_model.folder / PROMPTER).save(out)
        return
    fit_prompter(layout, recipe, load_tasks(layout), out)


def fit_prompter(layout: RunLayout, recipe: Recipe, tasks: tuple[Task, ...], out: Path) -> None:
    """The prompter stage: words and tokenizer, fitted on the training events."""
    with reading(layout.interactions):
        interactions = Interactions.load(layout.interactions)
    split = load_split(layout, interactions)
    tokenizer = None if recipe.model is None else load_tokenizer(recipe.model)
    prompter = Prompter.fit(
        interactions, split.train, tasks, config=recipe.prompter, tokenizer=tokenizer
    )
    prompter.save(out)


def _foundation(
    layout: RunLayout, recipe: Recipe, old_model: RunLayout | None, out: Path, scratch: Path
) -> None:
    book, split = load_book(layout)
    if old_model is not None:
        old = load_model(old_model.model(FOUNDATION))
        foundation = old.with_catalogue(book, split.train)
    else:
        foundation = untrained(recipe, book, split)
    logger.info("foundation: %s body parameters", f"{foundation.num_parameters():,}")
    foundation.to(training_device())
    options: dict[str, Any] = {
        "config": recipe.fit,
        "out": scratch,
        "validate": lambda: watch(foundation, book, split.valid),
    }
    if recipe.mining is None:
        result = foundation.fit(book, split, **options)
    else:
        result = fit_with_mining(foundation, book, split, mining=recipe.mining, **options)
    finish_model(foundation, result, book, split, out, scratch, recipe=recipe)


def _rung(layout: RunLayout, recipe: Recipe, out: Path, scratch: Path) -> None:
    book, split = load_book(layout)
    teacher = load_model(layout.model(FOUNDATION)).to(training_device())
    student = pruned(teacher, recipe.rung, book, split, seed=recipe.seed)
    result = distil(
        student,
        teacher,
        book,
        split,
        config=recipe.rung.fit,
        teacher_config=recipe.rung.teacher,
        out=scratch,
        validate=lambda: watch(student, book, split.valid),
    )
    finish_model(student, result, book, split, out, scratch, recipe=recipe)


def index_catalogue(
    layout: RunLayout, out: Path, *, width: int | None = None, like: IndexManifest | None = None
) -> None:
    """Embed the catalogue with the served model and index it; options as in `build_index`."""
    path = layout.model(layout.served())
    index = build_index(load_model(path), model_hash=weights_hash(path), width=width, like=like)
    index.save(out / "items")


def index_again(layout: RunLayout, *, width: int | None = None) -> int:
    """Embed a finished run's catalogue again, with what became of it since, and replace its index.

    The new index is of the kind, storage and target recall of the one that it replaces. Another
    process that indexes the run is waited for.

    Args:
        layout: the run.
        width: as in `build_index`; when left out, that of the index that is replaced.

    Returns:
        How many items were indexed.

    Raises:
        ValueError: the folder holds no finished model, or one that was not trained at that width.
    """
    layout.served()  # What is no run is refused before a lock is put there.
    with _indexing_alone(layout):
        _index_for(layout, layout.served(), width=width)
        return len(Recommender.load(layout.folder).index)


def index_if_stale(layout: RunLayout, *, accepting: str | None = None) -> None:
    """Index a run's catalogue again where the index is not of the model that serves.

    Args:
        layout: the run.
        accepting: a rung that the gate let through. It serves once this is done; until then what
            served before does, from an index of its own.
    """
    with _indexing_alone(layout):
        name = layout.served(accepting=accepting)
        there = index_manifest(layout.index)
        if there is None or there.model_hash != weights_hash(layout.model(name)):
            _index_for(layout, name)
        if accepting is not None:
            record = rung_record(layout, accepting) | {"accepted": True}
            text = json.dumps(record, indent=2) + "\n"
            write_whole(layout.folder / accepting / RUNG_RECORD, text)


def _indexing_alone(layout: RunLayout) -> FileLock:
    """Held from the choice of what is indexed until it is: two at once would sweep up each other's.

    Not the run's own lock, which a ladder holds for hours.
    """
    return FileLock(layout.folder / ".index.lock")


def _index_for(layout: RunLayout, name: str, *, width: int | None = None) -> None:
    """Replace a run's index, and that of its saved catalogue, by those of a model of it."""
    path = layout.model(name)
    foundation, made_with = load_model(path), weights_hash(path)
    catalogue = SavedCatalogue(layout.catalogue)
    book, _ = load_book(layout)
    saved = catalogue.read(book.interactions.schema)
    of_log = build_index(
        foundation, model_hash=made_with, width=width, like=index_manifest(layout.index)
    )
    # Embedding takes long: both are made before either takes its place.
    if saved is not None:
        foundation, book = saved.put_into(foundation, book, model_hash=made_with)
        index = build_index(
            foundation,
            model_hash=made_with,
            without=saved.removed,
            width=width,
            like=index_manifest(saved.index),
        )
        catalogue.write(Served.of(foundation, book, index, told=saved.told), index)
    # Last: where this was cut short, `index_if_stale` begins again.
    of_log.save(layout.index)


def index_manifest(index: Path) -> IndexManifest | None:
    """What the index of a folder is; None where none is there, or a damaged one."""
    with suppress(IndexMismatch):
        return IndexManifest.read(index)
    return None
