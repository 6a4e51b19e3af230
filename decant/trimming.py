"""A run of its own around a model with a trimmed vocabulary: data, prompter, model, index.

    decant trim RUN --out SMALL

Nothing is approximated, so nothing is gated: scores of the trimmed model are held against those of
the model that it came from, and a difference that is more than rounding stops it.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decant.layout import DATA, INDEX, PROMPTER, RunLayout
from decant.pipeline import index_catalogue, index_manifest
from decant.run_data import load_book, load_model, sample_targets
from distill.vocabulary import trim_vocabulary
from foundation import Foundation
from foundation.batches import take_rows
from promptify.assembly import PromptBook
from promptify.splits import Targets
from promptify.validation import BadInput
from promptify.whole import whole_folder, write_whole

TRIMMED = "trimmed.json"
_MOST_DIFFERENCE = 1e-4
_COMPARED_REQUESTS, _COMPARED_ITEMS = 20, 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Trimmed:
    """What trimming took away.

    Attributes:
        model: the model of the run that it came from.
        tokens_before: rows of its vocabulary.
        tokens: rows that stayed.
        parameters_before: all of its decoder's weights.
        parameters: those that stayed.
        largest_difference: of any action log-probability, on `requests` requests.
        requests: that were compared.
    """

    model: str
    tokens_before: int
    tokens: int
    parameters_before: int
    parameters: int
    largest_difference: float
    requests: int

    def table(self) -> str:
        """In a few lines."""
        return (
            f"tokens      {self.tokens_before:>12,} → {self.tokens:,}\n"
            f"parameters  {self.parameters_before:>12,} → {self.parameters:,} "
            f"({self.parameters / self.parameters_before - 1:+.1%})\n"
            f"scores      differ by at most {self.largest_difference:.1e} "
            f"on {self.requests} requests"
        )


def trim(
    folder: Path, out: Path, *, model: str | None = None, texts: tuple[str, ...] = ()
) -> Trimmed:
    """Write a run folder whose model has the tokens that its log says, and no others.

    Args:
        folder: a finished run.
        out: the new run folder; must be empty or not exist.
        model: of the run; what serves when left out.
        texts: more texts whose tokens stay.

    Raises:
        BadInput: the folder is no finished run, `out` holds something, or the tokenizer is not a
            BPE with every byte, see `distill.vocabulary`.
        ArithmeticError: a score is not the same.
    """
    layout = RunLayout(folder)
    name = model or layout.served()
    before = load_model(layout.model(name))
    _check_empty(out)
    book, split = load_book(layout)
    small = trim_vocabulary(before, book, texts=texts)
    difference, requests = _difference(before, book, small, split.valid)
    if not difference <= _MOST_DIFFERENCE:
        raise ArithmeticError(
            f"a score of the trimmed model differs by {difference:.1e}, above {_MOST_DIFFERENCE}; "
            "nothing was written."
        )
    found = Trimmed(
        model=name,
        tokens_before=before.decoder.config.vocab_size,
        tokens=small.decoder.config.vocab_size,
        parameters_before=_parameters(before),
        parameters=_parameters(small),
        largest_difference=difference,
        requests=requests,
    )
    with whole_folder(out) as partial:
        shutil.copyfile(folder / "recipe.json", partial / "recipe.json")
        for stage in (DATA, PROMPTER, layout.top):
            shutil.copytree(folder / stage, partial / stage)
        small.prompter.save(partial / PROMPTER)
        small.save_pretrained(partial / layout.top / "model")
        write_whole(partial / TRIMMED, json.dumps(asdict(found), indent=2) + "\n")
        index_catalogue(RunLayout(partial), partial / INDEX, like=index_manifest(layout.index))
        _check_empty(out)  # Another may have been trimmed there meanwhile.
    return found


def _check_empty(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"--out {out} holds something; choose another folder.")


def _parameters(model: Foundation) -> int:
    return sum(weight.numel() for weight in model.decoder.parameters())


def _difference(
    before: Foundation, book: PromptBook, small: Foundation, targets: Targets
) -> tuple[float, int]:
    """Largest difference of any action's log-probability, and the requests that it is of."""
    asked = sample_targets(targets, _COMPARED_REQUESTS)
    there, here = book.prefixes(asked), small.prompter.book(book.interactions).prefixes(asked)
    places = np.linspace(0, before.num_items - 1, _COMPARED_ITEMS).astype(np.int64)
    items: NDArray[np.int64] = np.unique(places)
    largest = 0.0
    for row in range(len(there)):
        one = np.array([row])
        was, now = (
            before.score(take_rows(there, one), items),
            small.score(take_rows(here, one), items),
        )
        known = np.isfinite(was)
        largest = max(largest, float(np.abs(now[known] - was[known]).max()))
    return largest, len(there)
