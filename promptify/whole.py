"""Files and folders that are there whole or not at all.

    write_whole(folder / "manifest.json", text)
    with whole_file(folder / "items.parquet") as partial:
        pq.write_table(table, partial)
    with whole_folder(folder) as partial:
        ...
    remove_whole(folder)

What is being written stands beside its place, under a hidden name with `partial` in it, and is
renamed when it is whole and on the disk: a name may reach the disk before what it names, and a
power cut between the two would leave an empty file there. Where writing fails nothing is left, and
what stood there still does.

Who may read it is what the umask says, as of any new file, even where what wrote it made it for its
owner alone, as `safetensors` does.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader, crash or full disk ever shows half of it.

    Args:
        path: the file; its folder must exist. A file already there is replaced.
        content: text (written as UTF-8, newlines as given) or bytes.

    Raises:
        OSError: the folder is missing, not writable or full; what stood at `path` still does.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file, which takes its place when the block ends.

    Args:
        path: the file; its folder must exist. A file already there is replaced.

    Yields:
        Another path of the same folder. If the block raises, what it wrote is removed.
    """
    partial = _beside(path)
    try:
        yield partial
        put(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes its place when the block ends.

    Args:
        folder: is made, with those above it. One that is there must be empty. Of a link it is what
            the link leads to.

    Yields:
        An empty folder beside it. If the block raises, it is removed with what it holds.

    Raises:
        OSError: there is something in the folder.
    """
    folder = folder.resolve()
    partial = _beside(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put(partial: Path, path: Path, *, aside: Path | None = None) -> None:
    """Give a file or folder its name, once all of it is on the disk.

    Args:
        partial: what is whole, on the drive of `path`.
        path: its name from now on. A file there is replaced, a folder must be empty, or steps
            aside.
        aside: the name of a folder that was there, for as long as it takes to rename the new one:
            all that is slow is done before. The caller's to delete, or to put back.

    Raises:
        OSError: the disk is full or fails, or there is something in the folder.
    """
    sync(partial)
    if aside is not None and path.exists():
        os.replace(path, aside)
    os.replace(partial, path)
    _sync_folder(path.parent)


def remove_whole(folder: Path) -> None:
    """Remove a folder at once: whenever this is killed, nobody finds half of it.

    What a kill left of it under a hidden name goes with it, or by `sweep`.

    Args:
        folder: is there; of a link to one, the link alone is removed.
    """
    folder.rename(folder.with_name(f".{folder.name}.removed-{secrets.token_hex(4)}"))
    sweep(folder.parent, folder.name)


def sweep(parent: Path, pattern: str) -> None:
    """Delete what is left of folders that were removed.

    Args:
        parent: where they were.
        pattern: of their names.
    """
    for left in parent.glob(f".{pattern}.removed-*"):
        delete(left)


def delete(folder: Path) -> None:
    """Delete a folder that nobody looks into any more, or what can be deleted of it.

    Of a link to one, which may lie on another disk, the link alone.
    """
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file, or a folder with all that lies in it, on the disk, not on its way there.

    Files for their owner alone are opened to those to whom the umask opens any.

    Raises:
        OSError: the disk is full or fails.
    """
    for one in (*path.rglob("*"), path):
        if one.is_dir():
            _sync_folder(one)
        elif one.is_file():
            _let_others_read(one)
            # Windows syncs what is open for writing alone.
            _fsync(one, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def _let_others_read(path: Path) -> None:
    if stat.S_IMODE(path.lstat().st_mode) != 0o600:
        return
    # A new file tells the umask. Asking for it would set it, for other threads too.
    new = _beside(path)
    try:
        new.touch()
        path.chmod(stat.S_IMODE(new.stat().st_mode))
    finally:
        new.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Windows cannot, and some network drives will not; what the files hold is safe without.
    with suppress(OSError):
        _fsync(folder, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    # Two threads, or two processes, may write the same file: the last one to end it wins.
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
