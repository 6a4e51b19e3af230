"""A finished run, opened up: its data, its split and its recipe, to train alike on less of it."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm, Bed, Prepared, trained
from benchmarks.measured import work_of
from benchmarks.peers import sasrec
from decant import recipes
from decant.layout import FOUNDATION, RunLayout
from decant.measure import Asked
from decant.recipes import Recipe, recipe_of
from decant.run_data import load_book, load_model, load_tasks, sample_targets, split_of
from decant.run_record import hardware
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.evaluation import ndcg
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.schema import Schema
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.splits import Split
from promptify.validation import BadInput

_WATCHED = 500


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
        fit_seconds: what its training took, on the clock of the peers' …
        hardware: … and on what.
    """

    recipe: Recipe
    data: SourceData
    split: Split
    book: PromptBook
    foundation: Foundation
    weights: str
    fit_seconds: float
    hardware: str

    def seconds_for_peers(self, given: float | None, *, option: str) -> float:
        """What a peer may take for a training: as long as the run's model, unless told.

        Both on `foundation.resuming.thread_seconds`, so that a busy machine favours neither. A run
        of a GPU, or of before that was written down, knows its wall time alone, which favours peers
        where the machine did something else.

        Args:
            given: seconds, where they are told.
            option: of the command line that tells them.

        Raises:
            ValueError: the run was trained on another machine, whose seconds are others.
        """
        if given is None and self.hardware != hardware():
            raise ValueError(
                f"the run was trained on {self.hardware}, and this is {hardware()}: "
                f"give {option}, what a peer's training may take here."
            )
        return given or self.fit_seconds


def fit_seconds(history: Mapping[str, Any]) -> float:
    """What a training took, in `thread_seconds` as of peers; else on the wall.

    Peers that are trained by fewer threads than it was have as much more of them.

    Args:
        history: of the run's model.
    """
    if not history.get("thread_seconds"):
        return float(history["seconds"])
    now = torch.get_num_threads()
    # What was trained before threads were written down is taken to have had as many.
    return float(history["thread_seconds"]) * (history.get("threads") or now) / now


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
    record = json.loads((folder / "run.json").read_text("utf-8"))
    return Studied(
        recipe=recipe,
        data=SourceData(interactions=book.interactions, tasks=load_tasks(layout)),
        split=split,
        book=book,
        foundation=load_model(model),
        weights=weights_hash(model),
        fit_seconds=fit_seconds(history),
        hardware=str(record["hardware"]),
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
        hardware=hardware(),
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


def train_like(
    studied: Studied, data: SourceData, split: Split, *, scratch: Path
) -> tuple[Foundation, PromptBook]:
    """A model trained by the run's recipe on other data or another split, and its prompts.

    Validation chooses its weights as it chose the run's.
    """
    prepared, arm = prepared_like(studied.recipe, data, split)
    book = prepared.book(arm)
    encoder = studied.recipe.text_encoder
    folder = None if encoder is None else Path(encoder)
    model = trained(prepared, arm, book, encoder=folder, scratch=scratch, is_watched=True)
    return model, book


def train_sasrec(
    studied: Studied,
    split: Split,
    *,
    seconds: float,
    configs: Sequence[sasrec.SASRecConfig],
    changes: Sequence[Mapping[str, Any]],
) -> sasrec.Fitted:
    """SASRec on the training events of a split, stopped by validation or by the clock.

    Args:
        studied: the run whose data it is.
        split: what it learns from, and what chooses.
        seconds: of each training.
        configs: what is tried; the best on validation is returned.
        changes: of the best of them, tried one after the other.
    """
    book = studied.book
    watched = Asked(book, sample_targets(split.valid, _WATCHED))

    def watch(model: sasrec.SASRec) -> float:
        scores = sasrec.score_requests(model, book, watched.targets)
        return float(ndcg(watched.ranks_by(lambda a, b: scores[a:b]), 10).mean())

    fitted = sasrec.fit_best(
        book,
        split,
        configs=configs,
        seconds=seconds,
        watch=watch,
        changes=changes,
        seed=studied.recipe.seed,
    )
    how = "validation stopped it" if fitted.stopped_early else "the clock stopped it"
    took = f"{fitted.epochs:.1f} epochs in {fitted.seconds:.0f} s"
    print(f"sasrec: {fitted.model.config}, {took}; {how}", file=sys.stderr)
    return fitted


def prepared_like(recipe: Recipe, data: SourceData, split: Split) -> tuple[Prepared, Arm]:
    """Some data to be trained on as a run was, on another split or another log."""
    bed = Bed(name=recipe.name, load=lambda _: data, recipe=recipe)
    arm = Arm(name="like the run's", encoder=recipe.text_encoder is not None)
    return Prepared(bed=bed, data=data, split=split, seed=recipe.seed), arm


def run_parser(
    description: str, *, has_work: bool = True, takes_several: bool = False
) -> argparse.ArgumentParser:
    """What every benchmark of a run is told: which run, and where its rows and its work go.

    Args:
        description: the head of the module.
        has_work: whether there is work to keep.
        takes_several: whether `run` is a list, of runs that differ by their seed alone.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if takes_several:
        told = "folders of finished `decant run`s that differ by --seed alone"
        parser.add_argument("run", type=Path, nargs="*", help=told)
    else:
        parser.add_argument("run", type=Path, nargs="?", help="folder of a finished `decant run`")
    parser.add_argument("--smoke", action="store_true", help="a tiny market and model of our own")
    parser.add_argument("--out", type=Path, help="CSV; a second call goes on where it stopped")
    if has_work:
        parser.add_argument("--work", type=Path, help="keeps what was said; default: beside --out")
    return parser


def add_sasrec_options(parser: argparse.ArgumentParser, *, has_seconds: bool = True) -> None:
    """What a benchmark that trains SASRec is told of it; see `sasrec_configs`.

    Args:
        parser: of its command line.
        has_seconds: whether it is told how long, of what it trains beside a run.
    """
    if has_seconds:
        told = "of each of its trainings; default: as the run's model"
        parser.add_argument("--sasrec-seconds", type=float, help=told)
    parser.add_argument(
        "--tune-sasrec",
        action="store_true",
        help="try four shapes, and the best of them at a higher rate, with shorter histories and "
        "on good actions alone, each for as long, and take the best on validation; what was best "
        "on MovieLens-1M is the only one otherwise",
    )
    parser.add_argument(
        "--sasrec-rate",
        type=float,
        help=f"learning rate of SASRec to begin with; default {sasrec.GRID[0].learning_rate:g}, "
        "which suits hours more than minutes",
    )


def sasrec_configs(
    options: argparse.Namespace,
) -> tuple[Sequence[sasrec.SASRecConfig], Sequence[Mapping[str, Any]]]:
    """What `add_sasrec_options` asked for: settings to try, and changes of the best of them.

    Raises:
        BadInput: the rate is not above 0.
    """
    configs = sasrec.GRID if options.tune_sasrec else sasrec.GRID[:1]
    changes = sasrec.CHANGES if options.tune_sasrec else ()
    rate = options.sasrec_rate
    if rate is None:
        return configs, changes
    if not rate > 0:
        raise BadInput(f"--sasrec-rate {rate:g} must be above 0; leave it out, or give .003.")
    return [replace(one, learning_rate=rate) for one in configs], changes


def sasrec_of(
    options: argparse.Namespace, studied: Studied
) -> tuple[list[Any], Callable[[Split], sasrec.Fitted]]:
    """What `add_sasrec_options` asked for.

    Returns:
        What a result depends on, JSON values only, and SASRec's training on a split.

    Raises:
        ValueError: the rate is not above 0, or the run was trained on another machine.
    """
    configs, changes = sasrec_configs(options)
    seconds = studied.seconds_for_peers(options.sasrec_seconds, option="--sasrec-seconds")
    train = partial(train_sasrec, studied, seconds=seconds, configs=configs, changes=changes)
    return [[asdict(config) for config in configs], changes, seconds], train


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[Studied, Path]]:
    """The run that a command line asks for, and the folder of its work.

    Args:
        options: of `run_parser`.

    Raises:
        ValueError: no run is named, or it is not finished.
    """
    with work_of(options) as work, tempfile.TemporaryDirectory() as scratch:
        if options.smoke:
            yield smoke(Path(scratch)), work
        else:
            yield of_run(named_run(options)), work


def named_run(options: argparse.Namespace) -> Path:
    """The folder that a command line names.

    Raises:
        ValueError: it names none.
    """
    if options.run is None:
        raise ValueError("RUN is needed: the folder of a `decant run` (or give --smoke).")
    run: Path = options.run
    return run
