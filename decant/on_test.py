"""What the test targets say of a ladder's rungs; it decides nothing on the way."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from decant.measure import Answers, Asked
from foundation import Foundation
from foundation.evaluation import ndcg, paired_bootstrap
from foundation.predictions import Predictions, predict_targets
from promptify.assembly import PromptBook
from promptify.splits import Split


class OnTest:
    """Rungs on the test targets, which decide nothing, against the top, which is asked once.

    Args:
        top: of the ladder.
        book: pieces of the interactions.
        split: of them.
        predict: `predict_targets`, or one that remembers.
    """

    def __init__(
        self,
        top: Foundation,
        book: PromptBook,
        split: Split,
        *,
        predict: Callable[..., Predictions] = predict_targets,
    ) -> None:
        self.top, self._predict = top, predict
        self._book, self._targets = book, split.test
        self._asked = Asked(book, split.test)

    def metrics_of(self, model: Foundation) -> dict[str, Any]:
        """Each metric with its interval, and the NDCG@10 lost against the top."""
        of_rung = self._answers(model)
        found: dict[str, Any] = {
            metric: {"value": interval.value, "low": interval.low, "high": interval.high, "n": n}
            for metric, (interval, n) in of_rung.metrics().items()
        }
        of_top = self._of_top
        if of_rung.rank is not None and of_top.rank is not None and len(of_rung.rank):
            lost = paired_bootstrap(ndcg(of_top.rank, 10), ndcg(of_rung.rank, 10), of_rung.user)
            if np.isfinite([lost.value, lost.low, lost.high]).all():
                found["loss_vs_top"] = {
                    "value": lost.value,
                    "low": lost.low,
                    "high": lost.high,
                    "n": len(of_rung.rank),
                }
        return found

    @cached_property
    def _of_top(self) -> Answers:
        return self._answers(self.top)

    def _answers(self, model: Foundation) -> Answers:
        said = self._predict(model, self._book, self._targets)
        return self._asked.of(said, model.calibration(self._asked.task))
