from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from foundation import FitConfig, Foundation, LoraOptions
from foundation.adapters import adapted
from foundation.resuming import last_whole_checkpoint
from foundation.trainer import FoundationTrainer
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput

pytest.importorskip("peft", reason="LoRA needs peft: pip install -e '.[peft]'")

LORA = LoraOptions(rank=4, alpha=8)
CONFIG = FitConfig(
    epochs=2,
    positions_per_batch=2048,
    learning_rate=3e-3,
    reread_items=4,
    text_positions=32,
    checkpoint_seconds=0,
    evaluate_steps=4,
    lora=LORA,
)


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


Fit = Callable[..., Foundation]


@pytest.fixture
def fit(make: Any, books: dict[str, PromptBook], split: Split) -> Fit:
    def run(
        out: Path,
        *,
        model: Foundation | None = None,
        killed_in_step: int | None = None,
        **changes: Any,
    ) -> Foundation:
        model = model or make("slot", dropout=0.1)
        plain = FoundationTrainer.compute_loss
        steps: list[int] = []

        def compute_loss(trainer: FoundationTrainer, *arguments: Any, **options: Any) -> Any:
            steps.append(trainer.state.global_step + 1)
            if steps[-1] == killed_in_step:
                raise Killed
            return plain(trainer, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FoundationTrainer, "compute_loss", compute_loss)
            # The validation of the fourth step is the best.
            model.fit(
                books["slot"],
                split,
                config=replace(CONFIG, **changes),
                out=out,
                validate=lambda: {"ndcg@10": 0.3 if steps[-1] == 4 else 0.2},
            )
        return model

    return run


def test_only_adapters_heads_and_slots_learn(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    model = make("slot")
    learned: set[str] = set()
    plain = FoundationTrainer._get_grad_norm

    def look(trainer: Any, module: Any, grad_norm: Any = None) -> Any:
        learned.update(n for n, p in model.named_parameters() if p.grad is not None)
        return plain(trainer, module, grad_norm=grad_norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FoundationTrainer, "_get_grad_norm", look)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        config = replace(CONFIG, epochs=1, evaluate_steps=0)
        model.fit(books["slot"], split, config=config, out=tmp_path)
    in_decoder = {name for name in learned if name.startswith("decoder.")}
    assert in_decoder
    assert all("lora_" in name for name in in_decoder)
    for part in ("person_head.weight", "item_head.weight", "items.residual_ID"):
        assert part in learned
    after = model.state_dict()
    # Merged, the names are those of a stock decoder; its own weights changed by a low rank alone.
    assert after.keys() == before.keys()
    name = "decoder.model.layers.0.mlp.up_proj.weight"
    change = after[name] - before[name]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == LORA.rank
    name = "decoder.model.embed_tokens.weight"
    assert torch.equal(after[name], before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_merged_reads_as_unmerged(
    make: Any, books: dict[str, PromptBook], split: Split, tmp_path: Path
) -> None:
    model = make("slot")
    rows = books["slot"].prefixes(split.test)
    plain = model.embed_users(rows)
    with adapted(model, LORA, seed=0):
        # Before they have learned, adapters change nothing.
        torch.testing.assert_close(torch.tensor(model.embed_users(rows)), torch.tensor(plain))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        unmerged = model.embed_users(rows)
    merged = model.embed_users(rows)
    assert abs(unmerged - plain).max() > 1e-2
    torch.testing.assert_close(torch.tensor(merged), torch.tensor(unmerged), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "model")
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    again = Foundation.from_pretrained(tmp_path / "model").embed_users(rows)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(merged))


@pytest.mark.parametrize("evaluate_steps", [0, 4])
def test_killed_and_resumed_is_unbroken(fit: Fit, tmp_path: Path, evaluate_steps: int) -> None:
    wanted = fit(tmp_path / "unbroken", evaluate_steps=evaluate_steps).state_dict()
    out = tmp_path / "broken"
    with pytest.raises(Killed):
        fit(out, killed_in_step=6, evaluate_steps=evaluate_steps)
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-5"
    resumed = fit(out, evaluate_steps=evaluate_steps).state_dict()
    assert [name for name in wanted if not torch.equal(resumed[name], wanted[name])] == []


def test_the_model_of_a_killed_training_goes_on_as_one_loaded_anew(
    fit: Fit, make: Any, tmp_path: Path
) -> None:
    wanted = fit(tmp_path / "unbroken").state_dict()
    model = make("slot", dropout=0.1)
    with pytest.raises(Killed):
        fit(tmp_path / "broken", model=model, killed_in_step=6)
    resumed = fit(tmp_path / "broken", model=model).state_dict()
    assert [name for name in wanted if not torch.equal(resumed[name], wanted[name])] == []


@pytest.mark.parametrize("patience", [0, 1])
def test_adapters_are_not_merged_twice(fit: Fit, tmp_path: Path, patience: int) -> None:
    model = fit(tmp_path, patience=patience)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BadInput, match=r"load the model anew to go on.*or give another out="):
        fit(tmp_path, model=model, patience=patience)
    after = model.state_dict()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    # Loaded anew it is the same again.
    again = fit(tmp_path, patience=patience).state_dict()
    assert [name for name in before if not torch.equal(again[name], before[name])] == []


def test_what_is_frozen_is_not_saved_again(fit: Fit, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    fit(tmp_path, epochs=1)
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    names = set(load_file(checkpoint / "model.safetensors"))
    assert not any(name.endswith("base_layer.weight") for name in names)
    assert "decoder.model.embed_tokens.weight" not in names
    assert {"person_head.weight", "items.reading_ID"} <= names


def test_after_an_error_the_decoder_is_a_stock_one(fit: Fit, make: Any) -> None:
    model = make("slot")
    names = set(model.state_dict())
    with pytest.raises(Killed), adapted(model, LORA, seed=0):
        raise Killed
    assert set(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_not_there_are_said(make: Any) -> None:
    model = make("slot")
    wrong = LoraOptions(targets=("c_attn",))
    with (
        pytest.raises(BadInput, match=r"names no layer of this decoder; it has .*up_proj, v_proj"),
        adapted(model, wrong, seed=0),
    ):
        pass
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_peft_it_is_said(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        pytest.raises(BadInput, match=r"needs peft: pip install -e '\.\[peft\]'"),
        adapted(make("slot"), LORA, seed=0),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "value"), [("rank", 0), ("alpha", 0), ("dropout", 1.0), ("targets", ())]
)
def test_adapters_that_cannot_be_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"LoraOptions.{name}="):
        LoraOptions(**{name: value})
