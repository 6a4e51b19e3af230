"""Layers with weights in 8 or 4 bits on a GPU: a half or a quarter of bfloat16's bytes.

    to_grid(foundation, "fp8")  # on any machine: float32 numbers that a few bits can tell
    to_gpu(foundation)          # the same numbers in those bits, to be asked on a GPU

What is rounded are the linear layers of the body. Embeddings, readouts and label words stay
float32; what passes between layers on a GPU is bfloat16.

int8    the int8 of `foundation.int8`; inputs by the largest at each position
fp8     e4m3 numbers, a scale for each output; inputs likewise
int4    a scale for each 32 inputs of an output; inputs stay bfloat16

A saved model holds the float32 numbers: stock loaders read it, a machine without a GPU computes
with them as with any others, and a GPU finds the same codes again. So the scales of fp8 and int4
are bfloat16 numbers: a code times a scale is exact, and what is rounded rounds to itself.

Legend: M positions, N outputs, K inputs, G groups of 32 inputs.

Source: products by PyTorch's own kernels. Scales as torchao's `PerRow`, but for their own rounding;
groups whose extreme is code -8 as in llama.cpp's Q4_0.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.int8 import Int8Linear
from promptify.validation import BadInput

if TYPE_CHECKING:
    from foundation.model import Foundation

GridWeights = Literal["fp8", "int4"]
"""What a GPU alone has kernels for; elsewhere such weights are float32 numbers like others."""

_FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = torch.finfo(_FP8).max
_LARGEST_INT8 = 127
_TINY = torch.finfo(torch.bfloat16).tiny
# PyTorch's int8 product wants more than 16 positions.
_LEAST_INT8_POSITIONS = 32


# Inputs of a product: what its kernel takes of them.
Inputs = tuple[Tensor, ...]


class LastInputs:
    """The inputs that were rounded last: layers that read the same ones round them once.

    Queries, keys and values are made of the same, and the two halves of an MLP.
    """

    def __init__(self) -> None:
        self._last: tuple[ref[Tensor], int, Inputs] | None = None

    def get(self, input: Tensor) -> Inputs | None:
        """What these inputs were rounded to; None where others were, or they changed since."""
        last = self._last
        if last is None or last[0]() is not input or input.is_inference():
            return None
        return last[2] if last[1] == input._version else None

    def put(self, input: Tensor, rounded: Inputs) -> None:
        """Keep them in the place of those before."""
        if not input.is_inference():
            self._last = ref(input), input._version, rounded


class FewBitsLinear(nn.Module):
    """A linear layer over codes and scales, bfloat16 in and out; inference alone.

    Args:
        linear: with weights on the grid, [N, K] and, where it has one, the bias [N].
        last: shared by the layers of a decoder.
    """

    multiples: ClassVar[tuple[int, int]]
    """What K and N must be multiples of for the kernel."""
    capability: ClassVar[tuple[int, int]]
    """The first GPUs that have the kernel."""
    codes: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear | Int8Linear, last: LastInputs) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scale = self.pack(linear)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().bfloat16(), False)
        self.last = last

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        inputs = self.last.get(input)
        if inputs is None:
            inputs = self.inputs(input.reshape(-1, self.in_features))
            self.last.put(input, inputs)
        out_MN = self.product(*inputs)
        if self.bias is not None:
            out_MN = out_MN + self.bias
        return out_MN.view(*input.shape[:-1], self.out_features)

    @classmethod
    def fits(cls, linear: nn.Linear | Int8Linear) -> bool:
        """Whether the kernel takes a layer of these widths; others stay as they are."""
        of_inputs, of_outputs = cls.multiples
        return linear.in_features % of_inputs == 0 and linear.out_features % of_outputs == 0

    @staticmethod
    def pack(linear: Any) -> tuple[Tensor, Tensor]:
        """A layer's codes and scales as the kernel wants them."""
        raise NotImplementedError

    def inputs(self, input_MK: Tensor) -> Inputs:
        """What the kernel takes of the inputs."""
        raise NotImplementedError

    def product(self, *inputs: Any) -> Tensor:
        """Inputs times weights, [M, N]."""
        raise NotImplementedError


class _Int8(FewBitsLinear):
    multiples = (8, 8)
    capability = (8, 0)

    @staticmethod
    def pack(linear: Int8Linear) -> tuple[Tensor, Tensor]:
        return linear.weight.data, linear.scale_N[None]

    def inputs(self, input_MK: Tensor) -> Inputs:
        rounded_MK, scale_M1 = int8_inputs(input_MK)
        missing = max(0, _LEAST_INT8_POSITIONS - len(rounded_MK))
        return F.pad(rounded_MK, (0, 0, 0, missing)) if missing else rounded_MK, scale_M1

    def product(self, rounded_MK: Tensor, scale_M1: Tensor) -> Tensor:
        sum_MN = torch._int_mm(rounded_MK, self.codes.T)[: len(scale_M1)]
        return int8_outputs(sum_MN, scale_M1, self.scale)


class _Fp8(FewBitsLinear):
    multiples = (16, 16)
    capability = (8, 9)

    @staticmethod
    def pack(linear: nn.Linear) -> tuple[Tensor, Tensor]:
        codes_NK, scale_N1 = round_to_fp8(linear.weight.detach())
        return codes_NK, scale_N1.T.contiguous()

    def inputs(self, input_MK: Tensor) -> Inputs:
        return fp8_inputs(input_MK)

    def product(self, rounded_MK: Tensor, scale_M1: Tensor) -> Tensor:
        return torch._scaled_mm(
            rounded_MK,
            self.codes.T,
            scale_a=scale_M1,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


class _Int4(FewBitsLinear):
    group: ClassVar[int] = 32
    multiples = (group, 8)
    capability = (8, 0)

    @staticmethod
    def pack(linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Two codes a byte in the kernel's tiles, on the GPU; scales beside zeros [G, N, 2]."""
        codes_NK, scale_NG = round_to_int4(linear.weight.detach().cuda())
        above_NK = (codes_NK + 8).to(torch.uint8)
        pairs = above_NK[:, ::2] << 4 | above_NK[:, 1::2]
        tiles = next(tiles for tiles in (8, 4, 2) if linear.in_features % (16 * tiles) == 0)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)
        scale_GN = scale_NG.T.bfloat16()
        return packed, torch.stack([scale_GN, torch.zeros_like(scale_GN)], -1)

    def inputs(self, input_MK: Tensor) -> Inputs:
        return (input_MK,)

    def product(self, input_MK: Tensor) -> Tensor:
        out_MN: Tensor = torch.ops.aten._weight_int4pack_mm(
            input_MK, self.codes, self.group, self.scale
        )
        return out_MN


_LAYERS: dict[str, type[FewBitsLinear]] = {"int8": _Int8, "fp8": _Fp8, "int4": _Int4}


def to_grid(foundation: "Foundation", weights: GridWeights) -> None:
    """Round the weights of a model's layers, and read its items again with them.

    A layer whose widths the kernels do not take keeps its weights.

    Args:
        foundation: in float32; changed in place, and cannot be trained after.
        weights: how few bits.

    Raises:
        BadInput: its weights are rounded already.
    """
    if foundation.settings.weights != "float32":
        raise BadInput(f"the model is in {foundation.settings.weights} already.")
    round_layers(foundation.decoder, weights)
    foundation.settings = replace(foundation.settings, weights=weights)
    foundation.eval()
    foundation.refresh_readings()


def round_layers(decoder: Any, weights: GridWeights) -> None:
    """Put a decoder's weights on a grid; embeddings, norms and head stay.

    Args:
        decoder: a causal LM of transformers; changed in place.
        weights: how few bits.
    """
    for _, _, linear in _linears(decoder):
        if _LAYERS[weights].fits(linear):
            linear.weight.data = on_grid(linear.weight.data, weights)


def on_grid(weight_NK: Tensor, weights: GridWeights) -> Tensor:
    """The nearest numbers that a few bits can tell, float32 [N, K]."""
    codes_NK, scale_NG = (round_to_fp8 if weights == "fp8" else round_to_int4)(weight_NK)
    codes_NGk: Tensor = codes_NK.float().unflatten(1, (scale_NG.shape[1], -1))
    return (codes_NGk * scale_NG[..., None]).flatten(1)


def round_to_fp8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in e4m3 [N, K], and scales [N, 1], float32 that bfloat16 can say."""
    scale_N1 = weight_NK.abs().amax(1, keepdim=True) / _LARGEST_FP8
    # An output that has no weights at all still needs a scale.
    scale_N1 = scale_N1.clamp(min=_TINY).bfloat16().float()
    # Where the scale was rounded down, the largest is a little above what e4m3 can say.
    return (weight_NK / scale_N1).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(_FP8), scale_N1


def round_to_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of -8 to 7 in int8 [N, K], and scales [N, G], float32 that bfloat16 can say."""
    weight_NGk = weight_NK.unflatten(1, (-1, _Int4.group))
    extreme_NG1 = weight_NGk.gather(2, weight_NGk.abs().argmax(2, keepdim=True))
    # There is one code more below zero than above: the extreme takes it, whatever its sign.
    scale_NG1 = (extreme_NG1 / -8).bfloat16().float()
    scale_NG1 = torch.where(scale_NG1 == 0, 1.0, scale_NG1)
    codes_NGk = (weight_NGk / scale_NG1).round().clamp(-8, 7).to(torch.int8)
    return codes_NGk.flatten(1), scale_NG1[..., 0]


def int8_inputs(input_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs in int8, and the scale of each position, float32 [M, 1]."""
    scale_M1 = _largest(input_MK) / _LARGEST_INT8
    return (input_MK / scale_M1).round().to(torch.int8), scale_M1


def int8_outputs(sum_MN: Tensor, scale_M1: Tensor, scale_1N: Tensor) -> Tensor:
    """What int32 sums of products stand for, bfloat16."""
    return (sum_MN * scale_M1 * scale_1N).bfloat16()


def fp8_inputs(input_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs in e4m3, and the scale of each position, float32 [M, 1]."""
    scale_M1 = _largest(input_MK) / _LARGEST_FP8
    return (input_MK / scale_M1).to(_FP8), scale_M1


def _largest(input_MK: Tensor) -> Tensor:
    """The largest magnitude at each position, float32 [M, 1], above zero."""
    norm_M1: Tensor = torch.linalg.vector_norm(
        input_MK, torch.inf, dim=1, keepdim=True, dtype=torch.float32
    )
    return norm_M1.clamp(min=_TINY)


def has_kernels(weights: str) -> bool:
    """Whether this machine has a GPU that computes in so few bits."""
    layer = _LAYERS.get(weights, _Int8)
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= layer.capability


def is_meant_for_gpu(foundation: "Foundation") -> bool:
    """Whether a model's weights are of those that a GPU alone computes in, and there is one."""
    weights = foundation.settings.weights
    return weights in get_args(GridWeights) and has_kernels(weights)


@torch.no_grad()
def to_gpu(foundation: "Foundation") -> None:
    """Move a model to the GPU to be asked there: layers in few bits, between them bfloat16.

    A model on no grid has its layers in bfloat16. What is saved, exported or moved elsewhere is the
    model as it was before: load it again, or copy it first.

    Args:
        foundation: changed in place.

    Raises:
        BadInput: no GPU here has the kernels, or the model is there already.
    """
    weights = foundation.settings.weights
    if not has_kernels(weights):
        raise BadInput(f"no GPU of this machine computes in {weights}; leave the model on the CPU.")
    if is_for_gpu(foundation.decoder):
        raise BadInput("the model is on the GPU already, in as few bits as it can be.")
    put_few_bits(foundation.decoder, weights)
    foundation.cuda().eval()


def put_few_bits(decoder: Any, weights: str) -> None:
    """Put layers of few bits in the place of a decoder's linear ones; the rest of its body is half.

    Args:
        decoder: a causal LM of transformers, its weights on their grid; changed in place.
        weights: of `FoundationConfig`.
    """
    layer, last = _LAYERS.get(weights), LastInputs()
    for parent, name, linear in list(_linears(decoder)):
        if layer is not None and layer.fits(linear):
            setattr(parent, name, layer(linear, last))
        elif isinstance(linear, Int8Linear):
            setattr(parent, name, linear.stock_layer())
    for module in decoder.model.layers.modules():
        if not isinstance(module, FewBitsLinear):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()
    decoder.model.register_forward_pre_hook(_half_inputs, with_kwargs=True)
    decoder.model.register_forward_hook(_whole_outputs)


def is_for_gpu(decoder: Any) -> bool:
    """Whether a decoder was put in the form that `to_gpu` gives it."""
    return _half_inputs in decoder.model._forward_pre_hooks.values()


def stock_state(decoder: Any) -> dict[str, Tensor]:
    """Weights of a decoder under the names and in the dtype that stock loaders know.

    Raises:
        BadInput: it is in the form in which it is asked on a GPU.
    """
    if is_for_gpu(decoder):
        raise BadInput("a model that went `to_gpu` cannot be written; write the one it was before.")
    state: dict[str, Tensor] = decoder.state_dict()
    for name, module in decoder.named_modules():
        if isinstance(module, Int8Linear):
            del state[f"{name}.scale_N"]
            state[f"{name}.weight"] = module.stock_weight()
    return state


def _half_inputs(
    body: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return given, {**named, "inputs_embeds": named["inputs_embeds"].bfloat16()}


def _whole_outputs(body: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
    out.last_hidden_state = out.last_hidden_state.float()
    return out


def _linears(decoder: Any) -> Iterator[tuple[nn.Module, str, Any]]:
    """Linear layers of the body, each with the module that it stands in and its name there."""
    for module in decoder.model.layers.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear | Int8Linear):
                yield module, name, child
