import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

from foundation import norms
from foundation.norms import FusedRMSNorm, by_kernel, fuse_norms

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def test_the_gradient_is_right() -> None:
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: FusedRMSNorm.apply(*a, 1e-6), (x, weight))


@pytest.mark.parametrize("config", [Qwen3Config, LlamaConfig, MistralConfig, Gemma2Config])
def test_a_decoder_says_and_learns_the_same(config: type) -> None:
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config(**SHAPE, bos_token_id=None, eos_token_id=None))
    fused = copy.deepcopy(plain)
    fuse_norms(fused)
    ids = torch.randint(50, (2, 9))
    for model in (plain, fused):
        model(input_ids=ids, labels=ids).loss.backward()
    for (name, wanted), got in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, msg=name)


def test_only_the_decoder_given_changes() -> None:
    first, second = (AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE)) for _ in range(2))
    fuse_norms(first)
    assert "forward" in vars(first.model.norm)
    assert "forward" not in vars(second.model.norm)
    assert first.state_dict().keys() == second.state_dict().keys()


def test_other_dtypes_take_the_plain_way() -> None:
    decoder = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE)).to(torch.bfloat16)
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    wanted = decoder.model.norm(x)
    fuse_norms(decoder)
    assert torch.equal(decoder.model.norm(x), wanted)


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_is_given_one_dtype_and_gives_the_plain_one(
    of_x: torch.dtype, of_weight: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE)).model.norm.to(of_weight)
    torch.nn.init.normal_(plain.weight)
    x = torch.linspace(-2, 3, 7 * 16).reshape(7, 16).to(of_x)
    given = []

    def kernel(x: torch.Tensor, shape: object, weight: torch.Tensor, eps: float) -> torch.Tensor:
        given.append((x.dtype, weight.dtype))
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    monkeypatch.setattr(norms, "rms_norm", kernel)
    got, wanted = by_kernel(x, plain.weight, plain.variance_epsilon), plain(x)
    assert len(set(given[0])) == 1
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_kernel_of_a_gpu_is_the_plain_norm(dtype: torch.dtype, autocast: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE)).model.norm.to("cuda", dtype)
    torch.nn.init.normal_(plain.weight)
    found = []
    for fused in (False, True):
        norm = copy.deepcopy(plain)
        if fused:
            fuse_norms(torch.nn.Sequential(norm))
        x = torch.linspace(-2, 3, 7 * 16, device="cuda", dtype=dtype).reshape(7, 16)
        x.requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            out = norm(x)
        out.float().sin().sum().backward()
        found.append([t.detach().float() for t in (out, x.grad, norm.weight.grad)])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
