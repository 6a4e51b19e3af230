"""A rung of few bits: the served model's layers rounded, calibrated again, and put to the gate.

    decant quantise RUN                # int8, for processors
    decant quantise RUN --weights fp8  # or int4, for a GPU, and where there is one

The rung is numbered below the others and serves where the gate lets it through; where the gate is
undecided it is kept, and serves once it is waived as a ladder's rung is. Beside the gate it is held
to this: where the best item leads the next by more than the scores differ, it stays best.
On a GPU the others are asked in bfloat16 there, as they would be, and the best items are float32's.
"""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decant.judging import check_timed_requests
from decant.ladder import CODE_OF_RUNGS, keep_rung, ladder_below, ladder_config, let_serve
from decant.layout import RUNG_RECORD, RunLayout
from decant.on_test import OnTest
from decant.pipeline import index_if_stale
from decant.recipes import recipe_of
from decant.run_data import load_book, load_model, reading, rung_record, sample_targets
from decant.stages import Stages
from decant.waivers import WAIVERS, read_waivers, sign_waivers
from distill.anatomy import shape_of
from distill.gate import GateVerdict, MetricVerdict
from distill.ladder import Attempt, Rung
from foundation import Foundation
from foundation.batches import take_rows
from foundation.checkpoint import weights_hash
from foundation.few_bits import has_kernels, to_gpu, to_grid
from foundation.int8 import to_int8
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Targets
from promptify.validation import BadInput
from promptify.whole import write_whole

_REQUESTS, _CANDIDATES = 100, 50


@dataclass(frozen=True, kw_only=True, slots=True)
class TopAgreement:
    """Whether the best items of two models are the same.

    Attributes:
        requests: that were compared.
        same: of them, those with the same best item.
        sure: those in which the best leads the next by more than any score differs.
        sure_same: of these, those with the same best item.
        largest_difference: of any score, log-probability.
    """

    requests: int
    same: int
    sure: int
    sure_same: int
    largest_difference: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """What became of it.

    Attributes:
        name: of the rung; None where the gate failed it.
        verdicts: against the rung above and the top, with their waivers.
        top1: agreement with the rung above.
        serves: whether it does; what is undecided is kept, and waits for a waiver.
    """

    name: str | None
    verdicts: tuple[GateVerdict, GateVerdict]
    top1: TopAgreement
    serves: bool = False

    def table(self) -> str:
        """In a few lines."""
        lines = [_line(one) for one in self.verdicts[0].metrics]
        agreed = self.top1
        lines.append(
            f"best item     the same in {agreed.same} of {agreed.requests} requests, and in "
            f"{agreed.sure_same} of the {agreed.sure} where it leads by more than scores differ"
        )
        ended = f"{self.name} is kept and does not serve; waivers in {WAIVERS} would let it through"
        if self.name is None:
            ended = "the gate fails it; nothing was kept"
        elif self.serves:
            is_waived = any(verdict.waivers for verdict in self.verdicts)
            ended = f"{self.name} serves" + (", by a waiver" if is_waived else "")
        return "\n".join(
            [
                *lines,
                f"{self.verdicts[0].status} above, {self.verdicts[1].status} "
                f"against the top: {ended}",
            ]
        )


def _line(one: MetricVerdict) -> str:
    def said(number: float | None) -> str:
        return "–" if number is None else f"{number:.4g}"

    return (
        f"{one.metric:<13} {said(one.reference):>9} → {said(one.candidate):<9} {one.status:<9} "
        f"{one.reason}"
    )


class _GateFailsError(Exception):
    """The verdicts of a rung that was not kept."""

    def __init__(self, found: Quantised) -> None:
        super().__init__("the gate fails")
        self.found = found


def quantise(
    folder: Path,
    *,
    weights: Literal["int8", "fp8", "int4"] = "int8",
    max_loss: float = 0.01,
    timed_requests: int = 300,
) -> Quantised:
    """Round the weights of the served model, as the run's next rung.

    A rung that was made of the same models before, and does not serve, is put to the gate again
    where something else is asked of it, and is found as it is where nothing else is.

    Args:
        folder: a finished run.
        weights: to how few bits; int8 is measured on the processor, the others on the GPU.
        max_loss: share of AUC and NDCG@10 that may be lost against the rung above; three times that
            against the foundation.
        timed_requests: that latency is measured on.

    Raises:
        BadInput: the folder is no finished run, what serves is rounded already, there is no GPU
            that computes in these weights, latency is measured on no request, or a waiver of the
            run folder cannot be.
    """
    check_timed_requests(timed_requests)
    if weights != "int8" and not has_kernels(weights):
        raise BadInput(
            f"--weights {weights} is for GPUs that compute in {weights}, and there is none here; "
            "--weights int8 is for processors."
        )
    layout = RunLayout(folder)
    above_name = layout.served()
    read_waivers(folder)
    above = load_model(layout.model(above_name))
    if above.settings.weights != "float32":
        raise BadInput(f"{above_name} serves {folder} and is in {above.settings.weights} already.")
    book, split = load_book(layout)
    config = ladder_config(folder, max_loss=max_loss, max_loss_vs_top=3 * max_loss)
    top = above if above_name == layout.top else load_model(layout.model(layout.top))
    # Int8 is computed on a processor; what a GPU computes is copied there as it is asked.
    ladder = ladder_below(
        top,
        book,
        split,
        config,
        timed_requests=timed_requests,
        fitting_requests=recipe_of(folder).fitting_requests,
        device="cpu",
    )
    if weights != "int8":
        judge = ladder.hands.measure
        ladder.hands = replace(
            ladder.hands,
            measure=lambda models, targets: judge(
                {name: _on_gpu(model) for name, model in models.items()}, targets
            ),
        )
    made_of = {
        "weights": weights,
        "above": weights_hash(layout.model(above_name)),
        "top": weights_hash(layout.model(layout.top)),
    }
    name = _name_of(layout, made_of)

    def make(out: Path, scratch: Path) -> None:
        shutil.rmtree(scratch / "model", ignore_errors=True)
        small = copy.deepcopy(above)
        if weights == "int8":
            to_int8(small)
            asked, reference = small, above
        else:
            to_grid(small, weights)
            asked, reference = _on_gpu(small), copy.deepcopy(above).cuda()
        ladder.hands.settle(asked)
        small.settings = asked.settings
        small.save_pretrained(scratch / "model")
        (scratch / "judged.json").unlink(missing_ok=True)
        judged = ladder.judge(above, scratch)
        verdicts = (
            GateVerdict.load(scratch / "verdicts" / "above.json"),
            GateVerdict.load(scratch / "verdicts" / "top.json"),
        )
        top1 = top_agreement(reference, asked, book, split.valid)
        if judged["status"] == "fail" or top1.sure_same < top1.sure:
            raise _GateFailsError(Quantised(name=None, verdicts=verdicts, top1=top1))
        taken = Attempt(
            step=0.0,
            shape=shape_of(small.decoder),
            parameters=small.num_parameters(),
            status=judged["status"],
            num_targets=judged["num_targets"],
            measured=judged["measured"],
            p99_ms=judged["p99_ms"]["rung"],
        )
        rung = Rung(
            folder=scratch / "model",
            attempts=(taken,),
            above=verdicts[0],
            top=verdicts[1],
            p99_ms=judged["p99_ms"],
        )
        keep_rung(rung, OnTest(top, book, split), out, name=name, above_name=above_name)
        record = json.loads((out / RUNG_RECORD).read_text("utf-8"))
        record |= {"weights": weights, "top1": asdict(top1)}
        write_whole(out / RUNG_RECORD, json.dumps(record, indent=2) + "\n")

    with reading(folder / "recipe.json"):
        recipe = json.loads((folder / "recipe.json").read_text("utf-8"))
    with Stages(folder, recipe=recipe) as stages:
        try:
            stages.run(
                name,
                make,
                inputs={**made_of, "max_loss": max_loss, "timed_requests": timed_requests},
                code=CODE_OF_RUNGS,
            )
        except _GateFailsError as stopped:
            return stopped.found
        let_serve(layout, name)
        try:
            sign_waivers(layout)
        finally:  # A waiver that is refused leaves a run that serves.
            index_if_stale(layout)
        return _kept(layout, name)


def _name_of(layout: RunLayout, made_of: Mapping[str, str]) -> str:
    """Of the rung that was made of the same before; else the next number."""
    rungs = [name for name in layout.models() if name.startswith("rung-")]
    for name in rungs:
        path = layout.folder / name / "stage.json"
        with reading(path):
            inputs = json.loads(path.read_text("utf-8"))["inputs"]
        if all(inputs.get(what) == which for what, which in made_of.items()):
            return name
    numbers = [int(name.removeprefix("rung-")) for name in rungs]
    return f"rung-{max(numbers, default=0) + 1}"


def _kept(layout: RunLayout, name: str) -> Quantised:
    """What is said of a rung that is there."""
    above, top = (
        GateVerdict.load(layout.folder / name / f"verdict-{against}.json")
        for against in ("above", "top")
    )
    return Quantised(
        name=name,
        verdicts=(above, top),
        top1=TopAgreement(**rung_record(layout, name)["top1"]),
        serves=layout.served() == name,
    )


def _on_gpu(model: Foundation) -> Foundation:
    """A copy as it is asked there."""
    model = copy.deepcopy(model)
    to_gpu(model)
    return model


def top_agreement(
    above: Foundation, small: Foundation, book: PromptBook, targets: Targets, *, task: int = 0
) -> TopAgreement:
    """Compare the best items of two models over what the first retrieves.

    Args:
        above: whose best candidates are scored by both.
        small: the other.
        book: pieces of the interactions.
        targets: whose requests, some of them.
        task: index of the task.
    """
    rows = book.prefixes(sample_targets(targets, _REQUESTS), task=task)
    item_IV = above.embed_items()
    # One request at a time: all of them by all items are gigabytes in a large catalogue.
    items_RC = np.array(
        [np.argsort(-(item_IV @ user_V))[:_CANDIDATES] for user_V in above.embed_users(rows)]
    )
    weight = above.rank_weight(task)
    was_RC, now_RC = (
        _totals(model, rows, items_RC, task=task, weight=weight) for model in (above, small)
    )
    # What all candidates of a request gain alike changes no place.
    was_RC, now_RC = (told - told.mean(1, keepdims=True) for told in (was_RC, now_RC))
    difference_R = np.abs(now_RC - was_RC).max(1)
    best_RC = np.sort(was_RC, 1)
    is_sure_R = best_RC[:, -1] - best_RC[:, -2] > difference_R
    is_same_R = was_RC.argmax(1) == now_RC.argmax(1)
    return TopAgreement(
        requests=len(rows),
        same=int(is_same_R.sum()),
        sure=int(is_sure_R.sum()),
        sure_same=int((is_same_R & is_sure_R).sum()),
        largest_difference=float(difference_R.max()),
    )


def _totals(
    model: Foundation, rows: Rows, items_RC: NDArray[np.int64], *, task: int, weight: float
) -> NDArray[np.float64]:
    """What a request ranks by, of its candidates [R, C]: log p(next item) + w · log p(positive)."""
    calibrate = model.calibration(task)
    good = np.flatnonzero(model.prompter.tasks[task].is_positive)
    user_RV, item_IV = model.embed_users(rows), model.embed_items()
    totals = []
    for row, items_C in enumerate(items_RC):
        said_CA = model.score(take_rows(rows, np.array([row])), items_C, task=task)
        liked_C = np.logaddexp.reduce(calibrate(said_CA)[:, good].astype(np.float64), 1)
        totals.append(item_IV[items_C] @ user_RV[row] + weight * liked_C)
    return np.stack(totals)
