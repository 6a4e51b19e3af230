"""A trimmed vocabulary: the same prompts, the same scores, fewer rows."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from distill.vocabulary import said_tokens, trim_tokenizer, trim_vocabulary
from foundation import Foundation, FoundationConfig
from foundation.batches import take_rows
from promptify.assembly import PromptBook
from promptify.prompter import Prompter
from promptify.sources.job_market import TASKS
from promptify.splits import Split
from promptify.tokenizer import token_ids, train_tokenizer
from promptify.validation import BadInput

ELSEWHERE = [
    f"{a}{b}{c} der die das und nicht {c}{a} для чтобы 東京 λόγος def return self.{b}"
    for a in ("Gesund", "Donau", "Wort", "Zahn")
    for b in ("heits", "dampf", "schatz", "arzt")
    for c in ("amt", "schiff", "kiste", "praxis")
]


@pytest.fixture(scope="module")
def hub_tokenizer(text_book: PromptBook) -> PreTrainedTokenizerFast:
    """A tokenizer for this market and for much that it never says, with tokens of its own."""
    texts = [text_book.prompter.tokenizer.decode(piece) for piece in text_book.said.items]
    labels = text_book.prompter.label_words
    tokenizer = train_tokenizer(
        [*texts, *(f" {text}" for text in ELSEWHERE)], label_words=labels, vocab_size=1400
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|never|>"]})
    return tokenizer


@pytest.fixture(scope="module")
def like_gemma(text_book: PromptBook) -> PreTrainedTokenizerFast:
    """Another, whose tokens are characters, with bytes for those that it lacks."""
    texts = [text_book.prompter.tokenizer.decode(piece) for piece in text_book.said.items]
    labels = "".join(f" => {word}\n" for word in text_book.prompter.label_words)
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", "<pad>", *single],
        # Its many characters may hold those that stand for bytes in a byte-level BPE.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, *(f" {text}" for text in ELSEWHERE), labels * 50], trainer)
    parts = json.loads(backend.to_str())
    # Bytes are tokens like others there.
    parts["added_tokens"] = [one for one in parts["added_tokens"] if one["content"] not in single]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<pad>",
        additional_special_tokens=["<|user|>", "<|never|>"],
    )


@pytest.fixture(scope="module", params=["slot", "text", "text, characters"])
def hub_book(
    request: Any,
    book: PromptBook,
    text_book: PromptBook,
    split: Split,
    hub_tokenizer: PreTrainedTokenizerFast,
    like_gemma: PreTrainedTokenizerFast,
) -> PromptBook:
    own = book if request.param == "slot" else text_book
    tokenizer = like_gemma if "characters" in request.param else hub_tokenizer
    config, log = own.prompter.config, own.interactions
    return Prompter.fit(log, split.train, TASKS, config=config, tokenizer=tokenizer).book(log)


@pytest.fixture(scope="module")
def hub_model(hub_book: PromptBook, split: Split) -> Foundation:
    config = FoundationConfig(vector_dim=16, dropout=0.0)
    made = Foundation.create(hub_book.prompter, hub_book, split.train, size="tiny", config=config)
    with torch.no_grad():
        made.person_head.weight.add_(0.2 * torch.randn_like(made.person_head.weight))
    made.refresh_readings()
    return made.eval()


def assert_same(big: Foundation, book: PromptBook, small: Foundation, split: Split) -> None:
    there, here = book.prefixes(split.test), small.prompter.book(book.interactions)
    own = here.prefixes(split.test)
    assert np.array_equal(own.lengths, there.lengths)
    np.testing.assert_allclose(small.embed_items(), big.embed_items(), atol=1e-5)
    np.testing.assert_allclose(small.embed_users(own), big.embed_users(there), atol=1e-5)
    items = np.arange(8)
    for row in (0, 7):
        got = small.score(take_rows(own, np.array([row])), items)
        wanted = big.score(take_rows(there, np.array([row])), items)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_every_score_stays(hub_model: Foundation, hub_book: PromptBook, split: Split) -> None:
    small = trim_vocabulary(hub_model, hub_book)
    assert small.prompter.vocab_size < 0.9 * hub_book.prompter.vocab_size
    embedding = small.decoder.get_input_embeddings().weight
    assert len(embedding) == small.decoder.config.vocab_size == small.prompter.vocab_size
    assert_same(hub_model, hub_book, small, split)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mistral"])
@pytest.mark.parametrize("form", ["slot", "text"])
def test_every_family_keeps_its_scores(
    of_family: Any,
    family: str,
    form: str,
    book: PromptBook,
    text_book: PromptBook,
    split: Split,
) -> None:
    own = {"slot": book, "text": text_book}[form]
    big = of_family(family, form)
    assert_same(big, own, trim_vocabulary(big, own), split)


def test_it_is_saved_and_loads_as_stock(
    hub_model: Foundation, hub_book: PromptBook, split: Split, tmp_path: Any
) -> None:
    small = trim_vocabulary(hub_model, hub_book)
    small.save_pretrained(tmp_path / "small")
    loaded = Foundation.from_pretrained(tmp_path / "small")
    assert_same(hub_model, hub_book, loaded, split)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert stock.config.vocab_size == small.prompter.vocab_size
    # A second time nothing is left to take.
    again = trim_vocabulary(loaded, loaded.prompter.book(hub_book.interactions))
    assert again.prompter.vocab_size == loaded.prompter.vocab_size


@given(text=st.text(max_size=40))
def test_any_text_can_still_be_said(
    text: str, hub_tokenizer: PreTrainedTokenizerFast, like_gemma: PreTrainedTokenizerFast
) -> None:
    for tokenizer in (hub_tokenizer, like_gemma):
        [arrow] = token_ids(tokenizer, [" =>"])  # which every log says
        small, kept = trim_tokenizer(tokenizer, np.array([300, 301, *arrow]))
        assert len(kept) < 300
        ids = token_ids(small, [text])[0]
        assert small.decode(ids) == tokenizer.decode(token_ids(tokenizer, [text])[0])
        assert all(0 <= token < len(kept) for token in ids)


def test_texts_that_are_to_come_stay_in_whole_words(
    hub_model: Foundation, hub_book: PromptBook
) -> None:
    coming = "Donaudampfschiff und 東京"
    told = trim_vocabulary(hub_model, hub_book, texts=[coming]).prompter.tokenizer
    bare = trim_vocabulary(hub_model, hub_book).prompter.tokenizer
    whole = token_ids(hub_book.prompter.tokenizer, [f" {coming}"])[0]
    assert len(token_ids(told, [f" {coming}"])[0]) == len(whole)
    assert len(token_ids(bare, [f" {coming}"])[0]) > len(whole)


def test_what_is_kept_reads_as_before(hub_book: PromptBook) -> None:
    prompter = hub_book.prompter
    small, kept = trim_tokenizer(prompter.tokenizer, said_tokens(prompter, hub_book))
    texts = [prompter.tokenizer.decode(piece) for piece in hub_book.said.items]
    for before, after in zip(
        token_ids(prompter.tokenizer, texts), token_ids(small, texts), strict=True
    ):
        assert kept[after].tolist() == before
    for name in ("eos_token", "pad_token"):
        assert getattr(small, name) == getattr(prompter.tokenizer, name)
    assert token_ids(small, ["<|never|>"]) == [[small.convert_tokens_to_ids("<|never|>")]]


def test_every_way_of_making_a_token_stays() -> None:
    # As transformers converts Llama 3: a merge for every split of a token into two others. On the
    # way to "abcd" stands "cd", which the last way of making it does not name; without it, "de"
    # would be merged first.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("c", "d"), ("d", "e"), ("ab", "c"), ("ab", "cd"), ("abc", "d")]
    words = [*alphabet, *dict.fromkeys(first + second for first, second in merges)]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    before, other = token_ids(tokenizer, ["abcde", "de"])
    assert [words[token] for token in [*before, *other]] == ["abcd", "e", "de"]
    small, kept = trim_tokenizer(tokenizer, np.array([*before, *other]))
    assert kept[token_ids(small, ["abcde"])[0]].tolist() == before


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), "a WordLevel"),
        (models.Unigram([("[UNK]", 0.0), ("a", -1.0)], unk_id=0), "a Unigram"),
        (models.BPE(vocab={"a": 0, "[UNK]": 1}, merges=[]), "a BPE without every byte"),
        # It falls back to bytes, and lacks most.
        (
            models.BPE(
                vocab={
                    word: place
                    for place, word in enumerate(["<0x41>", *pre_tokenizers.ByteLevel.alphabet()])
                },
                merges=[],
                byte_fallback=True,
            ),
            "a BPE without every byte",
        ),
    ],
)
def test_another_kind_of_tokenizer_is_refused(model: Any, kind: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    with pytest.raises(BadInput, match=rf"the tokenizer is {kind}.* leave the vocabulary as it is"):
        trim_tokenizer(tokenizer, np.array([0]))


def test_a_book_of_another_prompter_is_refused(hub_model: Foundation, book: PromptBook) -> None:
    with pytest.raises(BadInput, match=r"foundation\.prompter\.book"):
        trim_vocabulary(hub_model, book)


@torch.no_grad()
def test_grades_stay_though_no_prompt_says_them(book: PromptBook, split: Split, make: Any) -> None:
    tasks = (replace(TASKS[0], grades=("unfit", "passable", "ideal")), TASKS[1])
    log, config = book.interactions, book.prompter.config
    graded = Prompter.fit(log, split.train, tasks, config=config).book(log)
    model = make(of=graded)
    small = trim_vocabulary(model, graded)
    assert small.prompter.vocab_size < graded.prompter.vocab_size
    was, now = (
        one.score_both(take_rows(said.prefixes(split.test, task=0), np.array([0])), np.arange(9))
        for one, said in ((model, graded), (small, small.prompter.book(log)))
    )
    assert now.grade_CG.shape == (9, 3)
    np.testing.assert_allclose(now.grade_CG, was.grade_CG, atol=1e-5)
