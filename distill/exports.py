"""A model for those who have nothing of ours: stock checkpoints in which ids alone give its scores.

    export_causal(rung, Path("served"))       # AutoModelForCausalLM
    export_classifier(rung, Path("ranker"))   # AutoModelForSequenceClassification

Slots become rows of the embedding, after the vocabulary: row `vocabulary size + i` is the slot of
item `i`, as in our own rows. Ids of `PromptBook.prefixes`, with the id of a candidate's slot (or
the tokens of its text) behind them, are all that a stock loader needs; the tokenizer that is saved
beside the model pads a classifier's batches, on either side. Scores are those of
`Foundation.score`, uncalibrated; how to calibrate them stands in `export.json`. Of an int8 model
they are those of its weights alone: what its layers read is rounded by ours and not by stock
loaders, so scores differ by some hundredths of a nat, and `export.json` says so.

What is exported for other than these scores is not the same: retrieval needs the person and item
heads, which stock loaders do not know.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from foundation import Foundation, one_position
from foundation.few_bits import stock_state
from foundation.loading import ALONE
from promptify.prompter import Prompter
from promptify.validation import BadInput
from promptify.whole import whole_folder


@torch.no_grad()
def export_causal(foundation: Foundation, folder: Path, *, task: int = 0) -> None:
    """Write a causal LM whose label logits at the last position give the scores.

    The log-probabilities of `label_ids` in `export.json`, renormalised over them, are the scores.
    What some families do to their last logits is taken out, since our scores know nothing of it: a
    cap (Gemma 2), a scale (Granite, Cohere), a bias of the head (Phi).

    Args:
        foundation: what is exported.
        folder: new or empty.
        task: whose labels `export.json` names.

    Raises:
        BadInput: the folder is not empty, or the task is unknown.
    """
    _actions(foundation, task)
    config = _config(foundation)
    if getattr(config, "final_logit_softcapping", None) is not None:
        config.final_logit_softcapping = None
    for scale in ("logits_scaling", "logit_scale"):
        if hasattr(config, scale):
            setattr(config, scale, 1.0)
    with ALONE:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    table = embedding_rows(foundation)
    state = {name: tensor.cpu() for name, tensor in stock_state(foundation.decoder).items()}
    state["model.embed_tokens.weight"] = table
    if config.tie_word_embeddings:
        state["lm_head.weight"] = table
    else:
        # Nothing predicts a slot.
        head = torch.zeros_like(table)
        vocab_size = foundation.prompter.vocab_size
        head[:vocab_size] = state["lm_head.weight"][:vocab_size]
        state["lm_head.weight"] = head
    if "lm_head.bias" in state:
        state["lm_head.bias"] = torch.zeros(len(table))
    model.load_state_dict(state)
    model.tie_weights()
    with _whole(folder) as partial:
        model.save_pretrained(partial)
        _beside(foundation, partial, task)


@torch.no_grad()
def export_classifier(foundation: Foundation, folder: Path, *, task: int = 0) -> None:
    """Write a sequence classifier whose logits give the scores of a task's actions.

    Args:
        foundation: what is exported.
        folder: new or empty.
        task: whose actions are the classes.

    Raises:
        BadInput: the folder is not empty, the task is unknown, or transformers has no sequence
            classifier of this family.
    """
    config = _config(foundation)
    actions = _actions(foundation, task)
    config.num_labels = len(actions)
    config.id2label = dict(enumerate(actions))
    config.label2id = {action: number for number, action in enumerate(actions)}
    try:
        with ALONE:
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError) as error:
        raise BadInput(
            f"transformers has no sequence classifier of type {config.model_type!r}; export a "
            "causal LM."
        ) from error
    body = {
        name.removeprefix("model."): tensor.cpu()
        for name, tensor in stock_state(foundation.decoder).items()
        if name.startswith("model.")
    }
    body["embed_tokens.weight"] = embedding_rows(foundation)
    model.model.load_state_dict(body)
    labels = torch.as_tensor(foundation.prompter.task_label_index(task), dtype=torch.long)
    model.score.weight.copy_(foundation.label_rows_LD[labels.to(foundation.device)].cpu())
    with _whole(folder) as partial:
        model.save_pretrained(partial)
        _beside(foundation, partial, task)


def embedding_rows(foundation: Foundation) -> Tensor:
    """Token embeddings, and below them the slots, as a stock embedding holds them.

    Args:
        foundation: slots are added if it has them.

    Returns:
        float32 [vocabulary size (+ items), D], on the CPU.
    """
    embedding = foundation.decoder.get_input_embeddings()
    rows: Tensor = embedding.weight.detach()[: foundation.prompter.vocab_size].float().cpu()
    if not foundation.uses_slots:
        return rows.clone()
    every = torch.arange(foundation.num_items, device=foundation.device)
    # Some families scale what they look up.
    scale = float(getattr(embedding, "embed_scale", 1.0))
    slots_ID = foundation.eval().slots(every).detach().float().cpu() / scale
    return torch.cat([rows, slots_ID])


def _config(foundation: Foundation) -> Any:
    config = copy.deepcopy(foundation.decoder.config)
    slots = foundation.num_items if foundation.uses_slots else 0
    config.vocab_size = foundation.prompter.vocab_size + slots
    config.use_cache = True
    if config._attn_implementation == one_position.NAME:
        config._attn_implementation = "sdpa"  # a name of ours is unknown elsewhere
    config.pad_token_id = _pad_id(foundation.prompter)
    return config


def _pad_id(prompter: Prompter) -> int:
    """What pads: the tokenizer's own where it has that, else its end of text, else the newline.

    A prompt ends with an arrow or a slot and never with any of these, so that the last position
    that is not padding is the question, whichever side is padded.
    """
    tokenizer = prompter.tokenizer
    ids = tokenizer.pad_token_id, tokenizer.eos_token_id, prompter.newline_id
    return int(next(one for one in ids if one is not None))


def _actions(foundation: Foundation, task: int) -> tuple[str, ...]:
    tasks = foundation.prompter.tasks
    if not 0 <= task < len(tasks):
        raise BadInput(f"task={task} is unknown; there are {len(tasks)} tasks.")
    return tuple(tasks[task].actions)


def _beside(foundation: Foundation, folder: Path, task: int) -> None:
    """The tokenizer, which id is which item, and how scores are read and calibrated."""
    prompter = foundation.prompter
    labels = torch.as_tensor(prompter.task_label_index(task), dtype=torch.long)
    about = {
        "task": prompter.tasks[task].name,
        "actions": list(_actions(foundation, task)),
        "label_ids": foundation.label_ids_L[labels.to(foundation.device)].tolist(),
        "calibration": asdict(foundation.calibration(task)),
        "first_slot_id": prompter.vocab_size if foundation.uses_slots else None,
        "weights": foundation.settings.weights,
        # Of int8, inputs of layers are rounded by ours alone.
        "scores_are_exact": foundation.settings.weights != "int8",
    }
    (folder / "export.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    tokenizer = copy.deepcopy(prompter.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(_pad_id(prompter))
    tokenizer.save_pretrained(folder)
    if foundation.uses_slots:
        ids = range(prompter.vocab_size, prompter.vocab_size + foundation.num_items)
        table = pa.table({"item_id": list(foundation.item_ids), "token_id": list(ids)})
        pq.write_table(table, folder / "slots.parquet")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder that is there whole or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; export to another folder, or delete it first.")
    with whole_folder(folder) as partial:
        yield partial
