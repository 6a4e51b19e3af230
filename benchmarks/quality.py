"""Who ranks the next item best: the foundation and a strong SASRec, given the same minutes.

    python -m benchmarks.quality ml1m [--seeds 0 1 2] [--out FILE.csv] [--work FOLDER]

For each seed the foundation is trained as its recipe says; SASRec is then given the seconds that
this took, in the same process, on the same training events, and both rank the whole catalogue for
the same held-out last events. Its shape was chosen on MovieLens-1M; with `--tune-sasrec` eight
settings are tried, each for those seconds, and validation chooses. Seconds are `thread_seconds`, so
that what else a machine does at the time favours neither. Popularity and last-item neighbours stand
beside them. Rows of `leave-one-out, later` are of targets that are later than all of their history:
of the others, whose time is that of the newest event, the order of the file says which came last.
Rows of `leave-one-out, positive` are of targets that were acted on well. Rows are written as soon
as they are known; the same command goes on after a kill with the next model.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks.arms import of_code
from benchmarks.measured import work_of
from benchmarks.peers import sasrec
from benchmarks.studied import add_sasrec_options, sasrec_configs
from decant import recipes
from decant.measure import NEIGHBOURS, Answers, Asked, neighbour_answers, popularity_answers
from decant.recipes import Recipe
from decant.results import ResultRow, read_csv, write_csv, writing
from decant.run_data import sample_targets
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation import Foundation
from foundation.evaluation import hit_rate, mrr, ndcg
from foundation.evaluation.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from foundation.predictions import predict_targets
from foundation.resuming import thread_seconds
from promptify.assembly import PromptBook
from promptify.prompter import Prompter
from promptify.sources import SourceData
from promptify.splits import Split, leave_one_out
from promptify.whole import write_whole

WATCHED_REQUESTS = 500
SPLIT = "leave-one-out"
RANK_METRICS: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]] = {
    "hr@10": partial(hit_rate, k=10),
    "ndcg@10": partial(ndcg, k=10),
    "mrr@100": partial(mrr, k=100),
}


class Contest:
    """One task, its split and its prompts, and what each model said of the test targets.

    Args:
        recipe: of the foundation; its name is the task of the rows.
        data: what everyone learns from.
        work: where answers are kept, a folder per recipe, data, code and seed.
        configs: of SASRec, of which validation chooses.
        changes: of the best of them, each tried, too.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: SourceData,
        work: Path,
        *,
        configs: Sequence[sasrec.SASRecConfig] = sasrec.GRID[:1],
        changes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.recipe = recipe
        self.configs, self.changes = configs, changes
        peer = [[asdict(config) for config in configs], changes]
        self.config_hash = json_hash(
            [recipe.with_seed(0).to_dict(), peer, data.interactions.digest]
        )
        self.work = of_code(work / self.config_hash, "benchmarks.quality")
        self.split: Split = leave_one_out(
            data.interactions, surface=data.tasks[0].name if len(data.tasks) > 1 else None
        )
        prompter = Prompter.fit(
            data.interactions, self.split.train, data.tasks, config=recipe.prompter
        )
        self.book: PromptBook = prompter.book(data.interactions)
        self.asked = Asked(self.book, self.split.test)
        watched = sample_targets(self.split.valid, WATCHED_REQUESTS)
        self.watched = Asked(self.book, watched)

    def foundation(self, seed: int) -> tuple[Answers, dict[str, float]]:
        """Train the recipe's foundation: its answers, and what it took."""
        recipe = self.recipe.with_seed(seed)
        model = Foundation.create(
            self.book.prompter,
            self.book,
            self.split.train,
            size=recipe.size,
            model=recipe.model,
            config=recipe.foundation,
            seed=seed,
        )

        def validate() -> dict[str, float]:
            said = predict_targets(model, self.book, self.watched.targets)
            return {"ndcg@10": float(ndcg(said.rank, 10).mean())}

        # Seconds are compared, so a training that was cut short starts over.
        scratch = self.work / f"seed-{seed}" / "foundation-training"
        shutil.rmtree(scratch, ignore_errors=True)
        began = thread_seconds()
        model.fit(self.book, self.split, config=recipe.fit, out=scratch, validate=validate)
        seconds = thread_seconds() - began
        answers = self.asked.of(predict_targets(model, self.book, self.split.test, progress=True))
        shutil.rmtree(scratch)
        return answers, {"seconds": seconds, "params": model.num_parameters()}

    def sasrec(self, seed: int, seconds: float) -> tuple[Answers, dict[str, float]]:
        """Train SASRec for some seconds a configuration: its answers, and what the best took."""

        def watch(model: sasrec.SASRec) -> float:
            scores = sasrec.score_requests(model, self.book, self.watched.targets)
            ranks = self.watched.ranks_by(lambda start, stop: scores[start:stop])
            return float(ndcg(ranks, 10).mean())

        fitted = sasrec.fit_best(
            self.book,
            self.split,
            configs=self.configs,
            seconds=seconds,
            watch=watch,
            changes=self.changes,
            seed=seed,
        )
        scores = sasrec.score_requests(fitted.model, self.book, self.split.test)
        ranks = self.asked.ranks_by(lambda start, stop: scores[start:stop])
        took = {
            "seconds": fitted.seconds,
            "epochs": fitted.epochs,
            "params": sum(p.numel() for p in fitted.model.blocks.parameters()),
        }
        return self.asked.answers(ranks, None), took

    def answered(
        self, model: str, seed: int, answer: Callable[[], tuple[Answers, dict[str, float]]]
    ) -> tuple[Answers, dict[str, float]]:
        """What a model said: kept from an earlier call, or asked now and kept."""
        folder = self.work / f"seed-{seed}"
        kept, note = folder / f"{model}.safetensors", folder / f"{model}.json"
        if not note.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Of the code that trains, whatever is committed meanwhile.
            commit = git_commit()
            answers, took = answer()
            assert answers.rank is not None
            arrays: dict[str, NDArray[Any]] = {"rank": answers.rank}
            if answers.action_probability is not None:
                arrays["probability"] = answers.action_probability
            save_file(arrays, kept)
            write_whole(note, json.dumps({**took, "commit": commit}) + "\n")
        arrays = load_file(kept)
        return (
            self.asked.answers(arrays["rank"], arrays.get("probability")),
            json.loads(note.read_text("utf-8")),
        )


def contest_rows(contest: Contest, seeds: Sequence[int], out: Path | None) -> list[ResultRow]:
    """Ask every model for every seed; rows are written to `out` after each.

    Raises:
        ValueError: `out` has seeds of the same that are not asked for, whose mean would be lost.
    """
    recipe, began = contest.recipe, time.monotonic()
    there = {
        int(row.seed)
        for row in _there(out)
        if row.config_hash == contest.config_hash
        and row.model in ("foundation", "sasrec")
        and row.seed != "mean"
    }
    if lost := sorted(there - {*seeds}):
        raise ValueError(
            f"{out} holds seeds {', '.join(map(str, lost))} of the same settings, and a mean over "
            "them: give them all, or another --out."
        )

    def row(model: str, metric: str, interval: Interval, **more: object) -> ResultRow:
        has_interval = -np.inf < interval.low < interval.high < np.inf
        fields: dict[str, object] = {
            "context_tokens": recipe.prompter.max_prompt_tokens if model == "foundation" else None,
            "commit": git_commit(),
            "split": SPLIT,
            **more,
        }
        return ResultRow(
            benchmark="quality",
            task=recipe.name,
            model=model,
            metric=metric,
            value=interval.value,
            ci_low=interval.low if has_interval else None,
            ci_high=interval.high if has_interval else None,
            peak_bytes=peak_rss_bytes(),
            hardware=hardware(),
            config_hash=contest.config_hash,
            timestamp=utc_now(),
            **fields,  # type: ignore[arg-type]
        )

    def rows_of(
        model: str, answers: Answers, seed: int | str, took: dict[str, float]
    ) -> list[ResultRow]:
        params = took.get("params")
        more = {
            "seed": seed,
            "seconds": took.get("seconds"),
            "params": None if params is None else int(params),
            "commit": took.get("commit", git_commit()),
        }
        reciprocal = RANK_METRICS["mrr@100"](_ranks(answers))
        told = {
            **answers.metrics(),
            "mrr@100": (bootstrap_interval(reciprocal, answers.user), len(reciprocal)),
        }
        return [
            *(row(model, metric, interval, n=n, **more) for metric, (interval, n) in told.items()),
            *of_some(model, ndcg(_ranks(answers), 10), **more),
        ]

    asked, train = contest.asked, contest.split.train
    wanted = asked.answers(None, None)
    user = wanted.user
    subsets = {"later": later_targets(asked), "positive": wanted.is_positive_target}

    def of_some(model: str, values: NDArray[np.float64], **more: object) -> list[ResultRow]:
        """Rows of the targets that are told apart, where not all of them are the same."""
        return [
            row(
                model,
                "ndcg@10",
                bootstrap_interval(values[here], user[here]),
                n=int(here.sum()),
                split=f"{SPLIT}, {name}",
                **more,
            )
            for name, here in subsets.items()
            if here.any() and not here.all()
        ]

    rows: list[ResultRow] = []
    for model, answers in (
        ("popularity", popularity_answers(asked, train)),
        *((kind, neighbour_answers(asked, train, kind)) for kind in NEIGHBOURS),
    ):
        rows += rows_of(model, answers, 0, {"seconds": round(time.monotonic() - began, 1)})
    said: dict[str, list[Answers]] = {"foundation": [], "sasrec": []}
    for seed in seeds:
        answers, took = contest.answered("foundation", seed, partial(contest.foundation, seed))
        rows += rows_of("foundation", answers, seed, took)
        said["foundation"].append(answers)
        _keep(out, rows)
        seconds = took["seconds"]
        answers, took = contest.answered("sasrec", seed, partial(contest.sasrec, seed, seconds))
        rows += rows_of("sasrec", answers, seed, took)
        said["sasrec"].append(answers)
        _keep(out, rows)
    for metric, measure in RANK_METRICS.items():
        # One number per target: its mean over the seeds.
        mean = {
            model: np.mean([measure(_ranks(a)) for a in answers], axis=0)
            for model, answers in said.items()
        }
        for model, values in mean.items():
            interval = bootstrap_interval(values, user)
            rows.append(row(model, metric, interval, n=len(values), seed="mean"))
            if metric == "ndcg@10":
                rows += of_some(model, values, seed="mean")
        gain = relative_gain(mean["sasrec"], mean["foundation"], user)
        if metric == "ndcg@10" and gain is not None:
            rows.append(row("foundation", "gain_vs_sasrec", gain, n=len(user), seed="mean"))
    _keep(out, rows)
    return rows


def later_targets(asked: Asked) -> NDArray[np.bool_]:
    """Which ranking targets are later than all of their history, bool [m]."""
    time, targets = asked.book.interactions.event_timestamp, asked.targets
    newest = time[np.maximum(targets.history_end - 1, 0)]
    has_history = targets.history_end > targets.history_start
    is_later = ~has_history | (newest < time[targets.first_event])
    found: NDArray[np.bool_] = is_later[asked.wanted.request]
    return found


def relative_gain(
    reference: NDArray[np.float64], candidate: NDArray[np.float64], user: NDArray[np.int64]
) -> Interval | None:
    """(candidate − reference) / reference, users drawn once for both; None over a zero."""
    loss = paired_bootstrap(reference, candidate, user)
    gain = Interval(value=-loss.value, low=-loss.high, high=-loss.low)
    return gain if np.isfinite([gain.value, gain.low, gain.high]).all() else None


def _ranks(answers: Answers) -> NDArray[np.int64]:
    assert answers.rank is not None
    return answers.rank


def _there(out: Path | None) -> list[ResultRow]:
    return read_csv(out) if out is not None and out.exists() else []


def _keep(out: Path | None, rows: Sequence[ResultRow]) -> None:
    """Write rows in the place of those that they tell anew; all others in the file stay."""

    def key(row: ResultRow) -> tuple[object, ...]:
        return row.config_hash, row.split, row.model, row.metric, row.seed

    if out is not None:
        with writing(out):
            new = {key(row) for row in rows}
            write_csv(out, [*(row for row in _there(out) if key(row) not in new), *rows])


def load(task: str, data: Path | None) -> tuple[Recipe, SourceData]:
    """The recipe and the data of a task.

    Raises:
        ValueError: the data is not where it should be.
    """
    if task == "job_market":
        from promptify.sources.generated import generated_job_market

        return recipes.demo(), generated_job_market()
    from promptify.sources import movielens

    reader = {"ml1m": movielens.ml_1m, "ml100k": movielens.ml_100k}[task]
    recipe = {"ml1m": recipes.ml1m, "ml100k": recipes.ml100k}[task]()
    name = {"ml1m": "ml-1m.zip", "ml100k": "ml-100k.zip"}[task]
    return recipe, reader(data or Path("../shared/data") / name)


def smaller(recipe: Recipe) -> Recipe:
    """The recipe with a training of seconds, to see that all of it runs."""
    fit = replace(recipe.fit, epochs=0.1, positions_per_batch=1024, evaluate_steps=0)
    return replace(recipe, size="tiny", fit=fit)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="The foundation against a strong SASRec, given the same minutes.",
        epilog="Seeds are of weights and order; the job market itself is always the same one.",
    )
    parser.add_argument("task", choices=("ml1m", "ml100k", "job_market"), help="what is ranked")
    parser.add_argument("--data", type=Path, help="the MovieLens zip; default ../shared/data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    parser.add_argument("--work", type=Path, help="keeps answers; default: beside --out")
    parser.add_argument("--epochs", type=float, help="of the foundation, if not its recipe's")
    add_sasrec_options(parser, has_seconds=False)
    parser.add_argument("--smoke", action="store_true", help="train for seconds, one seed")
    options = parser.parse_args(arguments)
    try:
        configs, changes = sasrec_configs(options)
        recipe, data = load(options.task, options.data)
        recipe = recipe.with_epochs(options.epochs)
    except ValueError as error:
        print(f"benchmarks.quality: error: {error}", file=sys.stderr)
        return 1
    recipe = smaller(recipe) if options.smoke else recipe
    seeds = options.seeds[:1] if options.smoke else options.seeds
    with work_of(options) as work:
        contest = Contest(recipe, data, work, configs=configs, changes=changes)
        rows = contest_rows(contest, seeds, options.out)
    print(f"\n{options.task}, leave-one-out, the whole catalogue. {hardware()}")
    for found in rows:
        interval = "" if found.ci_low is None else f"{found.ci_low:.4f} to {found.ci_high:.4f}"
        minutes = "" if found.seconds is None else f"{found.seconds / 60:5.1f} min"
        print(
            f"{found.split:24} {found.model:22} {found.metric:15} seed {found.seed!s:5}"
            f"{found.value:9.4f}  {interval:20}{minutes}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
