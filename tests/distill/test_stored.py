from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from distill.distillation import Distillation, distil
from distill.signals import LiveTeacher
from distill.stored import StoredSignal, store_signal
from distill.student import StudentObjective
from distill.teaching import Lesson, TeacherConfig
from foundation import FitConfig, packed_attention
from foundation.plan import TrainingPlan
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.prompter import Prompter
from promptify.splits import Split
from promptify.validation import BadInput

FIT = FitConfig(epochs=1, positions_per_batch=2048, reread_items=4, text_positions=16)
TEACHES = TeacherConfig(
    temperature=2.0,
    lessons=(
        Lesson(subject="labels"),
        Lesson(subject="candidates", top=10),
        Lesson(subject="vocabulary", top=5, weight=0.5),
    ),
)


@pytest.fixture(scope="module")
def stored(make: Any, book: PromptBook, split: Split, tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("stored") / "said.arrow"
    store_signal(make(seed=1), book, split, config=FIT, teacher_config=TEACHES, path=path)
    return path


@pytest.mark.parametrize("sampling", [{}, {"full_softmax_items": 10, "num_negatives": 20}])
def test_stored_it_says_what_it_says_live(
    make: Any, book: PromptBook, split: Split, tmp_path: Path, sampling: dict[str, int]
) -> None:
    config = replace(FIT, **sampling)
    path = tmp_path / "said.arrow"
    store_signal(make(seed=1), book, split, config=config, teacher_config=TEACHES, path=path)
    signal, live = StoredSignal(path), LiveTeacher(make(seed=1))
    plan = TrainingPlan(book, split.train, config)
    assert signal.num_steps == len(plan)
    for step in (0, len(plan) - 1):
        told, said = (one.teach(plan[step], TEACHES) for one in (signal, live))
        torch.testing.assert_close(told.label_ML, said.label_ML, rtol=2e-3, atol=2e-3)
        for name in ("candidates", "vocabulary"):
            one, other = getattr(told, name), getattr(said, name)
            assert torch.equal(one.class_Nk, other.class_Nk)
            torch.testing.assert_close(
                one.log_prob_Nk.float(), other.log_prob_Nk, rtol=2e-3, atol=2e-3
            )
        batch = {name: value for name, value in plan[step].items() if name != "num_tokens"}
        sums = [Distillation(make(), [(t, TEACHES)])(**batch) for t in (signal, make(seed=1))]
        for name in ("teacher_action", "teacher_next_item", "teacher_text"):
            torch.testing.assert_close(sums[0][name], sums[1][name], rtol=5e-3, atol=5e-3)


def test_a_student_of_either_learns_the_same(
    make: Any, book: PromptBook, split: Split, stored: Path, tmp_path: Path
) -> None:
    students = []
    for name, teacher in (("live", make(seed=1)), ("stored", StoredSignal(stored))):
        student = make()
        distil(
            student,
            teacher,
            book,
            split,
            config=FIT,
            teacher_config=TEACHES,
            out=tmp_path / name,
        )
        students.append(student.person_head.weight.detach())
    moved = (students[0] - make().person_head.weight).abs().mean()
    assert (students[0] - students[1]).abs().mean() < 0.1 * moved


def test_hidden_states_need_the_model(make: Any, book: PromptBook, split: Split, tmp_path: Path,
                                      stored: Path) -> None:  # fmt: skip
    config = TeacherConfig(lessons=(Lesson(subject="hidden"),))
    with pytest.raises(BadInput, match="cannot be stored"):
        store_signal(make(), book, split, config=FIT, teacher_config=config, path=tmp_path / "said")
    with pytest.raises(ValueError, match="give the model itself"):
        Distillation(make(), [(StoredSignal(stored), config)])
    whole = TeacherConfig(lessons=(Lesson(subject="candidates"),))
    with pytest.raises(BadInput, match="needs a top="):
        store_signal(make(), book, split, config=FIT, teacher_config=whole, path=tmp_path / "said")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fit", "teaches", "says"),
    [
        ({"seed": 1}, {}, "about other batches"),
        ({"positions_per_batch": 1024}, {}, "about other batches"),
        ({}, {"temperature": 1.0}, "of temperature 2, but 1"),
        ({}, {"lessons": (Lesson(subject="candidates", top=11),)}, "top=10 for 'candidates'"),
    ],
)
def test_another_training_than_the_one_it_was_stored_for_is_refused(
    make: Any, book: PromptBook, split: Split, stored: Path, tmp_path: Path,
    fit: dict[str, Any], teaches: dict[str, Any], says: str,
) -> None:  # fmt: skip
    with pytest.raises(BadInput, match=says):
        distil(
            make(),
            StoredSignal(stored),
            book,
            split,
            config=replace(FIT, **fit),
            teacher_config=replace(TEACHES, **teaches),
            out=tmp_path,
        )


def test_rows_are_packed_as_the_training_packs_them(
    make: Any, book: PromptBook, split: Split, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal, student = StoredSignal(stored), make()
    signal.check(student, book, split, config=FIT, teacher_config=TEACHES)
    packing = replace(FIT, packing=False)
    signal.check(student, book, split, config=packing, teacher_config=TEACHES)
    # As on a GPU in half precision.
    monkeypatch.setattr(
        "foundation.training.training_attention", lambda *_, **__: packed_attention.NAME
    )
    with pytest.raises(BadInput, match="packing must be those"):
        signal.check(student, book, split, config=FIT, teacher_config=TEACHES)


def test_more_processes_share_a_draw_of_negatives(
    make: Any,
    book: PromptBook,
    split: Split,
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, sampled = make(), replace(FIT, full_softmax_items=10, num_negatives=40)
    config = replace(sampled, positions_per_batch=1024)
    paths = {processes: tmp_path / f"of-{processes}.arrow" for processes in (1, 2)}
    for processes, path in paths.items():
        store_signal(
            make(),
            book,
            split,
            config=config,
            teacher_config=TEACHES,
            path=path,
            processes=processes,
        )
    one, two = (StoredSignal(path) for path in paths.values())
    one.check(student, book, split, config=config, teacher_config=TEACHES)
    two.check(student, book, split, config=config, teacher_config=TEACHES, processes=2)
    # As one process that accumulates as many draws.
    alone = replace(config, accumulate=2)
    two.check(student, book, split, config=alone, teacher_config=TEACHES)
    with pytest.raises(BadInput, match="number of processes"):
        one.check(student, book, split, config=config, teacher_config=TEACHES, processes=2)
    # Of the student's own weights it has nothing to learn.
    plan = TrainingPlan(book, split.train, config, processes=2)
    for step in (1, 2):
        batch = {name: value for name, value in plan[step].items() if name != "num_tokens"}
        gap = Distillation(student, [(two, TEACHES)])(**batch)["teacher_next_item"]
        assert gap < 0.01 * len(batch["next_item_K"])
    # A launch says of how many it is; a softmax over every item is the same on any number.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="number of processes"):
        one.check(student, book, split, config=config, teacher_config=TEACHES)
    StoredSignal(stored).check(student, book, split, config=FIT, teacher_config=TEACHES)


def test_a_student_that_knows_other_items_is_refused(
    make: Any, book: PromptBook, split: Split, stored: Path
) -> None:
    # It would be asked about more of them, in other batches.
    student = make()
    student.items.exposure_I[int((student.items.exposure_I == 0).nonzero()[0, 0])] = 5
    with pytest.raises(BadInput, match="about other batches"):
        StoredSignal(stored).check(student, book, split, config=FIT, teacher_config=TEACHES)


@pytest.mark.parametrize(
    "changes", [{"max_prompt_tokens": 160}, {"tells_profile": False}, {"max_context_tokens": 9}]
)
def test_other_prompts_are_refused(
    make: Any, book: PromptBook, split: Split, stored: Path, changes: dict[str, Any]
) -> None:
    log, prompter = book.interactions, book.prompter
    other = Prompter(
        tasks=prompter.tasks,
        config=replace(prompter.config, **changes),
        tokenizer=prompter.tokenizer,
        words=prompter.words,
    )
    with pytest.raises(BadInput, match="about other batches"):
        StoredSignal(stored).check(
            make(), other.book(log), split, config=FIT, teacher_config=TEACHES
        )


def test_another_log_or_other_tasks_are_refused(
    make: Any, book: PromptBook, split: Split, stored: Path
) -> None:
    log, prompter = book.interactions, book.prompter
    # The same people see the same items at the same times, and do something else with them.
    swapped = np.arange(len(log.actions))
    two = [log.actions.index(name) for name in prompter.tasks[0].actions[:2]]
    swapped[two] = two[::-1]
    action = pa.array(swapped[log.event_action], pa.int16())
    table = log.events.data.table
    events = table.set_column(table.column_names.index("action"), "action", action)
    other_log = Interactions(
        schema=log.schema,
        users=log.users,
        items=log.items,
        events=datasets.Dataset(events),
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )
    first, *others = prompter.tasks
    other_tasks = Prompter(
        tasks=(replace(first, positive=first.actions[:2]), *others),
        config=prompter.config,
        tokenizer=prompter.tokenizer,
        words=prompter.words,
    )
    for other in (prompter.book(other_log), other_tasks.book(log)):
        with pytest.raises(BadInput, match="about other batches"):
            StoredSignal(stored).check(make(), other, split, config=FIT, teacher_config=TEACHES)


def test_a_stored_teacher_is_known_by_its_weights(make: Any, stored: Path) -> None:
    signals = (StoredSignal(stored), make(seed=1), make(seed=2))
    for objective in (Distillation, StudentObjective):
        told, same, other = (
            objective(make(), [(signal, TEACHES)]).identity()["teacher"][0] for signal in signals
        )
        assert told["weights"] == same["weights"] != other["weights"]
        # In half precision it does not say quite the same.
        assert told["signal"] != same["signal"]


def test_a_file_that_is_none_is_refused(tmp_path: Path, stored: Path) -> None:
    other = tmp_path / "other.arrow"
    with pa.OSFile(str(other), "wb") as file, pa.ipc.new_file(file, pa.schema([])):
        pass
    short = tmp_path / "short.arrow"
    short.write_bytes(stored.read_bytes()[:-20])
    for path in (other, short):
        with pytest.raises(BadInput, match="holds no teacher's signal"):
            StoredSignal(path)


def test_resumed_it_ends_with_the_same_weights(
    make: Any, book: PromptBook, split: Split, stored: Path, tmp_path: Path
) -> None:
    def weights(folder: Path, *, stop: bool) -> dict[str, torch.Tensor]:
        calls: list[int] = []

        def validate() -> dict[str, float]:
            calls.append(1)
            if stop and len(calls) == 2:
                raise KeyboardInterrupt
            return {}

        distil(
            make(),
            StoredSignal(stored),
            book,
            split,
            config=replace(FIT, evaluate_steps=1, checkpoint_seconds=0.0),
            teacher_config=TEACHES,
            out=folder,
            validate=validate,
        )
        [path] = (folder / "checkpoints").glob("*/model.safetensors")
        return load_file(path)

    wanted = weights(tmp_path / "whole", stop=False)
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "cut", stop=True)
    got = weights(tmp_path / "cut", stop=False)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
