"""Rows of the ladder's benchmark: of each seed's models, and of the arms over all seeds.

A seed takes hours, and three of them more than one evening. So where every target was ranked is
kept beside the rows, a few KB a model, and a mean over seeds is made of those that were measured at
other times, on other machines, as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms import save_arrays
from benchmarks.measured import Measured
from decant.measure import Answers
from foundation.evaluation import ndcg
from foundation.evaluation.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from promptify.validation import BadInput

TOP = "foundation"
"""The model that all others come from."""
_COUNTED = 10
"""Places that NDCG@10 tells apart."""


class Outcomes:
    """Where each seed's models put the test targets, in memory and in a file.

    Args:
        settings: a hash of what the models depend on; a file of others is begun anew.
        path: of the file, `.npz`; None to keep nothing.

    Raises:
        BadInput: the file is not one of these.
    """

    def __init__(self, settings: str, path: Path | None) -> None:
        self.path = path
        self._arrays: dict[str, NDArray[Any]] = {}
        if path is not None and path.exists():
            arrays = _arrays_of(path)
            if str(arrays["settings"]) == settings:
                self._arrays = arrays
        self._arrays["settings"] = np.array(settings)

    def add(self, arm: str, seed: int, answers: Answers) -> None:
        """Keep what an arm came to.

        Args:
            arm: its name, or `TOP`.
            seed: of the run.
            answers: to the test requests, in their order, which is that of all models.

        Raises:
            BadInput: the targets are not those of the models before.
        """
        assert answers.rank is not None
        users = self._arrays.setdefault("user", answers.user.astype(np.int32))
        if not np.array_equal(users, answers.user):
            raise BadInput(f"{self.path} is of other test targets; move it away to begin again.")
        # Beyond the places that count, one is as good as another, and takes less room.
        ranks = np.minimum(answers.rank, _COUNTED + 1).astype(np.uint8)
        name = f"{arm}/{seed}"
        known = self._arrays.get(name)
        self._arrays[name] = ranks
        if self.path is not None and (known is None or not np.array_equal(known, ranks)):
            save_arrays(self.path, self._arrays)

    @property
    def user(self) -> NDArray[np.int64]:
        """int64 [m], whose each target is."""
        return self._arrays["user"].astype(np.int64)

    @property
    def seeds(self) -> list[int]:
        """Those with a top, in order."""
        return sorted(self._by_seed(TOP))

    def ndcg(self, arm: str, seed: int) -> NDArray[np.float64] | None:
        """float64 [m], NDCG@10 of each target; None where there is no such model."""
        ranks = self._arrays.get(f"{arm}/{seed}")
        return None if ranks is None else ndcg(ranks.astype(np.int64), _COUNTED)

    def means(self) -> dict[str, NDArray[np.float64]]:
        """NDCG@10 of each target, its mean over the seeds, by arm.

        An arm that a seed has no model of is left out: its mean would be of other seeds than the
        top's.
        """
        arms = dict.fromkeys(name.partition("/")[0] for name in self._arrays if "/" in name)
        found = {}
        for arm in arms:
            values = [value for seed in self.seeds if (value := self.ndcg(arm, seed)) is not None]
            if len(values) == len(self.seeds):
                found[arm] = np.mean(values, axis=0)
        return found

    def _by_seed(self, arm: str) -> list[int]:
        return [int(name.partition("/")[2]) for name in self._arrays if name.startswith(f"{arm}/")]


class LadderRows:
    """The rows of a bed.

    Args:
        task: the bed's name.
        out: takes the rows.
    """

    def __init__(self, task: str, out: Measured) -> None:
        self.task, self.out = task, out
        beside = None if out.out is None else out.out.with_suffix(".npz")
        self._outcomes = Outcomes(out.config_hash, beside)

    def add_top(self, seed: int, answers: Answers, *, params: int) -> None:
        """Rows of a seed's top.

        Args:
            seed: of the run.
            answers: to the test requests.
            params: of its body.
        """
        self._outcomes.add(TOP, seed, answers)
        self._metrics(TOP, seed, answers, params)
        self._row("body_parameters", TOP, seed, _exactly(params), params)

    def add_rung(
        self,
        arm: str,
        place: int,
        seed: int,
        answers: Answers,
        *,
        params: int,
        is_last: bool,
        latency: Callable[[], float] | None = None,
        passes: bool | None = None,
    ) -> None:
        """Rows of a model below a top that `add_top` has told of.

        Args:
            arm: how it was made.
            place: of its rung, from 1.
            seed: of the run.
            answers: to the test requests.
            params: of its body.
            is_last: whether the arm is held to what it came to.
            latency: measures a request's time as a share of the top's; None for an arm of the same
                shapes as another's.
            passes: whether it passed the gate, or else is undecided; None where none was asked.
        """
        model = f"{arm} rung-{place}"
        self._metrics(model, seed, answers, params)
        [whole] = [
            row.value
            for row in self.out.rows
            if (row.metric, row.seed, row.task) == ("body_parameters", seed, self.task)
        ]
        self._row("params_ratio", model, seed, _exactly(params / whole), params)
        if passes is not None:
            self._row("gate_passed", model, seed, _exactly(float(passes)), params)
        top = self._outcomes.ndcg(TOP, seed)
        assert top is not None
        assert answers.rank is not None
        lost = paired_bootstrap(top, ndcg(answers.rank, _COUNTED), answers.user)
        self._row("loss_vs_top", model, seed, lost, params, n=len(answers.user))
        timed = {"task": self.task, "seed": seed, "model": model, "metric": "latency_ratio"}
        if latency is not None and not self.out.has(**timed):
            self._row("latency_ratio", model, seed, _exactly(latency()), params)
        if not is_last:
            return
        self._outcomes.add(arm, seed, answers)
        ladder = self._outcomes.ndcg("gradual", seed)
        if arm != "gradual" and ladder is not None:
            lost = paired_bootstrap(ladder, ndcg(answers.rank, _COUNTED), answers.user)
            self._row("loss_vs_gradual", model, seed, lost, params, n=len(answers.user))

    def add_means(self) -> None:
        """The arms against each other over all seeds; one number per target, its mean over them."""
        if {row.seed for row in self.out.rows} - {"mean", *self._outcomes.seeds}:
            return  # A mean of some seeds does not take the place of one of all.
        means, user = self._outcomes.means(), self._outcomes.user
        # Of fewer seeds than the top has now.
        for arm in {row.model for row in self.out.rows if row.seed == "mean"} - means.keys():
            self.out.drop(task=self.task, seed="mean", model=arm)
        for arm, values in means.items():
            interval = bootstrap_interval(values, user)
            self._row("ndcg@10", arm, "mean", interval, n=len(user))
            for against, metric in ((TOP, "loss_vs_top"), ("gradual", "loss_vs_gradual")):
                if arm not in (TOP, against) and against in means:
                    lost = paired_bootstrap(means[against], values, user)
                    self._row(metric, arm, "mean", lost, n=len(user))

    def _metrics(self, model: str, seed: int, answers: Answers, params: int) -> None:
        for metric, (interval, n) in answers.metrics().items():
            if metric in ("ndcg@10", "hr@10", "auc", "ece"):
                self._row(metric, model, seed, interval, params, n=n)

    def _row(
        self,
        metric: str,
        model: str,
        seed: int | Literal["mean"],
        interval: Interval,
        params: int | None = None,
        **cells: Any,
    ) -> None:
        """Write a row, unless there is no number (nothing was ranked among the first ten, say)."""
        if np.isfinite(interval.value):
            cells |= {} if params is None else {"params": params}
            cells |= {"task": self.task, "split": "test", "model": model, "metric": metric}
            self.out.add(seed=seed, interval=interval, **cells)


def _arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise BadInput(f"{path} cannot be read as arrays ({error}); move it away.") from error
    if "settings" not in arrays:
        raise BadInput(f"{path} is not one of a ladder's outcomes; move it away.")
    return arrays


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)
