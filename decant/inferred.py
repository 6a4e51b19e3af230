"""What a model is told of people and items where nobody stated it, said before it is learned."""

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from promptify.interactions import Interactions
from promptify.schema import Field

logger = logging.getLogger(__name__)

_NUM_LOOKED_AT = 10_000
"""Values of a column, evenly spaced: what is told of everybody is found in some of them."""
_CONTEXTS = "query or note"
_E_MAIL = re.compile(r"[\w.+%-]+@[\w-]+(\.[\w-]+)+")
_PHONE = re.compile(r"\+?[\d(][\d ()./-]{7,}\d")


def tell_inferred(log: Interactions, task: Path) -> None:
    """Name the columns that are told in prompts, where the task's file states no schema.

    Columns whose values look like e-mail addresses or phone numbers are warned of. A number is told
    by where it stands among the others, so that nobody is reached by it.

    Args:
        log: as it was read.
        task: the YAML file.
    """
    if yaml.safe_load(task.read_text("utf-8")).get("schema") is not None:
        return
    fields = {"people": log.schema.user, **log.schema.items}
    told = [f"of {whose} {_named(those) or 'nothing'}" for whose, those in fields.items()]
    untold = {field.name: None for those in fields.values() for field in those if not field.is_told}
    logger.info(
        "%s has no schema:, so prompts tell %s%s",
        task.name,
        "; ".join(told),
        f"; and nothing of the times {', '.join(untold)}" if untold else "",
    )
    found = [
        f"{', '.join(columns)} ({what})"
        for what, columns in (
            ("e-mail addresses", [name for name, values in _texts(log) if _holds_mail(values)]),
            ("phone numbers", [name for name, values in _of_people(log) if _are_phones(values)]),
        )
        if columns
    ]
    if found:
        logger.warning(
            "%s: values look like what reaches somebody, and are learned and told in prompts. List "
            "what a model may know under schema: in %s, or take the column out.",
            ", ".join(found),
            task.name,
        )


def _named(fields: Iterable[Field]) -> str:
    """The fields that are told; of a number that is by where it stands, not by itself."""
    return ", ".join(
        f"{field.name} (a number)" if field.kind == "number" else field.name
        for field in fields
        if field.is_told
    )


def _of_people(log: Interactions) -> Iterator[tuple[str, list[str]]]:
    """Columns of words that people bring with them, and some values of each."""
    yield from _columns(log.users, log.schema.user)
    yield _CONTEXTS, [log.contexts[row] for row in _rows(len(log.contexts))]


def _texts(log: Interactions) -> Iterator[tuple[str, list[str]]]:
    """The same of items, too."""
    yield from _of_people(log)
    fields = {field.name: field for of_kind in log.schema.items.values() for field in of_kind}
    yield from _columns(log.items, fields.values())


def _columns(table: Any, fields: Iterable[Field]) -> Iterator[tuple[str, list[str]]]:
    some = table[_rows(len(table))]
    for field in fields:
        if field.kind in ("text", "category", "list"):
            values = some[field.name]
            if field.kind == "list":
                values = [word for words in values for word in words or ()]
            yield field.name, [word for word in values if word]


def _rows(count: int) -> list[int]:
    rows: list[int] = np.linspace(0, count - 1, min(_NUM_LOOKED_AT, count)).astype(int).tolist()
    return rows


def _holds_mail(values: list[str]) -> bool:
    return any(_E_MAIL.search(value) for value in values)


def _are_phones(values: list[str]) -> bool:
    """Whether most are; dates and years have fewer digits."""
    count = sum(
        bool(_PHONE.fullmatch(value)) and 9 <= sum(map(str.isdigit, value)) <= 15
        for value in values
    )
    return 2 * count > len(values)
