from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from foundation import one_position, scoring
from foundation.batches import take_rows
from promptify.assembly import PromptBook
from promptify.splits import Split

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize("family", [Qwen3Config, LlamaConfig, MistralConfig])
@pytest.mark.parametrize("own_heads", [False, True], ids=["as here", "as on a GPU"])
@pytest.mark.parametrize("length", [1, 3])
def test_same_outputs_and_gradients_as_sdpa(
    family: Any, length: int, own_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(one_position, "_wants_own_heads", lambda query: own_heads)
    decoder: Any = AutoModelForCausalLM.from_config(family(**SHAPE), attn_implementation="sdpa")
    embeds = torch.randn(5, length, 32, requires_grad=True)

    def output_and_gradients() -> list[torch.Tensor]:
        decoder.zero_grad()
        out = decoder.model(inputs_embeds=embeds).last_hidden_state
        [of_embeds] = torch.autograd.grad(out.square().sum(), embeds, retain_graph=True)
        out.square().sum().backward()
        weights = decoder.model.layers[0].self_attn
        of_query = weights.q_proj.weight.grad
        nothing = torch.zeros_like(weights.q_proj.weight)
        return [out, of_embeds, weights.v_proj.weight.grad, nothing if length == 1 else of_query]

    plain = output_and_gradients()
    one_position.attend_with(decoder)
    assert decoder.config._attn_implementation == one_position.NAME
    for got, wanted in zip(output_and_gradients(), plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_no_kernel_that_takes_none_is_given_shared_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder: Any = AutoModelForCausalLM.from_config(
        Qwen3Config(**SHAPE), attn_implementation="sdpa"
    )
    one_position.attend_with(decoder)
    monkeypatch.setattr(one_position, "_wants_own_heads", lambda query: True)
    monkeypatch.setattr(one_position, "sdpa_attention_forward", None)
    heads = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> Any:
        heads.append((query.shape[1], key.shape[1], value.shape[1]))
        return query

    monkeypatch.setattr(one_position, "scaled_dot_product_attention", attend)
    decoder(input_ids=torch.zeros(2, 5, dtype=torch.long), use_cache=False)
    assert heads == 2 * [(4, 4, 4)]


def test_another_attention_is_left_alone() -> None:
    decoder: Any = AutoModelForCausalLM.from_config(
        Qwen3Config(**SHAPE), attn_implementation="eager"
    )
    one_position.attend_with(decoder)
    assert decoder.config._attn_implementation == "eager"


def test_right_padded_rows_with_a_mask_take_the_plain_way() -> None:
    torch.manual_seed(0)
    decoder: Any = AutoModelForCausalLM.from_config(
        Qwen3Config(**SHAPE), attn_implementation="sdpa"
    )
    ids, mask = torch.randint(50, (2, 4)), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    plain = decoder(input_ids=ids, attention_mask=mask).logits
    one_position.attend_with(decoder)
    torch.testing.assert_close(decoder(input_ids=ids, attention_mask=mask).logits, plain)


def test_bounded_logits_are_never_left_to_sdpa() -> None:
    config = Gemma2Config(**SHAPE, attn_logit_softcapping=2.0, bos_token_id=None, pad_token_id=None)
    decoder: Any = AutoModelForCausalLM.from_config(config)
    decoder.config._attn_implementation = "sdpa"  # As transformers 5.17 has it.
    one_position.attend_with(decoder)
    assert decoder.config._attn_implementation == "eager"


def test_rows_and_prefixes_are_read_by_quick_kernels(
    make: Any, books: dict[str, PromptBook], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []

    def recorded(name: str) -> Any:
        def context(device: torch.device) -> Any:
            entered.append(name)
            return nullcontext()

        return context

    foundation = make("slot")
    prefix = take_rows(books["slot"].prefixes(split.test), np.array([0]))
    monkeypatch.setattr(one_position, "quick_kernels", recorded("rows"))
    monkeypatch.setattr(scoring, "quick_kernels", recorded("prefix"))
    foundation.embed_users(prefix)
    foundation.read_prefix(prefix)
    assert entered == ["rows", "prefix"]


def test_no_kernel_that_plans_each_shape_is_asked_on_a_gpu() -> None:
    def allowed() -> bool:
        return torch.backends.cuda.cudnn_sdp_enabled()

    assert allowed()
    with one_position.quick_kernels(torch.device("cuda")):
        assert not allowed()
        assert torch.backends.cuda.flash_sdp_enabled()
    with one_position.quick_kernels(torch.device("cpu")):
        assert allowed()
    assert allowed()
