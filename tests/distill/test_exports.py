"""What is exported is asked by stock loaders, and in a process that knows nothing of ours."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from distill.anatomy import Shape
from distill.exports import export_causal, export_classifier
from distill.importance import measure_importance
from distill.pruning import prune
from foundation import Foundation
from foundation.batches import take_rows
from foundation.int8 import kernel_saturates, to_int8
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split
from promptify.validation import BadInput

FAMILIES = ("qwen3", "llama", "mistral", "gemma2", "gemma3_text")
ASKED = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
folders, prompts = sys.argv[1:3], json.load(sys.stdin)
about = json.load(open(folders[0] + "/export.json"))
causal = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
ranker = AutoModelForSequenceClassification.from_pretrained(folders[1]).eval()
said = {"causal": [], "ranker": []}
with torch.no_grad():
    for ids in prompts:
        ids = torch.tensor([ids])
        logits = causal(ids).logits[0, -1, about["label_ids"]]
        said["causal"].append(logits.log_softmax(-1).tolist())
        said["ranker"].append(ranker(ids).logits[0].log_softmax(-1).tolist())
ours = {"promptify", "foundation", "retrieval", "distill", "decant"} & set(sys.modules)
assert not ours, ours
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def text_rows(text_book: PromptBook, split: Split) -> Rows:
    windows = text_book.windows(split.train, seed=0, epoch=0)
    return text_book.assemble(windows[np.arange(4)], seed=0, epoch=0)


def ids_asked(foundation: Foundation, prefix: Rows, items: np.ndarray) -> list[list[int]]:
    questions = foundation.questions(items)
    return [[*prefix.ids.tolist(), *questions[n].tolist()] for n in range(len(items))]


@pytest.mark.parametrize("form", ["slot", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_alone_give_our_scores(
    of_family: Any, rows: Rows, text_rows: Rows, tmp_path: Path, family: str, form: str
) -> None:
    foundation = of_family(family, form)
    calibration = rows if form == "slot" else text_rows
    shape = Shape(layers=2, neurons=24, groups=1, hidden=16)
    small = prune(foundation, measure_importance(foundation, calibration), shape)
    prefix, items = take_rows(calibration, np.array([0])), np.array([0, 7, 3])
    wanted = small.score(prefix, items)
    export_causal(small, tmp_path / "causal")
    export_classifier(small, tmp_path / "ranker")
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "causal")
    ranker = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ranker")
    labels = json.loads((tmp_path / "causal" / "export.json").read_text())["label_ids"]
    for ids, expected in zip(ids_asked(small, prefix, items), wanted, strict=True):
        with torch.no_grad():
            logits = causal(torch.tensor([ids])).logits[0, -1, labels]
            scores = ranker(torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(logits.log_softmax(-1), expected, atol=1e-4)
        np.testing.assert_allclose(scores.log_softmax(-1), expected, atol=1e-4)


@pytest.mark.parametrize("form", ["slot", "text"])
@pytest.mark.parametrize("family", ["granite", "cohere", "phi"])
def test_what_a_family_does_to_its_logits_is_left_out(
    of_family: Any, rows: Rows, text_rows: Rows, tmp_path: Path, family: str, form: str
) -> None:
    foundation = of_family(family, form)
    prefix = take_rows(rows if form == "slot" else text_rows, np.array([0]))
    items = np.array([0, 7, 3])
    wanted = foundation.score(prefix, items)
    export_causal(foundation, tmp_path / "causal")
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "causal")
    labels = json.loads((tmp_path / "causal" / "export.json").read_text())["label_ids"]
    for ids, expected in zip(ids_asked(foundation, prefix, items), wanted, strict=True):
        with torch.no_grad():
            logits = causal(torch.tensor([ids])).logits[0, -1, labels]
        np.testing.assert_allclose(logits.log_softmax(-1), expected, atol=1e-4)


def test_a_process_that_knows_nothing_of_ours_has_the_same_scores(
    make: Any, rows: Rows, tmp_path: Path
) -> None:
    small = make()
    prefix, items = take_rows(rows, np.array([0])), np.array([0, 7, 3])
    wanted = small.score(prefix, items)
    folders = tmp_path / "causal", tmp_path / "ranker"
    export_causal(small, folders[0])
    export_classifier(small, folders[1])
    found = subprocess.run(
        [sys.executable, "-I", "-c", ASKED, *map(str, folders)],
        input=json.dumps(ids_asked(small, prefix, items)),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    said = json.loads(found.stdout)
    np.testing.assert_allclose(said["causal"], wanted, atol=1e-4)
    np.testing.assert_allclose(said["ranker"], wanted, atol=1e-4)


def test_it_says_which_id_is_which_item_and_what_the_classes_are(
    make: Any, rows: Rows, tmp_path: Path
) -> None:
    foundation = make()
    export_classifier(foundation, tmp_path / "ranker")
    slots = pq.read_table(tmp_path / "ranker" / "slots.parquet").to_pydict()
    assert tuple(slots["item_id"]) == foundation.item_ids
    assert slots["token_id"][0] == foundation.prompter.vocab_size
    about = json.loads((tmp_path / "ranker" / "export.json").read_text())
    assert about["actions"] == list(foundation.prompter.tasks[0].actions)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ranker")
    assert list(model.config.id2label.values()) == about["actions"]


@pytest.mark.parametrize("form", ["slot", "text"])
@pytest.mark.parametrize("lacks", [(), ("pad_token",), ("pad_token", "eos_token")])
def test_a_batch_that_the_exported_tokenizer_pads_has_our_scores(
    of_family: Any,
    rows: Rows,
    text_rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lacks: tuple[str, ...],
    form: str,
) -> None:
    foundation = of_family("qwen3", form)
    bare = copy.deepcopy(foundation.prompter.tokenizer)
    for name in lacks:
        setattr(bare, name, None)
    monkeypatch.setattr(foundation.prompter, "tokenizer", bare)
    export_causal(foundation, tmp_path / "causal")
    export_classifier(foundation, tmp_path / "ranker")
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "causal")
    ranker = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ranker")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ranker")
    assert tokenizer.pad_token_id == ranker.config.pad_token_id == causal.config.pad_token_id
    # A line of a prompt is no padding where there is a token that means nothing else.
    if bare.pad_token_id is not None or bare.eos_token_id is not None:
        assert tokenizer.pad_token_id != foundation.prompter.newline_id
    line = "A line => liked\nand another"
    assert tokenizer(line)["input_ids"] == bare(line)["input_ids"]
    # Each is read at its own end.
    prefixes = [
        take_rows({"slot": rows, "text": text_rows}[form], np.array([row])) for row in range(3)
    ]
    item = np.array([5])
    prompts = [ids_asked(foundation, prefix, item)[0] for prefix in prefixes]
    assert len({len(ids) for ids in prompts}) > 1
    wanted = np.concatenate([foundation.score(prefix, item) for prefix in prefixes])
    for side in ("right", "left"):
        tokenizer.padding_side = side
        padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with torch.no_grad():
            said = ranker(**padded).logits.log_softmax(-1)
        np.testing.assert_allclose(said, wanted, atol=1e-4)


def test_it_says_that_scores_of_int8_are_not_quite_ours(
    of_family: Any, rows: Rows, tmp_path: Path
) -> None:
    foundation = of_family("qwen3")
    export_causal(foundation, tmp_path / "float32")
    to_int8(foundation)
    export_causal(foundation, tmp_path / "int8")
    told = [
        json.loads((tmp_path / name / "export.json").read_text()) for name in ("float32", "int8")
    ]
    assert [one["weights"] for one in told] == ["float32", "int8"]
    assert [one["scores_are_exact"] for one in told] == [True, False]
    # As they differ.
    prefix, items = take_rows(rows, np.array([0])), np.array([0, 7, 3])
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    wanted = foundation.score(prefix, items)
    with torch.no_grad():
        found = [
            causal(torch.tensor([ids])).logits[0, -1, told[1]["label_ids"]].log_softmax(-1).numpy()
            for ids in ids_asked(foundation, prefix, items)
        ]
    # Inputs of 7 bits instead of 8 are twice as far.
    most = 0.2 if kernel_saturates() else 0.1
    assert 1e-4 < np.abs(np.stack(found) - wanted).max() < most


def test_nothing_is_overwritten_and_no_half_is_left(make: Any, tmp_path: Path) -> None:
    foundation = make()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(BadInput, match="is not empty"):
        export_causal(foundation, tmp_path / "mine")
    with pytest.raises(BadInput, match="task=9 is unknown"):
        export_causal(foundation, tmp_path / "new", task=9)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
