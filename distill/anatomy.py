"""The parts of a decoder that can be taken out of it, and which axis of which weight they stand on.

A decoder is layers; in each, MLP neurons and groups of heads (a key-value head with the query
heads that share it); and the hidden width that all of them read and write. Widths are the same in
every layer, so that a stock configuration says all there is to say.

Legend: D hidden width, F MLP neurons, K key-value heads, Q query heads, E head width.
"""

import copy
import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from promptify.validation import BadInput

Dimension = Literal["layers", "neurons", "groups", "hidden"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
Axis = Literal["hidden", "neurons", "query", "key"] | None

# A weight's axes by its name within a layer; biases have the first.
_LAYER_AXES: dict[str, tuple[Axis, ...]] = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    # Norms over one head's width, which stays.
    "self_attn.q_norm": (None,),
    "self_attn.k_norm": (None,),
    "mlp.gate_proj": ("neurons", "hidden"),
    "mlp.up_proj": ("neurons", "hidden"),
    "mlp.down_proj": ("hidden", "neurons"),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
    "pre_feedforward_layernorm": ("hidden",),
    "post_feedforward_layernorm": ("hidden",),
}
_OUTER_AXES: dict[str, tuple[Axis, ...]] = {
    "model.embed_tokens": (None, "hidden"),
    "model.norm": ("hidden",),
    "lm_head": (None, "hidden"),
}
# Families that have these parts and nothing else that pruning or repair would have to know, such as
# factors of what a layer adds (Granite) or a list for each layer (SmolLM3).
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How large a decoder is, in what pruning can take away.

    Attributes:
        layers: how many.
        neurons: F, of each layer's MLP.
        groups: K, key-value heads of each layer, each with its query heads.
        hidden: D, hidden width.
    """

    layers: int
    neurons: int
    groups: int
    hidden: int

    def with_size(self, dimension: Dimension, size: int) -> "Shape":
        """The same shape, but for one dimension."""
        change: dict[str, Any] = {dimension: size}
        return replace(self, **change)

    def size(self, dimension: Dimension) -> int:
        """Of one dimension."""
        return int(getattr(self, dimension))

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """The shape that was said as ``layers x neurons x groups x hidden``.

        Raises:
            BadInput: it is not four whole numbers.

        Example:
            >>> Shape.parse("4x240x2x160").hidden
            160
        """
        parts = [part.strip() for part in text.split("x")]
        if len(parts) != len(DIMENSIONS) or not all(part.isdecimal() for part in parts):
            raise BadInput(
                f"shape {text!r} is not four whole numbers; give layers, neurons, groups and "
                "hidden width as in 4x240x2x160."
            )
        return cls(**dict(zip(DIMENSIONS, map(int, parts), strict=True)))

    @property
    def code(self) -> str:
        """What `parse` reads."""
        return "x".join(str(self.size(dimension)) for dimension in DIMENSIONS)

    def __str__(self) -> str:
        said = (f"{getattr(self, field.name)} {field.name}" for field in fields(self))
        return ", ".join(said)


def shape_of(decoder: Any) -> Shape:
    """The shape of a decoder.

    Args:
        decoder: a causal LM of transformers.
    """
    config = decoder.config
    return Shape(
        layers=config.num_hidden_layers,
        neurons=config.intermediate_size,
        groups=config.num_key_value_heads,
        hidden=config.hidden_size,
    )


def head_width(decoder: Any) -> int:
    """E, width of one head."""
    config = decoder.config
    stated = getattr(config, "head_dim", None)
    return int(stated or config.hidden_size // config.num_attention_heads)


def check_family(model_type: str) -> None:
    """Refuse a family that has parts which pruning does not know.

    Args:
        model_type: of a decoder's configuration.

    Raises:
        BadInput: it is none of `_FAMILIES`.
    """
    if model_type not in _FAMILIES:
        raise BadInput(
            f"a decoder of type {model_type!r} cannot be pruned: it may have parts that pruning "
            f"does not know. {', '.join(_FAMILIES)} can be."
        )


def check_known(decoder: Any) -> None:
    """Refuse a decoder that has parts which pruning does not know.

    Raises:
        BadInput: it is of another family than those of `_FAMILIES`, or has weights that these have
            not.
    """
    check_family(decoder.config.model_type)
    shape, per_head = shape_of(decoder), head_width(decoder)
    for name, tensor in decoder.state_dict().items():
        axes = _axes(name)
        wanted = [
            _length(axis, shape, decoder) or there
            for axis, there in zip(axes or (), tensor.shape, strict=False)
        ]
        strange_norm = name.endswith(("q_norm.weight", "k_norm.weight")) and (
            tensor.shape != (per_head,)
        )
        if axes is None or strange_norm or wanted != list(tensor.shape):
            raise BadInput(
                f"a decoder of type {decoder.config.model_type!r} cannot be pruned: its weight "
                f"{name} {list(tensor.shape)} is none that pruning knows."
            )


def axes_of(name: str) -> tuple[Axis, ...]:
    """What the axes of a decoder's weight stand for; None for an axis that stays.

    Args:
        name: in the decoder's state dict; one that `check_known` lets through.
    """
    axes = _axes(name)
    assert axes is not None
    return axes


def layer_of(name: str) -> tuple[int, str] | None:
    """A weight's layer and its name within it; None for a weight outside of layers."""
    found = _IN_LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def _axes(name: str) -> tuple[Axis, ...] | None:
    place = layer_of(name)
    module, _, kind = (place[1] if place else name).rpartition(".")
    axes = (_LAYER_AXES if place else _OUTER_AXES).get(module)
    if axes is None or kind not in ("weight", "bias"):
        return None
    return axes[:1] if kind == "bias" else axes


def _length(axis: Axis, shape: Shape, decoder: Any) -> int | None:
    """Length of an axis in a decoder of some shape; None for one that stays."""
    config, per_head = decoder.config, head_width(decoder)
    queries = config.num_attention_heads // config.num_key_value_heads
    lengths: dict[Axis, int | None] = {
        "hidden": shape.hidden,
        "neurons": shape.neurons,
        "query": shape.groups * queries * per_head,
        "key": shape.groups * per_head,
        None: None,
    }
    return lengths[axis]


def body_parameters(decoder: Any, shape: Shape) -> int:
    """Parameters of the body a decoder would have in another shape; embeddings and head apart.

    Args:
        decoder: whose family and head width it has.
        shape: what is counted.
    """
    total = 0
    for name, weight in decoder.named_parameters():
        place = layer_of(name)
        # Layers are alike: the first speaks for all of them.
        if "embed_tokens" in name or "lm_head" in name or (place and place[0] > 0):
            continue
        lengths = [
            _length(axis, shape, decoder) or there
            for axis, there in zip(axes_of(name), weight.shape, strict=True)
        ]
        total += math.prod(lengths) * (shape.layers if place else 1)
    return total


def stock_config(decoder: Any, shape: Shape, *, kept_layers: list[int] | None = None) -> Any:
    """The stock configuration of a decoder in another shape.

    Args:
        decoder: whose family, positions and head width it keeps.
        shape: at most as large in every dimension.
        kept_layers: which layers stay, rising; the first ones when left out.

    Raises:
        ValueError: the family's own configuration refuses the shape.
    """
    config = copy.deepcopy(decoder.config)
    queries = config.num_attention_heads // config.num_key_value_heads
    # What was hidden width by heads until now must be said, or it would be computed anew.
    config.head_dim = head_width(decoder)
    config.num_hidden_layers = shape.layers
    config.intermediate_size = shape.neurons
    config.num_key_value_heads = shape.groups
    config.num_attention_heads = shape.groups * queries
    config.hidden_size = shape.hidden
    if getattr(config, "layer_types", None):
        kept = kept_layers if kept_layers is not None else list(range(shape.layers))
        config.layer_types = [config.layer_types[layer] for layer in kept]
    check = getattr(config, "validate_architecture", None)
    if check is not None:
        check()
    return config


def check_shape(decoder: Any, shape: Shape) -> None:
    """Refuse a shape that a decoder cannot be pruned to.

    Args:
        decoder: that is pruned.
        shape: of what is left.

    Raises:
        BadInput: a size is not between 1 and what there is, or the family's stock configuration
            refuses the shape.
    """
    there = shape_of(decoder)
    for dimension in DIMENSIONS:
        if not 1 <= shape.size(dimension) <= there.size(dimension):
            raise BadInput(
                f"shape.{dimension}={shape.size(dimension)} must be between 1 and "
                f"{there.size(dimension)}."
            )
    try:
        stock_config(decoder, shape)
    except ValueError as error:
        raise BadInput(f"shape ({shape}) is none that stock loaders take: {error}") from error


def is_stock(decoder: Any, shape: Shape) -> bool:
    """Whether the family's own configuration takes a shape."""
    try:
        stock_config(decoder, shape)
    except ValueError:
        return False
    return True


def notch(decoder: Any, shape: Shape, dimension: Dimension) -> Shape | None:
    """The next smaller shape in one dimension, rounded for the hardware and stock; None at the end.

    Layers and groups go one by one, the hidden width by eights, and neurons by eights too, by 64
    where there are 2,048 and by 128 where there are 8,192.

    Args:
        decoder: whose family must take it.
        shape: to start from.
        dimension: what shrinks.
    """
    size = shape.size(dimension)
    step = 1
    if dimension in ("neurons", "hidden"):
        step = 8
    if dimension == "neurons" and size > 2048:
        step = 128 if size > 8192 else 64
    size = (size - 1) // step * step
    while size > 0:
        smaller = shape.with_size(dimension, size)
        if is_stock(decoder, smaller):
            return smaller
        size -= step
    return None
