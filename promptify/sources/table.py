"""Anyone's tables: users, items and events as CSV, Parquet or JSONL, and a task in YAML.

    name: jobs
    instruction: Predict what this member does with each job.
    actions: [apply, view, dismiss]
    positive: [apply]
    item_kind: job
    columns: {user_id: member, timestamp: shown_at}   # ours: theirs, where they differ
    values: {action: {2: apply, 1: view, 0: dismiss}} # theirs: ours; may be left out
    schema:                                           # may be left out: the kinds are inferred
      user: [{name: seniority, kind: category}]
      items: {job: [{name: title, kind: text}, {name: pay, kind: number, label: pay}]}

A log with several surfaces lists them under `tasks:` instead, each with the first five keys.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from promptify.columns import are_amounts, infer_kind, put_for, read_text
from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.sources.files import read_batches, read_table
from promptify.sources.task_file import TaskFile
from promptify.task import Task
from promptify.validation import LINE, BadInput, BadRows, OnBadRows

logger = logging.getLogger(__name__)

_CONTEXT_COLUMNS = ("query", "note")
_NOT_FIELDS = ("user_id", "item_id", "kind", LINE)
_OURS = {
    "users": ("user_id",),
    "items": ("item_id", "kind"),
    "events": ("user_id", "item_id", "action", "timestamp", "surface", "shown_with", "context",
               *_CONTEXT_COLUMNS),
}  # fmt: skip
"""The columns of each table that are no fields."""
_LIKELY_SINCE = 315_532_800
"""1980: no log is older, but days, minutes and the dates of Excel are where seconds are meant."""


def table(
    *,
    users: Path,
    items: Path,
    events: Path,
    task: Path | Task,
    schema: Schema | None = None,
    on_bad_rows: OnBadRows = "fail",
    quarantine: Path | None = None,
) -> SourceData:
    """Read a log from three files.

    Args:
        users: `user_id` and the profile.
        items: `item_id`, the text fields, and `kind` if there are several kinds of item.
        events: `user_id`, `item_id`, `action`, `timestamp` (seconds since 1970, or ISO 8601), and
            optionally `surface` (a task's name), `shown_with` (events with the same value were
            shown together) and `query` or `note` (words for this request).
        task: a YAML file as above, or a task.
        schema: what the columns are; None takes it from the YAML file or from the columns. In CSV,
            the values of a list are separated by ``|``.
        on_bad_rows: ``"fail"``, ``"skip"`` or ``"quarantine"``.
        quarantine: JSONL file for bad rows, where they go to quarantine.

    Raises:
        BadInput: a file is absent or damaged, a column is missing, a row does not fit, or the
            task and the tables disagree.
    """
    stated = TaskFile(tasks=(task,)) if isinstance(task, Task) else TaskFile.read(Path(task))
    tasks, columns, schema = stated.tasks, stated.columns, schema or stated.schema
    with BadRows(on_bad_rows=on_bad_rows, quarantine=quarantine) as bad_rows:
        found: set[str] = set()
        renames = {name: _renames(columns, name) for name in _OURS}
        user_table = read_table(users, renames=renames["users"], found=found, bad_rows=bad_rows)
        item_table = read_table(items, renames=renames["items"], found=found, bad_rows=bad_rows)
        if "kind" not in item_table.column_names and len({t.item_kind for t in tasks}) == 1:
            kinds = pa.repeat(tasks[0].item_kind, len(item_table))
            item_table = item_table.append_column("kind", kinds)
        interactions = Interactions.from_tables(
            users=user_table,
            items=item_table,
            events=_told(
                read_batches(events, renames=renames["events"], found=found, bad_rows=bad_rows),
                stated,
            ),
            schema=schema or infer_schema(user_table, item_table),
            actions={t.name: t.actions for t in tasks},
            surfaces=tuple(t.name for t in tasks),
            bad_rows=bad_rows,
        )
        # Even where a table has a column of our name: it is not the one that was asked for.
        unused = [f"{ours}: {theirs}" for ours, theirs in columns.items() if ours not in found]
        if unused:
            raise BadInput(
                f"No table has the column named by columns {{{', '.join(unused)}}}; correct its "
                "name, give it to one of ours alone, or leave it out."
            )
    _tell_span(interactions, Path(events).name)
    return SourceData(interactions=interactions, tasks=tasks, set_aside=bad_rows.counts)


def _renames(columns: Mapping[str, str], table: str) -> dict[str, str]:
    """What `columns` says of one table: two tables may have one name for columns of their own.

    A field may be of any table, where it alone claims the name.
    """
    own = {ours: theirs for ours, theirs in columns.items() if ours in _OURS[table]}
    fields = {
        ours: theirs
        for ours, theirs in columns.items()
        if theirs not in own.values() and not any(ours in names for names in _OURS.values())
    }
    claims = Counter([*own.values(), *fields.values()])
    return {ours: theirs for ours, theirs in (own | fields).items() if claims[theirs] == 1}


def infer_schema(users: pa.Table, items: pa.Table) -> Schema:
    """A schema from the columns as they are.

    Args:
        users: raw users; all columns but `user_id` are the profile.
        items: raw items with `kind`; a field belongs to the kinds that have a value for it.

    Raises:
        BadInput: there is no `kind`, a column has no name, or a kind of item has no field with a
            value.
    """
    if "kind" not in items.column_names:
        raise BadInput("The items lack the column kind, and the tasks rank several kinds; add it.")
    kinds, _ = read_text(items["kind"])
    if not len(kinds):
        file = (items.schema.metadata or {}).get(b"file", b"items").decode()
        raise BadInput(f"{file} holds no rows that fit; give it at least one.")
    for raw in (users, items):
        _warn_of_values(raw)
    return Schema(
        user=_infer_fields(users),
        items={
            kind: _infer_fields(items, of=pc.equal(kinds, kind))
            for kind in kinds.drop_null().unique().to_pylist()
        },
    )


def _infer_fields(raw: pa.Table, of: pa.Array | None = None) -> tuple[Field, ...]:
    fields: list[Field] = []
    for name in raw.column_names:
        # The kind is that of the whole column; the rows of `of` say whether it is theirs.
        kind = None if name in _NOT_FIELDS else infer_kind(raw[name])
        if kind is None or (of is not None and infer_kind(raw[name].filter(of)) is None):
            continue
        if not name.strip() or name.startswith("__"):
            raise BadInput(
                f"{_file_of(raw)} has a column {name!r}, which is no name (pandas' index?); write "
                "it with index=False, or say under `schema:` what is told."
            )
        needs_label = kind in ("number", "time") or pa.types.is_boolean(raw.schema.field(name).type)
        label = name.replace("_", " ") if needs_label else ""
        fields.append(Field(name=name, kind=kind, label=label))
    return tuple(fields)


def _warn_of_values(raw: pa.Table) -> None:
    """Say which columns hold what no prompt can tell, such as objects, or tells as mere words."""
    for name in raw.column_names:
        values = raw[name]
        if name in _NOT_FIELDS or values.null_count == len(values):
            continue
        kind = infer_kind(values)
        if kind is None and not pa.types.is_string(values.type):
            logger.warning(
                "%s: nothing is told of the column %s, which holds neither words nor numbers (%s); "
                "put in words what of it should be told.",
                _file_of(raw),
                name,
                values.type,
            )
        elif kind in ("text", "category") and are_amounts(values):
            logger.warning(
                "%s: the column %s is told as words, but all that is in it are numbers with a "
                "comma or a currency; write them as 12.50 to have them told as numbers.",
                _file_of(raw),
                name,
            )


def _file_of(raw: pa.Table | pa.RecordBatch) -> str:
    named: bytes = (raw.schema.metadata or {}).get(b"file", b"the table")
    return named.decode()


def _told(batches: Iterator[pa.RecordBatch], stated: TaskFile) -> Iterator[pa.RecordBatch]:
    """Events with the actions that a task's file says, and words for a request as `context`."""
    is_first = True
    for batch in batches:
        names = batch.schema.names
        found = [name for name in ("context", *_CONTEXT_COLUMNS) if name in names]
        if len(found) > 1:
            raise BadInput(f"The events have both {' and '.join(found)}; keep one column of words.")
        if is_first:
            _tell_unread(batch, has_context=bool(found))
            is_first = False
        renamed = batch.rename_columns(["context" if name in found else name for name in names])
        if stated.actions and "action" in names:
            actions = put_for(batch["action"], stated.actions)
            renamed = renamed.set_column(names.index("action"), "action", actions)
        # Renaming drops the metadata that says which file the batch is from.
        yield renamed.replace_schema_metadata(batch.schema.metadata)


def _tell_unread(events: pa.RecordBatch, *, has_context: bool) -> None:
    """Name the columns of events that are none of ours: one of them may be, under another name."""
    names = events.schema.names
    unread = [name for name in names if name not in (*_OURS["events"], LINE) and name.strip()]
    if not unread:
        return
    lacking = {
        "shown_with": "names what was shown together",
        "context": "the words of a request",
    }
    offers = [
        f"{{{ours}: …}} {what}"
        for ours, what in lacking.items()
        if not (has_context if ours == "context" else ours in names)
    ]
    logger.info(
        "%s: nothing is read of the columns %s%s",
        _file_of(events),
        ", ".join(unread),
        f"; in a task file, columns: {', '.join(offers)}" if offers else "",
    )


def _tell_span(log: Interactions, file: str) -> None:
    """Say from when to when the events are: a wrong unit is seen there."""
    ends = np.array([log.event_timestamp.min(), log.event_timestamp.max()])
    first, last = (
        str(moment).replace("T", " ")
        for moment in np.datetime_as_string(ends.astype("datetime64[s]"), unit="m")
    )
    if ends[1] < _LIKELY_SINCE:
        logger.warning(
            "%s: all times lie before 1980, from %s to %s: are they days, minutes or the dates of "
            "Excel? Give seconds since 1970, or dates such as 2024-01-31.",
            file,
            first,
            last,
        )
    else:
        logger.info("%s: %s events from %s to %s", file, f"{log.num_events:,}", first, last)
