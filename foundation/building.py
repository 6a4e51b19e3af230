"""New foundations: from a size or a checkpoint, and from an old one over another catalogue."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.calibration import Calibration
from foundation.checkpoint import load_decoder, new_decoder
from foundation.config import FoundationConfig
from foundation.text_encoder import TextEncoder
from promptify.prompter import Prompter
from promptify.task import Task
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation
    from promptify.assembly import PromptBook

FoundationT = TypeVar("FoundationT", bound="Foundation")


def create(
    kind: type[FoundationT],
    prompter: Prompter,
    book: "PromptBook",
    train: NDArray[np.bool_],
    *,
    size: str | None,
    model: str | Path | None,
    text_encoder: str | Path | None,
    config: FoundationConfig | None,
    seed: int,
) -> FoundationT:
    """See `Foundation.create`."""
    if (size is None) == (model is None):
        raise ValueError(f"give either size= or model=; got size={size!r}, model={model!r}.")
    if prompter.config.time_gaps:
        raise BadInput(
            "time_gaps=True tells how long ago something was before each item, and who asks a "
            "model about an item tells no time: fit the prompter with time_gaps=False to train."
        )
    config = _with_encoder(config or FoundationConfig(), text_encoder)
    config = replace(config, pretrained=model is not None)
    _check_window(config.window_tokens, prompter, model)
    torch.manual_seed(seed)
    if model is not None:
        decoder = load_decoder(model)
    else:
        decoder = new_decoder(str(size), prompter, window_tokens=config.window_tokens)
    num_embeddings = decoder.get_input_embeddings().num_embeddings
    if num_embeddings < prompter.vocab_size:
        raise BadInput(
            f"model={model!r} embeds {num_embeddings} tokens, but the prompter's tokenizer has "
            f"{prompter.vocab_size}; fit the prompter with the tokenizer of that model."
        )
    foundation = kind(
        decoder,
        prompter=prompter,
        config=config,
        item_ids=book.interactions.item_ids,
        item_pieces=book.item_pieces,
    )
    foundation.count_exposure(book.interactions.event_item[train])
    foundation.encode_catalogue()
    return foundation


def _check_window(window_tokens: int | None, prompter: Prompter, model: str | Path | None) -> None:
    longest = prompter.config.max_prompt_tokens
    if window_tokens is not None and model is not None:
        raise BadInput(
            f"window_tokens={window_tokens} is for decoders built from a size; {model} says in its "
            "config.json what it attends to. Leave it out."
        )
    if window_tokens is not None and window_tokens > longest:
        raise BadInput(
            f"window_tokens={window_tokens} is wider than any prompt, max_prompt_tokens={longest}: "
            "it would never be trained. Give half of that."
        )


def _with_encoder(config: FoundationConfig, folder: str | Path | None) -> FoundationConfig:
    """The configuration with a text encoder's record, and its vector in every slot."""
    if folder is None:
        if "encoder" in config.slot_parts:
            raise ValueError(
                f"slot_parts={config.slot_parts!r} asks for a text encoder; give text_encoder=, a "
                "folder."
            )
        return config
    parts = config.slot_parts
    return replace(
        config,
        text_encoder=TextEncoder.load(folder).record,
        slot_parts=parts if "encoder" in parts else (*parts, "encoder"),
    )


def with_catalogue(
    old: "Foundation", book: "PromptBook", train: NDArray[np.bool_], *, seed: int
) -> "Foundation":
    """See `Foundation.with_catalogue`."""
    from foundation.model import Foundation

    torch.manual_seed(seed)
    new = Foundation(
        old.decoder,
        prompter=old.prompter,
        config=old.settings,
        item_ids=book.interactions.item_ids,
        item_pieces=book.item_pieces,
    ).to(old.device)
    new.person_head.load_state_dict(old.person_head.state_dict())
    new.item_head.load_state_dict(old.item_head.state_dict())
    new.count_exposure(book.interactions.event_item[train])
    old_row = {item: row for row, item in enumerate(old.item_ids)}
    shared = [row for row, item in enumerate(new.item_ids) if item in old_row]
    new.items.take_over(
        old.items,
        new=torch.tensor(shared, dtype=torch.long),
        old=torch.tensor([old_row[new.item_ids[row]] for row in shared], dtype=torch.long),
    )
    new.encode_catalogue()
    return new


def with_tasks(old: "Foundation", tasks: Sequence[Task]) -> "Foundation":
    """See `Foundation.with_tasks`."""
    from foundation.model import Foundation

    prompter = old.prompter.with_tasks(tasks)
    # A text that says a label of theirs would answer for them.
    item_pieces, changed = prompter.retold(old.item_pieces)
    settings = old.settings
    if settings.rank_weight:
        rank_weight = (*settings.rank_weight, *[0.0] * len(tasks))
        settings = replace(settings, rank_weight=rank_weight)
    if settings.calibration:
        calibration = (*settings.calibration, *[Calibration()] * len(tasks))
        settings = replace(settings, calibration=calibration)
    new = Foundation(
        old.decoder,
        prompter=prompter,
        config=settings,
        item_ids=old.item_ids,
        item_pieces=item_pieces,
    ).to(old.device)
    # All but the decoder's, which are the old model's own: it may be serving.
    state = {
        name: kept for name, kept in old.state_dict().items() if not name.startswith("decoder.")
    }
    new.load_state_dict(state, strict=False)
    new.eval()
    if len(changed):
        new.encode_catalogue()
        new.refresh_readings()
    return new
