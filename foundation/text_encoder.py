"""A pretrained text encoder, by folder: a vector for each item's text, as of a sentence.

    encoder = TextEncoder.load("models/all-MiniLM-L6-v2")
    vectors_NW = encoder.encode(["Heat (1995) · Action, Crime"])

Any encoder of transformers that is saved as safetensors: mean over the last layer's positions,
scaled to length one. Nothing is fetched and no code from the folder runs.

Legend: N texts, T tokens, W width of a vector.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from foundation.config import TextEncoderRecord
from foundation.loading import ALONE
from promptify.validation import BadInput

_FILES = ("config.json", "tokenizer.json")
_TEXTS_AT_ONCE = 64
# Sentence encoders are trained on about so much; longer texts are cut.
_MAX_TOKENS = 256


class TextEncoder:
    """An encoder in memory; build one with `load`.

    Args:
        model: of transformers, returns `last_hidden_state`.
        tokenizer: its tokenizer.
        record: where it came from.
    """

    def __init__(self, model: Any, tokenizer: Any, record: TextEncoderRecord) -> None:
        self.record = record
        self._model = model.eval()
        self._tokenizer = tokenizer
        limits = (
            _MAX_TOKENS,
            getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS,
            tokenizer.model_max_length,
        )
        self._max_tokens = min(limits)

    @classmethod
    def load(cls, folder: str | Path) -> "TextEncoder":
        """Load an encoder from a folder.

        Raises:
            BadInput: the folder is missing or not whole, wants code of its own, holds its weights
                as pickles alone, or is damaged.
        """
        folder = Path(folder).absolute()
        _check(folder)
        try:
            with ALONE:
                model: Any = AutoModel.from_pretrained(
                    str(folder),
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                )
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise BadInput(f"the text encoder in {folder} cannot be loaded: {said}.") from error
        record = TextEncoderRecord(
            path=str(folder), sha256=encoder_hash(folder), dim=int(model.config.hidden_size)
        )
        return cls(model, tokenizer, record)

    @classmethod
    def load_as(cls, record: TextEncoderRecord) -> "TextEncoder":
        """Load the encoder that a foundation was made with, and no other.

        Raises:
            BadInput: it is gone from its folder, or another stands there.
        """
        folder = Path(record.path)
        if not folder.is_dir():
            raise BadInput(
                f"the text encoder {folder} is gone; items outside the catalogue cannot be read "
                "without it. Put it back there, say with Foundation.from_pretrained(text_encoder=) "
                "or `decant index --text-encoder` where it is, or use items of the catalogue alone."
            )
        _check(folder)
        if encoder_hash(folder) != record.sha256:
            raise BadInput(
                f"{folder} holds another text encoder than the one that this model was trained "
                "with; put that one back there."
            )
        return cls.load(folder)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """Vectors of texts, float32 [N, W], of length one each.

        Args:
            texts: of any length; tokens beyond the encoder's reach are cut.
            progress: show a bar.
        """
        device = next(self._model.parameters()).device
        vectors_NW = torch.zeros(len(texts), self.record.dim)
        # Texts of near-equal length together: little padding.
        order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
        with tqdm(total=len(texts), desc="encode items", disable=not progress) as bar:
            for start in range(0, len(order), _TEXTS_AT_ONCE):
                chosen = order[start : start + _TEXTS_AT_ONCE]
                inputs = self._tokenizer(
                    [texts[text] for text in chosen],
                    padding=True,
                    truncation=True,
                    max_length=self._max_tokens,
                    return_tensors="pt",
                ).to(device)
                hidden_BTW = self._model(**inputs).last_hidden_state
                mask_BT1 = inputs["attention_mask"][..., None].to(hidden_BTW.dtype)
                mean_BW = (hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
                vectors_NW[chosen] = F.normalize(mean_BW, dim=-1).float().cpu()
                bar.update(len(chosen))
        return vectors_NW


def encoder_hash(folder: Path) -> str:
    """SHA-256 of an encoder's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for path in sorted([*(folder / name for name in _FILES), *folder.glob("model*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check(folder: Path) -> None:
    """Refuse a folder that is no encoder, wants to run code, or holds pickles alone."""
    from foundation.checkpoint import refuse_code

    if not folder.is_dir():
        raise BadInput(
            f"the text encoder {folder} is not a folder; give one with config.json, "
            "tokenizer.json and model.safetensors."
        )
    refuse_code(folder)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{folder} holds no tokenizer.json: a text encoder needs its own tokenizer.")
