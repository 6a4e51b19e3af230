"""What goes into the decoder: embeddings of tokens, and slots of items, made of their texts.

Legend: R rows, T positions, D hidden, N items or pieces, J items that rows bring with them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from promptify.pieces import Pieces

if TYPE_CHECKING:
    from foundation.model import Foundation
    from foundation.slots import FreshReadings, StepSlots

# About as often as a person's prompt says it.
_LABELS_SAID = 12


def embed_ids(
    foundation: "Foundation",
    ids_RT: Tensor,
    slots: "StepSlots | None",
    inline_slots_JD: Tensor | None,
) -> Tensor:
    """Input vectors of tokens and slots [R, T, D]; see `Foundation.hidden` for the arguments."""
    vocab_size = foundation.prompter.vocab_size
    embed = foundation.decoder.get_input_embeddings()
    embeds_RTD: Tensor = embed(ids_RT.clamp(max=vocab_size - 1))
    is_slot_RT = ids_RT >= vocab_size
    if slots is not None and foundation.uses_slots:
        slots_RTD = slots.of((ids_RT - vocab_size).clamp(min=0))
        return torch.where(is_slot_RT[..., None], slots_RTD.to(embeds_RTD.dtype), embeds_RTD)
    if not bool(is_slot_RT.any()):
        return embeds_RTD
    items_N, where_N = torch.unique(ids_RT[is_slot_RT] - vocab_size, return_inverse=True)
    slots_ND = foundation.slots(items_N[items_N < foundation.num_items])
    if inline_slots_JD is not None:
        # `unique` sorts: the catalogue's slots come first.
        inline_J = items_N[items_N >= foundation.num_items] - foundation.num_items
        slots_ND = torch.cat([slots_ND, inline_slots_JD[inline_J]])
    slots_ND = slots_ND.to(embeds_RTD.dtype)
    return embeds_RTD.index_put((is_slot_RT,), slots_ND[where_N])


def embedding_scale(decoder: Any) -> float:
    """By how much a decoder scales its embeddings when it looks them up: √D of Gemma's, else 1."""
    embed = decoder.get_input_embeddings()
    ids = torch.arange(min(64, embed.num_embeddings), device=embed.weight.device)
    with torch.no_grad():
        stored, given = embed.weight[ids].norm(), embed(ids).norm()
    return float(given / stored) if stored > 0 else 1.0


def slots(foundation: "Foundation", items_N: Tensor, fresh: "FreshReadings | None") -> Tensor:
    """Slots of items of the catalogue, float [N, D].

    Args:
        foundation: whose catalogue; where it learns some items are told with words of our prompts.
        items_N: int64, rows of the catalogue.
        fresh: readings made in this step.
    """
    chosen = foundation.item_pieces
    if len(items_N) < foundation.num_items or bool((items_N.diff() != 1).any()):
        chosen = chosen.take(items_N.cpu().numpy())
    bag_ND = bags(foundation, chosen)
    # Who asks a model while it is trained, or before, is told the same each time.
    if foundation.training and torch.is_grad_enabled() and foundation.settings.instruction_noise:
        bag_ND = with_own_words(foundation, bag_ND, chosen)
    return foundation.items.slots(items_N, bag_ND, fresh)


def bags(foundation: "Foundation", pieces: Pieces) -> Tensor:
    """Mean token embedding of each piece, float [N, D]."""
    bag_ND: Tensor = F.embedding_bag(
        torch.from_numpy(pieces.ids.astype(np.int64)).to(foundation.device),
        foundation.decoder.get_input_embeddings().weight,
        torch.from_numpy(pieces.offsets[:-1].copy()).to(foundation.device),
        mode="mean",
    )
    return bag_ND


def with_own_words(foundation: "Foundation", bag_ND: Tensor, pieces: Pieces) -> Tensor:
    """The bags, some of them as if their text said what our prompts say of themselves too, [N, D].

    Words of an instruction, or a label again and again: they stand in every prompt.
    """
    prompter = foundation.prompter
    labels = Pieces.of([[label] * _LABELS_SAID for label in prompter.label_ids.tolist()])
    told = Pieces.joined([prompter.instruction_pieces, labels])
    own_N = torch.randint(len(told), (len(bag_ND),), device=bag_ND.device)
    length_N = torch.from_numpy(pieces.lengths.astype(np.float32)).to(bag_ND.device)
    most_N = torch.from_numpy(told.lengths.astype(np.float32)).to(bag_ND.device)[own_N]
    # Up to all of it twice over, against the length of the item's own text.
    words_N = 2 * most_N * torch.rand_like(most_N)
    words_N = words_N * (torch.rand_like(words_N) < foundation.settings.instruction_noise)
    share_N1 = (words_N / (length_N + words_N))[:, None]
    return torch.lerp(bag_ND, F.embedding(own_N, bags(foundation, told)), share_N1)
