"""Linear layers with weights in int8, for processors: a quarter of the bytes, and less time.

    to_int8(foundation)   # layers of the body; embeddings, heads and labels stay float32

Each output's weights share a scale. A layer's inputs are rounded to 8 bits as they come, by their
least and largest value, and products are summed in int32, by PyTorch's own kernel. That rounding
spans all positions that are read together, so a candidate's score may differ in its last digits
with what stands beside it.

On x86 processors without VNNI the kernel first adds products in pairs, in 16 bits, and two of the
largest do not fit. Inputs are rounded to 7 bits there, whose products do.

A saved model holds the weights as float32 numbers on the int8 grid: stock loaders read it as they
read any other, and reading it here gives the same int8 weights again.

Source: W8A8 with dynamic activations, as in PyTorch's `quantize_dynamic`.
"""

import warnings
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer over int8 weights; inference on a CPU alone.

    Args:
        linear: whose weights are rounded, [N, K] and, where it has one, the bias [N].
    """

    scale_N: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_NK = linear.weight.detach().float()
        # An output that has no weights at all still needs a scale.
        scale_N = weight_NK.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
        rounded_NK = (weight_NK / scale_N[:, None]).round().clamp(-_LARGEST, _LARGEST)
        self.weight = nn.Parameter(rounded_NK.to(torch.int8), requires_grad=False)
        self.register_buffer("scale_N", scale_N)
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        # In a list, which the modules that read in this one's place share: it is packed once.
        self._packed: list[Any] = []

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] to [..., N], float32."""
        if not self._packed:
            self._packed.append(self._pack())
        return _multiply(input, self._packed[0], reduce_range=kernel_saturates())

    def stock_weight(self) -> Tensor:
        """The weights as float32 numbers [N, K]."""
        return self.weight.float() * self.scale_N[:, None]

    def stock_layer(self) -> nn.Linear:
        """A layer of float32 numbers that computes the same, but for the inputs' rounding."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False)
        layer.weight = nn.Parameter(self.stock_weight(), requires_grad=False)
        layer.bias = self.bias
        return layer

    def _pack(self) -> Any:
        """The weights as the kernel wants them."""
        if self.weight.device.type != "cpu":
            raise BadInput("int8 layers are computed on a CPU; leave the model there.")
        zeros_N = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():
            # The type that carries the weights here is on its way out (PyTorch issue 184982); the
            # range of versions in pyproject.toml has it.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
            weight_NK = torch.quantize_per_channel(
                self.stock_weight(), self.scale_N.double(), zeros_N, 0, torch.qint8
            )
        return torch.ops.quantized.linear_prepack(weight_NK, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        # What is packed is made anew where a copy needs it.
        return {**self.__dict__, "_packed": []}


@cache
def kernel_saturates() -> bool:
    """Whether two of the largest products are too much for this processor's kernel.

    It is asked once in a process, with a layer of ones: full inputs and full weights.
    """
    width = 64
    ones = nn.utils.skip_init(nn.Linear, width, width, bias=False)  # draws no random numbers
    nn.init.ones_(ones.weight)
    out = _multiply(torch.ones(1, width), Int8Linear(ones)._pack(), reduce_range=False)
    return bool(out.min() < 0.9 * width)


def _multiply(input: Tensor, packed: Any, *, reduce_range: bool) -> Tensor:
    """By the kernel, with inputs rounded to 8 bits, or to 7."""
    out: Tensor = torch.ops.quantized.linear_dynamic(input, packed, reduce_range)
    return out


def to_int8(foundation: "Foundation") -> None:
    """Put int8 layers in the place of a model's linear ones, and read its items again with them.

    Args:
        foundation: in float32 on a CPU; changed in place, and cannot be trained after.

    Raises:
        BadInput: it is elsewhere, or already in int8.
    """
    if is_int8(foundation.decoder):
        raise BadInput("the model is in int8 already.")
    foundation.settings = replace(foundation.settings, weights="int8")
    put_layers(foundation.decoder)
    foundation.eval()
    foundation.refresh_readings()


def put_layers(decoder: Any) -> None:
    """Put int8 layers in the place of a decoder's linear ones; embeddings and head stay.

    Args:
        decoder: a causal LM of transformers; changed in place.

    Raises:
        BadInput: it is not on a CPU.
    """
    if decoder.device.type != "cpu":
        raise BadInput("int8 layers are computed on a CPU; move the model there first.")
    for module in list(decoder.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))


def is_int8(decoder: Any) -> bool:
    """Whether a decoder's layers are in int8."""
    return any(isinstance(module, Int8Linear) for module in decoder.model.layers.modules())
