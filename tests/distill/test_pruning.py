from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.pruning import Importance, measure_importance, prune
from foundation.batches import take_rows
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split


@pytest.fixture(scope="module")
def rows(book: PromptBook, split: Split) -> Rows:
    windows = book.windows(split.train, seed=0, epoch=0)
    return book.assemble(windows[np.arange(12)], seed=0, epoch=0)


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
    small = prune(foundation, importance, num_layers=2)
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
    small = prune(foundation, importance, intermediate_size=93)
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


def test_pruned_to_its_own_size_nothing_changes(make: Any, rows: Rows, book: PromptBook) -> None:
    foundation = make()
    before = {name: weight.clone() for name, weight in foundation.state_dict().items()}
    same = prune(foundation, measure_importance(foundation, rows))
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
    small = prune(
        foundation, measure_importance(foundation, rows), num_layers=2, intermediate_size=64
    )
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
    neurons = measure_importance(foundation, rows).neurons
    small = prune(foundation, Importance(layers=(0.2, 0.1, 0.9), neurons=neurons), num_layers=2)
    for at, kept in enumerate((0, 2)):
        assert torch.equal(
            small.decoder.model.layers[at].self_attn.q_proj.weight,
            foundation.decoder.model.layers[kept].self_attn.q_proj.weight,
        )


def test_the_pruned_table_holds_the_pruned_readings(make: Any, rows: Rows) -> None:
    foundation = make()
    small = prune(foundation, measure_importance(foundation, rows), intermediate_size=8)
    held = small.items.reading_ID.clone()
    assert not torch.allclose(held, foundation.items.reading_ID, atol=1e-3)
    small.refresh_readings()
    torch.testing.assert_close(held, small.items.reading_ID)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_layers", 0), ("num_layers", 3), ("intermediate_size", 0), ("intermediate_size", 97)],
)
def test_a_size_that_is_not_there_is_refused(make: Any, rows: Rows, name: str, value: int) -> None:
    foundation = make()
    importance = measure_importance(foundation, rows)
    with pytest.raises(ValueError, match=rf"{name}={value} must be between 1 and"):
        prune(foundation, importance, **{name: value})


def test_no_calibration_is_refused(make: Any, rows: Rows) -> None:
    with pytest.raises(ValueError, match="rows holds no calibration prompt"):
        measure_importance(make(), take_rows(rows, np.zeros(0, np.int64)))
