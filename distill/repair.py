"""Let what stays of a model do the work of what has gone: a least-squares repair, layer by layer.

The larger model and the smaller one read the same calibration prompts side by side. In every layer
that stays, the projections that write to the hidden state are fitted so that the smaller model's
state after them is the larger one's: what the neurons, heads and whole layers that went would have
added is added by those that stay, as far as they can tell. Later layers see what earlier ones make
of it once repaired. Where the hidden width shrinks, the projections that read it are fitted too:
what they read in coordinates that went is folded into those that stay. Last come the heads.

Gated MLPs: the map that is fitted is the last one, over the products of gate and input, so that
nothing about the gate needs to be linear. Grouped heads: it is the output projection over the heads
of the groups that stay. Families with a norm behind the projection (Gemma) are fitted to what the
larger model's projection says, in front of that norm.

Legend: N positions, B prompts of a batch, T positions of the longest, D hidden width of the larger
model, H that of the smaller.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from distill.kept import Kept, layer_rows
from distill.least_squares import LeastSquares, Repair
from foundation import Foundation
from foundation.batches import by_length, pad_pieces
from promptify.pieces import Pieces, offsets_of
from promptify.rows import Rows
from promptify.validation import BadInput

logger = logging.getLogger(__name__)

MAX_POSITIONS = 65536
"""Positions that a repair rests on, about: their states in both models are held at once."""
_POSITIONS_AT_ONCE = 4096


@torch.no_grad()
def repair(
    small: Foundation,
    foundation: Foundation,
    kept: Kept,
    rows: Rows,
    *,
    max_positions: int = MAX_POSITIONS,
    ridge: float = 1e-6,
) -> tuple[Repair, ...]:
    """Fit the smaller model's linear maps to what the larger one says, in place.

    Args:
        small: made from `foundation` by `pruning.keep`; changed.
        foundation: only read.
        kept: the parts that stayed.
        rows: calibration prompts. Where they have more positions than `max_positions`, those that
            are read are evenly spaced among them and fewer, which is logged: of 1,000 prompts of
            270 positions about 240. Importance rests on all of them.
        max_positions: of prompts, about; of items read alone, half as many at most. What a repair
            takes of time and of memory is in proportion to them.
        ridge: see `LeastSquares`.

    Returns:
        What each fit brought, in order.

    Raises:
        BadInput: there are no rows.
    """
    if len(rows) == 0:
        raise BadInput("rows holds no calibration prompt; give it a few hundred.")
    work = _Repair(small.eval(), foundation.eval(), kept, ridge)
    work.read(rows, max_positions)
    layers = list(kept.layers)
    for place in tqdm(range(len(layers)), desc="repair", leave=False, disable=len(layers) < 4):
        # The state that the next layer which stays would find; beyond the last one, the end.
        until = layers[place + 1] if place + 1 < len(layers) else len(work.big_layers)
        if place == 0:
            work.skip(0, layers[0])
        work.layer(place, until)
    work.heads()
    small.refresh_readings()
    work.items()
    return tuple(work.repairs)


@dataclass(slots=True)
class _Reading:
    """A batch on its way through both models, and what a layer is called with beside its states."""

    real_BT: Tensor
    big_BTD: Tensor
    small_BTH: Tensor
    calls: list[dict[str, Any]]
    kind: str


class _Repair:
    def __init__(self, small: Foundation, big: Foundation, kept: Kept, ridge: float) -> None:
        self.small, self.big, self.kept, self.ridge = small, big, kept, ridge
        self.big_layers = list(big.decoder.model.layers)
        self.hidden = kept.hidden.to(big.device)
        self.is_narrower = len(kept.hidden) < big.decoder.config.hidden_size
        self.readings: list[_Reading] = []
        self.repairs: list[Repair] = []

    def read(self, rows: Rows, max_positions: int) -> None:
        """Batches of prompts, of items' slots alone and of items' texts alone, up to layer 0."""
        prompts = Pieces(ids=rows.ids, offsets=rows.row_offsets)
        inline_slots_JD = self.big.inline_slots(rows)
        told = {"prompt": _sample(prompts, max_positions)}
        if len(told["prompt"]) < len(prompts):
            logger.info(
                "repair reads %d of %d calibration prompts: more are above %d positions",
                len(told["prompt"]),
                len(prompts),
                max_positions,
            )
        if self.big.uses_slots:
            slots = np.arange(self.big.num_items, dtype=np.int32) + self.big.prompter.vocab_size
            alone = Pieces(ids=slots, offsets=offsets_of(np.ones(len(slots), dtype=np.int64)))
            told["item"] = _sample(alone, max_positions // 4)
        if "reading" in self.big.settings.slot_parts:
            told["text"] = _sample(self.big.item_pieces, max_positions // 4)
        for kind, pieces in told.items():
            for chosen_B in by_length(pieces.lengths, max_positions=_POSITIONS_AT_ONCE):
                ids_BT, last_B = pad_pieces(pieces, chosen_B, pad_id=self.big.prompter.newline_id)
                real_BT = torch.arange(ids_BT.shape[1])[None, :] <= last_B[:, None]
                ids_BT = ids_BT.to(self.big.device)
                big_BTD = self.big.embed_ids(ids_BT, inline_slots_JD=inline_slots_JD)
                self.readings.append(
                    _Reading(
                        real_BT=real_BT.to(self.big.device),
                        big_BTD=big_BTD,
                        small_BTH=big_BTD[..., self.hidden],
                        calls=_calls(self.big.decoder.model, big_BTD),
                        kind=kind,
                    )
                )

    def skip(self, start: int, stop: int) -> None:
        """Take the larger model's states through layers that the smaller one lacks."""
        for reading in self.readings:
            for depth in range(start, stop):
                reading.big_BTD = self._run(self.big_layers[depth], reading.big_BTD, reading, depth)

    def layer(self, place: int, until: int) -> None:
        """Repair a layer, and take both models' states to the next one that stays."""
        depth = self.kept.layers[place]
        big, small = self.big_layers[depth], self.small.decoder.model.layers[place]
        name = f"model.layers.{place}"
        rows = {
            axis: kept.to(self.big.device)
            for axis, kept in layer_rows(self.big.decoder, self.kept, place).items()
        }
        has_norm_behind = hasattr(small, "pre_feedforward_layernorm")
        before_mlp = "pre_feedforward_layernorm" if has_norm_behind else "post_attention_layernorm"

        if self.is_narrower:
            for projection, axis in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "key")):
                self._fit(
                    f"{name}.self_attn.{projection}",
                    (
                        (
                            small.input_layernorm(r.small_BTH)[r.real_BT],
                            getattr(big.self_attn, projection)(big.input_layernorm(r.big_BTD))[
                                r.real_BT
                            ][:, rows[axis]],  # type: ignore[index]
                        )
                        for r in self.readings
                    ),
                )

        # Of the larger model: its state between attention and MLP, what both wrote, and where it
        # arrives.
        middle, written, arrived = [], [], []
        for r in self.readings:
            watched = (
                (getattr(big, before_mlp), "input"),
                (big.self_attn.o_proj, "output"),
                (big.mlp.down_proj, "output"),
            )
            with _capturing(*watched) as seen:
                state_BTD = self._run(big, r.big_BTD, r, depth)
            middle.append(seen[0])
            written.append((seen[1], seen[2]))
            for later in range(depth + 1, until):
                state_BTD = self._run(self.big_layers[later], state_BTD, r, later)
            arrived.append(state_BTD)

        def attended() -> Iterator[tuple[Tensor, Tensor]]:
            for r, middle_BTD, (wrote_BTD, _) in zip(self.readings, middle, written, strict=True):
                with _capturing((small.self_attn.o_proj, "input")) as seen:
                    self._run(small, r.small_BTH, r, depth)
                wanted_BTH = middle_BTD[..., self.hidden] - r.small_BTH
                if has_norm_behind:
                    wanted_BTH = wrote_BTD[..., self.hidden]
                yield seen[0][r.real_BT], wanted_BTH[r.real_BT]

        self._fit(f"{name}.self_attn.o_proj", attended())

        if self.is_narrower:
            mid_norm, big_norm = getattr(small, before_mlp), getattr(big, before_mlp)

            def read_by(projection: str) -> Iterator[tuple[Tensor, Tensor]]:
                for r, middle_BTD in zip(self.readings, middle, strict=True):
                    with _capturing((mid_norm, "output")) as seen:
                        self._run(small, r.small_BTH, r, depth)
                    wanted_BTF = getattr(big.mlp, projection)(big_norm(middle_BTD))
                    yield seen[0][r.real_BT], wanted_BTF[r.real_BT][:, rows["neurons"]]

            for projection in ("gate_proj", "up_proj"):
                self._fit(f"{name}.mlp.{projection}", read_by(projection))

        def moved() -> Iterator[tuple[Tensor, Tensor]]:
            for r, arrived_BTD, (_, wrote_BTD) in zip(self.readings, arrived, written, strict=True):
                watched = ((small.mlp.down_proj, "input"), (getattr(small, before_mlp), "input"))
                with _capturing(*watched) as seen:
                    self._run(small, r.small_BTH, r, depth)
                wanted_BTH = arrived_BTD[..., self.hidden] - seen[1]
                if has_norm_behind:
                    wanted_BTH = wrote_BTD[..., self.hidden]
                yield seen[0][r.real_BT], wanted_BTH[r.real_BT]

        self._fit(f"{name}.mlp.down_proj", moved())
        for r, arrived_BTD in zip(self.readings, arrived, strict=True):
            r.small_BTH = self._run(small, r.small_BTH, r, depth)
            r.big_BTD = arrived_BTD

    def heads(self) -> None:
        """Repair what reads the last norm, once every layer is done."""
        for r in self.readings:
            r.big_BTD = self.big.decoder.model.norm(r.big_BTD)
            r.small_BTH = self.small.decoder.model.norm(r.small_BTH)
        pairs = {
            kind: [
                (r.small_BTH[r.real_BT], r.big_BTD[r.real_BT])
                for r in self.readings
                if r.kind == kind
            ]
            for kind in ("prompt", "item")
        }
        self._fit(
            "person_head", ((near, self.big.person_head(far)) for near, far in pairs["prompt"])
        )
        if self.big.uses_slots:
            self._fit("item_head", ((n, self.big.item_head(far)) for n, far in pairs["item"]))
        texts = [r for r in self.readings if r.kind == "text"]
        if texts:
            project = self.big.items.project_reading
            self._fit("items.project_reading", (self._arrows(r, project) for r in texts))
        head = self.small.decoder.get_output_embeddings()
        if not self.small.decoder.config.tie_word_embeddings:
            self._output_head(head, pairs["prompt"])

    def _arrows(self, r: _Reading, project: nn.Linear) -> tuple[Tensor, Tensor]:
        last_B = r.real_BT.sum(dim=1) - 1
        row_B = torch.arange(len(last_B), device=last_B.device)
        return r.small_BTH[row_B, last_B], project(r.big_BTD[row_B, last_B])[:, self.hidden]

    def _output_head(self, head: nn.Linear, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Fit the larger model's last state by the smaller's, and read it with its own head.

        The same fit as that of every token's logit, without a sum as large as the vocabulary.
        """
        big = self.big.decoder.get_output_embeddings().weight
        width, hidden = big.shape[1], len(self.hidden)
        back = nn.Linear(hidden, width, bias=False, device=big.device)
        back.weight.zero_()
        back.weight[self.hidden, torch.arange(hidden, device=big.device)] = 1.0
        fit = LeastSquares(back, ridge=self.ridge)
        for near, far in pairs:
            fit.add(near, far)
        self.repairs.append(fit.solve("lm_head"))
        head.weight.copy_(big @ back.weight)

    def items(self) -> None:
        """Repair what makes and reads items outside of the decoder."""
        if "bag" in self.big.settings.slot_parts and self.is_narrower:
            bags = [f.bags(self.big.item_pieces) for f in (self.small, self.big)]
            near, far = (F.rms_norm(bag, bag.shape[-1:]) for bag in bags)
            wanted = self.big.items.project_bag(far)[:, self.hidden]
            self._fit("items.project_bag", [(near, wanted)])
        if not self.big.uses_slots:
            every = torch.arange(self.big.num_items, device=self.big.device)
            near, far = (f.slots(every) for f in (self.small, self.big))
            near = F.rms_norm(near, near.shape[-1:])
            self._fit("item_head", [(near, self.big.item_vectors(far))])

    def _fit(self, name: str, pairs: Any) -> None:
        inside = name.startswith("model.")
        owner: Any = self.small.decoder if inside else self.small
        fit = LeastSquares(owner.get_submodule(name), ridge=self.ridge)
        for inputs_NI, wanted_NO in pairs:
            fit.add(inputs_NI, wanted_NO)
        self.repairs.append(fit.solve(name))

    def _run(self, layer: Any, state: Tensor, reading: _Reading, depth: int) -> Tensor:
        out = layer(state, **reading.calls[depth])
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


def _sample(pieces: Pieces, max_positions: int) -> Pieces:
    """Pieces evenly spaced, so many that their positions come to about the most."""
    total = int(pieces.lengths.sum())
    if total <= max_positions:
        return pieces
    count = max(1, int(len(pieces) * max_positions / total))
    return pieces.take(np.linspace(0, len(pieces) - 1, count).astype(np.int64))


def _calls(model: Any, embeds_BTD: Tensor) -> list[dict[str, Any]]:
    """What each layer is called with beside the hidden states: positions, masks and so on."""
    calls: list[dict[str, Any]] = []

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in model.layers]
    try:
        model(inputs_embeds=embeds_BTD, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _capturing(*watched: tuple[Any, str]) -> Iterator[dict[int, Tensor]]:
    """The first input or the output of some modules, by their place in the list."""
    seen: dict[int, Tensor] = {}

    def keep_input(place: int) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            seen[place] = args[0]

        return hook

    def keep_output(place: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            seen[place] = output

        return hook

    handles = [
        module.register_forward_pre_hook(keep_input(place))
        if side == "input"
        else module.register_forward_hook(keep_output(place))
        for place, (module, side) in enumerate(watched)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
