"""The evaluation stage: every model of a run on the same test targets, and the gate's verdict.

evaluation/answers-foundation.safetensors   what each system said, target by target
evaluation/metrics.json                     the numbers of the report
evaluation/results.csv                      the same as result rows
evaluation/verdict.json                     the gate on what serves, against the one above
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from decant.judging import gate_measurements, milliseconds
from decant.layout import CLICK_TEACHER, DATA, POLICY_TEACHER, RunLayout
from decant.measure import (
    NEIGHBOURS,
    Answers,
    Asked,
    Reranked,
    neighbour_answers,
    oracle_answers,
    popularity_answers,
    rerank,
)
from decant.policy_measure import Found, PolicyMeasure
from decant.recipes import Recipe
from decant.recommender import Recommender
from decant.results import ResultRow, write_csv
from decant.run_data import load_split, reading, sample_targets
from decant.run_record import RunRecord, peak_rss_bytes, utc_now
from decant.saved_oracle import SavedOracle
from distill.gate import GateConfig, GateVerdict, verdict
from foundation.predictions import predict_targets
from promptify.splits import Split, Targets
from promptify.whole import write_whole

logger = logging.getLogger(__name__)

HISTORY_LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100)
"""Events that histories are cut to for the quality-by-history plot."""


MAX_COHORT = 500
"""People whose histories are cut for that plot, at most."""
BLENDS = (0.0, 0.5, 1.0)
"""How much policy counts in the rows of what is served, in a run with a policy."""
GRADED_REQUESTS = 300
"""Requests whose first ten are graded, of a model that does not serve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One system's row, before it becomes result rows.

    Attributes:
        model: `foundation`, `rung-1`, `system`, `popularity`, ….
        params: body parameters; None where there are none.
        answers: to the test requests.
        ms_per_request: median of the whole request; None where it is not served.
        policy: of a run with a policy, what that says of it.
    """

    model: str
    params: int | None
    answers: Answers
    ms_per_request: float | None = None
    policy: Found = field(default_factory=dict)


def evaluate(
    layout: RunLayout,
    recipe: Recipe,
    record: RunRecord,
    out: Path,
    *,
    policy: PolicyMeasure | None = None,
) -> None:
    """Measure everything once on the test targets and write it to `out`.

    Args:
        layout: the run folder.
        recipe: how many requests are re-ranked and timed.
        record: whose hardware, commit and seed the result rows carry.
        out: the stage's folder.
        policy: measures by the policy, in a run with one.
    """
    started = time.monotonic()
    recommenders = {
        name: Recommender.load(layout.folder, model=name, with_saved_items=False)
        for name in layout.compared()
    }
    *_, served = recommenders
    book = recommenders[served].book
    split = load_split(layout, book.interactions)
    asked = Asked(book, split.test)
    timed = milliseconds(recommenders, split.test, recipe.timed_requests)

    systems = []
    for name, recommender in recommenders.items():
        logger.info("evaluating %s", name)
        foundation = recommender.foundation
        predictions = predict_targets(foundation, book, split.test, progress=True)
        answers = asked.of(predictions, foundation.calibration(asked.task))
        systems.append(
            Evaluated(
                model=name,
                params=foundation.num_parameters(),
                answers=answers,
                ms_per_request=float(np.median(timed[name])),
            )
        )
    few, scored = _reranked(recommenders[served], asked, recipe.measured_users)
    systems.append(_system(recommenders[served], asked, systems[-1], few, scored))
    if policy is not None:
        systems = _by_policy(policy, layout, recommenders, asked, systems, few, scored)
    systems += [
        Evaluated(model="popularity", params=None, answers=popularity_answers(asked, split.train)),
        *(
            Evaluated(model=kind, params=None, answers=neighbour_answers(asked, split.train, kind))
            for kind in NEIGHBOURS
        ),
    ]
    with reading(layout.folder / DATA):
        oracle = SavedOracle.load(layout.folder / DATA)
    if oracle is not None:
        systems.append(
            Evaluated(model="oracle", params=None, answers=oracle_answers(asked, oracle))
        )

    judged = _judge(recommenders, split, timed)
    judged.save(out / "verdict.json")
    history = _by_history(recommenders, split.test)
    rows = _result_rows(systems, recipe, record, seconds=time.monotonic() - started)
    write_csv(out / "results.csv", rows)
    metrics = _metrics(systems, history) | {
        "num_unserved": asked.wanted.num_unserved,
        "num_seen": asked.wanted.num_seen,
    }
    write_whole(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    for system in systems:
        _save_answers(system.answers, out / f"answers-{system.model}.safetensors")


def _reranked(recommender: Recommender, asked: Asked, count: int | None) -> tuple[Asked, Reranked]:
    """Some of the requests, and the 200 items that are retrieved and scored for each."""
    few = Asked(asked.book, sample_targets(asked.targets, count), task=asked.task)
    return few, rerank(recommender, few)


def _system(
    recommender: Recommender,
    asked: Asked,
    served: Evaluated,
    few: Asked,
    scored: Reranked,
    *,
    blend: float = 0.0,
) -> Evaluated:
    """What is retrieved, ordered as a request is; the rest keep their order."""
    foundation = recommender.foundation
    alone = served.answers.rank
    assert alone is not None
    in_sample = np.isin(asked.targets.first_event[asked.wanted.request], few.targets.first_event)
    weight = foundation.rank_weight(asked.task)
    rank = scored.ranks(weight, alone[in_sample], blend=blend)
    if blend:
        # A blend orders items; what becomes of an item is no other than without.
        return Evaluated(
            model=f"system, blend={blend:g}", params=served.params, answers=few.answers(rank, None)
        )
    in_events = np.isin(asked.event, few.event)
    probability = served.answers.action_probability
    uncalibrated = served.answers.uncalibrated_probability
    assert probability is not None
    assert uncalibrated is not None
    return Evaluated(
        model="system",
        params=served.params,
        answers=few.answers(rank, probability[in_events], uncalibrated=uncalibrated[in_events]),
        ms_per_request=served.ms_per_request,
    )


def _by_policy(
    policy: PolicyMeasure,
    layout: RunLayout,
    recommenders: dict[str, Recommender],
    asked: Asked,
    systems: list[Evaluated],
    few: Asked,
    scored: Reranked,
) -> list[Evaluated]:
    """What policy says of each system; beside them its teacher, and what a request can blend."""
    *_, served, system = systems
    student = recommenders[served.model]
    weight = student.foundation.rank_weight(asked.task)
    blended = [
        system,
        *(_system(student, asked, served, few, scored, blend=blend) for blend in BLENDS[1:]),
    ]
    graded = [
        replace(one, policy=policy.top_grade(few, scored, weight, blend=blend))
        for one, blend in zip(blended, BLENDS, strict=True)
    ]
    teacher = Recommender.load(layout.folder, model=POLICY_TEACHER, with_saved_items=False)
    rows = [
        Evaluated(
            model=POLICY_TEACHER,
            params=teacher.foundation.num_parameters(),
            answers=asked.answers(None, None),
            policy=policy.alignment(teacher.foundation, asked)
            | policy.top_grade(*_reranked(teacher, asked, GRADED_REQUESTS), 0.0, blend=1.0),
        )
    ]
    for one in systems[:-1]:
        recommender = recommenders[one.model]
        if one.model == CLICK_TEACHER:
            weight = recommender.foundation.rank_weight(asked.task)
            some = _reranked(recommender, asked, GRADED_REQUESTS)
            rows.append(replace(one, policy=policy.top_grade(*some, weight, blend=0.0)))
        else:
            rows.append(replace(one, policy=policy.alignment(recommender.foundation, asked)))
    return [*rows, *graded]


def _judge(
    recommenders: dict[str, Recommender], split: Split, timed: Mapping[str, NDArray[np.float64]]
) -> GateVerdict:
    """The gate on what serves against the model above it, on validation targets."""
    measured = {
        name: gate_measurements(
            recommender.foundation, recommender.book, split.valid, taken_ms=timed[name]
        )
        for name, recommender in list(recommenders.items())[-2:]
    }
    above, served = measured.values()
    # A model comes out up to so much slower than itself.
    return verdict(above, served, GateConfig.with_max_loss(0.01, max_slowdown=0.02))


def _by_history(recommenders: dict[str, Recommender], targets: Targets) -> list[dict[str, object]]:
    """Quality with histories cut to a few lengths: the same users and targets at each."""
    *_, served = recommenders.values()
    book = served.book
    # Only those with the longest length, so that every point speaks of the same people.
    counts = targets.history_end - targets.history_start
    lengths = [n for n in HISTORY_LENGTHS if (counts >= n).sum() >= min(200, len(targets))]
    cohort = sample_targets(targets[counts >= lengths[-1]], MAX_COHORT)
    points: list[dict[str, object]] = []
    for name, recommender in recommenders.items():
        for length in lengths:
            asked = Asked(book, cohort.cut(length), seen=cohort)
            foundation = recommender.foundation
            predictions = predict_targets(foundation, book, cohort.cut(length), full_history=cohort)
            answers = asked.of(predictions, foundation.calibration(asked.task))
            for metric, (interval, n) in answers.metrics().items():
                if metric in ("ndcg@10", "auc"):
                    points.append(
                        {"bucket": str(length), "model": name, "metric": metric, "n": n}
                        | asdict(interval)
                    )
    return points


def _metrics(systems: list[Evaluated], history: list[dict[str, object]]) -> dict[str, object]:
    return {
        "systems": [
            {
                "model": system.model,
                "params": system.params,
                "ms_per_request": system.ms_per_request,
                "metrics": {
                    name: asdict(interval) | {"n": n}
                    for name, (interval, n) in (system.answers.metrics() | system.policy).items()
                },
                "reliability": [asdict(curve) for curve in system.answers.reliability()],
            }
            for system in systems
        ],
        "by_history": history,
    }


def _result_rows(
    systems: list[Evaluated], recipe: Recipe, record: RunRecord, *, seconds: float
) -> list[ResultRow]:
    rows = []
    for system in systems:
        # A positive-only row stands beside the one for the last event, whatever its label.
        protocol = "leave-one-out"
        if recipe.held_out_slates != 2:
            protocol = f"leave-last-{recipe.held_out_slates}"
            if recipe.test_slates > 1:
                protocol += f", {recipe.test_slates} to test"
        if recipe.held_out_people is not None:
            protocol += f", {recipe.held_out_people} people"
        protocols = [("quality", protocol, system.answers.metrics())]
        if system.policy:
            protocols.append(("teachers", protocol, _of_teachers(system)))
        if not system.answers.is_positive_target.all():
            positive = system.answers.positive_targets()
            protocols.append(("quality", f"{protocol}, positive targets", positive.metrics()))
        for benchmark, split, metrics in protocols:
            for metric, (interval, n) in metrics.items():
                has_interval = interval.low < interval.high
                rows.append(
                    ResultRow(
                        benchmark=benchmark,
                        task=recipe.name,
                        split=split,
                        model=system.model,
                        params=system.params,
                        context_tokens=recipe.prompter.max_prompt_tokens if system.params else None,
                        metric=metric,
                        value=interval.value,
                        ci_low=interval.low if has_interval else None,
                        ci_high=interval.high if has_interval else None,
                        n=n,
                        seconds=round(seconds, 1),
                        peak_bytes=peak_rss_bytes(),
                        hardware=record.hardware,
                        commit=record.commit,
                        config_hash=record.config_hash,
                        seed=recipe.seed,
                        timestamp=utc_now(),
                    )
                )
    return rows


def _of_teachers(system: Evaluated) -> Found:
    """What policy says, and the AUC of actions by the name that it has beside it."""
    known = system.answers.metrics()
    return {**system.policy, **({"click_auc": known["auc"]} if "auc" in known else {})}


def _save_answers(answers: Answers, path: Path) -> None:
    arrays = {name: getattr(answers, name) for name in Answers.__slots__}
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}, path)
