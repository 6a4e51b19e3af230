"""Trainings that take turns: a process each, one at work at a time, so that A B A B can be timed.

The process trains with a `Trainer` that has a `TakesTurns`, which waits between optimiser steps
until it is told how many to take; the parent holds a `Worker` for each process and calls `round`.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from decant.run_record import peak_rss_bytes

_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one side did in one round.

    Attributes:
        seconds: from the first step to the last, everything in between included.
        events: events in the prompts that were trained on.
        tokens: tokens of those prompts, without padding.
        peak_bytes: the most memory the process has held so far.
    """

    seconds: float
    events: int
    tokens: int
    peak_bytes: int


def own_stdout() -> IO[str]:
    """The process's stdout for our answers alone; what libraries print goes to stderr from now."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


class TakesTurns(TrainerCallback):
    """Lets a `Trainer` take as many optimiser steps as it is told to, and reports what they took.

    Args:
        count: events and tokens of a micro-batch as `Trainer.training_step` gets it.
        answers: where a line of JSON goes after each round; see `own_stdout`.
        periodic: work that a training does every `period_steps` and a short round would see all of
            or nothing of: it is timed once a round, and each step is charged its share. None for
            a training that has none.
        period_steps: see `periodic`.
    """

    def __init__(
        self,
        count: Callable[[dict[str, Tensor]], tuple[int, int]],
        *,
        answers: IO[str],
        periodic: Callable[[], None] | None = None,
        period_steps: int = 1,
    ) -> None:
        self.count = count
        self.periodic = periodic
        self.period_steps = period_steps
        self.uncounted_seconds = 0.0
        self._steps_left = self._steps = self._events = self._tokens = 0
        self._since: float | None = None
        self._answers = answers

    def watch(self) -> None:
        """Count what every `Trainer` of this process trains on."""
        original = Trainer.training_step

        def training_step(trainer: Any, model: Any, inputs: Any, *more: Any) -> Any:
            events, tokens = self.count(inputs)
            self._events += events
            self._tokens += tokens
            return original(trainer, model, inputs, *more)

        Trainer.training_step = training_step  # type: ignore[method-assign, assignment]

    def aside(self, work: Callable[[], None]) -> Callable[[], None]:
        """The same work, with its time left out of the round."""

        def timed() -> None:
            start = time.perf_counter()
            work()
            self.uncounted_seconds += time.perf_counter() - start

        return timed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Wait here when the round is over."""
        if self._steps_left == 0:
            if self._since is not None:
                self._report(time.perf_counter() - self._since)
            self._await()
        self._steps_left -= 1

    def _report(self, seconds: float) -> None:
        seconds -= self.uncounted_seconds
        if self.periodic is not None:
            start = time.perf_counter()
            self.periodic()
            seconds += (time.perf_counter() - start) * self._steps / self.period_steps
        done = Round(
            seconds=seconds,
            events=self._events,
            tokens=self._tokens,
            peak_bytes=_own_peak_bytes(),
        )
        print(json.dumps(asdict(done)), file=self._answers, flush=True)

    def _await(self) -> None:
        command = sys.stdin.readline()
        if not command:
            raise SystemExit(0)  # The parent has closed the pipe: it has seen enough.
        self._steps_left = self._steps = int(command)
        self._events = self._tokens = 0
        self.uncounted_seconds = 0.0
        self._since = time.perf_counter()


def _own_peak_bytes() -> int:
    # Linux's ru_maxrss begins at what the parent held when it forked; VmHWM is this program's own.
    try:
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except (OSError, ValueError):
        return peak_rss_bytes()
    return int(peak) * 1024


class WorkerError(RuntimeError):
    """A training process ended before its time; the message holds the end of what it said."""


class Worker:
    """One side: a process that trains when it is its turn.

    Args:
        command: of the process, whose `Trainer` has a `TakesTurns`.
        log: file for what it prints.
    """

    def __init__(self, command: Sequence[str | Path], *, log: Path) -> None:
        self._log = log
        environment = {
            **os.environ,
            "PYTHONPATH": str(_REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with log.open("w") as said:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment,
            )

    def round(self, steps: int) -> Round:
        """Let it take `steps` optimiser steps, and wait for them.

        Raises:
            WorkerError: the process ended instead.
        """
        try:
            print(steps, file=self._pipe(self._process.stdin), flush=True)
            answer = self._pipe(self._process.stdout).readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            said = "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])
            raise WorkerError(f"{self._log.stem} ended with {self._process.returncode}:\n{said}")
        return Round(**json.loads(answer))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            self._pipe(pipe).close()

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
