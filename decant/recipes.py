"""Recipes: what each run is made of. A recipe is a function returning one frozen `Recipe`.

A recipe says everything a run's numbers depend on, so that its JSON in the run folder repeats it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from decant.retriever import MiningConfig
from distill.teaching import TeacherConfig
from foundation import FitConfig, FoundationConfig, LoraOptions
from foundation.sizes import SHAPES
from promptify.prompter import PrompterConfig
from promptify.validation import BadInput

Form = Literal["slot", "text"]
T = TypeVar("T")
_MAX_SEED = 2**32 - 1


class UnknownFieldError(TypeError):
    """A recipe has a field that this version does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RungConfig:
    """One step down the ladder: what is kept, and how it is taught.

    Args:
        num_layers: layers to keep; all when None.
        intermediate_size: MLP neurons to keep in every layer; all when None.
        fit: schedule of the distillation.
        teacher: how much the model above counts.
        calibration_rows: prompts that decide what is kept.
    """

    num_layers: int | None = None
    intermediate_size: int | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    calibration_rows: int = 1000

    def below(self, size: str | None) -> "RungConfig":
        """The same step, or half of the neurons where it would cut nothing.

        Args:
            size: of the decoder above, a name in `foundation.sizes.SHAPES`; None for a pretrained
                one, whose shape is not known here.
        """
        if size is None:
            return self
        layers, _, neurons, *_ = SHAPES[size]
        if (self.num_layers or layers) < layers or (self.intermediate_size or neurons) < neurons:
            return self
        return replace(self, num_layers=None, intermediate_size=neurons // 2)


FOLDERS = ("model", "text_encoder")
"""Fields of a recipe that may name a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A run from data to report.

    Args:
        name: what is run; the `task` of its result rows.
        size: of a decoder built here, a name in `foundation.sizes.SHAPES`; None with `model`.
        model: folder or hub name of a pretrained decoder; None with `size`.
        text_encoder: folder of a pretrained text encoder whose vectors take part in slots.
        prompter: what a prompt may hold.
        foundation: widths of the top model.
        fit: its training.
        mining: hard negatives mined on the way, for a sampled softmax; None for none.
        rung: the step down.
        held_out_slates: of each person: the last is test, those before it validate and are what
            the gate rests on. Two is leave-one-out; ten gives a ladder nine times the targets.
        test_slates: how many of the held-out are test, where one says too little.
        held_out_people: of how many people; the others are trained on whole, so that histories as
            long as those that are asked about are. Of all when None.
        fitting_requests: validation requests that `w` is chosen on, each with two hundred
            candidates; few where candidates are long. 0 leaves it at 0.
        measured_users: at most so many test requests are re-ranked for the `system` row; all when
            None.
        timed_requests: requests that latency is measured on.
        seed: of weights, shuffles and draws.
    """

    name: str
    size: str | None = "small"
    model: str | None = None
    text_encoder: str | None = None
    prompter: PrompterConfig = field(default_factory=PrompterConfig)
    foundation: FoundationConfig = field(default_factory=FoundationConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    mining: MiningConfig | None = None
    rung: RungConfig = field(default_factory=RungConfig)
    held_out_slates: int = 2
    test_slates: int = 1
    held_out_people: int | None = None
    fitting_requests: int = 1000
    measured_users: int | None = None
    timed_requests: int = 300
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return asdict(self)

    def published(self) -> "Recipe":
        """The same recipe as a record says it, which is published: of folders the last part."""
        return replace(self, model=last_part(self.model), text_encoder=last_part(self.text_encoder))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` gave.

        Raises:
            UnknownFieldError: a field is unknown.
            ValueError: a field has a value that it cannot have.
        """
        rung = dict(content["rung"])
        teacher = _of(TeacherConfig, rung["teacher"], "rung.teacher.")
        rung |= {"fit": _fit(rung["fit"], "rung.fit."), "teacher": teacher}
        mining = content.get("mining")
        parts = {
            "prompter": _of(PrompterConfig, content["prompter"], "prompter."),
            "foundation": _of(FoundationConfig, content["foundation"], "foundation."),
            "fit": _fit(content["fit"], "fit."),
            "mining": _of(MiningConfig, mining, "mining.") if mining else None,
            "rung": _of(RungConfig, rung, "rung."),
        }
        return _of(cls, {**content, **parts})

    def with_seed(self, seed: int) -> "Recipe":
        """The same recipe with another seed everywhere.

        Raises:
            BadInput: it is below 0, or has more than 32 bits.
        """
        if not 0 <= seed <= _MAX_SEED:
            raise BadInput(f"seed={seed} must be a whole number from 0 to {_MAX_SEED}.")
        return replace(
            self,
            seed=seed,
            fit=replace(self.fit, seed=seed),
            rung=replace(self.rung, fit=replace(self.rung.fit, seed=seed)),
        )

    def with_model(self, *, size: str | None, model: str | None) -> "Recipe":
        """The same recipe with another decoder; as it is when neither is given.

        A folder is named in full, so that the run is the same wherever it is gone on with. Of a
        size that has no more layers than the rung keeps, the rung keeps half of the neurons.

        Raises:
            BadInput: both are given, or the size is unknown.
        """
        if size is None and model is None:
            return self
        if size is not None and model is not None:
            raise BadInput(f"--size {size} and --model {model} exclude each other; give one.")
        if size is not None and size not in SHAPES:
            raise BadInput(f"--size {size} is unknown; choose one of {', '.join(SHAPES)}.")
        if model is not None and Path(model).is_dir():
            model = str(Path(model).absolute())
        return replace(self, size=size, model=model, rung=self.rung.below(size))

    def with_model_of(self, old: "Recipe") -> "Recipe":
        """The same recipe for the model of an older run: its decoder, prompts and text encoder."""
        return replace(
            self,
            size=old.size,
            model=old.model,
            text_encoder=old.text_encoder,
            prompter=old.prompter,
            foundation=old.foundation,
        )

    def with_held_out(self, slates: int | None, people: int | None = None) -> "Recipe":
        """The same recipe with other slates held out; as it is where None is given.

        Args:
            slates: of each person.
            people: of how many.

        Raises:
            BadInput: fewer slates than two, or fewer people than one.
        """
        if slates is not None and slates < 2:
            raise BadInput(
                f"--held-out {slates} must be 2 or more: one slate to test, the rest to validate."
            )
        if people is not None and people < 1:
            raise BadInput(
                f"--held-out-people {people} must be 1 or more: somebody has to be asked."
            )
        return replace(
            self,
            held_out_slates=self.held_out_slates if slates is None else slates,
            held_out_people=self.held_out_people if people is None else people,
        )

    def with_text_encoder(self, folder: str | None) -> "Recipe":
        """The same recipe with a text encoder; as it is when None.

        Raises:
            BadInput: there is no such folder.
        """
        if folder is None:
            return self
        if not Path(folder).is_dir():
            raise BadInput(
                f"--text-encoder {folder} is not a folder; give one with config.json, "
                "tokenizer.json and model.safetensors."
            )
        return replace(self, text_encoder=str(Path(folder).absolute()))

    def with_epochs(self, epochs: float | None) -> "Recipe":
        """The same recipe with another number of epochs for both trainings; as it is when None.

        What was asked for is what is trained: no least number of steps stands beside it.

        Raises:
            BadInput: there are none.
        """
        if epochs is None:
            return self
        if epochs <= 0:
            raise BadInput(f"--epochs {epochs:g} must be above 0; a share such as 0.5 will do.")
        return replace(
            self,
            fit=replace(self.fit, epochs=epochs, least_steps=0),
            rung=replace(self.rung, fit=replace(self.rung.fit, epochs=epochs, least_steps=0)),
        )


def last_part(named: str | None) -> str | None:
    """The last part of a folder's path; the name of a model on the hub as it is."""
    if named is None:
        return None
    path = Path(named)
    return path.absolute().name if path.is_absolute() or path.is_dir() else named


def _of(kind: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """A part of a recipe, of its fields by name."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(content) - known):
        raise UnknownFieldError(", ".join(f"{where}{name}" for name in unknown))
    return kind(**content)


def _fit(content: Mapping[str, Any], where: str) -> FitConfig:
    lora = content.get("lora")
    made = None if lora is None else _of(LoraOptions, lora, f"{where}lora.")
    return _of(FitConfig, {**content, "lora": made}, where)


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run folder.

    Raises:
        BadInput: its `recipe.json` is missing, was changed, or is of a newer version.
    """
    path = folder / "recipe.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder} is not a run folder; give the --out of a `decant run`.") from None
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); copy it again.") from error
    return recipe_in(content, path)


def recipe_in(content: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe in what a run folder's `recipe.json` says.

    Args:
        content: of the file.
        path: where it lies, for messages.

    Raises:
        BadInput: it was changed, or is of a newer version.
    """
    try:
        return Recipe.from_dict(content["recipe"])
    except UnknownFieldError as error:
        raise BadInput(
            f"{path} is of a newer version of decant: this one knows no {error}. Use that version, "
            "or another folder."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path} is damaged ({error}); copy it again.") from error


def said_now(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a run folder's `recipe.json` says, as this version says it: all fields are there.

    Args:
        content: of the file.
        path: where it lies, for messages.

    Raises:
        BadInput: its recipe was changed, or is of a newer version.
    """
    return {**content, "recipe": recipe_in(content, path).to_dict()}


def demo() -> Recipe:
    """The generated job market, in under five minutes on two cores."""
    fit = FitConfig(
        epochs=4,
        positions_per_batch=4096,
        reread_items=16,
        refresh_steps=120,
        evaluate_steps=115,
    )
    return Recipe(
        name="job_market",
        size="mini",
        prompter=PrompterConfig(
            form="slot", max_prompt_tokens=448, max_item_tokens=96, vocab_size=2048
        ),
        foundation=FoundationConfig(vector_dim=64, dropout=0.05),
        fit=fit,
        rung=RungConfig(num_layers=2, fit=replace(fit, epochs=1.5, learning_rate=5e-4)),
        timed_requests=100,
    )


def ml1m(form: Form = "slot") -> Recipe:
    """MovieLens-1M, in slot or text form, within 45 minutes on two cores."""
    if form == "text":
        return _films_in_text("ml1m", epochs=0.8, rung_epochs=0.3)
    fit = FitConfig(epochs=7, evaluate_steps=284)
    return Recipe(
        name="ml1m",
        prompter=PrompterConfig(form="slot", max_prompt_tokens=512, max_item_tokens=32),
        foundation=FoundationConfig(dropout=0.2),
        fit=fit,
        rung=RungConfig(num_layers=2, fit=replace(fit, epochs=2, learning_rate=5e-4)),
    )


def ml100k(form: Form = "slot") -> Recipe:
    """MovieLens-100K, in slot or text form, within 10 minutes on two cores."""
    if form == "text":
        return _films_in_text("ml100k", epochs=2, rung_epochs=0.7)
    fit = FitConfig(epochs=8, positions_per_batch=4096, reread_items=32, evaluate_steps=58)
    return Recipe(
        name="ml100k",
        size="mini",
        prompter=PrompterConfig(
            form="slot", max_prompt_tokens=512, max_item_tokens=32, vocab_size=2048
        ),
        foundation=FoundationConfig(vector_dim=64),
        fit=fit,
        rung=RungConfig(num_layers=2, fit=replace(fit, epochs=3, learning_rate=5e-4)),
    )


def table(form: Form = "slot") -> Recipe:
    """Anyone's tables: a middling schedule; lengths suit items of a line or two."""
    # A log of a few thousand events would be a dozen steps.
    fit = FitConfig(epochs=6, least_steps=100, evaluate_steps=100)
    rung_fit = replace(fit, epochs=2, least_steps=50, learning_rate=5e-4)
    return Recipe(
        name="table",
        prompter=PrompterConfig(form=form, max_prompt_tokens=512, max_item_tokens=64),
        fit=fit,
        rung=RungConfig(num_layers=2, fit=rung_fit),
        measured_users=1000,
    )


def _films_in_text(name: str, *, epochs: float, rung_epochs: float) -> Recipe:
    # A film is 15 tokens and not 2 positions: an epoch takes eight times as long, so the decoder is
    # smaller and sees less.
    fit = FitConfig(epochs=epochs, positions_per_batch=4096, reread_items=32, evaluate_steps=500)
    return Recipe(
        name=name,
        size="mini",
        prompter=PrompterConfig(form="text", max_prompt_tokens=512, max_item_tokens=32),
        foundation=FoundationConfig(vector_dim=64),
        fit=fit,
        rung=RungConfig(num_layers=2, fit=replace(fit, epochs=rung_epochs, learning_rate=5e-4)),
        measured_users=500,
        timed_requests=100,
    )
