"""One student of a policy teacher and a click teacher: what it keeps of each, and what it costs.

    python -m benchmarks.two_teachers --out benchmarks/results/two-teachers.csv
        --plot benchmarks/results/two-teachers.png

Every arm is a small model of the job market in slots; teachers have a layer more than students.

* `policy_alignment`: held-out pairs whose most probable grade is the policy's; `policy_kappa` the
  same with quadratic weights. `policy_concordance`: of two held-out pairs of a person, the share in
  which the better graded one has the higher score. Pairs are drawn grade by grade, as far as there
  are any: at random most would be unfit.
* `click_auc`: of apply on held-out slates; `click_precision`, `click_recall` at the training log's
  share of applies. `ndcg@10`: of jobs that were applied for, among all jobs, unseen. `top10_grade`:
  the policy's grade of the first ten as a share of the best.
* `blend=b` mixes what one request says, `(1 − b) · clicks + b · policy`, in logs, without training.
  Beside the student's curve stand `average of halves`, two models of one objective each, half as
  deep as the student, whose latencies add up to about the student's; `average of two`, the same
  with two of the student's size; and `click-only, rules >= g`, in which what the policy grades
  below g comes last, exactly, since rules can be executed. `best_balance` is the best mean of
  `click_auc` and `policy_concordance` along a curve, for all alike chosen on these pairs.
* `stability_top10`, `stability_rank`: the student against itself with another seed of weights and
  shuffles, request by request. `fairness_gap`: largest less smallest mean of a metric over segments
  of people; noise alone makes it positive, so the gap of segments drawn at random, of the same
  sizes, stands beside it. `exposure`: a group's share of the first ten places over its share of the
  jobs.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from benchmarks.measured import Measured
from benchmarks.teacher_arms import ARMS, GRADES, SMOKE, Market, Said, Sizes, mixed
from decant.panels import MARKERS, SERIES, to_png
from foundation import Foundation
from foundation.batches import take_rows
from foundation.evaluation import (
    Interval,
    UserStatistic,
    auc_of_users,
    bootstrap_interval,
    bootstrap_users,
    ndcg,
    paired_bootstrap,
    precision_recall,
)
from foundation.predictions import slate_events
from promptify.whole import write_whole

BLENDS = tuple(np.linspace(0, 1, 11).round(1).tolist())
SEGMENTS = ("seniority", "industry", "place")
GROUPS = ("company_size", "workplace", "industry")
NUM_CANDIDATES = 200
_LEAST_IN_SEGMENT = 20

# Who says the clicks of a system and who its policy: one model, or two that take turns.
MIXES = {
    "student": ("student", "student"),
    "average of halves": ("click half", "policy half"),
    "average of two": ("click-only", "policy-only"),
}
AGAINST = (
    ("policy-only", "policy"),
    ("policy teacher", "policy"),
    ("click-only", "click"),
    ("click teacher", "click"),
)

Floats = NDArray[np.floating[Any]]
Curve = list[tuple[float, float, float]]
"""Blend or threshold, `policy_concordance`, `click_auc`."""


class Bench:
    """What is asked of all arms of a market, and the rows of what they answered.

    Args:
        market: whose.
        measured: takes the rows.
    """

    def __init__(self, market: Market, measured: Measured) -> None:
        self.market, self.measured = market, measured
        log, targets = market.log, market.split.test
        self.event = slate_events(targets)
        self.event_user = np.repeat(targets.user, targets.last_event - targets.first_event)
        self.is_apply = log.event_action[self.event] == log.actions.index("apply")
        shown = market.split.train & (log.event_surface == 0)
        self.apply_rate = float((log.event_action[shown] == log.actions.index("apply")).mean())
        self.event_grade = market.grades(self.event_user, log.event_item[self.event])
        q = min(market.sizes.requests, len(targets))
        self.seen_qJ = np.zeros((q, len(market.job_rows)), np.bool_)
        place = np.full(log.num_items, -1)
        place[market.job_rows] = np.arange(len(market.job_rows))
        for row in range(q):
            past = slice(int(targets.history_start[row]), int(targets.history_end[row]))
            seen = place[log.event_item[past]]
            self.seen_qJ[row, seen[seen >= 0]] = True
        # What was applied for in the slates of those who rank every job.
        request_e = np.repeat(np.arange(len(targets)), targets.last_event - targets.first_event)
        wanted = np.flatnonzero(self.is_apply & (request_e < q))
        self.wanted = request_e[wanted], place[log.event_item[self.event[wanted]]]
        self.grade_qJ = market.grades(
            np.repeat(targets.user[:q], len(market.job_rows)), np.tile(market.job_rows, q)
        ).reshape(q, -1)
        self.request_user = targets.user[:q]

    # Numbers of one system.

    def click_auc(self, score: Floats) -> Interval:
        """AUC of apply over held-out events."""
        return self._of_events(auc_of_users, score)

    def _of_events(self, statistic: Any, score: Floats) -> Interval:
        users, row = np.unique(self.event_user, return_inverse=True)
        made: UserStatistic = statistic(self.is_apply, score, row, len(users))
        return bootstrap_users(made, len(users), numbers_per_draw=len(score))

    def concordance(self, score: Floats) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Of each person with pairs of different grades: the share ordered as policy does."""
        found, user, pair_user = [], [], self.market.pair_user
        for one in np.unique(pair_user):
            mine = slice(*np.searchsorted(pair_user, [one, one + 1]))
            better = np.sign(np.subtract.outer(*[self.market.pair_grade[mine]] * 2))
            told = np.sign(np.subtract.outer(*[score[mine]] * 2))
            if (better > 0).any():
                found.append(float((1 + told[better > 0]).mean() / 2))
                user.append(one)
        return np.array(found), np.array(user)

    def top(self, score_qJ: Floats) -> NDArray[np.int64]:
        """The first ten unseen jobs of each request, [q, 10]."""
        left = np.where(self.seen_qJ, -np.inf, score_qJ)
        order: NDArray[np.int64] = np.argsort(-left, axis=1, kind="stable")[:, :10]
        return order

    # Rows.

    def add(self, model: str, metric: str, interval: Interval, n: int, **cells: Any) -> None:
        """Write a row, unless it is no number."""
        if np.isfinite(interval.value):
            self.measured.add(
                seed=self.market.seed,
                interval=interval,
                task="job_market",
                split="leave_one_out",
                model=model,
                metric=metric,
                n=n,
                context_tokens=self.market.book.prompter.config.max_prompt_tokens,
                **cells,
            )

    def arm(self, name: str, said: Said, *, params: int) -> None:
        """What one model is worth on each side."""
        weights, market = ARMS[name].weights, self.market
        cells = {"params": params}
        learns_policy = weights.alpha or "policy" in ARMS[name].teachers
        learns_clicks = weights.beta or "click" in ARMS[name].teachers
        if weights.alpha:
            right = (said.pair_grade.argmax(1) == market.pair_grade).astype(float)
            interval = bootstrap_interval(right, market.pair_user)
            self.add(name, "policy_alignment", interval, len(right), **cells)
            kappa = cohen_kappa_score(
                market.pair_grade,
                said.pair_grade.argmax(1),
                labels=range(len(GRADES)),
                weights="quadratic",
            )
            self.add(name, "policy_kappa", _exactly(float(kappa)), len(right), **cells)
        # What an arm was never taught is said by what it was taught.
        click = said.event_click if learns_clicks else said.event_policy
        policy = said.pair_policy if learns_policy else said.pair_click
        self.add(name, "click_auc", self.click_auc(click), len(click), **cells)
        values, user = self.concordance(policy)
        self.add(name, "policy_concordance", bootstrap_interval(values, user), len(user), **cells)
        if learns_clicks:
            predicted = np.exp(said.event_click) >= self.apply_rate
            both = precision_recall(self.is_apply.astype(int), predicted.astype(int), num_labels=2)
            for metric, value in zip(("click_precision", "click_recall"), both, strict=True):
                self.add(name, metric, _exactly(float(value[1])), len(click), **cells)
        sides = [b for b, is_known in ((0.0, learns_clicks), (1.0, learns_policy)) if is_known]
        for blend in sides if len(sides) == 1 else (0.0, 0.5, 1.0):
            model = name if len(sides) == 1 else f"{name}, blend={blend:g}"
            self.ranked(model, said.served(blend), **cells)

    def ranked(self, model: str, score_qJ: Floats, **cells: Any) -> None:
        """Quality of an order of all jobs."""
        request, place = self.wanted
        if len(request):
            own = score_qJ[request, place]
            is_open = ~self.seen_qJ[request]
            # Ties count against us.
            rank = ((score_qJ[request] >= own[:, None]) & is_open).sum(1).clip(min=1)
            values = ndcg(rank, 10)
            user = self.request_user[request]
            self.add(model, "ndcg@10", bootstrap_interval(values, user), len(values), **cells)
        top = self.top(score_qJ)
        grade = np.take_along_axis(self.grade_qJ, top, 1).mean(1) / (len(GRADES) - 1)
        interval = bootstrap_interval(grade, self.request_user)
        self.add(model, "top10_grade", interval, len(grade), **cells)

    def curve(self, name: str, click: Said, policy: Said) -> Curve:
        """Both sides of a mix at every blend.

        Args:
            name: of the system.
            click: what says the clicks.
            policy: what says the policy; may be the same.
        """
        points: Curve = []
        for blend in BLENDS:
            events = mixed(click.event_click, policy.event_policy, blend)
            pairs = mixed(click.pair_click, policy.pair_policy, blend)
            points.append((blend, *self._point(f"{name}, blend={blend:g}", events, pairs)))
        self._balance(name, points)
        return points

    def rules(self, name: str, said: Said) -> Curve:
        """Clicks with the policy's own grades applied afterwards: what is below comes last."""
        points: Curve = []
        for least in range(len(GRADES)):
            events = said.event_click - 1e3 * (self.event_grade < least)
            pairs = said.pair_click - 1e3 * (self.market.pair_grade < least)
            points.append((least, *self._point(f"{name}, rules >= {least}", events, pairs)))
        self._balance(f"{name}, rules", points)
        return points

    def _point(self, model: str, events: Floats, pairs: Floats) -> tuple[float, float]:
        values, user = self.concordance(pairs)
        policy, click = bootstrap_interval(values, user), self.click_auc(events)
        self.add(model, "policy_concordance", policy, len(user))
        self.add(model, "click_auc", click, len(events))
        return policy.value, click.value

    def _balance(self, name: str, points: Curve) -> None:
        best = max((policy + click) / 2 for _, policy, click in points)
        self.add(name, "best_balance", _exactly(best), len(points))

    def compare(self, name: str, said: Said, other: str, by: Said, side: str) -> None:
        """Relative loss of an arm against another on one side; below 0 the arm is better."""
        market = self.market
        if side == "policy":
            right = [(one.pair_grade.argmax(1) == market.pair_grade) * 1.0 for one in (by, said)]
            lost = paired_bootstrap(right[0], right[1], market.pair_user)
            self.add(name, f"policy_alignment_loss_vs_{other}", lost, len(right[0]))
            return
        users, row = np.unique(self.event_user, return_inverse=True)
        before, after = (
            auc_of_users(self.is_apply, one.event_click, row, len(users)) for one in (by, said)
        )
        lost = bootstrap_users(
            lambda weights: 1 - after(weights) / before(weights),
            len(users),
            numbers_per_draw=2 * len(self.event),
        )
        self.add(name, f"click_auc_loss_vs_{other}", lost, len(self.event))

    def stability(self, name: str, said: Said, other: Said, *, blend: float) -> None:
        """How much of an order is left with another seed."""
        one, two = said.served(blend), other.served(blend)
        top_one, top_two = self.top(one), self.top(two)
        overlap = (top_one[:, :, None] == top_two[:, None]).any(2).mean(1)
        rank = np.array(
            [
                spearmanr(a[~seen], b[~seen]).statistic
                for a, b, seen in zip(one, two, self.seen_qJ, strict=True)
            ]
        )
        model = f"{name}, blend={blend:g}"
        for metric, values in (("stability_top10", overlap), ("stability_rank", rank)):
            self.add(model, metric, bootstrap_interval(values, self.request_user), len(values))

    def fairness(self, name: str, said: Said, *, blend: float) -> None:
        """Gaps over segments of people, and exposure of groups of jobs."""
        market = self.market
        right = (said.pair_grade.argmax(1) == market.pair_grade).astype(float)
        ordered, ordered_user = self.concordance(said.pair_policy)
        sides = {
            "policy_alignment": (right, market.pair_user),
            "policy_concordance": (ordered, ordered_user),
            "click_concordance": self._click_concordance(said.event_click),
        }
        rng = np.random.default_rng(0)
        for field in SEGMENTS:
            segment_U = np.unique(market.log.users[field], return_inverse=True)[1]
            for metric, (values, user) in sides.items():
                gap = _gap(values, user, segment_U)
                if gap is None:
                    continue
                self.add(name, f"fairness_gap_{metric}_by_{field}", gap, len(values))
                chance = [
                    one.value
                    for _ in range(20)
                    if (one := _gap(values, user, rng.permutation(segment_U), draws=2))
                ]
                if chance:
                    by_chance = _exactly(float(np.mean(chance)))
                    metric_name = f"fairness_gap_{metric}_by_{field}_at_random"
                    self.add(name, metric_name, by_chance, len(values))
        top = self.top(said.served(blend))
        jobs = market.log.items.select(market.job_rows)
        for field in GROUPS:
            names, group_J = np.unique(np.array(jobs[field]), return_inverse=True)
            for number, group in enumerate(names.tolist()):
                share = (group_J[top] == number).mean(1) / (group_J == number).mean()
                interval = bootstrap_interval(share, self.request_user)
                self.add(
                    f"{name}, blend={blend:g}", f"exposure_{field}={group}", interval, len(top)
                )

    def _click_concordance(self, score: Floats) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Of each slate with and without an apply: the share of such two that are in order."""
        found, user = [], []
        for one in np.unique(self.event_user):
            mine = self.event_user == one
            good, other = score[mine & self.is_apply], score[mine & ~self.is_apply]
            if len(good) and len(other):
                found.append(float((1 + np.sign(np.subtract.outer(good, other))).mean() / 2))
                user.append(one)
        return np.array(found), np.array(user)

    def latency(self, systems: Mapping[str, Sequence[Foundation]]) -> None:
        """Milliseconds of a request, all systems in turn: a prefix and 200 jobs, both groups."""
        rows, market = self.market.rows, self.market
        items = market.job_rows[:NUM_CANDIDATES].astype(np.int64)
        taken: dict[str, list[float]] = {name: [] for name in systems}
        for request in range(-3, market.sizes.timed_requests):
            prefix = take_rows(rows, np.array([request % len(rows)]))
            for name, models in systems.items():
                began = time.perf_counter()
                for model in models:
                    model.score_both(prefix, items)
                if request >= 0:
                    taken[name].append(1e3 * (time.perf_counter() - began))
        for name, values in taken.items():
            for q in (50, 95, 99):
                value = _exactly(float(np.percentile(values, q)))
                self.add(name, f"p{q}_ms", value, len(values))


def _gap(
    values: Floats, user: NDArray[Any], segment_U: NDArray[Any], *, draws: int = 1000
) -> Interval | None:
    """Largest less smallest mean over segments with enough people; None of fewer than two."""
    users, row = np.unique(user, return_inverse=True)
    segment = segment_U[users]
    known = [s for s in np.unique(segment) if (segment == s).sum() >= _LEAST_IN_SEGMENT]
    if len(known) < 2:
        return None
    sums, counts = (
        np.bincount(row, weights, minlength=len(users)) for weights in (values, np.ones(len(row)))
    )

    def statistic(weights: Floats) -> Floats:
        means = np.stack(
            [
                (weights[:, of] @ sums[of]) / (weights[:, of] @ counts[of])
                for of in (segment == s for s in known)
            ]
        )
        gap: Floats = means.max(0) - means.min(0)
        return gap

    return bootstrap_users(statistic, len(users), num_samples=draws)


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def measure(market: Market, measured: Measured, arms: Sequence[str]) -> dict[str, Curve]:
    """Every row of some arms of a market's seed; the curves of the figure.

    Args:
        market: whose.
        measured: takes the rows.
        arms: which; what is compared needs all of its arms.
    """
    bench, said = Bench(market, measured), {}
    for name in arms:
        said[name] = market.said(name)
        bench.arm(name, said[name], params=market.model(name).num_parameters())
    curves = {
        name: bench.curve(name, said[click], said[policy])
        for name, (click, policy) in MIXES.items()
        if {click, policy} <= set(said)
    }
    if "click-only" in said:
        curves["click-only, rules"] = bench.rules("click-only", said["click-only"])
    student = said.get("student")
    if student is None:
        return curves
    for other, side in AGAINST:
        if other in said:
            bench.compare("student", student, other, said[other], side)
    for blend in (0.0, 0.5, 1.0):
        if "student, other seed" in said:
            bench.stability("student", student, said["student, other seed"], blend=blend)
    bench.fairness("student", student, blend=0.5)
    if not measured.has(model="student", metric="p50_ms", seed=market.seed):
        bench.latency(
            {
                name: [market.model(arm) for arm in dict.fromkeys(pair)]
                for name, pair in MIXES.items()
                if set(pair) <= set(said)
            }
        )
    return curves


def figure(curves: Mapping[str, Curve], measured: Measured) -> Figure:
    """Policy against clicks: a line for each system, a point for each arm with a weight at zero."""
    drawn = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = drawn.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        _, policy, click = zip(*points, strict=True)
        # Thresholds of a rule are no way from one end to the other.
        line = "none" if name.endswith("rules") else "-"
        mark, color = MARKERS[number], SERIES[number]
        axes.plot(policy, click, label=name, linestyle=line, color=color, marker=mark)
    for name in ("policy teacher", "click teacher", *(a for a in ARMS if a.endswith(" 0"))):
        values = {row.metric: row.value for row in measured.rows if row.model == name}
        if not values:
            continue
        axes.plot(values["policy_concordance"], values["click_auc"], "o", color="#667085")
        axes.annotate(name, (values["policy_concordance"], values["click_auc"]), fontsize=8)
    axes.set_xlabel("policy concordance on held-out pairs")
    axes.set_ylabel("click AUC on held-out slates")
    axes.legend(frameon=False)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny market and decoder")
    parser.add_argument("--out", type=Path, help="CSV; a second call goes on where it stopped")
    parser.add_argument("--plot", type=Path, help="PNG of policy against clicks, of the last seed")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="of data and weights")
    parser.add_argument(
        "--arm", nargs="+", choices=ARMS, default=list(ARMS), help="which; all when left out"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/two-teachers"), help="keeps models and answers"
    )
    options = parser.parse_args(arguments)
    sizes = SMOKE if options.smoke else Sizes()
    try:
        measured = Measured("teachers", {"sizes": str(sizes)}, out=options.out)
        for seed in options.seed:
            curves = measure(Market(seed, sizes, options.work), measured, options.arm)
        if options.plot is not None:
            write_whole(options.plot, to_png(figure(curves, measured)))
    except (ValueError, OSError) as error:
        print(f"benchmarks.two_teachers: error: {error}", file=sys.stderr)
        return 1
    print(measured.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
