"""A foundation on disk: a stock checkpoint, the heads beside it, the prompter and the catalogue.

config.json, model.safetensors        the decoder, as stock transformers reads it
heads.safetensors                     person and item heads, item table
foundation.json                       `FoundationConfig`
catalogue.parquet                     item ids and their token pieces
prompter/                             tasks, words, tokenizer
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from foundation.config import FoundationConfig
from foundation.few_bits import stock_state
from foundation.int8 import put_layers
from foundation.loading import ALONE
from foundation.sizes import decoder_config, start_as_averages
from promptify.pieces import Pieces
from promptify.prompter import Prompter
from promptify.validation import BadInput
from promptify.whole import put, whole_file

if TYPE_CHECKING:
    from foundation.model import Foundation

logger = logging.getLogger(__name__)

_CUT_SHORT = "It may have been cut short; copy the folder again or run the stage that made it."
_GIVE = (
    "Give a folder with config.json and model.safetensors, or the hub name of a model that is in "
    "the local cache."
)
_ADAPTER = (
    "{name} holds an adapter; merge it into its model (merge_and_unload), and give the folder that "
    "the model is then saved to."
)
FILES = ("config.json", "heads.safetensors", "foundation.json", "catalogue.parquet", "prompter")


def new_decoder(size: str, prompter: Prompter, *, window_tokens: int | None) -> Any:
    """A decoder of a named size with random weights; the torch seed decides them."""
    config = decoder_config(
        size,
        vocab_size=prompter.vocab_size,
        # What is declared is what it will be trained at; see `foundation.positions`.
        max_positions=prompter.config.max_prompt_tokens,
        window_tokens=window_tokens,
    )
    with ALONE:
        decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    start_as_averages(decoder)
    return decoder


def load_decoder(name: str | Path) -> Any:
    """A causal LM by folder or hub name: safetensors only, no code from outside.

    Raises:
        BadInput: the folder cannot be loaded, wants its own code, holds only pickled or quantised
            weights or an adapter, or lacks weights; or it is a foundation with others than its own.
    """
    folder = Path(name)
    if folder.is_dir():
        refuse_code(folder)
    refuse_quantised(name, load_config(name))
    loader: Any = AutoModelForCausalLM
    try:
        with ALONE:
            decoder, report = loader.from_pretrained(
                str(name),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"cannot load a model from {name}: {_first_line(error)} {_GIVE}") from error
    except Exception as error:  # stock transformers checks little of what a configuration says
        raise _unusable(name, error) from error
    # Stock transformers draws what a file lacks at random, and only warns.
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise BadInput(
            f"the weights of {name} lack {', '.join(lacking[:3])} ({len(lacking)} in all), which "
            "its config.json asks for; copy the folder again."
        )
    # Others' folders may hold what no causal LM needs, such as a head for another purpose.
    strange = sorted(report["unexpected_keys"]) if (folder / "foundation.json").exists() else []
    if strange:
        raise BadInput(
            f"the weights of {name} hold {', '.join(strange[:3])} ({len(strange)} in all), which "
            "its config.json knows nothing of; copy the folder again, or make the model again."
        )
    if getattr(decoder, "peft_config", None):
        raise BadInput(_ADAPTER.format(name=name))
    _untie(decoder, name)
    return decoder


def _untie(decoder: Any, name: str | Path) -> None:
    """Let the configuration say that the head is no copy of the embedding, where it is none.

    Stock transformers loads both then, and leaves the configuration as it is: who builds a model by
    it would put the embedding in the head's place.
    """
    embedding, head = decoder.get_input_embeddings(), decoder.get_output_embeddings()
    tied = getattr(decoder.config, "tie_word_embeddings", False)
    if tied and head.weight is not embedding.weight:
        logger.warning(
            "%s holds a head of its own, though its config.json says tie_word_embeddings; "
            "the head is kept, and is saved as one of its own.",
            name,
        )
        decoder.config.tie_word_embeddings = False


def load_config(name: str | Path) -> PreTrainedConfig:
    """The configuration of a checkpoint by folder or hub name; no code from outside.

    Raises:
        BadInput: there is none, or it says what cannot be or asks the hub for code.
    """
    _read_config(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # of any kind, as in `load_decoder`
        raise _unusable(name, error) from error
    return config


def _read_config(name: str | Path) -> dict[str, Any]:
    """The fields of a configuration, of which none makes stock transformers ask the hub for code.

    Attention may be a repository of native code, by any field that ends as below; a map of
    attributes may hide such a field behind another.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(str(name))
    except Exception as error:
        raise _unusable(name, error) from error
    if not isinstance(config, dict):
        raise BadInput(
            f"{Path(name) / 'config.json'} must hold fields and their values; copy it again."
        )
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        field, value = left.pop()
        chooses = field.endswith("_implementation")
        if field == "attribute_map" or (chooses and isinstance(value, str) and "/" in value):
            raise BadInput(
                f"{name} may ask the hub for code ({field} in its config.json), which is refused; "
                "take that field out of it."
            )
        if isinstance(value, dict):
            left += [(field if chooses else inside, value[inside]) for inside in value]
        elif isinstance(value, list):
            left += [(field, inside) for inside in value]
    return config


def _unusable(name: str | Path, error: Exception) -> BadInput:
    said = " ".join(_text(error).split()).removesuffix(".")
    return BadInput(f"cannot use {Path(name) / 'config.json'}: {said}. {_GIVE}")


def refuse_quantised(name: str | Path, config: PreTrainedConfig) -> None:
    """Refuse a checkpoint of quantised weights.

    Stock transformers may train them as floats, and would write them as what they were, but not how
    to read that.

    Raises:
        BadInput: it is one.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        raise BadInput(
            f"{name} holds weights in {quantised.get('quant_method', 'few bits')} "
            "(quantization_config in its config.json), which cannot be trained and written again; "
            "give the float checkpoint that it was made of."
        )


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint by folder or hub name; no code from outside.

    Raises:
        BadInput: there is none, it is not a fast tokenizer, or it has no vocabulary.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"cannot load a tokenizer from {name}: {_first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BadInput(
            f"the tokenizer of {name} is not a fast one (tokenizer.json); convert it first."
        )
    # Where there are no files, stock transformers makes one that knows its special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise BadInput(
            f"the tokenizer of {name} has no vocabulary; copy its tokenizer.json there as well."
        )
    return tokenizer


def save(foundation: "Foundation", folder: Path) -> None:
    """Write a foundation to `folder`, whole or not at all; an older one there is replaced.

    Of several that write to one folder each waits for its turn: the last one stays.

    Raises:
        BadInput: the folder holds something that is not a foundation, or the model is in the form
            in which it is asked on a GPU.
    """
    if folder.is_file():
        raise BadInput(f"{folder} is a file, a folder was expected; save it elsewhere.")
    if folder.exists() and not (folder / "foundation.json").is_file() and any(folder.iterdir()):
        raise BadInput(f"{folder} holds other files than a foundation; save it elsewhere.")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        _settle(folder)  # what a killed process left
        name = secrets.token_hex(4)
        partial = folder.with_name(f".{folder.name}.partial-{name}")
        try:
            partial.mkdir()
            _write(foundation, partial)
            put(partial, folder, aside=folder.with_name(f".{folder.name}.old-{name}"))
        finally:
            _settle(folder)


def _settle(folder: Path) -> None:
    """Put back what was set aside for a folder that is not there, and delete all else beside it."""
    old = _beside(folder, "old")
    if old and not folder.exists():
        os.replace(old.pop(), folder)
    for path in (*old, *_beside(folder, "partial")):
        shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path, kind: str) -> list[Path]:
    """The folders of a kind that a save makes beside a folder, in the order of their writing."""
    there = (p for p in folder.parent.glob(f".*.{kind}-*") if p.stem == f".{folder.name}")
    return sorted(there, key=lambda path: path.stat().st_mtime)


def _write(foundation: "Foundation", folder: Path) -> None:
    foundation.decoder.save_pretrained(folder, state_dict=stock_state(foundation.decoder))
    heads = {
        name: tensor
        for name, tensor in foundation.state_dict().items()
        if not name.startswith("decoder.")
    }
    write_weights(heads, folder / "heads.safetensors")
    settings = _published(foundation.settings)
    (folder / "foundation.json").write_text(json.dumps(asdict(settings), indent=2))
    pq.write_table(
        pa.table(
            {
                "item_id": pa.array(foundation.item_ids, pa.string()),
                "ids": pa.LargeListArray.from_arrays(
                    foundation.item_pieces.offsets, foundation.item_pieces.ids
                ),
            }
        ),
        folder / "catalogue.parquet",
    )
    foundation.prompter.save(folder / "prompter")


def load(folder: Path, *, text_encoder: Path | None) -> "Foundation":
    """Load a foundation; see `Foundation.from_pretrained`."""
    from foundation.model import Foundation

    if not folder.exists() and (old := _beside(folder.absolute(), "old")):
        raise BadInput(
            f"{folder} is gone: the process that was replacing it was killed. Save it again, or "
            f"rename {old[-1]} to {folder.name}."
        )
    _refuse_unreadable(folder, *folder.rglob("*"))
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise BadInput(
            f"{folder} is not a whole foundation: {', '.join(missing)} is missing. "
            f"Point to a folder that `save_pretrained` or `decant run` wrote."
        )
    prompter = Prompter.load(folder / "prompter")
    item_ids, item_pieces = _load_catalogue(folder / "catalogue.parquet", prompter.vocab_size)
    foundation = Foundation(
        load_decoder(folder),
        prompter=prompter,
        config=_load_config(folder / "foundation.json", text_encoder),
        item_ids=item_ids,
        item_pieces=item_pieces,
    )
    try:
        heads = load_file(folder / "heads.safetensors")
        missing_names, unknown = foundation.load_state_dict(heads, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise BadInput(
            f"{folder / 'heads.safetensors'} cannot be read: {_first_line(error)} {_CUT_SHORT}"
        ) from error
    lost = [name for name in missing_names if not name.startswith("decoder.")]
    if lost or unknown:
        raise BadInput(
            f"{folder / 'heads.safetensors'} lacks {lost} and has strange {list(unknown)}."
        )
    if foundation.settings.weights == "int8":
        put_layers(foundation.decoder)
    foundation.eval()
    return foundation


def _load_catalogue(path: Path, vocab_size: int) -> tuple[list[str], Pieces]:
    try:
        table = pq.read_table(path)
        ids = table.column("ids").combine_chunks()
        tokens, offsets = ids.values.to_numpy(), ids.offsets.to_numpy()
        item_ids = table.column("item_id").to_pylist()
    except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
        raise BadInput(f"{path} cannot be read: {_first_line(error)} {_CUT_SHORT}") from error
    strange = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(strange):
        raise BadInput(
            f"{path} holds the token {strange[0]}, outside the vocabulary of {vocab_size}; copy "
            "the folder again."
        )
    return item_ids, Pieces(ids=tokens.astype(np.int32), offsets=offsets)


def _load_config(path: Path, text_encoder: Path | None) -> FoundationConfig:
    try:
        settings = FoundationConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(f"{path} cannot be read: {_first_line(error)} {_CUT_SHORT}") from error
    if text_encoder is None:
        return settings
    if settings.text_encoder is None:
        raise BadInput(
            f"text_encoder={str(text_encoder)!r} is of no use to {path.parent}, which was made "
            "without one; leave it out."
        )
    here = replace(settings.text_encoder, path=str(text_encoder.absolute()))
    return replace(settings, text_encoder=here)


def _published(settings: FoundationConfig) -> FoundationConfig:
    """The same settings without where the text encoder lies on this machine."""
    record = settings.text_encoder
    if record is None:
        return settings
    return replace(settings, text_encoder=replace(record, path=Path(record.path).name))


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights in a saved foundation: what an index says it was made with."""
    digest = hashlib.sha256()
    indexes = folder.glob("*.safetensors.index.json")
    for path in sorted([*folder.glob("*.safetensors"), *indexes]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, whole or not at all."""
    with whole_file(path) as partial:
        save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, partial)


def refuse_code(folder: Path) -> None:
    """Refuse a folder that wants to run code, or whose weights are pickled or lie elsewhere.

    Raises:
        BadInput: it does, they are or do, it is an adapter or no checkpoint, or this user may not
            read it.
    """
    _refuse_unreadable(folder, *folder.glob("*.json"), *folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").exists():
        raise BadInput(_ADAPTER.format(name=folder))
    if not (folder / "config.json").exists():
        raise BadInput(f"{folder} holds no config.json: it is not a Hugging Face checkpoint.")
    config = _read_config(folder)
    if "auto_map" in config:
        raise BadInput(
            f"{folder} wants to run code of its own (auto_map in config.json), which is refused. "
            f"Use a checkpoint of a family that transformers knows."
        )
    if not list(folder.glob("model*.safetensors")):
        raise BadInput(
            f"{folder} holds no model.safetensors; pickled weights are refused. Convert them first."
        )
    _refuse_elsewhere(folder, config)


def _refuse_elsewhere(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that do not lie in the folder itself, where `weights_hash` looks."""
    there = [path.name for path in folder.glob("model*.safetensors")]
    index = folder / "model.safetensors.index.json"
    whole = "model.safetensors" if "model.safetensors" in there else index.name
    read = config.get("transformers_weights") or whole
    if read in there:
        return
    if read != index.name:
        raise BadInput(
            f"{folder / 'config.json'} names {read} (transformers_weights), which is no "
            "model*.safetensors beside it; take that field out of it."
        )
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{index} cannot be read: {_first_line(error)} {_CUT_SHORT}") from error
    for name in files:
        if name not in there:
            raise BadInput(
                f"{index} names {name}, which is no model*.safetensors beside it; copy the folder "
                "again."
            )


def _refuse_unreadable(*paths: Path) -> None:
    # Of a file that it may not open, `safetensors` says that there is none.
    for path in paths:
        try:
            if path.is_dir():
                next(path.iterdir(), None)
            else:
                path.open("rb").close()
        except PermissionError as error:
            raise BadInput(
                f"{path} may not be read by this user (PermissionError); have its owner let others "
                "read it, or copy it as one who may."
            ) from error
        except OSError:  # not there, which others say better
            pass


def _first_line(error: BaseException) -> str:
    text = _text(error).splitlines()[0]
    return text if text.endswith(".") else text + "."


def _text(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    # It says what was looked up, and nothing else.
    return f"KeyError {text}" if isinstance(error, KeyError) else text
