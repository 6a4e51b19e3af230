"""A task is a surface in words: what is asked, which answers there are, which are good."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from promptify.validation import BadInput, shown

NextTarget = Literal["any", "positive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One surface, as the model is told about it.

    A new surface is a new `Task`; no code changes. Events belong to the task whose `name` is
    their surface.

    Args:
        name: the surface this task serves, e.g. ``"jobs"``.
        instruction: one sentence telling the model what is predicted.
        actions: the label words, best first, e.g. ``("liked", "watched", "disliked")``.
        positive: the actions that count as a good outcome, a subset of `actions`.
        item_kind: the kind of item this surface ranks (`items.kind`).
        note: free text that steers every request, e.g. ``"Skills matter more than seniority."``.
        next_target: which events the person vector must predict: ``any`` event, or only a
            ``positive`` one.
        grades: words for how well an item fits by policy, worst first, so that grade ``g`` is
            ``grades[g]``; empty where there is no policy. They are read where actions are read and
            never stand in a prompt.

    Raises:
        ValueError: an argument is empty, is not text or contradicts another; the message says how
            to mend it.

    Example:
        >>> films = Task(
        ...     name="films",
        ...     instruction="Predict how this viewer rates each film.",
        ...     actions=("liked", "watched", "disliked"),
        ...     positive=("liked",),
        ...     item_kind="film",
        ... )
        >>> films.is_positive
        (True, False, False)
    """

    name: str
    instruction: str
    actions: tuple[str, ...]
    positive: tuple[str, ...]
    item_kind: str
    note: str = ""
    next_target: NextTarget = "any"
    grades: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("name", "instruction", "item_kind", "note"):
            _check_text(f"Task.{name}", getattr(self, name))
        for name in ("actions", "positive", "grades"):
            words = getattr(self, name)
            if not isinstance(words, list | tuple):
                raise BadInput(f"Task.{name}={shown(words)} must be a list of words.")
            for place, word in enumerate(words):
                _check_word(f"Task.{name}[{place}]", word)
            # Frozen: coerce lists (from YAML and JSON) to tuples through object.__setattr__.
            object.__setattr__(self, name, tuple(words))
        for name in ("name", "instruction", "item_kind"):
            if not getattr(self, name).strip():
                raise ValueError(f"Task.{name} is empty; give it a few words.")
        if len(self.actions) < 2 or len(set(self.actions)) != len(self.actions):
            raise ValueError(
                f"Task.actions={self.actions!r} of task {self.name!r} must be two or more "
                "different words; one that never occurs may be among them: [viewed, skipped] of a "
                "log of views alone."
            )
        stray = [action for action in self.positive if action not in self.actions]
        if stray or not 0 < len(self.positive) < len(self.actions):
            raise ValueError(
                f"Task.positive={self.positive!r} of task {self.name!r} must name some, but not "
                f"all, of its actions {self.actions!r}."
            )
        if self.next_target not in ("any", "positive"):
            raise ValueError(
                f"Task.next_target={self.next_target!r} of task {self.name!r} must be 'any' or "
                "'positive'."
            )
        if len(self.grades) == 1 or len(set(self.grades)) != len(self.grades):
            raise ValueError(
                f"Task.grades={self.grades!r} of task {self.name!r} must be two or more different "
                "words, or none."
            )
        if shared := [word for word in self.grades if word in self.actions]:
            raise ValueError(
                f"Task.grades={self.grades!r} of task {self.name!r} names its actions "
                f"{', '.join(shared)} too; a grade needs a word of its own."
            )

    @property
    def is_positive(self) -> tuple[bool, ...]:
        """Whether each action, in the order of `actions`, is a good outcome."""
        return tuple(action in self.positive for action in self.actions)

    def to_dict(self) -> dict[str, Any]:
        """The task as plain JSON values; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a task from plain values, as read from YAML or JSON; a key without one is left out.

        Raises:
            ValueError: a key is missing or unknown, or as for the class.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"Task does not know {', '.join(unknown)}; it takes {', '.join(known)}."
            )
        values = {name: value for name, value in values.items() if value is not None}
        required = [name for name in known if name not in ("note", "next_target", "grades")]
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"Task lacks {', '.join(missing)}.")
        return cls(**values)


def _check_word(where: str, word: object) -> None:
    """An action or a grade: the model reads it as one token."""
    if isinstance(word, bool):
        other = {True: "true: liked", False: "false: disliked"}[word]
        raise BadInput(
            f"{where}={word} must be text; quote it: {_yes(word)!r}. Where a table holds true "
            f"and false, name actions of your own and add values: {{action: {{{other}, …}}}}."
        )
    if not isinstance(word, str) or not word.isalpha():
        raise BadInput(
            f"{where}={shown(word)} must be one word of letters, such as 'liked'. Where a table "
            "holds something else, add values: {action: {5: loved, 4: liked, …}} to the task's "
            "file."
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _check_text(where: str, value: object) -> None:
    if not isinstance(value, str):
        # What YAML reads of a bare yes or no; of other words it keeps what was written.
        word = _yes(value) if isinstance(value, bool) else value
        raise BadInput(f"{where}={shown(value)} must be text; quote it: {shown(str(word))}.")


def check_best_first(task: Task) -> None:
    """Hold a task to the order of its actions: with an item that was shown, the first counts.

    Raises:
        BadInput: a positive action stands behind one that is not.
    """
    behind = [
        (good, other)
        for place, other in enumerate(task.actions)
        for good in task.actions[place + 1 :]
        if good in task.positive and other not in task.positive
    ]
    if behind:
        good, other = behind[0]
        best_first = task.actions[::-1]
        if set(best_first[: len(task.positive)]) != set(task.positive):
            # No funnel that only needs turning round.
            best_first = tuple(dict.fromkeys((*task.positive, *task.actions)))
        raise BadInput(
            f"Task.actions of task {task.name!r} must be best first, but {good!r}, which is "
            f"positive, stands behind {other!r}, which is not; of what is done with one item that "
            f"was shown the first counts. Write actions: [{', '.join(best_first)}]."
        )


def distinct(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Tasks that one model may serve.

    Raises:
        BadInput: there is none, or two have the same name.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise BadInput(f"tasks={names!r} must be one or more tasks with different names.")
    return tuple(tasks)


def label_words(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The actions of all tasks, in order of first appearance."""
    return tuple(dict.fromkeys(action for task in tasks for action in task.actions))


def grade_words(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The grades of all tasks, in order of first appearance.

    Raises:
        BadInput: one of them is an action of a task.
    """
    grades = tuple(dict.fromkeys(grade for task in tasks for grade in task.grades))
    if shared := sorted(set(grades) & set(label_words(tasks))):
        raise BadInput(
            f"{', '.join(shared)} is a grade of one task and an action of another; a grade needs a "
            "word of its own."
        )
    return grades


def read_words(tasks: Sequence[Task]) -> tuple[str, ...]:
    """All words that the model reads at an arrow."""
    return (*label_words(tasks), *grade_words(tasks))
