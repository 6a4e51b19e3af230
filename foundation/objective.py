"""What the foundation learns: the next item, the action on it, and the text itself.

Legend: K next-item pairs, C items of the softmax, S sampled negatives, H hard negatives, M action
targets, N text positions, X graded positions, Y items of slates, D hidden, V vector width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from foundation.asking import attention_mask, by_slate
from foundation.computing import TAKES_PACKED_ROWS
from foundation.hard_negatives import left_out
from foundation.losses import (
    action_loss,
    chunked_cross_entropy,
    grade_loss,
    rare_action_loss,
    sampled_cross_entropy,
)
from foundation.packed_attention import row_bounds
from foundation.slots import FreshReadings, StepSlots

if TYPE_CHECKING:
    from foundation.model import Foundation

# What a training batch brings to `read_step` and to `loss_sums`, by argument name.
READ_INPUTS = (
    "ids_RT",
    "position_RT",
    "arrow_M",
    "next_position_K",
    "next_item_K",
    "text_position_N",
    "reread_items",
    "negatives",
    "hard_negatives",
    "question_RT",
    "place_RT",
    "graded_X",
    "shown_Y",
)
LOSS_INPUTS = (
    "label_M",
    "task_M",
    "next_position_K",
    "next_item_K",
    "negatives",
    "negative_log_expected",
    "hard_negatives",
    "question_RT",
    "graded_task_X",
    "share_XG",
    "shown_task_Y",
    "shown_slate_Y",
    "shown_is_positive_Y",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReading:
    """What one pass over a batch yields, for losses of any kind (a distillation reads it too).

    Attributes:
        person_KV: person vectors where an item must be predicted.
        item_CV: vectors of the items that the retrieval softmax runs over: the whole catalogue in
            order, or the targets and the negatives of either kind, each once, by rising row.
        item_C: int64, which items those are.
        arrow_MD: hidden states where an action must be predicted.
        text_ND: hidden states where a token must be predicted …
        text_target_N: … and those tokens, int64.
        graded_XD: hidden states where a grade must be predicted.
        shown_YD: hidden states where the items of slates are compared.
    """

    person_KV: Tensor
    item_CV: Tensor
    item_C: Tensor
    arrow_MD: Tensor
    text_ND: Tensor
    text_target_N: Tensor
    graded_XD: Tensor
    shown_YD: Tensor

    def places_of(self, items: Tensor) -> Tensor:
        """Rows of `item_CV` of items that are all among `item_C`, int64."""
        return torch.searchsorted(self.item_C, items)


def read_step(
    foundation: "Foundation",
    *,
    ids_RT: Tensor,
    position_RT: Tensor,
    arrow_M: Tensor,
    next_position_K: Tensor,
    next_item_K: Tensor,
    text_position_N: Tensor,
    reread_items: Tensor,
    negatives: Tensor,
    hard_negatives: Tensor,
    question_RT: Tensor,
    place_RT: Tensor,
    graded_X: Tensor,
    shown_Y: Tensor,
) -> StepReading:
    """Read some items again with gradient, then the rows, then the items as answers.

    Args:
        foundation: the model.
        ids_RT: int64 [R, T], rows padded or packed; the next five are as in
            `foundation.batches.Batch`.
        position_RT: int64 [R, T]; where it starts anew, attention does.
        arrow_M: int64 [M].
        next_position_K: int64 [K].
        next_item_K: int64 [K].
        text_position_N: int64 [N].
        reread_items: int64, rows of the catalogue to read with gradient; the table serves the
            others.
        negatives: int64 [S], sampled items; empty for the softmax over the whole catalogue.
        hard_negatives: int64 [H], items read beside a sample; of no account without one.
        question_RT: int64 [R, T], as are the next three, of `foundation.asking.ask`; [0, 0] where
            nothing is asked.
        place_RT: int64 [R, T].
        graded_X: int64 [X].
        shown_Y: int64 [Y].
    """
    fresh, item_hidden, item_targets = _reread(foundation, reread_items)
    ids_P = rearrange(ids_RT, "r t -> (r t)")
    if len(negatives):
        vocab_size = foundation.prompter.vocab_size
        in_rows = ids_P[ids_P >= vocab_size] - vocab_size
        classes_C = torch.unique(torch.cat([next_item_K, negatives, hard_negatives]))
        items_N = torch.unique(torch.cat([in_rows, classes_C]))
    else:
        classes_C = items_N = torch.arange(foundation.num_items, device=ids_RT.device)
    slots = StepSlots(items_N=items_N, slots_ND=foundation.slots(items_N, fresh))
    # With a cache, transformers would take packed rows for one long row.
    seen: dict[str, Any] = {"position_ids": position_RT, "use_cache": False}
    if question_RT.numel():
        seen["attention_mask"] = attention_mask(
            foundation.decoder.config, question_RT, place_RT, position_RT, foundation.decoder.dtype
        )
    elif len(ids_RT) == 1 and foundation.decoder.config._attn_implementation in TAKES_PACKED_ROWS:
        seen |= row_bounds(position_RT)
    hidden_RTD = foundation.hidden(ids_RT, slots=slots, **seen)
    hidden_PD = rearrange(hidden_RTD, "r t d -> (r t) d")
    return StepReading(
        person_KV=foundation.person_head(hidden_PD[next_position_K]),
        item_CV=foundation.item_vectors(slots.of(classes_C)),
        item_C=classes_C,
        arrow_MD=hidden_PD[arrow_M],
        text_ND=torch.cat([hidden_PD[text_position_N], item_hidden]),
        text_target_N=torch.cat([ids_P[text_position_N + 1], item_targets]),
        graded_XD=hidden_PD[graded_X],
        shown_YD=hidden_PD[shown_Y],
    )


def _reread(
    foundation: "Foundation", items_N: Tensor
) -> tuple[FreshReadings | None, Tensor, Tensor]:
    """Readings with gradient, and the LM loss's share of them: hidden states and next tokens."""
    hidden = foundation.decoder.config.hidden_size
    nothing = foundation.person_head.weight.new_zeros(0, hidden), items_N.new_zeros(0)
    if len(items_N) == 0:
        return None, *nothing
    readings, text_hidden, text_targets, order = [], [], [], []
    chosen_N = items_N.cpu().numpy()
    by_length = np.argsort(foundation.item_pieces.lengths[chosen_N], kind="stable")
    # A processor waits for every padded position, so a long title pads only its own quarter; a GPU
    # waits for every call, however few positions it has.
    num_parts = 4 if items_N.device.type == "cpu" else 1
    for part in np.array_split(by_length, min(num_parts, len(chosen_N))):
        ids_BS, hidden_BSD, last_B = foundation.read_pieces(foundation.item_pieces, chosen_N[part])
        readings.append(hidden_BSD[torch.arange(len(part), device=ids_BS.device), last_B])
        inside_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device) < last_B[:, None]
        text_hidden.append(hidden_BSD[inside_BS])
        text_targets.append(ids_BS.roll(-1, dims=1)[inside_BS])
        order.append(part)
    items_R = items_N[torch.from_numpy(np.concatenate(order)).to(items_N.device)]
    fresh = FreshReadings(items_R, torch.cat(readings), foundation.num_items)
    return fresh, torch.cat(text_hidden), torch.cat(text_targets)


def loss_sums(
    foundation: "Foundation",
    reading: StepReading,
    *,
    label_M: Tensor,
    task_M: Tensor,
    next_position_K: Tensor,
    next_item_K: Tensor,
    negatives: Tensor,
    negative_log_expected: Tensor,
    hard_negatives: Tensor,
    question_RT: Tensor,
    graded_task_X: Tensor,
    share_XG: Tensor,
    shown_task_Y: Tensor,
    shown_slate_Y: Tensor,
    shown_is_positive_Y: Tensor,
) -> dict[str, Tensor]:
    """The losses of a batch that has been read, each summed over its own predictions.

    `next_item`, `action` and `text`; and where questions are asked beside the rows `policy`, the
    grades, and `rare`, which of the co-shown items was acted on well. Each is a float32 scalar in
    nats.

    Args:
        foundation: the model that read it.
        reading: what `read_step` returned.
        label_M: int64 [M], actions taken.
        task_M: int64 [M], their tasks.
        next_position_K: int64 [K], where items are to be predicted.
        next_item_K: int64 [K], items to be predicted.
        negatives: int64 [S], sampled items; empty for the softmax over the whole catalogue.
        negative_log_expected: float32 [S], log of how often each was expected in the sample.
        hard_negatives: int64 [H], rising, mined items that stand beside the sample.
        question_RT: int64 [R, T], as are the next five, of `foundation.asking.ask`; [0, 0] where
            nothing is asked.
        graded_task_X: int64 [X].
        share_XG: float32 [X, G].
        shown_task_Y: int64 [Y].
        shown_slate_Y: int64 [Y].
        shown_is_positive_Y: bool [Y].
    """
    vocabulary_VD = foundation.decoder.get_output_embeddings().weight
    sums = {
        "next_item": _next_item_loss(
            foundation,
            reading,
            next_position_K,
            next_item_K,
            negatives,
            negative_log_expected,
            hard_negatives,
        ),
        "action": action_loss(
            reading.arrow_MD, foundation.label_rows_LD, foundation.allowed_AL[task_M], label_M
        ),
        "text": chunked_cross_entropy(reading.text_ND, vocabulary_VD, reading.text_target_N),
    }
    if question_RT.numel():
        grades_XG = foundation.grade_log_probs(reading.graded_XD, graded_task_X)
        clicks_Y = foundation.log_positive(reading.shown_YD, shown_task_Y)
        is_positive_SC = by_slate(shown_is_positive_Y, shown_slate_Y) == 1
        sums["policy"] = grade_loss(grades_XG, share_XG)
        sums["rare"] = rare_action_loss(by_slate(clicks_Y, shown_slate_Y), is_positive_SC)
    return sums


def _next_item_loss(
    foundation: "Foundation",
    reading: StepReading,
    next_position_K: Tensor,
    next_item_K: Tensor,
    negatives_S: Tensor,
    log_expected_S: Tensor,
    hard_H: Tensor,
) -> Tensor:
    """The retrieval softmax over items that were there to be chosen.

    An item never trained on is no negative: nobody passed it over, and the model would learn from
    its text that such items are never next.
    """
    untrained_I = foundation.items.exposure_I == 0
    if len(negatives_S) == 0:
        bias_I = torch.zeros_like(foundation.items.exposure_I)
        bias_I.masked_fill_(untrained_I, float("-inf")).index_fill_(0, next_item_K, 0.0)
        return chunked_cross_entropy(
            reading.person_KV,
            reading.item_CV,
            next_item_K,
            class_bias_C=bias_I,
            widths=foundation.settings.widths,
        )
    others = torch.cat([negatives_S, hard_H])
    collides = torch.cat(left_out(next_position_K, next_item_K, negatives_S, hard_H), dim=1)
    return sampled_cross_entropy(
        reading.person_KV,
        reading.item_CV[reading.places_of(next_item_K)],
        reading.item_CV[reading.places_of(others)],
        collides_KS=collides | untrained_I[others],
        # A hard negative is there once for certain.
        log_expected_S=torch.cat([log_expected_S, log_expected_S.new_zeros(len(hard_H))]),
        widths=foundation.settings.widths,
    )
