"""How a decoder computes while it trains: its attention, what it keeps, whether it is compiled.

All of it is undone when training ends: what is saved and served is the decoder as it was.
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from foundation import packed_attention

if TYPE_CHECKING:
    from foundation.training import FitConfig

logger = logging.getLogger(__name__)

FLASH = "flash_attention_2"
TAKES_PACKED_ROWS = {FLASH, packed_attention.NAME}
"""Attentions that end where a row does without a mask over all pairs of positions."""


def training_attention(decoder: Any, device_type: str, *, bf16: bool) -> str:
    """Name of the attention to train with, as transformers knows it; said once in the log.

    On a GPU in half precision flash-attn where it is installed, else PyTorch's own flash kernel for
    packed rows where it knows all of the decoder's attention. Else what the decoder attends with
    anyway, PyTorch's SDPA.

    Args:
        decoder: a causal LM of transformers.
        device_type: ``cpu`` or ``cuda``.
        bf16: whether products are computed in bfloat16.
    """
    name = _attention_of(decoder)
    if device_type == "cuda" and bf16:
        if importlib.util.find_spec("flash_attn") is not None:
            name = FLASH
        elif packed_attention.can_attend(decoder):
            name = packed_attention.NAME
    _announce(name, device_type)
    return name


def padded_attention(decoder: Any) -> str:
    """Name of the attention for rows that are padded, or told apart by a mask.

    Kernels for packed rows find where a row ends by themselves and take no mask over pairs of
    positions: PyTorch's SDPA stands in for them. Others attend as they do anyway.

    Args:
        decoder: a causal LM of transformers.
    """
    name = _attention_of(decoder)
    return "sdpa" if name in TAKES_PACKED_ROWS else name


def _attention_of(decoder: Any) -> str:
    return str(decoder.config._attn_implementation)


@cache
def _announce(name: str, device_type: str) -> None:
    logger.info("attention: %s on %s", name, device_type)


@contextmanager
def attending(decoder: Any, name: str) -> Iterator[None]:
    """Use an attention by name for a while.

    Args:
        decoder: a causal LM of transformers.
        name: as `training_attention` gives it.
    """
    before = _attention_of(decoder)
    if name != before:
        decoder.set_attn_implementation(name)
    try:
        yield
    finally:
        if name != before:
            decoder.set_attn_implementation(before)


@contextmanager
def computing(decoder: Any, config: "FitConfig", *, attention: str) -> Iterator[None]:
    """Train with an attention, gradient checkpointing and compiled layers, as the config says.

    Args:
        decoder: a causal LM of transformers.
        config: which of them.
        attention: by name.
    """
    layers: list[nn.Module] = list(decoder.model.layers)
    if config.gradient_checkpointing:
        _checkpointing(decoder, on=True)
    if config.compile:
        for layer in layers:
            # Layer by layer: one graph serves them all, and the rest of the model may look at data.
            layer.compile(dynamic=True)
    try:
        with attending(decoder, attention):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        if config.gradient_checkpointing:
            _checkpointing(decoder, on=False)


def _checkpointing(decoder: Any, *, on: bool) -> None:
    # transformers calls it gradient checkpointing up to 5.17, activation checkpointing after.
    kind = "activation" if hasattr(decoder, "activation_checkpointing_enable") else "gradient"
    if on:
        options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(decoder, f"{kind}_checkpointing_enable")(**options)
    else:
        getattr(decoder, f"{kind}_checkpointing_disable")()
