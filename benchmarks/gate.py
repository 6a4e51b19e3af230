"""How often the gate errs: models with a planted loss that it lets through, and equals it refuses.

    python -m benchmarks.gate [--metrics ndcg@10 auc ece] [--draws N] [--smoke] [--out FILE.csv]
    python -m benchmarks.gate --run RUN [--out FILE.csv]

A reference and two candidates are drawn for some number of people and targets. On a share of the
targets a candidate says what the reference says, as models of one ladder do, on the others it was
drawn apart. The loss is planted exactly: of a candidate's hits a share is missed, or of its
probabilities a share is noise. Of calibration, both are calibrated on what they know, and a
candidate says by so much too much. `gate_false_accept` is how often a loss of 2 % passes a gate of
1 %, or a calibration error of .01 one of .005; `gate_false_reject` how often no loss at all fails;
the rest is undecided, which asks for more targets. Rows of `two looks` are of a ladder's step: the
first candidate is what repair left, and unless it passes the second is what teaching made of it;
each bound is one of 97.5 %, so that both are of 95 % together. Intervals are Wilson's, 95 %.

With a run the gate's clock is looked at instead: the run's model is timed against itself, in turn,
as a rung is against the one above. `slowdown_p95` is what such a pair comes out at in one of twenty
cases, in parts of its time; a rung must be let come out as much slower, which is
`LadderConfig.max_slowdown`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from tqdm.auto import tqdm

from benchmarks.measured import Measured
from benchmarks.subjects import Subject, finished
from decant.judging import milliseconds
from decant.recipes import recipe_of
from decant.recommender import Recommender, build_index
from distill.gate import (
    GateConfig,
    Measurements,
    Status,
    Tolerance,
    confidence_of_each,
    verdict,
)
from distill.ladder import place_taken
from foundation.evaluation import Interval

Metric = Literal["ndcg@10", "auc", "ece"]

TOLERANCES = {
    "ndcg@10": Tolerance(metric="ndcg@10", max_loss=0.01, kind="relative"),
    "auc": Tolerance(metric="auc", max_loss=0.01, kind="relative"),
    "ece": Tolerance(metric="ece", max_loss=0.005, kind="absolute"),
}
"""What the gate lets through; twice as much is planted."""
# Of ML-1M's targets a third is among the first ten, anywhere among them; models of neighbouring
# rungs agree on about three quarters.
_HIT_RATE, _AGREEMENT = 0.32, 0.75
_AUC = 0.75
# Of what a person wants, in standard deviations of what else decides: how far apart people are, and
# how far a model is from knowing it. Then its AUC is .8, and what two models say is .024 apart.
_WANTS, _UNKNOWN, _UNKNOWN_ALIKE = 1.1, 0.5, 0.98


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What the gate rests on.

    Args:
        metric: that may have been lost.
        num_users: people.
        targets_per_user: of each.
    """

    metric: Metric
    num_users: int
    targets_per_user: int

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.num_users} people x {self.targets_per_user}"


# A bootstrap of the AUC of 54,000 events takes ten seconds: that case is left out.
DESIGNS = (
    Design(metric="ndcg@10", num_users=1000, targets_per_user=1),
    Design(metric="ndcg@10", num_users=1000, targets_per_user=9),
    Design(metric="ndcg@10", num_users=6000, targets_per_user=1),
    Design(metric="ndcg@10", num_users=6000, targets_per_user=9),
    Design(metric="auc", num_users=1000, targets_per_user=1),
    Design(metric="auc", num_users=1000, targets_per_user=9),
    Design(metric="ece", num_users=1000, targets_per_user=1),
    Design(metric="ece", num_users=1000, targets_per_user=9),
    Design(metric="ece", num_users=6000, targets_per_user=9),
)
TIMED_REQUESTS = (60, 300)
"""Requests that a rung is timed on: in the ladder's benchmark, and by `decant ladder`."""
ROUNDS = 40
SMOKE_DESIGNS = (Design(metric="ndcg@10", num_users=200, targets_per_user=1),)


def drawn(
    design: Design, loss: float, rng: np.random.Generator
) -> tuple[Measurements, list[Measurements]]:
    """A reference and two candidates that in the long run lose so much against it.

    Args:
        design: people and targets.
        loss: share of the reference's metric; of calibration, the error itself.
        rng: draws.
    """
    user = np.repeat(np.arange(design.num_users), design.targets_per_user)
    draw = {"ndcg@10": _of_ndcg, "auc": _of_auc, "ece": _of_calibration}[design.metric]
    return draw(user, loss, rng)


def looked_twice(
    reference: Measurements, candidates: Sequence[Measurements], config: GateConfig
) -> Status:
    """The gate's word on a ladder's step, which tries the second where the first does not pass.

    Args:
        reference: the rung above.
        candidates: what repair left, and what teaching made of it.
        config: what may be lost, of each look.
    """
    first = verdict(reference, candidates[0], config).status
    if first == "pass":
        return first
    both = first, verdict(reference, candidates[1], config).status
    return both[place_taken(both)]


def _of_ndcg(
    user: NDArray[np.int64], loss: float, rng: np.random.Generator
) -> tuple[Measurements, list[Measurements]]:
    # Some people are easier than others: targets of one person are alike.
    ease = rng.normal(scale=0.8, size=user[-1] + 1)[user]
    chance = np.clip(_HIT_RATE * np.exp(ease) / np.exp(0.32), 0, 0.95)

    def ranked() -> NDArray[np.float64]:
        place = rng.integers(1, 11, size=len(user))
        return np.where(rng.random(len(user)) < chance, 1 / np.log2(1 + place), 0.0)

    def candidate() -> NDArray[np.float64]:
        apart = np.where(rng.random(len(user)) < _AGREEMENT, reference, ranked())
        return np.where(rng.random(len(user)) < loss, 0.0, apart)

    reference = ranked()
    before, *after = (
        Measurements(target_user=user, target_ndcg=one)
        for one in (reference, candidate(), candidate())
    )
    return before, after


def _of_auc(
    user: NDArray[np.int64], loss: float, rng: np.random.Generator
) -> tuple[Measurements, list[Measurements]]:
    label = rng.random(len(user)) < 0.4
    # Two normal scores a distance apart have this AUC.
    distance = np.sqrt(2) * 0.6744897501960817
    assert _AUC == 0.75

    def said() -> NDArray[np.float64]:
        scores: NDArray[np.float64] = rng.normal(size=len(user)) + distance * label
        return scores

    def candidate() -> NDArray[np.float64]:
        apart = np.where(rng.random(len(user)) < _AGREEMENT, reference, said())
        # Of a share s of the events the score is another's, whatever their labels: the AUC falls
        # by s (AUC - 1/2), since what the good ones lose in the mix of scores the bad ones win.
        share = loss * _AUC / (_AUC - 0.5)
        return np.where(rng.random(len(user)) < share, rng.permutation(apart), apart)

    reference = said()
    before, *after = (
        Measurements(event_user=user, event_label=label, event_probability=1 / (1 + np.exp(-one)))
        for one in (reference, candidate(), candidate())
    )
    return before, after


def _of_calibration(
    user: NDArray[np.int64], loss: float, rng: np.random.Generator
) -> tuple[Measurements, list[Measurements]]:
    wants = rng.normal(scale=_WANTS, size=len(user))
    label = wants + rng.normal(size=len(user)) > 0
    alike = rng.normal(size=len(user))

    def said() -> NDArray[np.float64]:
        """What is calibrated for one who sees the wants with an error."""
        own = rng.normal(size=len(user))
        error = np.sqrt(_UNKNOWN_ALIKE) * alike + np.sqrt(1 - _UNKNOWN_ALIKE) * own
        known = _WANTS**2 / (_WANTS**2 + _UNKNOWN**2)
        left = known * _UNKNOWN**2
        probability: NDArray[np.float64] = norm.cdf(
            known * (wants + _UNKNOWN * error) / np.sqrt(1 + left)
        )
        return probability

    def candidate() -> NDArray[np.float64]:
        # Higher by so much in the mean, and not where there is no room.
        calibrated = said()
        room = calibrated * (1 - calibrated)
        planted: NDArray[np.float64] = calibrated + loss * room / room.mean()
        return planted

    before, *after = (
        Measurements(event_user=user, event_label=label, event_probability=one)
        for one in (said(), candidate(), candidate())
    )
    return before, after


def measure(designs: Sequence[Design], *, draws: int, measured: Measured, seed: int = 0) -> None:
    """Draw models for every design and count the gate's verdicts.

    Args:
        designs: what the gate rests on.
        draws: of models for each, with a loss and without.
        measured: takes the rows.
        seed: of the draws.
    """
    for number, design in enumerate(designs):
        tolerance = TOLERANCES[design.metric]
        for loss, wrong, name in (
            (2 * tolerance.max_loss, "pass", "gate_false_accept"),
            (0.0, "fail", "gate_false_reject"),
        ):
            cells = {"task": design.metric, "model": f"loss {loss:.0%}"}
            ways = design.name, f"{design.name}, two looks"
            if measured.has(metric=name, seed=seed, split=ways[-1], **cells):
                continue
            began = time.monotonic()
            once, twice = (
                GateConfig(tolerances=(tolerance,), confidence=confidence_of_each(num_looks))
                for num_looks in (1, 2)
            )
            rng = np.random.default_rng([seed, number, int(loss > 0)])
            found = []
            for _ in tqdm(range(draws), desc=f"{design.metric}, {design.name}, {loss:.0%}"):
                reference, candidates = drawn(design, loss, rng)
                found.append(
                    (
                        verdict(reference, candidates[0], once).status,
                        looked_twice(reference, candidates, twice),
                    )
                )
            seconds = round(time.monotonic() - began, 1)
            for way, verdicts in zip(ways, zip(*found, strict=True), strict=True):
                for metric, status in ((name, wrong), ("gate_undecided", "undecided")):
                    count = verdicts.count(status)
                    ends = binomtest(count, draws).proportion_ci(method="wilson")
                    measured.add(
                        seed=seed,
                        interval=Interval(
                            value=count / draws, low=float(ends.low), high=float(ends.high)
                        ),
                        metric=metric,
                        split=way,
                        n=draws,
                        seconds=seconds,
                        **cells,
                    )


def measure_clock(
    subject: Subject, *, counts: Sequence[int], rounds: int, measured: Measured
) -> None:
    """Time a model against itself.

    Args:
        subject: the model.
        counts: numbers of requests that a timing rests on.
        rounds: pairs of timings for each.
        measured: takes the rows.
    """
    index = build_index(subject.foundation, model_hash="unsaved")
    pair = {
        name: Recommender(subject.foundation, index, subject.book) for name in ("above", "rung")
    }
    for requests in counts:
        cells = {"task": subject.task, "split": f"{requests} requests", "model": "itself"}
        if measured.has(metric="slowdown_p95", seed=subject.seed, **cells):
            continue
        began = time.monotonic()
        slower = []
        for _ in tqdm(range(rounds), desc=f"{requests} requests"):
            taken = milliseconds(pair, subject.split.valid, requests)
            slower.append(np.median(taken["rung"]) / np.median(taken["above"]) - 1)
        value = float(np.percentile(np.abs(slower), 95))
        rng = np.random.default_rng(0)
        drawn_again = np.abs(rng.choice(slower, size=(2000, rounds)))
        ends = np.percentile(np.percentile(drawn_again, 95, axis=1), [2.5, 97.5])
        measured.add(
            seed=subject.seed,
            interval=Interval(value=value, low=float(ends[0]), high=float(ends[1])),
            metric="slowdown_p95",
            n=rounds,
            seconds=round(time.monotonic() - began, 1),
            **cells,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="whose model is timed against itself, and no more")
    parser.add_argument("--metrics", nargs="+", choices=list(TOLERANCES), default=list(TOLERANCES))
    parser.add_argument("--draws", type=int, default=400, help="of models for each case")
    parser.add_argument("--out", type=Path, help="write the rows as CSV; a second call goes on")
    parser.add_argument("--smoke", action="store_true", help="a few draws of the smallest case")
    options = parser.parse_args(arguments)
    designs: tuple[Design, ...] = SMOKE_DESIGNS if options.smoke else DESIGNS
    designs = tuple(design for design in designs if design.metric in options.metrics)
    draws = 20 if options.smoke else options.draws
    settings: dict[str, Any] = {
        "draws": draws,
        "tolerances": {name: one.max_loss for name, one in TOLERANCES.items()},
        "agreement": _AGREEMENT,
        "wants": [_WANTS, _UNKNOWN, _UNKNOWN_ALIKE],
    }
    try:
        if options.run:
            subject = finished(options.run)
            settings = {"clock": recipe_of(options.run).to_dict(), "rounds": ROUNDS}
        measured = Measured("ladder", settings, out=options.out)
        if options.run:
            measure_clock(subject, counts=TIMED_REQUESTS, rounds=ROUNDS, measured=measured)
        else:
            measure(designs, draws=draws, measured=measured)
    except ValueError as error:
        print(f"benchmarks.gate: error: {error}", file=sys.stderr)
        return 1
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
