"""The job market's policy against the rules that its generator grades by, and how fast labels are.

    python -m benchmarks.policy [--smoke] [--out FILE.csv]

The document that comes with the package reads headlines, titles and summaries as anybody would; the
generator knows what it meant by them. Their agreement is a check of the document and no target: it
has rules the generator has not (what people applied to, industry, distance by career stage).
Agreement is quadratic weighted kappa, with its interval over members. Beside it stands the
correlation with what people click on, which is what two teachers have to disagree about.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import Measured
from distill.policy import Grader, Pairs, Policy, PolicyTables
from distill.policy.document import MAX_GRADE
from distill.policy.drawing import draw_pairs
from distill.policy.judges import ExecutableJudge
from distill.policy.labels import LabelConfig, label
from foundation.evaluation import Interval, UserStatistic, bootstrap_users, mean_of_users
from promptify.sources.job_market import job_market_with_truth

SIZES = {"num_members": 2000, "num_jobs": 1500, "num_impressions": 40000}
SMOKE_SIZES = {"num_members": 100, "num_jobs": 60, "num_impressions": 1200}
SEEDS = (0, 1, 2)
_GRADES = MAX_GRADE + 1


def kappa_of_users(
    one: NDArray[np.int8], other: NDArray[np.int8], user_row: NDArray[np.int64], num_users: int
) -> UserStatistic:
    """Quadratic weighted kappa as a function of user weights."""
    place = (user_row * _GRADES + one) * _GRADES + other
    counts = np.bincount(place, minlength=num_users * _GRADES**2)
    confusion = counts.reshape(num_users, _GRADES**2).astype(np.float64)
    grades = np.arange(_GRADES)
    cost = (grades[:, None] - grades[None, :]) ** 2.0

    def statistic(weights: NDArray[np.floating]) -> NDArray[np.floating]:
        seen = (weights @ confusion).reshape(-1, _GRADES, _GRADES)
        total = seen.sum(axis=(1, 2))
        by_chance = seen.sum(axis=2)[:, :, None] * seen.sum(axis=1)[:, None, :]
        kappa: NDArray[np.floating] = 1 - (seen * cost).sum(axis=(1, 2)) * total / (
            by_chance * cost
        ).sum(axis=(1, 2))
        return kappa

    return statistic


def agreement_rows(measured: Measured, seed: int, sizes: dict[str, int], num_drawn: int) -> None:
    data, truth, _ = job_market_with_truth(seed=seed, **sizes)
    log, tables = data.interactions, PolicyTables(data.interactions, data.tasks[0])
    grader = Grader(Policy.shipped("job_market"), tables)
    events = tables.shown_events
    shown = Pairs.of(log.event_user[events], log.event_item[events])
    job_of = np.array([int(item.rpartition("-")[2]) for item in log.item_ids])
    for split, pairs in (
        ("shown", shown),
        ("drawn", draw_pairs(tables, num_drawn, seed=seed).pairs),
    ):
        said, jobs = grader.grades(pairs), job_of[pairs.items]
        meant = truth.policy_grades(pairs.users, jobs).astype(np.int8)
        users, num_users = pairs.users, log.num_users
        same = (said.grade == meant).astype(np.float64)
        cells = {"task": "job_market", "split": split, "model": "policy job_market 1.0"}
        for metric, statistic in (
            ("weighted_kappa", kappa_of_users(said.grade, meant, users, num_users)),
            ("same_grade", mean_of_users(same, users, num_users)),
        ):
            interval = bootstrap_users(statistic, num_users, seed=seed)
            measured.add(seed=seed, interval=interval, metric=metric, n=len(pairs), **cells)
        clicks = truth.click_utility(pairs.users, jobs)
        for model, grade in (("policy job_market 1.0", said.grade), ("generator", meant)):
            value = float(np.corrcoef(grade, clicks)[0, 1])
            interval = Interval(value=value, low=value, high=value)
            cells["model"] = model
            measured.add(
                seed=seed,
                interval=interval,
                metric="correlation_with_clicks",
                n=len(pairs),
                **cells,
            )


def speed_rows(measured: Measured, sizes: dict[str, int], count: int) -> None:
    data, _, _ = job_market_with_truth(seed=0, **sizes)
    tables = PolicyTables(data.interactions, data.tasks[0])
    grader = Grader(Policy.shipped("job_market"), tables)
    pairs = draw_pairs(tables, count, seed=0).pairs
    grader.grades(pairs[:1000])
    began = time.perf_counter()
    grader.grades(pairs)
    rates = {"graded_per_s": count / (time.perf_counter() - began)}
    with tempfile.TemporaryDirectory() as folder:
        done = label(
            ExecutableJudge(grader), tables, Path(folder) / "labels", LabelConfig(count=count)
        )
    rates["labelled_per_s"] = count / done.seconds
    for metric, rate in rates.items():
        measured.add(
            seed=0,
            interval=Interval(value=rate, low=rate, high=rate),
            metric=metric,
            n=count,
            task="job_market",
            split="drawn",
            model="policy job_market 1.0",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="seconds instead of a minute")
    parser.add_argument("--out", type=Path, help="CSV of results")
    options = parser.parse_args(arguments)
    sizes = SMOKE_SIZES if options.smoke else SIZES
    num_drawn, count = (2000, 4000) if options.smoke else (50_000, 1_000_000)
    settings = {**sizes, "drawn": num_drawn, "labels": count}
    measured = Measured("policy", settings, out=options.out, threads=1)
    for seed in SEEDS[:1] if options.smoke else SEEDS:
        agreement_rows(measured, seed, sizes, num_drawn)
    speed_rows(measured, sizes, count)
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
