"""Interactions: people, items and events as three memory-mapped tables, validated on the way in.

Legend: U users, I items, E events.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from promptify.pieces import placed
from promptify.schema import Schema
from promptify.validation import BadInput, BadRows, shown
from promptify.whole import whole_folder

if TYPE_CHECKING:
    import datasets

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

# Properties that are of the items, and made anew where items come.
_OF_ITEMS = ("item_ids", "item_kinds", "_item_rows", "digest")
_MANIFEST = "interactions.json"
_FORMAT_VERSION = 1


class Interactions:
    """The log of who did what with which item, and when.

    Events are sorted by user, then time, then the line they came from (from the last line up, where
    the file lists each user's newest first); events shown together stand side by side. Build one
    with `from_tables`, or from a source.

    Args:
        schema: what the columns of `users` and `items` are.
        users: `user_id: string` and the profile.
        items: `item_id: string`, `kind: string` and the fields of each kind.
        events: the integer columns of `ingest.EVENT_TYPES`, sorted as above.
        actions: what `events.action` indexes.
        surfaces: what `events.surface` indexes.
        contexts: what `events.context` indexes; -1 is no context.
    """

    def __init__(
        self,
        *,
        schema: Schema,
        users: "datasets.Dataset",
        items: "datasets.Dataset",
        events: "datasets.Dataset",
        actions: Sequence[str],
        surfaces: Sequence[str],
        contexts: Sequence[str] = (),
    ):
        self.schema = schema
        self.users = users
        self.items = items
        self.events = events
        self.actions = tuple(actions)
        self.surfaces = tuple(surfaces)
        self.contexts = tuple(contexts)
        self.user_offsets: Int64 = np.searchsorted(
            self.event_user, np.arange(self.num_users + 1)
        ).astype(np.int64)

    @classmethod
    def from_tables(
        cls,
        *,
        users: pa.Table,
        items: pa.Table,
        events: pa.Table | Iterable[pa.RecordBatch],
        schema: Schema,
        actions: Sequence[str] | Mapping[str, Sequence[str]],
        surfaces: Sequence[str] | None = None,
        bad_rows: BadRows | None = None,
    ) -> Self:
        """Validate raw tables and put them in order.

        Args:
            users: `user_id` and the schema's user fields; other columns are left out.
            items: `item_id`, `kind` (may be missing where the schema has one kind) and the
                schema's item fields.
            events: `user_id`, `item_id`, `action`, `timestamp` (seconds; fractions count for the
                order alone, and are not kept), and optionally `surface` (may be missing where there
                is one), `shown_with` (the id of a slate, or null) and `context` (a query or note in
                words, or null). Batches are read one by one, so a log need not fit in memory as
                text.
            schema: what the fields are.
            actions: every action that may occur, the best first: of several of one item in one
                slate the first named counts. By surface where each has an order of its own.
            surfaces: every surface that may occur; None for a single one called ``"events"``.
            bad_rows: what to do with rows that do not fit; None fails on the first table that
                holds one.

        Returns:
            The log. Events of one user and surface that share a `shown_with` are one slate, and
            all bear the time of its earliest event, the moment it was shown. An item that was
            shown in it is one event of it, with the best of what was done. Events equal in user,
            item, action, second and surface are kept once, the earliest.

        Raises:
            BadInput: a column is missing, a table is empty, or a row does not fit and `bad_rows`
                says to fail.
        """
        # Here and not above: prepared prompts are read where pandas and `datasets` are not.
        from promptify import ingest

        bad_rows = bad_rows or BadRows()
        surfaces = ("events",) if surfaces is None else tuple(surfaces)
        ordered = actions if isinstance(actions, Mapping) else dict.fromkeys(surfaces, actions)
        actions = tuple(dict.fromkeys(one for surface in ordered.values() for one in surface))
        user_table = ingest.read_users(users, schema, bad_rows)
        item_table = ingest.read_items(items, schema, bad_rows)
        event_table, contexts = ingest.read_events(
            events,
            user_ids=user_table["user_id"],
            item_ids=item_table["item_id"],
            actions=actions,
            surfaces=surfaces,
            best_first={name: tuple(ordered.get(name, ())) for name in surfaces},
            bad_rows=bad_rows,
        )
        return cls(
            schema=schema,
            users=_in_memory(user_table, "users"),
            items=_in_memory(item_table, "items"),
            events=_in_memory(event_table, "events"),
            actions=actions,
            surfaces=surfaces,
            contexts=contexts,
        )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.items)

    @property
    def num_events(self) -> int:
        """E."""
        return len(self.events)

    @cached_property
    def event_user(self) -> Int32:
        """int32 [E], row of `users`; a view, never copied."""
        return self._event_column("user")

    @cached_property
    def event_item(self) -> Int32:
        """int32 [E], row of `items`."""
        return self._event_column("item")

    @cached_property
    def event_action(self) -> Int16:
        """int16 [E], index into `actions`."""
        return self._event_column("action")

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits of all people, items and events, the same wherever they are read."""
        said = hashlib.sha256()
        names = self.actions, self.surfaces, self.contexts, self.schema.to_dict()
        said.update(json.dumps(names, sort_keys=True).encode())
        for rows in (self.users, self.items, self.events):
            # In one piece: how a table is cut up is no part of what it says.
            for batch in rows.data.table.combine_chunks().to_batches():
                said.update(batch.replace_schema_metadata(None).serialize())
        return said.hexdigest()[:16]

    @cached_property
    def event_timestamp(self) -> Int64:
        """int64 [E], seconds."""
        return self._event_column("timestamp")

    @cached_property
    def event_surface(self) -> Int16:
        """int16 [E], index into `surfaces`."""
        return self._event_column("surface")

    @cached_property
    def event_slate(self) -> Int64:
        """int64 [E], equal for events shown together; never falls from one event to the next."""
        return self._event_column("slate")

    @cached_property
    def event_context(self) -> Int32:
        """int32 [E], index into `contexts`, or -1."""
        return self._event_column("context")

    @cached_property
    def surface_actions(self) -> tuple[tuple[int, int], ...]:
        """Each surface with each action that events of it bear, by index; in order."""
        num_actions = len(self.actions)
        pair = self.event_surface.astype(np.int64) * num_actions + self.event_action
        used = np.flatnonzero(np.bincount(pair, minlength=len(self.surfaces) * num_actions))
        return tuple(divmod(number, num_actions) for number in used.tolist())

    @cached_property
    def user_ids(self) -> tuple[str, ...]:
        """The ids of all users, in order."""
        return tuple(self.users.data.column("user_id").to_pylist())

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The ids of all items, in order."""
        return tuple(self.items.data.column("item_id").to_pylist())

    @cached_property
    def item_kinds(self) -> NDArray[np.str_]:
        """The kind of each item, str [I]."""
        return np.array(self.items.data.column("kind").to_pylist(), dtype=np.str_)

    def user_row(self, user_id: str) -> int:
        """The row of a user.

        Raises:
            BadInput: the user is not in the table.
        """
        return self._row("user", user_id, self._user_rows)

    def item_row(self, item_id: str) -> int:
        """The row of an item.

        Raises:
            BadInput: the item is not in the table.
        """
        return self._row("item", item_id, self._item_rows)

    def history_of(self, user: int, num_events: int | None = None) -> tuple[int, int]:
        """Where the events of a user begin and end: the first row of `events`, one past the last.

        Args:
            user: row of `users`.
            num_events: their newest, at most; all when None.

        Raises:
            BadInput: `users` has no such row, or `num_events` is negative or no whole number.
        """
        if not _is_whole(user) or not 0 <= user < self.num_users:
            raise BadInput(
                f"user={shown(user)} must be a row of users, a whole number from 0 to "
                f"{self.num_users - 1}; user_row finds that of an id."
            )
        if num_events is not None and not (_is_whole(num_events) and num_events >= 0):
            raise BadInput(
                f"num_events={shown(num_events)} must be at least 0, and a whole number; leave it "
                "out for all of them."
            )
        start, end = self.user_offsets[user : user + 2].tolist()
        return start if num_events is None else max(start, end - int(num_events)), end

    def with_items(self, items: pa.Table) -> "Interactions":
        """The same log with more items behind its own, or with some of its own told anew.

        What was made of its people and events is shared; only what is of the items is made anew.

        Args:
            items: as `ingest.read_items` gives them. An item of a known id takes that one's row,
                so that the events stay as they are.
        """
        old = self.items.data.table.replace_schema_metadata()
        rows = {item: row for row, item in enumerate(self.item_ids)}
        for item in items["item_id"].to_pylist():
            rows.setdefault(item, len(rows))
        told = np.array([rows[item] for item in items["item_id"].to_pylist()], np.int64)
        both = pa.concat_tables([old, items.select(old.column_names).cast(old.schema)])
        if len(told) and told.min() < len(old):
            both = both.take(pa.array(placed(len(old), told)))
        log = copy(self)
        log.items = _in_memory(both, "items")
        for name in _OF_ITEMS:
            log.__dict__.pop(name, None)
        return log

    def save(self, folder: Path) -> None:
        """Write the tables to a folder that does not exist yet (or is empty), whole or not at all.

        Raises:
            BadInput: the folder holds something.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} exists already; choose another folder or remove it.")
        with whole_folder(folder) as part:
            _write(part / "users.arrow", self.users.data.table)
            _write(part / "items.arrow", self.items.data.table)
            _write(part / "events.arrow", self.events.data.table)
            contexts = pa.table({"context": pa.array(self.contexts, pa.string())})
            _write(part / "contexts.arrow", contexts)
            manifest = {
                "format_version": _FORMAT_VERSION,
                "num_users": self.num_users,
                "num_items": self.num_items,
                "num_events": self.num_events,
                "actions": self.actions,
                "surfaces": self.surfaces,
                "schema": self.schema.to_dict(),
            }
            (part / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a saved folder; the tables are memory-mapped, and of events alone all are read.

        Raises:
            BadInput: the folder was not written by `save`, a file in it is cut, or events are not
                in order or not of its people, items, actions, surfaces and contexts.
        """
        import datasets

        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["format_version"] != _FORMAT_VERSION:
                raise BadInput(
                    f"{folder} is of format {manifest['format_version']}, this version reads "
                    f"format {_FORMAT_VERSION}; make it again from the source."
                )
            tables = {
                name: datasets.Dataset.from_file(str(folder / f"{name}.arrow"))
                for name in ("users", "items", "events", "contexts")
            }
            for name in ("users", "items", "events"):
                if len(tables[name]) != manifest[f"num_{name}"]:
                    raise ValueError(f"{name}.arrow holds {len(tables[name])} rows")
            log = cls(
                schema=Schema.from_dict(manifest["schema"]),
                users=tables["users"],
                items=tables["items"],
                events=tables["events"],
                actions=manifest["actions"],
                surfaces=manifest["surfaces"],
                contexts=tables["contexts"].data.column("context").to_pylist(),
            )
            log._check_numbers()
            return log
        except BadInput:
            raise
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise BadInput(
                f"{folder} does not hold saved interactions, or they are cut or damaged "
                f"({error}); make them again from the source."
            ) from error

    def _check_numbers(self) -> None:
        """Raise ValueError where events are not in order, or name what the log does not have."""
        columns = (
            ("user", self.event_user, 0, self.num_users),
            ("item", self.event_item, 0, self.num_items),
            ("action", self.event_action, 0, len(self.actions)),
            ("surface", self.event_surface, 0, len(self.surfaces)),
            ("context", self.event_context, -1, len(self.contexts)),
        )
        for name, values, least, end in columns:
            if len(values) and not (values.min() >= least and values.max() < end):
                raise ValueError(f"events.arrow: {name} is not between {least} and {end - 1}")
        for name in ("user", "slate"):
            values = self._event_column(name)
            if (values[1:] < values[:-1]).any():
                raise ValueError(f"events.arrow: {name} falls from one event to the next")

    def _event_column(self, name: str) -> NDArray[Any]:
        column = self.events.data.column(name)
        if column.num_chunks != 1:
            raise ValueError("Interactions.events must be one chunk, as save writes it.")
        values: NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
        return values

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user_id: row for row, user_id in enumerate(self.user_ids)}

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @staticmethod
    def _row(what: str, wanted: str, rows: dict[str, int]) -> int:
        try:
            return rows[wanted]
        except (KeyError, TypeError):
            # Who else is a member is nobody's to read in a message.
            told = f", such as {', '.join(map(shown, list(rows)[:3]))}" if what == "item" else ""
            raise BadInput(
                f"unknown {what} {shown(wanted)} of {len(rows):,}; {what} ids are text{told}."
            ) from None


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _in_memory(table: pa.Table, name: str) -> "datasets.Dataset":
    import datasets
    from datasets.table import InMemoryTable

    # The default fingerprint hashes every value; these tables are never cached by `datasets`.
    return datasets.Dataset(InMemoryTable(table.combine_chunks()), fingerprint=f"{name}-in-memory")


def _write(path: Path, table: pa.Table) -> None:
    """One Arrow stream of one batch, so that a column maps to one array."""
    table = table.combine_chunks()
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
