"""Positions beyond the trained ones: stretched in training, watched in use."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from foundation import Foundation, FoundationConfig
from foundation.positions import PositionRange
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
}


def stretched_to(decoder: Any, factor: float) -> Any:
    """The same decoder with every position multiplied, by the library's own arithmetic."""
    other = copy.deepcopy(decoder)
    rotary = other.model.rotary_emb
    for name, buffer in rotary.named_buffers():
        if name.endswith("inv_freq"):
            buffer.mul_(factor)
    return other.eval()


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), Gemma3TextConfig(**SMALL)])
def test_training_reads_stretched_positions_and_use_the_stock_ones(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(config)
    stock = copy.deepcopy(decoder).eval()
    PositionRange(stretch=4.0, trained_positions=None).install(decoder)
    ids_RT = torch.randint(0, 50, (3, 12))
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.5))  # 4 to the half is 2
    decoder.train()
    torch.testing.assert_close(decoder(ids_RT).logits, stretched_to(stock, 2.0)(ids_RT).logits)
    decoder.eval()
    torch.testing.assert_close(decoder(ids_RT).logits, stock(ids_RT).logits, rtol=0, atol=0)


def test_factors_run_from_one_to_the_stretch_evenly_in_the_logarithm() -> None:
    torch.manual_seed(0)
    positions = torch.arange(1, 9)[None]
    range_ = PositionRange(stretch=4.0, trained_positions=None)
    factors = np.array([float(range_.seen(positions, training=True)[0, 0]) for _ in range(400)])
    assert factors.min() >= 1
    assert factors.max() <= 4
    assert abs(np.mean(factors < 2) - 0.5) < 0.08
    plain = PositionRange(stretch=1.0, trained_positions=None)
    assert plain.seen(positions, training=True) is positions


def test_a_decoder_has_one_range_however_often_it_is_built_upon_or_copied() -> None:
    decoder = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    for stretch in (2.0, 3.0):
        PositionRange(stretch=stretch, trained_positions=None).install(decoder)
    copied = copy.deepcopy(decoder)
    last = PositionRange(stretch=1.0, trained_positions=7)
    last.install(copied)
    assert len(copied.model.rotary_emb._forward_pre_hooks) == 1
    assert copied.model.rotary_emb.position_range is last
    assert decoder.model.rotary_emb.position_range.stretch == 3.0


def test_positions_that_are_not_rotary_cannot_be_stretched() -> None:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    learned = torch.nn.Module()
    learned.model = AutoModelForCausalLM.from_config(config).transformer
    PositionRange(stretch=1.0, trained_positions=9).install(learned)
    with pytest.raises(BadInput, match=r"position_stretch=2 needs rotary"):
        PositionRange(stretch=2.0, trained_positions=9).install(learned)


def test_reading_beyond_the_trained_length_is_said_once(
    make: Any, books: dict[str, PromptBook], split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    foundation = make("slot")
    assert foundation.settings.trained_positions == 192
    ids = [torch.full((2, length), 5) for length in (192, 193, 220)]
    with caplog.at_level(logging.WARNING, logger="foundation.positions"), torch.no_grad():
        foundation.hidden(ids[0])
        assert not caplog.records
        # Packed rows are long end to end, not each.
        restarting = torch.arange(193)[None].expand(2, -1) % 100
        foundation.hidden(ids[1], position_ids=restarting)
        assert not caplog.records
        foundation.hidden(ids[1])
        foundation.hidden(ids[2])
    [record] = caplog.records
    assert "193 positions" in record.message
    assert "trained at 192" in record.message


def test_a_longer_budget_is_served(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    foundation = make("slot")
    log = books["slot"].interactions
    longer = foundation.prompter.with_budget(384)
    before, after = (one.book(log).prefixes(split.test) for one in (foundation.prompter, longer))
    assert after.lengths.max() > before.lengths.max()
    assert after.num_dropped_events.sum() < before.num_dropped_events.sum()
    foundation.prompter = longer
    foundation.save_pretrained(tmp_path / "model")
    loaded = Foundation.from_pretrained(tmp_path / "model")
    assert loaded.prompter.config.max_prompt_tokens == 384
    # What it was trained at is another matter.
    assert loaded.settings.trained_positions == 192
    with pytest.raises(BadInput, match="max_prompt_tokens=20"):
        longer.with_budget(20)


@pytest.mark.parametrize("wrong", [{"position_stretch": 0.5}, {"trained_positions": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(FoundationConfig(), **wrong)
