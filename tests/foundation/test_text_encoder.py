import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from distill.anatomy import shape_of
from distill.importance import measure_importance
from distill.pruning import prune
from foundation import Foundation, FoundationConfig
from foundation.config import TextEncoderRecord
from foundation.text_encoder import TextEncoder, encoder_hash
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.pieces import Pieces
from promptify.prompter import HistoryEvent
from promptify.splits import Split
from promptify.validation import BadInput

TEXTS = ["senior nurse", "a very long text about cooks and bakers", "", "cook"]


def build_encoder(folder: Path, *, seed: int = 0) -> Path:
    """A tiny BERT with a tokenizer of single letters, saved as a stock checkpoint."""
    letters = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {letter: row for row, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=28,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_encoder(tmp_path / "encoder")


@pytest.fixture
def foundation(books: dict[str, PromptBook], split: Split, folder: Path, form: str) -> Foundation:
    return Foundation.create(
        books[form].prompter,
        books[form],
        split.train,
        size="tiny",
        text_encoder=folder,
        config=FoundationConfig(vector_dim=16),
    ).eval()


def test_a_vector_is_the_mean_of_its_own_positions(folder: Path) -> None:
    encoder = TextEncoder.load(folder)
    together = encoder.encode(TEXTS)
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for text, vector in zip(TEXTS, together, strict=True):
        if not text:
            continue
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(together).all()


def test_long_texts_are_cut_to_the_encoders_reach(folder: Path) -> None:
    encoder = TextEncoder.load(folder)
    torch.testing.assert_close(encoder.encode(["ab" * 200]), encoder.encode(["ab" * 32]))


def break_nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def break_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))


def break_cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_nothing_there, "is not a folder"),
        (break_no_tokenizer, "tokenizer.json"),
        (break_only_pickles, "pickled"),
        (break_own_code, "refused"),
        (break_cut_short, "cannot be loaded"),
    ],
)
def test_what_is_no_encoder_is_refused(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(BadInput, match=said) as caught:
        TextEncoder.load(folder)
    assert str(folder) in str(caught.value)


def test_the_catalogues_vectors_are_in_the_slots(foundation: Foundation, folder: Path) -> None:
    assert foundation.settings.slot_parts[-1] == "encoder"
    record = foundation.settings.text_encoder
    assert record == TextEncoderRecord(path=str(folder), sha256=encoder_hash(folder), dim=16)
    items = torch.arange(foundation.num_items)
    told = foundation.slots(items)
    assert foundation.items.encoding_IW is not None
    norms = foundation.items.encoding_IW.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(foundation.num_items))
    foundation.items.encoding_IW.copy_(foundation.items.encoding_IW.roll(1, dims=0))
    assert (foundation.slots(items) - told).abs().amax(dim=1).min() > 1e-4


def test_the_projection_learns_and_the_encoder_does_not(foundation: Foundation) -> None:
    names = [name for name, _ in foundation.named_parameters()]
    assert "items.project_encoding.weight" in names
    assert not [name for name in names if "text_encoder" in name]
    vectors = foundation.item_vectors(foundation.slots(torch.arange(5)))
    vectors.square().sum().backward()
    gradient = foundation.items.project_encoding.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_saved_model_needs_its_encoder_for_new_items_alone(
    foundation: Foundation, folder: Path, tmp_path: Path
) -> None:
    foundation.save_pretrained(tmp_path / "model")
    known = foundation.embed_items()
    fresh = foundation.item_pieces.take(np.array([3, 1]))
    wanted = foundation.embed_items(fresh)
    gone = folder.rename(tmp_path / "elsewhere")

    loaded = Foundation.from_pretrained(tmp_path / "model", text_encoder=folder)
    np.testing.assert_allclose(loaded.embed_items(), known, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadInput, match="is gone") as caught:
        loaded.embed_items(fresh)
    assert str(folder) in str(caught.value)

    build_encoder(folder, seed=1)
    with pytest.raises(BadInput, match="another text encoder"):
        loaded.embed_items(fresh)

    shutil.rmtree(folder)
    gone.rename(folder)
    np.testing.assert_allclose(loaded.embed_items(fresh), wanted, rtol=1e-5, atol=1e-6)


def test_a_saved_model_says_no_path_of_the_machine(
    foundation: Foundation,
    folder: Path,
    tmp_path: Path,
    books: dict[str, PromptBook],
    split: Split,
    form: str,
) -> None:
    foundation.save_pretrained(tmp_path / "model")
    # A decoder that was read from a folder keeps it in its configuration.
    again = Foundation.create(
        foundation.prompter,
        books[form],
        split.train,
        model=tmp_path / "model",
        text_encoder=folder,
        config=FoundationConfig(vector_dim=16),
    )
    again.save_pretrained(tmp_path / "again")
    for name in ("model", "again"):
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert [path.name for path in files if str(tmp_path).encode() in path.read_bytes()] == []
        loaded = Foundation.from_pretrained(tmp_path / name)
        # The gate knows a model by what it is, saved or not.
        made = {"model": foundation, "again": again}[name]
        assert repr(loaded.settings) == repr(made.settings)
        assert loaded.settings == made.settings
    assert again.settings == replace(foundation.settings, pretrained=True)


def test_where_the_encoder_lies_is_said_again_or_found_by_its_name(
    foundation: Foundation, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "model"
    foundation.save_pretrained(saved)
    fresh = foundation.item_pieces.take(np.array([3, 1]))
    wanted = foundation.embed_items(fresh)

    def same(loaded: Foundation) -> None:
        np.testing.assert_allclose(loaded.embed_items(fresh), wanted, rtol=1e-5, atol=1e-6)

    with pytest.raises(BadInput, match=r"encoder is gone.*text_encoder="):
        Foundation.from_pretrained(saved).embed_items(fresh)
    same(Foundation.from_pretrained(saved, text_encoder=folder))
    monkeypatch.chdir(tmp_path)
    same(Foundation.from_pretrained(saved, text_encoder="encoder"))
    same(Foundation.from_pretrained(saved))
    # A model of before says the whole path.
    monkeypatch.chdir("/")
    content = json.loads((saved / "foundation.json").read_text())
    content["text_encoder"]["path"] = str(folder)
    (saved / "foundation.json").write_text(json.dumps(content))
    same(Foundation.from_pretrained(saved))


def test_a_model_without_an_encoder_is_given_none(
    make: Any, folder: Path, tmp_path: Path, form: str
) -> None:
    make(form).save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match=r"text_encoder=.*leave it out"):
        Foundation.from_pretrained(tmp_path / "model", text_encoder=folder)


def test_an_inline_item_with_a_catalogue_items_text_has_its_vector(
    foundation: Foundation, books: dict[str, PromptBook], market: Interactions, form: str
) -> None:
    pieces = foundation.item_pieces.take(np.array([2]))
    own = foundation.encodings_of(pieces)
    assert foundation.items.encoding_IW is not None
    assert own is not None
    torch.testing.assert_close(own[0], foundation.items.encoding_IW[2], rtol=1e-4, atol=1e-5)
    if form == "slot":
        fields = {name: market.items[2][name] for name in ("title", "skills")}
        rows = books[form].inline(
            {}, [HistoryEvent(item={**fields, "kind": "job"}, action="apply")], task="jobs"
        )
        slots = foundation.inline_slots(rows)
        assert slots is not None
        assert slots.shape == (1, 32)


def test_another_catalogue_and_a_rung_keep_the_encoder(
    foundation: Foundation, books: dict[str, PromptBook], split: Split, form: str
) -> None:
    book = books[form]
    again = foundation.with_catalogue(book, split.train)
    assert foundation.items.encoding_IW is not None
    assert again.items.encoding_IW is not None
    torch.testing.assert_close(again.items.encoding_IW, foundation.items.encoding_IW)
    assert torch.equal(
        again.items.project_encoding.weight, foundation.items.project_encoding.weight
    )
    importance = measure_importance(foundation, book.prefixes(split.valid[:4]))
    shape = replace(shape_of(foundation.decoder), layers=1, hidden=24)
    rung = prune(foundation, importance, shape)
    assert rung.settings.text_encoder == foundation.settings.text_encoder
    assert torch.equal(rung.items.encoding_IW, foundation.items.encoding_IW)


def test_no_two_models_are_built_at_once(
    make: Any,
    books: dict[str, PromptBook],
    split: Split,
    folder: Path,
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
        lambda: TextEncoder.load(folder),
        lambda: make("slot"),
        lambda: prune(foundation, importance, shape_of(foundation.decoder)),
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        loaded, *_ = [done.result() for done in [pool.submit(job) for job in jobs * 2]]
    assert most == [1]
    assert PreTrainedModel.tie_weights is tied
    np.testing.assert_array_equal(loaded.embed_users(rows), foundation.embed_users(rows))


def test_two_who_are_the_first_to_need_it_load_one(
    foundation: Foundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, load = threading.Barrier(2), TextEncoder.load_as

    def together(record: Any) -> TextEncoder:
        both.wait(timeout=20)
        return load(record)

    pieces = foundation.item_pieces.take(np.arange(3))
    wanted = foundation.encodings_of(pieces)
    foundation._text_encoder.clear()
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(TextEncoder, "load_as", together)
        found = list(pool.map(lambda _: foundation.encodings_of(pieces), range(2)))
    for got in (*found, foundation.encodings_of(pieces)):
        torch.testing.assert_close(got, wanted)
    assert len(foundation._text_encoder) == 1


def test_empty_pieces_need_no_encoder(foundation: Foundation, folder: Path) -> None:
    shutil.rmtree(folder)
    foundation._text_encoder.clear()
    none = foundation.encodings_of(Pieces.of([]))
    assert none is not None
    assert none.shape == (0, 16)


def test_parts_and_encoder_must_agree(books: dict[str, PromptBook], split: Split) -> None:
    book = books["slot"]
    with pytest.raises(ValueError, match="give text_encoder="):
        Foundation.create(
            book.prompter,
            book,
            split.train,
            size="tiny",
            config=FoundationConfig(slot_parts=("encoder",)),
        )
    record = TextEncoderRecord(path="/x", sha256="0", dim=4)
    with pytest.raises(ValueError, match="leaves out the text encoder"):
        FoundationConfig(text_encoder=record)
