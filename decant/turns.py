"""Whose turn it is: no more requests at once than the machine has room for, in order of arrival.

turns = Turns()
with turns.turn():
    answer()
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from decant.run_record import num_cores


def room() -> int:
    """How many requests a machine computes at once: two, or as many as have cores of their own.

    More only contend: for the cores, which PyTorch's threads of one request fill, and for the
    interpreter, which most of a small model's request is spent in. Two, so that one is in the
    interpreter while the other computes.
    """
    return max(2, num_cores() // torch.get_num_threads())


class Turns:
    """Places that are given in the order in which they are asked for.

    A semaphore would give a free place to whoever asks at that moment, and those who wait might
    wait for long.

    They are of the process that made them. A fork takes no threads along: places of the others'
    requests would stay taken, and a sum by PyTorch or FAISS would wait for workers that are not
    there.

    Args:
        places: how many there are; asked for each request, since threads may be set at any time.
    """

    def __init__(self, places: Callable[[], int] = room) -> None:
        self._places = places
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._inside: set[threading.Event] = set()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a place, and keep it to the end of the block.

        Raises:
            RuntimeError: this process is a fork of the one that made the places.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this recommender was loaded by process {self._process}, of which this one "
                f"({os.getpid()}) is a fork: threads and locks do not outlive a fork, and an "
                "answer might never come. Call Recommender.load in every worker, after the fork."
            )
        mine = threading.Event()
        # Ctrl-C may come between any two steps: whoever leaves next does what was left half done.
        try:
            with self._lock:
                self._waiting.append(mine)
                self._admit()
            mine.wait()
            yield
        finally:
            try:
                self._leave(mine)
            except BaseException:
                self._leave(mine)
                raise

    def _leave(self, mine: threading.Event) -> None:
        with self._lock:
            self._inside.discard(mine)
            if mine in self._waiting:
                self._waiting.remove(mine)
            self._admit()

    def _admit(self) -> None:
        # Others than before, where threads were set meanwhile.
        while self._waiting and len(self._inside) < self._places():
            first = self._waiting[0]
            first.set()
            self._inside.add(first)
            self._waiting.popleft()
