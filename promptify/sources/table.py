"""Anyone's tables: users, items and events as CSV, Parquet or JSONL, and a task in YAML.

    name: jobs
    instruction: Predict what this member does with each job.
    actions: [apply, view, dismiss]
    positive: [apply]
    item_kind: job
    columns: {user_id: member, timestamp: shown_at}   # ours: theirs, where they differ
    schema:                                           # may be left out: the kinds are inferred
      user: [{name: seniority, kind: category}]
      items: {job: [{name: title, kind: text}, {name: pay, kind: number, label: pay}]}

A log with several surfaces lists them under `tasks:` instead, each with the first five keys.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from promptify.columns import infer_kind, read_text
from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.sources.files import read_batches, read_table
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
    columns: dict[str, str] = {}
    if isinstance(task, Task):
        tasks: tuple[Task, ...] = (task,)
    else:
        tasks, columns, stated = _read_task_file(Path(task))
        schema = schema or stated
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
            events=_with_context(
                read_batches(events, renames=renames["events"], found=found, bad_rows=bad_rows)
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
        _warn_of_untold(raw)
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


def _warn_of_untold(raw: pa.Table) -> None:
    """Say which columns hold something that no prompt can tell, such as objects."""
    for name in raw.column_names:
        values = raw[name]
        is_empty = values.null_count == len(values) or pa.types.is_string(values.type)
        if name not in _NOT_FIELDS and not is_empty and infer_kind(values) is None:
            logger.warning(
                "%s: nothing is told of the column %s, which holds neither words nor numbers (%s); "
                "put it in words, such as '12.50 EUR'.",
                _file_of(raw),
                name,
                values.type,
            )


def _file_of(raw: pa.Table) -> str:
    named: bytes = (raw.schema.metadata or {}).get(b"file", b"the table")
    return named.decode()


def _with_context(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The column of words for a request is `context` from here on."""
    for batch in batches:
        names = batch.schema.names
        found = [name for name in ("context", *_CONTEXT_COLUMNS) if name in names]
        if len(found) > 1:
            raise BadInput(f"The events have both {' and '.join(found)}; keep one column of words.")
        renamed = batch.rename_columns(["context" if name in found else name for name in names])
        # Renaming drops the metadata that says which file the batch is from.
        yield renamed.replace_schema_metadata(batch.schema.metadata)


def _read_task_file(path: Path) -> tuple[tuple[Task, ...], dict[str, str], Schema | None]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        raise BadInput(f"{path}: columns={columns!r} must map our names to yours, as text.")
    listed: Any = document.pop("tasks", None)
    if listed is None:
        listed = [document]
    elif document:
        raise BadInput(f"{path} has `tasks:` and beside it {', '.join(map(str, document))}.")
    try:
        tasks = tuple(Task.from_dict(values) for values in listed)
    except (TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from error
    if not tasks:
        raise BadInput(f"{path} lists no tasks; give it one.")
    try:
        stated = None if schema is None else Schema.from_dict(schema)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error
    return tasks, dict(columns), stated
