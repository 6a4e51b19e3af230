"""Mined negatives in the sampled retrieval softmax: the competitors that a sample would miss.

Somebody's hard negatives are the items that the model takes for theirs and that were not: the
largest terms of the softmax's normaliser, and the ones that a random sample holds least often. Of
those mined for the events of an optimiser step some are drawn, and every prediction of the step
competes with them beside the seeded sample. They are known before anything is sampled and each is
there once for certain: its expected count is 1, its logit stands as it is, and what the sample drew
of the same items is left out. So the normaliser stays an unbiased estimate of the full one, with
its largest terms no longer left to chance.

They are mined per event, not per item: what a model takes for right depends on who is asked.

Legend: E events, n mined items of each, H hard negatives of a step, S sampled ones, K predictions,
P positions where a person is read.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def check_hard_negatives(
    mined_En: NDArray[Any], *, num_events: int, num_items: int, full_softmax_items: int
) -> None:
    """Refuse what training cannot use.

    Args:
        mined_En: as given to `Foundation.fit`.
        num_events: of the log.
        num_items: of the catalogue.
        full_softmax_items: of `FitConfig`.

    Raises:
        ValueError: the softmax runs over the whole catalogue, in which every item competes already;
            or the array does not fit the log or the catalogue.
    """
    if num_items <= full_softmax_items:
        raise ValueError(
            f"hard_negatives have no place beside the softmax over all {num_items} items, which "
            "holds them already; leave them out, or set FitConfig.full_softmax_items="
            f"{full_softmax_items} below {num_items} to sample."
        )
    if mined_En.ndim != 2 or len(mined_En) != num_events or mined_En.dtype.kind != "i":
        raise ValueError(
            f"hard_negatives is {mined_En.dtype} {list(mined_En.shape)}; give int32 "
            f"[{num_events}, n], a row for each event of the log, filled up with -1."
        )
    if mined_En.size and (mined_En.min() < -1 or mined_En.max() >= num_items):
        raise ValueError(
            f"hard_negatives holds {mined_En.min()} to {mined_En.max()}; give rows of the "
            f"catalogue, 0 to {num_items - 1}, and -1 where there is none."
        )


def draw_hard_negatives(
    mined_Nn: NDArray[Any], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Different items of those mined, rising, int64 [H]; mined twice is drawn twice as readily.

    Args:
        mined_Nn: int [N, n], mined for the events of one optimiser step; -1 where there is none.
        most: H at most.
        rng: decides.
    """
    mined = rng.permutation(mined_Nn[mined_Nn >= 0])
    items, first = np.unique(mined, return_index=True)
    return np.sort(items[np.argsort(first)[:most]]).astype(np.int64)


def left_out(
    next_position_K: Tensor, next_item_K: Tensor, negatives_S: Tensor, hard_H: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a sampled and where a hard negative does not compete, bool [K, S] and [K, H].

    An item to be predicted at the same position, such as one acted on well in the same slate, is no
    hard negative there: it competes through the sample alone, as it would without mining. Any other
    hard negative competes as such, and what the sample drew of it is left out.

    Args:
        next_position_K: int64, where each prediction is read.
        next_item_K: int64, the item it must predict.
        negatives_S: int64, sampled items.
        hard_H: int64, hard negatives, rising, no repeats.
    """
    sampled_KS = next_item_K[:, None] == negatives_S
    if len(hard_H) == 0:
        return sampled_KS, sampled_KS[:, :0]
    _, position_K = torch.unique(next_position_K, return_inverse=True)
    at_K, is_hard_K = _found(next_item_K, hard_H)
    is_answer_PH = hard_H.new_zeros(len(next_item_K), len(hard_H), dtype=torch.bool)
    is_answer_PH[position_K[is_hard_K], at_K[is_hard_K]] = True
    is_answer_KH = is_answer_PH[position_K]
    at_S, is_hard_S = _found(negatives_S, hard_H)
    return sampled_KS | (is_hard_S & ~is_answer_KH[:, at_S]), is_answer_KH


def _found(items_N: Tensor, rising_H: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each item in a rising list, and whether it is there."""
    at_N = torch.searchsorted(rising_H, items_N).clamp(max=len(rising_H) - 1)
    return at_N, rising_H[at_N] == items_N
