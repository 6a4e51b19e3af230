"""Models of published shapes with random weights, over prepared prompts."""

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.scoring_ways import QWEN3_0_6B, TINY, Shape
from foundation import Foundation, FoundationConfig
from promptify.assembly import PromptBook

QWEN3_1_7B = replace(QWEN3_0_6B, width=2048, mlp=6144)
SHAPE_0_1B = Shape(layers=12, width=768, mlp=2304, heads=12, kv_heads=4, head_width=64)

SHAPES: dict[str, Shape] = {
    "0.1B": SHAPE_0_1B,
    "Qwen3-0.6B shape": QWEN3_0_6B,
    "Qwen3-1.7B shape": QWEN3_1_7B,
}
SMOKE_SHAPES: dict[str, Shape] = {"tiny": TINY}

# Positions that every shape here is declared for: 12k of prefix and a candidate fit.
_POSITIONS = 32768


def random_model(
    book: PromptBook, shape: Shape, *, device: torch.device, seed: int = 0
) -> Foundation:
    """A foundation in float32 that is ready to score; its vocabulary is at least the prompter's."""
    config: Any = shape.config()
    config.max_position_embeddings = _POSITIONS
    config.vocab_size = max(config.vocab_size, book.prompter.vocab_size)
    torch.manual_seed(seed)
    # Drawn where it will stand: a billion weights take long on a CPU.
    with device:
        decoder: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    foundation = Foundation(
        decoder,
        prompter=book.prompter,
        config=FoundationConfig(vector_dim=64),
        item_ids=book.interactions.item_ids,
        item_pieces=book.item_pieces,
    )
    return foundation.to(device).eval()


@torch.no_grad()
def in_both_precisions(foundation: Foundation) -> tuple[Foundation, Foundation]:
    """The same model in float32 and in bfloat16, with weights that both can hold.

    Buffers stay as they are: rotary frequencies rounded to bfloat16 would put the positions of a
    long prompt in the wrong places.

    Args:
        foundation: in float32; its weights are rounded.
    """
    for parameter in foundation.parameters():
        parameter.copy_(parameter.bfloat16().float())
    half = copy.deepcopy(foundation)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    return foundation, half
