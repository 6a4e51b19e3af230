from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from promptify import tokenizer as tokenizer_module
from promptify.tokenizer import (
    MIN_VOCAB_SIZE,
    check_label_words,
    check_pieces_add_up,
    load_tokenizer,
    single_token,
    token_ids,
    tokenize_within,
    train_tokenizer,
)
from promptify.validation import BadInput
from promptify.words import ARROW

LABELS = ("liked", "watched", "disliked")
TEXTS = [f" film number {n} about the sea and the city (19{n % 100:02})" for n in range(300)]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, label_words=LABELS, vocab_size=700)


def _trained(tokenizer: Tokenizer, texts: list[str]) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|im_start|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_arrow_and_labels_are_single_tokens(trained: PreTrainedTokenizerFast) -> None:
    label_ids, arrow_id, newline_id = check_label_words(trained, LABELS)
    assert [trained.decode([i]) for i in label_ids] == [" liked", " watched", " disliked"]
    assert trained.decode([arrow_id, newline_id]) == " =>\n"
    check_pieces_add_up(trained, LABELS)
    assert len(trained) <= 700


def test_labels_stay_single_in_the_smallest_vocabulary() -> None:
    words = [f"{a}{b}cdefgh" for a in "klmnopqr" for b in "aeiou"][:12]
    tokenizer = train_tokenizer(TEXTS, label_words=words, vocab_size=MIN_VOCAB_SIZE)
    check_label_words(tokenizer, words)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(BadInput, match="vocab_size=300"):
        train_tokenizer(TEXTS, label_words=LABELS, vocab_size=300)


def test_a_vocabulary_without_room_for_the_labels_is_to_be_raised() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.permutation(list("abcdefghijklmnopqrst"))) for _ in range(30)]
    with pytest.raises(BadInput, match=r"vocab_size=512 is too small for ' \w+' .* raise it"):
        train_tokenizer(TEXTS, label_words=words, vocab_size=MIN_VOCAB_SIZE)
    # Of no size would several words be one token: that is said where labels are checked.
    train_tokenizer(TEXTS, label_words=["not interested"], vocab_size=MIN_VOCAB_SIZE)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives(trained: PreTrainedTokenizerFast, text: str) -> None:
    assert trained.decode(token_ids(trained, [text])[0]) == text


def test_a_split_label_is_named_with_words_that_are_whole(
    qwen_like: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(BadInput, match="' likewise' must be a single token") as error:
        single_token(qwen_like, " likewise")
    assert "liked" in str(error.value).partition("words that are one token")[2]


@pytest.mark.parametrize("word", ["not interested", "5", "liked!", ""])
def test_a_label_that_is_not_a_word_is_refused(trained: PreTrainedTokenizerFast, word: str) -> None:
    with pytest.raises(BadInput, match="one word of letters"):
        check_label_words(trained, ["liked", word])


def test_a_tokenizer_of_the_common_kind_is_taken(qwen_like: PreTrainedTokenizerFast) -> None:
    check_label_words(qwen_like, LABELS)
    check_pieces_add_up(qwen_like, LABELS)


def test_a_tokenizer_that_adds_a_space_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(BadInput, match="sum of its pieces"):
        check_pieces_add_up(_trained(tokenizer, TEXTS), LABELS)


def test_a_tokenizer_that_reads_across_lines_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    lines = [f"{ARROW} liked\n the sea{ARROW} watched\n"] * 50
    with pytest.raises(BadInput, match="sum of its pieces"):
        check_pieces_add_up(_trained(tokenizer, lines), LABELS)


def test_texts_are_read_in_parts_as_they_are_at_once(
    trained: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", "a", *TEXTS[:20], "x " * 50]
    at_once = tokenize_within(trained, texts, max_tokens=12)
    most = []
    call = PreTrainedTokenizerFast.__call__

    def counted(self: Any, text: list[str], **options: Any) -> Any:
        most.append(len(text))
        return call(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    monkeypatch.setattr(tokenizer_module, "_TEXTS_AT_ONCE", 4)
    parts = tokenize_within(trained, texts, max_tokens=12)
    assert max(most) == 4
    np.testing.assert_array_equal(parts.ids, at_once.ids)
    np.testing.assert_array_equal(parts.offsets, at_once.offsets)
    assert len(tokenize_within(trained, [], max_tokens=12)) == 0


@pytest.mark.parametrize(("form", "is_taken"), [("NFC", True), ("NFKC", False), ("NFKD", False)])
def test_a_tokenizer_that_reads_other_characters_as_an_arrow_is_refused(
    form: str, is_taken: bool
) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = getattr(normalizers, form)()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained = _trained(tokenizer, TEXTS)
    if is_taken:
        check_pieces_add_up(trained, LABELS)
    else:
        with pytest.raises(BadInput, match="sum of its pieces"):
            check_pieces_add_up(trained, LABELS)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80), st.integers(8, 20))
@example("東京物語" * 20, 8)
@example("word " * 40, 9)
@example("x" * 300, 8)
@example("👨‍👩‍👧" * 10, 8)
@example(" a++++++++++++++++++++++++++++", 8)
def test_long_text_is_cut_as_text(
    trained: PreTrainedTokenizerFast, text: str, max_tokens: int
) -> None:
    for close in (False, True):
        ids = tokenize_within(trained, ["a", text], max_tokens=max_tokens, close=close)[1].tolist()
        told = trained.decode(ids)
        assert len(ids) <= max_tokens
        assert text.startswith(told)
        assert token_ids(trained, [told])[0] == ids
        if len(token_ids(trained, [text])[0]) <= max_tokens:
            assert told == text
        elif close:
            assert not told or told[-1].isalnum()


def test_a_cut_keeps_what_fits(trained: PreTrainedTokenizerFast) -> None:
    text = " the unforgettable sea" * 20
    for max_tokens in range(12, 40):
        told = trained.decode(tokenize_within(trained, [text], max_tokens=max_tokens)[0].tolist())
        assert told.endswith(("the", "unforgettable", "sea"))
        longer = text[: text.find(" ", len(told) + 1)]
        assert len(token_ids(trained, [longer])[0]) > max_tokens


def test_a_saved_tokenizer_reads_the_same(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert token_ids(loaded, TEXTS[:5]) == token_ids(trained, TEXTS[:5])
    assert loaded.eos_token == trained.eos_token


def test_a_folder_without_a_whole_tokenizer_is_refused(
    trained: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    trained.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read"):
        load_tokenizer(tmp_path)
