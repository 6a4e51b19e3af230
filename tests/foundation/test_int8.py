"""Int8 layers: near the float32 ones, saved as stock weights, and the same when loaded again."""

import copy
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from foundation import FitConfig, Foundation, FoundationConfig
from foundation.batches import take_rows
from foundation.few_bits import stock_state
from foundation.int8 import Int8Linear, is_int8, kernel_saturates, to_int8
from promptify.assembly import PromptBook
from promptify.splits import Split

WITHOUT_VNNI = """
import json, torch
from torch import nn
from foundation.int8 import Int8Linear, kernel_saturates
told = {"saturates": kernel_saturates(), "errors": []}
for rows, inputs, outputs in [(1, 8, 4), (5, 33, 17), (64, 96, 32)]:
    torch.manual_seed(0)
    linear, given = nn.Linear(inputs, outputs), torch.randn(rows, inputs) * 3
    exact, got = linear(given), Int8Linear(linear)(given)
    told["errors"].append(((got - exact).norm() / exact.norm()).item())
print(json.dumps(told))
"""


def by_hand(input_MK: np.ndarray, linear: nn.Linear) -> np.ndarray:
    """What the kernel says it computes, number by number in float64."""
    weight_NK = linear.weight.detach().double().numpy()
    scale_N = np.abs(weight_NK).max(1) / 127
    weight_NK = np.round(weight_NK / scale_N[:, None]) * scale_N[:, None]
    low, high = min(input_MK.min(), 0.0), max(input_MK.max(), 0.0)
    steps = num_steps()
    step = (high - low) / steps
    zero = np.round(-low / step)
    rounded_MK = (np.clip(np.round(input_MK / step) + zero, 0, steps) - zero) * step
    return rounded_MK @ weight_NK.T + linear.bias.detach().double().numpy()


def num_steps() -> int:
    """That inputs are rounded to on this processor."""
    return 127 if kernel_saturates() else 255


@pytest.mark.parametrize("shape", [(1, 8, 4), (5, 33, 17), (64, 96, 32)])
def test_a_layer_computes_what_is_written(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    rows, inputs, outputs = shape
    linear = nn.Linear(inputs, outputs)
    given = torch.randn(rows, inputs) * 3
    got = Int8Linear(linear)(given).double().numpy()
    wanted = by_hand(given.double().numpy(), linear)
    # Now and then a number that lies between two steps goes to the other one.
    step = float(given.max() - given.min()) / num_steps()
    most = step * float(linear.weight.detach().abs().max())
    assert np.abs(got - wanted).max() <= most + 1e-5
    assert np.abs(got - wanted).mean() < 0.05 * most + 1e-6
    exact = linear(given).detach().double().numpy()
    assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.02 * 255 / num_steps()


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="a matter of x86 processors"
)
def test_a_processor_that_adds_pairs_in_16_bits_computes_as_near_but_for_one_bit() -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI],
        env={**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(found.stdout)
    assert told["saturates"]
    # Twice what is let pass with inputs of 8 bits: here they have 7.
    assert max(told["errors"]) < 0.04


def test_asking_the_kernel_draws_nothing() -> None:
    kernel_saturates.cache_clear()
    state = torch.get_rng_state()
    kernel_saturates()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_output_without_weights_is_its_bias() -> None:
    linear = nn.Linear(4, 2)
    linear.weight.data[0] = 0
    out = Int8Linear(linear)(torch.ones(1, 4))
    assert out[0, 0] == pytest.approx(linear.bias[0].item(), abs=1e-6)


def scores(model: Foundation, book: PromptBook, split: Split) -> np.ndarray:
    prefixes = book.prefixes(split.test)
    items = np.arange(6)
    return np.stack([model.score(take_rows(prefixes, np.array([row])), items) for row in range(4)])


def test_scores_are_near_and_stay_so_on_disk(
    make: Any, form: str, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    whole = make(form)
    small = copy.deepcopy(whole)
    to_int8(small)
    assert is_int8(small.decoder)
    assert not is_int8(whole.decoder)
    assert small.num_parameters() == whole.num_parameters()
    near = scores(small, book, split)
    far = np.abs(near - scores(whole, book, split))
    assert 0 < far.max() < 0.25 * 255 / num_steps()
    assert far.mean() < 0.06 * 255 / num_steps()
    small.save_pretrained(tmp_path / "small")
    loaded = Foundation.from_pretrained(tmp_path / "small")
    assert is_int8(loaded.decoder)
    for name, module in small.decoder.named_modules():
        if isinstance(module, Int8Linear):
            assert torch.equal(module.weight, loaded.decoder.get_submodule(name).weight)
    np.testing.assert_allclose(scores(loaded, book, split), near, atol=1e-5)
    np.testing.assert_allclose(scores(copy.deepcopy(small), book, split), near, atol=1e-5)


def test_weights_are_packed_once_however_often_it_is_asked(
    make: Any, form: str, book: PromptBook, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make(form)
    to_int8(small)
    pack, packed = Int8Linear._pack, []
    monkeypatch.setattr(Int8Linear, "_pack", lambda self: packed.append(self) or pack(self))
    small = copy.deepcopy(small)
    scores(small, book, split)
    layers = [m for m in small.decoder.modules() if isinstance(m, Int8Linear)]
    assert 0 < len(packed) <= len(layers)


def test_stock_loaders_read_it(make: Any, tmp_path: Path) -> None:
    small = make("text")
    to_int8(small)
    small.save_pretrained(tmp_path / "small")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    wanted = stock_state(small.decoder)
    for name, tensor in stock.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, wanted[name])


def test_what_cannot_be_is_said(
    make: Any, form: str, book: PromptBook, split: Split, tmp_path: Path
) -> None:
    small = make(form)
    to_int8(small)
    with pytest.raises(ValueError, match="in int8 already"):
        to_int8(small)
    with pytest.raises(ValueError, match="in int8 cannot be trained"):
        small.fit(book, split, config=FitConfig(epochs=1), out=tmp_path)
    with pytest.raises(ValueError, match="weights='int2' must be float32, int8, fp8 or int4"):
        FoundationConfig(weights="int2")  # type: ignore[arg-type]
