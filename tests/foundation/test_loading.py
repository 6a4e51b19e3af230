"""Models are built one at a time: transformers changes its classes while it loads one."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedModel

from distill.anatomy import shape_of
from distill.importance import measure_importance
from distill.pruning import prune
from foundation import Foundation
from foundation.text_encoder import TextEncoder
from promptify.assembly import PromptBook
from promptify.splits import Split


@pytest.fixture
def encoder(tmp_path: Path, books: dict[str, PromptBook]) -> Path:
    folder = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=900,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(folder)
    books["slot"].prompter.tokenizer.save_pretrained(folder)
    return folder


def test_no_two_models_are_built_at_once(
    make: Any,
    books: dict[str, PromptBook],
    split: Split,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foundation: Foundation = make("slot")
    foundation.save_pretrained(tmp_path / "model")
    rows = books["slot"].prefixes(split.valid[np.arange(4)])
    importance = measure_importance(foundation, rows)
    tied, at_once, most = PreTrainedModel.tie_weights, 0, [0]
    lock = threading.Lock()

    def counted(build: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*given: Any, **options: Any) -> Any:
            nonlocal at_once
            with lock:
                at_once += 1
                most[0] = max(most[0], at_once)
            time.sleep(0.05)
            try:
                return build(*given, **options)
            finally:
                with lock:
                    at_once -= 1

        return slowly

    for kind, name in (
        (AutoModelForCausalLM, "from_pretrained"),
        (AutoModelForCausalLM, "from_config"),
        (AutoModel, "from_pretrained"),
    ):
        monkeypatch.setattr(kind, name, counted(getattr(kind, name)))
    jobs: list[Callable[[], Any]] = [
        lambda: Foundation.from_pretrained(tmp_path / "model"),
        lambda: TextEncoder.load(encoder),
        lambda: make("slot"),
        lambda: prune(foundation, importance, shape_of(foundation.decoder)),
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        loaded, *_ = [done.result() for done in [pool.submit(job) for job in jobs * 2]]
    assert most == [1]
    assert PreTrainedModel.tie_weights is tied
    np.testing.assert_array_equal(loaded.embed_users(rows), foundation.embed_users(rows))
