"""Several tasks in one model, and what words do to it: the generated market's two surfaces.

    python -m benchmarks.tasks [--smoke] [--out FILE.csv] [--work FOLDER]

Three trainings per seed, on the same log and the same prompts: on the windows of `jobs` alone, of
`people` alone, and of both. A window has the targets of one task, and events of the other task are
history in it, so that each arm sees the events of its tasks as targets equally often. Each task is
then measured after the same moment, as it was trained alone and as it was trained together.

The model of both is then asked two things more. Do changed notes change its rankings as they change
the generator's, on wordings never trained on? And what does it make of a third task, jobs under an
instruction that it was never trained on?

Cut short, the same call goes on: trainings from their last checkpoint, rows where they stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured, add_means, work_of
from benchmarks.steering import draw_requests, note_rows, third_task_rows
from decant.measure import Answers, Asked, oracle_answers, popularity_answers
from decant.recipes import Recipe, demo
from foundation import Foundation
from foundation.evaluation import (
    Interval,
    UserStatistic,
    auc_of_users,
    bootstrap_users,
    ndcg,
    paired_bootstrap,
)
from foundation.predictions import predict_targets
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources import SourceData
from promptify.sources.job_market import Search, Truth, job_market_with_truth
from promptify.splits import Split, Targets, global_time
from promptify.windows import Windows

JOBS, PEOPLE = 0, 1
ARMS = {"jobs alone": (JOBS,), "people alone": (PEOPLE,), "together": (JOBS, PEOPLE)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much of everything.

    Attributes:
        sizes: of the market.
        recipe: of the model and its training.
        num_requests: members whose notes are changed.
        num_jobs: candidates of each.
    """

    sizes: dict[str, int]
    recipe: Recipe
    num_requests: int
    num_jobs: int


def full_settings(epochs: float, num_impressions: int) -> Settings:
    recipe = demo()
    return Settings(
        sizes={"num_members": 2000, "num_jobs": 1500, "num_impressions": num_impressions},
        recipe=replace(recipe, fit=replace(recipe.fit, epochs=epochs, evaluate_steps=0)),
        num_requests=400,
        num_jobs=40,
    )


def smoke_settings() -> Settings:
    recipe = demo()
    prompter = PrompterConfig(
        max_prompt_tokens=256, max_item_tokens=32, max_profile_tokens=48, vocab_size=800
    )
    fit = replace(recipe.fit, epochs=1, positions_per_batch=2048, reread_items=4, evaluate_steps=0)
    return Settings(
        sizes={"num_members": 150, "num_jobs": 60, "num_impressions": 1500},
        recipe=replace(recipe, size="tiny", prompter=prompter, fit=fit),
        num_requests=20,
        num_jobs=10,
    )


class BookOfTasks(PromptBook):
    """Prompts over a log, whose training windows are those of some tasks.

    Args:
        prompter: as of `PromptBook`.
        interactions: as of `PromptBook`.
        tasks: whose windows.
    """

    def __init__(
        self, prompter: Prompter, interactions: Interactions, tasks: Sequence[int]
    ) -> None:
        super().__init__(prompter, interactions)
        self._trained_tasks = np.array(tasks)

    def windows(
        self,
        train: NDArray[np.bool_],
        *,
        seed: int,
        epoch: int,
        max_events: int | None = None,
        short_share: float = 0.0,
    ) -> Windows:
        """As `PromptBook.windows`, those of the tasks alone."""
        windows = super().windows(
            train, seed=seed, epoch=epoch, max_events=max_events, short_share=short_share
        )
        return windows[np.isin(windows.task, self._trained_tasks)]


class Market:
    """The market of one seed, its split and its prompts.

    Args:
        settings: how much of everything.
        seed: of the market.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.data: SourceData
        self.truth: Truth
        self.search: Search
        self.data, self.truth, self.search = job_market_with_truth(seed=seed, **settings.sizes)
        log = self.data.interactions
        times = np.quantile(log.event_timestamp, [0.7, 0.8]).astype(np.int64)
        self.split: Split = global_time(log, valid_from=int(times[0]), test_from=int(times[1]))
        self.prompter = Prompter.fit(
            log, self.split.train, self.data.tasks, config=settings.recipe.prompter
        )

    def test_targets(self, task: int) -> Targets:
        """The test slates of one task."""
        log = self.data.interactions
        surface = log.surfaces.index(self.data.tasks[task].name)
        return self.split.test[log.event_surface[self.split.test.first_event] == surface]

    def train(
        self, settings: Settings, tasks: Sequence[int], *, seed: int, out: Path
    ) -> Foundation:
        """A model of some tasks; goes on where an earlier call with this folder stopped."""
        book = BookOfTasks(self.prompter, self.data.interactions, tasks)
        recipe = settings.recipe.with_seed(seed)
        foundation = Foundation.create(
            self.prompter,
            book,
            self.split.train,
            size=recipe.size,
            config=recipe.foundation,
            seed=seed,
        )
        foundation.fit(book, self.split, config=recipe.fit, out=out)
        return foundation


def auc_difference(alone: Answers, together: Answers) -> Interval:
    """AUC of the second minus that of the first, on the same events, users drawn for both."""
    users, row = np.unique(alone.action_user, return_inverse=True)

    def of(answers: Answers) -> UserStatistic:
        assert answers.action_probability is not None
        return auc_of_users(answers.action_positive, answers.action_probability, row, len(users))

    before, after = of(alone), of(together)
    return bootstrap_users(
        lambda weights: after(weights) - before(weights),
        len(users),
        numbers_per_draw=2 * len(alone.action_positive),
    )


def measure_seed(settings: Settings, measured: Measured, *, seed: int, work: Path) -> None:
    """Every row of one seed that is not there yet."""
    if measured.has(model="jobs task", metric="auc", seed=seed):
        return
    market = Market(settings, seed)
    book = market.prompter.book(market.data.interactions)
    asked = {task: Asked(book, market.test_targets(task), task=task) for task in (JOBS, PEOPLE)}
    answers: dict[tuple[str, int], Answers] = {}
    models: dict[str, Foundation] = {}

    def add(task: str, model: str, metric: str, interval: Interval, n: int, **cells: int) -> None:
        measured.add(
            task=task,
            split="global-time",
            model=model,
            metric=metric,
            interval=interval,
            n=n,
            seed=seed,
            **cells,
        )

    for arm, tasks in ARMS.items():
        models[arm] = market.train(settings, tasks, seed=seed, out=work / arm.replace(" ", "_"))
        for task in tasks:
            found = predict_targets(models[arm], book, asked[task].targets, task=task)
            answers[arm, task] = asked[task].of(found)
    for task, one in asked.items():
        name = market.data.tasks[task].name
        oracle = market.data.oracle
        assert oracle is not None
        answers["popularity", task] = popularity_answers(one, market.split.train)
        answers["oracle", task] = oracle_answers(one, oracle)
        for (model, of_task), said in answers.items():
            if of_task == task:
                params = models[model].num_parameters() if model in models else None
                for metric, (interval, n) in said.metrics().items():
                    cells = {} if params is None else {"params": params}
                    add(name, model, metric, interval, n, **cells)
        alone, together = answers[f"{name} alone", task], answers["together", task]
        assert alone.rank is not None
        assert together.rank is not None
        difference = paired_bootstrap(
            ndcg(alone.rank, 10), ndcg(together.rank, 10), alone.user, statistic="difference"
        )
        add(name, "together", "ndcg@10_vs_alone", difference, len(alone.rank))
        gain = auc_difference(alone, together)
        add(name, "together", "auc_vs_alone", gain, len(alone.action_user))

    requests = draw_requests(
        book,
        market.truth,
        market.test_targets(JOBS),
        num=settings.num_requests,
        num_jobs=settings.num_jobs,
        seed=seed,
    )
    both = models["together"]
    for name, metric, interval, n in note_rows(both, book, market.truth, requests, seed=seed):
        add("notes", name, metric, interval, n)
    for name, metric, interval, n in third_task_rows(both, book, market.truth, requests):
        add("fit", name, metric, interval, n)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny market and model, one seed")
    parser.add_argument("--out", type=Path, help="write rows as CSV; go on with what is there")
    parser.add_argument("--work", type=Path, help="keep trainings here; default: beside --out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="0 1 2")
    parser.add_argument("--epochs", type=float, default=4, help="of each training; default 4")
    parser.add_argument(
        "--impressions", type=int, default=40_000, help="jobs shown in the market; default 40000"
    )
    options = parser.parse_args(arguments)
    settings = (
        smoke_settings() if options.smoke else full_settings(options.epochs, options.impressions)
    )
    seeds = options.seeds[:1] if options.smoke else options.seeds
    with work_of(options) as work:
        try:
            measured = Measured("tasks", asdict(settings), out=options.out)
            for seed in seeds:
                folder = work / measured.config_hash / str(seed)
                measure_seed(settings, measured, seed=seed, work=folder)
            # A market of another seed has other people.
            add_means(measured, drawn_anew=True)
        except ValueError as error:
            print(f"benchmarks.tasks: error: {error}", file=sys.stderr)
            return 1
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
