"""What the job market's people really want: the ground truth behind every logged action.

Two judgements of the same pair: the *click* side is a utility from revealed tastes, which drives
the log; the *policy* side is a grade from stated rules, which a moderator could check. They agree
in part. All functions broadcast over their arguments, so that pairs and whole grids are one code.
"""

import numpy as np
from numpy.typing import NDArray

from promptify.sources.job_market import contexts
from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.population import (
    CRAFT,
    GROWTH,
    NUM_DAYS,
    PAY,
    PLACE,
    Bool,
    Float32,
    Int64,
    Jobs,
    Members,
)

# Utility to actions: logits of apply and view against a dismiss at zero.
APPLY_INTERCEPT, APPLY_SLOPE = -3.9, 0.6
VIEW_INTERCEPT, VIEW_SLOPE = -1.4, 0.25
MAX_GRADE = 4


CHANGING_LOGIT, CURIOSITY_LOGIT = 0.5, 0.5  # who applies, and who looks, more than others do


def three_way(first: Float32, second: Float32) -> Float32:
    """Probabilities of three outcomes from two logits, the third's being zero: float32 [..., 3]."""
    logits = np.stack([first, second, np.zeros_like(first)], axis=-1)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Float32 = (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


class Truth:
    """Utilities, action probabilities and policy grades of (member, job) pairs.

    Args:
        members: M members.
        jobs: J jobs.
    """

    def __init__(self, members: Members, jobs: Jobs) -> None:
        self.members = members
        self.jobs = jobs
        required = jobs.skills.astype(np.float32)
        # Whole numbers multiply exactly, in whatever order a BLAS adds them.
        self._skill_match = members.skills.astype(np.float32) @ required.T / required.sum(axis=1)
        self._trend = required @ words.SKILL_TREND
        priority = members.priority
        self._weight_skill = np.where(priority == CRAFT, 1.5, 0.7).astype(np.float32)
        self._weight_level = np.where(priority == GROWTH, 1.0, 0.6).astype(np.float32)
        self._weight_pay = np.where(priority == PAY, 1.1, 0.4).astype(np.float32)
        self._weight_place = np.where(priority == PLACE, 2.0, 1.1).astype(np.float32)
        self._wanted_level = np.minimum(
            members.level + (priority == GROWTH), len(words.LEVELS) - 1
        ).astype(np.float32)
        self._utility = self._settled_utility(
            np.arange(len(members))[:, None], np.arange(len(jobs))[None, :]
        )

    def level_misfit(self, users: Int64, items: Int64) -> Float32:
        """How far the job's level is from the wanted one, in levels."""
        misfit: Float32 = np.abs(self.jobs.level[items] - self._wanted_level[users])
        return misfit.astype(np.float32)

    def pay_fit(self, users: Int64, items: Int64) -> Float32:
        """Log pay over expected pay, in steps of 15 %, clipped to ±2."""
        ratio = self.jobs.pay.astype(np.float32)[items] / self.members.expected_pay[users]
        return np.clip(np.log(ratio) / 0.15, -2, 2).astype(np.float32)

    def place_fit(self, users: Int64, items: Int64, *, movers: Bool | None = None) -> Float32:
        """1 for here or remote, at least .4 within the country, else what relocating allows."""
        city, job_city = self.members.city[users], self.jobs.city[items]
        mover = (self.members.is_mover if movers is None else movers)[users]
        far = np.where(mover, 0.45 + 0.35 * self.jobs.relocation[items], 0.0)
        fit = np.maximum(far, 0.4 * words.IS_SAME_COUNTRY[city, job_city])
        at_home = (city == job_city) | (self.jobs.workplace[items] == words.REMOTE)
        return np.where(at_home, 1.0, fit).astype(np.float32)

    def _settled_utility(self, users: Int64, items: Int64) -> Float32:
        """The part of the utility that neither time nor a note changes."""
        members, jobs = self.members, self.jobs
        utility = 2.2 * members.occupation_taste[users, jobs.occupation[items]]
        utility += 1.2 * members.specialty_taste[users, jobs.specialty[items]]
        utility += self._weight_skill[users] * self._skill_match[users, items]
        utility -= self._weight_level[users] * self.level_misfit(users, items)
        utility += self._weight_pay[users] * self.pay_fit(users, items)
        utility += self._weight_place[users] * self.place_fit(users, items)
        utility += members.workplace_taste[users, jobs.workplace[items]]
        utility += members.industry_taste[users, jobs.industry[items]]
        utility += members.size_taste[users, jobs.company_size[items]]
        return utility + np.float32(0.2) * jobs.quality[items]

    def drift(self, items: Int64, days: NDArray[np.floating]) -> Float32:
        """What time alone does to a job's utility: remote work and some skills win, others lose."""
        phase = (np.asarray(days) / NUM_DAYS - 0.5).astype(np.float32)
        remote = np.array([-0.6, 0.0, 0.9], dtype=np.float32)[self.jobs.workplace[items]]
        return phase * (remote + np.float32(1.2) * self._trend[items])

    def note_effect(self, meaning: int, users: Int64, items: Int64) -> Float32:
        """What a note of this meaning adds to the utility; zero for `NO_NOTE`."""
        members, jobs = self.members, self.jobs
        match meaning:
            case contexts.SKILLS_FIRST:
                ease = self._weight_level[users] * self.level_misfit(users, items)
                effect = 2.5 * (self._skill_match[users, items] - 0.5) + ease
            case contexts.PAY_FIRST:
                effect = 1.0 * self.pay_fit(users, items)
            case contexts.ONLY_REMOTE:
                effect = np.array([-1.8, -0.8, 1.6])[jobs.workplace[items]]
            case contexts.WILL_RELOCATE:
                everyone = np.ones(len(members), dtype=bool)
                gain = self.place_fit(users, items, movers=everyone) - self.place_fit(users, items)
                effect = self._weight_place[users] * gain + 0.9 * jobs.relocation[items]
            case contexts.CLOSE_TO_HOME:
                near = members.city[users] == jobs.city[items]
                effect = np.where(near, 1.5, -1.2)
            case contexts.STEP_UP:
                step = np.clip(jobs.level[items] - members.level[users], -1, 2)
                effect = np.array([-1.6, -0.8, 1.6, 0.6])[step + 1]
            case contexts.SMALL_COMPANY:
                effect = np.array([1.4, -0.4, -1.4])[jobs.company_size[items]]
            case contexts.SAME_INDUSTRY:
                effect = np.where(members.industry[users] == jobs.industry[items], 1.5, -0.9)
            case _:
                effect = np.zeros(np.broadcast_shapes(np.shape(users), np.shape(items)))
        return np.asarray(effect, dtype=np.float32)

    def utility(
        self, users: Int64, items: Int64, days: NDArray[np.floating], notes: Int64
    ) -> Float32:
        """What the action is drawn from.

        Args:
            users: rows of members, int64 [n], or [n, 1] for a grid.
            items: rows of jobs, int64 [n], or [1, J].
            days: days since the log's start, of the shape of `users`.
            notes: index in `NOTE_MEANINGS`, or `NO_NOTE`, of the shape of `users`.

        Returns:
            float32 [n], or [n, J].
        """
        utility = self._utility[users, items] + self.drift(items, days)
        for meaning in np.unique(notes[notes != contexts.NO_NOTE]):
            at = np.flatnonzero(notes == meaning)
            those = items[at] if items.shape == users.shape else items
            utility[at] += self.note_effect(int(meaning), users[at], those)
        return utility

    def action_probabilities(self, users: Int64, utility: Float32) -> Float32:
        """Probabilities of apply, view and dismiss, float32 [..., 3], given `utility`'s answer."""
        eager = np.where(self.members.is_changing[users], CHANGING_LOGIT, -CHANGING_LOGIT)
        apply = APPLY_INTERCEPT + APPLY_SLOPE * utility + eager
        curious = CURIOSITY_LOGIT * self.members.curiosity[users]
        return three_way(apply, VIEW_INTERCEPT + VIEW_SLOPE * utility + curious)

    def click_utility(self, users: Int64, items: Int64) -> Float32:
        """The utility without time and note: what the log as a whole says about a pair."""
        return self._utility[users, items]

    def policy_grades(self, users: Int64, items: Int64) -> Int64:
        """Grades 0 (unfit) to 4 (fully fit) from stated rules; they never look at behaviour.

        Points: 2 for the stated change target, or else for the member's own occupation; 1 for a
        changer's own and for neighbouring occupations; 1 each for half of the required skills, the
        expected pay (less 3 %), the wished workplace (hybrid goes with all), and years between one
        too few and six too many. The grade is the points less one, at least 0 and at most 4, with
        two limits: years outside that range allow 1, and a place out of reach allows 0. Juniors and
        those who say they would move reach every place; the others reach their own city, remote
        jobs, and hybrid jobs in their country.
        """
        members, jobs = self.members, self.jobs
        own, target = members.occupation[users], members.stated_target[users]
        field = jobs.occupation[items]
        wanted = np.where(target >= 0, target, own)
        is_near = (field == own) | words.IS_NEIGHBOUR[own, field]
        points = np.where(field == wanted, 2, is_near.astype(np.int64))
        points += self._skill_match[users, items] >= 0.5
        points += jobs.pay[items] >= 0.97 * members.expected_pay[users]
        wish, workplace = members.wished_workplace[users], jobs.workplace[items]
        points += (wish == workplace) | (wish == words.HYBRID)
        spare_years = members.years[users] - jobs.years[items]
        years_fit = (spare_years >= -1) & (spare_years <= 6)
        points += years_fit
        city, job_city = members.city[users], jobs.city[items]
        in_reach = (
            (members.level[users] == 0)
            | members.stated_mover[users]
            | (city == job_city)
            | (workplace == words.REMOTE)
            | ((workplace == words.HYBRID) & words.IS_SAME_COUNTRY[city, job_city])
        )
        limit = np.where(in_reach, np.where(years_fit, MAX_GRADE, 1), 0)
        grade: Int64 = np.clip(points - 1, 0, limit)
        return grade
