"""What a teacher says of a training batch: asked of a model as it goes, or read from a file.

Legend: M action targets, L label words, K next-item pairs, N text positions, Y items of slates,
R rows, T positions, D hidden width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from distill.losses import Classes, TopClasses, top_classes
from distill.teaching import Role, TeacherConfig
from foundation import Foundation
from foundation.computing import attending, training_attention
from foundation.objective import READ_INPUTS, StepReading, read_step


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Taught:
    """What a teacher says of a batch; None or nothing where it was not asked.

    Attributes:
        label_ML: float log-probabilities of the label words, −inf outside of the task's.
        candidates: its retrieval softmax over the items of the step, at each of K pairs.
        vocabulary: its softmax over the next token, at each of N text positions.
        hidden: its states after each watched layer at the K pairs' positions, [K, D] each.
        attention: its attention outputs in those layers, [K, D] each.
        slate_Y: float, its score of each co-shown item, by its role.
    """

    label_ML: Tensor | None = None
    candidates: Classes | TopClasses | None = None
    vocabulary: Classes | TopClasses | None = None
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    slate_Y: Tensor | None = None


class Signal(Protocol):
    """A source of what a teacher says."""

    def teach(self, inputs: Mapping[str, Tensor], config: TeacherConfig) -> Taught:
        """What it says of a batch of the training plan, without gradient.

        Args:
            inputs: the batch.
            config: what is asked.

        Raises:
            ValueError: it cannot say what is asked.
        """


class LiveTeacher:
    """A model that is asked about every batch.

    Args:
        foundation: only read.
    """

    def __init__(self, foundation: Foundation) -> None:
        self.foundation = foundation.eval()
        self._catalogue_IV: Tensor | None = None

    @torch.no_grad()
    def teach(self, inputs: Mapping[str, Tensor], config: TeacherConfig) -> Taught:
        """See `Signal.teach`."""
        teacher = self.foundation
        wants_layers = config.lesson("hidden") or config.lesson("attention")
        layers = tuple(range(len(teacher.decoder.model.layers))) if wants_layers else ()
        device = teacher.device.type
        attention = teacher.decoder.config._attn_implementation
        if not inputs["question_RT"].numel():
            # As its student attends: rows may be packed. Questions need a mask, and are not.
            attention = training_attention(
                teacher.decoder, device, bf16=torch.is_autocast_enabled(device)
            )
        with attending(teacher.decoder, attention), watching(teacher.decoder, layers) as seen:
            # A teacher is not learning: its table holds every reading it needs.
            asked = {name: inputs[name] for name in READ_INPUTS}
            asked["reread_items"] = inputs["reread_items"][:0]
            is_over_all = not len(inputs["negatives"])
            if is_over_all:
                # Its vectors of the catalogue never change: here any one item will do.
                asked |= {
                    "next_item_K": inputs["next_item_K"][:0],
                    "negatives": inputs["reread_items"].new_zeros(1),
                }
                asked["hard_negatives"] = inputs["hard_negatives"][:0]
            reading = read_step(teacher, **asked)
            item_CV = self._catalogue() if is_over_all else reading.item_CV
        at_K = inputs["next_position_K"]
        return Taught(
            label_ML=teacher.action_log_probs(reading.arrow_MD, inputs["task_M"])
            if config.lesson("labels")
            else None,
            candidates=self._classes(
                "candidates", Classes(at_NV=reading.person_KV, class_CV=item_CV), config
            ),
            vocabulary=self._classes("vocabulary", vocabulary(teacher, reading), config),
            hidden=seen.at(at_K, "hidden") if config.lesson("hidden") else (),
            attention=seen.at(at_K, "attention") if config.lesson("attention") else (),
            slate_Y=role_score(teacher, reading.shown_YD, inputs["shown_task_Y"], config.role)
            if config.lesson("slates")
            else None,
        )

    def _catalogue(self) -> Tensor:
        if self._catalogue_IV is None:
            teacher = self.foundation
            items_I = torch.arange(teacher.num_items, device=teacher.device)
            self._catalogue_IV = teacher.item_vectors(teacher.slots(items_I))
        return self._catalogue_IV

    def _classes(
        self, subject: Any, said: Classes, config: TeacherConfig
    ) -> Classes | TopClasses | None:
        lesson = config.lesson(subject)
        if lesson is None:
            return None
        if lesson.top is None:
            return said
        return top_classes(said, lesson.top, temperature=config.temperature)


def role_score(foundation: Foundation, shown_YD: Tensor, task_Y: Tensor, role: Role) -> Tensor:
    """What a model says of co-shown items, float32 [Y], in nats.

    Args:
        foundation: that read them.
        shown_YD: hidden states at their arrows.
        task_Y: int64, the task of each.
        role: ``policy`` or ``click``.
    """
    if role == "policy":
        return foundation.log_policy(shown_YD, task_Y)
    return foundation.log_positive(shown_YD, task_Y)


def candidates(reading: StepReading) -> Classes:
    """The retrieval softmax of a reading, over the items of the step."""
    return Classes(at_NV=reading.person_KV, class_CV=reading.item_CV)


def vocabulary(foundation: Foundation, reading: StepReading, num: int | None = None) -> Classes:
    """The softmax over the next token of a reading.

    Args:
        foundation: that read it.
        reading: of a batch.
        num: of its text positions, those of the rows come first; all when left out.
    """
    head: Tensor = foundation.decoder.get_output_embeddings().weight
    return Classes(at_NV=reading.text_ND[:num], class_CV=head)


class Seen:
    """What watched layers said in the pass over the rows of a batch."""

    def __init__(self) -> None:
        self.hidden: list[Tensor] = []
        self.attention: list[Tensor] = []
        self.is_rows = False

    def at(self, position_K: Tensor, what: str) -> tuple[Tensor, ...]:
        """States of each watched layer at some positions, [K, D] each.

        Args:
            position_K: int64, places in the flattened rows.
            what: ``hidden`` or ``attention``.
        """
        states: list[Tensor] = getattr(self, what)
        return tuple(rearrange(one, "r t d -> (r t) d")[position_K] for one in states)


@contextmanager
def watching(decoder: Any, layers: Sequence[int]) -> Iterator[Seen]:
    """Keep what some layers say while a batch is read; see `Seen`.

    Args:
        decoder: a causal LM of transformers.
        layers: which; none costs nothing.
    """
    seen = Seen()

    def begin(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        # Items are read alone in passes of their own; the rows alone say where they are.
        seen.is_rows = kwargs.get("position_ids") is not None

    def keep(into: list[Tensor]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if seen.is_rows:
                into.append(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = []
    if layers:
        handles.append(decoder.model.register_forward_pre_hook(begin, with_kwargs=True))
    for number in layers:
        layer = decoder.model.layers[number]
        handles.append(layer.register_forward_hook(keep(seen.hidden)))
        handles.append(layer.self_attn.register_forward_hook(keep(seen.attention)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
