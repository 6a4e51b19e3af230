"""A whole step down, of every family: what comes of it is a stock checkpoint."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import distill
from distill import Hands, Ladder, LadderConfig
from distill.anatomy import Shape, shape_of
from distill.gate import Measurements
from foundation import FitConfig, Foundation
from foundation.evaluation.ranks import ndcg
from foundation.predictions import predict_targets
from promptify.assembly import PromptBook
from promptify.splits import Split, Targets


def measuring(book: PromptBook) -> Callable[..., dict[str, Measurements]]:
    """What the gate looks at, each model as quick as the others."""

    def of(model: Foundation, targets: Targets) -> Measurements:
        said = predict_targets(model, book, targets)
        return Measurements(
            target_user=said.user,
            target_ndcg=ndcg(said.rank, 10),
            event_user=said.action_user,
            event_label=said.action_label == 0,
            event_probability=np.exp(said.action_log_probs[:, 0]),
            latency_ms=1.0,
        )

    def measure(models: Mapping[str, Foundation], targets: Targets) -> dict[str, Measurements]:
        return {name: of(model, targets) for name, model in models.items()}

    return measure


# What tells it from the others stands beside each.
@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("llama", "slot"),  # a head of its own, biases
        ("mistral", "text"),  # a head of its own, a window in every layer
        ("qwen2", "text"),
        ("gemma2", "slot"),  # soft caps, a window in every other layer
        ("gemma3_text", "text"),  # norms of heads, positions by kind of layer
    ],
)
def test_a_step_down_is_taught_gated_and_a_stock_checkpoint(
    of_family: Any,
    book: PromptBook,
    text_book: PromptBook,
    split: Split,
    tmp_path: Path,
    family: str,
    form: str,
) -> None:
    book_of = {"slot": book, "text": text_book}[form]
    top = of_family(family, form)
    before = {name: weight.clone() for name, weight in top.state_dict().items()}
    end, settled = Shape(layers=2, neurons=40, groups=1, hidden=24), []
    config = LadderConfig(
        shape=end,
        max_step=0.8,
        # Losses on a few people mean nothing.
        max_loss=9.0,
        max_loss_vs_top=9.0,
        max_miscalibration=9.0,
        gate_people=6,
        minutes_per_rung=None,
        fit=FitConfig(
            epochs=0.1,
            positions_per_batch=2048,
            reread_items=4,
            text_positions=16,
            evaluate_steps=0,
        ),
        calibration_rows=16,
    )
    hands = Hands(measure=measuring(book_of), settle=settled.append, watch=lambda _: {})
    rung = Ladder(top, book_of, split, config=config, hands=hands).step_down(top, scratch=tmp_path)

    # So few people leave it open whether what repair left is as good: it is taught, and taken.
    assert rung.folder == tmp_path / "attempt-1" / "taught" / "model"
    [attempt] = rung.attempts
    assert attempt.shape == end
    assert (attempt.status, attempt.failed, attempt.epochs) == ("undecided", (), 0.1)
    assert len(settled) == 2
    assert rung.above is not None
    assert rung.top is not None
    assert np.isfinite(rung.history["history"]["loss/teacher_next_item"]).all()

    own = Foundation.from_pretrained(rung.folder)
    assert shape_of(own.decoder) == end
    repaired = Foundation.from_pretrained(tmp_path / "attempt-1" / "repaired" / "model")
    moved = own.person_head.weight - repaired.person_head.weight
    assert moved.abs().max() > 0
    stock, report = AutoModelForCausalLM.from_pretrained(rung.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(1, 97)[None]  # more than a window
    with torch.no_grad():
        wanted, got = own.decoder(ids).logits, stock(ids).logits
    torch.testing.assert_close(got, wanted)
    # The top is only read.
    assert all(torch.equal(weight, before[name]) for name, weight in top.state_dict().items())


def test_the_room_names_its_ladder_and_a_policy_does_not_wait_for_torch() -> None:
    assert set(distill.__all__) == {"Hands", "Ladder", "LadderConfig"}
    with pytest.raises(AttributeError, match="module 'distill' has no attribute 'Lader'"):
        _ = distill.Lader
    code = "import sys, distill.policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
