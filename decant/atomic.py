"""Files that are there whole or not at all."""

import os
import tempfile
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
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _umask() -> int:
    # mkstemp makes files that only their owner reads; results are meant to be read.
    mask = os.umask(0)
    os.umask(mask)
    return mask
