"""The prompt book: training rows, evaluation prefixes and single prompts over one log.

Legend: R rows, E events of the log, I items, W windows, C candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from promptify.inline import HistoryEvent, in_slates
from promptify.interactions import Interactions
from promptify.layout import (
    UNKNOWN_TIME,
    Events,
    Frame,
    Pool,
    event_pieces,
    lay_out,
    select_history,
    token_costs,
)
from promptify.piece_table import LogPieces, PieceTable
from promptify.pieces import Pieces, offsets_of
from promptify.prompter import Prompter
from promptify.rows import Rows
from promptify.selection import first_of_slate
from promptify.splits import Targets
from promptify.validation import BadInput
from promptify.windows import Slates, Windows, between, keyed_bits, pack
from promptify.words import SEPARATOR, columns_of

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]

_EVENTS_PER_PART = 1 << 20
_WINDOWS_PER_PART = 1 << 12


class PromptBook:
    """The pieces of one log, tokenized once, and the prompts made of them.

    Args:
        prompter: puts the pieces in words and tokens.
        interactions: the log.
        said: what the log says in tokens of this prompter, where that is known already.

    Raises:
        BadInput: a surface of the log has no task, or an action is not one of its task's.
    """

    def __init__(
        self, prompter: Prompter, interactions: Interactions, said: LogPieces | None = None
    ) -> None:
        self.prompter = prompter
        self.interactions = interactions
        self._table = PieceTable(prompter, interactions, said)
        tasks = prompter.tasks
        self._has_positive_next = np.array([task.next_target == "positive" for task in tasks])
        self._is_positive = np.array(
            [[word in task.positive for word in prompter.label_words] for task in tasks]
        )

    @property
    def item_pieces(self) -> Pieces:
        """I token pieces, each an item's text and the arrow: an item read alone, in both forms."""
        return self._table.item_pieces

    @property
    def said(self) -> LogPieces:
        """What the log says, in tokens: people, items and contexts."""
        return self._table.said

    def with_items(self, items: pa.Table) -> "PromptBook":
        """The same log with more items, or some told anew; see `Interactions.with_items`.

        Args:
            items: as `ingest.read_items` gives them; only they are put in words.
        """
        log = self.interactions.with_items(items)
        rows = np.array([log.item_row(item) for item in items["item_id"].to_pylist()], np.int64)
        return PromptBook(self.prompter, log, self.said.with_items(self.prompter, log, rows))

    # Training.

    def windows(
        self,
        train: Bool,
        *,
        seed: int,
        epoch: int,
        max_events: int | None = None,
        short_share: float = 0.0,
    ) -> Windows:
        """Cut the training events into windows, so that each is a target in exactly one.

        A window is made for a user and a task that the user has training events of. It holds the
        events of the other tasks too, as history. Slates stay whole, but for one that no prompt has
        room for. Windows without a target are left out.

        Args:
            train: bool [E], the training events.
            seed: of the run.
            epoch: draws anew where histories are cut.
            max_events: most events in a window; None for what fits.
            short_share: share of the windows, in [0, 1], that are cut short at a log-uniform
                length, so that short histories are learned as well as long ones.

        Raises:
            BadInput: `train` is empty, `max_events` is below 1, or `short_share` is out of range.
        """
        if max_events is not None and max_events < 1:
            raise BadInput(f"max_events={max_events} must be at least 1.")
        if not 0 <= short_share <= 1:
            raise BadInput(f"short_share={short_share} must be in [0, 1]; 0 cuts no window short.")
        if not train.any():
            raise BadInput("train holds no event; there is nothing to make windows of.")
        # In parts of whole users, so that a log of any size needs little memory.
        offsets = self.interactions.user_offsets
        users = np.searchsorted(offsets, np.arange(0, len(train), _EVENTS_PER_PART), side="right")
        edges = [*np.unique(offsets[users - 1]).tolist(), len(train)]
        parts = [
            self._windows(
                start + np.flatnonzero(train[start:end]),
                seed=seed,
                epoch=epoch,
                max_events=max_events,
                short_share=short_share,
            )
            for start, end in pairwise(edges)
            if train[start:end].any()
        ]
        user, task, first_event, last_event = map(np.concatenate, zip(*parts, strict=True))
        return Windows(
            user=user.astype(np.int32),
            task=task.astype(np.int16),
            first_event=first_event,
            last_event=last_event,
            train=train,
        )

    def lengths(self, windows: Windows) -> Int64:
        """Positions of the row of each window, int64 [W], without assembling it."""
        tokens = self._table.pool.lengths
        lengths: Int64 = tokens[self._table.heads(windows.user, windows.task)].sum(axis=1)
        for start in range(0, len(windows), _WINDOWS_PER_PART):
            part = slice(start, start + _WINDOWS_PER_PART)
            rows, offsets = windows[part].events()
            told = event_pieces(self._table.pool, self._table.events(rows), offsets)
            lengths[part] += np.diff(offsets_of(tokens[told].sum(axis=1))[offsets])
        return lengths

    def assemble(self, windows: Windows, *, seed: int, epoch: int) -> Rows:
        """Training rows, one per window.

        The order of events shown together is drawn anew each epoch. Only the first of them is a
        target of the action readout, and the position before them predicts their items.

        Args:
            windows: as made by `windows`.
            seed: of the run.
            epoch: of the run.
        """
        rows, offsets = windows.events()
        events = self._table.events(rows)
        first = first_of_slate(events.slate, offsets)
        if not first.all():
            # A slate's order depends on its own events alone, whatever is assembled beside it.
            bits = keyed_bits(rows, seed=seed, epoch=epoch)
            events = events.take(np.lexsort((bits, np.cumsum(first))))
        frame = Frame(
            task=windows.task.astype(np.int64),
            heads=self._table.heads(windows.user, windows.task),
            tails=np.full(len(windows), self._table.pool.empty),
            num_dropped=np.zeros(len(windows), np.int64),
        )
        return lay_out(
            self._table.pool,
            events,
            offsets,
            frame,
            has_positive_next=self._has_positive_next,
            is_positive=self._is_positive,
        )

    # Evaluation and use.

    def prefixes(
        self,
        targets: Targets,
        *,
        task: int | None = None,
        history: tuple[Int64, Int64] | None = None,
    ) -> Rows:
        """What is known before each target: instruction, profile, history, the target's context.

        The last position of each row is one where the person is read. Nothing of the target's slate
        is in the row, and nothing after it. No event is a target, and there are no next-item pairs.

        Args:
            targets: held-out slates, R of them.
            task: index of the task that is asked about; None for that of each target's surface.
            history: the events to be told of each target's history, rising rows of `events`
                [N], and where each target's begin [R+1]; all of it when None. What has no room is
                left out either way.

        Raises:
            ValueError: `history` holds an event that is not in its target's history, or one that
                stands before an older one.
        """
        log, config = self.interactions, self.prompter.config
        asked = self._table.tasks(targets.first_event)
        if task is not None:
            asked = np.full(len(targets), task)
        # Slate ids never fall, so this is the first event of the target's slate.
        slate = log.event_slate[targets.first_event]
        end = np.minimum(targets.history_end, np.searchsorted(log.event_slate, slate))
        start = np.minimum(targets.history_start, end)
        read = start
        if config.history == "recent":
            # An event takes two tokens at least: older ones than this cannot fit.
            read = np.maximum(start, end - config.max_prompt_tokens // 2)
        rows, offsets = between(read, end) if history is None else history
        target = np.repeat(np.arange(len(targets)), np.diff(offsets))
        is_before = (np.diff(rows) <= 0) & (np.diff(target) == 0)
        if is_before.any() or ((rows < start[target]) | (rows >= end[target])).any():
            raise ValueError("history must hold rising rows of each target's own history.")
        frame = Frame(
            task=asked,
            heads=self._table.heads(targets.user, asked),
            tails=self._table.context(log.event_context[targets.first_event]),
            num_dropped=end - start - np.diff(offsets),
        )
        events, is_chosen = self._table.events(rows), history is not None
        return self._prefixes(self._table.pool, events, offsets, frame, is_chosen=is_chosen)

    def history_tokens(self, rows: Int64) -> tuple[Int64, Int64]:
        """Tokens of telling events: of each, and what its slate costs beside it, once at most.

        Args:
            rows: int64 [N], rows of `events`.

        Returns:
            int64 [N] each.
        """
        return token_costs(self._table.pool, self._table.events(rows))

    def of_user(
        self, user: int, start: int, end: int, *, task: int, context: str | None = None
    ) -> Rows:
        """The prefix of somebody of the log, with some of their events, one row.

        Args:
            user: row of `users`.
            start: first event of the history, a row of `events`.
            end: one past the last.
            task: index of the task that is asked about.
            context: a query or note for this request.
        """
        table = self._table
        events = table.events(np.arange(start, end))
        heads = table.heads(np.array([user]), np.array([task]))
        pool, tail = table.pool, table.pool.empty
        if context is not None:
            told = self.prompter.context_pieces([self.prompter.context_text(context)])
            few = table.narrowed(events.context_piece, events.item_piece, heads, blocks=[told])
            events = replace(
                events,
                context_piece=few(events.context_piece),
                item_piece=few(events.item_piece),
            )
            pool, heads, tail = few.pool, few(heads), few.first_new
        frame = Frame(
            task=np.array([task]),
            heads=heads,
            tails=np.array([tail]),
            num_dropped=np.zeros(1, np.int64),
        )
        return self._prefixes(pool, events, np.array([0, end - start]), frame)

    def profile_text(self, user: int) -> str:
        """The profile of a row of `users`, as a prompt tells it; empty where nothing is known."""
        log, words = self.interactions, self.prompter.words
        columns = columns_of(log.users, log.schema.user, np.array([user]))
        return words.profiles(columns, num_rows=1)[0]

    def inline(
        self,
        profile: Mapping[str, Any],
        history: Sequence[HistoryEvent] = (),
        *,
        task: str | None = None,
        context: str | None = None,
    ) -> Rows:
        """The prefix of somebody who is not in the log, one row.

        Args:
            profile: profile fields; any may be missing.
            history: events, oldest first; sorted by time where every one has a time. Those that
                were shown together bear the time of the first, as in a log.
            task: name of the task that is asked about; None where there is only one.
            context: a query or note for this request.

        Raises:
            BadInput: an item, task, action or field is unknown, or a slate has two contexts.
        """
        prompter, table = self.prompter, self._table
        asked = prompter.task_index(task)
        actions = {one.name: one.actions for one in prompter.tasks}
        slates = in_slates(history, task=prompter.tasks[asked].name, actions=actions)
        texts: list[str] = []
        told: list[tuple[int, ...]] = []
        for number, slate in enumerate(slates):
            moment = UNKNOWN_TIME if slate.shown_at is None else slate.shown_at
            for event in slate.events:
                event_task = asked if event.task is None else prompter.task_index(event.task)
                label = prompter.label_index(event_task, event.action)
                if isinstance(event.item, str):
                    known = self.interactions.item_row(event.item)
                    item_time, text = table.item_time[known], 0
                else:
                    kind = prompter.tasks[event_task].item_kind
                    item_time = prompter.item_time(event.item, kind=kind)
                    known, text = -1, len(texts)
                    texts.append(prompter.item_text(event.item, kind=kind))
                told.append((known, label, event_task, number, moment, item_time, text))
        columns = np.array(told, np.int64).reshape(len(told), 7).T
        item, label_index, task_index, slate_number, timestamp, time_of_item, text_number = columns
        contexts = [context or "", *(slate.context for slate in slates)]
        inline_items = prompter.item_pieces(texts)
        few = table.narrowed(
            table.item(item[item >= 0]),
            blocks=[
                prompter.profile_pieces([prompter.profile_text(profile)]),
                prompter.context_pieces(map(prompter.context_text, contexts)),
                table.inline(inline_items),
            ],
        )
        first = few.first_new
        first_text = first + 1 + len(contexts)
        events = Events(
            row=np.full(len(told), -1),
            item=item,
            label=label_index,
            task=task_index,
            slate=slate_number,
            timestamp=timestamp,
            context_piece=first + 2 + slate_number,
            age_piece=table.age(timestamp, time_of_item),
            item_piece=np.where(item >= 0, few(table.item(item)), first_text + text_number),
        )
        frame = Frame(
            task=np.array([asked]),
            heads=np.array([[table.instruction(asked), first]]),
            tails=np.array([first + 1]),
            num_dropped=np.zeros(1, np.int64),
        )
        rows = self._prefixes(few.pool, events, np.array([0, len(told)]), frame)
        return replace(rows, inline_items=inline_items)

    def question(
        self,
        items: NDArray[Any] | Sequence[Mapping[str, Any]],
        *,
        kind: str | None = None,
        previous: int | None = None,
        moment: int | None = None,
    ) -> Pieces:
        """Candidates as they stand after a prefix, each ending where its action is read.

        Args:
            items: rows of the catalogue [C], or the fields of C items that are not in it.
            kind: the kind of the latter, where they do not say.
            previous: seconds, when the last event of the prefix was (time gaps only).
            moment: seconds, when the question is asked (time gaps only).

        Returns:
            C token pieces: a slot, or the item's text and the arrow.
        """
        prompter, table = self.prompter, self._table
        if isinstance(items, np.ndarray):
            pieces, item_time = table.items(items), table.item_time[items]
        else:
            pieces = prompter.item_pieces(prompter.item_text(item, kind=kind) for item in items)
            times = [prompter.item_time(item, kind=kind) for item in items]
            item_time = np.array(times, np.int64)
        if not prompter.config.time_gaps or moment is None:
            return pieces
        gap = table.pool.empty if previous is None else table.gap(moment - previous)
        ages = table.age(np.full(len(pieces), moment), item_time).tolist()
        before = [[*table.pool.pieces[gap], *table.pool.pieces[age]] for age in ages]
        return Pieces.of([[*front, *pieces[c]] for c, front in enumerate(before)])

    def render(self, rows: Rows, row: int) -> str:
        """A row as text; a slot is shown as the first words of its item, ``⟦Heat (1995)⟧``."""
        ids = rows.ids[rows.row_offsets[row] : rows.row_offsets[row + 1]]
        parts: list[str] = []
        start = 0
        for at in np.flatnonzero(ids >= self.prompter.vocab_size).tolist():
            number = int(ids[at]) - self.prompter.vocab_size
            is_inline = number >= len(self.item_pieces)
            pieces = rows.inline_items if is_inline else self.item_pieces
            item = pieces[number - is_inline * len(self.item_pieces)][:-1]
            title = self.prompter.decode(item).strip().partition(SEPARATOR)[0]
            parts += [self.prompter.decode(ids[start:at]), f"⟦{title}⟧"]
            start = at + 1
        return "".join([*parts, self.prompter.decode(ids[start:])])

    def _prefixes(
        self, pool: Pool, events: Events, offsets: Int64, frame: Frame, *, is_chosen: bool = False
    ) -> Rows:
        config = self.prompter.config
        chosen = select_history(
            pool,
            events,
            offsets,
            frame,
            max_prefix_tokens=config.max_prompt_tokens - self.prompter.reserved_tokens,
            per_action=config.history == "recent_per_action",
            # A history that was chosen is told as it was, as far as there is room.
            stride=1 if is_chosen else config.history_stride,
        )
        return lay_out(pool, *chosen)

    def _windows(
        self, rows: Int64, *, seed: int, epoch: int, max_events: int | None, short_share: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int16], Int64, Int64]:
        """User, task, first and last event of the windows over some users' training events."""
        config, pool = self.prompter.config, self._table.pool
        events = self._table.events(rows)
        event_tokens, slate_tokens = token_costs(pool, events)
        longest_instruction = int(self.prompter.instruction_pieces.lengths.max())
        slates = Slates.of(
            slate=events.slate,
            user=self.interactions.event_user[rows],
            task=events.task,
            event_tokens=event_tokens,
            slate_tokens=slate_tokens,
            room_tokens=config.max_prompt_tokens - longest_instruction - config.max_profile_tokens,
        )
        user, task = slates.pairs(len(self.prompter.tasks))
        heads = self._table.heads(user, task)
        pair, first, last = pack(
            slates,
            user=user,
            task=task,
            budget_tokens=config.max_prompt_tokens - pool.lengths[heads].sum(axis=1),
            max_events=max_events,
            short_share=short_share,
            seed=seed,
            epoch=epoch,
        )
        first_event, last_event = rows[slates.start[first]], rows[slates.start[last] - 1] + 1
        return user[pair], task[pair], first_event, last_event
