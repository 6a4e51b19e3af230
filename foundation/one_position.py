"""Attention that knows what a single position sees: itself.

Every step passes the whole catalogue through the decoder, a position each, to have its vectors.
The softmax over one key is one and the result its value, whatever query and key are: no kernel is
called, and no gradient goes back through them. Longer sequences go to PyTorch's SDPA.

It is registered by name with transformers' attention interface, so that any decoder takes it.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_one_position"


def attend_with(decoder: Any) -> None:
    """Let a decoder that attends with SDPA use this attention; any other stays as it is.

    Args:
        decoder: a causal LM of transformers; its weights and outputs stay the same.
    """
    supported = getattr(decoder, "_supports_attention_backend", False)
    if supported and decoder.config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(NAME)


def attention(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention [B, T, H, E] as transformers' interface wants it, and None for its weights."""
    has_sinks = options.get("s_aux") is not None
    if key_BKSE.shape[2] != 1 or attention_mask is not None or options.get("dropout") or has_sinks:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHTE, key_BKSE, value_BKSE, attention_mask, **options
        )
        return result
    groups = query_BHTE.shape[1] // value_BKSE.shape[1]
    value_BHTE = value_BKSE.repeat_interleave(groups, 1) if groups > 1 else value_BKSE
    return value_BHTE.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
