"""Where interactions come from: MovieLens, anyone's tables, the generated job market."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.splits import Targets
from promptify.task import Task
from promptify.validation import BadInput

__all__ = ["Oracle", "SourceData"]


class Oracle(Protocol):
    """What a generator knows about the data it made: the best that any model can do on it."""

    def action_probabilities(self, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of each action.

        Args:
            events: int64 [n], rows of `events`, all of one task.

        Returns:
            float32 [n, A], columns in the order of that task's actions.
        """
        ...

    def next_item_scores(self, targets: Targets) -> NDArray[np.float32]:
        """How likely each item is to be the next one with a good outcome.

        Args:
            targets: n targets.

        Returns:
            float32 [n, I], higher is likelier; comparable within a row only.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceData:
    """What a source hands out.

    Attributes:
        interactions: the validated log.
        tasks: one per surface; a task's name is its surface.
        oracle: the truth, where the data was generated.
        set_aside: rows left out, by ``"file: column reason"``.

    Raises:
        BadInput: tasks and surfaces are not the same names, a task ranks a kind of item that the
            schema lacks, or an event's action or item's kind is not one of its task's.
    """

    interactions: Interactions
    tasks: tuple[Task, ...]
    oracle: Oracle | None = None
    set_aside: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        log = self.interactions
        names = [task.name for task in self.tasks]
        if sorted(names) != sorted(log.surfaces):
            raise BadInput(
                f"The tasks are {', '.join(names)} but the log's surfaces are "
                f"{', '.join(log.surfaces)}; give each surface one task of its name."
            )
        used = np.unique(log.event_surface.astype(np.int64) * len(log.actions) + log.event_action)
        for task in self.tasks:
            if task.item_kind not in log.schema.items:
                raise BadInput(
                    f"Task {task.name!r} ranks items of kind {task.item_kind!r}, but the schema "
                    f"has {', '.join(log.schema.items)}; change item_kind or the schema."
                )
            surface = log.surfaces.index(task.name)
            here = log.event_surface == surface
            if num := int((log.item_kinds[log.event_item] != task.item_kind)[here].sum()):
                raise BadInput(
                    f"Surface {task.name!r} holds {num:,} events with items of another kind than "
                    f"{task.item_kind!r}, which its task ranks; give them a surface of their own "
                    "or mend the log."
                )
            stray = [
                log.actions[pair % len(log.actions)]
                for pair in used.tolist()
                if pair // len(log.actions) == surface
                and log.actions[pair % len(log.actions)] not in task.actions
            ]
            if stray:
                raise BadInput(
                    f"Surface {task.name!r} holds events with {', '.join(stray)}, but its task "
                    f"knows {', '.join(task.actions)}; add the action to the task or mend the log."
                )
