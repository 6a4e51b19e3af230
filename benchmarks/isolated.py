"""Work in a process of its own: its memory is nobody else's, and a crash of it is a result."""

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ProcessDied(RuntimeError):
    """The process was killed, or crashed where Python cannot catch it."""


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a module's function returns when a fresh process calls it.

    Raises:
        ProcessDied: there was no answer.
        Exception: what the function raised.
    """
    # Spawned: a fork would carry this process's memory, and FAISS's threads not at all.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise ProcessDied(
                f"the process that was to {work.__name__.replace('_', ' ')} died; is the machine "
                "out of memory?"
            ) from error


def from_status(name: str) -> int:
    """A line of /proc/self/status, in bytes; Linux only.

    Raises:
        OSError: the system has no such file.
    """
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
