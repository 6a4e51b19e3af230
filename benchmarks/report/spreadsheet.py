"""All rows as one spreadsheet, for those who live in one: a sheet of everything, one per file."""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path

import xlsxwriter

from decant.results import COLUMNS, ResultRow
from promptify.whole import write_whole

_WIDTHS = {"benchmark": 14, "task": 18, "split": 28, "model": 26, "metric": 26, "hardware": 40}
# The workbook says when it was made; a moment of its own would make other bytes of the same rows.
_CREATED = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)


def write_spreadsheet(path: Path, files: Mapping[str, Sequence[ResultRow]]) -> None:
    """Write a workbook, whole or not at all; the same rows give the same bytes.

    Texts stay texts: none is read as a formula or a link, whatever it begins with.

    Args:
        path: of the workbook.
        files: rows by the name of their file.
    """
    content = io.BytesIO()
    properties = {"title": "Decant: results", "created": _CREATED, "comments": _hash(files)}
    options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with xlsxwriter.Workbook(content, options) as workbook:
        workbook.set_properties(properties)
        bold = workbook.add_format({"bold": True})
        everything = [(name, *astuple(row)) for name, rows in files.items() for row in rows]
        sheets = [("all", ("file", *COLUMNS), everything)]
        taken = {"all"}
        for name, rows in files.items():
            # A sheet's name has at most 31 characters, and none of []:*?/\; "A" and "a" are one.
            ends = ("", *(f"~{number}" for number in range(2, len(files) + 2)))
            names = (f"{name[: 31 - len(end)]}{end}" for end in ends)
            sheet_name = next(one for one in names if one.casefold() not in taken)
            taken.add(sheet_name.casefold())
            sheets.append((sheet_name, COLUMNS, [astuple(row) for row in rows]))
        for name, header, rows_of_cells in sheets:
            sheet = workbook.add_worksheet(name)
            sheet.write_row(0, 0, header, bold)
            for place, cells in enumerate(rows_of_cells, start=1):
                sheet.write_row(place, 0, cells)
            sheet.freeze_panes(1, 0)
            sheet.autofilter(0, 0, len(rows_of_cells), len(header) - 1)
            for column, title in enumerate(header):
                sheet.set_column(column, column, _WIDTHS.get(title, 12))
    write_whole(path, content.getvalue())


def is_of(path: Path, files: Mapping[str, Sequence[ResultRow]]) -> bool:
    """Whether a workbook is there and was made of these rows; it is asked, not made anew."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _hash(files).encode() in archive.read("docProps/core.xml")


def _hash(files: Mapping[str, Sequence[ResultRow]]) -> str:
    rows = {name: list(rows) for name, rows in files.items()}
    return f"rows {hashlib.sha256(repr(rows).encode()).hexdigest()}"
