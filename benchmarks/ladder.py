"""The ladder's claims: a little at a time against all at once, and what each part of it is worth.

    python -m benchmarks.ladder job_market --arm gradual one_shot no_repair finetune from_scratch
        --seed 0 1 2 --out benchmarks/results/ladder-job-market.csv --work runs/ladder

The top is trained first, and `gradual` is `decant ladder` from it. The other arms follow the shapes
and the training tokens that it came to, so that they differ in one thing alone:

- `one_shot`: the last shape at once, taught by the top for all the tokens of the gradual ladder;
- `from_scratch`: a random decoder of the last shape, trained for as many tokens, without a teacher;
- `no_repair`: the same rungs, pruned and not repaired;
- `finetune`: the same rungs, trained on the data alone, without a teacher.

Rows are on the test targets, which decide nothing on the way. Everything is kept in the work
folder: killed at any moment, the same command goes on where it stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.measured import Measured
from decant import recipes
from decant.judging import milliseconds
from decant.ladder import descend, ladder_config
from decant.layout import FOUNDATION, RunLayout
from decant.measure import Answers, Asked
from decant.pipeline import Job, fit_on_validation, run, watch
from decant.processes import training_device
from decant.recipes import Recipe
from decant.recommender import Recommender, build_index
from decant.run_data import load_book, load_model, rung_record
from distill.anatomy import Shape, stock_config
from distill.distillation import distil
from distill.importance import measure_importance
from distill.ladder import Hands, Ladder, LadderConfig, tiers
from distill.pruning import prune
from foundation import FitConfig, Foundation
from foundation.evaluation import ndcg
from foundation.evaluation.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from foundation.predictions import predict_targets
from foundation.sizes import start_as_averages
from promptify.assembly import PromptBook
from promptify.prompter import PrompterConfig
from promptify.sources import SourceData
from promptify.splits import Split
from promptify.whole import write_whole

ArmName = Literal["gradual", "one_shot", "no_repair", "finetune", "from_scratch"]
ARMS: tuple[ArmName, ...] = ("gradual", "one_shot", "no_repair", "finetune", "from_scratch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bed:
    """A data set, the top that is trained on it, and how far down it goes.

    Args:
        name: the `task` of the rows.
        recipe: of the top.
        load: makes the data; the same for every seed.
        source: what it depends on, JSON values.
        changes: fields of `LadderConfig`.
        timed_requests: that latency is measured on.
    """

    name: str
    recipe: Recipe
    load: Callable[[], SourceData]
    source: Mapping[str, Any]
    changes: Mapping[str, Any]
    timed_requests: int = 300


class Descent:
    """One seed of a bed: its top, and the arms below it.

    Args:
        bed: which.
        seed: of weights, shuffles and draws.
        work: keeps everything.
    """

    def __init__(self, bed: Bed, seed: int, work: Path) -> None:
        self.bed, self.seed = bed, seed
        self.folder = work / bed.name / f"seed-{seed}"
        self.recipe = bed.recipe.with_seed(seed)
        job = Job(recipe=self.recipe, load=bed.load, source=bed.source, out=self.folder / "top")
        run(job, until=FOUNDATION)
        self.layout = RunLayout(self.folder / "top")
        self.book, self.split = load_book(self.layout)
        self.top = load_model(self.layout.model(FOUNDATION))
        self.config: LadderConfig = ladder_config(self.layout.folder, **bed.changes)

    def rungs(self, arm: ArmName) -> list[Foundation]:
        """The models of an arm, from the top down; made if need be."""
        if arm == "gradual":
            return self._gradual()
        shapes, epochs = self._came_to()
        if not shapes:
            return []
        if arm in ("one_shot", "from_scratch"):
            shapes, epochs = shapes[-1:], [sum(epochs)]
        above, made = self.top, []
        for place, (shape, length) in enumerate(zip(shapes, epochs, strict=True), start=1):
            folder = self.folder / arm / f"rung-{place}"
            if not (folder / "model").exists():
                self._make(arm, above, shape, length, folder)
            above = load_model(folder / "model")
            made.append(above)
        return made

    def _gradual(self) -> list[Foundation]:
        out = self.folder / "gradual"
        descend(
            self.layout.folder,
            config=self.config,
            out=out,
            timed_requests=self.bed.timed_requests,
        )
        layout = RunLayout(out)
        return [load_model(layout.model(name)) for name in layout.models()[1:]]

    def _came_to(self) -> tuple[list[Shape], list[float]]:
        """Shapes and epochs of the gradual ladder's rungs."""
        self._gradual()
        layout = RunLayout(self.folder / "gradual")
        records = [rung_record(layout, name) for name in layout.models()[1:]]
        taken = [record["attempts"][-1] for record in records]
        return [Shape(**one["shape"]) for one in taken], [one["epochs"] for one in taken]

    def _make(
        self, arm: ArmName, above: Foundation, shape: Shape, epochs: float, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        student = self._start(arm, above, shape, folder)
        fit = replace(self.config.fit, epochs=epochs)
        if arm == "from_scratch":
            # What suits a model that knows something already is half of what it was trained with.
            fit = replace(fit, learning_rate=self.recipe.fit.learning_rate)
        device = training_device()
        student.to(device)
        options: dict[str, Any] = {
            "config": fit,
            "out": folder / "fit",
            "validate": (lambda: watch(student, self.book, self.split.valid))
            if fit.evaluate_steps
            else None,
        }
        if arm in ("finetune", "from_scratch"):
            student.fit(self.book, self.split, **options)
        else:
            assert self.config.teacher is not None
            distil(
                student,
                above.to(device),
                self.book,
                self.split,
                teacher_config=self.config.teacher,
                **options,
            )
        for model in (student, above):
            model.to("cpu")
        for task in range(len(self.book.prompter.tasks)):
            fit_on_validation(student, self.book, tiers(self.split.valid)[0], task=task)
        student.save_pretrained(folder / "model")
        took = {"seconds": round(time.monotonic() - began, 1)}
        write_whole(folder / "took.json", json.dumps(took) + "\n")

    def _start(self, arm: ArmName, above: Foundation, shape: Shape, folder: Path) -> Foundation:
        """The student before it is trained; kept, so that a resumed training has the same one."""
        start = folder / "start"
        if not start.exists():
            if arm == "from_scratch":
                made = self._random(shape)
            else:
                rows = self._ladder().calibration_rows()
                repaired = None if arm == "no_repair" else rows
                made = prune(above, measure_importance(above, rows), shape, rows=repaired)
            made.save_pretrained(start)
        return load_model(start)

    def _random(self, shape: Shape) -> Foundation:
        torch.manual_seed(self.seed)
        config = stock_config(self.top.decoder, shape)
        config.initializer_range = shape.hidden**-0.5
        decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        start_as_averages(decoder)
        made = Foundation(
            decoder,
            prompter=self.book.prompter,
            config=self.recipe.foundation,
            item_ids=self.top.item_ids,
            item_pieces=self.top.item_pieces,
        )
        made.count_exposure(self.book.interactions.event_item[self.split.train])
        made.encode_catalogue()
        made.refresh_readings()
        return made.eval()

    def _ladder(self) -> Ladder:
        hands = Hands(measure=lambda *_: {}, settle=lambda _: None, watch=lambda _: {})
        return Ladder(self.top, self.book, self.split, config=self.config, hands=hands)

    def answers(self, model: Foundation) -> Answers:
        """Of a model to the test requests."""
        asked = Asked(self.book, self.split.test)
        said = predict_targets(model, self.book, self.split.test)
        return asked.of(said, model.calibration(asked.task))


def measure(
    bed: Bed, arms: Sequence[ArmName], seeds: Sequence[int], work: Path, out: Measured
) -> None:
    """Every arm of every seed, then the arms against each other over all seeds.

    Args:
        bed: which data, which top.
        arms: which.
        seeds: which.
        work: keeps models.
        out: takes the rows.
    """
    last: dict[str, list[NDArray[np.float64]]] = {}
    user: NDArray[np.int64] | None = None
    for seed in seeds:
        descent = Descent(bed, seed, work)
        top = descent.answers(descent.top)
        _metric_rows(out, bed, seed, "foundation", descent.top, top, top, 1.0)
        last.setdefault("foundation", []).append(_ndcg(top))
        user = top.user
        for arm in arms:
            models = descent.rungs(arm)
            for place, model in enumerate(models, start=1):
                answers = descent.answers(model)
                slower = _latency_ratio(descent.book, descent.split, model, descent.top, bed)
                name = f"{arm} rung-{place}"
                _metric_rows(out, bed, seed, name, model, answers, top, slower)
                if place == len(models):
                    last.setdefault(arm, []).append(_ndcg(answers))
    if user is None:
        return
    # One number per target: its mean over the seeds, whose data is the same.
    mean = {arm: np.mean(values, axis=0) for arm, values in last.items()}
    for name, values in mean.items():
        cells = {"task": bed.name, "split": "test", "model": name, "n": len(user)}
        out.add(seed="mean", interval=bootstrap_interval(values, user), metric="ndcg@10", **cells)
        for against, metric in (("foundation", "loss_vs_top"), ("gradual", "loss_vs_gradual")):
            if name != against and against in mean:
                lost = paired_bootstrap(mean[against], values, user)
                _add(out, lost, seed="mean", metric=metric, **cells)


def _metric_rows(
    out: Measured,
    bed: Bed,
    seed: int,
    name: str,
    model: Foundation,
    answers: Answers,
    top: Answers,
    slower: float,
) -> None:
    params = model.num_parameters()
    cells: dict[str, Any] = {"task": bed.name, "split": "test", "model": name, "params": params}
    for metric, (interval, n) in answers.metrics().items():
        if metric in ("ndcg@10", "hr@10", "auc", "ece"):
            _add(out, interval, seed=seed, metric=metric, n=n, **cells)
    if answers is top:
        out.add(seed=seed, interval=_exactly(params), metric="body_parameters", **cells)
        return
    [of_top] = [
        row.value
        for row in out.rows
        if (row.metric, row.seed, row.task) == ("body_parameters", seed, bed.name)
    ]
    out.add(seed=seed, interval=_exactly(params / of_top), metric="params_ratio", **cells)
    out.add(seed=seed, interval=_exactly(slower), metric="latency_ratio", **cells)
    lost = paired_bootstrap(_ndcg(top), _ndcg(answers), answers.user)
    _add(out, lost, seed=seed, metric="loss_vs_top", n=len(answers.user), **cells)


def _latency_ratio(
    book: PromptBook, split: Split, model: Foundation, top: Foundation, bed: Bed
) -> float:
    """Median time of a request as a share of the top's, in turn."""
    served = {
        name: Recommender(one, build_index(one, model_hash="unsaved"), book)
        for name, one in (("rung", model), ("top", top))
    }
    taken = milliseconds(served, split.test, bed.timed_requests)
    return taken["rung"] / taken["top"]


def _add(out: Measured, interval: Interval, *, seed: int | Literal["mean"], **cells: Any) -> None:
    """Write a row, unless there is no number (nothing was ranked among the first ten, say)."""
    if np.isfinite(interval.value):
        out.add(seed=seed, interval=interval, **cells)


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def _ndcg(answers: Answers) -> NDArray[np.float64]:
    assert answers.rank is not None
    return ndcg(answers.rank, 10)


def bed_of(
    name: str,
    *,
    data: Path | None,
    smoke: bool,
    minutes: float | None,
    to: float | None,
    held_out: int = 10,
) -> Bed:
    """A bed by name.

    Args:
        name: ``job_market``, ``job_market_text`` or ``ml1m``.
        data: the zip of MovieLens-1M.
        smoke: a top of seconds and a ladder of two rungs.
        minutes: of distillation a rung.
        to: share of the body at which the ladder ends.
        held_out: slates of each person of MovieLens; the gate's second look is at all but one.

    Raises:
        ValueError: MovieLens is not where it should be.
    """
    from promptify.sources.job_market import job_market

    changes: dict[str, Any] = {"to": to or 0.1, "minutes_per_rung": minutes or 3.0}
    if name == "ml1m":
        from promptify.sources.movielens import ml_1m

        zipped = data or Path("../shared/data/ml-1m.zip")
        recipe = replace(recipes.ml1m(), size="medium", held_out_slates=held_out)
        return Bed(name=name, recipe=recipe, load=lambda: ml_1m(zipped), source={}, changes=changes)
    recipe = replace(recipes.demo(), name=name, size="medium")
    if name == "job_market_text":
        prompter = PrompterConfig(
            form="text", max_prompt_tokens=640, max_item_tokens=48, vocab_size=2048
        )
        fit = replace(recipe.fit, epochs=1.0)
        recipe = replace(recipe, prompter=prompter, fit=fit)
    sizes: dict[str, int] = {}
    timed = 300
    if smoke:
        sizes = {"num_members": 120, "num_jobs": 60, "num_impressions": 1500}
        fit = FitConfig(epochs=0.3, positions_per_batch=4096, reread_items=8, text_positions=256)
        recipe = replace(
            recipe,
            size="tiny",
            prompter=replace(recipe.prompter, vocab_size=512),
            foundation=replace(recipe.foundation, vector_dim=16),
            fit=fit,
            rung=replace(recipe.rung, fit=fit),
        )
        timed = 3
        changes = {
            "to": 0.6,
            "minutes_per_rung": None,
            "max_loss": 0.95,
            "max_loss_vs_top": 0.95,
            "max_miscalibration": 1.0,
            "max_slowdown": 9.0,
            "calibration_rows": 20,
        }
    return Bed(
        name=name,
        recipe=recipe,
        load=lambda: job_market(**sizes),
        source=sizes,
        changes=changes,
        timed_requests=timed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="A little at a time against all at once, and what each part is worth."
    )
    parser.add_argument("task", choices=("job_market", "job_market_text", "ml1m"))
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--minutes", type=float, help="of distillation a rung; 3 by default")
    parser.add_argument("--to", type=float, help="share of the body to end at; 0.1 by default")
    parser.add_argument("--data", type=Path, help="the zip of MovieLens-1M")
    parser.add_argument(
        "--held-out", type=int, default=10, help="of ml1m: slates of each person; 10 by default"
    )
    parser.add_argument("--out", type=Path, help="write the rows as CSV; a second call goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/ladder"), help="keeps models")
    parser.add_argument("--smoke", action="store_true", help="seconds of everything, one seed")
    options = parser.parse_args(arguments)
    try:
        bed = bed_of(
            options.task,
            data=options.data,
            smoke=options.smoke,
            minutes=options.minutes,
            to=options.to,
            held_out=options.held_out,
        )
        seeds = options.seed[:1] if options.smoke else options.seed
        settings = {"recipe": bed.recipe.to_dict(), "ladder": dict(bed.changes)}
        out = Measured("ladder", settings, out=options.out)
        measure(bed, options.arm, seeds, options.work, out)
    except (ValueError, OSError) as error:
        print(f"benchmarks.ladder: error: {error}", file=sys.stderr)
        return 1
    print(out.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
