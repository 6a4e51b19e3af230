import copy
import threading
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from foundation import one_position
from foundation.attention import (
    check_decoder,
    prefix_layers,
    reading_model,
    shared_prefix_attention,
    whole_prefix_cache,
)
from foundation.norms import fuse_norms
from promptify.validation import BadInput

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW = {"sliding_window": 6}
GEMMA = {**SHAPE, **WINDOW, "query_pre_attn_scalar": 5}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama, tied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama, rotary scaled": lambda: LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
    "llama, one key-value head": lambda: LlamaConfig(**{**SHAPE, "num_key_value_heads": 1}),
    "qwen2": lambda: Qwen2Config(**SHAPE, use_sliding_window=False),
    "qwen2, later layers windowed": lambda: Qwen2Config(
        **SHAPE, **WINDOW, use_sliding_window=True, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "qwen3, tied": lambda: Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "qwen3, mixture of experts": lambda: Qwen3MoeConfig(
        **SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    # Its layers do not tell their window: it stands in the mask.
    "qwen2, mixture of experts, later layers windowed": lambda: Qwen2MoeConfig(
        **SHAPE,
        **WINDOW,
        use_sliding_window=True,
        max_window_layers=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "mistral, windowed": lambda: MistralConfig(**SHAPE, **WINDOW),
    "gemma 2": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=2.0),
    "gemma 3": lambda: Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "phi 3": lambda: Phi3Config(**SHAPE),
    "olmo 2": lambda: Olmo2Config(**SHAPE),
}
_decoders: dict[str, Any] = {}


def decoder_of(family: str) -> Any:
    if family not in _decoders:
        torch.manual_seed(0)
        _decoders[family] = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    return _decoders[family]


@torch.no_grad()
def beside(decoder: Any, prefix_P: Tensor, candidates: list[Tensor]) -> Tensor:
    """Last hidden state of each candidate, read beside the others after one prefix."""
    cache = whole_prefix_cache()
    embed = decoder.get_input_embeddings()
    decoder.model(inputs_embeds=embed(prefix_P[None]), past_key_values=cache, use_cache=True)
    ids_CS = torch.nn.utils.rnn.pad_sequence(candidates, batch_first=True)
    read_at = (
        torch.arange(len(candidates)),
        torch.tensor([len(candidate) - 1 for candidate in candidates]),
    )
    out = reading_model(decoder.model, read_at, shared_prefix=True)(
        inputs_embeds=embed(ids_CS),
        position_ids=len(prefix_P) + torch.arange(ids_CS.shape[1])[None],
        use_cache=False,
        shared_prefix=prefix_layers(cache),
    )
    last: Tensor = out.last_hidden_state[read_at]
    return last


@torch.no_grad()
def alone(decoder: Any, prefix_P: Tensor, candidates: list[Tensor]) -> Tensor:
    """The same by the stock model: a prompt for each."""
    return torch.stack(
        [
            decoder.model(input_ids=torch.cat([prefix_P, candidate])[None]).last_hidden_state[0, -1]
            for candidate in candidates
        ]
    )


def drawn(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 60, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "lengths",
    [(23, 4, 1, 9, 4), (3, 1, 1, 1), (1, 12, 2)],
    ids=["prefix past the window", "slots", "candidates past it"],
)
def test_every_family_reads_beside_as_alone(family: str, lengths: tuple[int, ...]) -> None:
    decoder = decoder_of(family)
    prefix_P, *candidates = drawn(*lengths)
    got = beside(decoder, prefix_P, candidates)
    torch.testing.assert_close(got, alone(decoder, prefix_P, candidates), atol=1e-4, rtol=0)
    other = beside(decoder, prefix_P.roll(1), candidates)
    assert len(prefix_P) == 1 or (other - got).abs().max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    prefix=st.integers(1, 30),
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    family=st.sampled_from(["gemma 2", "gemma 3", "mistral, windowed", "qwen3"]),
)
def test_any_lengths_read_beside_as_alone(prefix: int, lengths: list[int], family: str) -> None:
    decoder = decoder_of(family)
    prefix_P, *candidates = drawn(prefix, *lengths)
    got = beside(decoder, prefix_P, candidates)
    torch.testing.assert_close(got, alone(decoder, prefix_P, candidates), atol=1e-4, rtol=0)


class Layer(torch.nn.Module):
    layer_idx: ClassVar[int] = 0


def dense(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, *, window: int, cap: float | None
) -> Tensor:
    """Every candidate with a copy of the prefix, and one mask over all."""
    groups, num_prefix = q.shape[1] // k.shape[1], keys.shape[2]
    k = torch.cat([keys.expand(len(q), -1, -1, -1), k], 2).repeat_interleave(groups, 1)
    v = torch.cat([values.expand(len(q), -1, -1, -1), v], 2).repeat_interleave(groups, 1)
    logits = q @ k.transpose(-1, -2) * 0.4
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    at = num_prefix + torch.arange(q.shape[2])[:, None]
    key_at = torch.arange(k.shape[2])
    sees = (key_at <= at) & (key_at > at - window)
    out: Tensor = logits.masked_fill(~sees, -torch.inf).softmax(-1) @ v
    return out.transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    candidates=st.integers(1, 4),
    own=st.integers(1, 9),
    prefix=st.integers(1, 20),
    groups=st.integers(1, 3),
    window=st.none() | st.integers(1, 32),
    cap=st.none() | st.just(1.5),
    value_width=st.sampled_from([8, 4]),
)
def test_it_is_dense_attention(
    candidates: int,
    own: int,
    prefix: int,
    groups: int,
    window: int | None,
    cap: float | None,
    value_width: int,
) -> None:
    torch.manual_seed(own + prefix)
    q, k = torch.randn(candidates, 2 * groups, own, 8) * 2, torch.randn(candidates, 2, own, 8) * 2
    v = torch.randn(candidates, 2, own, value_width)
    keys, values = torch.randn(1, 2, prefix, 8) * 2, torch.randn(1, 2, prefix, value_width)
    got, _ = shared_prefix_attention(
        Layer(),
        q,
        k,
        v,
        None,
        shared_prefix=((keys, values),),
        scaling=0.4,
        sliding_window=window,
        softcap=cap,
    )
    wanted = dense(q, k, v, keys, values, window=window or 999, cap=cap)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_the_model_itself_is_left_as_it_was() -> None:
    decoder = decoder_of("qwen3")
    decoder.train()
    before = decoder.config._attn_implementation
    nothing = torch.zeros(1, dtype=torch.long)
    new = reading_model(decoder.model, (nothing, nothing), shared_prefix=True)
    assert new.config._attn_implementation != before
    assert not any(module.training for module in new.modules())
    assert {id(p) for p in new.parameters()} == {id(p) for p in decoder.model.parameters()}
    assert decoder.config._attn_implementation == before
    assert all(module.training for module in decoder.modules())
    assert all(m.config is decoder.config for m in decoder.modules() if hasattr(m, "config"))
    decoder.eval()


def test_a_method_put_on_a_module_goes_along() -> None:
    decoder = copy.deepcopy(decoder_of("llama"))
    prefix_P, *candidates = drawn(7, 3, 2)
    wanted = beside(decoder, prefix_P, candidates)
    fuse_norms(decoder)
    layer = decoder.model.layers[1]
    layer.forward = layer.forward
    torch.testing.assert_close(beside(decoder, prefix_P, candidates), wanted, atol=1e-4, rtol=0)


def test_a_forward_that_leads_back_to_the_model_itself_is_refused() -> None:
    decoder, nothing = decoder_of("llama"), torch.zeros(1, dtype=torch.long)
    layer = decoder.model.layers[1]
    layer.forward = partial(layer.forward)
    with pytest.raises(BadInput, match="LlamaDecoderLayer has been given another forward"):
        reading_model(decoder.model, (nothing, nothing), shared_prefix=True)
    del layer.forward


def test_plain_readings_in_another_thread_are_not_disturbed() -> None:
    decoder = decoder_of("mistral, windowed")
    prefix_P, *candidates = drawn(12, 3, 5)
    wanted_beside = beside(decoder, prefix_P, candidates)
    wanted_alone = alone(decoder, prefix_P, candidates)
    wrong = []

    def often(read: Any, wanted: Tensor) -> None:
        for _ in range(15):
            if not torch.allclose(read(decoder, prefix_P, candidates), wanted, atol=1e-5):
                wrong.append(read.__name__)

    work = [(beside, wanted_beside), (alone, wanted_alone)] * 2
    threads = [threading.Thread(target=often, args=args) for args in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_decoders_that_cannot_be_read_beside_are_refused() -> None:
    gpt2 = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20)
    )
    with pytest.raises(BadInput, match=r"'gpt2' cannot be used: it keeps its layers .* Llama, Mis"):
        check_decoder(gpt2)
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20)
    )
    with pytest.raises(BadInput, match="'mamba' cannot be used"):
        check_decoder(mamba)
    looks_ahead = Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True)
    with pytest.raises(BadInput, match="looks ahead"):
        check_decoder(AutoModelForCausalLM.from_config(looks_ahead))
    stretches = LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    with pytest.raises(BadInput, match=r"by how long a prompt is \(rope_type dynamic\)"):
        check_decoder(AutoModelForCausalLM.from_config(stretches))
    with pytest.raises(BadInput, match="attention sinks"):
        shared_prefix_attention(
            Layer(), *torch.zeros(3, 1, 1, 1, 8), None, shared_prefix=(), s_aux=torch.zeros(1)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("own", [1, 16, 37])
def test_the_gpu_kernels_are_the_plain_path(dtype: torch.dtype, groups: int, own: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    q = torch.randn(20, 4, own, 64)
    k, v = torch.randn(2, 20, 4 // groups, own, 64)
    keys, values = torch.randn(2, 1, 4 // groups, 300, 64)
    q, k, v, keys, values = (t.to("cuda", dtype) for t in (q, k, v, keys, values))
    for window in (None, 100):
        got, _ = shared_prefix_attention(
            Layer(),
            q,
            k,
            v,
            None,
            shared_prefix=((keys, values),),
            scaling=0.4,
            sliding_window=window,
        )
        exact = [t.double().cpu() for t in (q, k, v, keys, values)]
        wanted = dense(*exact, window=window or 999, cap=None)
        error = (got.double().cpu() - wanted).norm() / wanted.norm()
        # bfloat16 keeps eight bits, of the logits' weights and of the result.
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "gemma 2", "gemma 3", "mistral, windowed"])
def test_every_family_reads_beside_as_alone_on_a_gpu(family: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval().to("cuda", dtype)
    one_position.attend_with(decoder)
    prefix_P, *candidates = (ids.cuda() for ids in drawn(23, 4, 1, 9, 4))
    with torch.device("cuda"):
        got, wanted = (read(decoder, prefix_P, candidates) for read in (beside, alone))
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0)
