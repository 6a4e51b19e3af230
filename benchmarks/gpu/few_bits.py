"""Scoring with weights in 8 and 4 bits against bfloat16, in turn: time, bytes, error, first places.

Random weights: the errors are of a model that was not trained, and say how numbers round, not what
a catalogue loses; that is for the gate (`decant quantise`). torchao's own layers are a peer, where
it is installed.

Legend: C candidates, A labels, n requests.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.gpu.models import random_model
from benchmarks.gpu.session import Session
from benchmarks.scoring_rounds import median, timed
from benchmarks.scoring_ways import Request, Scores, Shape, ours
from foundation import Foundation, few_bits
from foundation.int8 import put_layers
from promptify.assembly import PromptBook

Weights = Literal["int8", "fp8", "int4"]
WEIGHTS: tuple[Weights, ...] = ("fp8", "int8", "int4")
COMPILED: dict[Weights, tuple[str, ...]] = {
    "fp8": ("fp8_inputs",),
    "int8": ("int8_inputs", "int8_outputs"),
}
"""What stands around the products of those that round inputs: a kernel each, when compiled."""

SHAPES = ("Qwen3-0.6B shape", "0.1B")

# Tokens of the prefix, candidates, tokens of each. A step waits for its calls in the first, and for
# its products in the second.
_LOADS = ((512, 100, 16), (12288, 50, 150))
_SMOKE_LOADS = ((40, 4, 3), (60, 5, 6))
_TURNS, _SMOKE_TURNS = 15, 3
# torchao's layers take hundreds of times as long to call as PyTorch's.
_PEER_TURNS = 5
_CHECKED_REQUESTS = 8


class FewBits:
    """One shape with random weights, in float32 and bfloat16; see the module.

    Args:
        session: takes the rows.
        book: whose prompter and items the model has.
        name: of the shape, in the column `split`.
        shape: of the decoder.
        smoke: a small load, on a CPU too.
    """

    def __init__(
        self, session: Session, book: PromptBook, *, name: str, shape: Shape, smoke: bool
    ) -> None:
        self.session, self.book, self.name, self.shape = session, book, name, shape
        self.loads = _SMOKE_LOADS if smoke else _LOADS
        self.turns = _SMOKE_TURNS if smoke else _TURNS
        self.checked = 2 if smoke else _CHECKED_REQUESTS

    @cached_property
    def whole(self) -> Foundation:
        """In float32."""
        return random_model(self.book, self.shape, device=self.session.device)

    @cached_property
    def half(self) -> Foundation:
        """With layers in bfloat16."""
        return self._asked(copy.deepcopy(self.whole))

    @cached_property
    def requests(self) -> list[Request]:
        """Of random tokens, under the first load."""
        return [Request.draw(self.whole, self.loads[0], seed=seed) for seed in range(self.checked)]

    @cached_property
    def exact_nCA(self) -> Scores:
        """What float32 says of them [n, C, A]."""
        return np.stack([ours(self.whole)(request) for request in self.requests])

    def layers(self, weights: Weights) -> None:
        """Rows of our layers, and of bfloat16 beside them; no kernel packs int4 without a GPU."""
        if weights == "int4" and self.session.device.type != "cuda":
            self.session.say(f"skipped  few bits, {self.name}, int4: there is no GPU")
            return
        small = self._rounded(weights)
        self._against_half(small, weights)
        self._bytes(small, weights)
        self._errors(small, weights)
        if weights == WEIGHTS[0]:
            self._bytes(self.half, "bf16")
            self._errors(self.half, "bf16")

    def compiled(self, weights: Weights) -> None:
        """The time of the same with what is around the product in one kernel."""
        small = self._rounded(weights)
        with _compiled(weights):
            self._against_half(small, f"{weights}, compiled")

    def peer(self, weights: Weights) -> None:
        """Rows of torchao's layers."""
        small = copy.deepcopy(self.half)
        _put_torchao(small.decoder, weights)
        self._against_half(small, f"{weights}, torchao", loads=self.loads[:1], turns=_PEER_TURNS)
        self._errors(small, f"{weights}, torchao")

    def _rounded(self, weights: Weights) -> Foundation:
        small = copy.deepcopy(self.whole)
        if weights == "int8":
            small.cpu()
            put_layers(small.decoder)
        else:
            few_bits.round_layers(small.decoder, weights)
        small.settings = replace(small.settings, weights=weights)
        return self._asked(small)

    def _asked(self, model: Foundation) -> Foundation:
        """A model in the form in which it is asked on a GPU, on whatever device this is."""
        if self.session.device.type == "cuda":
            few_bits.to_gpu(model)
        else:
            few_bits.put_few_bits(model.decoder, model.settings.weights)
        return model

    def _against_half(
        self,
        small: Foundation,
        model: str,
        *,
        loads: tuple[tuple[int, int, int], ...] | None = None,
        turns: int | None = None,
    ) -> None:
        turns = turns or self.turns
        for load in loads or self.loads:
            request = Request.draw(self.whole, load, seed=0)
            both = [timed(ours(one), request) for one in (self.half, small)]
            for once in (*both, *both):
                once()
            seconds = np.array(
                [[once()[0] for once in both] for _ in tqdm(range(turns), leave=False, delay=2)]
            )
            ratio = median(seconds[:, 0] / seconds[:, 1])
            self._add(model, "speedup_vs_bf16", ratio, n=turns, load=load)
            for name, column in ((f"bf16 beside {model}", 0), (model, 1)):
                taken = median(1000 * seconds[:, column])
                self._add(name, "turn_ms", taken, n=turns, load=load)

    def _bytes(self, small: Foundation, model: str) -> None:
        layers = small.decoder.model.layers
        held = [*layers.parameters(), *layers.buffers()]
        taken = sum(tensor.numel() * tensor.element_size() for tensor in held)
        self._add(model, "weights_bytes", float(taken), n=1)

    def _errors(self, small: Foundation, model: str) -> None:
        said_nCA = np.stack([ours(small)(request) for request in self.requests])
        error_n = np.abs(said_nCA - self.exact_nCA).max((1, 2))
        n = len(self.requests)
        self._add(model, "max_abs_error", float(error_n.max()), n=n)
        said_nC, exact_nC = said_nCA[..., 0], self.exact_nCA[..., 0]
        best_nC = np.sort(exact_nC, 1)
        # Only where float32's margin is larger than the error can the top be held to be wrong.
        is_sure_n = best_nC[:, -1] - best_nC[:, -2] > 2 * error_n
        is_same_n = said_nC.argmax(1) == exact_nC.argmax(1)
        if is_sure_n.any():
            agreed, sure = float(is_same_n[is_sure_n].mean()), int(is_sure_n.sum())
            self._add(model, "top1_agreement", agreed, n=sure)
        self._add(model, "top1_agreement_all", float(is_same_n.mean()), n=n)

    def _add(
        self,
        model: str,
        metric: str,
        value: float | tuple[float, tuple[float, float]],
        *,
        n: int,
        load: tuple[int, int, int] | None = None,
    ) -> None:
        load = load or self.loads[0]
        self.session.add(
            value,
            task="x".join(map(str, load)),
            split=f"few bits, {self.name}",
            model=model,
            params=self.whole.num_parameters(),
            context_tokens=load[0],
            metric=metric,
            n=n,
        )


@contextmanager
def _compiled(weights: Weights) -> Iterator[None]:
    """Compile for a while what stands around the products."""
    plain = {name: getattr(few_bits, name) for name in COMPILED[weights]}
    for name, function in plain.items():
        setattr(few_bits, name, torch.compile(function, dynamic=True))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(few_bits, name, function)


def _put_torchao(decoder: Any, weights: Weights) -> None:
    """Let torchao put its own layers into a body in bfloat16."""
    from torchao import quantization as ao

    configs: dict[Weights, Any] = {
        "int8": ao.Int8DynamicActivationInt8WeightConfig(),
        "fp8": ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
        "int4": ao.Int4WeightOnlyConfig(
            group_size=32, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        ),
    }
    ao.quantize_(decoder.model.layers, configs[weights])
    for module in list(decoder.model.layers.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, child_name, _Held(child))


class _Held(nn.Module):
    """A linear layer whose weight is no parameter: torchao's tensors have no address to know."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.held = [linear.weight, linear.bias]

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.held
        return F.linear(input, weight, bias)
