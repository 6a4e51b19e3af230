"""A history as it comes over the wire: checked, then handed on as the events of a prompt."""

from collections.abc import Mapping
from typing import Any

import pydantic

from promptify.inline import is_missing, one_row
from promptify.prompter import HistoryEvent
from promptify.schema import MAX_SECONDS, Field
from promptify.validation import BadInput, shown

_TIMESTAMP = Field(name="timestamp", kind="time")
# In 1973; a date without dashes (20240131) is a smaller number.
_SURELY_SECONDS = 100_000_000
_AN_EVENT = "an event is {'item': …, 'action': …} and may have timestamp, task, shown_with, context"


class HistoryItem(pydantic.BaseModel):
    """One event of a history, as it comes over the wire.

    Attributes:
        item: the id of an item of the catalogue, or the fields of one that is not in it.
        action: what was done, a label word of its task.
        timestamp: when, in seconds since 1970; events with none are taken in the order given.
        task: on which surface; the one that is asked about when left out.
        shown_with: equal for events that were shown together, as in a log; alone when left out.
        context: the query or note that it was shown for, in words. A model that was trained on
            contexts reads a history with them better than one without.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    item: str | dict[str, Any]
    action: str
    timestamp: int | None = None
    task: str | None = None
    shown_with: str | None = None
    context: str | None = None


def history_event(event: HistoryItem | Mapping[str, Any], place: int) -> HistoryEvent:
    """An event of a request as a prompt takes it.

    Args:
        event: a `HistoryItem` or a mapping with its keys, in which what is None or NaN counts as
            left out, and `timestamp` may be whatever is a time in a file: a date, ISO 8601 text,
            a time of numpy or pandas, in UTC where it names no zone. Of a second only the whole
            counts.
        place: of the event in its history, for messages.

    Raises:
        BadInput: a key is missing or unknown, or a value does not fit.
    """
    where = f"history[{place}]"
    try:
        given = {key: value for key, value in dict(event).items() if not is_missing(value)}
    except (TypeError, ValueError):
        raise BadInput(f"{where}={shown(event)} is no event; {_AN_EVENT}.") from None
    if "timestamp" in given:
        given["timestamp"] = _seconds(given["timestamp"], where)
    try:
        told = HistoryItem.model_validate(given)
    except pydantic.ValidationError as error:
        raise BadInput(f"{where}: {_first_problem(error, given)}") from None
    return HistoryEvent(**dict(told))


def _seconds(moment: Any, where: str) -> Any:
    # Reading one as a file's takes a quarter of a millisecond, and a history may have thousands.
    if type(moment) is int and _SURELY_SECONDS < moment <= MAX_SECONDS:
        return moment
    [seconds] = one_row({"timestamp": moment}, [_TIMESTAMP], where)["timestamp"]
    return seconds


def _first_problem(error: pydantic.ValidationError, given: Mapping[Any, Any]) -> str:
    problem = error.errors()[0]
    key = problem["loc"][0]
    if key not in given or key not in HistoryItem.model_fields:
        what = "is missing" if key not in given else "is unknown"
        return f"{key} {what}; you gave {', '.join(map(str, given)) or 'nothing'}; {_AN_EVENT}."
    value = given[key]
    if key == "item":
        return (
            f"item={shown(value)} must be an item's id, which is text ({shown(shown(value))}), or "
            "the fields of an item that is not in the catalogue."
        )
    return f"{key}={shown(value)} must be text ({shown(shown(value))}); {_AN_EVENT}."
