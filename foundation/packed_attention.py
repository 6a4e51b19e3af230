"""Attention within each of many rows that lie end to end, for any decoder, with PyTorch alone.

    with attending(decoder, NAME):
        decoder.model(inputs_embeds=..., position_ids=..., use_cache=False, **row_bounds(...))

On a GPU in half precision it is the flash kernel for rows of any length that PyTorch holds itself,
so that packed training needs no flash-attn. Elsewhere each row is attended to by itself, which is
the plain path that tests hold the kernel against. Rows that are not packed (no bounds given) go to
PyTorch's SDPA.

Legend: R rows, T positions, H query heads, K key-value heads, E head width, N all positions.
"""

import inspect
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from foundation.attention import UNTOLD, window_of
from promptify.validation import BadInput

NAME = "packed_rows"
_HALF = {torch.float16, torch.bfloat16}
# Newer PyTorch shares heads only where it is asked to; 2.11 does, and has no word for it. Looked up
# here, since layers that are compiled cannot.
_CAN_SHARE_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters
_SHARING_HEADS: dict[str, Any] = {"enable_gqa": True} if _CAN_SHARE_HEADS else {}


def can_attend(decoder: Any) -> bool:
    """Whether a decoder's attention has nothing that the kernel does not know."""
    return getattr(decoder.config, "attn_logit_softcapping", None) is None


def row_bounds(position_RT: Tensor) -> dict[str, Any]:
    """Where packed rows start and end, under the names that transformers' flash attention has too.

    Args:
        position_RT: int64 [1, N], counts from 0 in every row.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k`, int32 [rows + 1], and the longest row's length twice.
    """
    start_R = torch.nonzero(position_RT[0] == 0)[:, 0]
    bound_S = torch.cat([start_R, start_R.new_tensor([position_RT.shape[1]])]).int()
    longest = int(position_RT.max()) + 1
    return {
        "cu_seq_lens_q": bound_S,
        "cu_seq_lens_k": bound_S,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packed_rows_attention(
    module: Any,
    query_RHTE: Tensor,
    key_RKTE: Tensor,
    value_RKTE: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = UNTOLD,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention that ends where a row does, as transformers' interface wants it.

    Args:
        module: the attention layer.
        query_RHTE: queries; R is 1 where rows are packed.
        key_RKTE: keys; query heads share them in groups.
        value_RKTE: values.
        attention_mask: None; padding on the right needs no mask, as attention is causal.
        scaling: factor of the logits; 1/√E when None.
        sliding_window: positions that a query sees, itself included; all when None. Of a family
            whose layers leave it to the mask, what the configuration says.
        softcap: None.
        cu_seq_lens_q: of `row_bounds`; None for rows that are padded.
        max_length_q: of `row_bounds`.
        rest: what does not change attention without dropout.

    Returns:
        [R, T, H, E], and None for the weights, which are never held.

    Raises:
        BadInput: the layer bounds its logits, or has sinks or position biases.
    """
    assert attention_mask is None
    odd = [name for name in ("s_aux", "position_bias", "dropout") if _is_set(rest.get(name))]
    odd += ["softcap"] * (softcap is not None)
    if odd:
        raise BadInput(
            f"{type(module).__name__} attends with {', '.join(odd)}, which packed rows do not "
            "know. Give FitConfig(packing=False), or install flash-attn."
        )
    window = window_of(module, sliding_window)
    options: dict[str, Any] = {"scale": scaling}
    if torch.is_autocast_enabled(query_RHTE.device.type):
        # Norms on queries and keys leave them in the weights' float32.
        dtype = torch.get_autocast_dtype(query_RHTE.device.type)
        query_RHTE, key_RKTE, value_RKTE = (
            states.to(dtype) for states in (query_RHTE, key_RKTE, value_RKTE)
        )
    states = (query_RHTE, key_RKTE, value_RKTE)
    if cu_seq_lens_q is None:
        out_RHTE = _padded(states, window, options)
        return out_RHTE.transpose(1, 2).contiguous(), None
    assert max_length_q is not None
    if query_RHTE.device.type == "cuda" and query_RHTE.dtype in _HALF:
        query_NHE, key_NKE, value_NKE = (rearrange(x, "1 h n e -> n h e") for x in states)
        out_NHE: Any = varlen_attn(
            query_NHE,
            key_NKE,
            value_NKE,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            window_size=(window - 1 if window else -1, 0),
            **options,
            **_SHARING_HEADS,
        )
        return out_NHE[None], None
    rows = [
        _padded(tuple(x[:, :, start:stop] for x in states), window, options)
        for start, stop in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(rows, 2).transpose(1, 2).contiguous(), None


def _is_set(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and value == 0.0)


def _padded(states: tuple[Tensor, ...], window: int | None, options: dict[str, Any]) -> Tensor:
    """Causal attention of whole rows [R, H, T, E]."""
    query_RHTE, key_RKTE, value_RKTE = states
    sees_TT = None
    if window is not None and window < query_RHTE.shape[2]:
        at_T = torch.arange(query_RHTE.shape[2], device=query_RHTE.device)
        back_TT = at_T[:, None] - at_T
        sees_TT = (back_TT >= 0) & (back_TT < window)
    return scaled_dot_product_attention(
        query_RHTE,
        key_RKTE,
        value_RKTE,
        attn_mask=sees_TT,
        is_causal=sees_TT is None,
        enable_gqa=query_RHTE.shape[1] != key_RKTE.shape[1],
        **options,
    )


# No mask is registered by this name: transformers then makes none; rows end by their bounds.
AttentionInterface.register(NAME, packed_rows_attention)
