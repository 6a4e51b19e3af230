"""Quality against the length of the history, by how training cut its windows and placed positions.

    python -m benchmarks.context --data ml-100k.zip [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.context --smoke

*Windows*: the same users and targets with the history cut to its last 0, 1, 2, 5, … events, for
models that differ in the share of training windows that were cut short, and for one that was only
ever asked behind long histories. Seen items are filtered by the whole history at every length.

*Positions*: models trained at one length of prompt and served at one, two and four times that
length, for users whose history fills twice the length. What counts is the difference to the trained
length, paired by user.

The choice between them is made on validation rows; test rows stand beside. Cut short, the same call
goes on: trainings from their last checkpoint, rows where they stopped.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured
from decant.measure import Asked, popularity_answers
from decant.recipes import Recipe, ml100k
from foundation import Foundation
from foundation.evaluation import Interval, bootstrap_interval, ndcg, paired_bootstrap
from foundation.predictions import predict_targets
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.rows import Rows
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.sources.movielens import ml_100k
from promptify.splits import Split, Targets, leave_last
from promptify.windows import Windows

Float64 = NDArray[np.float64]

# Three validation targets a user, so that a choice made on them is not a throw of dice.
NUM_HELD_OUT = 4
LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100)
"""Events that histories are cut to; the whole history comes after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is trained and asked.

    Attributes:
        source: the data.
        recipe: of every training in the first part.
        short_shares: `FitConfig.short_window_share` of its arms; the first is what the others are
            held against.
        long_events: events before a target of the arm that is only asked behind long histories.
        lengths: events that histories are cut to.
        cohort_events: least history of the fixed cohort.
        short_prompter: of the second part: a prompt half as long as the histories of its cohort.
        stretches: `FoundationConfig.position_stretch` of its arms.
    """

    source: str
    recipe: Recipe
    short_shares: tuple[float, ...]
    long_events: int
    lengths: tuple[int, ...]
    cohort_events: int
    short_prompter: PrompterConfig
    stretches: tuple[float, ...]


def full_settings() -> Settings:
    recipe = ml100k()
    return Settings(
        source="ml100k",
        recipe=replace(recipe, fit=replace(recipe.fit, evaluate_steps=0)),
        short_shares=(0.0, 0.25, 0.5),
        long_events=50,
        lengths=LENGTHS,
        cohort_events=100,
        short_prompter=PrompterConfig(
            max_prompt_tokens=128,
            max_item_tokens=16,
            max_profile_tokens=24,
            max_context_tokens=8,
            vocab_size=2048,
        ),
        stretches=(1.0, 2.0),
    )


def smoke_settings() -> Settings:
    recipe = ml100k()
    prompter = PrompterConfig(
        max_prompt_tokens=256, max_item_tokens=24, max_profile_tokens=32, vocab_size=800
    )
    fit = replace(recipe.fit, epochs=1, positions_per_batch=2048, reread_items=4, evaluate_steps=0)
    return Settings(
        source="job_market",
        recipe=replace(recipe, size="tiny", prompter=prompter, fit=fit),
        short_shares=(0.0, 0.5),
        long_events=5,
        lengths=(0, 2, 10),
        cohort_events=10,
        short_prompter=replace(prompter, max_prompt_tokens=152, max_context_tokens=16),
        stretches=(1.0, 2.0),
    )


class LateTargets(PromptBook):
    """Prompts over a log, in whose training rows only what has a long history is a target.

    Args:
        prompter: as of `PromptBook`.
        interactions: as of `PromptBook`.
        least_events: how long.
    """

    def __init__(self, *of_book: object, least_events: int) -> None:
        super().__init__(*of_book)  # type: ignore[arg-type]
        self._least_events = least_events

    def assemble(self, windows: Windows, *, seed: int, epoch: int) -> Rows:
        rows = super().assemble(windows, seed=seed, epoch=epoch)
        num_rows = len(rows)
        row_M = np.repeat(np.arange(num_rows), np.diff(rows.event_offsets))
        row_K = np.repeat(np.arange(num_rows), np.diff(rows.next_offsets))
        before_M = np.arange(len(row_M)) - rows.event_offsets[row_M]
        ends_M = rows.event_end + rows.row_offsets[row_M]
        at_K = rows.next_position + rows.row_offsets[row_K]
        before_K = np.searchsorted(ends_M, at_K, side="right") - rows.event_offsets[row_K]
        kept_K = before_K >= self._least_events
        return replace(
            rows,
            event_is_target=rows.event_is_target & (before_M >= self._least_events),
            next_offsets=np.append(0, np.cumsum(kept_K))[rows.next_offsets],
            next_position=rows.next_position[kept_K],
            next_item=rows.next_item[kept_K],
        )


class Study:
    """Data, split and prompts, and the models trained on them.

    Args:
        settings: what is trained and asked.
        data: the source's.
        prompter: what a prompt may hold.
        seed: of every training.
        work: folder for trainings, which go on where an earlier call stopped.
    """

    def __init__(
        self,
        settings: Settings,
        data: SourceData,
        prompter: PrompterConfig,
        *,
        seed: int,
        work: Path,
    ) -> None:
        log = data.interactions
        surface = data.tasks[0].name if len(data.tasks) > 1 else None
        self.recipe = settings.recipe.with_seed(seed)
        self.split: Split = leave_last(log, num=NUM_HELD_OUT, surface=surface)
        self.prompter = Prompter.fit(log, self.split.train, data.tasks, config=prompter)
        self.book = self.prompter.book(log)
        self.work = work

    @property
    def targets(self) -> dict[str, Targets]:
        """Validation and test targets, by what their rows call them."""
        return {"validation": self.split.valid, "test": self.split.test}

    def train(
        self, name: str, *, book: PromptBook | None = None, short_share: float = 0.0, stretch: float = 1.0
    ) -> Foundation:
        """A model; loaded where it is trained already."""
        recipe, book = self.recipe, book or self.book
        foundation = Foundation.create(
            self.prompter,
            book,
            self.split.train,
            size=recipe.size,
            config=replace(recipe.foundation, position_stretch=stretch),
            seed=recipe.seed,
        )
        fit = replace(recipe.fit, short_window_share=short_share)
        foundation.fit(book, self.split, config=fit, out=self.work / name)
        return foundation


def ndcg_of(
    foundation: Foundation, book: PromptBook, targets: Targets, num_events: int | None
) -> Float64:
    """NDCG@10 of each target after a history of so many events."""
    asked = targets if num_events is None else targets.cut(num_events)
    found = predict_targets(foundation, book, asked, full_history=targets)
    values: Float64 = ndcg(found.rank, 10)
    return values


def measure_lengths(settings: Settings, measured: Measured, study: Study, data: SourceData) -> None:
    """Arms that differ in their training windows, at every length of history."""
    seed = study.recipe.seed
    arms = {f"short windows {share:g}": share for share in settings.short_shares}
    first = next(iter(arms))
    name_late = f"behind {settings.long_events} events only"
    reference: dict[tuple[str, int | None], Float64] = {}
    for arm in (*arms, name_late, "popularity"):
        # The first arm is what the others are paired with: it is asked again where they are new.
        if arm != first and measured.has(model=arm, history_events=None, seed=seed):
            continue
        if arm == "popularity":
            model = None
        elif arm == name_late:
            late = LateTargets(
                study.prompter, data.interactions, least_events=settings.long_events
            )
            model = study.train("late", book=late)
        else:
            model = study.train(f"short-{arms[arm]:g}", short_share=arms[arm])
        for split, targets in study.targets.items():
            for length in (*settings.lengths, None):
                if model is None:
                    asked = Asked(study.book, targets)
                    rank = popularity_answers(asked, study.split.train).rank
                    assert rank is not None
                    values: Float64 = ndcg(rank, 10)
                else:
                    values = ndcg_of(model, study.book, targets, length)
                reference.setdefault((split, length), values)
                for who, here in _cohorts(targets, settings):
                    cells = {
                        "task": settings.source,
                        "split": f"leave-last-{NUM_HELD_OUT} {split}, {who}",
                        "model": arm,
                        "params": model.num_parameters() if model else None,
                        "context_tokens": settings.recipe.prompter.max_prompt_tokens,
                        "history_events": length,
                        "seed": seed,
                    }
                    _add(measured, "ndcg@10", values[here], None, targets.user[here], cells)
                    if arm not in (first, "popularity"):
                        before = reference[split, length][here]
                        metric = f"ndcg@10_vs_short_{settings.short_shares[0]:g}"
                        _add(measured, metric, values[here], before, targets.user[here], cells)
                if model is None:
                    break  # It knows no history.


def _cohorts(targets: Targets, settings: Settings) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Everybody, and those whose history is at least as long as the longest cut."""
    events = targets.history_end - targets.history_start
    yield "all users", np.ones(len(targets), np.bool_)
    yield f"{settings.cohort_events} events or more", events >= settings.cohort_events


def _add(
    measured: Measured,
    metric: str,
    values: Float64,
    before: Float64 | None,
    user: NDArray[np.int32],
    cells: dict[str, object],
) -> None:
    interval: Interval = (
        bootstrap_interval(values, user)
        if before is None
        else paired_bootstrap(before, values, user, statistic="difference")
    )
    measured.add(metric=metric, interval=interval, n=len(values), **cells)  # type: ignore[arg-type]
