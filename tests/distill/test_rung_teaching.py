from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.ladder_config import LadderConfig
from distill.rung_teaching import RungTeaching
from distill.teaching import TeacherConfig
from foundation import FitConfig, Foundation, LoraOptions
from promptify.assembly import PromptBook
from promptify.splits import Split

# All that a training may do otherwise than a model that is asked.
FIT = FitConfig(
    positions_per_batch=2048,
    reread_items=4,
    text_positions=16,
    bf16=True,
    packing=True,
    gradient_checkpointing=True,
    evaluate_steps=0,
)


@pytest.mark.parametrize(
    ("teacher", "lora"),
    [(TeacherConfig(), None), (None, None), (TeacherConfig(), LoraOptions(rank=2))],
)
def test_what_is_timed_is_what_a_training_does(
    make: Any,
    book: PromptBook,
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: TeacherConfig | None,
    lora: LoraOptions | None,
) -> None:
    top, student = make(seed=1), make()
    student.input_dropout.p = 0.3
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    done: list[dict[str, Any]] = []
    read = Foundation.hidden

    def watched(self: Foundation, ids_RT: torch.Tensor, **inputs: Any) -> torch.Tensor:
        if self is student and "position_ids" in inputs:
            done.append(
                {
                    "autocast": torch.is_autocast_enabled("cpu"),
                    "rows": len(ids_RT),
                    "checkpointing": next(
                        getattr(self.decoder, name)
                        # As transformers calls it after 5.17, and before.
                        for name in ("is_activation_checkpointing", "is_gradient_checkpointing")
                        if hasattr(self.decoder, name)
                    ),
                    "attention": self.decoder.config._attn_implementation,
                    "dropout": self.input_dropout.p,
                    "training": self.training,
                    "adapters": sum("lora_" in name for name, _ in self.named_parameters()),
                }
            )
        return read(self, ids_RT, **inputs)

    monkeypatch.setattr(Foundation, "hidden", watched)
    config = LadderConfig(fit=replace(FIT, lora=lora), teacher=teacher)
    teaching = RungTeaching(top, book, split, config=config)
    assert teaching.affordable_epochs(student, top, minutes=1.0) > 0
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not student.training
    timed = done.copy()
    done.clear()
    teaching.teach(student, top, epochs=0.5, out=tmp_path, watch=lambda _: {})
    assert len(timed) > 1
    assert len(done) > 1
    assert all(one == done[0] for one in [*timed, *done])
    assert done[0]["autocast"]
    assert done[0]["rows"] == 1
    assert (done[0]["adapters"] > 0) == (lora is not None)
