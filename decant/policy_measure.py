"""What policy says of a run's models: agreement on held-out pairs, and grades of what stands first.

Legend: p held-out pairs, n requests, k first items, G grades.
"""

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from decant.measure import Asked, Reranked
from distill.policy import Grader
from distill.policy.document import MAX_GRADE
from distill.policy.tables import Pairs
from foundation import Foundation
from foundation.batches import take_rows
from foundation.evaluation import Interval, bootstrap_interval
from promptify.grades import GradedPairs

Found = dict[str, tuple[Interval, int]]
"""Metrics by name, each with the number that it rests on."""


class PolicyMeasure:
    """A policy, and pairs that nothing was trained on.

    Args:
        grader: the policy over the run's log.
        held_out: its grades of some pairs of people who are tested.
    """

    def __init__(self, grader: Grader, held_out: GradedPairs) -> None:
        self._grader = grader
        self._held_out = held_out

    def alignment(self, foundation: Foundation, asked: Asked) -> Found:
        """`policy_alignment`: held-out pairs whose most probable grade is the policy's.

        Args:
            foundation: asked with each person's history before their test target.
            asked: the test requests.
        """
        pairs, targets, right = self._held_out, asked.targets, []
        of_user = {int(user): row for row, user in enumerate(targets.user)}
        for user in tqdm(np.unique(pairs.user).tolist(), desc="ask for grades"):
            first, last = (int(end) for end in pairs.of_users(np.array(user)))
            prefix = asked.book.prefixes(targets[np.array([of_user[user]])], task=asked.task)
            said = foundation.score_both(
                take_rows(prefix, np.array([0])),
                pairs.item[first:last].astype(np.int64),
                task=asked.task,
            )
            told_G = pairs.share_PG[first:last].argmax(1)
            right.append(said.grade_CG.argmax(1) == told_G)
        if not right:
            return {}
        is_right_p = np.concatenate(right).astype(np.float64)
        return {"policy_alignment": (bootstrap_interval(is_right_p, pairs.user), len(is_right_p))}

    def top_grade(self, asked: Asked, reranked: Reranked, weight: float, *, blend: float) -> Found:
        """`top10_grade`: mean grade of the first ten, as a share of the best.

        Args:
            asked: the requests.
            reranked: what was retrieved for them.
            weight: `w` of the ranking formula.
            blend: how much policy counts.
        """
        item_nk: NDArray[np.int64] = reranked.best_items(weight, blend=blend)
        user_nk = np.broadcast_to(asked.targets.user[:, None], item_nk.shape)
        there = item_nk >= 0
        grades = self._grader.grades(Pairs.of(user_nk[there], item_nk[there]))
        share = grades.grade / MAX_GRADE
        return {"top10_grade": (bootstrap_interval(share, user_nk[there]), len(item_nk))}
