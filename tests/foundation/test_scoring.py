from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from foundation import Foundation, FoundationConfig, scoring
from foundation.batches import take_rows
from foundation.predictions import read_pairs
from promptify.assembly import PromptBook
from promptify.pieces import Pieces
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
    return of_pieces(foundation, prefix, foundation.questions(candidates), task)


def of_pieces(foundation: Any, prefix: Rows, pieces: Pieces, task: int = 0) -> np.ndarray:
    labels = foundation.prompter.task_label_index(task)
    found = []
    for piece in range(len(pieces)):
        ids = torch.from_numpy(np.concatenate([prefix.ids, pieces[piece]]).astype(np.int64))
        hidden = foundation.hidden(ids[None], inline_slots_JD=foundation.inline_slots(prefix))[
            0, -1
        ]
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


@pytest.fixture
def shapes_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of all ids that are embedded from now on."""
    shapes: list[tuple[int, int]] = []
    embed = Foundation.embed_ids

    def noted(self: Foundation, ids: torch.Tensor, **kind: Any) -> torch.Tensor:
        shapes.append((ids.shape[0], ids.shape[1]))
        return embed(self, ids, **kind)

    monkeypatch.setattr(Foundation, "embed_ids", noted)
    return shapes


def test_candidates_over_the_memory_are_read_in_parts_which_is_said_once(
    make: Any,
    form: str,
    prefixes: Rows,
    shapes_read: list[tuple[int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    foundation, prefix = make(form), longest(prefixes)
    candidates = np.arange(25, dtype=np.int64) * 2
    whole = foundation.score(prefix, candidates)
    np.testing.assert_allclose(whole, alone(foundation, prefix, candidates), **CLOSE)
    scoring._say_split.cache_clear()
    reading = foundation.read_prefix(prefix)
    shapes_read.clear()
    little = 7_000 if form == "slot" else 70_000
    with caplog.at_level("INFO", logger="foundation.scoring"):
        for _ in "ab":
            parts = foundation.score(reading, candidates, max_bytes=little)
    assert len(shapes_read) > 6
    assert sum(rows for rows, _ in shapes_read) == 2 * 25
    np.testing.assert_allclose(parts, whole, **CLOSE)
    assert len(caplog.records) == 1
    assert "are read in parts" in caplog.text


def test_equal_candidates_are_read_once_and_lengths_share_a_rectangle(
    make: Any, books: dict[str, PromptBook], split: Split, shapes_read: list[tuple[int, int]]
) -> None:
    foundation = make("text")
    prefix = longest(books["text"].prefixes(split.test, task=0))
    ids = np.random.default_rng(0).integers(5, 300, (6, 24))
    lengths = [3, 24, 4, 23, 3, 22]
    pieces = Pieces.of([row[:length].tolist() for row, length in zip(ids, lengths, strict=True)])
    pieces = pieces.take(np.array([0, 1, 2, 3, 1, 0, 4, 5]))
    reading = foundation.read_prefix(prefix)
    shapes_read.clear()
    got = foundation.score(reading, pieces, max_bytes=80 * 1600)
    assert shapes_read == [(3, 4), (3, 24)]
    np.testing.assert_allclose(got, of_pieces(foundation, prefix, pieces), **CLOSE)


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
    np.testing.assert_allclose(
        nurse, alone(foundation, prefix("Ward nurse"), np.arange(3)), **CLOSE
    )


def test_a_reading_serves_retrieval_and_ranking(make: Any, form: str, prefixes: Rows) -> None:
    foundation, prefix = make(form), longest(prefixes)
    reading = foundation.read_prefix(prefix)
    np.testing.assert_allclose(reading.vector_V, foundation.embed_users(prefix)[0], **CLOSE)
    items = np.arange(9)
    np.testing.assert_array_equal(foundation.score(reading, items), foundation.score(prefix, items))
    # Keys and values of two layers with one key-value head of 16.
    assert reading.num_bytes == 2 * 2 * 16 * len(prefix.ids) * 4


def test_a_reading_by_other_weights_is_refused(make: Any, form: str, prefixes: Rows) -> None:
    foundation, prefix = make(form), longest(prefixes)
    reading = foundation.read_prefix(prefix)
    with pytest.raises(ValueError, match="read by other weights"):
        make(form, seed=1).score(reading, np.arange(2))
    foundation.decoder.model.norm.weight.add_(0.1)
    with pytest.raises(ValueError, match="read by other weights"):
        foundation.score(reading, np.arange(2))


def test_a_model_that_is_training_stays_so(make: Any, form: str, prefixes: Rows) -> None:
    foundation, prefix = make(form), longest(prefixes)
    wanted = foundation.score(prefix, np.arange(4))
    foundation.train()
    np.testing.assert_allclose(foundation.score(prefix, np.arange(4)), wanted, **CLOSE)
    assert all(module.training for module in foundation.modules())


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
    with pytest.raises(ValueError, match=r"candidates\[1\] is empty"):
        foundation.score(prefix, Pieces.of([[7], []]))
    foundation.decoder.config.max_position_embeddings = len(prefix.ids) + 2
    assert foundation.score(prefix, some).shape == (1, 3)
    with pytest.raises(ValueError, match=r"prefix and candidate are \d+ positions long, but"):
        foundation.score(prefix, Pieces.of([[7, 7, 7]]))
    foundation.decoder.config.max_position_embeddings = len(prefix.ids) - 1
    with pytest.raises(ValueError, match=r"the prefix is .* give fewer events"):
        foundation.read_prefix(prefix)


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
    # How far it reaches is left to the factor.
    "llama, scaled": LlamaConfig(
        **SHAPE,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "linear", "factor": 32.0, "rope_theta": 1e4},
    ),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=False),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "mistral, no window": MistralConfig(**SHAPE, sliding_window=None),
    "mistral, windowed": MistralConfig(**SHAPE, sliding_window=16),
    "gemma 2": Gemma2Config(**SHAPE, sliding_window=16, query_pre_attn_scalar=8),
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


@pytest.mark.parametrize("family", ["qwen3", "gemma 2", "gemma 3, windowed"])
def test_slots_start_as_large_as_the_tokens_beside_them(
    make: Any, books: dict[str, PromptBook], tmp_path: Path, family: str
) -> None:
    config = FAMILIES[family]
    config.vocab_size = books["slot"].prompter.vocab_size
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    foundation = make("slot", model=tmp_path / "model")
    # Nothing but the bag, as a new model has it.
    torch.nn.init.zeros_(foundation.items.project_reading.weight)
    torch.nn.init.zeros_(foundation.items.residual_ID)
    with torch.no_grad():
        tokens = foundation.embed_ids(torch.arange(config.vocab_size)[None])
        slots = foundation.slots(torch.arange(foundation.num_items))
    assert (slots.norm(dim=1).mean() / tokens.norm(dim=2).mean()).item() == pytest.approx(1, 0.2)


def test_a_model_that_was_never_trained_says_the_same_twice(
    books: dict[str, PromptBook], split: Split
) -> None:
    book = books["slot"]
    config = FoundationConfig(vector_dim=16, instruction_noise=0.9, residual_dropout=0.9)
    new = Foundation.create(book.prompter, book, split.train, size="tiny", config=config)
    torch.nn.init.normal_(new.items.residual_ID)
    assert new.training
    prefix = book.prefixes(split.test[:1], task=0)
    first, second = (new.score(prefix, np.arange(20)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_decoder_of_another_build_is_refused(make: Any, book: PromptBook, tmp_path: Path) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=book.prompter.vocab_size)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"type 'gpt2' cannot be used: .* Llama, Mistral, Qwen2"):
        make("slot", model=tmp_path / "gpt2")
