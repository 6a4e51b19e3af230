from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from foundation import scoring
from foundation.batches import take_rows
from foundation.predictions import read_pairs
from promptify.assembly import PromptBook
from promptify.prompter import HistoryEvent
from promptify.rows import Rows
from promptify.splits import Split

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(autouse=True)
def _no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def prefixes(book: PromptBook, split: Split) -> Rows:
    return book.prefixes(split.test, task=0)


def longest(rows: Rows) -> Rows:
    return take_rows(rows, np.array([int(rows.lengths.argmax())]))


def alone(foundation: Any, prefix: Rows, candidates: np.ndarray, task: int = 0) -> np.ndarray:
    """Ten plain lines: a prompt per candidate, read from its start."""
    labels = foundation.prompter.task_label_index(task)
    pieces = foundation.questions(candidates)
    found = []
    for piece in range(len(pieces)):
        ids = torch.from_numpy(np.concatenate([prefix.ids, pieces[piece]]).astype(np.int64))
        hidden = foundation.hidden(ids[None])[0, -1]
        rows = foundation.decoder.get_output_embeddings().weight[foundation.label_ids_L]
        found.append((rows @ hidden)[labels].log_softmax(0))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("task", [0, 1])
def test_score_is_one_by_one(make: Any, form: str, prefixes: Rows, task: int) -> None:
    foundation, prefix = make(form), longest(prefixes)
    candidates = np.arange(20, dtype=np.int64)
    got = foundation.score(prefix, candidates, task=task)
    assert got.shape == (20, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, alone(foundation, prefix, candidates, task), **CLOSE)
    np.testing.assert_allclose(np.exp(got).sum(1), 1, atol=1e-6)
    assert np.ptp(got[:, 0]) > 1e-3


def test_score_is_what_the_predictions_read(make: Any, form: str, prefixes: Rows) -> None:
    foundation = make(form)
    requests, items = np.array([3, 0, 3]), np.array([5, 7, 5], np.int32)
    people, many = read_pairs(foundation, prefixes, requests, items, task=0, max_positions=300)
    for pair, (request, item) in enumerate(zip(requests, items, strict=True)):
        one = foundation.score(take_rows(prefixes, np.array([request])), np.array([item]))
        np.testing.assert_allclose(many[pair], one[0], **CLOSE)
    np.testing.assert_allclose(people, foundation.embed_users(prefixes)[requests], **CLOSE)


def test_more_candidates_than_one_chunk_holds(
    make: Any, form: str, prefixes: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    foundation, prefix = make(form), longest(prefixes)
    candidates = np.arange(25, dtype=np.int64) * 2
    whole = foundation.score(prefix, candidates)
    monkeypatch.setattr(scoring, "CHUNK_POSITIONS", 7 if form == "slot" else 60)
    chunks = scoring._chunks(foundation.questions(candidates).lengths)
    assert len(chunks) > 3
    assert np.concatenate(chunks).tolist() == list(range(25))
    np.testing.assert_allclose(foundation.score(prefix, candidates), whole, **CLOSE)
    np.testing.assert_allclose(whole, alone(foundation, prefix, candidates), **CLOSE)


def test_a_candidate_does_not_see_the_others(make: Any, form: str, prefixes: Rows) -> None:
    foundation, prefix = make(form), longest(prefixes)
    candidates = np.array([8, 3, 40, 21, 5])
    together = foundation.score(prefix, candidates)
    order = np.array([4, 2, 0, 1, 3])
    permuted = foundation.score(prefix, candidates[order])
    np.testing.assert_allclose(permuted, together[order], **CLOSE)
    fewer = foundation.score(prefix, candidates[[0, 2]])
    np.testing.assert_allclose(fewer, together[[0, 2]], **CLOSE)
    twice = foundation.score(prefix, candidates[[1, 1, 0, 1]])
    np.testing.assert_allclose(twice, together[[1, 1, 0, 1]], **CLOSE)


def test_no_candidate_and_one(make: Any, form: str, prefixes: Rows) -> None:
    foundation, prefix = make(form), longest(prefixes)
    assert foundation.score(prefix, np.array([], np.int64)).shape == (0, 3)
    one = foundation.score(prefix, np.array([4]))
    np.testing.assert_allclose(one, alone(foundation, prefix, np.array([4])), **CLOSE)


def test_candidates_by_their_text(make: Any, books: dict[str, PromptBook], split: Split) -> None:
    foundation, book = make("text"), books["text"]
    prefix = take_rows(book.prefixes(split.test, task=0), np.array([0]))
    items = np.array([3, 9])
    np.testing.assert_allclose(
        foundation.score(prefix, book.item_pieces.take(items)),
        foundation.score(prefix, items),
        **CLOSE,
    )


def test_a_history_of_items_that_are_not_in_the_catalogue(
    make: Any, form: str, book: PromptBook
) -> None:
    foundation = make(form)

    def prefix(title: str) -> Rows:
        event = HistoryEvent(item={"title": title}, action="apply")
        return book.inline({"headline": "Nurse"}, [event], task="jobs")

    welder = foundation.score(prefix("Senior welder"), np.arange(3))
    nurse = foundation.score(prefix("Ward nurse"), np.arange(3))
    assert np.abs(welder - nurse).max() > 1e-4
    _, pairs = read_pairs(
        foundation,
        prefix("Ward nurse"),
        np.zeros(3, np.int64),
        np.arange(3, dtype=np.int32),
        task=0,
    )
    np.testing.assert_allclose(pairs, nurse, **CLOSE)


def test_what_cannot_be_scored_is_named(
    make: Any, books: dict[str, PromptBook], split: Split
) -> None:
    foundation = make("slot")
    rows = books["slot"].prefixes(split.test, task=0)
    prefix, some = take_rows(rows, np.array([0])), np.array([1])
    with pytest.raises(ValueError, match=r"candidates=\[-1\].*from 0 to"):
        foundation.score(prefix, np.array([2, -1]))
    with pytest.raises(ValueError, match=rf"candidates=\[{foundation.num_items}\]"):
        foundation.score(prefix, np.array([foundation.num_items]))
    with pytest.raises(ValueError, match="task=2 is unknown; there are 2 tasks"):
        foundation.score(prefix, some, task=2)
    with pytest.raises(ValueError, match="prefix holds 2 rows"):
        foundation.score(take_rows(rows, np.array([0, 1])), some)


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=False),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "mistral, no window": MistralConfig(**SHAPE, sliding_window=None),
    "mistral, windowed": MistralConfig(**SHAPE, sliding_window=16),
    "gemma 3, windowed": Gemma3TextConfig(**SHAPE, sliding_window=16, query_pre_attn_scalar=8),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_decoder_scores_as_one_by_one(
    make: Any, form: str, prefixes: Rows, book: PromptBook, tmp_path: Path, family: str
) -> None:
    config = FAMILIES[family]
    config.vocab_size = book.prompter.vocab_size + 5
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    foundation, prefix = make(form, model=tmp_path / "model"), longest(prefixes)
    assert prefix.lengths[0] > 32
    
    candidates = np.array([8, 3, 40, 3])
    got = foundation.score(prefix, candidates)
    np.testing.assert_allclose(got, alone(foundation, prefix, candidates), **CLOSE)
    assert np.ptp(got[:, 0]) > 1e-3
