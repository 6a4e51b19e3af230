"""What a sweep asks for: a YAML file and a grid of settings, checked before anything is trained."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from decant.errors import utf8_text
from decant.recipes import FOLDERS, Recipe, last_part
from decant.retriever import MiningConfig
from decant.run_record import json_hash
from decant.sourcing import Source
from foundation import LoraOptions
from foundation.sizes import SHAPES
from promptify.plain_yaml import load_yaml
from promptify.validation import BadInput

_SWEEP_KEYS = {"source", "data", "users", "items", "events", "task", "form", "recipe"}
_FILE_KEYS = ("data", "users", "items", "events", "task")
_MAY_LACK: Mapping[str, Callable[[], Any]] = {"mining": MiningConfig, "lora": LoraOptions}
"""What a recipe may go without; it has its defaults where one of its fields is set."""
_SEEDS = ("fit.seed", "rung.fit.seed")
"""Fields that are the recipe's `seed`, whatever they say."""
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
          NoneType: "null"}  # fmt: skip
# YAML 1.1 takes 1e-3 for a word, since it has no point.
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """One point of the grid.

    Attributes:
        settings: what the grid says, by dotted field of the recipe, without the seed.
        recipe: with them, and with its seed.
    """

    settings: Mapping[str, Any]
    recipe: Recipe

    @property
    def told(self) -> dict[str, Any]:
        """The settings as the ledger says them, which is published: of folders the last part."""
        return {
            key: last_part(value) if key in FOLDERS and isinstance(value, str) else value
            for key, value in self.settings.items()
        }

    @property
    def words(self) -> str:
        """The settings in one line."""
        told = " ".join(f"{key}={_in_words(value)}" for key, value in self.told.items())
        return told or "as the recipe says"

    @property
    def name(self) -> str:
        """Of its folder: readable, and different for different settings."""
        said = re.sub(r"[^\w.=+-]+", "-", f"{self.words}-seed-{self.recipe.seed}")
        return f"{said[:80]}-{json_hash(self.recipe.to_dict())[:8]}"


def read_grid(path: Path, grid: Sequence[str]) -> tuple[Source, list[Combination]]:
    """The data of a sweep, and every combination of its grid.

    Args:
        path: the YAML file.
        grid: `key=v1,v2`, a dotted field of the recipe each.

    Returns:
        Combinations in the order of the grid, the last field's values changing first.

    Raises:
        BadInput: the file or the grid names a field that is not there or a value that it cannot
            have, or asks for the same training twice.
    """
    content = _read(path)
    files = {name: path.parent / content[name] for name in _FILE_KEYS if name in content}
    source = Source(name=str(content.get("source")), files=files)
    base = source.recipe(content.get("form", "slot")).to_dict()
    told = _flat(content.get("recipe") or {})
    axes = [_axis(one) for one in grid]
    for key in (*told, *(key for key, _ in axes)):
        if key in ("fit.epochs", "rung.fit.epochs"):
            # As `--epochs`: what is asked for is what is trained, unless a least is asked for too.
            _set(base, key.replace("epochs", "least_steps"), 0, where=str(path))
    for key, value in told.items():
        _set(base, key, value, where=str(path))
    # As the files of the data; what the grid names lies where the command is given.
    for key in FOLDERS:
        if isinstance(base[key], str) and (path.parent / base[key]).is_dir():
            base[key] = str((path.parent / base[key]).absolute())
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise BadInput(f"--grid names {', '.join(keys)}; give each field once, with all values.")
    combinations = []
    for values in itertools.product(*(values for _, values in axes)):
        settings = dict(zip(keys, values, strict=True))
        changed = json.loads(json.dumps(base))
        for key, value in settings.items():
            _set(changed, key, value, where="--grid")
        settings.pop("seed", None)
        try:
            recipe = _checked(changed)
        except (TypeError, ValueError) as error:
            words = Combination(settings=settings, recipe=source.recipe()).words
            raise BadInput(f"{words}: {error}") from error
        combinations.append(Combination(settings=settings, recipe=recipe))
    _check_different(combinations)
    return source, combinations


def _checked(content: dict[str, Any]) -> Recipe:
    """A recipe from its dictionary, which a run would take.

    Raises:
        TypeError, ValueError: it would not.
    """
    recipe = Recipe.from_dict(content).with_seed(content["seed"])
    if recipe.size is not None and recipe.size not in SHAPES:
        raise BadInput(f"size={recipe.size!r} is unknown; choose one of {', '.join(SHAPES)}.")
    if recipe.size is not None and recipe.model is not None:
        raise BadInput(
            f"size={recipe.size} and model={recipe.model} exclude each other; set size: null."
        )
    # Named in full, as by `decant run`: its models find them there.
    recipe = recipe.with_model(size=recipe.size, model=recipe.model)
    return recipe.with_text_encoder(recipe.text_encoder)


def _check_different(combinations: Sequence[Combination]) -> None:
    """Refuse equal trainings, and settings that the ledger would take for seeds of each other."""
    known: dict[str, Mapping[str, Any]] = {}
    for place, one in enumerate(combinations):
        if any(one.recipe == other.recipe for other in combinations[:place]):
            raise BadInput(
                f"--grid: {one.words} with seed {one.recipe.seed} is asked for twice; give each "
                "value once."
            )
        if known.setdefault(one.words, one.settings) != one.settings:
            raise BadInput(
                f"--grid: {one.words} would stand for two settings in the ledger, which says of a "
                "folder its name alone and of a number six digits; give the folders different "
                "names, or numbers further apart."
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(utf8_text(path))
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or "source" not in content:
        raise BadInput(f"{path} must name its source: job_market, ml1m, ml100k or table.")
    if unknown := set(content) - _SWEEP_KEYS:
        raise BadInput(
            f"{path}: {', '.join(sorted(map(str, unknown)))} means nothing here; there are "
            f"{', '.join(sorted(_SWEEP_KEYS))}."
        )
    for name in _FILE_KEYS:
        if name in content and not isinstance(content[name], str):
            value = "empty" if content[name] is None else content[name]
            raise BadInput(f"{path}: {name} must name a file; it is {value}.")
    return content


def _axis(given: str) -> tuple[str, list[Any]]:
    """A field of the grid and its values."""
    key, sign, values = given.partition("=")
    try:
        found = [_number(value) for value in load_yaml(f"[{values}]")] if sign else []
    except yaml.YAMLError:
        found = []
    if not found:
        raise BadInput(f"--grid {given} must be a field and its values, such as seed=0,1,2.")
    return key, found


def _number(value: Any) -> Any:
    is_word = isinstance(value, str) and _SCIENTIFIC.fullmatch(value)
    return float(value) if is_word else value


def _flat(content: Any, before: str = "") -> dict[str, Any]:
    """Nested mappings by dotted keys."""
    if not isinstance(content, dict):
        raise BadInput(f"recipe{before and f'.{before[:-1]}'} must be fields and their values.")
    found: dict[str, Any] = {}
    for key, value in content.items():
        is_inner = isinstance(value, dict)
        found |= _flat(value, f"{before}{key}.") if is_inner else {f"{before}{key}": _number(value)}
    return found


def _set(recipe: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set a dotted field of a recipe's dictionary to a value of its kind."""
    *folders, name = key.split(".")
    if key in _SEEDS:
        raise BadInput(f"{where}: {key} is the seed of the recipe; give seed instead.")
    inner: Any = recipe
    kind: Any = Recipe
    for depth, folder in enumerate([*folders, name]):
        if not isinstance(inner, dict) or folder not in inner:
            there = list(inner) if isinstance(inner, dict) else []
            near = get_close_matches(folder, there, n=3) or there
            told = ".".join([*folders, name][:depth])
            has = f"has {', '.join(near)}" if near else f"is {inner}, and has none"
            raise BadInput(f"{where}: the recipe has no field {key}; {told or 'it'} {has}.")
        # Of what may be left out, the kind that has fields.
        kind = next(one for one in (kind, *get_args(kind)) if is_dataclass(one))
        kind = get_type_hints(kind)[folder]
        if depth == len(folders):
            if not _is_of(kind, value):
                raise BadInput(f"{where}: {key}={value!r} must be {_kind_in_words(kind)}.")
            inner[folder] = value
        elif inner[folder] is None and folder in _MAY_LACK:
            inner[folder] = json.loads(json.dumps(asdict(_MAY_LACK[folder]())))
        inner = inner[folder]


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value from YAML is of the kind of a recipe's field."""
    if get_origin(kind) is UnionType:
        return any(_is_of(one, value) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_is_of(get_args(kind)[0], one) for one in value)
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return isinstance(value, dict) and all(
            _is_of(kinds[name], inner) for name, inner in value.items() if name in kinds
        )
    if kind is float:
        return type(value) in (int, float) and isfinite(value)
    # Which words a literal may be is said where it is checked.
    return type(value) is (str if get_origin(kind) is Literal else kind)


def _kind_in_words(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(map(_kind_in_words, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each {_kind_in_words(get_args(kind)[0])}"
    if is_dataclass(kind):
        return "fields and their values"
    return _KINDS.get(kind, "text")


def _in_words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
