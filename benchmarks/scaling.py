"""How loss and ranking move with the size of the model and with how much data there is.

    python -m benchmarks.scaling RUN [RUN …] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.scaling --smoke

*Model*: decoders of growing size, each trained by the run's recipe on all of its data. *Data*: the
run's own size, trained on a growing share of the people, whole histories each, for as many epochs;
everybody's targets are asked. `next_item_loss` is the cross-entropy of the target among all items
of its kind, in nats. `exponent` is b of loss = a · size^-b, a straight line in logarithms through
the means, people drawn once for all sizes; `exponent_ndcg` is that of NDCG@10, its sign turned,
so that above zero larger is better in both. No constant is fitted: a few sizes cannot tell a floor
from a slope, and an exponent holds for the sizes that it was read off. Cut short, the same call
goes on with the trainings that are missing. Of several runs, which differ by their seed alone, come
rows of each and then of their mean, whose interval is over people, each drawn with all that was
asked of them under every seed.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.arms import kept_arrays
from benchmarks.cold_start import of_foundation
from benchmarks.measured import Measured
from benchmarks.seeds import each_run, mean_of
from benchmarks.studied import Studied, opened, run_parser, train_like
from decant.measure import Asked
from decant.run_record import hardware
from foundation.evaluation import (
    Interval,
    UserStatistic,
    bootstrap_interval,
    bootstrap_users,
    mean_of_users,
    ndcg,
)
from foundation.predictions import served_items
from promptify.splits import Split

Float64 = NDArray[np.float64]

SIZES = ("tiny", "mini", "small", "medium")
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)

Arm = tuple[str, str, float]
"""What grows, `model` or `data`; the size of the decoder; the share of the people."""


class Scaled(NamedTuple):
    """What was found of the same targets after every training.

    Attributes:
        user_m: int64, whose they are.
        said: by arm, `loss` and `ndcg`, float64 [m], and `params` and `events`, one number each.
    """

    user_m: NDArray[np.int64]
    said: dict[Arm, dict[str, NDArray[Any]]]


class Scaling:
    """Trains every size and every share, and writes the rows.

    Args:
        studied: the run.
        measured: where rows go.
        work: keeps what each training said.
        sizes: of decoders, the smallest first.
        shares: of the people, the smallest first.
    """

    def __init__(
        self,
        studied: Studied,
        measured: Measured,
        *,
        work: Path,
        sizes: Sequence[str],
        shares: Sequence[float],
    ) -> None:
        self.studied = studied
        self.measured = measured
        self.work = work
        self.asked = Asked(studied.book, studied.split.test)
        self.user = studied.split.test.user[self.asked.wanted.request].astype(np.int64)
        self.sizes, self.shares = sizes, shares

    def measure(self) -> Scaled:
        """Train every size and share; rows of all of them, and the exponents."""
        own = self.studied.recipe.size or "its own size"
        arms: list[Arm] = [("model", size, 1.0) for size in self.sizes]
        arms += [("data", own, share) for share in self.shares]
        said = {arm: self._said(arm[1], arm[2]) for arm in tqdm(arms, desc="trainings")}
        scaled = Scaled(self.user, said)
        write(self.measured, self.studied, scaled, seed=self.studied.recipe.seed)
        return scaled

    def _said(self, size: str, share: float) -> dict[str, NDArray[Any]]:
        """Loss and NDCG@10 of each target after one training; kept."""
        path = self.work / f"{self.measured.config_hash}-{size}-{share:g}.npz"
        return kept_arrays(path, partial(self._trained, size, share), asking="benchmarks.scaling")

    def _trained(self, size: str, share: float, scratch: Path) -> dict[str, NDArray[Any]]:
        recipe = self.studied.recipe
        if size in self.sizes:
            recipe = replace(recipe, size=size, model=None)
        studied = replace(self.studied, recipe=recipe)
        split = some_people(self.studied, share)
        model, book = train_like(studied, studied.data, split, scratch=scratch)
        scores = of_foundation(model, book)(split.test)
        wanted = self.asked.wanted
        served_I = served_items(book, 0)
        logits = [scores(row, row + 1)[0].astype(np.float64) for row in wanted.request]
        loss = [
            scipy.special.logsumexp(row[served_I]) - row[item]
            for row, item in zip(logits, wanted.item, strict=True)
        ]
        return {
            "loss": np.array(loss),
            "ndcg": ndcg(self.asked.ranks_by(scores), 10),
            "params": np.array(model.num_parameters()),
            "events": np.array(int(split.train.sum())),
        }


def write(
    measured: Measured, studied: Studied, scaled: Scaled, *, seed: int | Literal["mean"]
) -> None:
    """Rows of every size and share, then the exponents."""
    user, said = scaled
    add = partial(measured.add, task=studied.recipe.name, n=len(user), seed=seed)
    for (kind, size, share), found in said.items():
        name = f"foundation, {size}" if kind == "model" else f"foundation, {share:g} of people"
        events = float(found["events"])
        for metric, interval in (
            ("next_item_loss", bootstrap_interval(found["loss"], user)),
            ("ndcg@10", bootstrap_interval(found["ndcg"], user)),
            ("training_events", Interval(value=events, low=-np.inf, high=np.inf)),
        ):
            params = int(found["params"])
            add(split=kind, model=name, params=params, metric=metric, interval=interval)
    for kind, x in (("model", "params"), ("data", "events")):
        mine = [found for arm, found in said.items() if arm[0] == kind]
        sizes_L = np.array([float(found[x]) for found in mine])
        for metric, name, sign in (("loss", "exponent", -1), ("ndcg", "exponent_ndcg", 1)):
            slope = exponent(sizes_L, [found[metric] for found in mine], user, sign=sign)
            add(split=kind, model="foundation", params=None, metric=name, interval=slope)


def joined(seeds: Sequence[Scaled]) -> Scaled:
    """What was found under several seeds: targets one after the other, sizes in the mean."""
    said: dict[Arm, dict[str, NDArray[Any]]] = {}
    for arm in seeds[0].said:
        each = [one.said[arm] for one in seeds]
        said[arm] = {
            name: np.concatenate([found[name] for found in each]) for name in ("loss", "ndcg")
        } | {name: np.mean([found[name] for found in each]) for name in ("params", "events")}
    return Scaled(np.concatenate([one.user_m for one in seeds]), said)


def some_people(studied: Studied, share: float) -> Split:
    """The run's split with a seeded share of the people to train on; smaller ones lie in larger."""
    log, split = studied.data.interactions, studied.split
    order = np.random.default_rng(studied.recipe.seed).permutation(log.num_users)
    kept_U = np.zeros(log.num_users, np.bool_)
    kept_U[order[: max(1, round(share * log.num_users))]] = True
    return replace(
        split, name=f"{split.name}_{share:g}", train=split.train & kept_U[log.event_user]
    )


def exponent(
    sizes_L: Float64, values: Sequence[Float64], user: NDArray[np.int64], *, sign: int
) -> Interval:
    """The slope of a mean against a size, both in logarithms, people drawn once for all sizes.

    Args:
        sizes_L: of each of L trainings.
        values: float64 [m] each, above zero in the mean.
        user: int64 [m].
        sign: −1 turns a fall into an exponent above zero.
    """
    users, row = np.unique(user, return_inverse=True)
    means = [mean_of_users(one, row, len(users)) for one in values]
    x_L = np.log(sizes_L) - np.log(sizes_L).mean()
    return bootstrap_users(partial(_slope, means=means, x_L=sign * x_L), len(users))


def _slope(
    weights: NDArray[np.floating[Any]], *, means: Sequence[UserStatistic], x_L: Float64
) -> Float64:
    y_LS = np.log(np.stack([mean(weights) for mean in means]))
    slope: Float64 = x_L @ y_LS / (x_L @ x_L)
    return slope


def table(measured: Measured) -> str:
    """A line per training, then the exponents."""
    rows = measured.rows
    lines = [f"{'':8}{'':32}{'parameters':>11}{'events':>10}{'loss, nats':>12}{'NDCG@10':>9}"]
    for split, model in dict.fromkeys((row.split, row.model) for row in rows):
        found = {row.metric: row for row in rows if (row.split, row.model) == (split, model)}
        if "next_item_loss" in found:
            loss = found["next_item_loss"]
            lines.append(
                f"{split:8}{model:32}{loss.params or 0:11,}{found['training_events'].value:10,.0f}"
                f"{loss.value:12.4f}{found['ndcg@10'].value:9.4f}"
            )
    for row in rows:
        if row.metric.startswith("exponent"):
            ends = "" if row.ci_low is None else f" [{row.ci_low:.4f}, {row.ci_high:.4f}]"
            lines.append(f"{row.metric} by {row.split}: {row.value:.4f}{ends}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__, takes_several=True)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="of decoders")
    options = parser.parse_args(arguments)
    sizes = ("tiny", "mini") if options.smoke else tuple(options.sizes)
    shares = (0.5, 1.0) if options.smoke else SHARES
    tried = {"sizes": sizes, "shares": shares}
    seen: list[Scaled] = []
    try:
        for one in each_run(options):
            with opened(one) as (studied, work):
                settings = {
                    "recipe": studied.recipe.to_dict(),
                    "data": studied.weights,
                    **tried,
                }
                measured = Measured("scaling", settings, out=options.out)
                scaling = Scaling(studied, measured, work=work, sizes=sizes, shares=shares)
                seen.append(scaling.measure())
        if len(seen) > 1:
            measured = mean_of("scaling", studied.recipe, tried, out=options.out)
            write(measured, studied, joined(seen), seed="mean")
    except (ValueError, OSError) as error:
        print(f"benchmarks.scaling: error: {error}", file=sys.stderr)
        return 1
    told = f"{studied.recipe.name}, on test"
    told += f", mean of {len(seen)} seeds" if len(seen) > 1 else ""
    print(f"{told}. {hardware()}\n{table(measured)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
