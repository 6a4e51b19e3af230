"""What stands for the content of files, folders and code where a stage says what it is made of."""

import hashlib
import importlib.util
import io
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from decant.run_record import json_hash


def fingerprint(path: Path) -> str:
    """Sixteen hex digits of a file's or a folder's content, to stand for it in a stage's inputs.

    Args:
        path: a file; or a folder, whose files count by their place in it and their content.

    Raises:
        OSError: a file cannot be read, or is not there.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    files = (file for file in path.rglob("*") if file.is_file())
    return json_hash({file.relative_to(path).as_posix(): fingerprint(file) for file in files})


def code_hashes(code: Iterable[str]) -> dict[str, str]:
    """Hash of what each package or module says, by name.

    Comments and layout do not count, nor does the version of Python.

    Args:
        code: packages, with all that is in them, or modules, by the name they are imported by.

    Raises:
        ValueError: one cannot be imported.
    """
    return {name: code_hash(name) for name in sorted(code)}


def code_key(code: Iterable[str]) -> str:
    """Twelve hex digits of what packages and modules say, for a name of what they made.

    Args:
        code: as of `code_hashes`.
    """
    return json_hash(code_hashes(code))[:12]


@cache
def code_hash(name: str) -> str:
    """Hash of what a package or module says, the same for every version of Python."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"code {name!r} is not a package or module that can be imported")
    origin = Path(spec.origin)
    root = origin.parent
    files = sorted(root.rglob("*.py")) if spec.submodule_search_locations else [origin]
    return json_hash(
        {file.relative_to(root).as_posix(): _stripped(file.read_text("utf-8")) for file in files}
    )


def _stripped(source: str) -> str:
    """Source without comments and blank lines; what stands in strings is kept to the letter.

    A syntax tree would be stricter about what counts, but is written otherwise by every version of
    Python: a run that was begun on another machine would start anew.
    """
    lines = source.split("\n")
    in_strings: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, column), (last_row, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column]
        elif token.string.strip():
            # Strings alone go over several lines; layout does too, and is empty.
            in_strings |= set(range(row, last_row + 1)) if row < last_row else set()
    kept = [
        line if row in in_strings else line.rstrip()
        for row, line in enumerate(lines, start=1)
        if row in in_strings or line.strip()
    ]
    return "\n".join(kept)
