"""Everything that prompts over one log can hold, tokenized once and numbered.

Legend: E events of the log, U users, I items, R rows, M events.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.layout import UNKNOWN_TIME, Events, Pool
from promptify.pieces import Pieces, placed
from promptify.prompter import Prompter
from promptify.words import columns_of, item_texts, span_index

Int64 = NDArray[np.int64]

# Words as Python holds them take many times the room of their tokens.
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPieces:
    """What a log says, in tokens: all that prompts need of its tables beside the events.

    Attributes:
        items: I token pieces, each an item's text and the arrow.
        profiles: U token pieces, each with its newline; nothing for an empty profile.
        contexts: a token piece for each of the log's contexts.
        item_time: int64 [I], when each item came to be, or `UNKNOWN_TIME`.
    """

    items: Pieces
    profiles: Pieces
    contexts: Pieces
    item_time: Int64

    @classmethod
    def of(cls, prompter: Prompter, log: Interactions) -> Self:
        """Put people, items and contexts in words, and tokenize them."""
        words = prompter.words

        def item_pieces(rows: Int64) -> Pieces:
            return prompter.item_pieces(item_texts(words, log, rows))

        def profile_pieces(rows: Int64) -> Pieces:
            columns = columns_of(log.users, log.schema.user, rows)
            return prompter.profile_pieces(words.profiles(columns, num_rows=len(rows)))

        return cls(
            items=_in_parts(item_pieces, log.num_items),
            profiles=_in_parts(profile_pieces, log.num_users),
            contexts=prompter.context_pieces(map(prompter.context_text, log.contexts)),
            item_time=_item_times(log, np.arange(log.num_items)),
        )

    def with_items(self, prompter: Prompter, log: Interactions, rows: Int64) -> Self:
        """What a log says after some of its items were told anew or put behind the others.

        Args:
            prompter: puts them in words.
            log: the log with those items.
            rows: int64 [n], their rows; only they are put in words.
        """
        order = placed(len(self.items), rows)
        told = prompter.item_pieces(item_texts(prompter.words, log, rows))
        times = np.concatenate([self.item_time, _item_times(log, rows)])
        return replace(
            self, items=Pieces.joined([self.items, told]).take(order), item_time=times[order]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrowed:
    """Some pieces of a table, renumbered, and others behind them.

    Attributes:
        pool: those that every table begins with, the chosen ones, the others.
        num_fixed: how many every table begins with, which keep their numbers.
        kept: int64 [n], numbers in the table of the chosen ones, rising.
    """

    pool: Pool
    num_fixed: int
    kept: Int64

    @property
    def first_new(self) -> int:
        """The number of the first of the others."""
        return self.num_fixed + len(self.kept)

    def __call__(self, numbers: Int64) -> Int64:
        """Numbers in the table as numbers here, of the same shape."""
        here = self.num_fixed + np.searchsorted(self.kept, numbers)
        return np.where(numbers < self.num_fixed, numbers, here)


class PieceTable:
    """The pieces of a log by number.

    Args:
        prompter: puts them in words and tokens.
        log: whose people, items and contexts they are.
        said: what the log says, where that is tokenized already.

    Attributes:
        said: what the log says, in tokens.
        pool: all of them.
        item_pieces: I token pieces, each an item's text and the arrow.
        item_time: int64 [I], when each item came to be, or `UNKNOWN_TIME`.

    Raises:
        BadInput: a surface of the log has no task, or an action is not one of its task's.
    """

    def __init__(
        self, prompter: Prompter, log: Interactions, said: LogPieces | None = None
    ) -> None:
        self._prompter = prompter
        self._log = log
        self._has_slots = prompter.config.form == "slot"
        self._task_of_surface, self._label_of_action = _tasks_and_labels(prompter, log)
        self.said = said or LogPieces.of(prompter, log)
        self.item_pieces, self.item_time = self.said.items, self.said.item_time
        end = [] if self._has_slots else [prompter.newline_id]
        labels = prompter.label_ids.tolist()
        if not prompter.config.tells_actions:
            labels = [prompter.newline_id] * len(labels)
        blocks = {
            "label": Pieces.of([[label, *end] for label in labels]),
            "gap": prompter.gap_pieces,
            "empty": Pieces.of([[]]),
            "age": prompter.age_pieces,
            "instruction": prompter.instruction_pieces,
            "item": self.items(np.arange(log.num_items)),
            "context": self.said.contexts,
            "profile": self.said.profiles,
        }
        starts = np.cumsum([0, *map(len, blocks.values())]).tolist()
        self._first = dict(zip(blocks, starts, strict=False))
        self.pool = self._pool_of(list(blocks.values()))

    def items(self, items: NDArray[Any]) -> Pieces:
        """Items as they stand in a prompt, each a slot or its text and the arrow."""
        if not self._has_slots:
            return self.item_pieces.take(items)
        slots = (items + self._prompter.vocab_size).astype(np.int32)
        return Pieces(ids=slots, offsets=np.arange(len(items) + 1))

    def narrowed(self, *used: Int64, blocks: Sequence[Pieces]) -> "Narrowed":
        """The pieces that one request tells, with others of its own behind: few of many.

        Args:
            used: numbers of pieces of the whole pool.
            blocks: the others.
        """
        num_fixed = self._first["item"]
        kept = np.unique(np.concatenate([numbers.ravel() for numbers in used]))
        kept = kept[kept >= num_fixed]
        pieces = self.pool.pieces
        fixed = Pieces(
            ids=pieces.ids[: pieces.offsets[num_fixed]], offsets=pieces.offsets[: num_fixed + 1]
        )
        return Narrowed(
            pool=self._pool_of([fixed, pieces.take(kept), *blocks]), num_fixed=num_fixed, kept=kept
        )

    # Numbers of pieces.

    def inline(self, pieces: Pieces) -> Pieces:
        """How items outside the catalogue stand in a history: a slot each, or their text."""
        if not self._has_slots:
            return pieces
        return self.items(len(self.item_pieces) + np.arange(len(pieces)))

    def item(self, items: NDArray[Any] | int) -> Any:
        """Of items, by row."""
        return self._first["item"] + items

    def instruction(self, tasks: NDArray[Any] | int) -> Any:
        """Of instructions, by task."""
        return self._first["instruction"] + tasks

    def heads(self, user: NDArray[Any], task: NDArray[Any]) -> Int64:
        """Of the instruction and profile of each row, int64 [R, 2]."""
        profile = self._first["profile"] + user.astype(np.int64)
        return np.stack([self.instruction(task.astype(np.int64)), profile], axis=1)

    def context(self, context: NDArray[Any]) -> Int64:
        """Of contexts, by index; -1 is the empty piece."""
        return np.where(context >= 0, self._first["context"] + context, self.pool.empty)

    def gap(self, seconds: int) -> int:
        """Of the gap before an event."""
        return int(self._span("gap", np.array([seconds]))[0])

    def age(self, moment: Int64, item_time: Int64) -> Int64:
        """Of the age of items, int64 [M]; the empty piece where it is unknown or not told."""
        known = (moment != UNKNOWN_TIME) & (item_time != UNKNOWN_TIME)
        return np.where(known, self._span("age", moment - item_time), self.pool.empty)

    def tasks(self, rows: Int64) -> Int64:
        """The task of events of the log, int64 [M]."""
        return self._task_of_surface[self._log.event_surface[rows]]

    def events(self, rows: Int64) -> Events:
        """Events of the log, by row."""
        log = self._log
        item = log.event_item[rows].astype(np.int64)
        timestamp = log.event_timestamp[rows]
        return Events(
            row=rows,
            item=item,
            label=self._label_of_action[log.event_action[rows]],
            task=self.tasks(rows),
            slate=log.event_slate[rows],
            timestamp=timestamp,
            context_piece=self.context(log.event_context[rows]),
            age_piece=self.age(timestamp, self.item_time[item]),
            item_piece=self.item(item),
        )

    def _span(self, block: str, seconds: Int64) -> Int64:
        if not self._prompter.config.time_gaps:
            return np.full(len(seconds), self.pool.empty)
        span = span_index(seconds)
        return np.where(span >= 0, self._first[block] + span, self.pool.empty)

    def _pool_of(self, blocks: Sequence[Pieces]) -> Pool:
        pieces = Pieces.joined(blocks)
        return Pool(
            pieces=pieces,
            lengths=pieces.lengths,
            empty=self._first["empty"],
            first_gap=self._first["gap"] if self._prompter.config.time_gaps else None,
        )


def _tasks_and_labels(prompter: Prompter, log: Interactions) -> tuple[Int64, Int64]:
    """The task of each surface, and the label word of each action."""
    tasks = np.zeros(len(log.surfaces), np.int64)
    labels = np.zeros(len(log.actions), np.int64)
    for surface, action in log.surface_actions:
        tasks[surface] = prompter.task_index(log.surfaces[surface])
        labels[action] = prompter.label_index(int(tasks[surface]), log.actions[action])
    return tasks, labels


def _in_parts(pieces_of: Callable[[Int64], Pieces], num_rows: int) -> Pieces:
    """The pieces of all rows, a part of them at a time in words."""
    starts = range(0, max(1, num_rows), _ROWS_AT_ONCE)
    return Pieces.joined(
        [pieces_of(np.arange(at, min(at + _ROWS_AT_ONCE, num_rows))) for at in starts]
    )


def _item_times(log: Interactions, rows: Int64) -> Int64:
    """When some items came to be, int64 [n]: the first time field of their kind, if it has one."""
    times = np.full(len(rows), UNKNOWN_TIME, np.int64)
    kinds = log.item_kinds[rows]
    for kind, owned in log.schema.items.items():
        for field in [field for field in owned if field.kind == "time"][:1]:
            mine = np.flatnonzero(kinds == kind)
            values = columns_of(log.items, [field], rows[mine])[field.name]
            times[mine] = [UNKNOWN_TIME if value is None else int(value) for value in values]
    return times
