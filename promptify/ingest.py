"""Raw tables become the validated tables of `Interactions`; rows that do not fit are reported.

Legend: U users, I items, E events.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from promptify.columns import ARROW_TYPES, Fault, read_column, read_moments
from promptify.schema import FieldKind, Schema
from promptify.validation import LINE, BadInput, BadRows, RowCheck

logger = logging.getLogger(__name__)

_BATCH_EVENTS = 500_000
"""Large enough that building the hash of all ids once per batch does not count."""

STANDS_TWICE = "stands twice; ids must be different"
"""What is wrong with the second row of an id."""
_OF_ANOTHER_SURFACE = "is an action of another surface; add it to the task of its own"
_MISSING = "is missing"
_CONTROL = r"[\x00-\x1f\x7f-\x{9f}]"
_HOLDS_CONTROL = "holds a control character, such as a line break; leave it out"
_REPEATS = "repeats an earlier event"
_DIFFERS = "is not the context of the other events shown with it"
_IS_WORSE = "comes with a better one for the same item and shown_with"
_LONG_SECONDS = 86_400
_LEAST_FALLING = 0.99
"""Of the steps from one line of a user to the next, in a file that lists the newest first."""

Columns = dict[str, NDArray[Any]]

EVENT_TYPES = {
    "user": pa.int32(),
    "item": pa.int32(),
    "action": pa.int16(),
    "timestamp": pa.int64(),
    "surface": pa.int16(),
    "slate": pa.int64(),
    "context": pa.int32(),
}
"""The columns of `events`."""


def read_users(users: pa.Table, schema: Schema, bad_rows: BadRows) -> pa.Table:
    """`user_id: string` and the schema's fields, in the order of the raw table.

    Raises:
        BadInput: a column is missing, no good row is left, or a row is bad and rows may not be.
    """
    check = RowCheck(users, name="users", bad_rows=bad_rows)
    _require(users.schema.names, ["user_id", *(field.name for field in schema.user)], check.file)
    columns = {"user_id": _read_ids(check, "user_id")}
    for field in schema.user:
        columns[field.name] = _read(check, field.name, field.kind)
    _reject_repeats(check, columns["user_id"], "user_id")
    return _finished(check, columns, bad_rows)


def read_items(items: pa.Table, schema: Schema, bad_rows: BadRows) -> pa.Table:
    """`item_id: string`, `kind: string` and the fields of all kinds (null where a kind has none).

    Raises:
        BadInput: as in `read_users`; an item with nothing to read is a bad row.
    """
    return _finished(*_item_columns(items, schema, bad_rows), bad_rows)


def read_item_part(
    items: pa.Table, schema: Schema, bad_rows: BadRows
) -> tuple[pa.Table, NDArray[np.int64]]:
    """As `read_items`, of one part of a table that is read part by part; it may be empty.

    That no id stands in two parts is for the caller to see to.

    Returns:
        The good rows, and the line of the file on which each stands, int64.

    Raises:
        BadInput: as in `read_items`.
    """
    check, columns = _item_columns(items, schema, bad_rows)
    bad_rows.settle()
    return pa.table(columns).filter(pa.array(check.good)), check.lines[check.good]


def _item_columns(
    items: pa.Table, schema: Schema, bad_rows: BadRows
) -> tuple[RowCheck, dict[str, pa.Array]]:
    check = RowCheck(items, name="items", bad_rows=bad_rows)
    fields = schema.item_columns
    only_kind = next(iter(schema.items)) if len(schema.items) == 1 else None
    _require(items.schema.names, ["item_id", *(["kind"] if only_kind is None else [])], check.file)
    columns = {"item_id": _read_ids(check, "item_id")}
    if "kind" in items.schema.names:
        kind = _read(check, "kind")
        if only_kind is not None:
            kind = kind.fill_null(only_kind)
    else:
        kind = pa.repeat(pa.scalar(only_kind, pa.string()), len(items))
    known = np.asarray(pc.is_in(kind, pa.array(list(schema.items), pa.string())))
    check.reject(
        ~known, column="kind", reason=f"is not one of the schema's: {', '.join(schema.items)}"
    )
    columns["kind"] = kind
    # A table of jobs alone needs no column that only people have.
    told = set(kind.filter(pa.array(known)).unique().to_pylist())
    needed = {f.name for k, owned in schema.items.items() if k in told for f in owned}
    _require(items.schema.names, [f.name for f in fields if f.name in needed], check.file)
    readable = np.zeros(len(items), np.bool_)
    for field in fields:
        of_kind = pa.array([k for k, owned in schema.items.items() if field in owned], pa.string())
        if field.name not in items.schema.names:
            columns[field.name] = pa.nulls(len(items), ARROW_TYPES[field.kind])
            continue
        values = _read(check, field.name, field.kind)
        values = pc.if_else(pc.is_in(kind, of_kind), values, pa.scalar(None, values.type))
        columns[field.name] = values
        present = values.is_valid()
        if field.kind == "list":
            present = pc.and_(present, pc.greater(pc.list_value_length(values).fill_null(0), 0))
        if field.is_told:
            readable |= np.asarray(present)
    names = ", ".join(field.name for field in fields if field.is_told)
    check.reject(~readable, column="item_id", reason=f"has nothing to read (nothing in {names})")
    _reject_repeats(check, columns["item_id"], "item_id")
    return check, columns


def item_types(schema: Schema) -> dict[str, pa.DataType]:
    """The columns of `items` under a schema, and their types."""
    own = {"item_id": pa.string(), "kind": pa.string()}
    return own | {field.name: ARROW_TYPES[field.kind] for field in schema.item_columns}


def read_events(
    events: pa.Table | Iterable[pa.RecordBatch],
    *,
    user_ids: pa.ChunkedArray,
    item_ids: pa.ChunkedArray,
    actions: tuple[str, ...],
    surfaces: tuple[str, ...],
    best_first: Mapping[str, tuple[str, ...]],
    bad_rows: BadRows,
) -> tuple[pa.Table, list[str]]:
    """The integer columns of the log, sorted, and the texts that `context` indexes.

    Args:
        events: raw events, read batch by batch.
        user_ids: string [U].
        item_ids: string [I].
        actions: what `action` indexes.
        surfaces: what `surface` indexes.
        best_first: actions of each surface.
        bad_rows: where bad rows are reported.

    Raises:
        BadInput: as in `read_users`.
    """
    encoder = _EventEncoder(user_ids, item_ids, actions, surfaces, best_first, bad_rows)
    parts: list[Columns] = []
    for batch in _batches(events):
        parts.append(encoder.encode(batch))
        bad_rows.settle()
    if not sum(len(part["user"]) for part in parts):
        raise BadInput(
            f"{encoder.file} holds no events that fit; give it at least one line with user_id, "
            "item_id, action and timestamp."
        )
    columns: Columns = {}
    for name in list(parts[0]):
        columns[name] = np.concatenate([part.pop(name) for part in parts])
    columns = encoder.oldest_first(columns)
    columns = encoder.without_repeats(columns)
    columns = encoder.in_order(columns)
    bad_rows.settle()
    table = {name: pa.array(columns[name], kind) for name, kind in EVENT_TYPES.items()}
    return pa.table(table), list(encoder.contexts)


class _EventEncoder:
    """Turns raw events into integer columns, and puts them in order."""

    def __init__(
        self,
        user_ids: pa.ChunkedArray,
        item_ids: pa.ChunkedArray,
        actions: tuple[str, ...],
        surfaces: tuple[str, ...],
        best_first: Mapping[str, tuple[str, ...]],
        bad_rows: BadRows,
    ):
        self._words = {
            "user_id": user_ids.combine_chunks(),
            "item_id": item_ids.combine_chunks(),
            "action": pa.array(actions, pa.string()),
            "surface": pa.array(surfaces, pa.string()),
        }
        # Whether it is said which actions a surface has.
        self._ranks_S = np.array([bool(best_first[name]) for name in surfaces])
        # How good an action is on a surface, 0 the best; one that it does not know is the worst.
        self._rank_SA = np.full((len(surfaces), len(actions)), len(actions), np.int16)
        for surface, name in enumerate(surfaces):
            for rank, action in enumerate(best_first[name]):
                self._rank_SA[surface, actions.index(action)] = rank
        self._bad_rows = bad_rows
        self._num_seen = 0
        self.contexts: dict[str, int] = {}
        self.file = "events"
        self._unit = "row"

    def encode(self, batch: pa.RecordBatch) -> Columns:
        """The good rows of a batch: the columns of `events`, `nanosecond` and `line`, in raw order.

        `slate` is still a hash of `shown_with`, 0 where there is none. `nanosecond` is what has
        passed of the second, int32: it tells the order, and is not kept.
        """
        check = RowCheck(
            batch, name="events", bad_rows=self._bad_rows, first_line=self._num_seen + 1
        )
        self._num_seen += batch.num_rows
        self.file, self._unit = check.file, check.unit
        names = batch.schema.names
        needed = ["user_id", "item_id", "action", "timestamp"]
        if len(self._words["surface"]) > 1:
            needed.append("surface")
        _require(names, needed, self.file)
        columns: Columns = {
            "user": self._codes(check, "user_id").astype(np.int32),
            "item": self._codes(check, "item_id").astype(np.int32),
            "action": self._codes(check, "action").astype(np.int16),
            "surface": np.zeros(batch.num_rows, np.int16),
            "slate": np.zeros(batch.num_rows, np.uint64),
            "context": np.full(batch.num_rows, -1, np.int32),
            "line": check.lines,
        }
        seconds, nanoseconds = _read_by(read_moments, check, "timestamp", "time")
        check.reject(np.asarray(seconds.is_null()), column="timestamp", reason=_MISSING)
        columns |= {"timestamp": np.asarray(seconds.fill_null(0)), "nanosecond": nanoseconds}
        if "surface" in names:
            columns["surface"] = self._codes(check, "surface").astype(np.int16)
        is_known_SA = (self._rank_SA < len(self._words["action"])) | ~self._ranks_S[:, None]
        check.reject(
            ~is_known_SA[columns["surface"], columns["action"]],
            column="action",
            reason=_OF_ANOTHER_SURFACE,
        )
        if "shown_with" in names:
            columns["slate"] = _hashes(_read(check, "shown_with"))
        if "context" in names:
            columns["context"] = self._context_codes(_read(check, "context"))
        return {name: values[check.good] for name, values in columns.items()}

    def oldest_first(self, columns: Columns) -> Columns:
        """From the last line to the first, where the file lists each user's events newest first.

        So of events with one time, which only lines tell apart, the earlier stands first.
        """
        order = np.argsort(columns["user"], kind="stable")
        is_same = ~_changes([columns["user"]], order)[1:]
        fell, is_tied = np.zeros_like(is_same), np.ones_like(is_same)
        for name in ("timestamp", "nanosecond"):
            times = columns[name][order]
            fell |= is_tied & (times[1:] < times[:-1])
            is_tied &= times[1:] == times[:-1]
        num_falling = int((is_same & fell).sum())
        num_untied = int((is_same & ~is_tied).sum())
        if not num_falling or num_falling < _LEAST_FALLING * num_untied:
            return columns
        if num_tied := int((is_same & is_tied).sum()):
            logger.info(
                "%s lists each person's events newest first: of those with equal times (%s %ss), "
                "the one further down counts as the earlier.",
                self.file,
                f"{num_tied:,}",
                self._unit,
            )
        return {name: values[::-1] for name, values in columns.items()}

    def without_repeats(self, columns: Columns) -> Columns:
        """Events equal in user, item, action, second and surface are kept once, the earliest."""
        what = columns["item"].astype(np.int64)
        for name in ("action", "surface"):
            what *= len(self._words[name])
            what += columns[name]
        keys = (what, columns["timestamp"], columns["user"])
        order = np.lexsort((columns["nanosecond"], *keys))
        repeats = order[1:][~_changes(keys, order)[1:]]
        if not len(repeats):
            return columns
        repeated = np.zeros(len(order), np.bool_)
        repeated[repeats] = True
        return self._without(columns, repeated, column="item_id", reason=_REPEATS, harmless=True)

    def in_order(self, columns: Columns) -> Columns:
        """By user, time and line, slate mates side by side; `slate` counts slates from 0.

        Slate mates get one time, when they were shown, and one context; an item is among them once.
        """
        first = _first_of_slate(columns)
        stated = columns["context"]
        shared = stated.copy()
        # As unsigned codes, none (-1) is the largest: the least is the text that was seen first.
        np.minimum.at(shared.view(np.uint32), first, stated.view(np.uint32))
        shared = shared[first]
        differs = (stated != -1) & (stated != shared)
        if differs.any():
            columns = self._without(columns, differs, column="context", reason=_DIFFERS)
            return self.in_order(columns)
        shown_at = columns["timestamp"].copy()
        np.minimum.at(shown_at, first, columns["timestamp"])
        shown_at = shown_at[first]
        # Of mates of a later second the nanosecond tells nothing: more than any that does.
        within = np.where(columns["timestamp"] == shown_at, columns["nanosecond"], 2 * 10**9)
        np.minimum.at(within, first, within.copy())
        within = within[first]
        _warn_of_long(shown_at, columns["timestamp"], first)
        worse = self._worse_of_an_item(columns, first)
        if worse.any():  # Set aside as they were given, before a slate's moment and context are.
            columns = self._without(
                columns, worse, column="action", reason=_IS_WORSE, harmless=True
            )
            first, shared, shown_at = first[~worse], shared[~worse], shown_at[~worse]
            within = within[~worse]
        stated_at = columns["timestamp"]
        columns |= {"context": shared, "timestamp": shown_at}
        del columns["slate"], stated, shared, shown_at
        order = np.lexsort((first, within, columns["timestamp"], columns["user"]))
        ordered: Columns = {"slate": np.cumsum(_changes([first], order)) - 1}
        for name in EVENT_TYPES:
            if name != "slate":
                ordered[name] = columns.pop(name)[order]
        _warn_of_early(ordered, stated_at[order])
        return ordered

    def _worse_of_an_item(self, columns: Columns, first: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a better action with the same item of the same slate is known, bool [E].

        What is exported as a view, a click and an application is one answer to one question.
        """
        mates = np.flatnonzero(columns["slate"])
        keys = [columns["item"][mates], first[mates]]
        rank = self._rank_SA[columns["surface"][mates], columns["action"][mates]]
        order = np.lexsort((rank, *keys))
        worse = np.zeros(len(first), np.bool_)
        worse[mates[order[~_changes(keys, order)]]] = True
        return worse

    def _codes(self, check: RowCheck, column: str) -> Any:
        """Place of each value among the known words; rows with another value are rejected."""
        words = self._words[column]
        values = _read(check, column)
        if column == "surface" and len(words) == 1:
            values = values.fill_null(words[0])
        check.reject(np.asarray(values.is_null()), column=column, reason=_MISSING)
        if column.endswith("_id"):
            reason = f"is not in the table of {column.removesuffix('_id')}s"
        else:
            reason = f"is not one of {', '.join(words.to_pylist())}"
        codes = pc.index_in(values, words)
        check.reject(np.asarray(codes.is_null()), column=column, reason=reason)
        return np.asarray(codes.fill_null(0))

    def _context_codes(self, context: pa.Array) -> Any:
        encoded = context.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        codes = [self.contexts.setdefault(text, len(self.contexts)) for text in texts]
        places = np.asarray(encoded.indices.fill_null(len(codes)))
        return np.array([*codes, -1], np.int32)[places]

    def _without(
        self,
        columns: Columns,
        bad: NDArray[np.bool_],
        *,
        column: str,
        reason: str,
        harmless: bool = False,
    ) -> Columns:
        """Set aside events that are integers already; their words are looked up again."""
        texts = list(self.contexts)
        rows: list[dict[str, Any]] = []
        for event in self._bad_rows.wanted(np.flatnonzero(bad)).tolist():
            row: dict[str, Any] = {
                name: self._words[name][int(columns[name.removesuffix("_id")][event])].as_py()
                for name in self._words
            }
            context = int(columns["context"][event])
            row["timestamp"] = int(columns["timestamp"][event])
            row["context"] = None if context < 0 else texts[context]
            rows.append(row)
        self._bad_rows.add(
            file=self.file,
            unit=self._unit,
            column=column,
            reason=reason,
            num=int(bad.sum()),
            lines=self._bad_rows.wanted(columns["line"][bad]).tolist(),
            rows=rows,
            harmless=harmless,
        )
        return {name: values[~bad] for name, values in columns.items()}


def _first_of_slate(columns: Columns) -> NDArray[np.int64]:
    """For each event the first event of its slate; alone, it is its own first. int64 [E]."""
    first = np.arange(len(columns["user"]))
    mates = np.flatnonzero(columns["slate"])
    keys = [columns[name][mates] for name in ("slate", "surface", "user")]
    order = np.lexsort(keys)
    begins = np.flatnonzero(_changes(keys, order))
    mates = mates[order]
    first[mates] = np.repeat(mates[begins], np.diff(begins, append=len(mates)))
    return first


def _require(names: Sequence[str], needed: Sequence[str], file: str) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        there = ", ".join(name for name in names if name != LINE) or "no columns"
        raise BadInput(
            f"{file} lacks the column {', '.join(missing)}; it has {there}. Add it, or rename the "
            "one that it is: in a task file under `columns:`."
        )


def _read(check: RowCheck, column: str, kind: FieldKind = "text") -> pa.Array:
    """A column as its kind says; rows with another value are rejected.

    Raises:
        BadInput: it is more than a column holds.
    """
    return _read_by(lambda values: read_column(values, kind), check, column, kind)


def _read_by(
    read: Callable[[Any], tuple[Any, list[Fault]]], check: RowCheck, column: str, kind: FieldKind
) -> Any:
    """As `_read`, with a reader of one's own."""
    try:
        values, faults = read(check.table[column])
    except pa.ArrowInvalid as error:
        raise BadInput(
            f"{check.file}: column {column} of {check.table.num_rows:,} rows cannot be read as "
            f"{kind} ({error}); a column holds 2 GB of text at most, so cut its texts to what a "
            "prompt has room for."
        ) from error
    for fault in faults:
        check.reject(fault.rows, column=column, reason=fault.reason)
    return values


def _read_ids(check: RowCheck, column: str) -> pa.Array:
    ids = _read(check, column)
    check.reject(np.asarray(ids.is_null()), column=column, reason=_MISSING)
    unfit = pc.match_substring_regex(ids, _CONTROL).fill_null(False)
    check.reject(np.asarray(unfit), column=column, reason=_HOLDS_CONTROL)
    return ids


def _reject_repeats(check: RowCheck, ids: pa.Array, column: str) -> None:
    """Call when all else is checked: a row that is set aside takes no other of its id with it."""
    good = pd.Series(ids.to_numpy(zero_copy_only=False), dtype=object)[check.good]
    repeated = np.zeros(len(ids), np.bool_)
    repeated[check.good] = good.duplicated()
    check.reject(repeated, column=column, reason=STANDS_TWICE)


def _finished(check: RowCheck, columns: dict[str, pa.Array], bad_rows: BadRows) -> pa.Table:
    bad_rows.settle()
    table = pa.table(columns).filter(pa.array(check.good))
    if not len(table):
        raise BadInput(f"{check.file} holds no rows that fit; give it at least one.")
    return table


def _batches(events: pa.Table | Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if isinstance(events, pa.Table):
        yield from events.combine_chunks().to_batches(max_chunksize=_BATCH_EVENTS)
    else:
        yield from events


def _changes(keys: Sequence[NDArray[Any]], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any key differs from the row before, in this order; true for the first. bool [n]."""
    changes = np.zeros(len(order), np.bool_)
    changes[:1] = True
    for key in keys:
        ordered = key[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    return changes


def _hashes(words: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each word, 0 for null. Two slates of one user would have to collide."""
    codes = pd.util.hash_array(words.fill_null("").to_numpy(zero_copy_only=False))
    return np.where(np.asarray(words.is_null()), 0, codes | np.uint64(1)).astype(np.uint64)


def _warn_of_long(
    shown_at: NDArray[np.int64], stated_at: NDArray[np.int64], first: NDArray[np.int64]
) -> None:
    """Say how many slates hold what was done a day after they were shown: are they slates?"""
    late = stated_at - shown_at > _LONG_SECONDS
    if late.any():
        logger.warning(
            "%s slates hold events of more than a day after their first, all of which count as of "
            "then: a split by time trains on what came later, and a whole slate is held out at "
            "once. shown_with is the id of what was on one screen, not of a session or a device.",
            f"{len(np.unique(first[late])):,}",
        )


def _warn_of_early(ordered: Columns, stated_at: NDArray[np.int64]) -> None:
    """Say how many events moved to before what was shown between: histories tell them too early."""
    moved = np.flatnonzero(stated_at > ordered["timestamp"])
    following = np.searchsorted(ordered["slate"], ordered["slate"][moved] + 1)
    is_last = following == len(stated_at)
    moved, following = moved[~is_last], following[~is_last]
    is_early = (ordered["user"][moved] == ordered["user"][following]) & (
        stated_at[moved] > ordered["timestamp"][following]
    )
    if count := int(is_early.sum()):
        logger.warning(
            "%s events have a timestamp after what their user was shown next, and count as of when "
            "the first event of their shown_with was: what came later is told before it. Give "
            "every slate a shown_with of its own, and as timestamp the moment it was shown.",
            f"{count:,}",
        )
