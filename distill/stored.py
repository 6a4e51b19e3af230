"""What a teacher said of every batch of a training plan, kept in one Arrow file.

    store_signal(teacher, book, split, config=fit, teacher_config=teaches, path=Path("said.arrow"))
    distil(student, StoredSignal(Path("said.arrow")), book, split, config=fit, ...)

A teacher that is stored is asked once, however many students it has, and is not needed again. What
it says is kept by the plan's step, so that training from the file sees the same rows. Labels are
kept whole, candidates and vocabulary by their most probable classes; all in half precision. The
file is memory-mapped: a step reads its own part.

Legend: M action targets, L label words, K next-item pairs, N text positions, Y items of slates,
k top classes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from distill.losses import TopClasses
from distill.signals import LiveTeacher, Taught
from distill.teaching import TeacherConfig
from foundation import Foundation
from foundation.asking import Asking
from foundation.beginning import hash_tensors, piece_arrays
from foundation.plan import TrainingPlan
from foundation.training import FitConfig, attention_and_packing
from promptify.assembly import PromptBook
from promptify.splits import Split
from promptify.validation import BadInput
from promptify.whole import whole_file

# What of a training's configuration decides which rows a step holds, and what is read in them.
_PLAN_FIELDS = (
    "epochs",
    "short_window_share",
    "positions_per_batch",
    "accumulate",
    "text_positions",
    "reread_items",
    "full_softmax_items",
    "num_negatives",
    "seed",
)
_COLUMNS: dict[str, Any] = {
    "labels": pa.float16(),
    "candidates": pa.int32(),
    "candidates_log_prob": pa.float16(),
    "vocabulary": pa.int32(),
    "vocabulary_log_prob": pa.float16(),
    "slates": pa.float16(),
}


def store_signal(
    teacher: Foundation,
    book: PromptBook,
    split: Split,
    *,
    config: FitConfig,
    teacher_config: TeacherConfig,
    path: Path,
    asking: Asking | None = None,
    processes: int = 1,
) -> None:
    """Ask a teacher about every batch that a training will see, and write it down.

    Args:
        teacher: only read.
        book: pieces of the interactions.
        split: which events train.
        config: of the training to come. With packing left open, rows are packed as the teacher
            would train where it is; the student must come to the same.
        teacher_config: what will be taught; candidates and vocabulary need a `top`.
        path: of the file, written whole or not at all.
        asking: what that training will ask beside the rows.
        processes: how many will share that training.

    Raises:
        BadInput: what is to be taught cannot be stored.
    """
    for lesson in teacher_config.lessons:
        if lesson.subject in ("hidden", "attention"):
            raise BadInput(
                f"lesson on {lesson.subject!r} cannot be stored: it would take thousands of bytes "
                "a position. Give the model itself as its teacher."
            )
        if lesson.subject == "on_policy":
            raise BadInput(
                "lesson on 'on_policy' cannot be stored: what the student will write is not known "
                "yet. Give the model itself as its teacher."
            )
        if lesson.subject in ("candidates", "vocabulary") and lesson.top is None:
            raise BadInput(
                f"lesson on {lesson.subject!r} needs a top= to be stored: 64 of the most probable "
                "classes, say."
            )
    live = LiveTeacher(teacher)
    _, packed = attention_and_packing(teacher, config, asking)
    competing = teacher.competing
    rows: dict[str, Any] = {"packed": packed, "competing": competing, "processes": processes}
    plan = TrainingPlan(book, split.train, config, asking=asking, **rows)
    about = {
        "plan": plan_key(book, split, config, asking, **rows),
        "teacher": hash_tensors(teacher.state_dict().values()),
        "role": teacher_config.role,
        "temperature": teacher_config.temperature,
        "subjects": {lesson.subject: lesson.top for lesson in teacher_config.lessons},
    }
    schema = pa.schema(
        [pa.field(name, pa.large_list(kind)) for name, kind in _COLUMNS.items()],
        metadata={"decant": json.dumps(about)},
    )
    with (
        whole_file(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for step in tqdm(range(plan.num_batches), desc="ask the teacher"):
            inputs = {name: value.to(teacher.device) for name, value in plan[step].items()}
            writer.write_batch(_record(live.teach(inputs, teacher_config), schema))


def _record(taught: Taught, schema: pa.Schema) -> pa.RecordBatch:
    flat: dict[str, np.ndarray] = {}
    if taught.label_ML is not None:
        flat["labels"] = taught.label_ML.cpu().numpy().astype(np.float16)
    if taught.slate_Y is not None:
        flat["slates"] = taught.slate_Y.cpu().numpy().astype(np.float16)
    for name in ("candidates", "vocabulary"):
        top = getattr(taught, name)
        if isinstance(top, TopClasses):
            flat[name] = top.class_Nk.cpu().numpy().astype(np.int32)
            flat[f"{name}_log_prob"] = top.log_prob_Nk.cpu().numpy().astype(np.float16)
    columns = []
    for name, kind in _COLUMNS.items():
        values = pa.array(flat[name].ravel(), kind) if name in flat else pa.array([], kind)
        columns.append(pa.LargeListArray.from_arrays([0, len(values)], values))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def plan_key(
    book: PromptBook,
    split: Split,
    config: FitConfig,
    asking: Asking | None = None,
    *,
    packed: bool,
    competing: NDArray[np.bool_],
    processes: int = 1,
) -> str:
    """A hash of everything that decides which rows each step of a training holds.

    Args:
        book: pieces of the interactions.
        split: which events train.
        config: of the training.
        asking: what it asks beside the rows.
        packed: whether its rows are.
        competing: bool [I], the items of its softmax.
        processes: how many share it.
    """
    settings = asdict(config)
    if book.interactions.num_items > config.full_softmax_items:
        # So many micro-batches share a draw of negatives.
        settings["accumulate"] *= processes
    digest = hashlib.sha256()
    digest.update(json.dumps({name: settings[name] for name in _PLAN_FIELDS}).encode())
    digest.update(json.dumps([packed, asdict(book.prompter.config)]).encode())
    digest.update(np.packbits(split.train).tobytes())
    digest.update(np.packbits(competing).tobytes())
    tasks = [task.to_dict() for task in book.prompter.tasks]
    digest.update(json.dumps([book.interactions.digest, tasks]).encode())
    for values in piece_arrays(book):
        digest.update(values.data)
    if asking is not None:
        numbers = asking.task, asking.questions_per_row, asking.slates_per_row
        digest.update(json.dumps(numbers).encode())
        if asking.pairs is not None:
            # Which pairs are asked decides where items of slates stand behind them.
            digest.update(np.stack([asking.pairs.user, asking.pairs.item]).tobytes())
    return digest.hexdigest()


class StoredSignal:
    """A teacher by what it said; see `signals.Signal`.

    Args:
        path: written by `store_signal`.

    Raises:
        BadInput: the file is none of these, or was cut short.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            about = json.loads(self._reader.schema.metadata[b"decant"])
            self.plan, self.temperature = about["plan"], about["temperature"]
            # Files of before do not say whose words they hold.
            self.teacher: str | None = about.get("teacher")
            self.role = about.get("role", "click")
            self.subjects: dict[str, int | None] = about["subjects"]
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{path} holds no teacher's signal ({str(error).splitlines()[0]}); store it again."
            ) from error

    @property
    def num_steps(self) -> int:
        """Steps it knows."""
        return int(self._reader.num_record_batches)

    def check(
        self,
        student: Foundation,
        book: PromptBook,
        split: Split,
        *,
        config: FitConfig,
        teacher_config: TeacherConfig,
        asking: Asking | None = None,
        processes: int | None = None,
    ) -> None:
        """Refuse a training that is not the one this was stored for.

        Args:
            student: that will learn.
            book: pieces of the interactions.
            split: which events train.
            config: of the training.
            teacher_config: what is to be taught.
            asking: what the training asks beside the rows.
            processes: how many share it; those of the launch when left out.

        Raises:
            BadInput: its batches are others, or what is to be taught was not stored.
        """
        _, packed = attention_and_packing(student, config, asking)
        if processes is None:
            processes = int(os.environ.get("WORLD_SIZE", "1"))  # as launchers say it
        rows: dict[str, Any] = {"packed": packed, "competing": student.competing}
        if student.item_ids != tuple(book.interactions.item_ids) or self.plan != plan_key(
            book, split, config, asking, processes=processes, **rows
        ):
            raise BadInput(
                "the stored signal is about other batches than this training's: data, prompts, "
                "split, seed, schedule, number of processes and packing must be those it was "
                "stored with. Store it again."
            )
        for lesson in teacher_config.lessons:
            if lesson.subject not in self.subjects:
                raise BadInput(
                    f"the stored signal says nothing about {lesson.subject!r}, only about "
                    f"{', '.join(self.subjects)}; store that too."
                )
            if self.subjects[lesson.subject] != lesson.top:
                raise BadInput(
                    f"the stored signal has top={self.subjects[lesson.subject]} for "
                    f"{lesson.subject!r}, but {lesson.top} is asked for; they must agree."
                )
        if "slates" in self.subjects and teacher_config.role != self.role:
            raise BadInput(
                f"the stored signal is of a teacher with role={self.role!r}, but "
                f"{teacher_config.role!r} is asked for; store it again."
            )
        needs_same = {"candidates", "vocabulary"} & {one.subject for one in teacher_config.lessons}
        if needs_same and teacher_config.temperature != self.temperature:
            raise BadInput(
                f"the stored signal is of temperature {self.temperature:g}, but "
                f"{teacher_config.temperature:g} is asked for; store it again."
            )

    def teach(self, inputs: Mapping[str, Tensor], config: TeacherConfig) -> Taught:
        """See `signals.Signal.teach`."""
        step = int(inputs["step"])
        device = inputs["ids_RT"].device
        record = self._reader.get_batch(step)

        def column(name: str, rows: int) -> Tensor:
            values = record.column(name).flatten().to_numpy(zero_copy_only=False)
            table = values.reshape(rows, -1) if len(values) else values.reshape(0, 0)
            return torch.from_numpy(table.copy()).to(device)

        def top(name: str, rows: int) -> TopClasses | None:
            if config.lesson(name) is None:  # type: ignore[arg-type]
                return None
            return TopClasses(
                class_Nk=column(name, rows).long(), log_prob_Nk=column(f"{name}_log_prob", rows)
            )

        return Taught(
            label_ML=column("labels", len(inputs["arrow_M"])).float()
            if config.lesson("labels")
            else None,
            candidates=top("candidates", len(inputs["next_position_K"])),
            vocabulary=top("vocabulary", len(inputs["text_position_N"])),
            slate_Y=column("slates", len(inputs["shown_Y"])).flatten().float()
            if config.lesson("slates")
            else None,
        )
