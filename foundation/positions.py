"""Positions beyond those that a model was trained at: stretched in training, watched in use.

Rotary positions are numbers, not rows of a table: nothing breaks when a prompt is longer than any
that was trained on, but distances turn up that attention has never seen. So in training the
positions of every batch may be stretched by a random factor, from 1 to `stretch`: distances up to
so many times the trained length are met, and the weights stay those of a stock checkpoint, with
stock positions when it is used.

Source: ours; as in randomised positional encodings (Ruoss et al., arXiv 2305.16843), but evenly
stretched, and by no factor at all in use.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from promptify.validation import BadInput

logger = logging.getLogger(__name__)


class PositionRange:
    """Sits in front of a decoder's rotary positions.

    Args:
        stretch: largest factor in training; 1 for none.
        trained_positions: the longest prompt in training; None where it is not known. Reading
            beyond it is said once.
    """

    def __init__(self, *, stretch: float, trained_positions: int | None) -> None:
        self.stretch = stretch
        self.trained_positions = trained_positions
        self.has_warned = False

    def install(self, decoder: Any) -> None:
        """Watch the positions of a decoder, in place of the range that did so before.

        Args:
            decoder: a causal LM of transformers.

        Raises:
            BadInput: positions are to be stretched, and the decoder's are not rotary.
        """
        rotary = getattr(decoder.model, "rotary_emb", None)
        if rotary is None:
            if self.stretch > 1:
                raise BadInput(
                    f"FoundationConfig.position_stretch={self.stretch:g} needs rotary positions, "
                    f"which a {type(decoder).__name__} lacks; leave it at 1."
                )
            return
        # The hook looks the range up, so that a decoder has one at a time: also a copied decoder,
        # or one that two foundations share.
        if not hasattr(rotary, "position_range"):
            rotary.register_forward_pre_hook(_through_its_range, with_kwargs=True)
        rotary.position_range = self

    def seen(self, position_ids: Tensor, *, training: bool) -> Tensor:
        """Positions as the decoder shall see them.

        Args:
            position_ids: int64 [R, T].
            training: whether they may be stretched; otherwise they are watched.

        Returns:
            The same, or float32 [R, T].
        """
        if training:
            if self.stretch == 1:
                return position_ids
            factor: float = self.stretch ** torch.rand(()).item()
            return position_ids * factor
        trained = self.trained_positions
        if trained is not None and not self.has_warned and position_ids.shape[-1] > trained:
            longest = int(position_ids.max()) + 1  # Packed rows are long together, not each.
            if longest > trained:
                self.has_warned = True
                logger.warning(
                    "A prompt of %d positions, where this model was trained at %d%s: measure "
                    "before you rely on it, or lower max_prompt_tokens. Said once.",
                    longest,
                    trained,
                    f", stretched up to {self.stretch:g} times" if self.stretch > 1 else "",
                )
        return position_ids


def _through_its_range(
    rotary: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def seen(position_ids: Tensor) -> Tensor:
        told: Tensor = rotary.position_range.seen(position_ids, training=rotary.training)
        return told

    # Families call it as (hidden states, position_ids, …) or name the second.
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": seen(kwargs["position_ids"])}
    return (args[0], seen(args[1]), *args[2:]), kwargs
