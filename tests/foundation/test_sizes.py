import pytest
import torch
from transformers import AutoModelForCausalLM

from foundation.sizes import SHAPES, decoder_config, start_as_averages


@pytest.mark.parametrize("size", ["tiny", "mini"])  # grouped-query and plain attention
def test_value_and_output_start_as_a_projection(size: str) -> None:
    decoder = AutoModelForCausalLM.from_config(decoder_config(size, vocab_size=32))
    start_as_averages(decoder)
    heads, kv_heads = SHAPES[size][3:]
    attention = decoder.model.layers[0].self_attn
    value, output = attention.v_proj.weight.detach(), attention.o_proj.weight.detach()
    # Every query head of a group reads the same value head.
    read = value.unflatten(0, (kv_heads, -1)).repeat_interleave(heads // kv_heads, 0).flatten(0, 1)
    passed_on = output @ read
    torch.testing.assert_close(passed_on, passed_on.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(passed_on @ passed_on, passed_on, atol=1e-5, rtol=0)
    rank = int(torch.linalg.matrix_rank(passed_on, atol=1e-3))
    assert rank == value.shape[0]
    if kv_heads == heads:
        torch.testing.assert_close(passed_on, torch.eye(len(passed_on)), atol=1e-5, rtol=0)


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="size='huge' is unknown; choose one of tiny, mini"):
        decoder_config("huge", vocab_size=32)


@pytest.mark.parametrize("size", sorted(SHAPES))
def test_every_shape_divides_into_its_heads(size: str) -> None:
    _, hidden, _, heads, kv_heads = SHAPES[size]
    assert hidden % heads == 0
    assert heads % kv_heads == 0
    assert decoder_config(size, vocab_size=32).head_dim * heads == hidden
