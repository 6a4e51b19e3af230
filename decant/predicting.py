"""`decant predict`: read who is asked about, print or write what they do next."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import Namespace

from decant.answering import Prediction
from decant.errors import utf8_text
from decant.recommender import Recommender
from promptify.validation import BadInput
from promptify.whole import whole_file

logger = logging.getLogger(__name__)

# Requests written to the output file at once.
BATCH_USERS = 256
MAX_SHOWN_CHARACTERS = 100

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("score", pa.float32()),
        ("probabilities", pa.map_(pa.string(), pa.float32())),
        ("retrieval_score", pa.float32()),
        ("retrieval_rank", pa.int32()),
        ("grades", pa.map_(pa.string(), pa.float32())),
    ]
)


def predict(options: Namespace) -> list[str]:
    """Carry out the `predict` command.

    Returns:
        Lines to print.

    Raises:
        ValueError: it is not clear who is asked about, or a file or an id does not fit.
    """
    _check_who(options)
    users = _user_ids(options.users) if options.users else []
    profile = _json_object(options.profile) if options.profile else {}
    history = _history(options.history) if options.history else []
    exclude_seen = not options.include_seen
    recommender = Recommender.load(options.run, model=options.model)
    num_items = len(recommender.index)
    if options.k > num_items:
        raise BadInput(
            f"-k {options.k} is more than the catalogue of {num_items:,} items; ask for fewer."
        )
    if options.users:
        write_predictions(
            recommender,
            users,
            out=options.out,
            task=options.task,
            query=options.query,
            k=options.k,
            where=options.where,
            blend=options.blend,
            exclude_seen=exclude_seen,
        )
        return [f"{len(users):,} people → {options.out}"]
    if options.user is not None:
        found = recommender.predict_user(
            options.user,
            task=options.task,
            query=options.query,
            k=options.k,
            where=options.where,
            blend=options.blend,
            exclude_seen=exclude_seen,
        )
    else:
        found = recommender.predict_next_actions(
            profile,
            history,
            task=options.task,
            query=options.query,
            k=options.k,
            where=options.where,
            blend=options.blend,
            exclude_seen=exclude_seen,
        )
    if options.json:
        return [json.dumps(asdict(one), ensure_ascii=False) for one in found]
    return [format_predictions(found)]


def format_predictions(predictions: Iterable[Prediction]) -> str:
    """Predictions as lines of text: place, probability of each action, title."""
    lines = []
    for place, one in enumerate(predictions, start=1):
        actions = "  ".join(f"{action} {p:.2f}" for action, p in one.probabilities.items())
        lines.append(f"{place:3}. {brief(one.title)}\n     {actions}  [{printable(one.item_id)}]")
    return "\n".join(lines) or "nothing to recommend: every item is seen or left out"


def brief(title: str) -> str:
    """An item's words as far as a line takes them.

    Example:
        >>> brief("Heat (1995) · Action, Crime")
        'Heat (1995) · Action, Crime'
        >>> len(brief("so long " * 40))
        100
    """
    if len(title) <= MAX_SHOWN_CHARACTERS:
        return title
    return title[: MAX_SHOWN_CHARACTERS - 1] + "…"


def printable(item_id: str) -> str:
    r"""An id as a terminal takes it: what is not seen, and may be obeyed, is written out.

    Example:
        >>> printable("job-1"), printable("job\x1b[2J")
        ('job-1', 'job\\x1b[2J')
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in item_id)


def write_predictions(
    recommender: Recommender,
    user_ids: list[str],
    *,
    out: Path,
    task: str | None,
    k: int,
    query: str | None = None,
    where: str | None = None,
    blend: float | None = None,
    exclude_seen: bool = True,
) -> None:
    """Predict for many people of the log into a Parquet file, written whole or not at all.

    Args:
        recommender: serves.
        user_ids: of the log.
        out: the file; one row per person and item.
        task: the surface.
        k: items for each.
        query: a query or a note for all of them.
        where: only items like this.
        blend: how much policy counts.
        exclude_seen: leave out items of each history.

    Raises:
        ValueError: a user is unknown, or `where` or `blend` does not fit; nothing is written then.
    """
    predictions = recommender.predict_many(
        user_ids,
        task=task,
        query=query,
        k=k,
        where=where,
        blend=blend,
        exclude_seen=exclude_seen,
        progress=True,
    )
    with whole_file(out) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        batch: list[dict[str, Any]] = []
        for number, (user_id, found) in enumerate(predictions, start=1):
            batch += [
                {"user_id": user_id, "rank": rank, **asdict(one)}
                for rank, one in enumerate(found, start=1)
            ]
            if number % BATCH_USERS == 0:
                writer.write_table(_table(batch))
                batch = []
        writer.write_table(_table(batch))


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            row | {name: list(row[name].items()) for name in ("probabilities", "grades")}
            for row in rows
        ],
        schema=SCHEMA,
    )


def _check_who(options: Namespace) -> None:
    ways = {
        "--user": options.user is not None,
        "--profile or --history": bool(options.profile or options.history),
        "--users": bool(options.users),
    }
    given = [name for name, is_given in ways.items() if is_given]
    if len(given) != 1:
        raise BadInput(
            f"say who is asked about by one of {', '.join(ways)}; "
            f"got {' and '.join(given) or 'none'}."
        )
    if bool(options.users) != bool(options.out):
        raise BadInput("--users FILE and --out FILE.parquet belong together; give both.")
    if options.out and options.out.suffix not in ("", ".parquet"):
        raise BadInput(
            f"--out {options.out} is written as Parquet; call it {options.out.stem}.parquet."
        )
    if options.users and options.json:
        raise BadInput(f"--json prints, and --users writes into {options.out}; leave --json out.")


def _user_ids(path: Path) -> list[str]:
    ids = [line.strip() for line in utf8_text(path).split("\n") if line.strip()]
    if not ids:
        raise BadInput(f"{path} holds no user id; write one per line.")
    return ids


def _json_object(path: Path) -> dict[str, Any]:
    found = _json(utf8_text(path), str(path))
    if not isinstance(found, dict):
        raise BadInput(f'{path} must be one JSON object, such as {{"age": "25-34"}}.')
    return found


def _history(path: Path) -> list[Any]:
    """The events of a history file, none of them twice."""
    events = _json_lines(path)
    if not events:
        raise BadInput(f"{path} holds no event; leave --history out for somebody who has none.")
    # Equal events are alike in all that is no list and no object, and few others are.
    alike: dict[frozenset[Any], list[int]] = {}
    for place, event in enumerate(events):
        # Without a time, the same action on the same item may well have happened twice.
        if not isinstance(event, dict) or "timestamp" not in event:
            continue
        plain = [pair for pair in event.items() if not isinstance(pair[1], list | dict)]
        before = alike.setdefault(frozenset(plain), [])
        for other in before:
            if events[other] == event:
                raise BadInput(
                    f"{path}: event {place + 1} repeats event {other + 1}; leave one out."
                )
        before.append(place)
    return events


def _json_lines(path: Path) -> list[Any]:
    lines = []
    # Not at what else Unicode calls the end of a line: JSON has that inside of texts.
    for number, line in enumerate(utf8_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        lines.append(_json(line, f"{path}, line {number}"))
    return lines


def _json(text: str, where: str) -> Any:
    def refuse(constant: str) -> None:
        raise BadInput(f"{where}: {constant} is not JSON; write null for what is not known.")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error.msg}, column {error.colno}).") from None
    except BadInput:
        raise
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply to be a profile or an event.") from None
    except ValueError:
        # Python reads no integer of more than 4,300 digits.
        raise BadInput(f"{where}: holds a number of too many digits; give it as text.") from None
