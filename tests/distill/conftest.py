"""A small job market, and a tiny teacher of it in which every part counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from foundation import Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.rows import Rows
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import Split, leave_one_out

FoundationMaker = Callable[..., Foundation]


@pytest.fixture(scope="session")
def market_split() -> tuple[PromptBook, Split]:
    log = job_market(num_members=60, num_jobs=50, num_impressions=600).interactions
    split = leave_one_out(log, surface="jobs")
    config = PrompterConfig(
        vocab_size=700,
        max_prompt_tokens=192,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    return PromptBook(Prompter.fit(log, split.train, TASKS, config=config), log), split


@pytest.fixture(scope="session")
def book(market_split: tuple[PromptBook, Split]) -> PromptBook:
    return market_split[0]


@pytest.fixture(scope="session")
def split(market_split: tuple[PromptBook, Split]) -> Split:
    return market_split[1]


@pytest.fixture(scope="session")
def rows(book: PromptBook, split: Split) -> Rows:
    """Calibration prompts."""
    windows = book.windows(split.train, seed=0, epoch=0)
    return book.assemble(windows[np.arange(12)], seed=0, epoch=0)


@pytest.fixture(scope="session")
def text_book(book: PromptBook, split: Split) -> PromptBook:
    """The same log with items in words."""
    config = PrompterConfig(
        form="text",
        vocab_size=700,
        max_prompt_tokens=256,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    log = book.interactions
    return PromptBook(Prompter.fit(log, split.train, TASKS, config=config), log)


def counting(made: Foundation, *, seed: int) -> Foundation:
    """The same model with heads in which every part counts."""
    torch.manual_seed(seed + 100)
    for layer in (made.items.project_reading, made.person_head, made.item_head):
        nn.init.normal_(layer.weight, std=0.2)
    if made.items.residual_ID is not None:
        nn.init.normal_(made.items.residual_ID, std=0.2)
    made.refresh_readings()
    return made.eval()


@pytest.fixture(scope="session")
def make(book: PromptBook, split: Split) -> FoundationMaker:
    def foundation(
        *, seed: int = 0, size: str = "tiny", vector_dim: int = 16, of: PromptBook = book
    ) -> Foundation:
        config = FoundationConfig(vector_dim=vector_dim, dropout=0.0, instruction_noise=0.0)
        made = Foundation.create(of.prompter, of, split.train, size=size, config=config, seed=seed)
        return counting(made, seed=seed)

    return foundation


# What each family has that the others lack.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True, "attention_bias": True},
    "llama": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "mistral": {"tie_word_embeddings": False, "sliding_window": 48},
    "qwen2": {"tie_word_embeddings": True},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {
        "tie_word_embeddings": True,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 12,
        "sliding_window": 48,
    },
    "gemma3_text": {"tie_word_embeddings": True, "query_pre_attn_scalar": 12, "sliding_window": 48},
    # Of these no rung can be made.
    "granite": {"tie_word_embeddings": True, "logits_scaling": 8.0, "embedding_multiplier": 2.0},
    "cohere": {"tie_word_embeddings": True, "logit_scale": 0.0625},
    "phi": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="session")
def of_family(
    book: PromptBook, text_book: PromptBook, split: Split, tmp_path_factory: Any
) -> FoundationMaker:
    """A tiny random model of a decoder family, in slots or in text; every weight counts."""

    def foundation(family: str, form: str = "slot", *, seed: int = 0) -> Foundation:
        book_of = {"slot": book, "text": text_book}[form]
        config = AutoConfig.for_model(
            family,
            vocab_size=book_of.prompter.vocab_size + 3,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            initializer_range=0.2,
            pad_token_id=0,
            **FAMILIES[family],
        )
        torch.manual_seed(seed)
        decoder = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in decoder.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    weight.add_(0.2 * torch.randn_like(weight))
        folder: Path = tmp_path_factory.mktemp(family)
        decoder.save_pretrained(folder)
        made = Foundation.create(
            book_of.prompter,
            book_of,
            split.train,
            model=folder,
            config=FoundationConfig(vector_dim=16, dropout=0.0),
            seed=seed,
        )
        return counting(made, seed=seed)

    return foundation
