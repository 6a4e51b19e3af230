"""What counts in a decoder, by what calibration prompts make of it.

A part counts by how much it says times how much of that is heard: its mean |activation| times the
norm of the weights that read it. A layer counts by how much it turns the hidden state.

Legend: F MLP neurons, K key-value heads, E head width, D hidden width, R rows, T positions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from distill.anatomy import check_known, head_width, shape_of
from foundation import Foundation
from foundation.batches import Batch, by_length, take_rows
from promptify.rows import Rows
from promptify.validation import BadInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """What calibration says of each part.

    Attributes:
        layers: mean of 1 − cos(input, output) of each layer; 0 is a layer that does nothing.
        neurons: per layer, float32 [F]: mean |activation| × norm of the neuron's output column.
        groups: per layer, float32 [K]: the same, summed over the head outputs of each group.
        hidden: float32 [D]: mean |normed activation| × norm of the columns that read it, as a
            share of each norm's sum, averaged over the norms that something reads.
        energy: by the name of a norm of hidden width, float32 [D]: mean square of its input.
    """

    layers: tuple[float, ...]
    neurons: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    hidden: Tensor
    energy: Mapping[str, Tensor]


@torch.no_grad()
def measure_importance(
    foundation: Foundation, rows: Rows, *, max_positions: int = 16384
) -> Importance:
    """Read calibration rows and watch every part.

    Args:
        foundation: the model to be pruned.
        rows: calibration prompts; a thousand are a good number.
        max_positions: padded positions read at once.

    Raises:
        BadInput: there are no rows, or the decoder has parts that pruning does not know.

    Source: block influence, ShortGPT (arXiv 2403.03853); neuron score, Wanda (arXiv 2306.11695)
    summed over a neuron's outputs; heads and width by the same rule, after Minitron (arXiv
    2407.14679).
    """
    foundation.eval()
    if len(rows) == 0:
        raise BadInput("rows holds no calibration prompt; give it a few hundred.")
    decoder = foundation.decoder
    check_known(decoder)
    layers = decoder.model.layers
    watch = _Watch()
    positions = 0
    inline_slots_JD = foundation.inline_slots(rows)
    with _watching(decoder, watch):
        for chosen in by_length(rows.lengths, max_positions=max_positions):
            batch = Batch.of(
                take_rows(rows, chosen),
                pad_id=foundation.prompter.newline_id,
                vocab_size=foundation.prompter.vocab_size,
            ).to(foundation.device)
            longest_T = torch.arange(batch.ids_RT.shape[1], device=foundation.device)
            watch.real_RT = longest_T[None, :] < batch.length_R[:, None]
            foundation.hidden(batch.ids_RT, inline_slots_JD=inline_slots_JD)
            positions += int(watch.real_RT.sum())
    means = {name: total.cpu() / positions for name, total in watch.sums.items()}
    neurons, groups = [], []
    per_head, num_groups = head_width(decoder), shape_of(decoder).groups
    for depth, layer in enumerate(layers):
        down, output = layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight
        neurons.append(means[f"{depth}.neurons"] * _column_norms(down))
        heard = means[f"{depth}.heads"] * _column_norms(output)
        groups.append(reduce(heard, "(k q e) -> k", "sum", k=num_groups, e=per_head))
    heard_D = [
        means[f"{name}.heard"] * _column_norms(*readers)
        for name, readers in _readers(foundation).items()
    ]
    return Importance(
        layers=tuple(float(means[f"{depth}.turned"]) for depth in range(len(layers))),
        neurons=tuple(neurons),
        groups=tuple(groups),
        hidden=torch.stack([one / one.sum() for one in heard_D]).mean(dim=0),
        energy={name: means[f"{name}.energy"] for name in norms_of(decoder)},
    )


def norms_of(decoder: Any) -> dict[str, Any]:
    """Norms over the hidden width by their names in the decoder, first to last."""
    layers = {
        f"model.layers.{depth}.{name}": norm
        for depth, layer in enumerate(decoder.model.layers)
        for name, norm in layer.named_children()
        if name.endswith("layernorm")
    }
    return {**layers, "model.norm": decoder.model.norm}


def _readers(foundation: Foundation) -> dict[str, list[Tensor]]:
    """Weights [·, D] that read the output of each norm which anything reads directly."""
    readers: dict[str, list[Tensor]] = {}
    for depth, layer in enumerate(foundation.decoder.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        before_mlp = (
            "pre_feedforward_layernorm"
            if hasattr(layer, "pre_feedforward_layernorm")
            else "post_attention_layernorm"
        )
        readers[f"model.layers.{depth}.input_layernorm"] = [
            projection.weight
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        readers[f"model.layers.{depth}.{before_mlp}"] = [mlp.gate_proj.weight, mlp.up_proj.weight]
    readers["model.norm"] = [
        foundation.person_head.weight,
        foundation.item_head.weight,
        foundation.label_rows_LD,
    ]
    return readers


def _column_norms(*weights: Tensor) -> Tensor:
    """Norm of each column over all of the weights, float32, on the CPU."""
    stacked = torch.cat([weight.detach().float() for weight in weights])
    norms: Tensor = torch.linalg.vector_norm(stacked, dim=0)
    return norms.cpu()


class _Watch:
    """What the hooks add up over real positions, by name."""

    real_RT: Tensor

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values_RT: Tensor) -> None:
        """Add values [R, T, ...] of the positions that are no padding."""
        total = values_RT[self.real_RT].sum(dim=0)
        self.sums[name] = self.sums[name] + total if name in self.sums else total


@contextmanager
def _watching(decoder: Any, watch: _Watch) -> Iterator[None]:
    def of_layer(depth: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before_RTD = args[0] if args else kwargs["hidden_states"]
            after_RTD = output[0] if isinstance(output, tuple) else output
            cosine_RT = F.cosine_similarity(before_RTD.float(), after_RTD.float(), dim=-1)
            watch.add(f"{depth}.turned", 1 - cosine_RT)

        return hook

    def of_input(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            watch.add(name, args[0].float().abs())

        return hook

    def of_norm(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, output: Tensor) -> None:
            watch.add(f"{name}.energy", args[0].float().square())
            watch.add(f"{name}.heard", output.float().abs())

        return hook

    handles = []
    for depth, layer in enumerate(decoder.model.layers):
        down, out = layer.mlp.down_proj, layer.self_attn.o_proj
        handles += [
            layer.register_forward_hook(of_layer(depth), with_kwargs=True),
            down.register_forward_pre_hook(of_input(f"{depth}.neurons")),
            out.register_forward_pre_hook(of_input(f"{depth}.heads")),
        ]
    for name, norm in norms_of(decoder).items():
        handles.append(norm.register_forward_hook(of_norm(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
