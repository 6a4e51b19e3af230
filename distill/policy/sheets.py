"""Sheets for annotators: a table for spreadsheets, a page for browsers, and what comes back.

Texts of people and items come from outside: in a table no cell begins like a formula, and the page
holds them as data, asks for nothing from anywhere, and shows them as text.
"""

import csv
import io
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distill.policy.document import MAX_GRADE
from distill.policy.grading import Grader
from promptify.interactions import Interactions
from promptify.schema import Field
from promptify.validation import BadInput, shown
from promptify.words import in_words, one_line

if TYPE_CHECKING:
    from distill.policy.golden import GoldenSet

COLUMNS = ("pair", "query", "profile", "item", "grade", "note")

_FORMULA = tuple("=+-@\t\r")
_MOST_NOTE_CHARACTERS = 2000
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sheet:
    """What one annotator said.

    Attributes:
        annotator: by name.
        grade: int8 [n] for the pairs of the golden set, -1 where nothing was said.
        note: by pair.
    """

    annotator: str
    grade: NDArray[np.int8]
    note: dict[str, str]


def told_fields(
    log: Interactions, table: Any, fields: tuple[Field, ...], row: int
) -> list[tuple[str, str]]:
    """The known fields of a person or an item, name and value in words, but for names and times."""
    data = table.data
    told = []
    for field in fields:
        if field.kind in ("name", "time"):
            continue
        value = data.column(field.name)[row].as_py()
        if isinstance(value, float):
            value = f"{value:g}"
        if words := one_line(in_words(value)):
            told.append((field.label or field.name.replace("_", " "), words))
    return told


def write_sheets(folder: Path, table: pa.Table, grader: Grader, *, title: str) -> None:
    """Write sheet.csv and sheet.html.

    Args:
        folder: of the golden set.
        table: its pairs.
        grader: of the policy and the log that they come from.
        title: shown on the page.
    """
    log, task = grader.tables.interactions, grader.tables.task
    rows = []
    for pair, user, item, query in zip(
        *(table[name].to_pylist() for name in ("pair", "user_id", "item_id", "query")), strict=True
    ):
        rows.append(
            {
                "pair": pair,
                "query": one_line(query or ""),
                "profile": told_fields(log, log.users, log.schema.user, log.user_row(user)),
                "item": told_fields(
                    log, log.items, log.schema.items[task.item_kind], log.item_row(item)
                ),
            }
        )
    said = io.StringIO()
    writer = csv.writer(said, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        texts = [row["query"], *(_joined(row[side]) for side in ("profile", "item"))]
        writer.writerow([row["pair"], *map(cell, texts), "", ""])
    # The mark tells spreadsheets that this is UTF-8.
    (folder / "sheet.csv").write_text("\ufeff" + said.getvalue(), "utf-8")
    rules = [
        {"number": rule.number, "title": rule.title, "prose": rule.prose}
        for rule in grader.policy.rules
    ]
    data = {"title": title, "rules": rules, "pairs": rows}
    page = (files(__package__) / "sheet.html").read_text("utf-8")
    # Within a script element nothing but "</" and "<!" could end or change it.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    (folder / "sheet.html").write_text(page.replace("{{data}}", text), "utf-8")


def read_sheet(path: Path, golden: "GoldenSet") -> Sheet:
    """Read what an annotator said: the sheet filled in, or what the page exported.

    Args:
        path: CSV with `pair` and `grade`, perhaps `annotator` and `note`; commas, semicolons or
            tabs between. The annotator is the file's name where it has no such column.
        golden: the set that was judged.

    Raises:
        BadInput: a line does not fit; the message has the file, the line and the value.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 (byte {error.start}); save it as CSV UTF-8.") from None
    head = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=head.count), strict=True
    )
    try:
        return _read(reader, path, golden)
    except csv.Error as error:
        # The lines of what was read whole are counted: the one at fault comes behind them.
        raise BadInput(
            f"{path} line {reader.line_num + 1}: {error}; is a quotation mark left open there?"
        ) from None


def _read(reader: "csv.DictReader[str]", path: Path, golden: "GoldenSet") -> Sheet:
    missing = [name for name in ("pair", "grade") if name not in (reader.fieldnames or ())]
    if missing:
        raise BadInput(
            f"{path} has no column {' and '.join(missing)}; it has "
            f"{', '.join(reader.fieldnames or ()) or 'none'}. Fill in sheet.csv of the golden set."
        )
    grade = np.full(len(golden), -1, np.int8)
    notes: dict[str, str] = {}
    names: set[str] = set()
    for row in reader:
        where = f"{path} line {reader.line_num}"
        pair, said = (row["pair"] or "").strip(), (row["grade"] or "").strip()
        if pair not in golden.place_of:
            raise BadInput(
                f"{where}: pair {shown(pair)} is not of {golden.folder}; was another set judged?"
            )
        if said and said not in map(str, range(MAX_GRADE + 1)):
            raise BadInput(
                f"{where}: grade {shown(said)} must be a whole number from 0 to {MAX_GRADE}, or "
                "nothing."
            )
        place = golden.place_of[pair]
        if said and grade[place] >= 0:
            raise BadInput(f"{where}: pair {shown(pair)} was judged above already; keep one line.")
        if said:
            grade[place] = int(said)
        names |= {one_line(row.get("annotator") or "")} - {""}
        if note := one_line(row.get("note") or "")[:_MOST_NOTE_CHARACTERS]:
            notes[pair] = note
    if len(names) > 1:
        raise BadInput(
            f"{path} holds the judgements of {', '.join(sorted(names))}; give each a file."
        )
    return Sheet(annotator=names.pop() if names else path.stem, grade=grade, note=notes)


def _joined(told: list[tuple[str, str]]) -> str:
    return " | ".join(f"{name}: {words}" for name, words in told)


def cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
