"""Prompts longer than the trained ones."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from foundation import Foundation
from foundation.batches import take_rows
from foundation.positions import reaches, scale_positions, trained_positions
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def logits_of(decoder: Any) -> torch.Tensor:
    ids_RT = torch.arange(40)[None]
    with torch.no_grad():
        logits: torch.Tensor = decoder.eval()(ids_RT).logits
    return logits


def test_scaled_positions_are_those_of_the_stock_configuration_and_can_be_taken_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    plain = logits_of(decoder)
    assert trained_positions(decoder) == 64
    with caplog.at_level(logging.WARNING, logger="foundation.positions"):
        scale_positions(decoder, prompt_tokens=64)
        assert not caplog.records
        scale_positions(decoder, prompt_tokens=160)
    assert "160 tokens, where this model was trained at 64" in caplog.text
    scaled = logits_of(decoder)
    assert (scaled - plain).abs().max() > 1e-4
    assert trained_positions(decoder) == 64
    # Half as much again is left at the end.
    assert reaches(decoder, 240)
    assert not reaches(decoder, 241)

    decoder.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.config.rope_parameters["rope_type"] == "yarn"
    assert stock.config.rope_parameters["factor"] == 3.75
    torch.testing.assert_close(logits_of(stock), scaled, rtol=0, atol=0)

    # From there to another length and back, as if it had never been.
    scale_positions(stock, prompt_tokens=128)
    assert stock.config.rope_parameters["factor"] == 3
    scale_positions(stock, prompt_tokens=30)
    torch.testing.assert_close(logits_of(stock), plain, rtol=0, atol=0)
    assert trained_positions(stock) == 64


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=64),
        Gemma3TextConfig(**SMALL),
        LlamaConfig(
            **SMALL,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        ),
    ],
)
def test_positions_of_another_kind_are_left_alone_and_their_end_is_said(config: Any) -> None:
    decoder = AutoModelForCausalLM.from_config(config)
    scale_positions(decoder, prompt_tokens=64)
    with pytest.raises(BadInput, match=r"max_prompt_tokens=200 is beyond the 64 positions"):
        scale_positions(decoder, prompt_tokens=200)


def test_a_model_built_here_says_what_it_was_trained_at(make: Any, form: str) -> None:
    foundation = make(form)
    budget = foundation.prompter.config.max_prompt_tokens
    assert trained_positions(foundation.decoder) == budget


def test_a_longer_budget_is_served_saved_and_loaded(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot")
    log = books["slot"].interactions
    before = foundation.prompter.book(log).prefixes(split.test)
    vectors = foundation.embed_users(before)
    foundation.set_prompt_budget(384)
    after = foundation.prompter.book(log).prefixes(split.test)
    assert after.lengths.max() > before.lengths.max()
    assert after.num_dropped_events.sum() < before.num_dropped_events.sum()
    foundation.save_pretrained(tmp_path / "model")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    assert loaded.prompter.config.max_prompt_tokens == 384
    np.testing.assert_array_equal(loaded.embed_users(after), foundation.embed_users(after))
    # What it was trained at is another matter, and can be had again.
    assert trained_positions(loaded.decoder) == 192
    loaded.set_prompt_budget(192)
    np.testing.assert_array_equal(loaded.embed_users(before), vectors)
    with pytest.raises(BadInput, match="max_prompt_tokens=20"):
        loaded.set_prompt_budget(20)
    assert loaded.prompter.config.max_prompt_tokens == 192


def test_a_prompter_of_longer_prompts_scales_the_model_that_is_loaded_with_it(
    make: Any, tmp_path: Path
) -> None:
    foundation = make("slot")
    foundation.save_pretrained(tmp_path / "model")
    foundation.prompter.with_budget(384).save(tmp_path / "model" / "prompter")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    assert loaded.decoder.config.rope_parameters["factor"] == 3


def test_candidates_are_scored_beside_each_other_as_one_by_one(
    make: Any, books: dict[str, PromptBook], split: Split
) -> None:
    foundation = make("slot")
    foundation.set_prompt_budget(384)
    book = foundation.prompter.book(books["slot"].interactions)
    rows = book.prefixes(split.test, task=0)
    prefix = take_rows(rows, np.array([int(np.argmax(rows.lengths))]))
    assert len(prefix.ids) > 192
    items = np.arange(9)
    together = foundation.score(prefix, items)
    alone = np.concatenate([foundation.score(prefix, items[[i]]) for i in items])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # And as the plain path reads them: each in a prompt of its own, without a cache.
    ids = np.concatenate([prefix.ids, foundation.questions(items)[3]]).astype(np.int64)
    with torch.no_grad():
        hidden_1D = foundation.hidden(torch.from_numpy(ids)[None])[:, -1]
        plain = foundation.action_log_probs(hidden_1D, torch.zeros(1, dtype=torch.long))
    actions = foundation.prompter.task_label_index(0)
    np.testing.assert_allclose(together[3], plain[0, actions].numpy(), atol=1e-5)
