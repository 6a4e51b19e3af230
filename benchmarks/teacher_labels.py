"""Graded pairs by a policy document: what is learned from, and what is held out."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.teacher_beds import GRADES, Sizes
from distill.policy import Grader, Pairs, Policy, PolicyTables
from foundation.asking import Asking
from promptify.grades import GradedPairs
from promptify.interactions import Interactions
from promptify.splits import Split
from promptify.task import Task

Int64 = NDArray[np.int64]


class Labels:
    """The policy's grades of a log's pairs.

    Attributes:
        pairs: learned from; pairs that were shown in training are among them.
        asking: asks them, and slates.
        user: int64 [p], of the held-out pairs, rising; drawn grade by grade as far as there are
            any, since at random most would be unfit.
        item: int64 [p].
        grade: int64 [p].

    Args:
        log: whose.
        task: whose items are graded.
        split: its training events are the history that the policy sees.
        policy: name of a document that comes with the package.
        sizes: how many pairs.
        seed: of which they are.
    """

    def __init__(
        self,
        log: Interactions,
        task: Task,
        split: Split,
        *,
        policy: str,
        sizes: Sizes,
        seed: int,
    ) -> None:
        self._grader = Grader(Policy.shipped(policy), PolicyTables(log, task, events=split.train))
        candidates, rng = (
            np.flatnonzero(log.item_kinds == task.item_kind),
            np.random.default_rng([seed, 7]),
        )
        num_users, num = log.num_users, min(sizes.drawn_per_user, len(candidates))
        item_Ud = np.stack([rng.choice(candidates, num, replace=False) for _ in range(num_users)])
        user_Ud = np.broadcast_to(np.arange(num_users)[:, None], item_Ud.shape)
        grade_Ud = self.grades(user_Ud.ravel(), item_Ud.ravel()).reshape(item_Ud.shape)
        # In drawn order, the first of each grade.
        nth = np.zeros_like(grade_Ud)
        for one in range(len(GRADES)):
            is_it = grade_Ud == one
            nth[is_it] = (np.cumsum(is_it, axis=1) - 1)[is_it]
        kept = nth < sizes.kept_per_grade
        user, item, grade = user_Ud[kept], item_Ud[kept], grade_Ud[kept]
        is_asked = np.isin(user, split.test.user)
        held = np.zeros(len(user), np.bool_)
        held[rng.permutation(np.flatnonzero(is_asked))[: sizes.pairs]] = True
        shown = np.flatnonzero(split.train & (log.event_surface == log.surfaces.index(task.name)))
        users = np.concatenate([user[~held], log.event_user[shown]]).astype(np.int64)
        items = np.concatenate([item[~held], log.event_item[shown]]).astype(np.int64)
        is_free = ~np.isin(users << 32 | items, user[held].astype(np.int64) << 32 | item[held])
        users, items = users[is_free], items[is_free]
        self.pairs = GradedPairs.of(users, items, self.grades(users, items), num_grades=len(GRADES))
        order = np.argsort(user[held], kind="stable")
        self.user: Int64 = user[held][order]
        self.item: Int64 = item[held][order]
        self.grade: Int64 = grade[held][order]
        self.asking = Asking(
            pairs=self.pairs,
            questions_per_row=sizes.questions_per_row,
            slates_per_row=sizes.slates_per_row,
        )

    def grades(self, user: NDArray[np.integer], item: NDArray[np.integer]) -> Int64:
        """Grades of pairs of rows of the log's tables, int64 [n]."""
        return self._grader.grades(Pairs.of(user, item)).grade.astype(np.int64)
