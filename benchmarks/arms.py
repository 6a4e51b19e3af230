"""Beds and arms: small trainings on the same data that differ in one thing.

A *bed* is a data set with the recipe that all of its arms share; an *arm* is what one of them
changes. What an arm predicts is kept in a work folder, so that a second call trains nothing again
and any two arms can be compared target by target.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decant import recipes
from decant.fingerprints import code_key
from decant.measure import Answers, Asked
from decant.on_validation import watch
from decant.recipes import Recipe
from decant.run_record import json_hash
from decant.stages import ROOMS
from foundation import FitConfig, Foundation, FoundationConfig
from foundation.predictions import predict_targets
from foundation.text_encoder import encoder_hash
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.sources.movielens import ml_1m, ml_100k
from promptify.splits import Split, Targets, leave_one_out
from promptify.validation import BadInput
from promptify.whole import whole_file

Part = Literal["valid", "test"]
_MAKES_ANSWERS = (
    *ROOMS,
    "benchmarks.arms",
    "benchmarks.cold_start",
    "benchmarks.histories",
    "benchmarks.ideal_reader",
    "benchmarks.peers",
    "benchmarks.studied",
    "decant.making",
    "decant.measure",
    "decant.on_validation",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bed:
    """A data set, and what all arms on it share.

    Args:
        name: the `task` of its rows.
        load: makes the data from a seed.
        recipe: prompter, widths and schedule.
        settings: what else the data depends on, JSON values.
    """

    name: str
    load: Callable[[int], SourceData]
    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What one training changes.

    Args:
        name: the `model` of its rows.
        prompter: fields of `PrompterConfig`.
        foundation: fields of `FoundationConfig`.
        fit: fields of `FitConfig`.
        encoder: whether slots hold the vectors of the text encoder.
    """

    name: str
    prompter: Mapping[str, Any] = field(default_factory=dict)
    foundation: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    encoder: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A bed's data for one seed.

    Args:
        bed: whose.
        data: log and tasks.
        split: what trains, and what is held out.
        seed: of data, weights and shuffles.
    """

    bed: Bed
    data: SourceData
    split: Split
    seed: int

    def prompter_config(self, arm: Arm) -> PrompterConfig:
        """What the arm's prompts may hold."""
        return replace(self.bed.recipe.prompter, **arm.prompter)

    def foundation_config(self, arm: Arm) -> FoundationConfig:
        """What the arm's model is, beside its decoder."""
        return replace(self.bed.recipe.foundation, **arm.foundation)

    def fit_config(self, arm: Arm) -> FitConfig:
        """The arm's schedule and losses."""
        return replace(self.bed.recipe.fit, seed=self.seed, **arm.fit)

    def settings(self, arm: Arm, *, encoder: Path | None = None) -> dict[str, Any]:
        """All that an arm's numbers depend on, JSON values; its text encoder by content.

        Args:
            arm: what is changed.
            encoder: the text encoder's folder, where the arm has one.

        Raises:
            BadInput: it cannot be read.
        """
        return {
            "bed": self.bed.name,
            "data": dict(self.bed.settings),
            "split": self.split.name,
            "size": self.bed.recipe.size,
            "prompter": asdict(self.prompter_config(arm)),
            "foundation": asdict(self.foundation_config(arm)),
            "fit": asdict(self.fit_config(arm)),
            "encoder": encoder_key(encoder) if arm.encoder and encoder else arm.encoder,
            "seed": self.seed,
        }

    def key(self, arm: Arm, *, encoder: Path | None, **more: Any) -> str:
        """Sixteen hex digits of all that, of the data itself, and of what more an answer is of."""
        told = self.settings(arm, encoder=encoder)
        return json_hash([told, self.data.interactions.digest, more])[:16]

    @property
    def targets(self) -> dict[Part, Targets]:
        """What validates, which may choose, and what is reported."""
        return {"valid": self.split.valid, "test": self.split.test}

    def book(self, arm: Arm) -> PromptBook:
        """The log's pieces under the arm's prompter."""
        config = self.prompter_config(arm)
        log = self.data.interactions
        return Prompter.fit(log, self.split.train, self.data.tasks, config=config).book(log)


def encoder_key(folder: Path) -> str:
    """A text encoder by its content.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return encoder_hash(folder)
    except OSError as error:
        raise BadInput(
            f"--text-encoder {folder} cannot be read ({error.strerror}); give a folder with "
            "config.json, tokenizer.json and model.safetensors."
        ) from error


def prepare(bed: Bed, *, seed: int) -> Prepared:
    """Load a bed's data and hold out each user's last two slates."""
    data = bed.load(seed)
    surface = data.tasks[0].name if len(data.tasks) > 1 else None
    split = leave_one_out(data.interactions, surface=surface)
    return Prepared(bed=bed, data=data, split=split, seed=seed)


def trained(
    prepared: Prepared,
    arm: Arm,
    book: PromptBook,
    *,
    encoder: Path | None,
    scratch: Path,
    is_watched: bool = False,
) -> Foundation:
    """Train an arm.

    Args:
        prepared: the data.
        arm: what is changed.
        book: from `prepared.book(arm)`.
        encoder: the text encoder's folder.
        scratch: for checkpoints; removed when the training is done.
        is_watched: whether validation chooses the weights, as often as the schedule says.

    Raises:
        BadInput: the arm wants a text encoder and none is given.
    """
    if arm.encoder and encoder is None:
        raise BadInput(f"arm {arm.name} needs --text-encoder FOLDER.")
    foundation = Foundation.create(
        book.prompter,
        book,
        prepared.split.train,
        size=prepared.bed.recipe.size,
        model=prepared.bed.recipe.model,
        text_encoder=encoder if arm.encoder else None,
        config=prepared.foundation_config(arm),
        seed=prepared.seed,
    )
    split = prepared.split
    validate = partial(watch, foundation, book, split.valid) if is_watched else None
    foundation.fit(book, split, config=prepared.fit_config(arm), out=scratch, validate=validate)
    shutil.rmtree(scratch, ignore_errors=True)
    return foundation


def answers(
    prepared: Prepared, arm: Arm, *, encoder: Path | None, work: Path
) -> dict[Part, Answers]:
    """What an arm says of the validation and the test targets; it is trained if need be.

    Args:
        prepared: the data.
        arm: what is changed.
        encoder: the text encoder's folder.
        work: keeps what each arm said in a file of its own.
    """
    key = prepared.key(arm, encoder=encoder)
    path = of_code(work / f"{prepared.bed.name}-{arm.name}-{key}.npz")
    if not path.exists():
        book = prepared.book(arm)
        scratch = path.with_suffix(".training")
        foundation = trained(prepared, arm, book, encoder=encoder, scratch=scratch)
        said = {
            part: Asked(book, targets).of(predict_targets(foundation, book, targets))
            for part, targets in prepared.targets.items()
        }
        save_arrays(
            path,
            {
                f"{part}/{f.name}": getattr(answered, f.name)
                for part, answered in said.items()
                for f in fields(answered)
                if getattr(answered, f.name) is not None
            },
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {
            part: Answers(
                **{
                    f.name: arrays[f"{part}/{f.name}"]
                    for f in fields(Answers)
                    if f"{part}/{f.name}" in arrays
                }
            )
            for part in prepared.targets
        }


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = dict(arrays)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **named)


def of_code(path: Path, *asking: str) -> Path:
    """Where a file of answers lies: within a folder that the code which makes them is known by.

    Args:
        path: of the file, were there one code for ever.
        asking: names of the modules that ask, where others do not ask as they do.
    """
    return path.parent / code_key((*_MAKES_ANSWERS, *asking)) / path.name


def kept_arrays(
    path: Path, make: Callable[[Path], Mapping[str, NDArray[Any]]], *, asking: str
) -> dict[str, NDArray[Any]]:
    """Arrays of a file by name; made, and written whole, where there is none.

    What other code made lies in a folder of its own beside, and is not looked at.

    Args:
        path: as of `of_code`.
        make: is given a folder for a training, which is as much of this code as the file.
        asking: name of the module that asks.
    """
    path = of_code(path, asking)
    if not path.exists():
        save_arrays(path, make(path.with_suffix(".training")))
    with np.load(path, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}


def market_bed(*, smoke: bool = False) -> Bed:
    """The generated job market of the demo."""
    sizes = {"num_members": 250, "num_jobs": 120, "num_impressions": 5000} if smoke else {}
    recipe = _shorter(recipes.demo(), epochs=0.3 if smoke else 3, smoke=smoke)
    return Bed(
        name="job_market",
        load=lambda seed: job_market(seed=seed, **sizes),
        recipe=recipe,
        settings=sizes,
    )


def sparse_bed() -> Bed:
    """A job market with about as many jobs as impressions: most jobs are shown once or never."""
    sizes = {"num_members": 750, "num_jobs": 8000, "num_impressions": 10000}
    recipe = _shorter(recipes.demo(), epochs=5)
    # A large catalogue in a minute: sampled negatives, shorter texts, and few readings of them all.
    return Bed(
        name="sparse_market",
        load=lambda seed: job_market(seed=seed, **sizes),
        recipe=replace(
            recipe,
            prompter=replace(recipe.prompter, max_item_tokens=48),
            fit=replace(
                recipe.fit, full_softmax_items=1000, num_negatives=2048, refresh_steps=1000
            ),
        ),
        settings=sizes,
    )


def ml100k_bed(folder: Path) -> Bed:
    """MovieLens-100K from its zip."""
    return Bed(
        name="ml100k",
        load=lambda _: ml_100k(folder / "ml-100k.zip"),
        recipe=_shorter(recipes.ml100k(), epochs=5),
    )


def ml1m_bed(folder: Path) -> Bed:
    """MovieLens-1M from its zip, for the small model of the ML-100K bed."""
    recipe = replace(recipes.ml100k(), prompter=recipes.ml1m().prompter)
    return Bed(
        name="ml1m", load=lambda _: ml_1m(folder / "ml-1m.zip"), recipe=_shorter(recipe, epochs=2)
    )


def beds(names: Sequence[str], *, movielens: Path | None, smoke: bool) -> list[Bed]:
    """Beds by name.

    Raises:
        BadInput: a name is unknown, or a MovieLens zip is not where it should be.
    """
    found = []
    for name in names:
        if name in ("ml100k", "ml1m"):
            zipped = {"ml100k": "ml-100k.zip", "ml1m": "ml-1m.zip"}[name]
            if movielens is None or not (movielens / zipped).is_file():
                raise BadInput(f"bed {name} needs --movielens FOLDER with {zipped} in it.")
            found.append((ml100k_bed if name == "ml100k" else ml1m_bed)(movielens))
        elif name == "job_market":
            found.append(market_bed(smoke=smoke))
        elif name == "sparse_market":
            found.append(sparse_bed())
        else:
            raise BadInput(
                f"bed {name!r} is unknown; choose of job_market, sparse_market, ml100k, ml1m."
            )
    return found


def _shorter(recipe: Recipe, *, epochs: float, smoke: bool = False) -> Recipe:
    """A recipe for a minute or two: fewer epochs, no validation on the way."""
    size = "tiny" if smoke else "mini"
    return replace(recipe, size=size, fit=replace(recipe.fit, epochs=epochs, evaluate_steps=0))
