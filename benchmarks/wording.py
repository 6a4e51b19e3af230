"""What the words are worth: numbers as percentiles, as they are, or not at all; titles masked.

    python -m benchmarks.wording RUN [RUN …] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.wording --smoke

A prompt tells a number as where it lies among the training data ("high pay"). Each arm is a model
trained by the run's recipe on the same events, told otherwise: `numbers raw` says them in digits,
`no numbers` leaves them out, and `titles masked` leaves out what items are called, which is the
control for a pretrained model: what it knows of a title it may have read about elsewhere. The
others are held against `as it is`, trained beside them, target by target. An arm that would tell
nothing else than the first is left out. Cut short, the same call goes on with the arms that are
missing. Of several runs, which differ by their seed alone, come rows of each and then of their
mean, of the ranks alone.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.arms import kept_arrays
from benchmarks.measured import Measured
from benchmarks.seeds import Found, each_run, mean_of, pooled
from benchmarks.studied import Studied, opened, run_parser, train_like
from decant.measure import Answers, Asked
from decant.run_record import hardware
from foundation.evaluation import (
    Interval,
    bootstrap_interval,
    hit_rate,
    ndcg,
    paired_bootstrap,
)
from foundation.predictions import predict_targets
from promptify.interactions import Interactions
from promptify.schema import Field, Schema

REFERENCE = "as it is"
TITLES = ("title", "headline")
"""Fields that say what an item is called."""


def numbers_raw(log: Interactions) -> Interactions:
    """The same log with its numbers as texts of digits."""

    def as_text(fields: Sequence[Field]) -> tuple[Field, ...]:
        return tuple(replace(f, kind="text") if f.kind == "number" else f for f in fields)

    schema = Schema(
        user=as_text(log.schema.user),
        items={kind: as_text(fields) for kind, fields in log.schema.items.items()},
    )
    numbers = {f.name for f in log.schema.user if f.kind == "number"}
    of_items = {f.name for f in log.schema.item_columns if f.kind == "number"}
    return _retold(
        log, schema, users=_in_digits(log.users, numbers), items=_in_digits(log.items, of_items)
    )


def without_numbers(log: Interactions) -> Interactions:
    """The same log, of whose numbers nothing is told."""
    return _leaving_out(log, lambda field: field.kind == "number")


def without_titles(log: Interactions) -> Interactions:
    """The same log, of items that are not called anything."""
    return _leaving_out(log, lambda field: field.name in TITLES, users_too=False)


ARMS: dict[str, Callable[[Interactions], Interactions]] = {
    REFERENCE: lambda log: log,
    "numbers raw": numbers_raw,
    "no numbers": without_numbers,
    "titles masked": without_titles,
}


def _leaving_out(
    log: Interactions, unwanted: Callable[[Field], bool], *, users_too: bool = True
) -> Interactions:
    """The same log without some fields; an item of which nothing were left is told as it is."""

    def kept(fields: Sequence[Field]) -> tuple[Field, ...]:
        return tuple(field for field in fields if not unwanted(field))

    items = {
        kind: kept(fields) if any(f.kind != "name" for f in kept(fields)) else fields
        for kind, fields in log.schema.items.items()
    }
    user = kept(log.schema.user) if users_too else log.schema.user
    return _retold(log, Schema(user=user, items=items), users=log.users, items=log.items)


def _retold(
    log: Interactions, schema: Schema, *, users: datasets.Dataset, items: datasets.Dataset
) -> Interactions:
    return Interactions(
        schema=schema,
        users=users,
        items=items,
        events=log.events,
        actions=log.actions,
        surfaces=log.surfaces,
        contexts=log.contexts,
    )


def _in_digits(table: datasets.Dataset, columns: set[str]) -> datasets.Dataset:
    """A table with some number columns as texts; what is not known stays so."""
    if not columns:
        return table
    features = table.features.copy()
    content = {name: table[name][:] for name in table.column_names}
    for name in columns:
        features[name] = datasets.Value("string")
        content[name] = [
            None if value is None or np.isnan(value) else f"{value:g}" for value in content[name]
        ]
    return datasets.Dataset.from_dict(content, features=features)


class Wordings:
    """Trains every arm and writes its rows.

    Args:
        studied: the run.
        measured: where rows go.
        work: keeps what each arm said.
    """

    def __init__(self, studied: Studied, measured: Measured, *, work: Path) -> None:
        self.studied = studied
        self.measured = measured
        self.work = work
        self.asked = Asked(studied.book, studied.split.test)

    def measure(self) -> Found:
        """Rows of every arm, and its differences to the first; the ranks that they are of."""
        log = self.studied.data.interactions
        logs = {arm: tell(log) for arm, tell in ARMS.items()}
        told = {arm: one for arm, one in logs.items()
                if arm == REFERENCE or one.schema.to_dict() != log.schema.to_dict()}  # fmt: skip
        said = {arm: self._said(arm, one) for arm, one in tqdm(told.items(), desc="arms")}
        seed = self.studied.recipe.seed
        for arm, answers in said.items():
            for metric, (interval, n) in answers.metrics().items():
                if metric in ("auc", "log_loss"):
                    add(self.measured, self.studied, arm, metric, interval, seed=seed, n=n)
        user_m = said[REFERENCE].user
        found = Found(user_m, {arm: _ranks(answers) for arm, answers in said.items()})
        write(self.measured, self.studied, found, seed=seed)
        return found

    def _said(self, arm: str, log: Interactions) -> Answers:
        path = self.work / f"{self.measured.config_hash}-{arm.replace(' ', '-')}.npz"

        def told(scratch: Path) -> dict[str, NDArray[Any]]:
            data = replace(self.studied.data, interactions=log)
            model, book = train_like(self.studied, data, self.studied.split, scratch=scratch)
            answers = self.asked.of(predict_targets(model, book, self.studied.split.test))
            assert answers.action_probability is not None
            return {"rank": _ranks(answers), "probability": answers.action_probability}

        kept = kept_arrays(path, told, asking="benchmarks.wording")
        return self.asked.answers(kept["rank"], kept["probability"])


def write(
    measured: Measured, studied: Studied, found: Found, *, seed: int | Literal["mean"]
) -> None:
    """Rows of how every arm ranks, and of its difference to the first."""
    before = ndcg(found.rank_m[REFERENCE], 10)
    for arm, rank_m in found.rank_m.items():
        values = ndcg(rank_m, 10)
        rows = {
            "hr@10": bootstrap_interval(hit_rate(rank_m, 10), found.user_m),
            "ndcg@10": bootstrap_interval(values, found.user_m),
        }
        if arm != REFERENCE:
            rows["ndcg@10_vs_as_it_is"] = paired_bootstrap(
                before, values, found.user_m, statistic="difference"
            )
        for metric, interval in rows.items():
            add(measured, studied, arm, metric, interval, seed=seed, n=len(values))


def add(
    measured: Measured,
    studied: Studied,
    arm: str,
    metric: str,
    interval: Interval,
    *,
    seed: int | Literal["mean"],
    n: int,
) -> None:
    """A row of an arm."""
    measured.add(
        task=studied.recipe.name,
        split=studied.split.name.replace("_", "-"),
        model=f"foundation, {arm}",
        context_tokens=studied.recipe.prompter.max_prompt_tokens,
        metric=metric,
        interval=interval,
        n=n,
        seed=seed,
    )


def _ranks(answers: Answers) -> NDArray[np.int64]:
    assert answers.rank is not None
    return answers.rank


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    options = run_parser(__doc__, takes_several=True).parse_args(arguments)
    seen: list[Found] = []
    try:
        for one in each_run(options):
            with opened(one) as (studied, work):
                settings = {
                    "recipe": studied.recipe.to_dict(),
                    "data": studied.weights,
                    "arms": list(ARMS),
                }
                measured = Measured("wording", settings, out=options.out)
                seen.append(Wordings(studied, measured, work=work).measure())
        if len(seen) > 1:
            arms = {"arms": list(ARMS)}
            measured = mean_of("wording", studied.recipe, arms, out=options.out)
            write(measured, studied, pooled(seen), seed="mean")
    except (ValueError, OSError) as error:
        print(f"benchmarks.wording: error: {error}", file=sys.stderr)
        return 1
    told = f"{studied.recipe.name}, told otherwise"
    told += f", mean of {len(seen)} seeds" if len(seen) > 1 else ""
    print(f"{told}. {hardware()}\n{measured.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
