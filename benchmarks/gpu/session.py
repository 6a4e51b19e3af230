"""One call on a machine that may be taken away at any moment: clock, rows, and what went wrong."""

import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import Measured
from foundation.evaluation import Interval
from foundation.utilisation import held_memory_bytes

# A measurement is not begun with less than this share of its budget left on the clock.
_LEAST_SHARE = 0.4


class OutOfTimeError(TimeoutError):
    """A measurement's budget is used up."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop what runs inside when the time is over; main thread only. May stand inside another.

    A kernel or a library call in progress is waited for.

    Raises:
        OutOfTimeError: it was not done in time.
    """

    def ring(*_: object) -> None:
        raise OutOfTimeError(f"not done within {seconds:.0f} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    outer_seconds, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer_seconds:
            left = outer_seconds - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left))


class Session:
    """Rows and lines of one part, each on disk the moment it is known.

    `gpu-partN.csv` holds the rows, `errors.txt` a traceback for each measurement that failed, and
    `log.txt` a line for each that was begun, done, skipped or failed. A measurement that the log
    calls done is not made again by a second call with the same settings.

    Args:
        part: 1, 2, 3 or 4.
        out: the folder.
        settings: what the numbers depend on, JSON values only.
        seconds: of the whole part; `begin` gives it others, from then on.
        device: that is measured.
        commit: of the code, where it is measured away from its repository.
        slack: every measurement's budget times this; a CPU that others use too needs more than one.
        only: measurements whose names say one of these; all when empty.
        seed: of what is trained, in its rows.
    """

    def __init__(
        self,
        *,
        part: int,
        out: Path,
        settings: Mapping[str, Any],
        seconds: float = 540.0,
        device: torch.device,
        commit: str | None = None,
        slack: float = 1.0,
        only: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.part, self.out, self.device, self.slack = part, out, device, slack
        self.only, self.seed = only, seed
        out.mkdir(parents=True, exist_ok=True)
        self.measured = Measured(
            "gpu",
            {"part": part, **settings},
            out=out / f"gpu-part{part}.csv",
            commit=commit,
        )
        self.failed: list[str] = []
        self._ends = time.monotonic() + seconds
        self._log = out / "log.txt"

    def begin(self, seconds: float) -> None:
        """Start the part's clock."""
        self._ends = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Until the part must be over."""
        return self._ends - time.monotonic()

    def say(self, line: str) -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def attempt(self, name: str, measure: Callable[[], object], *, seconds: float) -> bool:
        """Make a measurement within its budget; what it raises is written down.

        Args:
            name: in the log.
            measure: adds rows as it goes.
            seconds: its budget; what is left of the part where that is less.

        Returns:
            Whether it was done, now or by an earlier call.
        """
        if self.only and not any(word in name for word in self.only):
            return False
        done = f"done     part {self.part}, {name} [{self.measured.config_hash}]"
        if self._log.exists() and any(
            line.startswith(done) for line in self._log.read_text("utf-8").splitlines()
        ):
            return True
        seconds *= self.slack
        budget = min(seconds, self.seconds_left)
        if budget < _LEAST_SHARE * seconds:
            self.say(f"skipped  part {self.part}, {name}: {max(0, budget):.0f} s are left")
            return False
        self.say(f"begin    part {self.part}, {name}, {budget:.0f} s at most")
        began = time.monotonic()
        try:
            with within(budget):
                measure()
        except Exception as error:  # The next measurement must have its turn, whatever this was.
            self.failed.append(name)
            with (self.out / "errors.txt").open("a", encoding="utf-8") as file:
                file.write(f"part {self.part}, {name}\n{traceback.format_exc()}\n")
            said = " ".join(str(error).split())[:200]
            self.say(f"failed   part {self.part}, {name}: {type(error).__name__}: {said}")
            return False
        finally:
            sys.stdout.flush()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.say(f"{done}, {time.monotonic() - began:.0f} s")
        return True

    def forget_peak(self) -> None:
        """Count the peak of allocated memory from here on (on a GPU; a process's stays)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def add(
        self, value: float | Interval | tuple[float, tuple[float, float]], **cells: Any
    ) -> None:
        """Write a row.

        Args:
            value: alone, or with its interval.
            cells: of `ResultRow`; `task`, `split`, `model` and `metric` must be given.
        """
        if isinstance(value, tuple):
            value = Interval(value=value[0], low=value[1][0], high=value[1][1])
        elif not isinstance(value, Interval):
            value = Interval(value=float(value), low=float(value), high=float(value))
        if not math.isfinite(value.value):
            self.say(f"         no {cells['metric']} of {cells['model']}: it is {value.value}")
            return
        peak = held_memory_bytes(self.device.type)
        self.measured.add(seed=self.seed, interval=value, **{"peak_bytes": peak, **cells})
