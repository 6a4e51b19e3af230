from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distill.anatomy import Shape, shape_of
from distill.importance import measure_importance
from distill.kept import Kept
from distill.least_squares import LeastSquares
from distill.pruning import keep, prune
from distill.repair import repair
from foundation import Foundation
from foundation.batches import take_rows
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split
from promptify.validation import BadInput

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_a_fit_is_numpy_s_and_in_parts_the_same(bias: bool) -> None:
    x, y = drawn(300, 7), drawn(300, 3, seed=1)
    linear = nn.Linear(7, 3, bias=bias)
    fit = LeastSquares(linear, ridge=0.0)
    for part in range(0, 300, 70):
        fit.add(x[part : part + 70], y[part : part + 70])
    found = fit.solve("linear")
    inputs = torch.cat([x, torch.ones(300, 1)], dim=1) if bias else x
    wanted, *_ = np.linalg.lstsq(inputs.double().numpy(), y.double().numpy(), rcond=None)
    np.testing.assert_allclose(linear.weight.detach().T, wanted[:7], atol=1e-6)
    said = linear(x).detach()
    assert found.after == pytest.approx(float((said - y).square().sum() / y.square().sum()))
    assert found.after < found.before


def test_a_fit_by_hand() -> None:
    # y = 2 x, from w = 1: the penalty of the inputs' mean square holds the fit half way.
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    fit = LeastSquares(linear, ridge=1.0)
    fit.add(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]]))
    found = fit.solve("w")
    assert linear.weight.item() == pytest.approx(1.5)
    assert (found.before, found.after) == (pytest.approx(0.25), pytest.approx(0.0625))


def test_where_nothing_is_said_all_stays_as_it_was() -> None:
    linear = nn.Linear(4, 2)
    before = linear.weight.detach().clone()
    fit = LeastSquares(linear)
    x = drawn(5, 4) * torch.tensor([1.0, 0.0, 1.0, 0.0])  # two inputs never speak
    fit.add(x, drawn(5, 2))
    fit.solve("linear")
    torch.testing.assert_close(linear.weight[:, [1, 3]], before[:, [1, 3]])
    assert not torch.allclose(linear.weight[:, [0, 2]], before[:, [0, 2]])


def doubled(foundation: Any, kind: str) -> Kept:
    """Let every part of a kind have a twin; what remains when one of each pair goes."""
    decoder = foundation.decoder
    layers, there = decoder.model.layers, shape_of(decoder)
    kept = {
        "neurons": torch.arange(there.neurons),
        "groups": torch.arange(there.groups),
        "hidden": torch.arange(there.hidden),
    }

    def twin(weight: torch.Tensor, dim: int = 0) -> None:
        first, second = weight.chunk(2, dim=dim)
        second.copy_(first)

    with torch.no_grad():
        for layer in layers:
            mlp, attention = layer.mlp, layer.self_attn
            if kind == "neurons":
                readers, writers = (mlp.gate_proj, mlp.up_proj), ()
            elif kind == "groups":
                readers, writers = (attention.q_proj, attention.k_proj, attention.v_proj), ()
            else:
                readers, writers = (), (mlp.down_proj, attention.o_proj)
            for linear in (*readers, *writers):
                twin(linear.weight)
                if linear.bias is not None:
                    twin(linear.bias)
            if kind == "hidden":
                for name, norm in layer.named_children():
                    if name.endswith("layernorm"):
                        twin(norm.weight)
        if kind == "hidden":
            twin(decoder.model.embed_tokens.weight, dim=1)
            twin(decoder.model.norm.weight)
            twin(foundation.items.residual_ID, dim=1)
            twin(foundation.items.project_reading.weight)
            twin(foundation.items.project_bag.weight)
    foundation.refresh_readings()
    kept[kind] = kept[kind][: len(kept[kind]) // 2]
    return Kept(
        layers=tuple(range(there.layers)),
        neurons=(kept["neurons"],) * there.layers,
        groups=(kept["groups"],) * there.layers,
        hidden=kept["hidden"],
    )


@pytest.mark.parametrize("kind", ["neurons", "groups", "hidden"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_twins_of_its_parts_a_repaired_model_is_the_same(
    of_family: Any, rows: Rows, family: str, kind: str
) -> None:
    foundation = of_family(family)
    kept = doubled(foundation, kind)
    small = keep(foundation, kept, measure_importance(foundation, rows).energy)
    wanted = foundation.embed_users(rows)
    cut = np.abs(small.embed_users(rows) - wanted).max()
    repair(small, foundation, kept, rows)
    got = small.embed_users(rows)
    np.testing.assert_allclose(got, wanted, atol=2e-3 * np.abs(wanted).max())
    assert np.abs(got - wanted).max() < 0.05 * cut
    wanted = foundation.embed_items()
    np.testing.assert_allclose(small.embed_items(), wanted, atol=2e-3 * np.abs(wanted).max())
    if kind != "hidden" or not foundation.decoder.config.tie_word_embeddings:
        prefix, items = take_rows(rows, np.array([0])), np.arange(4)
        np.testing.assert_allclose(
            small.score(prefix, items), foundation.score(prefix, items), atol=2e-2
        )


@pytest.mark.parametrize("form", ["slot", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_fit_makes_an_output_worse_and_all_of_them_the_model_better(
    of_family: Any, text_book: PromptBook, split: Split, rows: Rows, family: str, form: str
) -> None:
    foundation = of_family(family, form)
    if form == "text":
        windows = text_book.windows(split.train, seed=0, epoch=0)
        rows = text_book.assemble(windows[np.arange(8)], seed=0, epoch=0)
    importance = measure_importance(foundation, rows)
    shape = Shape(layers=2, neurons=40, groups=1, hidden=24)
    kept = Kept.most_important(importance, shape)
    small = keep(foundation, kept, importance.energy)
    wanted = foundation.embed_users(rows), foundation.embed_items()
    cut = small.embed_users(rows), small.embed_items()
    repairs = repair(small, foundation, kept, rows)
    names = {one.name for one in repairs}
    assert {f"model.layers.{n}.self_attn.o_proj" for n in (0, 1)} < names
    assert {f"model.layers.{n}.mlp.down_proj" for n in (0, 1)} < names
    assert {"person_head", "item_head", "items.project_reading", "items.project_bag"} < names
    assert ("lm_head" in names) != foundation.decoder.config.tie_word_embeddings
    for one in repairs:
        assert 0 <= one.after <= one.before + 1e-9, one
    for there, before, after in zip(
        wanted, cut, (small.embed_users(rows), small.embed_items()), strict=True
    ):
        assert np.square(after - there).mean() < np.square(before - there).mean()


def test_what_a_layer_added_is_added_by_the_one_before_it(of_family: Any, rows: Rows) -> None:
    foundation = of_family("llama")
    middle = foundation.decoder.model.layers[1]
    with torch.no_grad():
        for writer in (middle.self_attn.o_proj, middle.mlp.down_proj):
            writer.weight.zero_()  # the same is added at every position: its biases
    foundation.refresh_readings()
    importance = replace(measure_importance(foundation, rows), layers=(1.0, 0.0, 1.0))
    shape = replace(shape_of(foundation.decoder), layers=2)
    wanted = foundation.embed_users(rows)
    cut = prune(foundation, importance, shape).embed_users(rows)
    assert np.abs(cut - wanted).max() > 0.1
    repaired = prune(foundation, importance, shape, rows=rows).embed_users(rows)
    np.testing.assert_allclose(repaired, wanted, atol=2e-3)


def test_the_larger_model_is_left_as_it_was(make: Any, rows: Rows) -> None:
    foundation = make()
    before = {name: weight.clone() for name, weight in foundation.state_dict().items()}
    shape = replace(shape_of(foundation.decoder), neurons=64, hidden=24)
    prune(foundation, measure_importance(foundation, rows), shape, rows=rows)
    after = foundation.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_few_positions_are_enough_to_ask_for(
    make: Any, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """A sample of the prompts serves, says the same each time, and is told."""
    caplog.set_level("INFO", logger="distill.repair")
    foundation = make()
    importance = measure_importance(foundation, rows)
    kept = Kept.most_important(importance, replace(shape_of(foundation.decoder), neurons=64))
    found = []
    for _ in range(2):
        small = keep(foundation, kept, importance.energy)
        repair(small, foundation, kept, rows, max_positions=400)
        found.append(small.embed_users(rows))
    np.testing.assert_array_equal(*found)
    read = max(1, int(len(rows) * 400 / rows.lengths.sum()))
    told = f"repair reads {read} of {len(rows)} calibration prompts: more are above 400 positions"
    assert caplog.messages == [told, told]
    caplog.clear()
    whole = keep(foundation, kept, importance.energy)
    repair(whole, foundation, kept, rows)
    assert not np.allclose(whole.embed_users(rows), found[0], atol=1e-6)
    assert caplog.messages == []


def test_no_prompts_are_refused(make: Any, rows: Rows) -> None:
    foundation: Foundation = make()
    shape = replace(shape_of(foundation.decoder), neurons=64)
    none = take_rows(rows, np.zeros(0, np.int64))
    with pytest.raises(BadInput, match="rows holds no calibration prompt"):
        prune(foundation, measure_importance(foundation, rows), shape, rows=none)
