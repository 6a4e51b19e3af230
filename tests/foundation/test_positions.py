"""Prompts longer than the trained ones."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)

from foundation import Foundation
from foundation.batches import take_rows
from foundation.positions import reaches, scale_positions, trained_positions
from foundation.prefix_cache import PrefixCache
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


WINDOW = 24
QWEN3 = {**SMALL, "use_sliding_window": True, "sliding_window": WINDOW}


def logits_of(decoder: Any, ids_T: torch.Tensor | None = None) -> torch.Tensor:
    ids_RT = (torch.arange(40) if ids_T is None else ids_T)[None]
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
        Qwen3Config(**QWEN3, max_window_layers=0),
        MistralConfig(**SMALL, sliding_window=WINDOW),
        Gemma2Config(
            **SMALL,
            sliding_window=WINDOW,
            layer_types=["sliding_attention"] * 2,
            query_pre_attn_scalar=8,
        ),
        Gemma3TextConfig(
            **SMALL,
            sliding_window=WINDOW,
            layer_types=["sliding_attention"] * 2,
            query_pre_attn_scalar=8,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_within_a_window_prompts_of_any_length_are_read_as_they_are(
    config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(config)
    plain = logits_of(decoder)
    with caplog.at_level(logging.WARNING, logger="foundation.positions"):
        scale_positions(decoder, prompt_tokens=200)
    assert not caplog.records
    assert reaches(decoder, 200)
    assert not reaches(decoder, 201)
    torch.testing.assert_close(logits_of(decoder), plain, rtol=0, atol=0)

    # The end of a long one is read as that end alone: nothing lies further back than two windows,
    # and no distance is one that training had not met.
    ids_T = torch.arange(200) * 7 % 50
    reach = 2 * (WINDOW - 1) + 1
    long = logits_of(decoder, ids_T)
    torch.testing.assert_close(
        long[:, -1], logits_of(decoder, ids_T[-reach:])[:, -1], rtol=0, atol=1e-5
    )
    other_T = ids_T.clone()
    other_T[-reach] = (ids_T[-reach] + 1) % 50
    assert (logits_of(decoder, other_T)[:, -1] - long[:, -1]).abs().max() > 1e-7

    decoder.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(stock, ids_T), long, rtol=0, atol=0)
    assert reaches(stock, 200)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**QWEN3, max_window_layers=1),
        MistralConfig(**{**SMALL, "sliding_window": 65}),
        MistralConfig(**SMALL, sliding_window=None),
    ],
    ids=["a layer without", "wider than training", "none"],
)
def test_what_sees_further_than_it_was_trained_is_scaled(config: Any) -> None:
    decoder = AutoModelForCausalLM.from_config(config)
    scale_positions(decoder, prompt_tokens=128)
    assert decoder.config.rope_parameters["factor"] == 3


def test_a_family_that_rotates_a_part_of_each_head_goes_on_doing_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(GlmConfig(**SMALL, pad_token_id=0))
    plain, rotated = logits_of(decoder), decoder.model.rotary_emb.inv_freq.shape
    scale_positions(decoder, prompt_tokens=160)
    assert decoder.model.rotary_emb.inv_freq.shape == rotated
    scaled = logits_of(decoder)
    decoder.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(stock), scaled, rtol=0, atol=0)
    scale_positions(decoder, prompt_tokens=64)
    torch.testing.assert_close(logits_of(decoder), plain, rtol=0, atol=0)


def test_a_family_that_knows_no_yarn_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(Phi3Config(**SMALL, pad_token_id=0))
    plain = logits_of(decoder)
    with pytest.raises(BadInput, match=r"=160 is beyond the 64 positions .* knows no YaRN"):
        scale_positions(decoder, prompt_tokens=160)
    torch.testing.assert_close(logits_of(decoder), plain, rtol=0, atol=0)
    decoder.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(stock), plain, rtol=0, atol=0)
    assert trained_positions(decoder) == 64


LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
@pytest.mark.parametrize("declared", [16, 64])
def test_scaling_of_the_checkpoint_is_kept_as_far_as_it_reaches(
    rope: dict[str, Any], declared: int
) -> None:
    torch.manual_seed(0)
    own = {**rope, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    config = LlamaConfig(**{**SMALL, "max_position_embeddings": declared}, rope_parameters=own)
    decoder = AutoModelForCausalLM.from_config(config)
    plain, told = logits_of(decoder), dict(decoder.config.rope_parameters)
    longest = max(declared, int(16 * rope["factor"]))
    assert trained_positions(decoder) == longest
    for prompt_tokens in (longest, 10):
        scale_positions(decoder, prompt_tokens=prompt_tokens)
        assert decoder.config.rope_parameters == told
        assert decoder.config.max_position_embeddings == declared
        torch.testing.assert_close(logits_of(decoder), plain, rtol=0, atol=0)
    with pytest.raises(BadInput, match=f"=200 is beyond the {longest} positions"):
        scale_positions(decoder, prompt_tokens=200)


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
    with pytest.raises(BadInput, match=r"max_prompt_tokens=200 is beyond the \d+ positions"):
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


def test_a_model_with_a_window_reads_longer_prompts_and_the_old_ones_as_ever(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot", window_tokens=64)
    log = books["slot"].interactions
    before = foundation.prompter.book(log).prefixes(split.test)
    vectors = foundation.embed_users(before)
    foundation.set_prompt_budget(384)
    np.testing.assert_array_equal(foundation.embed_users(before), vectors)
    after = foundation.prompter.book(log).prefixes(split.test)
    assert after.lengths.max() > 192
    foundation.save_pretrained(tmp_path / "model")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    assert loaded.settings.window_tokens == 64
    assert loaded.decoder.config.rope_parameters["rope_type"] == "default"
    np.testing.assert_array_equal(loaded.embed_users(after), foundation.embed_users(after))


def test_a_window_that_would_not_be_trained_or_is_a_checkpoints_own_is_refused(
    make: Any, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"window_tokens=193 .* max_prompt_tokens=192"):
        make("slot", window_tokens=193)
    with pytest.raises(BadInput, match="window_tokens=64 is for decoders built from a size"):
        make("slot", window_tokens=64, model=tmp_path)


def test_a_prefix_beyond_the_window_is_read_on_from_the_cache_as_from_its_start(
    make: Any, books: dict[str, PromptBook], split: Split
) -> None:
    foundation = make("slot", window_tokens=64)
    foundation.set_prompt_budget(384)
    rows = foundation.prompter.book(books["slot"].interactions).prefixes(split.test)
    whole = take_rows(rows, np.array([int(np.argmax(rows.lengths))]))
    length = len(whole.ids) - 40
    offsets = np.array([0, length])
    beginning = replace(whole, ids=whole.ids[:length], row_offsets=offsets)
    cache = PrefixCache()
    cache.read(foundation, beginning)
    read_on = cache.read(foundation, whole)
    assert cache.extensions == 1
    items = np.arange(5)
    np.testing.assert_allclose(
        foundation.score(read_on, items), foundation.score(whole, items), atol=1e-5
    )
    np.testing.assert_allclose(read_on.vector_V, foundation.embed_users(whole)[0], atol=1e-5)


@pytest.mark.parametrize("window_tokens", [None, 64])
def test_candidates_are_scored_beside_each_other_as_one_by_one(
    make: Any, books: dict[str, PromptBook], split: Split, window_tokens: int | None
) -> None:
    foundation = make("slot", window_tokens=window_tokens)
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
