"""What a run folder holds, read back: tasks, split, prompts, models."""

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError

from decant.layout import DATA, PROMPTER, RUNG_RECORD, RunLayout
from promptify.interactions import Interactions
from promptify.splits import Split, Targets, leave_last, leave_one_out
from promptify.task import Task
from promptify.validation import BadInput
from promptify.whole import remove_whole, sweep

if TYPE_CHECKING:
    from foundation import Foundation
    from promptify.assembly import PromptBook

logger = logging.getLogger(__name__)

# Imports of models and prompts stand where they are loaded: a policy is tried on a log alone.


def load_tasks(layout: RunLayout) -> tuple[Task, ...]:
    """The tasks of a run's data; the first is the one that is measured."""
    path = layout.folder / DATA / "source.json"
    with reading(path):
        source = json.loads(path.read_text("utf-8"))
        return tuple(Task.from_dict(task) for task in source["tasks"])


def load_model(path: Path, *, text_encoder: Path | None = None) -> "Foundation":
    """The model of a stage of a run.

    Args:
        path: its folder.
        text_encoder: where the text encoder of its slots lies, if not where the run's recipe says.

    Raises:
        BadInput: a file of it is missing, cut short or changed, or a text encoder is given to a
            model that was made without one.
    """
    from foundation import Foundation

    if text_encoder is not None:
        # What is wrong then may be what was given: no file need be damaged.
        return Foundation.from_pretrained(path, text_encoder=text_encoder)
    with reading(path):
        return Foundation.from_pretrained(path, text_encoder=_text_encoder_of(path))


def _text_encoder_of(path: Path) -> Path | None:
    """Where the text encoder of a run's model lies; None for a model of no run, or without one."""
    settings, recipe = path / "foundation.json", path.parent.parent / "recipe.json"
    if not (settings.is_file() and recipe.is_file()):
        return None
    if json.loads(settings.read_text("utf-8")).get("text_encoder") is None:
        return None
    with reading(recipe):
        said = json.loads(recipe.read_text("utf-8"))["recipe"].get("text_encoder")
    return None if said is None else Path(said)


def rung_record(layout: RunLayout, name: str) -> dict[str, Any]:
    """What is known of a rung that `decant ladder` made: shape, attempts, verdict, test metrics.

    Raises:
        BadInput: the file is damaged.
    """
    path = layout.folder / name / RUNG_RECORD
    with reading(path):
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def is_made_from(layout: RunLayout, name: str, models: Collection[str]) -> bool:
    """Whether a rung of a ladder, or of few bits, was made of these models alone.

    Args:
        layout: the run.
        name: of a rung that is there.
        models: `weights_hash` of each.

    Raises:
        BadInput: its stage.json is damaged.
    """
    return _origin(layout, name)[0] <= set(models)


def is_rounded_from(layout: RunLayout, name: str, models: Collection[str]) -> bool:
    """Whether a rung is one of few bits (`decant quantise`), made of these models alone.

    Args:
        layout: the run.
        name: of a rung that is there.
        models: `weights_hash` of each.

    Raises:
        BadInput: its stage.json is damaged.
    """
    made_of, is_of_ladder = _origin(layout, name)
    return not is_of_ladder and made_of <= set(models)


def _origin(layout: RunLayout, name: str) -> tuple[set[str | None], bool]:
    """The `weights_hash` of models that a rung was made of, and whether a ladder made it."""
    path = layout.folder / name / "stage.json"
    with reading(path):
        inputs = json.loads(path.read_text("utf-8"))["inputs"]
    return {inputs.get("above"), inputs.get("top")}, "ladder" in inputs


def drop_rungs(layout: RunLayout, *, but: Collection[str], keep_ladder: bool = False) -> None:
    """Remove rungs that hang in the air: they would serve.

    A rung of few bits stays while the models that it was made of do.

    Args:
        layout: the run.
        but: models that stay.
        keep_ladder: whether a ladder's rungs stay in the same way; they do not where another
            ladder began anew.
    """
    from foundation.checkpoint import weights_hash

    there = {weights_hash(layout.folder / name / "model") for name in but}
    for name in layout.models():
        if not name.startswith("rung-") or name in but:
            continue
        made_of, is_of_ladder = _origin(layout, name)
        if made_of <= there and (keep_ladder or not is_of_ladder):
            there.add(weights_hash(layout.model(name)))
            continue
        logger.info("%s was made of other models, and is removed", name)
        # Whole: of a ladder's rung without its record nobody would know that the gate failed it.
        remove_whole(layout.folder / name)
    sweep(layout.folder, "rung-*")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a file of a run that cannot be read where it is and how to mend it.

    Args:
        path: a file or folder inside a stage's folder.

    Raises:
        BadInput: what is read inside is not what the stage wrote, or this user may not read it.
    """
    try:
        yield
    except PermissionError as error:
        raise BadInput(
            f"{error.filename or path} may not be read by this user; have its owner let others "
            "read it, or copy the run as one who may."
        ) from error
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException, SafetensorError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise BadInput(
            f"{path} is damaged ({said}). Copy it again, or delete {path.parent} and give the same "
            f"`decant run` command again."
        ) from error


def split_of(
    interactions: Interactions,
    tasks: tuple[Task, ...],
    *,
    held_out_slates: int = 2,
    test_slates: int = 1,
    held_out_people: int | None = None,
) -> Split:
    """The split of every run: a person's last slates, on the first task's surface.

    Args:
        interactions: the log.
        tasks: of the data.
        held_out_slates: of each person: the last are test, those before them validate.
        test_slates: how many of them are test.
        held_out_people: of how many; the others are trained on whole. Of all when None.
    """
    surface = tasks[0].name if len(tasks) > 1 else None
    if held_out_slates == 2 and held_out_people is None:
        return leave_one_out(interactions, surface=surface)
    return leave_last(
        interactions,
        num=held_out_slates,
        num_test=test_slates,
        surface=surface,
        people=held_out_people,
    )


def load_split(layout: RunLayout, interactions: Interactions) -> Split:
    """The split of a run."""
    path = layout.folder / DATA / "source.json"
    with reading(path):
        source = json.loads(path.read_text("utf-8"))
        held_out, test = (
            int(source.get(name, otherwise))
            for name, otherwise in (("held_out_slates", 2), ("test_slates", 1))
        )
        people = source.get("held_out_people")
        people = None if people is None else int(people)
    return split_of(
        interactions,
        load_tasks(layout),
        held_out_slates=held_out,
        test_slates=test,
        held_out_people=people,
    )


def load_book(layout: RunLayout) -> tuple["PromptBook", Split]:
    """A run's data as prompts, and its split."""
    from promptify.prompter import Prompter

    with reading(layout.interactions):
        interactions = Interactions.load(layout.interactions)
    with reading(layout.folder / PROMPTER / "prompter.json"):
        prompter = Prompter.load(layout.folder / PROMPTER)
    return prompter.book(interactions), load_split(layout, interactions)


def sample_targets(targets: Targets, count: int | None) -> Targets:
    """At most `count` targets, evenly spaced; all of them when None."""
    if count is None or count >= len(targets):
        return targets
    return targets[np.linspace(0, len(targets) - 1, count).astype(np.int64)]
