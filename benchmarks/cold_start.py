"""What is known of somebody after no event, one, two, … a hundred: ours against peers.

    python -m benchmarks.cold_start RUN [RUN …] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.cold_start --smoke

*Users*: the same people and targets with the history cut to its last events; those whose history
holds the longest length, everybody on a second line. Nothing left is the profile alone, which only
popularity can be held against. Ours is the run's model and one trained alike without profiles;
SASRec is trained on the same events for as long as the run's model was, or until validation stops
it. On the generated job market an ideal reader stands beside them (`benchmarks.ideal_reader`): what
profiles and events could tell at best.

*New people and items*: a tenth of the items and a fifth of the people are taken out of training
whole, ours (with profiles and without) and SASRec are trained anew on the rest; the people's
targets are asked like the others' (`new users`), everybody's targets among the items by whether
they were taken out (`cold items`, `warm items`; `cold items alone` ranks them among themselves).

`gain_vs_sasrec` and its like are relative, of NDCG@10, people drawn once for both. SASRec's shape
was chosen on MovieLens-1M: on other data give `--tune-sasrec`. Seen items are filtered by the whole
history. Cut short, the same call goes on with what is missing.

Of several runs, which differ by their seed alone, come rows of each and then of their mean, whose
interval is over people, each drawn with all that was asked of them under every seed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms import kept_arrays
from benchmarks.ideal_reader import IdealReader, truth_of
from benchmarks.measured import Measured
from benchmarks.peers import sasrec
from benchmarks.published import COLD_START_GAINS
from benchmarks.quality import relative_gain
from benchmarks.seeds import Found, each_run, mean_of, pooled
from benchmarks.studied import (
    Studied,
    add_sasrec_options,
    opened,
    run_parser,
    sasrec_of,
    train_like,
    without_profiles,
)
from decant.measure import NEIGHBOURS, Asked, NeighbourKind, SliceScores, neighbour_scores
from decant.run_record import hardware
from foundation import Foundation
from foundation.evaluation import bootstrap_interval, hit_rate, ndcg, popularity
from promptify.assembly import PromptBook
from promptify.sources import SourceData
from promptify.splits import Split, Targets, cold_item, new_user

Float32 = NDArray[np.float32]
Scores = Callable[[Targets], SliceScores]
Ranks = dict[int | str | None, NDArray[np.int64]]
"""int64 [m] by length: events of history, None for all of it, `alone` among cold items alone."""


Part = dict[tuple[str, int | None], Found]
"""By who they are and the length."""

LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100)
"""Events that histories are cut to; the whole history comes after."""
LEAST_COHORT = 200
"""People who must have a history of the longest length that is asked."""
COLD_ITEMS, NEW_USERS = 0.1, 0.2
"""Shares that are taken out of training whole."""


class Contest:
    """Who ranks what, of people and items that training has seen more or less of.

    Args:
        studied: the run.
        measured: where rows go.
        work: keeps the ranks of every model.
        train_sasrec: on a split.

    Attributes:
        found: what has been measured so far.
    """

    def __init__(
        self,
        studied: Studied,
        measured: Measured,
        *,
        work: Path,
        train_sasrec: Callable[[Split], sasrec.Fitted],
    ) -> None:
        self.studied = studied
        log = without_profiles(studied.data.interactions)
        self.bare = replace(studied.data, interactions=log)
        self.measured = measured
        self.work = work
        self.train_sasrec = train_sasrec
        self.found: Part = {}
        self.test = studied.split.test
        self.wanted = Asked(studied.book, self.test).wanted
        self.user = self.test.user[self.wanted.request].astype(np.int64)
        history = (self.test.history_end - self.test.history_start)[self.wanted.request]
        least = min(LEAST_COHORT, max(1, len(history) // 4))
        self.lengths = [n for n in LENGTHS if (history >= n).sum() >= least]
        self.is_long = history >= self.lengths[-1]

    def measure_users(self) -> None:
        """The run's model and its peers at every length of history."""
        studied, split = self.studied, self.studied.split
        ranks = {
            "foundation": self._ranks(
                "foundation", lambda _: of_foundation(studied.foundation, studied.book)
            ),
            "foundation without profiles": self._ranks(
                "bare", partial(self._train_ours, self.bare, split)
            ),
            "sasrec": self._ranks("sasrec", partial(self._train_sasrec, split)),
            **self._baselines(split, "all"),
            **self._ideal(),
        }
        longest = f"{self.lengths[-1]} events or more"
        self._rows(ranks, longest, self.is_long, self.lengths)
        self._rows(ranks, "all users", np.ones_like(self.is_long), self.lengths)

    def measure_new(self) -> None:
        """People and items that training has not seen, with models trained without them."""
        log, split = self.studied.data.interactions, self.studied.split
        seed = self.studied.recipe.seed
        items = cold_item(log, split, fraction=COLD_ITEMS, seed=seed)
        people = new_user(log, split, fraction=NEW_USERS, seed=seed)
        assert items.cold_items is not None
        is_new_U = np.zeros(log.num_users, np.bool_)
        is_new_U[people.test.user] = True
        without = Split(
            name=f"{split.name}_without_some",
            train=items.train & people.train,
            valid=split.valid[~is_new_U[split.valid.user]],
            test=split.test,
            cold_items=items.cold_items,
        )
        ranks = {
            "foundation": self._ranks(
                "new-foundation",
                partial(self._train_ours, self.studied.data, without),
                cold_I=items.cold_items,
            ),
            "foundation without profiles": self._ranks(
                "new-bare",
                partial(self._train_ours, self.bare, without),
                cold_I=items.cold_items,
            ),
            "sasrec": self._ranks(
                "new-sasrec",
                partial(self._train_sasrec, without),
                cold_I=items.cold_items,
            ),
            **self._baselines(without, "new", cold_I=items.cold_items),
        }
        self._rows(ranks, "new users", is_new_U[self.user], self.lengths)
        is_cold = items.cold_items[self.wanted.item]
        self._rows(ranks, "cold items", is_cold, [None])
        alone: dict[str, Ranks] = {model: {None: of["alone"]} for model, of in ranks.items()}
        self._rows(alone, "cold items alone", is_cold, [None])
        self._rows(ranks, "warm items", ~is_cold, [None])

    def _ranks(
        self,
        name: str,
        train: Callable[[Path], Scores],
        *,
        cold_I: NDArray[np.bool_] | None = None,
    ) -> Ranks:
        """Rank of each target at every length; and among cold items alone, where some are."""
        path = self.work / f"{self.measured.config_hash}-{name}.npz"
        lengths = self._named_lengths

        def asked_at_each(scratch: Path) -> dict[str, NDArray[Any]]:
            scores = train(scratch)
            arrays: dict[str, NDArray[Any]] = {}
            for key, length in lengths.items():
                cut = self.test if length is None else self.test.cut(length)
                asked = Asked(self.studied.book, cut, seen=self.test)
                of_requests = scores(cut)
                arrays[key] = asked.ranks_by(of_requests)
                if length is None and cold_I is not None:
                    arrays["alone"] = asked.ranks_by(_among(cold_I, of_requests))
            return arrays

        kept = kept_arrays(path, asked_at_each, asking="benchmarks.cold_start")
        return {lengths.get(key, key): rank for key, rank in kept.items()}

    @property
    def _named_lengths(self) -> dict[str, int | None]:
        """The lengths by their names in a file of ranks."""
        return {str(n): n for n in self.lengths} | {"all": None}

    def _ideal(self) -> dict[str, Ranks]:
        """The best that can be made of a generated market's profiles and events."""
        log, lengths = self.studied.data.interactions, self._named_lengths
        truth = truth_of(log, seed=self.studied.recipe.seed)
        if truth is None:
            return {}

        def ranked(_: Path) -> dict[str, NDArray[Any]]:
            # Most of the time goes with targets, and those with nothing good in them have no rank.
            asked_about = np.unique(self.wanted.request)
            found = IdealReader(log, truth).scores(self.test[asked_about], list(lengths.values()))
            asked = Asked(self.studied.book, self.test)
            arrays = {}
            for key, length in lengths.items():
                scores_nI = np.zeros((len(self.test), log.num_items), np.float32)
                scores_nI[asked_about] = found[length]
                arrays[key] = asked.ranks_by(_slices(scores_nI))
            return arrays

        path = self.work / f"{self.measured.config_hash}-ideal.npz"
        kept = kept_arrays(path, ranked, asking="benchmarks.cold_start")
        return {"ideal_reader": {lengths[key]: rank for key, rank in kept.items()}}

    def _train_ours(self, data: SourceData, split: Split, scratch: Path) -> Scores:
        """A model like the run's, on other data or another split."""
        model, book = train_like(self.studied, data, split, scratch=scratch)
        return of_foundation(model, book)

    def _train_sasrec(self, split: Split, _: Path) -> Scores:
        """SASRec on the split's training events, stopped by validation or by the clock."""
        fitted = self.train_sasrec(split)
        book = self.studied.book
        return lambda targets: _slices(sasrec.score_requests(fitted.model, book, targets))

    def _baselines(
        self, split: Split, name: str, *, cold_I: NDArray[np.bool_] | None = None
    ) -> dict[str, Ranks]:
        log = self.studied.data.interactions

        def by_popularity(_: Path) -> Scores:
            count_I = popularity(log.event_item[split.train], log.num_items)
            return lambda _: lambda start, stop: np.tile(count_I, (stop - start, 1))

        def by_neighbours(kind: NeighbourKind, _: Path) -> Scores:
            return neighbour_scores(log, split.train, kind)

        peers: dict[str, Callable[[Path], Scores]] = {
            "popularity": by_popularity,
            **{kind: partial(by_neighbours, kind) for kind in NEIGHBOURS},
        }
        return {
            peer: self._ranks(f"{name}-{peer}", score, cold_I=cold_I)
            for peer, score in peers.items()
        }

    def _rows(
        self,
        ranks: Mapping[str, Ranks],
        who: str,
        here: NDArray[np.bool_],
        lengths: Sequence[int | None],
    ) -> None:
        """Rows of some of the targets, every model at every length, and ours against its peers."""
        if not here.any():
            raise ValueError(f"there is no target of {who}; the run's data is too small.")
        part: Part = {}
        for length in dict.fromkeys((*lengths, None)):
            # Before any event SASRec has nothing to say, and nothing to be held against.
            said = {model: of for model, of in ranks.items() if (model, length) != ("sasrec", 0)}
            rank_m = {model: of[length][here] for model, of in said.items()}
            part[who, length] = Found(self.user[here], rank_m)
        self.found |= part
        write(self.measured, self.studied, part, seed=self.studied.recipe.seed)


def write(measured: Measured, studied: Studied, part: Part, *, seed: int | Literal["mean"]) -> None:
    """Rows of a part: every model, and ours against its peers."""
    for (who, length), found in part.items():
        add = partial(
            measured.add,
            task=studied.recipe.name,
            split=f"{studied.split.name.replace('_', '-')}, {who}",
            history_events=length,
            n=len(found.user_m),
            seed=seed,
        )
        values = {model: ndcg(rank, 10) for model, rank in found.rank_m.items()}
        for model, of_model in values.items():
            hits = hit_rate(found.rank_m[model], 10)
            add(model=model, metric="ndcg@10", interval=bootstrap_interval(of_model, found.user_m))
            add(model=model, metric="hr@10", interval=bootstrap_interval(hits, found.user_m))
            for peer, of_peer in values.items():
                if model.startswith("foundation") and not peer.startswith("foundation"):
                    gain = relative_gain(of_peer, of_model, found.user_m)
                    if gain is not None:
                        add(model=model, metric=f"gain_vs_{peer}", interval=gain)


def joined(parts: Sequence[Part]) -> Part:
    """Of several seeds, what every one of them found something of."""
    return {
        key: pooled([part[key] for part in parts])
        for key in parts[0]
        if all(key in part for part in parts)
    }


def of_foundation(foundation: Foundation, book: PromptBook) -> Scores:
    """Log-probabilities of the next item, up to a constant of each request."""
    items_VI = foundation.embed_items().T

    def scores(targets: Targets) -> SliceScores:
        vectors_nV = foundation.embed_users(book.prefixes(targets, task=0))
        return lambda start, stop: vectors_nV[start:stop] @ items_VI

    return scores


def _slices(scores_nI: Float32) -> SliceScores:
    return lambda start, stop: scores_nI[start:stop]


def _among(chosen_I: NDArray[np.bool_], scores: SliceScores) -> SliceScores:
    return lambda start, stop: np.where(chosen_I, scores(start, stop), -np.inf)


def table(measured: Measured) -> str:
    """Models down, lengths across; under each part its gains, at the end what was published."""
    lines = []
    rows = measured.rows
    for split in dict.fromkeys(row.split for row in rows):
        here = [row for row in rows if row.split == split]
        lengths = list(dict.fromkeys(row.history_events for row in here))
        heads = "".join(f"{'all' if n is None else n:>9}" for n in lengths)
        lines.append(f"\n{split + f', n = {here[0].n}':42}{heads}")
        for metric, form in (
            ("ndcg@10", ".4f"),
            ("gain_vs_sasrec", "+.1%"),
            ("gain_vs_last_item", "+.1%"),
            ("gain_vs_popularity", "+.0%"),
        ):
            for model in dict.fromkeys(row.model for row in here if row.metric == metric):
                found = {
                    row.history_events: row
                    for row in here
                    if (row.metric, row.model) == (metric, model)
                }
                name = model if metric == "ndcg@10" else f"{metric}, {model}"
                cells = "".join(
                    format(found[n].value, form).rjust(9) if n in found else " " * 9
                    for n in lengths
                )
                lines.append(f"{name:42}{cells}")
    published = ", ".join(f"{gain:+.1%} at {n}" for n, gain in COLD_START_GAINS.items())
    return "\n".join([*lines, f"\npublished, over another ranker by another metric: {published}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__, takes_several=True)
    add_sasrec_options(parser)
    parser.add_argument(
        "--part", choices=("users", "new"), help="one of the two parts; default both"
    )
    options = parser.parse_args(arguments)
    seen: list[Measured] = []
    parts: list[Part] = []
    try:
        for one in each_run(options):
            with opened(one) as (studied, work):
                made_of, train = sasrec_of(one, studied)
                settings = {
                    "recipe": studied.recipe.to_dict(),
                    "weights": studied.weights,
                    "lengths": LENGTHS,
                    "taken out": (COLD_ITEMS, NEW_USERS),
                    "sasrec": made_of,
                }
                measured = Measured("cold_start", settings, out=options.out)
                contest = Contest(studied, measured, work=work, train_sasrec=train)
                if options.part in (None, "users"):
                    contest.measure_users()
                if options.part in (None, "new"):
                    contest.measure_new()
                seen.append(measured)
                parts.append(contest.found)
        if len(seen) > 1:
            tried = {"lengths": LENGTHS, "sasrec": made_of[:2]}
            seen.append(mean_of("cold_start", studied.recipe, tried, out=options.out))
            write(seen[-1], studied, joined(parts), seed="mean")
    except (ValueError, OSError) as error:
        print(f"benchmarks.cold_start: error: {error}", file=sys.stderr)
        return 1
    told = f"{studied.recipe.name}, NDCG@10 by events of history"
    told += f", mean of {len(parts)} seeds" if len(parts) > 1 else ""
    print(f"{told}. {hardware()}\n{table(seen[-1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
