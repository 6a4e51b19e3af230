"""The pretrained decoder that a recipe names: whether it can be had, and what its folder holds."""

from pathlib import Path

from decant.fingerprints import fingerprint
from decant.recipes import Recipe
from decant.run_record import json_hash
from distill.anatomy import check_family
from foundation.checkpoint import load_config, load_tokenizer, refuse_code, refuse_quantised
from promptify.validation import BadInput

# What of a checkpoint's folder is read: no pickles, and nothing that lies in folders of its own.
_CHECKPOINT_FILES = (".json", ".model", ".safetensors", ".txt")


def check_model(recipe: Recipe, made: Path) -> None:
    """Refuse a pretrained decoder that cannot be had, before anything is written.

    Args:
        recipe: may name one.
        made: the stage that is trained from it; where it is finished nothing need be had.

    Raises:
        BadInput: it is no checkpoint, wants to run code, is pickled, quantised or an adapter, has
            no tokenizer, is neither a folder nor on the hub, is of a family of which no rung could
            be made, or is of a run, whose data may be what is held out here.
    """
    if recipe.model is None or (made / "stage.json").exists():
        return
    for mark in ("export.json", "foundation.json"):
        if (Path(recipe.model) / mark).is_file():
            raise BadInput(
                f"--model {recipe.model} is a run's model (it holds {mark}), which may be trained "
                "on what is held out here. Give --continue RUN, the run that it is of, or the "
                "checkpoint which that run started from."
            )
    if Path(recipe.model).is_dir():
        refuse_code(Path(recipe.model))
    try:
        config = load_config(recipe.model)
        load_tokenizer(recipe.model)
    except BadInput as error:
        raise BadInput(
            f"--model {recipe.model} is no folder with a model and its tokenizer, and no name of "
            f"one on the hub that can be had from here: {error}"
        ) from error
    refuse_quantised(recipe.model, config)
    check_family(config.model_type)


def model_contents(recipe: Recipe, *, weights: bool = True) -> dict[str, str]:
    """The fingerprint of the checkpoint that a recipe names, where that is a folder.

    Args:
        recipe: of the run.
        weights: whether they count; a prompter reads the tokenizer alone.
    """
    folder = None if recipe.model is None else Path(recipe.model)
    if folder is None or not folder.is_dir():
        return {}
    suffixes = [one for one in _CHECKPOINT_FILES if weights or one != ".safetensors"]
    files = {
        file.name: fingerprint(file)
        for file in folder.iterdir()
        if file.suffix in suffixes and file.is_file()
    }
    return {"model": json_hash(files)}
