"""What a training begins with: written down, and held against whoever goes on from its checkpoints.

Two trainings of the same weights are the same if this is the same, so a folder that holds another's
checkpoints is refused by the name of what differs. Hashes of tensors and of prompts, by which
distillation knows a teacher and its stored signals, are of the same kind and stand here too.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from promptify.validation import BadInput
from promptify.whole import write_whole

if TYPE_CHECKING:
    from foundation.trainer import FoundationTrainer
    from promptify.assembly import PromptBook
    from promptify.splits import Split

# How often it is saved, when it is over, and how the same sums are computed; and what is fitted on
# a model that is finished.
_OF_NO_COURSE = (
    "checkpoint_seconds",
    "patience",
    "compile",
    "gradient_checkpointing",
    "rank_weight",
    "calibration",
)


def course_of(trainer: "FoundationTrainer", book: "PromptBook", split: "Split") -> dict[str, Any]:
    """What a training's course depends on beside the weights that learn, JSON values by name.

    Args:
        trainer: of the training.
        book: pieces of the interactions.
        split: what is trained on.
    """
    model, prompter = trainer.foundation.settings, book.prompter
    settings = asdict(trainer.config) | asdict(model) | asdict(prompter.config)
    log = book.interactions
    data, prompts = hashlib.sha256(), hashlib.sha256()
    for values in (split.train, log.event_user, log.event_item, log.event_action):
        data.update(np.ascontiguousarray(values).data)
    prompts.update(json.dumps([task.to_dict() for task in prompter.tasks]).encode())
    for values in piece_arrays(book):
        prompts.update(values.data)
    shapes = [list(parameter.shape) for parameter in trainer.foundation.parameters()]
    return {
        **{name: value for name, value in settings.items() if name not in _OF_NO_COURSE},
        # Wherever it lies, it is the same encoder.
        "text_encoder": None if model.text_encoder is None else model.text_encoder.sha256,
        "size": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "loss_weights": trainer.loss_weights,
        "data": data.hexdigest(),
        "prompts": prompts.hexdigest(),
        **getattr(trainer.whole, "identity", dict)(),
    }


def piece_arrays(book: "PromptBook") -> Iterator[NDArray[Any]]:
    """What prompts are made of, for a hash by which other prompts are known.

    Args:
        book: pieces of the interactions.
    """
    said = book.said
    for pieces in (said.items, said.profiles, said.contexts, book.prompter.instruction_pieces):
        yield np.ascontiguousarray(pieces.offsets)
        yield np.ascontiguousarray(pieces.ids)


def remember_beginning(model: nn.Module, settings: Mapping[str, Any], checkpoints: Path) -> None:
    """Write down what a training begins with.

    Args:
        model: the foundation that is trained, of which frozen weights are kept as a hash.
        settings: JSON values by name.
        checkpoints: folder of the checkpoints.
    """
    checkpoints.parent.mkdir(exist_ok=True, parents=True)
    write_whole(_frozen_path(checkpoints), _hash_frozen(model))
    write_whole(_settings_path(checkpoints), json.dumps(settings, indent=2) + "\n")


def check_beginning(model: nn.Module, settings: Mapping[str, Any], checkpoints: Path) -> None:
    """Refuse to go on otherwise than a training began.

    Checkpoints hold what is learned alone. Adapters are merged when a training ends: beside the
    weights that they were merged into they would count twice.

    Args:
        model: the foundation that is trained.
        settings: as it began with them.
        checkpoints: folder of the checkpoints.

    Raises:
        BadInput: frozen weights or settings are others.
    """
    path = _frozen_path(checkpoints)
    if path.exists() and path.read_text(encoding="utf-8") != _hash_frozen(model):
        raise BadInput(
            f"the checkpoints in {checkpoints} were learned beside other frozen weights than this "
            "model's, which has perhaps been trained since; load the model anew to go on from "
            "them, or give another out=."
        )
    path = _settings_path(checkpoints)
    if not path.exists():  # of before they were written down
        return
    began = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    # What it began without is of before that was written down.
    others = [name for name in began if began[name] != now.get(name)]
    if others:
        raise BadInput(
            f"the checkpoints in {checkpoints} are of a training with another "
            f"{', '.join(others)}; give that again to go on from them, or another out=."
        )


def _settings_path(checkpoints: Path) -> Path:
    return checkpoints.with_name("settings.json")


def _frozen_path(checkpoints: Path) -> Path:
    return checkpoints.with_name("frozen.sha256")


def _hash_frozen(model: nn.Module) -> str:
    return hash_tensors(p for p in model.parameters() if not p.requires_grad)


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the numbers in some tensors, by which other weights are known.

    Args:
        tensors: of any dtype, on any device.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
