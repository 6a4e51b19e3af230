"""Prompts longer than the trained ones: read as they are within a window, else scaled by YaRN.

Rotary positions are numbers and not rows of a table: nothing breaks beyond the trained length, but
attention meets distances that it has never seen, and more keys than it has ever shared itself
among. A decoder that was trained with a window in every layer (`FoundationConfig.window_tokens`, or
a checkpoint's own) meets neither, however long the prompt, and its positions stay as they are.

For any other there is YaRN: it slows down those rotations that had not come round within the
trained length and sharpens attention a little. That costs quality, of short prompts too; see
`benchmarks.context_length`. Both are part of the stock configuration, so that a checkpoint saved so
says so, and the same for every prompt, long or short: what is read beside each other, from a cache
or alone is read alike.

Source: sliding windows as in Mistral 7B (arXiv 2310.06825), YaRN (Peng et al., arXiv 2309.00071),
both as in transformers.
"""

import logging
from typing import Any

from promptify.validation import BadInput

logger = logging.getLogger(__name__)

# Scaled to its very end, the longest prompt lost .015 of NDCG@10 at twice the trained length; with
# half as much again .002, and shorter prompts nothing (validation, three seeds; docs/log.md).
_ROOM = 1.5

# What our scaling says beside the type.
_YARN = ("factor", "original_max_position_embeddings")

# Where a configuration says what was trained before our scaling: a checkpoint's own looks the same.
_MARK = "trained_positions"


def trained_positions(decoder: Any) -> int | None:
    """The longest sequence that a decoder was trained at, by its stock configuration.

    Args:
        decoder: a causal LM of transformers.

    Returns:
        Positions; None where the configuration does not say. Of a checkpoint whose positions were
        scaled by whoever made it (Llama 3.1), as far as that reaches. With a window in every layer,
        the longest that it has been set to read.
    """
    before_ours: int | None = getattr(decoder.config, _MARK, None)
    return longest_read(decoder) if before_ours is None else before_ours


def longest_read(decoder: Any) -> int | None:
    """Positions that a decoder reads as it is set now; None where its configuration does not say.

    Args:
        decoder: a causal LM of transformers.
    """
    declared: int | None = getattr(decoder.config, "max_position_embeddings", None)
    if declared is None:
        return None
    # Some configurations count their scaling into what they declare, some leave it to the factor.
    rope = _rope(decoder)
    original = rope.get("original_max_position_embeddings", declared)
    return max(declared, int(original * rope.get("factor", 1.0)))


def reaches(decoder: Any, prompt_tokens: int) -> bool:
    """Whether a decoder reads prompts of some length as it is, trained at or set to it."""
    longest = longest_read(decoder)
    return longest is None or prompt_tokens <= longest


def scale_positions(decoder: Any, *, prompt_tokens: int) -> None:
    """Set a decoder's positions for prompts of some length: YaRN where that is beyond its training.

    Within the trained length, and with a window in every layer, they are the checkpoint's own.

    Args:
        decoder: a causal LM of transformers; its configuration and rotary positions are changed in
            place, its weights stay.
        prompt_tokens: the longest prompt.

    Raises:
        BadInput: that is beyond its training, and its positions are not rotary or of a kind that
            YaRN does not scale.
    """
    trained, rope, config = trained_positions(decoder), _rope(decoder), decoder.config
    is_scaled = getattr(config, _MARK, None) is not None
    if trained is None or (prompt_tokens <= trained and not is_scaled):
        return
    if not is_scaled and _is_windowed(decoder, trained):
        # No distance beyond the window is ever met: all there is to say is that it may be read.
        config.max_position_embeddings = prompt_tokens
        return
    if not is_scaled and rope.get("rope_type") != "default":
        raise BadInput(
            f"max_prompt_tokens={prompt_tokens} is beyond the {trained} positions that this "
            f"{type(decoder).__name__} was trained at, and YaRN cannot scale its positions; lower "
            "it."
        )
    before = rope, config.max_position_embeddings, getattr(config, _MARK, None)
    # What else a family says stays, such as which share of a head is rotated.
    kept = {name: value for name, value in rope.items() if name not in _YARN}
    config.rope_parameters = {**kept, "rope_type": "default"}
    config.max_position_embeddings = trained
    setattr(config, _MARK, trained if prompt_tokens > trained else None)
    if prompt_tokens > trained:
        factor = _ROOM * prompt_tokens / trained
        config.max_position_embeddings = int(_ROOM * prompt_tokens)
        config.rope_parameters |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": trained,
        }
        try:
            config.validate_rope()
        except (KeyError, ValueError) as error:
            config.rope_parameters, config.max_position_embeddings, mark = before
            setattr(config, _MARK, mark)
            raise BadInput(
                f"max_prompt_tokens={prompt_tokens} is beyond the {trained} positions that this "
                f"{type(decoder).__name__} was trained at, and its family knows no YaRN ({error}); "
                "lower it."
            ) from error
        logger.warning(
            "Prompts of up to %d tokens, where this model was trained at %d: positions are scaled "
            "by YaRN, %.3g times, those of short prompts too. Measure before you rely on it.",
            prompt_tokens,
            trained,
            factor,
        )
    rotary = decoder.model.rotary_emb
    decoder.model.rotary_emb = type(rotary)(config).to(rotary.inv_freq.device)


def _is_windowed(decoder: Any, trained: int) -> bool:
    """Whether every layer attends within a window that fits in the trained length."""
    config, window = decoder.config, getattr(decoder.config, "sliding_window", None)
    # A configuration without types of layers means all of them.
    types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return window is not None and window <= trained and types == {"sliding_attention"}


def _rope(decoder: Any) -> dict[str, Any]:
    # Of a family whose kinds of layers differ, a table for each: no type of its own.
    return getattr(decoder.config, "rope_parameters", None) or {}
