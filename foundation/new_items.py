"""Room for items that nobody has met: a bias by exposure, chosen on validation.

    fitted = fit_new_item_bias(foundation, book, split.valid, max_warm_loss=0.05)

Items never trained on are known by their text alone. Their logits lie close together and below
the best of the warm ones, which crowd them out of the first ten. A bias for them, δ · k / (n + k)
at `n` training events, buys places for new items with places of known ones: more of the one is
always less of the other, and how much may be given up is said, not learned.

The bias is carried by item vectors, so that an index needs nothing new: where persons' vectors have
a direction in which they are all alike (heads with a bias always do), a step along it adds the same
to the logit of every person. Where vectors retrieve at several widths, the step is taken within the
narrowest, so that a vector cut to any of them carries the same bias.

Legend: n requests, m targets, I items, V vector width, W that and one more.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.evaluation import ndcg
from foundation.predictions import rank_catalogue, ranking_targets
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation
    from promptify.assembly import PromptBook
    from promptify.splits import Targets

# Ridge of the least squares behind the common direction, as a share of the mean square.
_RIDGE = 1e-3
_STEPS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class NewItemBias:
    """What was chosen, and what it did to the validation targets.

    Attributes:
        bias: δ, in nats; 0 where nothing was to be gained.
        cold_ndcg: NDCG@10 of the targets never trained on, before and after.
        warm_ndcg: of all others, before and after.
        spread: standard deviation, over people, of a step that should be 1 for each.
    """

    bias: float
    cold_ndcg: tuple[float, float]
    warm_ndcg: tuple[float, float]
    spread: float


def fit_new_item_bias(
    foundation: "Foundation",
    book: "PromptBook",
    targets: "Targets",
    *,
    task: int = 0,
    max_warm_loss: float = 0.05,
) -> NewItemBias:
    """Choose the bias that serves new items best while known ones lose little, and set it.

    Args:
        foundation: trained; its `new_item_shift` is set, and travels with it when saved.
        book: pieces of the interactions.
        targets: validation targets, some of them items that were never trained on: the newest of
            the catalogue, or some held out for it (`promptify.splits.cold_item`).
        task: index of the task.
        max_warm_loss: share of the warm targets' NDCG@10 that may be given up, in [0, 1).

    Raises:
        BadInput: no target, or every target, is an item never trained on.
        ValueError: `max_warm_loss` lies outside [0, 1).
    """
    if not 0 <= max_warm_loss < 1:
        raise ValueError(f"max_warm_loss={max_warm_loss} must lie in [0, 1).")
    wanted = ranking_targets(book, targets, task=task)
    is_cold_m = (foundation.items.exposure_I == 0).cpu().numpy()[wanted.item]
    if not is_cold_m.any() or is_cold_m.all():
        raise BadInput(
            f"{is_cold_m.sum()} of {len(is_cold_m)} validation targets are items never trained on; "
            "a bias needs both kinds. Hold some items out with promptify.splits.cold_item."
        )
    foundation.new_item_shift_V.zero_()
    persons_nV = foundation.embed_users(book.prefixes(targets, task=task)).astype(np.float64)
    narrowest = foundation.settings.widths[0]
    common_V = np.zeros(persons_nV.shape[1])
    common_V[:narrowest] = _common_direction(persons_nV[:, :narrowest])
    along_n: NDArray[Any] = persons_nV @ common_V
    items_IV = foundation.embed_items().astype(np.float64)
    weight_I = foundation.new_item_weight.cpu().numpy()
    # One more number to each vector, so that the inner product is the logit with its bias.
    weighed_IW = np.column_stack([items_IV, weight_I])

    def measured(bias: float) -> tuple[float, float]:
        stepped_nW = np.column_stack([persons_nV, bias * along_n])
        # Made again for each bias: logits of all people at once are larger than memory.
        rank_m = rank_catalogue(
            lambda start, stop: stepped_nW[start:stop] @ weighed_IW.T,
            wanted,
            book,
            seen=targets,
            task=task,
        )
        gain_m = ndcg(rank_m, 10)
        return float(gain_m[is_cold_m].mean()), float(gain_m[~is_cold_m].mean())

    before = measured(0.0)
    chosen, best = 0.0, before
    furthest = _furthest(persons_nV, items_IV, is_new_I=weight_I == 1)
    for bias in np.linspace(0, furthest, _STEPS + 1)[1:]:
        found = measured(float(bias))
        if found[0] > best[0] and found[1] >= (1 - max_warm_loss) * before[1]:
            chosen, best = float(bias), found
    shift = torch.from_numpy(chosen * common_V).to(foundation.new_item_shift_V)
    foundation.new_item_shift_V.copy_(shift)
    return NewItemBias(
        bias=chosen,
        cold_ndcg=(before[0], best[0]),
        warm_ndcg=(before[1], best[1]),
        spread=float(along_n.std()),
    )


def _common_direction(persons_nV: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector whose inner product with every person's is as near to 1 as can be, float [V]."""
    square_VV = persons_nV.T @ persons_nV / len(persons_nV)
    ridge = _RIDGE * np.trace(square_VV) / len(square_VV)
    direction: NDArray[np.float64] = np.linalg.solve(
        square_VV + ridge * np.eye(len(square_VV)), persons_nV.mean(0)
    )
    return direction


def _furthest(
    persons_nV: NDArray[np.float64], items_IV: NDArray[np.float64], is_new_I: NDArray[np.bool_]
) -> float:
    """Where an ordinary new item stands above an ordinary known one and two spreads of all logits.

    Means and covariances of both sides say it: the n × I logits are never made.
    """
    (person_V, persons_VV), (item_V, items_VV) = _moments(persons_nV), _moments(items_IV)
    # Var(p·i) over every pair of a person and an item, about the product of their means.
    variance = (persons_VV * items_VV).sum()
    variance += person_V @ items_VV @ person_V + item_V @ persons_VV @ item_V
    gap = person_V @ (items_IV[~is_new_I].mean(0) - items_IV[is_new_I].mean(0))
    return float(2 * np.sqrt(variance) + max(0.0, gap))


def _moments(
    vectors_NV: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [V] and covariance [V, V] of vectors."""
    mean_V: NDArray[np.float64] = vectors_NV.mean(0)
    centred_NV = vectors_NV - mean_V
    covariance_VV: NDArray[np.float64] = centred_NV.T @ centred_NV / len(centred_NV)
    return mean_V, covariance_VV
