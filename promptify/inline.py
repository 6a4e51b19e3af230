"""What a request brings with it of those who are in no table: events, and fields, checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptify.schema import MAX_SECONDS, Field, FieldKind
from promptify.validation import BadInput, shown
from promptify.words import Columns, in_words


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEvent:
    """One event of somebody who is not in the log.

    Args:
        item: the id of an item of the catalogue, or the fields of one that is not in it (with its
            ``kind``, where that is not the kind its task ranks).
        action: what was done.
        timestamp: when, in seconds; None where it is not known.
        task: on which surface; None for the one that is asked about.
    """

    item: str | Mapping[str, Any]
    action: str
    timestamp: int | None = None
    task: str | None = None


def one_row(values: Mapping[str, Any], fields: Sequence[Field], owner: str) -> Columns:
    """The fields of one profile or item as columns of one row.

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
    for name, value in values.items():
        if value is not None:
            _check_value(f"{owner}: {name}", kinds[name], value)
    return {name: [value] for name, value in values.items()}


def _check_value(where: str, kind: FieldKind, value: Any) -> None:
    if kind not in ("number", "time"):
        try:
            in_words(value)
        except ValueError:
            raise BadInput(f"{where} is too large a number to be read; give it as text.") from None
        return
    try:
        number = float(value)
    except OverflowError:
        raise BadInput(f"{where} is too large a number; give one below 1e308.") from None
    except (TypeError, ValueError):
        raise BadInput(f"{where}={shown(value)} must be a number.") from None
    if math.isinf(number):
        raise BadInput(
            f"{where}={shown(value)} must be a finite number; leave out what is unknown."
        )
    if kind == "time" and abs(number) >= MAX_SECONDS:
        raise BadInput(
            f"{where}={shown(value)} must be seconds since 1970; divide milliseconds by 1000."
        )
