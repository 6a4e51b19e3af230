"""Whose turn it is: no more requests at once than the machine has room for, in order of arrival.

turns = Turns()
with turns.turn():
    answer()
"""

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

    Args:
        places: how many there are; asked for each request, since threads may be set at any time.
    """

    def __init__(self, places: Callable[[], int] = room) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: deque[threading.Lock] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a place, and keep it to the end of the block."""
        with self._lock:
            mine = None
            if not self._waiting and self._taken < self._places():
                self._taken += 1
            else:
                mine = threading.Lock()
                mine.acquire()
                self._waiting.append(mine)
        if mine is not None:
            try:
                mine.acquire()
            except BaseException:  # Ctrl-C while it waited.
                self._leave(mine)
                raise
        try:
            yield
        finally:
            self._give_back()

    def _leave(self, mine: threading.Lock) -> None:
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return
        self._give_back()  # Its place was given meanwhile.

    def _give_back(self) -> None:
        with self._lock:
            self._taken -= 1
            # Others than before, where threads were set meanwhile.
            while self._waiting and self._taken < self._places():
                self._taken += 1
                self._waiting.popleft().release()
