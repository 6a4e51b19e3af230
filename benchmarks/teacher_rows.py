"""The rows of `benchmarks.two_teachers`: numbers of what arms said, and of one beside another."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from benchmarks.measured import Measured
from benchmarks.teacher_arms import ARMS, Said, School, mixed
from benchmarks.teacher_beds import GRADES
from benchmarks.teacher_numbers import Floats, Kept, Told, expected_auc_of_users, in_order
from foundation.evaluation import (
    Interval,
    auc_of_users,
    bootstrap_users,
    mean_of_users,
    ndcg,
    precision_recall,
)
from promptify.splits import slate_events

BLENDS = tuple(np.linspace(0, 1, 11).round(1).tolist())

Point = tuple[float, Told, Told]
"""Blend or threshold, `policy_concordance`, `click_auc`."""


class Bench:
    """What is asked of all arms of a seed, and the rows of what they answered.

    Args:
        school: whose.
        measured: takes the rows.

    Attributes:
        kept: every row by model and metric.
    """

    def __init__(self, school: School, measured: Measured) -> None:
        self.school, self.measured = school, measured
        self.kept: dict[tuple[str, str], Kept] = {}
        self.labels = school.labels
        log, targets, task = school.log, school.split.test, school.tasks[0]
        good = [log.actions.index(action) for action in task.positive]
        self.users = np.unique(targets.user)
        self.event = slate_events(targets)
        self.event_user = np.repeat(targets.user, targets.last_event - targets.first_event)
        self.event_row = self._row(self.event_user)
        self.is_good = np.isin(log.event_action[self.event], good)
        shown = school.split.train & (log.event_surface == log.surfaces.index(task.name))
        self.good_rate = float(np.isin(log.event_action[shown], good).mean())
        self.event_grade = self.labels.grades(self.event_user, log.event_item[self.event])
        self.chance: Floats | None = None
        if school.data.oracle is not None:
            is_good = np.array(task.is_positive)
            told = school.data.oracle.action_probabilities(self.event)
            self.chance = told[:, is_good].sum(1).astype(np.float64)
        q, num = min(school.sizes.requests, len(targets)), len(school.items)
        self.seen_qJ = np.zeros((q, num), np.bool_)
        place = np.full(log.num_items, -1)
        place[school.items] = np.arange(num)
        for row in range(q):
            past = slice(int(targets.history_start[row]), int(targets.history_end[row]))
            seen = place[log.event_item[past]]
            self.seen_qJ[row, seen[seen >= 0]] = True
        # What went well in the slates of those who rank every item.
        request_e = np.repeat(np.arange(len(targets)), targets.last_event - targets.first_event)
        wanted = np.flatnonzero(self.is_good & (request_e < q))
        self.wanted = request_e[wanted], place[log.event_item[self.event[wanted]]]
        self.request_user = targets.user[:q]
        self.grade_qJ = self.labels.grades(
            np.repeat(self.request_user, num), np.tile(school.items, q)
        ).reshape(q, -1)

    def _row(self, user: NDArray[Any]) -> NDArray[np.int64]:
        return np.searchsorted(self.users, user)

    # Numbers of one system.

    def mean(self, values: Floats, user: NDArray[Any]) -> Told:
        """A mean over targets of some people."""
        return Told(
            of=mean_of_users(np.asarray(values, np.float64), self._row(user), len(self.users)),
            n=len(values),
        )

    def click_auc(self, score: Floats) -> Told:
        """AUC of a good action over held-out events."""
        of = auc_of_users(self.is_good, score, self.event_row, len(self.users))
        return Told(of=of, n=len(score), draws=len(score))

    def expected_auc(self, score: Floats) -> Told | None:
        """The same in expectation over what people might have done, where that is known."""
        if self.chance is None:
            return None
        of = expected_auc_of_users(self.chance, score, self.event_row, len(self.users))
        return Told(of=of, n=len(score), draws=len(score))

    def alignment(self, said: Said) -> Told:
        """Held-out pairs whose most probable grade is the policy's."""
        return self.mean(said.pair_grade.argmax(1) == self.labels.grade, self.labels.user)

    def ordered(self, score: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """Of each person with pairs of different grades: the share ordered as policy does."""
        return in_order(score, self.labels.grade, self.labels.user)

    def concordance(self, score: Floats) -> Told:
        """The mean of that over people."""
        return self.mean(*self.ordered(score))

    def top(self, score_qJ: Floats) -> NDArray[np.int64]:
        """The first ten unseen items of each request, [q, 10]."""
        left = np.where(self.seen_qJ, -np.inf, score_qJ)
        order: NDArray[np.int64] = np.argsort(-left, axis=1, kind="stable")[:, :10]
        return order

    # Rows.

    def add(self, model: str, metric: str, told: Told | float, **cells: Any) -> None:
        """Write a row, unless it is no number; and keep it for the mean over seeds."""
        n = cells.pop("n", 0) or (told.n if isinstance(told, Told) else 0)
        kept = Kept(told=told, num_users=len(self.users), n=n, cells=cells)
        self.kept[model, metric] = kept
        write(self.measured, self.school, model, metric, kept, self.school.seed)

    def arm(self, name: str, said: Said, *, params: int) -> None:
        """What one model is worth on each side."""
        weights, cells = ARMS[name].weights, {"params": params}
        learns_policy = weights.alpha or "policy" in ARMS[name].teachers
        learns_clicks = weights.beta or "click" in ARMS[name].teachers
        if weights.alpha:
            self.add(name, "policy_alignment", self.alignment(said), **cells)
            kappa = cohen_kappa_score(
                self.labels.grade,
                said.pair_grade.argmax(1),
                labels=range(len(GRADES)),
                weights="quadratic",
            )
            self.add(name, "policy_kappa", float(kappa), n=len(self.labels.grade), **cells)
        # What an arm was never taught is said by what it was taught.
        click = said.event_click if learns_clicks else said.event_policy
        policy = said.pair_policy if learns_policy else said.pair_click
        self.add(name, "click_auc", self.click_auc(click), **cells)
        if (expected := self.expected_auc(click)) is not None:
            self.add(name, "click_auc_expected", expected, **cells)
        self.add(name, "policy_concordance", self.concordance(policy), **cells)
        if learns_clicks:
            predicted = np.exp(said.event_click) >= self.good_rate
            both = precision_recall(self.is_good.astype(int), predicted.astype(int), num_labels=2)
            for metric, value in zip(("click_precision", "click_recall"), both, strict=True):
                self.add(name, metric, float(value[1]), n=len(click), **cells)
        sides = [b for b, is_known in ((0.0, learns_clicks), (1.0, learns_policy)) if is_known]
        for blend in sides if len(sides) == 1 else (0.0, 0.5, 1.0):
            model = name if len(sides) == 1 else f"{name}, blend={blend:g}"
            self.ranked(model, said.served(blend), **cells)

    def plain(self) -> None:
        """The grade that is commonest in the labels, always: what alignment begins at."""
        commonest = self.labels.pairs.share_PG.sum(0).argmax()
        right = self.mean(self.labels.grade == commonest, self.labels.user)
        self.add("commonest grade", "policy_alignment", right)
        if self.chance is not None:
            best = self.expected_auc(self.chance)
            assert best is not None
            self.add("generator", "click_auc", self.click_auc(self.chance))
            self.add("generator", "click_auc_expected", best)

    def ranked(self, model: str, score_qJ: Floats, **cells: Any) -> None:
        """Quality of an order of all items."""
        request, place = self.wanted
        if len(request):
            own = score_qJ[request, place]
            is_open = ~self.seen_qJ[request]
            # Ties count against us.
            rank = ((score_qJ[request] >= own[:, None]) & is_open).sum(1).clip(min=1)
            values = self.mean(ndcg(rank, 10), self.request_user[request])
            self.add(model, "ndcg@10", values, **cells)
        top = self.top(score_qJ)
        grade = np.take_along_axis(self.grade_qJ, top, 1).mean(1) / (len(GRADES) - 1)
        self.add(model, "top10_grade", self.mean(grade, self.request_user), **cells)

    # Curves.

    def curve(self, name: str, click: Said, policy: Said) -> list[Point]:
        """Both sides of a mix at every blend.

        Args:
            name: of the system.
            click: what says the clicks.
            policy: what says the policy; may be the same.
        """
        return [
            self._point(
                f"{name}, blend={blend:g}",
                blend,
                mixed(click.event_click, policy.event_policy, blend),
                mixed(click.pair_click, policy.pair_policy, blend),
            )
            for blend in BLENDS
        ]

    def rules(self, name: str, said: Said, *, blend: float) -> list[Point]:
        """What a model says, and what the policy's own grades leave below a threshold last.

        Args:
            name: of the model.
            said: by it.
            blend: of what it says itself.
        """
        events = mixed(said.event_click, said.event_policy, blend)
        pairs = mixed(said.pair_click, said.pair_policy, blend)
        return [
            self._point(
                f"{name}, rules >= {least}",
                least,
                events - 1e3 * (self.event_grade < least),
                pairs - 1e3 * (self.labels.grade < least),
            )
            for least in range(len(GRADES))
        ]

    def _point(self, model: str, knob: float, events: Floats, pairs: Floats) -> Point:
        policy = self.concordance(pairs)
        # In expectation where it is known: a slate says little about who is the better.
        click = self.expected_auc(events) or self.click_auc(events)
        self.add(model, "policy_concordance", policy)
        self.add(model, "click_auc", self.click_auc(events))
        if self.chance is not None:
            self.add(model, "click_auc_expected", click)
        return knob, policy, click

    def balance(self, name: str, points: Sequence[Point]) -> Told:
        """The mean of both sides at the best point, chosen on half of the people for the other.

        Args:
            name: of the system; its row is `best_balance`.
            points: of its curve.
        """
        half = np.arange(len(self.users)) % 2 == 0
        sides = []
        for measured_on in (half, ~half):
            chosen_on = (~measured_on).astype(np.float64)[None]
            worth = [
                (policy.of(chosen_on)[0] + click.of(chosen_on)[0]) / 2
                for _, policy, click in points
            ]
            _, policy, click = points[int(np.nanargmax(worth))]
            sides.append((measured_on, policy.of, click.of))

        def of(weights: Floats) -> Floats:
            parts = [
                (policy(weights * on) + click(weights * on)) / 2 for on, policy, click in sides
            ]
            return np.asarray(np.mean(parts, axis=0))

        told = Told(of=of, n=len(self.users), draws=points[0][2].draws)
        self.add(name, "best_balance", told)
        return told

    # One beside another.

    def loss(self, name: str, metric: str, told: Told, by: Told) -> None:
        """A row of what is lost against another, as a share of it; below 0 it is better."""

        def lost(weights: Floats) -> Floats:
            return 1 - told.of(weights) / by.of(weights)

        self.add(name, metric, Told(of=lost, n=told.n, draws=2 * told.draws))

    def compare(self, name: str, said: Said, other: str, by: Said, side: str) -> None:
        """Relative loss of an arm against another on one side."""
        if side == "policy":
            metric = f"policy_alignment_loss_vs_{other}"
            self.loss(name, metric, self.alignment(said), self.alignment(by))
            two = self.concordance(said.pair_policy), self.concordance(by.pair_policy)
            self.loss(name, f"policy_concordance_loss_vs_{other}", *two)
            return
        clicks = said.event_click, by.event_click
        auc, auc_by = (self.click_auc(one) for one in clicks)
        self.loss(name, f"click_auc_loss_vs_{other}", auc, auc_by)
        expected, expected_by = (self.expected_auc(one) for one in clicks)
        if expected is not None and expected_by is not None:
            self.loss(name, f"click_auc_expected_loss_vs_{other}", expected, expected_by)

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
        for metric, values in (("stability_top10", overlap), ("stability_rank", rank)):
            self.add(f"{name}, blend={blend:g}", metric, self.mean(values, self.request_user))


def write(
    measured: Measured,
    school: School,
    model: str,
    metric: str,
    kept: Kept,
    seed: int | Literal["mean"],
) -> None:
    """Write a row, unless it is there or is no number."""
    cells = {
        "task": school.ground.bed.name,
        "split": "leave_one_out",
        "model": model,
        "metric": metric,
        "n": kept.n or None,
        "context_tokens": school.book.prompter.config.max_prompt_tokens,
        **kept.cells,
    }
    there = {name: cells[name] for name in ("task", "model", "metric")}
    if measured.has(seed=seed, **there):
        return
    if isinstance(kept.told, Told):
        interval = bootstrap_users(kept.told.of, kept.num_users, numbers_per_draw=kept.told.draws)
    else:
        interval = Interval(value=kept.told, low=kept.told, high=kept.told)
    if np.isfinite(interval.value):
        measured.add(seed=seed, interval=interval, **cells)
