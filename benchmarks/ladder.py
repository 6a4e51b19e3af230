"""The ladder's claims: a little at a time against all at once, and what each part of it is worth.

    python -m benchmarks.ladder job_market --seed 0 1 2 --work runs/ladder
        --out benchmarks/results/ladder-job-market.csv

The job market is one of few jobs and long histories. Of half its people twenty slates are held out,
ten for the gate and ten for test: one pass over a person reads all of them. The others are trained
on whole, so that histories as long as those that are asked about are. What is to be ranked first is
what somebody applied to or looked at: so both rest on thousands of targets. `job_market_text` tells
the few events of many people in words, and `ml1m` is MovieLens-1M in slots.
What a training may take is stated in epochs that suit one core, three minutes a rung at most, and
is the same on any machine, however busy; `--epochs` gives the top more where there is a GPU, and
`--minutes` states a distillation in time.

The top is trained first, and `gradual` is `decant ladder` from it. The other arms follow the shapes
that it came to, with as many training tokens altogether:

- `one_shot`: the last shape at once, taught by the top;
- `from_scratch`: a random decoder of the last shape, trained at the top's rate, without a teacher;
- `no_repair`: the same rungs, pruned and not repaired, so that each has its equal share of the
  teaching, those too that repair alone was enough for;
- `finetune`: the same rungs, trained on the data alone, without a teacher.

What suits a repaired student of the rung above may not suit the others, so that each of them but
`from_scratch` is made at the ladder's rate and at that of a run's own rung; the better last rung on
validation is the arm's. Calibration is fitted as the ladder fits it.

Rows are on the test targets, which decide nothing on the way; of arms that follow the rungs, of the
last. Intervals are over people, those of the means too: how far seeds lie apart is in their own
rows. Latency is that of the gradual ladder's shapes, which all arms share. Everything is kept in
the work folder: killed at any moment, the same command goes on where it stopped. Where each target
was ranked lies beside `--out`, so that seeds may be measured one at a time, each anywhere.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.arms import kept_arrays
from benchmarks.ladder_beds import BEDS, Bed, bed_of
from benchmarks.ladder_rows import LadderRows
from benchmarks.measured import Measured
from decant.architecture import LatencyRatio
from decant.fingerprints import code_key
from decant.judging import Remembered
from decant.ladder import descend, ladder_config
from decant.layout import FOUNDATION, RunLayout
from decant.measure import Answers, Asked
from decant.on_validation import fit_on_validation, watch
from decant.pipeline import Job, run
from decant.processes import training_device
from decant.recipes import Recipe
from decant.run_data import load_book, load_model, rung_record
from decant.run_record import json_hash
from decant.stages import ROOMS
from distill.anatomy import Shape, stock_config
from distill.distillation import distil, whole_inputs
from distill.importance import Importance, measure_importance
from distill.ladder_config import LadderConfig
from distill.pruning import prune
from distill.steps import calibration_rows
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.evaluation import ndcg
from foundation.sizes import start_as_averages
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split
from promptify.whole import write_whole

VALIDATED = "valid.json"
"""What an arm's last rung is worth on validation, beside its model."""
_TIMED_AGAIN = 5
"""How many times as many requests the last rung's latency rests on as a gate's."""

MAKES_A_RUNG = (*ROOMS, "decant.on_validation", "benchmarks.ladder")
"""Code that an arm's models are known by."""

ArmName = Literal["gradual", "one_shot", "no_repair", "finetune", "from_scratch"]
Rate = tuple[float, float]
"""`FitConfig.learning_rate` and `table_rate`."""
ARMS: tuple[ArmName, ...] = ("gradual", "one_shot", "no_repair", "finetune", "from_scratch")


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
        self.top = self.model(self.layout.model(FOUNDATION))
        self.config: LadderConfig = ladder_config(self.layout.folder, **bed.changes_for(seed))
        self.split = self.config.asked(self.split)
        self._of_top: Importance | None = None
        # The ladder reads the test targets for its report, and the rows here rest on them too.
        self._predict = Remembered()

    def rungs(self, arm: ArmName) -> list[Path]:
        """Folders of an arm's models, from the top down; made if need be."""
        if arm == "gradual":
            return self._gradual()
        steps = self._steps(arm)
        if not steps:
            return []
        chains = [self._chain(arm, steps, rate) for rate in self._rates(arm, steps)]
        return max(chains, key=lambda chain: _quality(chain[-1]))

    def _steps(self, arm: ArmName) -> list[tuple[Shape, float]]:
        """Shapes and epochs of an arm's rungs; none where it would have no tokens to learn from."""
        shapes, epochs = self._came_to()
        if arm == "from_scratch" and not sum(epochs):
            return []
        if arm in ("one_shot", "from_scratch"):
            shapes, epochs = shapes[-1:], [sum(epochs)] * bool(shapes)
        elif arm == "no_repair":
            epochs = [sum(epochs) / len(epochs) for _ in epochs]
        return list(zip(shapes, epochs, strict=True))

    def _rates(self, arm: ArmName, steps: Sequence[tuple[Shape, float]]) -> list[Rate]:
        """Learning rates of matrices, and how many times as fast tables learn: what is tried."""
        own, rung, top = self.config.fit, self.recipe.rung.fit, self.recipe.fit
        if arm == "from_scratch":
            return [(top.learning_rate, top.table_rate)]
        slow, fast = ((fit.learning_rate, fit.table_rate) for fit in (own, rung))
        return [slow, fast] if any(epochs for _, epochs in steps) else [slow]

    def _chain(self, arm: ArmName, steps: Sequence[tuple[Shape, float]], rate: Rate) -> list[Path]:
        """Folders of an arm's models at a rate, from the top down; made if need be."""
        top = weights_hash(self.layout.model(FOUNDATION))
        # Another ladder comes to other shapes, by other teaching; other code to other models.
        told = [(asdict(shape), epochs) for shape, epochs in steps]
        like = json_hash([top, asdict(self.config), told, rate, code_key(MAKES_A_RUNG)])
        above, made = self.top, []
        for place, (shape, epochs) in enumerate(steps, start=1):
            folder = self.folder / arm / f"rung-{place}-{like}"
            if not (folder / "model").exists():
                student = self.make(arm, above, shape, epochs, folder, rate=rate)
                if place == len(steps):
                    self.settle(student, folder)
                student.save_pretrained(folder / "model")
            made.append(folder / "model")
            above = self.model(made[-1])
        return made

    def _gradual(self) -> list[Path]:
        out = self.folder / "gradual"
        descend(
            self.layout.folder,
            config=self.config,
            out=out,
            timed_requests=self.bed.timed_requests,
            predict=self._predict,
        )
        layout = RunLayout(out)
        return [layout.model(name) for name in layout.models()[1:]]

    def latency_ratio(self, place: int, *, is_last: bool) -> float:
        """Median time of a request at a rung of the gradual ladder, as a share of the top's.

        Args:
            place: of the rung, from 1.
            is_last: whether to time it anew, on more requests than the gate did.
        """
        layout = RunLayout(self.folder / "gradual")
        name = layout.models()[place]
        if is_last:
            requests = _TIMED_AGAIN * self.bed.timed_requests
            timed = LatencyRatio(self.top, self.book, self.split.test, requests=requests)
            return timed(self.model(layout.model(name)))
        taken = rung_record(layout, name)["latency_ms"]
        return float(taken["rung"] / taken["top"])

    def passes(self, place: int) -> bool:
        """Whether a rung of the gradual ladder passed the gate; the others are undecided.

        Args:
            place: of the rung, from 1.
        """
        layout = RunLayout(self.folder / "gradual")
        return bool(rung_record(layout, layout.models()[place])["status"] == "pass")

    def _came_to(self) -> tuple[list[Shape], list[float]]:
        """Shapes and epochs of the gradual ladder's rungs."""
        self._gradual()
        layout = RunLayout(self.folder / "gradual")
        records = [rung_record(layout, name) for name in layout.models()[1:]]
        taken = [record["attempts"][-1] for record in records]
        return [Shape(**one["shape"]) for one in taken], [one["epochs"] for one in taken]

    def make(
        self,
        arm: ArmName,
        above: Foundation,
        shape: Shape,
        epochs: float,
        folder: Path,
        *,
        rate: Rate,
    ) -> Foundation:
        """A model of a shape, trained as an arm does.

        Args:
            arm: which.
            above: the model that it comes from.
            shape: of the model.
            epochs: of its training.
            folder: keeps where it begins, and how far its training is.
            rate: that matrices learn at, and how many times as fast tables do.
        """
        folder.mkdir(parents=True, exist_ok=True)
        student = self._start(arm, above, shape, folder)
        if epochs:  # What repair was enough for is not trained without a teacher either.
            self._train(arm, above, student, epochs, folder, rate)
        return student

    def settle(self, model: Foundation, folder: Path) -> None:
        """Calibrate an arm's last rung as a ladder does, and note what it is worth there."""
        valid, predict = self.split.valid, self._predict
        for task in range(len(self.book.prompter.tasks)):
            fit_on_validation(model, self.book, valid, task=task, requests=0, predict=predict)
        quality = float(ndcg(predict(model, self.book, valid).rank, 10).mean())
        write_whole(folder / VALIDATED, json.dumps({"ndcg@10": quality}) + "\n")

    def _train(
        self,
        arm: ArmName,
        above: Foundation,
        student: Foundation,
        epochs: float,
        folder: Path,
        rate: Rate,
    ) -> None:
        """As an arm does."""
        plain = arm in ("finetune", "from_scratch")
        config = replace(self.config, teacher=None) if plain else self.config
        fit = config.schedule(epochs, above=above.num_parameters())
        fit = replace(fit, learning_rate=rate[0], table_rate=rate[1])
        options: dict[str, Any] = {
            "config": fit,
            "out": folder / "fit",
            "validate": (lambda: watch(student, self.book, self.split.valid))
            if fit.evaluate_steps
            else None,
        }
        with whole_inputs(student):
            if plain:
                student.fit(self.book, self.split, **options)
            else:
                assert self.config.teacher is not None
                distil(
                    student,
                    above,
                    self.book,
                    self.split,
                    teacher_config=self.config.teacher,
                    **options,
                )

    def _start(self, arm: ArmName, above: Foundation, shape: Shape, folder: Path) -> Foundation:
        """The student before it is trained; kept, so that a resumed training has the same one."""
        start = folder / "start"
        if not start.exists():
            if arm == "from_scratch":
                made = random_below(self.top, shape, self.recipe, self.book, self.split)
            else:
                rows = calibration_rows(
                    self.book,
                    self.split.train,
                    count=self.config.calibration_rows,
                    seed=self.config.seed,
                )
                repaired = None if arm == "no_repair" else rows
                made = prune(above, self._importance(above, rows), shape, rows=repaired)
            made.save_pretrained(start)
        return load_model(start).to(training_device())

    def _importance(self, above: Foundation, rows: Rows) -> Importance:
        """Of a model's parts; of the top's, where three arms begin, measured once."""
        if above is not self.top:
            return measure_importance(above, rows)
        if self._of_top is None:
            self._of_top = measure_importance(above, rows)
        return self._of_top

    def model(self, folder: Path) -> Foundation:
        """A model, on the device that trainings are on."""
        return load_model(folder).to(training_device())

    def answers(self, folder: Path) -> Answers:
        """Of a model to the test requests; kept, since a reading of them all takes minutes."""
        served = json.loads((folder / "foundation.json").read_text("utf-8"))
        recipe = self.recipe
        asked = [self.config.gate_people, recipe.held_out_slates, recipe.test_slates]
        asked.append(recipe.held_out_people)
        kept = self.folder / "answers" / f"{json_hash([weights_hash(folder), served, asked])}.npz"
        ask = partial(self._asked, folder)
        return Answers(**kept_arrays(kept, ask, asking="benchmarks.ladder"))

    def _asked(self, folder: Path, _: Path) -> dict[str, NDArray[Any]]:
        model, asked = self.model(folder), Asked(self.book, self.split.test)
        said = self._predict(model, self.book, self.split.test)
        found = asdict(asked.of(said, model.calibration(asked.task)))
        return {name: values for name, values in found.items() if values is not None}


def _quality(model: Path) -> float:
    """NDCG@10 on validation of an arm's last rung, by the folder of its model."""
    found = json.loads((model.parent / VALIDATED).read_text("utf-8"))
    return float(found["ndcg@10"])


def random_below(
    top: Foundation, shape: Shape, recipe: Recipe, book: PromptBook, split: Split
) -> Foundation:
    """A model of a smaller shape that knows nothing.

    Args:
        top: whose catalogue and kind of decoder it has.
        shape: of its decoder.
        recipe: whose foundation and seed it has.
        book: pieces of the interactions.
        split: which events train.
    """
    torch.manual_seed(recipe.seed)
    config = stock_config(top.decoder, shape)
    config.initializer_range = shape.hidden**-0.5
    decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    start_as_averages(decoder)
    made = Foundation(
        decoder,
        prompter=book.prompter,
        config=recipe.foundation,
        item_ids=top.item_ids,
        item_pieces=top.item_pieces,
    )
    made.count_exposure(book.interactions.event_item[split.train])
    made.encode_catalogue()
    made.refresh_readings()
    return made.eval()


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
    rows = LadderRows(bed.name, out)
    for seed in seeds:
        descent = Descent(bed, seed, work)
        top = descent.answers(descent.layout.model(FOUNDATION))
        rows.add_top(seed, top, params=descent.top.num_parameters())
        for arm in arms:
            folders = descent.rungs(arm)
            for place, folder in enumerate(folders, start=1):
                is_last = place == len(folders)
                if is_last or arm == "gradual":
                    timed = partial(descent.latency_ratio, place, is_last=is_last)
                    rows.add_rung(
                        arm,
                        place,
                        seed,
                        descent.answers(folder),
                        params=descent.model(folder).num_parameters(),
                        is_last=is_last,
                        latency=timed if arm == "gradual" else None,
                        passes=descent.passes(place) if arm == "gradual" else None,
                    )
    rows.add_means()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="A little at a time against all at once, and what each part is worth."
    )
    parser.add_argument("task", choices=BEDS)
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--minutes",
        type=float,
        help="of distillation a rung, instead of the bed's epochs",
    )
    parser.add_argument(
        "--epochs",
        type=float,
        help="of the top, instead of the bed's, which suit one core; rungs then follow it alone",
    )
    parser.add_argument(
        "--to", type=float, help="share of the body to end at, instead of the bed's"
    )
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
            epochs=options.epochs,
            held_out=options.held_out,
        )
        seeds = options.seed[:1] if options.smoke else options.seed
        # Whole, so that rows of another default are other rows.
        ladder = asdict(LadderConfig(**bed.changes))
        settings = {"recipe": bed.recipe.to_dict(), "ladder": ladder}
        out = Measured("ladder", settings, out=options.out)
        measure(bed, options.arm, seeds, options.work, out)
    except (ValueError, OSError) as error:
        print(f"benchmarks.ladder: error: {error}", file=sys.stderr)
        return 1
    print(out.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
