"""Rows of a long benchmark: each is written the moment it is known, and not measured twice."""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from decant.results import ResultRow, read_csv, write_csv, writing
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation.evaluation import Interval

# What differs from one measurement of the same to the next.
_NOT_KEYS = {"n", "seconds", "peak_bytes"}


@contextmanager
def work_of(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of what a benchmark keeps between calls.

    Args:
        options: with `work`, the folder, or None; and `out`, the file of rows that it lies beside
            then. Without either it is gone when the call ends.
    """
    with tempfile.TemporaryDirectory() as temporary:
        beside = options.out.with_suffix(".work") if options.out else Path(temporary)
        yield options.work or beside


class Measured:
    """The rows of one call, and those that an earlier call left in the same file.

    Args:
        benchmark: the name in the first column.
        settings: what the numbers depend on, JSON values only; rows of other settings in the file
            are kept and not looked at.
        out: the file; None to keep rows in memory alone.
        commit: of the code; asked of the repository when left out.
        threads: that were computed with, to be said with the hardware; left out where torch's
            settings say it.

    Raises:
        ValueError: the file is not one of results.
    """

    def __init__(
        self,
        benchmark: str,
        settings: Mapping[str, Any],
        *,
        out: Path | None,
        commit: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.benchmark = benchmark
        self.config_hash = json_hash(settings)
        self.out = out
        self._began = time.monotonic()
        # Asked once: a commit made meanwhile is not what was measured.
        self._commit, self._hardware = commit or git_commit(), hardware()
        if threads is not None:
            self._hardware += f", {threads} threads"
        self.rows: list[ResultRow] = []
        self._new: list[ResultRow] = []
        self._gone: list[ResultRow] = []
        self._waits = False
        if out is not None and out.exists():
            self.rows = [row for row in read_csv(out) if row.config_hash == self.config_hash]

    def has(self, **cells: Any) -> bool:
        """Whether there is a row with these cells."""
        return any(_has_cells(row, cells) for row in self.rows)

    def add(
        self,
        *,
        seed: int | Literal["mean"],
        interval: Interval,
        **cells: Any,
    ) -> None:
        """Write a row in the place of one of the same that says something else.

        Args:
            seed: of the run, or ``"mean"``.
            interval: the value and its ends; ends that are infinite or the value itself are left
                out.
            cells: the others of `ResultRow`, of which `task`, `split`, `model`, `metric` must be
                given.

        Raises:
            ValueError: the mean that is there is of more.
        """
        key = {name: value for name, value in cells.items() if name not in _NOT_KEYS}
        known = [row for row in self.rows if _has_cells(row, {"seed": seed, **key})]
        is_known = np.isfinite([interval.low, interval.high]).all() and interval.low < interval.high
        told = (interval.value, *((interval.low, interval.high) if is_known else (None, None)))
        same = (*told, cells.get("n"))
        if any((row.value, row.ci_low, row.ci_high, row.n) == same for row in known):
            return
        most = max((row.n or 0 for row in known), default=0)
        if seed == "mean" and cells.get("n") is not None and cells["n"] < most:
            raise ValueError(
                f"{self.out} has a mean over {most} targets where this one is over {cells['n']}: "
                "give all the runs that it was made of, or another --out."
            )
        row = ResultRow(
            benchmark=self.benchmark,
            value=told[0],
            ci_low=told[1],
            ci_high=told[2],
            hardware=self._hardware,
            commit=self._commit,
            config_hash=self.config_hash,
            seed=seed,
            timestamp=utc_now(),
            **{
                "seconds": round(time.monotonic() - self._began, 1),
                "peak_bytes": peak_rss_bytes(),
                **cells,
            },
        )
        self._replace(known, [row])

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it rows wait to be written together at its end, as when all are known together.

        The file is written anew for every row otherwise; among hundreds that shows.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            self._write()

    def drop(self, **cells: Any) -> None:
        """Take away the rows with these cells, which no longer say what is so."""
        self._replace([row for row in self.rows if _has_cells(row, cells)], [])

    def _replace(self, gone: list[ResultRow], new: list[ResultRow]) -> None:
        self.rows = [row for row in self.rows if row not in gone] + new
        self._new = [row for row in self._new if row not in gone] + new
        self._gone += gone
        if not self._waits:
            self._write()

    def _write(self) -> None:
        """Put what has changed into the file, which another call may have added to."""
        if self.out is not None and (self._new or self._gone):
            with writing(self.out):
                there = read_csv(self.out) if self.out.exists() else []
                kept = [row for row in there if row not in self._gone]
                write_csv(self.out, [*kept, *self._new])
        self._new, self._gone = [], []

    def table(self) -> str:
        """The rows as text, in the order in which they were measured."""
        lines = [
            f"{'model':34}{'task and split':22}  {'metric':28}{'value':>8}"
            f"{'95 % interval':>19}{'n':>7}{'seed':>6}"
        ]
        for row in self.rows:
            ends = "" if row.ci_low is None else f"{row.ci_low:.4f} to {row.ci_high:.4f}"
            where = f"{row.task}, {row.split}"
            lines.append(
                f"{row.model:34}{where:22}  {row.metric:28}{row.value:8.4f}"
                f"{ends:>19}{row.n or '':>7}{row.seed:>6}"
            )
        return "\n".join(lines)


def _has_cells(row: ResultRow, cells: Mapping[str, Any]) -> bool:
    return all(getattr(row, name) == value for name, value in cells.items())


def told_once(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The row of the mean where several seeds were measured, else that of the smallest seed."""
    kept: dict[tuple[object, ...], ResultRow] = {}
    for row in rows:
        key = (
            row.task,
            row.split,
            row.model,
            row.context_tokens,
            row.history_events,
            row.metric,
        )
        if key not in kept or _tells_more(row, kept[key]):
            kept[key] = row
    return list(kept.values())


def _tells_more(row: ResultRow, other: ResultRow) -> bool:
    """Whether a row is of the mean, or of a smaller seed than another that is not."""
    if row.seed == "mean" or other.seed == "mean":
        return row.seed == "mean"
    return int(row.seed) < int(other.seed)


def add_means(measured: Measured, *, drawn_anew: bool) -> None:
    """A row for each number that several seeds have, with an interval over what theirs are over.

    Nothing is said of seeds that were not drawn; three are too few for that.

    Args:
        measured: holds the rows of the seeds, and takes those of their means.
        drawn_anew: whether each seed has people of its own (or whatever else its intervals are
            over). What chance does to one seed it does not do to another then, and the mean
            reaches as far as the root of the sum of squares, over the number of seeds. Where seeds
            ask of the same, or of some of the same, it may do the same to all of them, and the
            mean reaches as far as they do on average: never too near, too far as far as they
            differ.
    """
    seeded = [row for row in measured.rows if row.seed != "mean"]
    keys = dict.fromkeys((row.task, row.split, row.model, row.metric) for row in seeded)
    for key in keys:
        task, split, model, metric = key
        mine = [row for row in seeded if (row.task, row.split, row.model, row.metric) == key]
        if len(mine) > 1:
            mean = float(np.mean([row.value for row in mine]))
            low, high = (
                float(np.sqrt(np.sum(np.square(ends))) if drawn_anew else np.sum(ends)) / len(mine)
                for ends in zip(*(_reach(row) for row in mine), strict=True)
            )
            measured.add(
                task=task,
                split=split,
                model=model,
                metric=metric,
                interval=Interval(value=mean, low=mean - low, high=mean + high),
                n=sum(row.n or 0 for row in mine),
                seed="mean",
            )


def _reach(row: ResultRow) -> tuple[float, float]:
    """How far a row's interval reaches down and up; not a number where it has none."""
    if row.ci_low is None or row.ci_high is None:
        return np.nan, np.nan
    return row.value - row.ci_low, row.ci_high - row.value
