"""Decoder shapes built here, for those who bring no checkpoint: Qwen3-type, tied embeddings.

from foundation.sizes import decoder_config
config = decoder_config("small", vocab_size=4096)
"""

from typing import Any

import torch
from einops import repeat
from torch import nn
from transformers import Qwen3Config

# (layers, hidden width, MLP width, attention heads, key-value heads). Head width is hidden / heads.
# `tiny` is for tests; `mini` and `small` train in minutes on two CPU cores; `medium` has 8 M
# parameters in its body, `large` about 100 M.
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (2, 32, 96, 2, 1),
    "mini": (3, 64, 192, 2, 2),
    "small": (3, 128, 384, 4, 4),
    "medium": (8, 288, 864, 6, 6),
    "base": (8, 384, 1152, 6, 6),
    "large": (12, 768, 2304, 12, 4),
}


def decoder_config(
    size: str, *, vocab_size: int, max_positions: int = 4096, window_tokens: int | None = None
) -> Qwen3Config:
    """The stock configuration of a decoder built from a size name.

    Args:
        size: a key of `SHAPES`.
        vocab_size: rows of the token embedding.
        max_positions: longest sequence the rotary positions are declared for, in tokens.
        window_tokens: positions that a position attends to, itself included; None for all.

    Returns:
        A `Qwen3Config` that stock transformers loads.

    Raises:
        ValueError: the size is unknown.

    Example:
        >>> decoder_config("small", vocab_size=4096).hidden_size
        128
    """
    if size not in SHAPES:
        raise ValueError(f"size={size!r} is unknown; choose one of {', '.join(SHAPES)}.")
    layers, hidden, mlp, heads, kv_heads = SHAPES[size]
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=max_positions,
        use_sliding_window=window_tokens is not None,
        sliding_window=window_tokens,
        max_window_layers=0,  # Those below it attend to everything.
        tie_word_embeddings=True,
        # The family's 0.02 suits widths of thousands. At 64 wide it makes every layer start as
        # almost nothing, and hundreds of steps go by before text is read: unit gain at any width
        # instead.
        initializer_range=hidden**-0.5,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


@torch.no_grad()
def start_as_averages(decoder: Any) -> None:
    """Let every attention layer begin by passing on the average of what it sees, unrotated.

    Value and output projections start as transposes of each other with orthonormal rows, so that a
    position begins with the words before it in the space of their embeddings. Persons and items
    that share words are then near each other from the first step: on the job market, retrieval
    starts to learn at once instead of not within a thousand steps. MLPs start small, not to
    scramble it.

    Args:
        decoder: a causal LM with random weights; changed in place.

    Source: ours; identity value-output maps as in "Simplifying Transformer Blocks" (arXiv
    2311.01906).
    """
    config = decoder.config
    groups = config.num_attention_heads // config.num_key_value_heads
    for layer in decoder.model.layers:
        value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        nn.init.orthogonal_(value)
        # Every query head of a group hands out what the group's one value head took in.
        heads = config.num_key_value_heads
        spread = repeat(value, "(kv head) hidden -> hidden (kv g head)", kv=heads, g=groups)
        output.copy_(spread / groups)
        layer.mlp.down_proj.weight.mul_((2 * config.num_hidden_layers) ** -0.5)
