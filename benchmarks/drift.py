"""How fast a model ages: trained up to a moment, asked in the spans of time that come after it.

    python -m benchmarks.drift RUN [RUN …] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.drift --smoke

Seven tenths of the run's events train, in the order of time, or as many as `--train-share` says;
the next twentieth is left out, and what comes after is cut into spans of equally many slates, t+1
to t+5. A prediction knows all that its person did before it, so the model is old and the history
is not. Ours is trained by the run's recipe, SASRec as long as the run's model was; popularity and
neighbours are counted up to the same moment. `ndcg@10_vs_first_span` is the last span less the
first, people drawn once for both: they are other people and other targets, and some change is
theirs. What is compared is how much each model loses. Cut short, the same call goes on with the
models that are missing. Of several runs, which differ by their seed alone, come rows of each and
then of their mean.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms import kept_arrays
from benchmarks.cold_start import of_foundation
from benchmarks.measured import Measured
from benchmarks.peers import sasrec
from benchmarks.seeds import Found, each_run, mean_of, pooled
from benchmarks.studied import (
    Studied,
    add_sasrec_options,
    opened,
    run_parser,
    sasrec_of,
    train_like,
)
from decant.measure import Asked, NeighbourKind, neighbour_answers, popularity_answers
from decant.run_record import hardware
from foundation.evaluation import (
    UserStatistic,
    bootstrap_interval,
    bootstrap_users,
    mean_of_users,
    ndcg,
)
from promptify.splits import Split, Targets, global_time
from promptify.validation import BadInput

TRAINED, LEFT_OUT = 0.7, 0.05
"""Shares of the events, in the order of time."""
NUM_SPANS = 5


def split_by_time(studied: Studied, *, train_share: float = TRAINED) -> Split:
    """Train on a share of the events, up to a moment; validate in what follows, test after it."""
    log, shares = studied.data.interactions, (train_share, train_share + LEFT_OUT)
    moments = np.quantile(log.event_timestamp, shares).astype(np.int64)
    surface = studied.data.tasks[0].name if len(studied.data.tasks) > 1 else None
    return global_time(log, valid_from=int(moments[0]), test_from=int(moments[1]), surface=surface)


def spans(studied: Studied, targets: Targets) -> NDArray[np.int64]:
    """The span of each target, int64 [n] in [0, NUM_SPANS): equally many in each, by time."""
    moment = studied.data.interactions.event_timestamp[targets.first_event]
    place = np.empty(len(targets), np.int64)
    place[np.argsort(moment, kind="stable")] = np.arange(len(targets))
    return place * NUM_SPANS // len(targets)


class Aged(NamedTuple):
    """What was found of the targets of all spans, and the span of each, int64 [m]."""

    found: Found
    span_m: NDArray[np.int64]


class Ageing:
    """Models of one moment, asked later and later.

    Args:
        studied: the run.
        measured: where rows go.
        work: keeps the ranks of every model.
        train_sasrec: on a split.
        train_share: of the events, in the order of time.
    """

    def __init__(
        self,
        studied: Studied,
        measured: Measured,
        *,
        work: Path,
        train_sasrec: Callable[[Split], sasrec.Fitted],
        train_share: float = TRAINED,
    ) -> None:
        self.studied = studied
        self.measured = measured
        self.work = work
        self.train_sasrec = train_sasrec
        self.split = split_by_time(studied, train_share=train_share)
        self.asked = Asked(studied.book, self.split.test)

    def measure(self) -> Aged:
        """Every model in every span, and how the last span differs from the first."""
        asked, train = self.asked, self.split.train
        models: dict[str, Callable[[Path], NDArray[np.int64] | None]] = {
            "foundation": self._ours,
            "sasrec": self._sasrec,
            "popularity": lambda _: popularity_answers(asked, train).rank,
            **{
                kind: partial(self._neighbours, kind)
                for kind in ("last_item_transitions", "item_knn")
            },
        }
        user_m = self.split.test.user[asked.wanted.request].astype(np.int64)
        span_m = spans(self.studied, self.split.test)[asked.wanted.request]
        aged = Aged(Found(user_m, {}), span_m)
        for model, ask in models.items():
            aged.found.rank_m[model] = self._ranks(model, ask)
            write(self.measured, self.studied, aged, model, seed=self.studied.recipe.seed)
        return aged

    def _neighbours(self, kind: NeighbourKind, _: Path) -> NDArray[np.int64] | None:
        return neighbour_answers(self.asked, self.split.train, kind).rank

    def _ranks(
        self, model: str, ask: Callable[[Path], NDArray[np.int64] | None]
    ) -> NDArray[np.int64]:
        def asked(scratch: Path) -> dict[str, NDArray[Any]]:
            rank = ask(scratch)
            assert rank is not None
            return {"rank": rank}

        path = self.work / f"{self.measured.config_hash}-{model}.npz"
        return kept_arrays(path, asked, asking="benchmarks.drift")["rank"]

    def _ours(self, scratch: Path) -> NDArray[np.int64]:
        model, book = train_like(self.studied, self.studied.data, self.split, scratch=scratch)
        return self.asked.ranks_by(of_foundation(model, book)(self.split.test))

    def _sasrec(self, _: Path) -> NDArray[np.int64]:
        fitted = self.train_sasrec(self.split)
        scores = sasrec.score_requests(fitted.model, self.studied.book, self.split.test)
        return self.asked.ranks_by(lambda a, b: scores[a:b])


def write(
    measured: Measured, studied: Studied, aged: Aged, model: str, *, seed: int | Literal["mean"]
) -> None:
    """Rows of a model in every span, and of how the last differs from the first."""
    (user_m, rank_m), span_m = aged
    values = ndcg(rank_m[model], 10)
    add = partial(measured.add, task=studied.recipe.name, model=model, seed=seed)
    for number in range(NUM_SPANS):
        here = span_m == number
        if not here.any():
            raise ValueError(f"span t+{number + 1} has no target; the log is too short.")
        interval = bootstrap_interval(values[here], user_m[here])
        split = f"global-time, t+{number + 1}"
        add(split=split, metric="ndcg@10", interval=interval, n=int(here.sum()))
    users, row = np.unique(user_m, return_inverse=True)
    first, last = (
        mean_of_users(values[span_m == s], row[span_m == s], len(users)) for s in (0, NUM_SPANS - 1)
    )
    change = bootstrap_users(partial(_less, a=last, b=first), len(users))
    add(
        split=f"global-time, t+{NUM_SPANS}",
        metric="ndcg@10_vs_first_span",
        interval=change,
        n=int(np.isin(span_m, (0, NUM_SPANS - 1)).sum()),
    )


def _less(
    weights: NDArray[np.floating[Any]], *, a: UserStatistic, b: UserStatistic
) -> NDArray[np.floating[Any]]:
    return a(weights) - b(weights)


def table(measured: Measured) -> str:
    """Models down, spans across, and the change from the first span to the last."""
    lines = [f"{'NDCG@10':24}" + "".join(f"{f't+{n + 1}':>9}" for n in range(NUM_SPANS))]
    for model in dict.fromkeys(row.model for row in measured.rows):
        mine = [row for row in measured.rows if row.model == model]
        values = [row.value for row in mine if row.metric == "ndcg@10"]
        [change] = [row for row in mine if row.metric == "ndcg@10_vs_first_span"]
        ends = "" if change.ci_low is None else f" [{change.ci_low:+.4f}, {change.ci_high:+.4f}]"
        cells = "".join(f"{value:9.4f}" for value in values)
        lines.append(f"{model:24}{cells}   {change.value:+.4f}{ends}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__, takes_several=True)
    add_sasrec_options(parser)
    parser.add_argument(
        "--train-share",
        type=float,
        default=TRAINED,
        help=f"of the events, in the order of time; default {TRAINED:g}. Of MovieLens-1M give .8: "
        "times in the first 80 %% of the shared file are partly interpolated, and what is asked "
        "must come after them",
    )
    options = parser.parse_args(arguments)
    share = options.train_share
    seen: list[Aged] = []
    try:
        if not 0 < share < 1 - LEFT_OUT:
            raise BadInput(
                f"--train-share {share:g} must lie between 0 and {1 - LEFT_OUT:g}: something has "
                f"to train, and something to come after it; {TRAINED:g} is the default."
            )
        for one in each_run(options):
            with opened(one) as (studied, work):
                made_of, train = sasrec_of(one, studied)
                shares = [share, LEFT_OUT, NUM_SPANS]
                settings = {
                    "recipe": studied.recipe.to_dict(),
                    "data": studied.weights,
                    "shares": shares,
                    "sasrec": made_of,
                }
                measured = Measured("drift", settings, out=options.out)
                ageing = Ageing(studied, measured, work=work, train_sasrec=train, train_share=share)
                seen.append(ageing.measure())
        if len(seen) > 1:
            tried = {"shares": shares, "sasrec": made_of[:2]}
            measured = mean_of("drift", studied.recipe, tried, out=options.out)
            mean = Aged(
                pooled([aged.found for aged in seen]),
                np.concatenate([aged.span_m for aged in seen]),
            )
            for model in mean.found.rank_m:
                write(measured, studied, mean, model, seed="mean")
    except (ValueError, OSError) as error:
        print(f"benchmarks.drift: error: {error}", file=sys.stderr)
        return 1
    told = f"{studied.recipe.name}, trained up to t"
    told += f", mean of {len(seen)} seeds" if len(seen) > 1 else ""
    print(f"{told}. {hardware()}\n{table(measured)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
