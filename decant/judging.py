"""What the gate looks at: a model's answers to held-out requests, and its time for one."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from decant.measure import Asked
from decant.recommender import Recommender, build_index
from decant.run_data import sample_targets
from distill.gate import Measurements
from foundation import Foundation
from foundation.calibration import calibrate_others, fit_calibration
from foundation.predictions import Predictions, predict_targets
from promptify.assembly import PromptBook
from promptify.splits import Targets
from promptify.validation import BadInput

_WARM_UP_REQUESTS = 5


def check_timed_requests(timed_requests: int) -> None:
    """Refuse a latency that is measured on nothing, before anything is made for it.

    Raises:
        BadInput: it is below 1.
    """
    if timed_requests < 1:
        raise BadInput(
            f"timed_requests={timed_requests} must be at least 1: latency is measured on them."
        )


class Remembered:
    """`predict_targets` that reads no model twice on the same targets.

    A model is known by its weights: calibrated anew, or saved and loaded, it says the same.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], Predictions] = {}

    def __call__(
        self, foundation: Foundation, book: PromptBook, targets: Targets, *, task: int = 0
    ) -> Predictions:
        """See `predict_targets`."""
        asked = xxhash.xxh3_128()
        for rows in (targets.first_event, targets.last_event, targets.history_start):
            asked.update(rows.tobytes())
        key = (fingerprint(foundation), asked.hexdigest(), task)
        if key not in self._known:
            self._known[key] = predict_targets(foundation, book, targets, task=task)
        return self._known[key]


def gate_measurements(
    foundation: Foundation,
    book: PromptBook,
    targets: Targets,
    *,
    taken_ms: NDArray[np.float64] | None = None,
    predict: Callable[..., Predictions] = predict_targets,
) -> Measurements:
    """What a model does on the targets that its calibration was fitted on, as served.

    Probabilities are judged calibrated, as they are served. The calibration was fitted on these
    targets, so each event is given one fitted on other people's; its method is the best on these
    targets of every model, whatever its own was chosen on (decision 62). Calibrations that differ
    from fold to fold put no events in order: AUC is of what the model says by itself (decision 77).

    Args:
        foundation: calibrated.
        book: pieces of the interactions.
        targets: held-out slates.
        taken_ms: float64 [n], milliseconds of each request that was timed.
        predict: `predict_targets`, or one that remembers.
    """
    asked = Asked(book, targets)
    predictions = predict(foundation, book, targets)
    label_N, user_N = predictions.action_label, predictions.action_user
    method = fit_calibration(predictions.action_log_probs, label_N, user_N).method
    calibrate = partial(calibrate_others, label_N=label_N, group_N=user_N, method=method)
    return asked.of(predictions, calibrate).for_gate(taken_ms=taken_ms)


def milliseconds(
    recommenders: Mapping[str, Recommender], targets: Targets, count: int
) -> dict[str, NDArray[np.float64]]:
    """Time of each whole request (retrieve and rank), float64 [n], the models asked in turn.

    Requests are those of people with the history before their target. Nobody was read before: a
    recommender's cache is emptied before each, as one person may be asked about several times.

    Args:
        recommenders: by name.
        targets: whose requests.
        count: of them, at most; at least 1.
    """
    some = sample_targets(targets, count)
    taken: dict[str, list[float]] = {name: [] for name in recommenders}
    for number in range(-_WARM_UP_REQUESTS, len(some)):
        one = some[np.array([max(number, 0)])]
        for name, recommender in recommenders.items():
            recommender.prefix_cache.clear()
            began = time.perf_counter()
            recommender.predict_target(one, k=10)
            if number >= 0:
                taken[name].append((time.perf_counter() - began) * 1000)
    return {name: np.array(times) for name, times in taken.items()}


class Judge:
    """Measures models for the gate.

    Args:
        book: pieces of the interactions.
        timed_requests: that latency is measured on.
        predict: `predict_targets`, or one that remembers: a rung that was saved and is the one
            above of the next is not read again then.
    """

    def __init__(
        self,
        book: PromptBook,
        *,
        timed_requests: int,
        predict: Callable[..., Predictions] = predict_targets,
    ) -> None:
        self.book = book
        self.timed_requests = timed_requests
        self.predict = predict

    def __call__(
        self, models: Mapping[str, Foundation], targets: Targets
    ) -> dict[str, Measurements]:
        """See `distill.ladder.Hands.measure`."""
        marks = {name: fingerprint(model) for name, model in models.items()}
        different = {marks[name]: model for name, model in models.items()}
        recommenders = {
            mark: Recommender(model, build_index(model, model_hash="unsaved"), self.book)
            for mark, model in different.items()
        }
        taken = milliseconds(recommenders, targets, self.timed_requests)
        return {
            name: gate_measurements(
                model, self.book, targets, taken_ms=taken[marks[name]], predict=self.predict
            )
            for name, model in models.items()
        }


def fingerprint(model: Foundation) -> str:
    """The same for models that say the same, whichever object holds them.

    What is fitted on validation is not what a model says, but what is made of it.
    """
    says = replace(model.settings, calibration=(), rank_weight=())
    mark = xxhash.xxh3_128(repr(says).encode())
    for name, tensor in model.state_dict().items():
        mark.update(name.encode())
        mark.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return mark.hexdigest()
