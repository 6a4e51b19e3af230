"""Make a foundation smaller in a shape that stock loaders know: keep the parts that count most.

    importance = measure_importance(foundation, rows)
    small = prune(foundation, importance, Shape(layers=6, neurons=768, groups=4, hidden=320))

Layers, MLP neurons, groups of heads and hidden width can go, any of them or all at once. The item
table, the heads and the projections of slots follow the hidden width; the width of person and item
vectors never changes.

Legend: D hidden width, F MLP neurons, K key-value heads, E head width, V vector width, W
text encoder's width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.anatomy import (
    Axis,
    Shape,
    axes_of,
    check_known,
    check_shape,
    layer_of,
    stock_config,
)
from distill.importance import Importance, norms_of
from distill.kept import Kept, layer_rows
from distill.repair import repair
from foundation import Foundation
from foundation.loading import ALONE
from promptify.rows import Rows
from promptify.validation import BadInput

# The foundation's own weights, by the axes that follow the hidden width.
_HEAD_AXES: dict[str, tuple[Axis, ...]] = {
    "person_head.weight": (None, "hidden"),
    "item_head.weight": (None, "hidden"),
    "items.project_reading.weight": ("hidden", "hidden"),
    "items.project_bag.weight": ("hidden", "hidden"),
    "items.project_encoding.weight": ("hidden", None),
    "items.residual_ID": (None, "hidden"),
    "items.reading_ID": (None, "hidden"),
}


@torch.no_grad()
def prune(
    foundation: Foundation, importance: Importance, shape: Shape, *, rows: Rows | None = None
) -> Foundation:
    """A smaller foundation that starts from the parts of this one that count most.

    Args:
        foundation: left as it is.
        importance: from `measure_importance` of the same foundation.
        shape: of the new decoder. Multiples of 8 suit the hardware; `anatomy.notch` rounds so.
        rows: calibration prompts that what stays is repaired on, see `distill.repair`; None leaves
            it as it was cut.

    Returns:
        A new foundation with its own heads and item table; its decoder has a stock configuration.

    Raises:
        BadInput: a size is not between 1 and what there is, or the family's stock configuration
            refuses the shape, or the weights are rounded.
    """
    check_shape(foundation.decoder, shape)
    kept = Kept.most_important(importance, shape)
    small = keep(foundation, kept, importance.energy)
    if rows is not None:
        repair(small, foundation, kept, rows)
    return small


@torch.no_grad()
def keep(foundation: Foundation, kept: Kept, energy: Mapping[str, Tensor]) -> Foundation:
    """A foundation of the kept parts alone; see `prune`.

    Args:
        foundation: left as it is.
        kept: its parts that stay.
        energy: mean squares at the norms, from `Importance`; they say how norms over fewer
            coordinates must be scaled to say the same of those.

    Raises:
        BadInput: the family's stock configuration refuses the shape, or the weights are rounded:
            what is scaled and repaired would lie on their grid no longer.
    """
    weights = foundation.settings.weights
    if weights != "float32":
        raise BadInput(f"a model in {weights} cannot be pruned; prune the one it was made of.")
    check_known(foundation.decoder)
    shape = Shape(
        layers=len(kept.layers),
        neurons=len(kept.neurons[0]),
        groups=len(kept.groups[0]),
        hidden=len(kept.hidden),
    )
    try:
        config = stock_config(foundation.decoder, shape, kept_layers=list(kept.layers))
    except ValueError as error:
        raise BadInput(f"shape ({shape}) is none that stock loaders take: {error}") from error
    with ALONE:
        decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Embeddings may be scaled by a function of the width, which is another now.
    scale = _embedding_scale(foundation.decoder) / _embedding_scale(decoder)
    state = _decoder_state(foundation, kept)
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] * scale
    final = 1.0
    if config.tie_word_embeddings:
        # The head has been scaled along with them, which the last norm gives back.
        state["lm_head.weight"], final = state["model.embed_tokens.weight"], 1 / scale
    _scale_norms(state, foundation.decoder, kept, energy, final=final)
    decoder.load_state_dict(state)
    decoder.tie_weights()
    small = Foundation(
        decoder,
        prompter=foundation.prompter,
        config=foundation.settings,
        item_ids=foundation.item_ids,
        item_pieces=foundation.item_pieces,
    )
    heads = {
        name: _cut(tensor, _HEAD_AXES.get(name, (None,) * tensor.ndim), kept.hidden)
        for name, tensor in foundation.state_dict().items()
        if not name.startswith("decoder.")
    }
    for name, scale_of in _head_scales(foundation, kept, final=final).items():
        heads[name] = heads[name] * scale_of
    small.load_state_dict(heads, strict=False)
    small = small.to(foundation.device).eval()
    small.refresh_readings()  # The table holds what the larger model read.
    return small


def _decoder_state(foundation: Foundation, kept: Kept) -> dict[str, Tensor]:
    decoder = foundation.decoder
    place_of = {layer: place for place, layer in enumerate(kept.layers)}
    state = {}
    for name, tensor in decoder.state_dict().items():
        within = layer_of(name)
        if within is None:
            state[name] = _cut(tensor, axes_of(name), kept.hidden)
        elif within[0] in place_of:
            place = place_of[within[0]]
            rows = layer_rows(decoder, kept, place)
            state[f"model.layers.{place}.{within[1]}"] = _cut(
                tensor, axes_of(name), kept.hidden, rows
            )
    return state


def _cut(
    tensor: Tensor,
    axes: tuple[Axis, ...],
    hidden: Tensor,
    rows: Mapping[Axis, Tensor] | None = None,
) -> Tensor:
    """A copy of a weight with what stays along each of its axes."""
    cut = tensor.detach().cpu()
    for number, axis in enumerate(axes):
        if axis is not None:
            cut = cut.index_select(number, hidden if axis == "hidden" else (rows or {})[axis])
    return cut.clone()


def _scale_norms(
    state: dict[str, Tensor],
    decoder: Any,
    kept: Kept,
    energy: Mapping[str, Tensor],
    *,
    final: float,
) -> None:
    """Let norms over fewer coordinates say of these what the norms over all of them said.

    Without this, what stays would be blown up wherever what goes was strong, or the reverse.
    """
    place_of = {layer: place for place, layer in enumerate(kept.layers)}
    for name, norm in norms_of(decoder).items():
        within, mine = layer_of(name), name
        if within is not None:
            if within[0] not in place_of:
                continue
            mine = f"model.layers.{place_of[within[0]]}.{within[1]}"
        scale = _norm_scale(energy[name], kept.hidden)
        if name == "model.norm":
            scale *= final
        weight = state[f"{mine}.weight"]
        # Gemma's norms scale by one plus the weight.
        shift = 1.0 if _adds_one(norm) else 0.0
        state[f"{mine}.weight"] = (weight + shift) * scale - shift


def _head_scales(foundation: Foundation, kept: Kept, *, final: float) -> dict[str, float]:
    """What heads must be multiplied by to read the norms in front of them as before."""

    def of_norm(values_ID: Tensor) -> float:
        energy_D = values_ID.float().square().mean(dim=0).cpu()
        return _norm_scale(energy_D, kept.hidden)

    every = torch.arange(foundation.num_items, device=foundation.device)
    scales = {
        "person_head.weight": 1 / final,
        "items.project_reading.weight": 1 / final,
        "items.project_bag.weight": of_norm(foundation.bags(foundation.item_pieces)),
        "item_head.weight": 1 / final,
    }
    if not foundation.uses_slots:
        # It reads the sum of an item's parts and not what the decoder makes of them.
        scales["item_head.weight"] = of_norm(foundation.slots(every))
    return scales


def _norm_scale(energy_D: Tensor, kept: Tensor) -> float:
    """How a norm over some coordinates must be scaled to say of these what one over all said."""
    return float((energy_D[kept].mean() / energy_D.mean().clamp(min=1e-30)).sqrt())


def _adds_one(norm: Any) -> bool:
    width = norm.weight.shape[0]
    probe = torch.zeros(width, device=norm.weight.device, dtype=norm.weight.dtype)
    probe[0] = 1.0
    # The norm of one hot coordinate is √D times its scale.
    said = float(type(norm).forward(norm, probe[None])[0, 0]) / width**0.5
    weight = float(norm.weight[0])
    return bool(abs(said - (1 + weight)) < abs(said - weight))


def _embedding_scale(decoder: Any) -> float:
    """What a decoder multiplies its token embeddings by; 1 in most families."""
    return float(getattr(decoder.get_input_embeddings(), "embed_scale", 1.0))
