"""What a foundation is, beside its decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from foundation.calibration import Calibration

SlotPart = Literal["reading", "bag", "encoder", "residual"]

_MAX_WIDTH = 1 << 16
"""Numbers that a vector may have: as many as an index takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderRecord:
    """Which encoder made a foundation's vectors; saved with it.

    Args:
        path: the encoder's folder; of a saved foundation its name alone, since that is published.
        sha256: of its configuration, tokenizer and weights.
        dim: W, width of its vectors.
    """

    # Wherever it lies, it is the same encoder, and the model the same model.
    path: str = field(compare=False, repr=False)
    sha256: str
    dim: int

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= _MAX_WIDTH:
            raise ValueError(f"TextEncoderRecord.dim={self.dim} must be in [1, {_MAX_WIDTH}].")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundationConfig:
    """What a foundation is, beside its decoder.

    Args:
        vector_dim: width of person and item vectors; fixed for a whole ladder, so that every rung
            can serve the same index layout.
        vector_widths: narrower widths, rising, at which the first numbers of a vector retrieve by
            themselves: the retrieval loss is the mean over them and `vector_dim`. Empty trains
            `vector_dim` alone.
        slot_parts: what an item's slot is the sum of: the decoder's ``reading`` of its text, the
            ``bag`` of its tokens, the vector of a text ``encoder``, and a learned ``residual``.
        half_exposure: training events at which half of an item's residual counts. The default is
            as good as less shrinkage on a dense log and nearly as good as no residual on a sparse.
        residual_dropout: probability that an item's whole residual is left out of a training step,
            so that its text alone learns to stand for it, as a new item's must. It cost more than
            it brought wherever it was measured.
        instruction_noise: probability that an item's text is told with words of a task's
            instruction, or with a label, among it in a training step, so that an item that says
            them wins nothing: they stand in every prompt, and every person is near them.
        text_encoder: the encoder behind the part ``encoder``; `Foundation.create` fills it in.
        window_tokens: positions of a prompt that each position attends to, itself included, in
            every layer of a decoder built from a size; None for all. What is longer than the
            trained prompts is then read as well as they are. Half of `max_prompt_tokens` lost
            nothing on films; much less than the profile's length lost a third on a job market,
            since what is out of sight reaches the end from layer to layer alone.
        dropout: probability of zeroing an input coordinate in training.
        rank_weight: `w` of the ranking formula, per task, fitted on validation.
        calibration: of action probabilities, per task, fitted on validation.
        pretrained: whether the decoder came from a checkpoint, so that what it knows is to be kept:
            its embeddings and norms learn no faster than its matrices. `Foundation.create` sets it.
        weights: what the layers' weights are rounded to; `foundation.int8.to_int8` and
            `foundation.few_bits.to_grid` set it.
    """

    vector_dim: int = 128
    vector_widths: tuple[int, ...] = ()
    slot_parts: tuple[SlotPart, ...] = ("reading", "bag", "residual")
    half_exposure: float = 30.0
    residual_dropout: float = 0.0
    instruction_noise: float = 0.1
    text_encoder: TextEncoderRecord | None = None
    window_tokens: int | None = None
    dropout: float = 0.1
    rank_weight: tuple[float, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    pretrained: bool = False
    weights: Literal["float32", "int8", "fp8", "int4"] = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_weight", tuple(self.rank_weight))
        object.__setattr__(self, "vector_widths", tuple(self.vector_widths))
        # As JSON has them: a foundation's folder keeps its config there.
        told = tuple(Calibration(**c) if isinstance(c, Mapping) else c for c in self.calibration)
        object.__setattr__(self, "calibration", told)
        object.__setattr__(self, "slot_parts", tuple(self.slot_parts))
        if isinstance(self.text_encoder, Mapping):
            object.__setattr__(self, "text_encoder", TextEncoderRecord(**self.text_encoder))
        strange = [part for part in self.slot_parts if part not in get_args(SlotPart)]
        if strange or not self.slot_parts or len(set(self.slot_parts)) < len(self.slot_parts):
            raise ValueError(
                f"FoundationConfig.slot_parts={self.slot_parts!r} must be some of "
                f"{', '.join(get_args(SlotPart))}, each once."
            )
        if self.text_encoder is not None and "encoder" not in self.slot_parts:
            raise ValueError(
                f"FoundationConfig.slot_parts={self.slot_parts!r} leaves out the text encoder; add "
                "'encoder', or give no encoder."
            )
        if self.weights not in ("float32", "int8", "fp8", "int4"):
            raise ValueError(
                f"FoundationConfig.weights={self.weights!r} must be float32, int8, fp8 or int4."
            )
        if self.window_tokens is not None and self.window_tokens < 1:
            raise ValueError(
                f"FoundationConfig.window_tokens={self.window_tokens} must be at least 1; None "
                "attends to everything."
            )
        if not 1 <= self.vector_dim <= _MAX_WIDTH:
            raise ValueError(
                f"FoundationConfig.vector_dim={self.vector_dim} must be in [1, {_MAX_WIDTH}]."
            )
        given = self.vector_widths
        if given and (
            sorted(set(given)) != list(given) or given[0] < 1 or given[-1] > self.vector_dim
        ):
            raise ValueError(
                f"FoundationConfig.vector_widths={given} must rise, from 1 at least to "
                f"vector_dim={self.vector_dim} at most."
            )
        if not self.half_exposure > 0:
            raise ValueError(
                f"FoundationConfig.half_exposure={self.half_exposure} must be above 0; make it "
                "small to let residuals count at once."
            )
        for name in ("dropout", "residual_dropout", "instruction_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"FoundationConfig.{name}={getattr(self, name)} must be in [0, 1)."
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width at which vectors retrieve, rising; the last is `vector_dim`."""
        return tuple(dict.fromkeys((*self.vector_widths, self.vector_dim)))
