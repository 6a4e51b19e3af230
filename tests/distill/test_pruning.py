from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.anatomy import Shape, body_parameters, check_known, notch, shape_of
from distill.importance import measure_importance
from distill.kept import Kept
from distill.pruning import prune
from foundation import Foundation
from foundation.batches import take_rows
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split
from promptify.validation import BadInput


def smaller(foundation: Any, **sizes: int) -> Shape:
    """The foundation's shape, but for some sizes."""
    return replace(shape_of(foundation.decoder), **sizes)


def test_a_layer_that_does_nothing_counts_nothing(make: Any, rows: Rows) -> None:
    foundation = make(size="mini")
    idle = foundation.decoder.model.layers[1]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    importance = measure_importance(foundation, rows)
    assert importance.layers[1] == pytest.approx(0, abs=1e-6)
    assert min(importance.layers[0], importance.layers[2]) > 1e-3
    # It can go, and nothing changes.
    small = prune(foundation, importance, smaller(foundation, layers=2))
    assert small.decoder.config.num_hidden_layers == 2
    foundation.refresh_readings()
    np.testing.assert_allclose(small.embed_users(rows), foundation.embed_users(rows), atol=1e-5)
    np.testing.assert_allclose(small.embed_items(), foundation.embed_items(), atol=1e-5)


def test_neurons_that_add_nothing_go_first(make: Any, rows: Rows) -> None:
    foundation = make()
    idle = {0: [3, 50, 95], 1: [0, 1, 2]}
    with torch.no_grad():
        for depth, neurons in idle.items():
            mlp = foundation.decoder.model.layers[depth].mlp
            mlp.down_proj.weight[:, neurons[0]] = 0  # adds nothing
            mlp.up_proj.weight[neurons[1:]] = 0  # never speaks
    importance = measure_importance(foundation, rows)
    for depth, neurons in idle.items():
        assert importance.neurons[depth].argsort()[:3].sort().values.tolist() == neurons
    small = prune(foundation, importance, smaller(foundation, neurons=93))
    foundation.refresh_readings()
    np.testing.assert_allclose(small.embed_users(rows), foundation.embed_users(rows), atol=1e-5)
    kept = [n for n in range(96) if n not in idle[0]]
    mlp, was = small.decoder.model.layers[0].mlp, foundation.decoder.model.layers[0].mlp
    assert torch.equal(mlp.gate_proj.weight, was.gate_proj.weight[kept])
    assert torch.equal(mlp.up_proj.weight, was.up_proj.weight[kept])
    assert torch.equal(mlp.down_proj.weight, was.down_proj.weight[:, kept])


def test_importance_is_what_a_plain_pass_says(make: Any, rows: Rows) -> None:
    foundation = make()
    layer = foundation.decoder.model.layers[0]
    turned, active, count = 0.0, torch.zeros(96), 0
    seen: list[torch.Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for row in range(len(rows)):
        one = take_rows(rows, np.array([row]))
        ids = torch.from_numpy(one.ids.astype(np.int64))[None]
        with torch.no_grad():
            before = foundation.embed_ids(ids)
            output = foundation.decoder.model(inputs_embeds=before, output_hidden_states=True)
            seen.clear()
            foundation.hidden(ids)
        after = output.hidden_states[1]
        turned += float((1 - torch.cosine_similarity(before, after, dim=-1)).sum())
        active += seen.pop()[0].abs().sum(0)
        count += ids.shape[1]
    handle.remove()
    importance = measure_importance(foundation, rows, max_positions=500)
    assert importance.layers[0] == pytest.approx(turned / count, rel=1e-4)
    columns = layer.mlp.down_proj.weight.detach().norm(dim=0)
    torch.testing.assert_close(
        importance.neurons[0], active / count * columns, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_importance_of_groups_and_of_width_is_what_a_plain_pass_says(
    of_family: Any, rows: Rows, family: str
) -> None:
    foundation = of_family(family)
    decoder, layers = foundation.decoder, foundation.decoder.model.layers
    given: dict[Any, list[torch.Tensor]] = {}
    readers = [
        ((at.q_proj, at.k_proj, at.v_proj), (mlp.gate_proj, mlp.up_proj), at.o_proj)
        for at, mlp in ((layer.self_attn, layer.mlp) for layer in layers)
    ]
    handles = [
        one.register_forward_pre_hook(
            lambda one, args: given.setdefault(one, []).append(args[0][0])
        )
        for reader in readers
        for one in (reader[0][0], reader[1][0], reader[2])
    ]
    for row in range(len(rows)):
        ids = torch.from_numpy(take_rows(rows, np.array([row])).ids.astype(np.int64))[None]
        given.setdefault(decoder.model.norm, []).append(foundation.hidden(ids)[0])
    for handle in handles:
        handle.remove()
    loud = {one: torch.cat(said).abs().mean(0) for one, said in given.items()}
    importance = measure_importance(foundation, rows, max_positions=500)

    def heard(one: Any, *weights: torch.Tensor) -> torch.Tensor:
        return loud[one] * torch.cat(weights).norm(dim=0)

    widths = []
    for depth, (attention, mlp, out) in enumerate(readers):
        # Two groups of two heads, each 8 wide.
        by_group = heard(out, out.weight).view(2, 16).sum(1)
        torch.testing.assert_close(importance.groups[depth], by_group, rtol=1e-4, atol=1e-6)
        widths += [heard(maps[0], *(one.weight for one in maps)) for maps in (attention, mlp)]
    labels = decoder.lm_head.weight[foundation.prompter.label_ids]
    heads = foundation.person_head.weight, foundation.item_head.weight, labels
    widths.append(heard(decoder.model.norm, *heads))
    shares = torch.stack([one / one.sum() for one in widths])
    torch.testing.assert_close(importance.hidden, shares.mean(0), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_large_weights_that_no_prompt_excites_count_for_nothing(
    of_family: Any, text_book: PromptBook, split: Split
) -> None:
    windows = text_book.windows(split.train, seed=0, epoch=0)
    rows = text_book.assemble(windows[np.arange(4)], seed=0, epoch=0)
    foundation = of_family("mistral", "text")
    decoder, idle = foundation.decoder, [2, 5, 11, 12, 20, 21, 30, 31]
    rest = [d for d in range(32) if d not in idle]
    embeddings = decoder.model.embed_tokens.weight
    said = np.unique(rows.ids)
    embeddings[:, idle] = 10.0
    embeddings[np.ix_(said, idle)] = 0.0
    for layer in decoder.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        mlp.up_proj.weight[0] = 0  # a neuron that never speaks
        attention.v_proj.weight[:8] = 0
        attention.v_proj.weight[:8, idle] = 10.0  # the first group reads what nobody writes
        for writer, silent in ((mlp.down_proj, [0]), (attention.o_proj, list(range(16)))):
            writer.weight[idle] = 0
            writer.weight[np.ix_(idle, silent)] = 10.0
        for reader in (attention.q_proj, attention.k_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight[:, idle] *= 10
        attention.q_proj.weight[:16] *= 10
        attention.k_proj.weight[:8] *= 10
    for head in (foundation.person_head, foundation.item_head, decoder.lm_head):
        head.weight[:, idle] *= 10
    importance = measure_importance(foundation, rows)
    # By weights alone they would be the last to go.
    assert embeddings.norm(dim=0)[idle].min() > embeddings.norm(dim=0)[rest].max()
    for depth, layer in enumerate(decoder.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, mlp.gate_proj, mlp.up_proj):
            columns = reader.weight[1:].norm(dim=0)
            assert columns[idle].min() > columns[rest].max()
        for columns in (attention.v_proj.weight.T, attention.o_proj.weight):
            first, second = columns.chunk(2, dim=1)
            assert first.norm() > second.norm()
        first, second = importance.groups[depth].tolist()
        assert first < 1e-4 * second
    assert importance.hidden[idle].max() < 1e-4 * importance.hidden[rest].min()
    # And are the first, with which no answer changes.
    shape = smaller(foundation, groups=1, hidden=24)
    kept = Kept.most_important(importance, shape)
    assert [one.tolist() for one in kept.groups] == [[1]] * 3
    assert kept.hidden.tolist() == rest
    wanted = foundation.embed_users(rows)
    got = prune(foundation, importance, shape).embed_users(rows)
    np.testing.assert_allclose(got, wanted, atol=2e-4 * np.abs(wanted).max())


def test_pruned_to_its_own_size_nothing_changes(make: Any, rows: Rows, book: PromptBook) -> None:
    foundation = make()
    before = {name: weight.clone() for name, weight in foundation.state_dict().items()}
    same = prune(foundation, measure_importance(foundation, rows), smaller(foundation))
    prefix, items = take_rows(rows, np.array([0])), np.arange(4)
    np.testing.assert_allclose(same.embed_users(rows), foundation.embed_users(rows), atol=1e-6)
    np.testing.assert_allclose(same.embed_items(), foundation.embed_items(), atol=1e-6)
    np.testing.assert_allclose(
        same.score(prefix, items), foundation.score(prefix, items), atol=1e-6
    )
    # The old one is left as it was, and shares nothing with the new.
    after = foundation.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    theirs = {p.data_ptr() for p in foundation.parameters()}
    assert not any(p.data_ptr() in theirs for p in same.parameters())


def test_stock_transformers_loads_what_is_left(make: Any, rows: Rows, tmp_path: Path) -> None:
    foundation = make(size="mini")
    shape = smaller(foundation, layers=2, neurons=64)
    small = prune(foundation, measure_importance(foundation, rows), shape)
    small.save_pretrained(tmp_path / "small")
    stock, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "small", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert stock.config.num_hidden_layers == 2
    assert stock.model.layers[0].mlp.down_proj.weight.shape == (64, 64)
    assert small.num_parameters() < foundation.num_parameters()
    assert np.isfinite(small.embed_items()).all()


def test_layers_keep_their_order(make: Any, rows: Rows) -> None:
    foundation = make(size="mini")
    importance = replace(measure_importance(foundation, rows), layers=(0.2, 0.1, 0.9))
    small = prune(foundation, importance, smaller(foundation, layers=2))
    for at, kept in enumerate((0, 2)):
        assert torch.equal(
            small.decoder.model.layers[at].self_attn.q_proj.weight,
            foundation.decoder.model.layers[kept].self_attn.q_proj.weight,
        )


def test_the_pruned_table_holds_the_pruned_readings(make: Any, rows: Rows) -> None:
    foundation = make()
    small = prune(foundation, measure_importance(foundation, rows), smaller(foundation, neurons=8))
    held = small.items.reading_ID.clone()
    assert not torch.allclose(held, foundation.items.reading_ID, atol=1e-3)
    small.refresh_readings()
    torch.testing.assert_close(held, small.items.reading_ID)


def silence(foundation: Any, kind: str) -> None:
    """Make some parts of a kind count for nothing, in every layer."""
    decoder, items = foundation.decoder, foundation.items
    layers = decoder.model.layers
    with torch.no_grad():
        if kind == "neurons":
            for layer in layers:
                layer.mlp.down_proj.weight[:, [3, 40]] = 0
        if kind == "groups":
            for layer in layers:
                layer.self_attn.o_proj.weight[:, 16:] = 0
        if kind == "hidden":
            idle = [2, 5, 11, 12, 20, 21, 30, 31]
            decoder.model.embed_tokens.weight[:, idle] = 0
            items.residual_ID[:, idle] = 0
            writers = [w for layer in layers for w in (layer.self_attn.o_proj, layer.mlp.down_proj)]
            for writer in (*writers, items.project_reading, items.project_bag):
                writer.weight[idle] = 0
                if writer.bias is not None:
                    writer.bias[idle] = 0
    foundation.refresh_readings()


FAMILIES = ("qwen3", "llama", "mistral", "gemma2", "gemma3_text")
SMALLER = {"neurons": {"neurons": 46}, "groups": {"groups": 1}, "hidden": {"hidden": 24}}


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_counts_for_nothing_goes_and_nothing_changes(
    of_family: Any, rows: Rows, family: str, kind: str
) -> None:
    foundation = of_family(family)
    silence(foundation, kind)
    importance = measure_importance(foundation, rows)
    small = prune(foundation, importance, smaller(foundation, **SMALLER[kind]))
    wanted, got = foundation.embed_users(rows), small.embed_users(rows)
    np.testing.assert_allclose(got, wanted, atol=2e-4 * np.abs(wanted).max())
    wanted, got = foundation.embed_items(), small.embed_items()
    np.testing.assert_allclose(got, wanted, atol=2e-4 * np.abs(wanted).max())
    prefix, items = take_rows(rows, np.array([0])), np.arange(4)
    np.testing.assert_allclose(
        small.score(prefix, items), foundation.score(prefix, items), atol=2e-3
    )


@pytest.mark.parametrize("form", ["slot", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_shape_is_a_stock_checkpoint_of_the_parameters_foretold(
    of_family: Any,
    text_book: PromptBook,
    split: Split,
    tmp_path: Path,
    family: str,
    form: str,
    rows: Rows,
) -> None:
    foundation = of_family(family, form)
    if form == "text":
        rows = text_book.assemble(
            text_book.windows(split.train, seed=0, epoch=0)[np.arange(4)], seed=0, epoch=0
        )
    shape = Shape(layers=2, neurons=24, groups=1, hidden=16)
    small = prune(foundation, measure_importance(foundation, rows), shape)
    small.save_pretrained(tmp_path / "small")
    again = Foundation.from_pretrained(tmp_path / "small")
    assert shape_of(again.decoder) == shape
    assert again.num_parameters() == body_parameters(foundation.decoder, shape)
    there = shape_of(foundation.decoder)
    assert foundation.num_parameters() == body_parameters(foundation.decoder, there)
    assert again.settings.vector_dim == foundation.settings.vector_dim
    vectors = again.embed_users(rows)
    assert vectors.shape == (len(rows), 16)
    np.testing.assert_allclose(vectors, small.embed_users(rows), atol=1e-6)


def test_notches_are_rounded_and_what_the_family_takes(make: Any, of_family: Any) -> None:
    qwen, llama = make(size="mini").decoder, of_family("llama").decoder
    there = shape_of(qwen)
    assert notch(qwen, there, "neurons") == replace(there, neurons=184)
    assert notch(qwen, there, "hidden") == replace(there, hidden=56)
    assert notch(qwen, there, "groups") == replace(there, groups=1)
    assert notch(qwen, replace(there, layers=1), "layers") is None
    assert notch(qwen, replace(there, neurons=8192), "neurons") == replace(there, neurons=8128)
    assert notch(qwen, replace(there, neurons=93), "neurons") == replace(there, neurons=88)
    # Llama's configuration wants a width that its heads divide.
    eight = replace(shape_of(llama), hidden=40)
    assert notch(llama, eight, "hidden") == replace(eight, hidden=32)


@pytest.mark.parametrize(
    ("name", "value"), [("layers", 0), ("layers", 3), ("neurons", 97), ("groups", 2), ("hidden", 0)]
)
def test_a_size_that_is_not_there_is_refused(make: Any, rows: Rows, name: str, value: int) -> None:
    foundation = make()
    importance = measure_importance(foundation, rows)
    with pytest.raises(BadInput, match=rf"shape\.{name}={value} must be between 1 and"):
        prune(foundation, importance, smaller(foundation, **{name: value}))


@pytest.mark.parametrize("family", ["granite", "smollm3", "olmo2", "arcee"])
def test_a_family_of_other_parts_is_refused(family: str) -> None:
    decoder = SimpleNamespace(config=SimpleNamespace(model_type=family))
    with pytest.raises(BadInput, match=f"type '{family}' cannot be pruned.*qwen3.* can be"):
        check_known(decoder)


def test_a_shape_that_stock_loaders_refuse_is_refused(of_family: Any, rows: Rows) -> None:
    foundation = of_family("llama")
    with pytest.raises(BadInput, match="none that stock loaders take"):
        prune(foundation, measure_importance(foundation, rows), smaller(foundation, hidden=30))


@pytest.mark.parametrize("weights", ["int8", "fp8", "int4"])
def test_rounded_weights_are_refused(make: Any, rows: Rows, weights: Any) -> None:
    foundation = make()
    importance = measure_importance(foundation, rows)
    foundation.settings = replace(foundation.settings, weights=weights)
    with pytest.raises(BadInput, match=f"a model in {weights} cannot be pruned"):
        prune(foundation, importance, smaller(foundation, layers=1))


def test_a_decoder_with_parts_of_its_own_is_refused(make: Any, rows: Rows) -> None:
    foundation = make()
    foundation.decoder.model.layers[0].mlp.router = torch.nn.Linear(2, 2)
    with pytest.raises(BadInput, match=r"mlp\.router\.weight .* none that pruning knows"):
        measure_importance(foundation, rows)


def test_no_calibration_is_refused(make: Any, rows: Rows) -> None:
    with pytest.raises(ValueError, match="rows holds no calibration prompt"):
        measure_importance(make(), take_rows(rows, np.zeros(0, np.int64)))
