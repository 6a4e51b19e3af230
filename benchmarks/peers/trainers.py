"""One side of the training benchmark, in a process of its own.

    python -m benchmarks.peers.trainers SIDE WORKLOAD [--threads N]

It waits for the number of optimiser steps on stdin and answers each with one line of JSON; see
`benchmarks.peers.turns`. Every side begins with the same decoder and weights, in float32, and takes
about as many tokens in an optimiser step, with the same AdamW, clipping and schedule. The others
log, save and validate nothing.

    decant         `Foundation.fit` as users get it: three losses, re-reading of items, TensorBoard
    trl_packed     TRL's SFTTrainer, best-fit packing; documents do not see each other
    trl_wrapped    TRL's SFTTrainer, documents run on and are cut anywhere, and see each other
    padded         transformers' Trainer, rows drawn at random and padded to the longest of a batch
    padded_by_two  the same in micro-batches of two rows, accumulated: less padding, less memory
    grouped        `padded` with `train_sampling_strategy="group_by_length"`
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, trainer

from benchmarks.peers.turns import TakesTurns, own_stdout
from benchmarks.peers.workload import Workload
from promptify.prompter import Prompter

SIDES = ("decant", "trl_packed", "trl_wrapped", "padded", "padded_by_two", "grouped")
_ENDLESS_STEPS = 1_000_000


def counted(inputs: dict[str, Tensor], prompter: Prompter) -> tuple[int, int]:
    """Events and tokens of a micro-batch: every event has one arrow, or one slot."""
    ids = inputs["ids_RT"] if "ids_RT" in inputs else inputs["input_ids"]
    is_event = (ids == prompter.arrow_id) | (ids >= prompter.vocab_size)
    if "num_tokens" in inputs:
        tokens = int(inputs["num_tokens"])
    elif "attention_mask" in inputs:
        tokens = int(inputs["attention_mask"].sum())
    else:
        tokens = ids.numel()
    return int(is_event.sum()), tokens


def train_decant(workload: Workload, scratch: Path) -> None:
    foundation = workload.foundation()
    book, split = workload.book(foundation.prompter)
    # The catalogue is read again every `refresh_steps`, which a few steps would hide or exaggerate.
    refresh = foundation.refresh_readings
    turns = TakesTurns(
        lambda inputs: counted(inputs, foundation.prompter),
        answers=own_stdout(),
        periodic=refresh,
        period_steps=workload.fit.refresh_steps,
    )
    foundation.refresh_readings = turns.aside(refresh)  # type: ignore[method-assign]
    turns.watch()
    # `fit` makes its own Trainer: this reaches it without a door of its own for benchmarks.
    trainer.DEFAULT_CALLBACKS.append(turns)  # type: ignore[arg-type]
    foundation.fit(book, split, config=workload.fit, out=scratch)


def train_peer(workload: Workload, scratch: Path, side: str) -> None:
    prompter = Prompter.load(workload.folder / "model" / "prompter")
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(workload.folder / "model", dtype=torch.float32)
    prompts = datasets.Dataset.from_parquet(
        str(workload.folder / "prompts.parquet"), cache_dir=str(scratch / "cache")
    )
    fit = workload.fit
    lengths = [len(ids) for ids in prompts["input_ids"]]
    longest_tokens = prompter.config.max_prompt_tokens
    options: dict[str, Any] = {
        "output_dir": str(scratch / "peer"),
        "max_steps": _ENDLESS_STEPS,
        "learning_rate": fit.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
        "weight_decay": fit.weight_decay,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "bf16": False,
        "seed": fit.seed,
        "use_cpu": True,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    turns = TakesTurns(lambda inputs: counted(inputs, prompter), answers=own_stdout())
    turns.watch()
    if side.startswith("trl"):
        trl: Any = importlib.import_module("trl")
        # One full row at a time is the cheapest for both. Packed rows see themselves alone by a
        # dense mask over the whole flat micro-batch (on CPU attention has no other way), which
        # grows with its square; wrapped rows need no mask, and four at once were a fifth slower.
        config = trl.SFTConfig(
            **options,
            packing=True,
            packing_strategy="bfd" if side == "trl_packed" else "wrapped",
            max_length=longest_tokens,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=max(1, round(fit.positions_per_batch / longest_tokens)),
            gradient_checkpointing=False,
        )
        tokenizer = prompter.tokenizer
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(prompter.newline_id)
        trl.SFTTrainer(
            model=model,
            args=config,
            train_dataset=prompts,
            processing_class=tokenizer,
            callbacks=[turns],
        ).train()
        return
    rows = max(1, round(fit.positions_per_batch / (sum(lengths) / len(lengths))))
    at_once = min(rows, 2) if side == "padded_by_two" else rows
    Trainer(
        model=model,
        args=TrainingArguments(
            **options,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=max(1, round(rows / at_once)),
            train_sampling_strategy="group_by_length" if side == "grouped" else "random",
        ),
        train_dataset=prompts,
        data_collator=lambda examples: padded(examples, prompter.newline_id),
        callbacks=[turns],
    ).train()


def padded(examples: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Rows padded to the longest; padding is neither attended to nor predicted."""
    rows = [torch.tensor(example["input_ids"]) for example in examples]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(rows, batch_first=True, padding_value=-100),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="One side of the training benchmark.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("workload", type=Path, help="a folder that Workload.make wrote")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload = Workload.load(options.workload)
    with tempfile.TemporaryDirectory(dir=options.workload) as scratch:
        if options.side == "decant":
            train_decant(workload, Path(scratch))
        else:
            train_peer(workload, Path(scratch), options.side)
    return 0


if __name__ == "__main__":
    sys.exit(main())
