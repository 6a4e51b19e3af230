"""Attention of many short candidates over one prefix that they share, for any decoder.

    layers = prefix_layers(cache)  # stock cache, whole prefix in every layer
    model = reading_model(decoder.model, read_at, shared_prefix=True)  # same weights
    model(inputs_embeds=..., position_ids=..., use_cache=False, shared_prefix=layers)

A query sees the prefix and its own candidate up to itself. The two are attended to apart: the
prefix by all candidates' queries at once, in one large product per key-value head, without a copy
of it per candidate; one's own candidate in small causal blocks. Each part comes with the
log-sum-exp of its logits, by which the parts are weighed against each other: the softmax over both
together, exactly.

It is registered by name with transformers' attention interface, so that the decoder's own forward
does everything else: projections, norms on queries and keys, rotary variants, MLPs.

Legend: C candidates, S positions of the longest, P prefix positions, H query heads, K key-value
heads, G = H / K query heads that share one, E head width, N queries, M keys, B window's edge.

Source: FlashAttention's merging of blocks (arXiv 2205.14135, section 3.1), Hydragen's use of it for
shared prefixes (arXiv 2402.05099, section 3.1).
"""

import copy
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from promptify.validation import BadInput

NAME = "shared_prefix"
# Keys and values of the prefix, [1, K, P, E] each, per layer.
PrefixLayers = tuple[tuple[Tensor, Tensor], ...]

_FAMILIES = "Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 (text), OLMo 2, Phi 3 and their kin"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
UNTOLD = -1
"""For a layer that does not tell its window."""
# Of these the angles hang on the longest prompt that is read at the moment, others' among them.
_CHANGING_ROPES = {"dynamic", "longrope"}
# Logits that the plain path holds at once: about what a core's own cache can keep.
_LOGITS_AT_ONCE = 2**18


def window_of(module: Any, told: int | None) -> int | None:
    """Positions that a query of an attention layer sees, itself included; None for all.

    Args:
        module: the layer.
        told: what it says when it attends, or `UNTOLD`: most families say it, some leave it to the
            mask, which is not made here.
    """
    if told != UNTOLD:
        return told
    config = getattr(module, "config", None)
    types = getattr(config, "layer_types", None)
    if types is not None and types[module.layer_idx] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def check_decoder(decoder: Any) -> None:
    """Refuse a decoder whose attention cannot be replaced by name.

    Raises:
        BadInput: it keeps its layers elsewhere than in `model.layers`, its attention does not go
            through transformers' attention interface, it is not plain causal attention, or a
            position is read otherwise in a longer prompt.
    """
    model, config = getattr(decoder, "model", None), decoder.config
    types = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    ropes = _rope_types(getattr(config, "rope_parameters", None) or {}) & _CHANGING_ROPES
    if not hasattr(model, "layers"):
        why = "keeps its layers elsewhere than in `model.layers`"
    elif not getattr(model, "_supports_attention_backend", False):
        why = "does not take its attention from transformers' attention interface"
    elif types:
        why = f"has layers of type {', '.join(sorted(types))}"
    elif ropes:
        why = f"reads positions by how long a prompt is (rope_type {', '.join(sorted(ropes))})"
    elif getattr(config, "use_bidirectional_attention", False):
        why = "looks ahead (use_bidirectional_attention)"
    else:
        return
    raise BadInput(
        f"a decoder of type {config.model_type!r} cannot be used: it {why}. "
        f"Give a decoder of another family: {_FAMILIES} work."
    )


def _rope_types(parameters: Mapping[str, Any]) -> set[str]:
    """The types of a configuration's rotary positions, of all kinds of layers."""
    kinds = [one for one in parameters.values() if isinstance(one, Mapping)] or [parameters]
    return {str(one.get("rope_type", "default")) for one in kinds}


def whole_prefix_cache() -> DynamicCache:
    """A stock cache that keeps every position, in sliding layers too.

    A cache made with the configuration keeps the window alone, and what the last query's window
    leaves out, none of it could be cut back to.
    """
    return DynamicCache()


def prefix_layers(cache: DynamicCache) -> PrefixLayers:
    """What a cache holds, [1, K, P, E] keys and values for each layer."""
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layers.append((layer.keys, layer.values))
    return tuple(layers)


def reading_model(model: Any, read_at: tuple[Tensor, Tensor], *, shared_prefix: bool) -> Any:
    """A second set of modules over the same weights, to read with while others train or read.

    The name of the attention stands in the configuration, which the modules share, and whether
    dropout is on stands in each module. Switching them, even for a moment, would reach a training
    step in another thread; a set of modules of its own cannot. It is made anew for each reading
    (some microseconds a module), so that it always has the modules that the model has now.

    Args:
        model: the body of a decoder, `decoder.model`.
        read_at: row and position of each last hidden state that is wanted, int64 [N] both. After
            the last layer's attention nothing goes from one position to another, so its MLP is
            spared all others, whose last hidden states mean nothing.
        shared_prefix: attention is `shared_prefix_attention`, and the modules are to be called with
            `shared_prefix=PrefixLayers` and without a cache; else it is the model's own.

    Returns:
        Modules in evaluation mode.

    Raises:
        BadInput: a module's forward has been replaced on the object.
    """
    config = copy.copy(model.config)
    if shared_prefix:
        config._attn_implementation = NAME

    def twin(module: nn.Module) -> nn.Module:
        new = object.__new__(type(module))
        new.__dict__ = module.__dict__ | {
            "_modules": {name: child and twin(child) for name, child in module._modules.items()},
            "_compiled_call_impl": None,  # It would call the module it was compiled from.
            "training": False,
        }
        forward = module.__dict__.get("forward")
        if isinstance(forward, MethodType) and forward.__self__ is module:
            new.__dict__["forward"] = MethodType(forward.__func__, new)
        elif forward is not None and module._modules:
            # It would go on into the old modules, which pass over the prefix without a word.
            raise BadInput(
                f"{type(module).__name__} has been given another forward (accelerate's device_map "
                "does that); load the model whole on one device."
            )
        if module.__dict__.get("config") is model.config:
            new.__dict__["config"] = config
        return new

    new: Any = twin(model)
    last = new.layers[-1]
    if isinstance(getattr(last, "mlp", None), nn.Module):
        last.mlp = _Only(last.mlp, read_at).eval()
    return new


class _Only(nn.Module):
    """A module that works on each position alone, spared all positions but some."""

    def __init__(self, module: nn.Module, read_at: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.module = module
        self.read_at = read_at

    def forward(self, hidden_RTD: Tensor) -> Tensor:
        some_N1D = hidden_RTD[self.read_at][:, None]
        return torch.zeros_like(hidden_RTD).index_put(self.read_at, self.module(some_N1D)[:, 0])


def shared_prefix_attention(
    module: Any,
    query_CHSE: Tensor,
    key_CKSE: Tensor,
    value_CKSE: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: PrefixLayers,
    scaling: float | None = None,
    sliding_window: int | None = UNTOLD,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention over the shared prefix and one's own candidate, as the interface wants it.

    Args:
        module: the attention layer; its `layer_idx` finds its part of the prefix.
        query_CHSE: queries, rotated to positions P, P+1, ...
        key_CKSE: the candidates' own keys, rotated likewise.
        value_CKSE: their values.
        attention_mask: None; padding on the right needs no mask, as attention is causal.
        shared_prefix: keys and values of the prefix in every layer.
        scaling: factor of the logits; 1/√E when None.
        sliding_window: positions that a query sees, itself included; all when None. Of a family
            whose layers leave it to the mask, what the configuration says.
        softcap: the logits' bound, softcap · tanh(logit / softcap); none when None.
        rest: what does not change attention without dropout.

    Returns:
        [C, S, H, E], and None for the weights, which are never held.
    """
    assert attention_mask is None
    if any(rest.get(name) is not None for name in ("s_aux", "position_bias")):
        raise BadInput(
            f"{type(module).__name__} has attention sinks or position biases, which shared-prefix "
            f"attention does not know. Use another family: {_FAMILIES} work."
        )
    prefix_key_1KPE, prefix_value_1KPE = shared_prefix[module.layer_idx]
    num_prefix, num_own = prefix_key_1KPE.shape[2], query_CHSE.shape[2]
    num_candidates, groups = len(query_CHSE), query_CHSE.shape[1] // key_CKSE.shape[1]
    window = window_of(module, sliding_window) or num_prefix + num_own
    scale = query_CHSE.shape[-1] ** -0.5 if scaling is None else scaling

    own = _attend(
        query_CHSE,
        key_CKSE.repeat_interleave(groups, 1) if groups > 1 else key_CKSE,
        value_CKSE.repeat_interleave(groups, 1) if groups > 1 else value_CKSE,
        scale=scale,
        softcap=softcap,
        causal_window=window,
    )
    # Query heads of a group and all positions side by side: one product for each key-value head.
    query_1KNE = rearrange(query_CHSE, "c (k g) s e -> 1 k (g c s) e", g=groups)
    axes = {"g": groups, "c": num_candidates}

    def over_prefix(start: int, stop: int, sees_NM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out_1KNE, lse_1KN = _attend(
            query_1KNE,
            prefix_key_1KPE[:, :, start:stop],
            prefix_value_1KPE[:, :, start:stop],
            scale=scale,
            softcap=softcap,
            sees_NM=sees_NM,
        )
        return (
            rearrange(out_1KNE, "1 k (g c s) e -> c (k g) s e", **axes),
            rearrange(lse_1KN, "1 k (g c s) -> c (k g) s", **axes),
        )

    # Position P + s sees keys after P + s - window: those from `all_see` on are seen by every
    # position of a candidate, those between the first that anybody sees and it by the earlier ones.
    first_seen = max(0, num_prefix - window + 1)
    all_see = min(num_prefix, max(0, num_prefix + num_own - window))
    if all_see < num_prefix:
        own = _merge(over_prefix(all_see, num_prefix), own)
    if first_seen < all_see:
        key_B = torch.arange(first_seen, all_see, device=query_CHSE.device)
        last_hidden_S = torch.arange(num_own, device=query_CHSE.device) + num_prefix - window
        sees_SB = key_B > last_hidden_S[:, None]
        own = _merge(
            over_prefix(first_seen, all_see, sees_SB.repeat(groups * num_candidates, 1)), own
        )
    return own[0].transpose(1, 2).contiguous(), None


def _merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from attention over each and its log-sum-exp."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    share = torch.sigmoid(lse_a - lse_b)[..., None]
    out = torch.lerp(out_b.float(), out_a.float(), share).to(out_a.dtype)
    return out, torch.logaddexp(lse_a, lse_b)


def _attend(
    query_XHNE: Tensor,
    key_XHME: Tensor,
    value_XHME: Tensor,
    *,
    scale: float,
    softcap: float | None,
    causal_window: int | None = None,
    sees_NM: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its logits, by the fastest kernel that returns both.

    Args:
        query_XHNE: queries [X, H, N, E].
        key_XHME: keys [X, H, M, E].
        value_XHME: values, of any width.
        scale: factor of the logits.
        softcap: bound of the logits, or None.
        causal_window: for as many keys as queries: each sees itself and those before it, this many
            in all.
        sees_NM: bool [N, M], which keys a query sees; a query may see none.

    Returns:
        [X, H, N, E] and float32 [X, H, N].
    """
    num_queries = query_XHNE.shape[2]
    is_causal = causal_window is not None
    windowed = causal_window is not None and causal_window < num_queries
    if sees_NM is None and softcap is None and not windowed:
        kernel = _kernel(query_XHNE, value_XHME)
        if kernel is not None:
            found: tuple[Tensor, Tensor] = kernel(
                query_XHNE, key_XHME, value_XHME, scale, is_causal
            )
            return found
    if causal_window is not None:
        at_N = torch.arange(num_queries, device=query_XHNE.device)
        back_NN = at_N[:, None] - at_N
        sees_NM = (back_NN >= 0) & (back_NN < causal_window)
    return _plain(query_XHNE, key_XHME, value_XHME, scale, softcap, sees_NM)


def _kernel(query_XHNE: Tensor, value_XHME: Tensor) -> Any:
    """A fused kernel that takes these heads, or None."""
    width = query_XHNE.shape[-1]
    if value_XHME.shape[-1] != width:
        return None
    if query_XHNE.device.type == "cpu":
        return _flash_cpu
    if query_XHNE.device.type != "cuda" or width % 8 or width > 256:
        return None
    return _efficient_cuda if query_XHNE.dtype == torch.float32 else _flash_cuda


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Any:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(q, k, v, 0.0, causal, scale=scale)


def _flash_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Any:
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    return attend(q, k, v, 0.0, causal, False, scale=scale)[:2]


def _efficient_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Any:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = attend(q, k, v, None, True, 0.0, causal, scale=scale)[:2]
    return out, lse[:, :, : q.shape[2]]  # The kernel rounds the number of queries up.


def _plain(
    query_XHNE: Tensor,
    key_XHME: Tensor,
    value_XHME: Tensor,
    scale: float,
    softcap: float | None,
    sees_NM: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Matrix products and a softmax, a block of queries at a time."""
    rows, num_keys = len(query_XHNE) * query_XHNE.shape[1], key_XHME.shape[2]
    block = max(1, _LOGITS_AT_ONCE // (rows * num_keys))
    outs, lses = [], []
    for start in range(0, query_XHNE.shape[2], block):
        some = slice(start, start + block)
        logits = (query_XHNE[:, :, some] @ key_XHME.transpose(-1, -2)).float() * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if sees_NM is not None:
            # Finite, so that a query that sees nothing here weighs nothing when parts are merged.
            logits = logits.masked_fill(~sees_NM[some], torch.finfo(torch.float32).min)
        lse = logits.logsumexp(-1)
        outs.append((logits - lse[..., None]).exp().to(value_XHME.dtype) @ value_XHME)
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


# No mask is registered by this name: transformers then makes none; layers tell their window.
AttentionInterface.register(NAME, shared_prefix_attention)
