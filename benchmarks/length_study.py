"""Models trained on one log in different ways, asked the same and set beside each other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured
from decant.recipes import Recipe
from foundation import Foundation
from foundation.evaluation import bootstrap_interval, ndcg, paired_bootstrap
from foundation.predictions import predict_targets, ranking_targets
from promptify.assembly import PromptBook
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources import SourceData
from promptify.splits import Split, Targets, leave_last

Float64 = NDArray[np.float64]

# Three validation targets a user, so that a choice made on them is not a throw of dice.
NUM_HELD_OUT = 4


class Study:
    """Data, split and prompts, and the models trained on them.

    Args:
        data: the source's.
        recipe: of every training.
        prompter: what a prompt may hold.
        work: folder for trainings, which go on where an earlier call stopped.
    """

    def __init__(
        self,
        data: SourceData,
        *,
        recipe: Recipe,
        prompter: PrompterConfig,
        work: Path,
    ) -> None:
        log = data.interactions
        surface = data.tasks[0].name if len(data.tasks) > 1 else None
        self.recipe = recipe
        self.split: Split = leave_last(log, num=NUM_HELD_OUT, surface=surface)
        self.prompter = Prompter.fit(log, self.split.train, data.tasks, config=prompter)
        self.book = self.prompter.book(log)
        self.work = work

    @property
    def targets(self) -> dict[str, Targets]:
        """Validation and test targets, by what their rows call them."""
        return {"validation": self.split.valid, "test": self.split.test}

    def train(
        self,
        name: str,
        *,
        book: PromptBook | None = None,
        short_share: float | None = None,
    ) -> Foundation:
        """A model; loaded where it is trained already."""
        recipe, book = self.recipe, book or self.book
        foundation = Foundation.create(
            self.prompter,
            book,
            self.split.train,
            size=recipe.size,
            config=recipe.foundation,
            seed=recipe.seed,
        )
        fit = recipe.fit
        if short_share is not None:
            fit = replace(fit, short_window_share=short_share)
        foundation.fit(book, self.split, config=fit, out=self.work / name)
        return foundation

    def ask(
        self, foundation: Foundation, targets: Targets, *, num_events: int | None = None
    ) -> Float64:
        """NDCG@10 of each ranking target, after so many events or all of them."""
        asked = targets if num_events is None else targets.cut(num_events)
        found = predict_targets(foundation, self.book, asked, full_history=targets)
        values: Float64 = ndcg(found.rank, 10)
        return values


class Table:
    """Writes the rows of one part, one seed.

    Args:
        measured: where rows go.
        study: whose targets are asked.
    """

    def __init__(self, measured: Measured, study: Study) -> None:
        self.measured = measured
        self.study = study
        self.seed = study.recipe.seed

    def has(self, model: str) -> bool:
        """Whether a model's last row is there."""
        split = f"leave-last-{NUM_HELD_OUT} test"
        return any(
            row.model == model
            and row.metric == "ndcg@10"
            and row.seed == self.seed
            and row.split.startswith(split)
            and row.history_events is None
            for row in self.measured.rows
        )

    def add(
        self,
        values: Float64,
        *,
        split: str,
        least_events: int,
        model: str,
        params: int | None,
        context_tokens: int,
        history_events: int | None,
        against: tuple[str, Float64] | None = None,
    ) -> None:
        """The mean of the targets of those with so long a history, and how it differs.

        Args:
            values: of every target of the split.
            split: of `Study.targets`.
            least_events: events that their history holds at least.
            model: of the row, as the next three.
            params: as of `ResultRow`.
            context_tokens: as of `ResultRow`.
            history_events: as of `ResultRow`.
            against: a name, and the values that a second row holds these against.
        """
        targets = self.study.targets[split]
        request = ranking_targets(self.study.book, targets, task=0).request
        history = (targets.history_end - targets.history_start)[request]
        here = history >= least_events
        if not here.any():
            raise ValueError(f"nobody has {least_events} events before a target; nothing measured.")
        user = targets.user[request][here]
        who = f"{least_events} events or more" if least_events else "all users"
        found = {"ndcg@10": bootstrap_interval(values[here], user)}
        if against is not None:
            name, before = against
            found[f"ndcg@10_vs_{name}"] = paired_bootstrap(
                before[here], values[here], user, statistic="difference"
            )
        for metric, interval in found.items():
            self.measured.add(
                task=self.study.recipe.name,
                split=f"leave-last-{NUM_HELD_OUT} {split}, {who}",
                model=model,
                params=params,
                context_tokens=context_tokens,
                history_events=history_events,
                metric=metric,
                interval=interval,
                n=len(user),
                seed=self.seed,
            )
