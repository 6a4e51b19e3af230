"""Decoder shapes built here, for those who bring no checkpoint: Qwen3-type, tied embeddings.

    from foundation.sizes import decoder_config
    config = decoder_config("small", vocab_size=4096)
"""

from transformers import Qwen3Config

# (layers, hidden width, MLP width, attention heads, key-value heads). Head width is hidden / heads.
# `tiny` is for tests; `mini` and `small` train in minutes on two CPU cores; `large` is about 100 M parameters.
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (2, 32, 96, 2, 1),
    "mini": (3, 64, 192, 2, 2),
    "small": (3, 128, 384, 4, 4),
    "base": (8, 384, 1152, 6, 6),
    "large": (12, 768, 2304, 12, 4),
}


def decoder_config(size: str, *, vocab_size: int, max_positions: int = 4096) -> Qwen3Config:
    """The stock configuration of a decoder built from a size name.

    Args:
        size: a key of `SHAPES`.
        vocab_size: rows of the token embedding.
        max_positions: longest sequence the rotary positions are declared for, in tokens.

    Returns:
        A `Qwen3Config` that stock transformers loads.

    Raises:
        ValueError: the size is unknown.

    Example:
        >>> decoder_config("small", vocab_size=4096).hidden_size
        128
    """
    if size not in SHAPES:
        raise ValueError(f"size={size!r} is unknown; choose one of {', '.join(SHAPES)}.")
    layers, hidden, mlp, heads, kv_heads = SHAPES[size]
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


def body_parameters(decoder_parameters: int, vocab_size: int, hidden: int, *, tied: bool) -> int:
    """Parameters of the decoder without its token embedding and output head.

    Ladders and utilisation count the body: the embedding grows with the vocabulary, not with what
    the model can think.
    """
    return decoder_parameters - vocab_size * hidden * (1 if tied else 2)
