"""Make a decoder smaller: fewer layers, fewer MLP neurons, in a shape that stock loaders know.

What is kept is decided by activations on calibration rows: a layer counts by how much it turns the
hidden state, a neuron by how much it adds to it.

Legend: F MLP neurons, D hidden width, R rows, T positions.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from foundation import Foundation
from foundation.batches import Batch, by_length, take_rows
from promptify.rows import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """What calibration says of each part.

    Attributes:
        layers: mean of 1 − cos(input, output) of each layer; 0 is a layer that does nothing.
        neurons: per layer, float32 [F]: mean |activation| × norm of the neuron's output column.
    """

    layers: tuple[float, ...]
    neurons: tuple[Tensor, ...]


@torch.no_grad()
def measure_importance(
    foundation: Foundation, rows: Rows, *, max_positions: int = 16384
) -> Importance:
    """Read calibration rows and watch every layer.

    Args:
        foundation: the model to be pruned.
        rows: calibration prompts.
        max_positions: padded positions read at once.

    Raises:
        ValueError: there are no rows, or the decoder's MLPs are not of the gated dense kind.

    Source: block influence, ShortGPT (arXiv 2403.03853); neuron score, Wanda (arXiv 2306.11695)
    summed over a neuron's outputs.
    """
    foundation.eval()
    if len(rows) == 0:
        raise ValueError("rows holds no calibration prompt; give it a few hundred.")
    layers = foundation.decoder.model.layers
    if not all(hasattr(layer.mlp, "down_proj") for layer in layers):
        raise ValueError(
            f"decoder {foundation.decoder.config.model_type!r} has layers without one dense MLP, "
            "which pruning does not know; take a dense model of the Llama or Qwen kind."
        )
    turned = torch.zeros(len(layers))
    active = [torch.zeros(layer.mlp.down_proj.in_features) for layer in layers]
    positions = 0
    watch = _Watch()
    with _watching(layers, watch):
        for chosen in by_length(rows.lengths, max_positions=max_positions):
            batch = Batch.of(
                take_rows(rows, chosen),
                pad_id=foundation.prompter.newline_id,
                vocab_size=foundation.prompter.vocab_size,
            )
            longest = batch.ids_RT.shape[1]
            watch.real_RT = torch.arange(longest)[None, :] < batch.length_R[:, None]
            foundation.hidden(batch.ids_RT.to(foundation.device))
            positions += int(watch.real_RT.sum())
            for depth in range(len(layers)):
                turned[depth] += watch.turned[depth]
                active[depth] += watch.active_F[depth]
    neurons = tuple(
        active[depth] / positions * layer.mlp.down_proj.weight.float().norm(dim=0).cpu()
        for depth, layer in enumerate(layers)
    )
    return Importance(layers=tuple((turned / positions).tolist()), neurons=neurons)


class _Watch:
    """What the hooks leave behind of one pass: sums over real positions."""

    real_RT: Tensor

    def __init__(self) -> None:
        self.turned: dict[int, Tensor] = {}
        self.active_F: dict[int, Tensor] = {}


@contextmanager
def _watching(layers: Iterable[Any], watch: _Watch) -> Iterator[None]:
    def of_layer(depth: int) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before_RTD = args[0] if args else kwargs["hidden_states"]
            after_RTD = output[0] if isinstance(output, tuple) else output
            cosine_RT = F.cosine_similarity(before_RTD.float(), after_RTD.float(), dim=-1).cpu()
            watch.turned[depth] = (1 - cosine_RT)[watch.real_RT].sum()

        return hook

    def of_neurons(depth: int) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            watch.active_F[depth] = args[0].float().abs().cpu()[watch.real_RT].sum(dim=0)

        return hook

    handles = []
    for depth, layer in enumerate(layers):
        handles.append(layer.register_forward_hook(of_layer(depth), with_kwargs=True))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(of_neurons(depth)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prune(
    foundation: Foundation,
    importance: Importance,
    *,
    num_layers: int | None = None,
    intermediate_size: int | None = None,
) -> Foundation:
    """A smaller foundation that starts from the parts of this one that count most.

    Args:
        foundation: left as it is.
        importance: from `measure_importance` of the same foundation.
        num_layers: layers to keep; all when left out.
        intermediate_size: MLP neurons to keep in every layer; all when left out. Multiples of 8
            suit the hardware.

    Returns:
        A new foundation with its own heads and item table; its decoder has a stock configuration.

    Raises:
        ValueError: a size is not between 1 and what there is.
    """
    config = copy.deepcopy(foundation.decoder.config)
    depth, width = config.num_hidden_layers, config.intermediate_size
    num_layers = depth if num_layers is None else num_layers
    intermediate_size = width if intermediate_size is None else intermediate_size
    for name, asked, there in (
        ("num_layers", num_layers, depth),
        ("intermediate_size", intermediate_size, width),
    ):
        if not 1 <= asked <= there:
            raise ValueError(f"{name}={asked} must be between 1 and {there}.")
    kept_layers = sorted(np.argsort(importance.layers)[::-1][:num_layers].tolist())
    config.num_hidden_layers, config.intermediate_size = num_layers, intermediate_size
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept_layers]
    decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    decoder.load_state_dict(_pruned_state(foundation, importance, kept_layers, intermediate_size))
    decoder.tie_weights()
    small = Foundation(
        decoder,
        prompter=foundation.prompter,
        config=foundation.settings,
        item_ids=foundation.item_ids,
        item_pieces=foundation.item_pieces,
    )
    heads = {k: v for k, v in foundation.state_dict().items() if not k.startswith("decoder.")}
    small.load_state_dict(heads, strict=False)
    small = small.to(foundation.device).eval()
    small.refresh_readings()  # The table holds what the larger model read.
    return small


def _pruned_state(
    foundation: Foundation, importance: Importance, kept_layers: list[int], intermediate_size: int
) -> dict[str, Tensor]:
    state = {}
    for name, tensor in foundation.decoder.state_dict().items():
        if not name.startswith("model.layers."):
            state[name] = tensor
            continue
        depth_text, rest = name.removeprefix("model.layers.").split(".", 1)
        depth = int(depth_text)
        if depth not in kept_layers:
            continue
        kept_F = importance.neurons[depth].topk(intermediate_size).indices.sort().values
        if rest.startswith(("mlp.gate_proj", "mlp.up_proj")):
            tensor = tensor[kept_F]
        elif rest == "mlp.down_proj.weight":
            tensor = tensor[:, kept_F]
        state[f"model.layers.{kept_layers.index(depth)}.{rest}"] = tensor
    return state
