"""What a policy may look at: people, the items of one kind, what people did well with, and words.

Nothing else is to be had by an expression: no ids, no names, no labels of the pair itself.
"""

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from distill.policy.values import Int64, Texts, Value, column_value, listed
from promptify.interactions import Interactions
from promptify.task import Task
from promptify.validation import BadInput, shown

Owner = Literal["user", "item", "history"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pairs:
    """Somebody and an item each, perhaps with what they asked.

    Attributes:
        users: int64 [n], rows of `users`.
        items: int64 [n], rows of `items`.
        contexts: int64 [n], index in the log's `contexts`, or -1; None for no query anywhere.
    """

    users: Int64
    items: Int64
    contexts: Int64 | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.users), len(self.items)}
        if self.contexts is not None:
            lengths.add(len(self.contexts))
        if len(lengths) > 1:
            raise ValueError(
                f"Pairs hold {len(self.users)} users and {len(self.items)} items; give as many of "
                "the one as of the other."
            )

    @classmethod
    def of(cls, users: ArrayLike, items: ArrayLike, contexts: ArrayLike | None = None) -> "Pairs":
        """Pairs of any whole numbers."""
        return cls(
            users=np.asarray(users, np.int64),
            items=np.asarray(items, np.int64),
            contexts=None if contexts is None else np.asarray(contexts, np.int64),
        )

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> "Pairs":
        contexts = None if self.contexts is None else self.contexts[rows]
        return Pairs(users=self.users[rows], items=self.items[rows], contexts=contexts)


class PolicyTables:
    """The columns of a log that rules are written over.

    Args:
        interactions: the log.
        task: whose items are judged, and whose positive actions are what `history` tells.
        events: bool [E], the events that history may tell of, such as a split's training events;
            all of them when left out.

    Raises:
        BadInput: the mask is not of the log's events, or the log has no item of the task's kind.
    """

    def __init__(
        self, interactions: Interactions, task: Task, *, events: NDArray[np.bool_] | None = None
    ) -> None:
        if events is not None and len(events) != interactions.num_events:
            raise BadInput(
                f"events is a mask of {len(events):,} events, the log has "
                f"{interactions.num_events:,}; give the mask of this log's split."
            )
        self.interactions = interactions
        self.task = task
        self.candidates: Int64 = np.flatnonzero(interactions.item_kinds == task.item_kind)
        if not len(self.candidates):
            raise BadInput(f"the log holds no item of kind {task.item_kind!r}; nothing to judge.")
        self._events = np.ones(interactions.num_events, np.bool_) if events is None else events
        self._values: dict[tuple[Owner, str], Value] = {}

    @property
    def num_users(self) -> int:
        """U."""
        return self.interactions.num_users

    @property
    def num_items(self) -> int:
        """I, of all kinds."""
        return self.interactions.num_items

    @cached_property
    def shown_events(self) -> Int64:
        """Rows of the events that history may tell of, on the task's surface, whatever came."""
        log = self.interactions
        return np.flatnonzero(
            self._events & (log.event_surface == log.surfaces.index(self.task.name))
        )

    @cached_property
    def liked(self) -> tuple[Int64, Int64]:
        """What went well: rows of the items, and int64 [U+1], where each user's begin."""
        log = self.interactions
        actions = [log.actions.index(action) for action in self.task.positive]
        rows = self.shown_events
        rows = rows[np.isin(log.event_action[rows], actions)]
        rows = rows[log.item_kinds[log.event_item[rows]] == self.task.item_kind]
        offsets = np.searchsorted(log.event_user[rows], np.arange(log.num_users + 1))
        return log.event_item[rows].astype(np.int64), offsets.astype(np.int64)

    @cached_property
    def queries(self) -> Texts:
        """The texts that `Pairs.contexts` indexes."""
        words = self.interactions.contexts
        return Texts(np.arange(len(words), dtype=np.int32), tuple(words))

    def field(self, owner: Owner, name: str) -> Value:
        """A column: of U rows for `user` and `history`, of I rows for `item`.

        Raises:
            BadInput: there is no such column, or it is a name, by which nobody is judged.
        """
        if (owner, name) not in self._values:
            self._values[owner, name] = self._read(owner, name)
        return self._values[owner, name]

    def with_field(self, owner: Owner, name: str, value: Value) -> "PolicyTables":
        """The same tables with one column in place of another; `history` stays as it was."""
        other = object.__new__(PolicyTables)
        other.__dict__ = {**self.__dict__, "_values": {**self._values, (owner, name): value}}
        return other

    def _read(self, owner: Owner, name: str) -> Value:
        if owner not in get_args(Owner):
            raise BadInput(f"{owner!r} has no fields; there are user, item, history and query.")
        log = self.interactions
        fields = log.schema.user if owner == "user" else log.schema.items[self.task.item_kind]
        kinds = {field.name: field.kind for field in fields}
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 3, cutoff=0.5)
            mend = f"did you mean {' or '.join(near)}? " if near else ""
            whose = "people" if owner == "user" else f"items of kind {self.task.item_kind!r}"
            raise BadInput(
                f"{whose} have no field {shown(name)}; {mend}they have {', '.join(kinds)}."
            )
        if kinds[name] == "name":
            raise BadInput(
                f"{name!r} is what people are called, by which nobody is judged; leave it out."
            )
        table: pa.Table = (log.users if owner == "user" else log.items).data.table
        column = column_value(table.column(name))
        return column if owner != "history" else listed(column, *self.liked)
