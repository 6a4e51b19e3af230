"""A history as it comes over the wire: checked, then handed on as the events of a prompt."""

from collections.abc import Mapping
from typing import Any

import pydantic

from promptify.prompter import HistoryEvent
from promptify.schema import MAX_SECONDS
from promptify.validation import BadInput


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
        event: a `HistoryItem` or a mapping with its keys.
        place: of the event in its history, for messages.

    Raises:
        BadInput: a key is missing or unknown, or a value does not fit.
    """
    if not isinstance(event, HistoryItem):
        try:
            event = HistoryItem.model_validate(dict(event))
        except (pydantic.ValidationError, TypeError, ValueError) as error:
            raise BadInput(f"history[{place}]: {_first_problem(error)}") from None
    if event.timestamp is not None and abs(event.timestamp) > MAX_SECONDS:
        raise BadInput(
            f"history[{place}]: timestamp {event.timestamp} looks like milliseconds; divide by "
            f"1000 to give seconds."
        )
    return HistoryEvent(**dict(event))


def _first_problem(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        return (
            f"{where}: {problem['msg']}; an event has item, action, and optional timestamp, task, "
            "shown_with, context."
        )
    return f"{error}; an event is an object with item and action."
