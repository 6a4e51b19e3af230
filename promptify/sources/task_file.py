"""A task's file: what is predicted, and what a table's columns and actions are called there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from promptify.plain_yaml import load_yaml
from promptify.schema import Schema
from promptify.task import Task, check_best_first, label_words
from promptify.validation import BadInput, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFile:
    """What a task's file says.

    Attributes:
        tasks: one per surface.
        columns: our name of a column → the tables' own, where they differ.
        actions: what the column of actions holds, as YAML has it → the action it stands for.
        schema: what the columns are; None where that is inferred.

    Raises:
        BadInput: the actions of a task are not best first.
    """

    tasks: tuple[Task, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    actions: Mapping[str | float | bool, str] = field(default_factory=dict)
    schema: Schema | None = None

    def __post_init__(self) -> None:
        for task in self.tasks:
            check_best_first(task)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file, as `promptify.sources.table` shows one.

        Raises:
            BadInput: it is no YAML, or says what cannot be; or as for the class.
        """
        try:
            document = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"{path} cannot be read as a YAML task ({reason}).") from error
        if not isinstance(document, dict):
            raise BadInput(f"{path} must hold a task's fields: name, instruction, actions, ….")
        schema = document.pop("schema", None)
        columns = document.pop("columns", None) or {}
        if not isinstance(columns, Mapping) or not all(
            isinstance(word, str) for pair in columns.items() for word in pair
        ):
            raise BadInput(
                f"{path}: columns={shown(columns)} must map our names to yours, as text."
            )
        values = document.pop("values", None)
        listed: Any = document.pop("tasks", None)
        if listed is None:
            listed = [document]
        elif document:
            raise BadInput(f"{path} has `tasks:` and beside it {', '.join(map(str, document))}.")
        try:
            tasks = tuple(Task.from_dict(said) for said in listed)
            if not tasks:
                raise BadInput("it lists no tasks; give it one.")
            return cls(
                tasks=tasks,
                columns=dict(columns),
                actions=_actions(values, tasks),
                schema=None if schema is None else Schema.from_dict(schema),
            )
        except (TypeError, AttributeError, ValueError) as error:
            raise BadInput(f"{path}: {error}") from error


def _actions(values: Any, tasks: Sequence[Task]) -> dict[str | float | bool, str]:
    """What `values` says of the column of actions, the only one that it may speak of."""
    if values is None:
        return {}
    told = values.get("action") if isinstance(values, Mapping) and len(values) == 1 else None
    if not isinstance(told, Mapping) or not all(
        isinstance(said, str | int | float) for said in told
    ):
        raise BadInput(
            f"values={shown(values)} must map what the column action holds (text, numbers, true "
            "and false) to actions: {action: {5: loved, 4: liked}}."
        )
    known = label_words(tasks)
    for said, action in told.items():
        if action not in known:
            raise BadInput(
                f"values.action[{said!r}]={shown(action)} must be one of the actions "
                f"{', '.join(known)}, as text; write one of them, or add it to actions."
            )
    return dict(told)
