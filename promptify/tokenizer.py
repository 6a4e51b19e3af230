"""Tokenizers: one trained here, or any byte-level BPE given, held to what a prompt needs of it.

A prompt is put together from pieces that were tokenized once. That gives the ids of the prompt as a
whole only if no token spans two pieces, and an action can be read at one position only if its label
is one token; both are checked here, when the prompter is built.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from promptify.pieces import Pieces
from promptify.validation import BadInput
from promptify.words import ARROW, cut_to_word

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 512
_TEXTS_AT_ONCE = 10_000

_PROBES = (
    "Predict what this person does",
    "\n",
    " age: 25 to 34 · Zoë, 東京 · pay: top tenth",
    "\n",
    " who knows C++ here",
    "\n",
    " (500) Days of Summer (2009) · Comedy, “Drama”!",
    # A tokenizer that reads other characters as these would read a label or an arrow in any text.
    " ａｐｐｌｙ ＝＞ ﬁ Ⅳ ²",
    ARROW,
)


def train_tokenizer(
    texts: Iterable[str], *, label_words: Sequence[str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose arrow and label words are single tokens.

    The arrow and the labels are ordinary merges, not added tokens: an added token is cut out of a
    text before words are found, and would be found inside " likedness" too. They stand beside every
    text, as they do in prompts, which makes them the most frequent words there are.

    Args:
        texts: lines of the training data.
        label_words: all label words.
        vocab_size: tokens to end with, at most.

    Raises:
        BadInput: the vocabulary is too small for the bytes, the arrow and the labels.

    Source: byte-level BPE as in GPT-2 (Radford et al. 2019).
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise BadInput(f"vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}.")
    events = "".join(f"{ARROW} {word}\n" for word in label_words)

    def corpus() -> Iterator[str]:
        for text in texts:
            yield text
            yield events

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    # What is no word of letters has no token at any size; `check_label_words` refuses it.
    words = [ARROW, *(f" {word}" for word in label_words if word.isalpha())]
    for word, ids in zip(words, token_ids(trained, words), strict=True):
        if len(ids) > 1:
            raise BadInput(
                f"vocab_size={vocab_size} is too small for {word!r} to be one token; raise it."
            )
    return trained


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder with a `tokenizer.json`; runs no code from there.

    Raises:
        BadInput: the folder holds no tokenizer that can be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{folder} holds no tokenizer.json; give the folder of a fast tokenizer.")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
        raise BadInput(f"the tokenizer in {folder} cannot be read ({error}).") from error
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts in one call, without any token that the texts do not hold."""
    if not len(texts):
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def forbidden_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Added tokens that text from outside may not say: all that mean something to a model.

    Plain words are none of them: a vocabulary gains them where it is adapted to a domain
    (``tokenizer.add_tokens(["oak"])``), and they are what its texts are about.
    """
    added = tokenizer.added_tokens_decoder.values()
    return [str(token) for token in added if token.special or not str(token).isalnum()]


def single_token(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The id of a word that must be one token.

    Args:
        tokenizer: any fast tokenizer.
        word: with its leading space, e.g. ``" liked"``.

    Raises:
        BadInput: it is several tokens; the message offers words that are one.
    """
    ids = token_ids(tokenizer, [word])[0]
    if len(ids) == 1 and tokenizer.decode(ids) == word:
        return ids[0]
    parts = [tokenizer.decode([token]) for token in ids]
    others = _single_words_like(tokenizer, word.strip())
    offer = f"; words that are one token: {', '.join(others)}" if others else ""
    raise BadInput(
        f"{word!r} must be a single token of the tokenizer, but it is {parts!r}; "
        f"choose another word, or train a tokenizer here{offer}."
    )


def _single_words_like(tokenizer: PreTrainedTokenizerFast, word: str) -> list[str]:
    texts = (str(tokenizer.decode([token])) for token in tokenizer.get_vocab().values())
    words = {text[1:] for text in texts if re.fullmatch(r" [a-z]{2,}", text)}
    return difflib.get_close_matches(word, sorted(words), n=5, cutoff=0.4)


def check_label_words(
    tokenizer: PreTrainedTokenizerFast, label_words: Sequence[str]
) -> tuple[list[int], int, int]:
    """Ids of the labels, the arrow and the newline.

    Raises:
        BadInput: one of them is not a single token, two are the same, or a label holds anything
            but letters.
    """
    for word in label_words:
        if not word.isalpha():
            raise BadInput(
                f"the action or grade {word!r} must be one word of letters, such as 'liked'."
            )
    label_ids = [single_token(tokenizer, f" {word}") for word in label_words]
    arrow_id, newline_id = single_token(tokenizer, ARROW), single_token(tokenizer, "\n")
    if len({*label_ids, arrow_id, newline_id}) != len(label_ids) + 2:
        raise BadInput(f"the tokenizer reads two of {', '.join(label_words)} as the same token.")
    return label_ids, arrow_id, newline_id


def check_pieces_add_up(tokenizer: PreTrainedTokenizerFast, label_words: Sequence[str]) -> None:
    """Tokenizing a prompt as a whole must give the ids of its pieces.

    Raises:
        BadInput: the tokenizer joins what stands on two sides of a piece's end.
    """
    probes = [*_PROBES, *(p for w in label_words for p in (f" {w}", "\n", " 7", ARROW))]
    pieces = [token for ids in token_ids(tokenizer, probes) for token in ids]
    whole = token_ids(tokenizer, ["".join(probes)])[0]
    if pieces != whole or tokenizer.decode(whole) != "".join(probes):
        raise BadInput(
            "this tokenizer does not read a prompt as the sum of its pieces; give a byte-level BPE "
            "(GPT-2, Qwen, Llama 3) without a prefix space, or train one here."
        )


def tokenize_within(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_tokens: int,
    close: bool = False,
) -> Pieces:
    """Ids of many texts, each shortened to fit.

    A long text is cut as text and read again, so that the ids are those of a text that stands in
    the prompt; cutting ids could leave half a character.

    Args:
        tokenizer: any fast tokenizer.
        texts: P texts.
        max_tokens: longest piece.
        close: whether a text that was cut must end in a letter or digit (a newline follows).

    Returns:
        P pieces; an empty text is an empty piece.
    """
    # What the tokenizer says of a text takes fifty times its ids.
    starts = range(0, len(texts), _TEXTS_AT_ONCE)
    return Pieces.joined(
        [Pieces.of([])]
        + [
            _tokenize(tokenizer, texts[start : start + _TEXTS_AT_ONCE], max_tokens, close)
            for start in starts
        ]
    )


def _tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_tokens: int, close: bool
) -> Pieces:
    pieces: list[list[int]] = [[] for _ in texts]
    unread = dict(enumerate(texts))
    while unread:
        encoded = tokenizer(
            list(unread.values()),
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        # Where tokens lie in a text costs more than they do, and only long ones are asked.
        for row, ids, encoding in zip(
            list(unread), encoded["input_ids"], encoded.encodings or [], strict=True
        ):
            if len(ids) <= max_tokens:
                pieces[row] = ids
                del unread[row]
            else:
                unread[row] = _cut(unread[row], encoding.offsets[max_tokens][0], close=close)
    return Pieces.of(pieces)


def _cut(text: str, num_characters: int, *, close: bool) -> str:
    kept = text[:num_characters]
    if not text[num_characters].isspace():
        # Half a word reads as another word; a script without spaces is cut where it must be.
        kept = re.sub(r"(?<=\S) \S{1,20}$", "", kept)
    return cut_to_word(kept) if close else kept.rstrip()
