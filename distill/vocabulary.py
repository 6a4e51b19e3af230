"""Leave out the tokens that a domain never says: the same model, with a smaller vocabulary.

    trimmed = trim_vocabulary(foundation, book)
    book = trimmed.prompter.book(book.interactions)

A hub model brings a vocabulary for every language and for code (Qwen3-0.6B: 152 thousand rows of
1,024, a quarter of its parameters), and a catalogue says a few thousand of them. What stays is what
the log's people, items and contexts, the tasks and the prompts themselves say, what those tokens
are merged from, every single byte and every added token. Every prompt of the log is then the same
prompt, and every score the same score: nothing is approximated. A text with other words is still
read, in smaller pieces than before.

BPE alone, over bytes (GPT-2, Qwen, Llama 3) or over characters with bytes for the others (Gemma):
what its tokens are merged from is known, and its bytes can say anything.

Source: the idea of vocabulary trimming (Ushio et al., arXiv 2305.15020), here with the merges kept
closed, so that what is kept is tokenized as it was.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from foundation import Foundation
from foundation.few_bits import stock_state
from foundation.int8 import put_layers
from foundation.loading import ALONE
from promptify.assembly import PromptBook
from promptify.pieces import Pieces
from promptify.prompter import Prompter
from promptify.tokenizer import token_ids
from promptify.validation import BadInput

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@torch.no_grad()
def trim_vocabulary(
    foundation: Foundation, book: PromptBook, *, texts: Sequence[str] = ()
) -> Foundation:
    """The same foundation over the tokens that a log says.

    Args:
        foundation: left as it is.
        book: the log in tokens of the foundation's prompter.
        texts: more texts whose tokens stay, such as queries that are to come.

    Returns:
        A foundation with a tokenizer, a prompter, embeddings and head of its own; prompts are those
        of its own prompter.

    Raises:
        BadInput: the tokenizer is not a BPE with every byte, or the book is of another prompter.
    """
    prompter = foundation.prompter
    if prompter.vocab_size != book.prompter.vocab_size:
        raise BadInput(
            f"the book has {book.prompter.vocab_size} tokens and the foundation "
            f"{prompter.vocab_size}; make it with `foundation.prompter.book`."
        )
    said = said_tokens(prompter, book, texts=texts)
    tokenizer, kept = trim_tokenizer(prompter.tokenizer, said)
    new_of_old = np.full(prompter.vocab_size, -1, np.int32)
    new_of_old[kept] = np.arange(len(kept), dtype=np.int32)
    pieces = foundation.item_pieces
    trimmed = Foundation(
        _with_rows(foundation.decoder, kept, new_of_old),
        prompter=Prompter(
            tasks=prompter.tasks, config=prompter.config, tokenizer=tokenizer, words=prompter.words
        ),
        config=foundation.settings,
        item_ids=foundation.item_ids,
        item_pieces=Pieces(ids=new_of_old[pieces.ids], offsets=pieces.offsets),
    )
    heads = {
        name: tensor
        for name, tensor in foundation.state_dict().items()
        if not name.startswith("decoder.")
    }
    trimmed.load_state_dict(heads, strict=False)
    if foundation.settings.weights == "int8":
        put_layers(trimmed.decoder)
    return trimmed.to(foundation.device).eval()


def said_tokens(
    prompter: Prompter, book: PromptBook, *, texts: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Tokens that stand in any prompt of a log, int64, rising.

    Args:
        prompter: of the prompts.
        book: the log in its tokens.
        texts: more texts.
    """
    pieces = (
        book.said.items,
        book.said.profiles,
        book.said.contexts,
        prompter.instruction_pieces,
        prompter.gap_pieces,
        prompter.age_pieces,
    )
    # Grades stand in no prompt, but are read where labels are.
    read = [*prompter.label_ids.tolist(), *prompter.grade_ids.tolist()]
    marks = [*read, prompter.arrow_id, prompter.newline_id]
    # As they stand in a prompt: after a space.
    more = [
        token for ids in token_ids(prompter.tokenizer, [f" {t}" for t in texts]) for token in ids
    ]
    said = np.concatenate([*(one.ids for one in pieces), marks, more])
    return np.unique(said.astype(np.int64))


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerFast, said: NDArray[np.int64]
) -> tuple[PreTrainedTokenizerFast, NDArray[np.int64]]:
    """A tokenizer that reads as before whatever was read as `said`.

    Merges only join, so every merge that was made on the way to a token is one that the token is
    made of: with these kept, the same merges are made of the same text.

    Args:
        tokenizer: a BPE over bytes, or over characters with bytes for the others.
        said: int64, tokens that must stay.

    Returns:
        The tokenizer, and the old id of each of its tokens, int64, rising.

    Raises:
        BadInput: it is none of these.
    """
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    alphabet = _every_byte(model)
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    word_of = {number: word for word, number in vocab.items()}
    kept = {word_of[token] for token in said.tolist() if token in word_of} | alphabet
    # Some lists (Llama 3's as transformers converts it) name every way of making a token.
    made_of: dict[str, list[str]] = {}
    for first, second in merges:
        made_of.setdefault(first + second, []).extend((first, second))
    todo = list(kept)
    while todo:
        for part in made_of.get(todo.pop(), ()):
            if part not in kept:
                kept.add(part)
                todo.append(part)
    added = parts["added_tokens"]
    old = np.unique([*(vocab[word] for word in kept), *(token["id"] for token in added)])
    new_of_old = {int(number): place for place, number in enumerate(old)}
    in_order = sorted(kept, key=lambda word: vocab[word])
    model["vocab"] = {word: new_of_old[vocab[word]] for word in in_order}
    model["merges"] = [[a, b] for a, b in merges if {a, b, a + b} <= kept]
    for token in added:
        token["id"] = new_of_old[token["id"]]
        if token["content"] in vocab:
            model["vocab"][token["content"]] = token["id"]
    _renumber(parts.get("post_processor"), new_of_old)
    trimmed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), **tokenizer.special_tokens_map
    )
    return trimmed, old.astype(np.int64)


def _every_byte(model: dict[str, Any]) -> set[str]:
    """The tokens that are single bytes, with which a tokenizer can say anything."""
    kind = model["type"]
    if kind == "BPE":
        # Where these are fallen back to, those that stand for bytes elsewhere are characters.
        single = (
            {f"<0x{byte:02X}>" for byte in range(256)}
            if model.get("byte_fallback")
            else set(pre_tokenizers.ByteLevel.alphabet())
        )
        if single <= set(model["vocab"]):
            return single
        kind = "BPE without every byte among its tokens"
    raise BadInput(
        f"the tokenizer is a {kind}, of which no token can be left out; leave the vocabulary as it "
        "is, or start from a model whose tokenizer is a BPE with every byte (GPT-2, Qwen, Llama 3, "
        "Gemma)."
    )


def _renumber(processor: dict[str, Any] | None, new_of_old: dict[int, int]) -> None:
    """Tokens that a post-processor would put around a text (ours asks for none)."""
    for one in (processor or {}).get("processors", [processor] if processor else []):
        for token in one.get("special_tokens", {}).values() if "special_tokens" in one else ():
            token["ids"] = [new_of_old[number] for number in token["ids"]]


def _with_rows(decoder: Any, kept: NDArray[np.int64], new_of_old: NDArray[np.int32]) -> Any:
    """A decoder whose embedding and head have the kept rows alone."""
    config = copy.deepcopy(decoder.config)
    config.vocab_size = len(kept)
    for name in _SPECIAL_IDS:
        setattr(config, name, _new_id(getattr(config, name, None), new_of_old))
    with ALONE:
        trimmed: Any = AutoModelForCausalLM.from_config(config, dtype=decoder.dtype)
    rows = torch.from_numpy(kept)
    state = {
        name: tensor.detach().cpu()[rows]
        if name in ("model.embed_tokens.weight", "lm_head.weight")
        else tensor.detach().cpu()
        for name, tensor in stock_state(decoder).items()
    }
    trimmed.load_state_dict(state)
    trimmed.tie_weights()
    return trimmed


def _new_id(old: int | Iterable[int] | None, new_of_old: NDArray[np.int32]) -> Any:
    """A special token's new id; None where it is not among the kept."""
    if old is None:
        return None
    if isinstance(old, int):
        new = int(new_of_old[old]) if old < len(new_of_old) else -1
        return None if new < 0 else new
    return [new for one in old if (new := _new_id(one, new_of_old)) is not None] or None
