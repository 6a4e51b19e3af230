"""A run's data, read back from its folder: tasks, split, prompts."""

import json

import numpy as np

from decant.layout import DATA, PROMPTER, RunLayout
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.prompter import Prompter
from promptify.splits import Split, Targets, leave_one_out
from promptify.task import Task


def load_tasks(layout: RunLayout) -> tuple[Task, ...]:
    """The tasks of a run's data; the first is the one that is measured."""
    source = json.loads((layout.folder / DATA / "source.json").read_text("utf-8"))
    return tuple(Task.from_dict(task) for task in source["tasks"])


def split_of(interactions: Interactions, tasks: tuple[Task, ...]) -> Split:
    """The split of every run: leave one out, on the first task's surface."""
    return leave_one_out(interactions, surface=tasks[0].name if len(tasks) > 1 else None)


def load_book(layout: RunLayout) -> tuple[PromptBook, Split]:
    """A run's data as prompts, and its split."""
    interactions = Interactions.load(layout.interactions)
    prompter = Prompter.load(layout.folder / PROMPTER)
    return prompter.book(interactions), split_of(interactions, load_tasks(layout))


def sample_targets(targets: Targets, count: int | None) -> Targets:
    """At most `count` targets, evenly spaced; all of them when None."""
    if count is None or count >= len(targets):
        return targets
    return targets[np.linspace(0, len(targets) - 1, count).astype(np.int64)]
