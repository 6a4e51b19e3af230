"""Root-mean-square norms in one step forward and one back.

transformers spells the norm out in eight operations, each of which reads and writes the whole
tensor. A small decoder on a CPU spends a fifth of its training step on that; on a GPU, which waits
for every call, a third of a layer's calls are norms. PyTorch has a fused kernel for the latter
alone.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


def fuse_norms(decoder: nn.Module) -> None:
    """Let the Llama-type norms of a decoder run fused on a GPU, and in float32 on a CPU.

    Same numbers to float tolerance; weights, names and configuration stay as they are. Norms of
    other kinds (Gemma's scale by one plus the weight) are left alone.

    Args:
        decoder: changed in place; its modules only, not their classes.
    """
    for module in decoder.modules():
        # Llama's norm and its copies (Qwen3, Mistral, ...) keep their epsilon under this name.
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_forward, module)


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.device.type == "cuda":
        return by_kernel(hidden_states, module.weight, module.variance_epsilon)
    if hidden_states.dtype != torch.float32:
        plain: Tensor = type(module).forward(module, hidden_states)
        return plain
    fused: Tensor = FusedRMSNorm.apply(  # type: ignore[no-untyped-call]
        hidden_states, module.weight, module.variance_epsilon
    )
    return fused


def by_kernel(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The norm of `x`, float [..., D], by PyTorch's kernel, which takes one dtype alone.

    Under autocast queries and keys come in bfloat16 and weights in float32: both are float32 then,
    as the result is in transformers too.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return rms_norm(x.to(dtype), weight.shape, weight.to(dtype), epsilon)


class FusedRMSNorm(torch.autograd.Function):
    """`weight * x / rms(x)` over the last axis, keeping only the normalised input for backward.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """The norm of `x`, float [..., D], scaled by `weight`, float [D]."""
        mean_square = torch.linalg.vecdot(x, x).unsqueeze(-1).div_(x.shape[-1])
        inverse = mean_square.add_(epsilon).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        scaled: Tensor = normed * weight
        return scaled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of `x` and of `weight`."""
        normed, inverse, weight = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        along = torch.linalg.vecdot(grad_normed, normed).unsqueeze(-1).div_(-normed.shape[-1])
        return grad_normed.addcmul_(normed, along).mul_(inverse), grad_weight, None
