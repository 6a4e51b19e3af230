"""Attention that knows what a single position sees: itself.

Every step passes the whole catalogue through the decoder, a position each, to have its vectors.
The softmax over one key is one and the result its value, whatever query and key are: no kernel is
called, and no gradient goes back through them. Longer sequences go to PyTorch's SDPA, in float32 on
a GPU with heads of their own: no fused kernel shares heads there, and SDPA would hold the logits of
all pairs of positions (46 GiB for five prompts of 12,438 tokens and 16 heads).

It is registered by name with transformers' attention interface, so that any decoder takes it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_one_position"


def attend_with(decoder: Any) -> None:
    """Let a decoder that attends with SDPA use this attention; any other stays as it is.

    One that bounds its logits (Gemma 2) attends as it is written out: SDPA knows no bound, and
    transformers 5.17 takes it all the same.

    Args:
        decoder: a causal LM of transformers; its weights stay the same, and its outputs too but for
            a bound that SDPA had dropped.
    """
    supported = getattr(decoder, "_supports_attention_backend", False)
    if supported and decoder.config._attn_implementation == "sdpa":
        is_bounded = getattr(decoder.config, "attn_logit_softcapping", None) is not None
        decoder.set_attn_implementation("eager" if is_bounded else NAME)


def quick_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Let SDPA take kernels that know every shape beforehand; nothing changes on a CPU.

    cuDNN, which PyTorch asks first on newer GPUs, makes a plan for each new shape: 2.4 ms a call on
    an H200 where the kernel itself took .03, and rows and items have ever new lengths.

    Args:
        device: where attention is computed.
    """
    if device.type != "cuda":
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(kernels)
    return context


def attention(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention [B, T, H, E] as transformers' interface wants it, and None for its weights."""
    is_plain = attention_mask is None and not options.get("dropout")
    is_plain &= all(options.get(name) is None for name in ("s_aux", "position_bias"))
    groups = query_BHTE.shape[1] // value_BKSE.shape[1]
    if is_plain and key_BKSE.shape[2] == 1:
        value_BHTE = value_BKSE.repeat_interleave(groups, 1) if groups > 1 else value_BKSE
        return value_BHTE.transpose(1, 2), None
    is_square = query_BHTE.shape[2] == key_BKSE.shape[2] and getattr(module, "is_causal", True)
    if is_plain and is_square and groups > 1 and _wants_own_heads(query_BHTE):
        out_BHTE = scaled_dot_product_attention(
            query_BHTE,
            key_BKSE.repeat_interleave(groups, 1),
            value_BKSE.repeat_interleave(groups, 1),
            is_causal=True,
            scale=options.get("scaling"),
        )
        return out_BHTE.transpose(1, 2).contiguous(), None
    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query_BHTE, key_BKSE, value_BKSE, attention_mask, **options
    )
    return result


def _wants_own_heads(query_BHTE: Tensor) -> bool:
    """Whether the only fused kernel there is takes no shared heads."""
    is_float32 = query_BHTE.dtype == torch.float32 and not torch.is_autocast_enabled("cuda")
    return query_BHTE.device.type == "cuda" and is_float32


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
