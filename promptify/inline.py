"""What a request brings with it of those who are in no table: events, and fields, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from promptify.columns import read_column
from promptify.schema import Field, FieldKind
from promptify.sources.files import json_columns
from promptify.validation import BadInput, shown
from promptify.words import Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEvent:
    """One event of somebody who is not in the log.

    Args:
        item: the id of an item of the catalogue, or the fields of one that is not in it (with its
            ``kind``, where that is not the kind its task ranks).
        action: what was done.
        timestamp: when, in seconds; None where it is not known.
        task: on which surface; None for the one that is asked about.
        shown_with: equal for events of a surface that were shown together; None for one that was
            shown alone.
        context: the query or note that it was shown for, in words; one of a slate may speak for
            all.
    """

    item: str | Mapping[str, Any]
    action: str
    timestamp: int | None = None
    task: str | None = None
    shown_with: str | None = None
    context: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HistorySlate:
    """Events of a history that were shown together, at least one.

    Attributes:
        events: in the order given.
        shown_at: seconds, when the first of them was; None where no time is known.
        context: what it was shown for; empty where nothing is known.
    """

    events: Sequence[HistoryEvent]
    shown_at: int | None
    context: str


def in_slates(
    history: Sequence[HistoryEvent], *, task: str, actions: Mapping[str, Sequence[str]]
) -> list[HistorySlate]:
    """A history as a log has it: slate by slate, in the order in which they were shown.

    An item is in a slate once, with the best of what was done. What repeats an earlier event, equal
    in item, action, time and surface, is left out; where no time is known nothing tells that it
    does.

    Args:
        history: events, oldest first; sorted by time where every one has a time.
        task: the surface of events that name none.
        actions: of each surface, the best first.

    Raises:
        BadInput: events that were shown together have different contexts.
    """
    together: dict[int | tuple[str, str], list[HistoryEvent]] = {}
    seen: set[tuple[str, str, int, str]] = set()
    for place, event in enumerate(history):
        if event.timestamp is not None:
            what = (_known_by(event.item), event.action, event.timestamp, event.task or task)
            if what in seen:
                continue
            seen.add(what)
        shown_with = (event.shown_with or "").strip()
        key = (event.task or task, shown_with) if shown_with else place
        together.setdefault(key, []).append(event)
    slates = []
    for events in together.values():
        contexts = {event.context for event in events if event.context}
        if len(contexts) > 1:
            raise BadInput(
                f"history: events with shown_with={shown(events[0].shown_with)} have different "
                "contexts; a slate has one, so leave the others out or give them a shown_with of "
                "their own."
            )
        times = [event.timestamp for event in events if event.timestamp is not None]
        slates.append(
            HistorySlate(
                events=_best_of_items(events, actions.get(events[0].task or task, ())),
                shown_at=min(times, default=None),
                context="".join(contexts),
            )
        )
    if all(event.timestamp is not None for event in history):
        slates.sort(key=lambda slate: slate.shown_at or 0)
    return slates


def _best_of_items(
    events: Sequence[HistoryEvent], actions: Sequence[str]
) -> Sequence[HistoryEvent]:
    """Of several events of a slate with one item the one of the best action, the first of equals.

    An action that is unknown is kept, and refused where it is told.
    """
    best: dict[str, tuple[int, int]] = {}
    for place, event in enumerate(events):
        item = _known_by(event.item)
        rank = actions.index(event.action) if event.action in actions else -1
        best[item] = min(best.get(item, (rank, place)), (rank, place))
    kept = {place for _, place in best.values()}
    return [event for place, event in enumerate(events) if place in kept]


def _known_by(item: str | Mapping[str, Any]) -> str:
    """What tells an item of a history from the others: its id, or its fields."""
    try:
        return repr(item)
    except RecursionError:
        raise BadInput(
            f"history: item={shown(item)} is nested too deeply; give its fields as text, numbers "
            "and lists of them."
        ) from None


def one_row(values: Mapping[str, Any], fields: Sequence[Field], owner: str) -> Columns:
    """The fields of one profile or item as columns of one row, read as those of a table are.

    Args:
        values: by field; any may be missing or None.
        fields: those there are.
        owner: whose they are, for the message.

    Raises:
        BadInput: a field is unknown, or a value is not of its kind.
    """
    if not isinstance(values, Mapping):
        raise BadInput(f"{owner} {shown(values)} must be an object of fields and values.")
    kinds = {field.name: field.kind for field in fields}
    unknown = sorted(str(name) for name in set(values) - set(kinds))
    if unknown:
        raise BadInput(f"{owner} has no field {', '.join(unknown)}; it knows {', '.join(kinds)}.")
    return {
        name: [None if is_missing(value) else _read(f"{owner}: {name}", kinds[name], value)]
        for name, value in values.items()
    }


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: None, or what pandas has in its place (NaN, NaT, NA).

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), "", 0, [None])]
        [True, True, False, False, False]
    """
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _read(where: str, kind: FieldKind, value: Any) -> Any:
    # Text that no file can hold is told as well as may be.
    if isinstance(value, str) and kind in ("text", "category", "name"):
        return value
    try:
        column = json_columns([{"value": value}])["value"]
    except TypeError:
        raise BadInput(f"{where}={shown(value)} must be text, a number or a list.") from None
    except ValueError:
        raise BadInput(f"{where} is too large a number to be read; give it as text.") from None
    values, faults = read_column(column, kind)
    for fault in faults:
        if fault.rows.any():
            raise BadInput(f"{where}={shown(value)} {fault.reason}.")
    return values.to_pylist()[0]
