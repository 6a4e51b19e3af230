"""Quality, time and memory against the length of a person's history, by what of it is told.

    python -m benchmarks.context_length RUN [RUN …] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.context_length --smoke

The same people and targets at every length: those whose history holds the longest one that is
asked, everybody on a second line. Lengths are events of the history, or tokens of the whole
prompt; what is told of a history is chosen by a policy of `benchmarks.histories`. Seen items are
filtered by the whole history, so that a cut says nothing about warmth.

Up to the prompt that the run trained on, lengths are *trained*. Beyond, they are *extrapolated*,
with positions as they are (`plain`) and as `Foundation.set_prompt_budget` has them (`scaled`): by
YaRN, or as they are where every layer attends within a window; the split of a row says which.
`ndcg@10_vs_trained` is what a longer one has more than the longest trained, target by target. The
peak is where quality is best, with the interval of its place over people (drawn once for all
lengths). Its height is chosen on the targets that it is read off, so it flatters itself a little.

`p50_ms` and `p95_ms` are of reading one prompt, lengths in turn on the same people (for `relevant`
with the reading that it chooses by), longer ones than the trained with scaled positions;
`prefix_bytes` is what its keys and values hold. Cut short, the same call goes on with what is
missing.

Of several runs, which differ by their seed alone, come rows of each and then of their mean, AUC and
costs left out; its intervals are over people, each drawn with all that was asked of them under
every seed.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.arms import kept_arrays
from benchmarks.histories import NUM_RETRIEVED, POLICIES, Histories
from benchmarks.length_rows import Answered, AtLengths, Length, LengthRows, joined
from benchmarks.measured import Measured, work_of
from benchmarks.seeds import each_run, mean_of
from benchmarks.studied import named_run, run_parser
from benchmarks.subjects import SMOKE, Subject, finished, trained
from decant.layout import RunLayout
from decant.measure import Asked
from decant.recipes import recipe_of
from decant.run_data import sample_targets
from decant.run_record import hardware
from foundation.batches import take_rows
from foundation.checkpoint import weights_hash
from foundation.evaluation import (
    Interval,
    bootstrap_interval,
)
from foundation.predictions import predict_targets

Float64 = NDArray[np.float64]

EVENTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TOKENS = tuple(part << power for power in range(5, 12) for part in (2, 3))
"""Prompts that are asked, 64 to 6,144 tokens, beside the length that the run trained on."""
LEAST_COHORT = 200
"""People who must have a history of the longest length that is asked, unless fewer will do."""
NUM_TIMED = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What the model said at one length.

    Attributes:
        rank: int64 [m], of each ranking target.
        probability: float64 [e], of a good action, as served.
        read_tokens: int64 [n], positions of each prompt that was read.
    """

    rank: NDArray[np.int64]
    probability: Float64
    read_tokens: NDArray[np.int64]


class Curves:
    """Asks a model the same requests at every length and writes the rows.

    Args:
        subject: the model and its data.
        measured: where rows go.
        work: keeps what was said at each length.
        name: of the model in its rows.
        least: people who must have a history of the longest length, or the fourth part of all
            where that is fewer.

    Attributes:
        rows: what the rows have in common.
        answered: what was said at each length, by the unit of the lengths and who was asked.
    """

    def __init__(
        self,
        subject: Subject,
        measured: Measured,
        *,
        work: Path,
        name: str,
        least: int = LEAST_COHORT,
    ) -> None:
        self.model, self.book = subject.foundation, subject.book
        self.targets = subject.split.test
        self.measured = measured
        self.work = work
        self.answered: AtLengths = {}
        self.asked = Asked(self.book, self.targets)
        self.histories = Histories(self.model, self.book, self.targets)
        self.trained_tokens = self.book.prompter.config.max_prompt_tokens
        self.rows = LengthRows(
            measured=measured,
            task=subject.task,
            model=name,
            params=self.model.num_parameters(),
            split=subject.split.name.replace("_", "-"),
            trained_tokens=self.trained_tokens,
            reserved_tokens=self.book.prompter.reserved_tokens,
            seed=subject.seed,
        )
        held = self.histories.num_events
        reserved = self.book.prompter.reserved_tokens
        filled = self.histories.num_tokens + reserved
        # Of a slate that nobody liked anything of there is nothing to rank.
        ranked = np.unique(self.asked.wanted.request)
        least = min(least, max(1, len(ranked) // 4))
        self.events = [n for n in EVENTS if (held[ranked] >= n).sum() >= least]
        # Shorter than the longest instruction and profile, a prompt tells no history at all.
        room = int(self.histories.alone_tokens.max()) + reserved
        asked = sorted({*TOKENS, self.trained_tokens})
        self.tokens = [n for n in asked if n > room and (filled[ranked] >= n).sum() >= least]
        self.cohorts = {
            "events": held >= self.events[-1],
        }
        if self.tokens:
            self.cohorts["tokens"] = filled >= self.tokens[-1]

    def lengths(self) -> list[Length]:
        """Every point, the shortest first."""
        found = []
        for policy in POLICIES:
            found += [Length(policy=policy, events=n) for n in self.events]
            for n in self.tokens:
                found.append(Length(policy=policy, tokens=n))
                if n > self.trained_tokens:
                    found.append(Length(policy=policy, tokens=n, scaled=True))
        return found

    def measure(self) -> None:
        """Ask at every length, find the peaks, time all lengths in turn."""
        lengths = self.lengths()
        said = {length: self._said(length) for length in tqdm(lengths, desc="lengths")}
        for unit, cohort in self.cohorts.items():
            mine = [one for one in lengths if getattr(one, unit) is not None]
            for who, here in ((self._who(unit), cohort), ("all users", np.ones_like(cohort))):
                asked = Asked(self.book, self.targets[here])
                parts = {one: self._part(said[one], here) for one in mine}
                self.answered[unit, who] = {
                    one: Answered(
                        answers=asked.answers(part.rank, part.probability),
                        read_tokens=part.read_tokens,
                    )
                    for one, part in parts.items()
                }
        self.rows.write(self.answered)
        self._cost_rows(lengths, said)

    def _who(self, unit: str) -> str:
        if unit == "events":
            return f"{self.events[-1]} events or more"
        return f"histories that fill {self.tokens[-1]} tokens"

    def _part(self, said: Said, here: NDArray[np.bool_]) -> Said:
        """What was said of some of the requests."""
        request = np.repeat(
            np.arange(len(here)), self.targets.last_event - self.targets.first_event
        )
        return Said(
            rank=said.rank[here[self.asked.wanted.request]],
            probability=said.probability[here[request]],
            read_tokens=said.read_tokens[here],
        )

    def _said(self, length: Length) -> Said:
        path = self.work / f"{self.measured.config_hash}-{length.name}.npz"
        asked = partial(self._asked, length)
        return Said(**kept_arrays(path, asked, asking="benchmarks.context_length"))

    def _asked(self, length: Length, _: Path) -> dict[str, NDArray[Any]]:
        rows = self.histories.prefixes(length.policy, events=length.events, tokens=length.tokens)
        with self._positions(length.tokens if length.scaled else None):
            found = predict_targets(self.model, self.book, self.targets, rows=rows)
        answers = self.asked.of(found, self.model.calibration(0))
        assert answers.action_probability is not None
        return {
            "rank": found.rank,
            "probability": answers.action_probability,
            "read_tokens": rows.lengths,
        }

    @contextmanager
    def _positions(self, tokens: int | None) -> Iterator[None]:
        """Positions set to prompts of some length, and back again; as they are where None."""
        if tokens is None:
            yield
            return
        self.model.set_prompt_budget(tokens)
        try:
            yield
        finally:
            self.model.set_prompt_budget(self.trained_tokens)

    def _cost_rows(self, lengths: Sequence[Length], said: dict[Length, Said]) -> None:
        """Milliseconds of a reading and bytes of what it leaves, lengths in turn."""
        # What is read beyond the trained length costs the same wherever its positions are.
        trained = self.trained_tokens
        lengths = [one for one in lengths if one.scaled or (one.tokens or 0) <= trained]
        last = lengths[-1]
        if self.measured.has(
            metric="prefix_bytes",
            model=f"{self.rows.model}, {last.policy}",
            context_tokens=last.tokens or self.trained_tokens,
            history_events=last.events,
        ):
            return
        cohort = self.targets[self.cohorts["tokens" if self.tokens else "events"]]
        timed = Histories(self.model, self.book, sample_targets(cohort, NUM_TIMED))
        prompts = {
            one: timed.prefixes(one.policy, events=one.events, tokens=one.tokens) for one in lengths
        }
        took: dict[Length, list[float]] = {one: [] for one in lengths}
        held: dict[Length, list[float]] = {one: [] for one in lengths}
        for request in tqdm(range(-1, len(timed.targets)), desc="timed"):
            for one, rows in prompts.items():
                prefix = take_rows(rows, np.array([max(0, request)]))
                # The model refuses to serve what is longer than its positions.
                room = len(prefix.ids) + self.book.prompter.reserved_tokens
                with self._positions(room if room > self.trained_tokens else None):
                    began = time.perf_counter()
                    if one.policy == "relevant":
                        timed.read_for_relevance(max(0, request))
                    reading = self.model.read_prefix(prefix)
                    seconds = time.perf_counter() - began
                if request >= 0:  # The first round warms up.
                    took[one].append(1000 * seconds)
                    held[one].append(reading.num_bytes)
        user = np.arange(len(timed.targets))
        for one in lengths:
            split = self.rows.split_of(self.rows.kind(one, said[one].read_tokens), "timed")
            for metric, percent in (("p50_ms", 50), ("p95_ms", 95)):
                value = float(np.percentile(took[one], percent))
                interval = Interval(value=value, low=-np.inf, high=np.inf)
                self.rows.add(interval, one, split=split, metric=metric, n=len(user))
            interval = bootstrap_interval(np.array(held[one]), user)
            self.rows.add(interval, one, split=split, metric="prefix_bytes", n=len(user))


def table(measured: Measured) -> str:
    """NDCG@10 by policy and length, then the peaks."""
    lines = [f"{'':52}{'length':>10}{'NDCG@10':>9}{'95 % interval':>17}{'read':>7}{'p50 ms':>8}"]
    rows = measured.rows
    cost = {
        (row.model, row.history_events, row.context_tokens, row.split.rpartition("timed")[2]): row
        for row in rows
        if row.metric == "p50_ms"
    }
    read = {
        (row.model, row.split, row.history_events, row.context_tokens): row.value
        for row in rows
        if row.metric == "read_tokens"
    }
    for row in rows:
        if row.metric != "ndcg@10":
            continue
        place = (row.history_events, row.context_tokens)
        unit = f"{place[1]} t" if place[0] is None else f"{place[0]} e"
        kind = ", " + row.split.split(", ", 2)[2]
        ms = cost.get((row.model, *place, kind))
        ends = "" if row.ci_low is None else f"{row.ci_low:.4f} to {row.ci_high:.4f}"
        who = row.split.partition(", ")[2]
        lines.append(
            f"{row.model.partition(', ')[2]:18}{who[:33]:34}{unit:>10}{row.value:9.4f}{ends:>17}"
            f"{read[(row.model, row.split, *place)]:7.0f}" + (f"{ms.value:8.1f}" if ms else "")
        )
    for row in rows:
        if row.metric.startswith("peak_"):
            ends = "" if row.ci_low is None else f" [{row.ci_low:g}, {row.ci_high:g}]"
            lines.append(f"{row.metric} of {row.model}, {row.split}: {row.value:g}{ends}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__, takes_several=True)
    parser.add_argument("--model", default="foundation", help="of the run; default foundation")
    parser.add_argument(
        "--people",
        type=int,
        default=LEAST_COHORT,
        help="who must have a history of the longest length; fewer reach further, less surely",
    )
    options = parser.parse_args(arguments)
    seen: list[Curves] = []
    try:
        with work_of(options) as work, tempfile.TemporaryDirectory() as scratch:
            for one in each_run(options):
                if options.smoke:
                    subject = trained("slot", SMOKE, seed=0, scratch=Path(scratch))
                    weights = "smoke"
                else:
                    folder = named_run(one)
                    subject = finished(folder, model=options.model)
                    weights = weights_hash(RunLayout(folder).model(options.model))
                settings = {
                    "task": subject.task,
                    "model": weights,
                    "events": EVENTS,
                    "tokens": TOKENS,
                    "retrieved": NUM_RETRIEVED,
                    "people": options.people,
                }
                measured = Measured("context_length", settings, out=options.out)
                curves = Curves(
                    subject, measured, work=work, name=options.model, least=options.people
                )
                curves.measure()
                seen.append(curves)
            if len(seen) > 1:
                alike = {**settings, "model": options.model}
                measured = mean_of("context_length", recipe_of(folder), alike, out=options.out)
                mean = replace(seen[0].rows, measured=measured, seed="mean")
                mean.write(joined([one.answered for one in seen]))
    except (ValueError, OSError) as error:
        print(f"benchmarks.context_length: error: {error}", file=sys.stderr)
        return 1
    of = f", mean of {len(seen)} seeds" if len(seen) > 1 else ""
    print(f"{subject.task}{of}. {hardware()}\n{table(measured)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
