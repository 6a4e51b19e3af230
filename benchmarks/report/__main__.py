"""Rebuild all that is derived from the committed rows: page, plots, spreadsheet, tables.

    python -m benchmarks.report
    python -m benchmarks.report --check

Reads every CSV of the folder of results and nothing else, so that the same files give the same
bytes. `--check` writes nothing and fails where a table of the README or of docs/measured.md, the
page or the spreadsheet says something else than the files, or where a plot of the page is missing
(plots are not compared: their pixels depend on the fonts of a machine).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.pages import page, plot_names, write_page
from benchmarks.report.spreadsheet import is_of, write_spreadsheet
from benchmarks.report.tables import refreshed
from decant.results import ResultRow, read_csv
from promptify.whole import write_whole

RESULTS = Path("benchmarks/results")
TEXTS = (Path("README.md"), Path("docs/measured.md"))
"""What people read with tables in it."""
_SPREADSHEET = "results.xlsx"


def load(folder: Path) -> dict[str, list[ResultRow]]:
    """The rows of every results file of a folder, by the file's name without its ending.

    Raises:
        ValueError: there is none, or one does not fit the schema.
    """
    files = {path.stem: read_csv(path) for path in sorted(folder.glob("*.csv"))}
    if not files:
        raise ValueError(f"{folder} holds no CSV of results; give --results FOLDER.")
    return files


def stale(files: dict[str, list[ResultRow]], *, texts: Sequence[Path], out: Path) -> list[str]:
    """What says something else than the files: paths, each with what to look at."""
    found = [
        f"{text}: a table differs from the rows behind it"
        for text in texts
        if text.read_text("utf-8") != refreshed(text.read_text("utf-8"), files)
    ]
    path = out / "index.html"
    if not path.exists() or path.read_text("utf-8") != page(files):
        found.append(f"{path}: differs from the rows behind it, or is missing")
    drawn, wanted = {plot.name for plot in out.glob("*.png")}, plot_names(files)
    found += [
        f"{out / name}: the page shows it and it is missing" for name in sorted(wanted - drawn)
    ]
    found += [f"{out / name}: no rows make this plot" for name in sorted(drawn - wanted)]
    if not is_of(out / _SPREADSHEET, files):
        found.append(f"{out / _SPREADSHEET}: holds other rows than the files, or is missing")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when rows cannot be read or, with `--check`, a text is old."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the page")
    parser.add_argument(
        "--texts", type=Path, nargs="+", default=TEXTS, help="Markdown with tables between markers"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if something is old"
    )
    options = parser.parse_args(arguments)
    try:
        files = load(options.results)
        if options.check:
            found = stale(files, texts=options.texts, out=options.out)
            for line in found:
                print(line)
            if found:
                print("python -m benchmarks.report brings them up to date.")
            return 1 if found else 0
        for text in options.texts:
            write_whole(text, refreshed(text.read_text("utf-8"), files))
        write_page(options.out, files)
        write_spreadsheet(options.out / _SPREADSHEET, files)
    except (ValueError, OSError) as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 1
    rows = sum(map(len, files.values()))
    print(f"{rows:,} rows of {len(files)} files; {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
