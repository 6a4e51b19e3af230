"""Quality against the length of the history, by how training cut its windows.

    python -m benchmarks.context --data ml-100k.zip [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.context --smoke

The same users and targets with the history cut to its last 0, 1, 2, 5, … events, for models that
differ in the share of training windows that were cut short, and for one that was only ever asked
behind long histories. Seen items are filtered by the whole history at every length. One model at
every length, and beyond the prompts that it was trained on: `benchmarks.context_length`.

The choice between them is made on validation rows; test rows stand beside. Cut short, the same call
goes on: trainings from their last checkpoint, rows where they stopped.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.length_study import Study, Table
from benchmarks.measured import Measured, work_of
from decant.measure import Asked, popularity_answers
from decant.recipes import Recipe, ml100k
from decant.run_record import hardware
from foundation import Foundation
from foundation.evaluation import ndcg
from promptify.assembly import PromptBook
from promptify.prompter import PrompterConfig
from promptify.rows import Rows
from promptify.sources import SourceData
from promptify.sources.job_market import job_market
from promptify.sources.movielens import ml_100k
from promptify.windows import Windows

Float64 = NDArray[np.float64]

LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100)
"""Events that histories are cut to; the whole history comes after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is trained and asked.

    Attributes:
        recipe: of every training, and the name of the data.
        short_shares: `FitConfig.short_window_share` of its arms; the first is what the others are
            held against.
        long_events: events before a target of the arm that is only asked behind long histories.
        lengths: events that histories are cut to.
        cohort_events: least history of the fixed cohort.
    """

    recipe: Recipe
    short_shares: tuple[float, ...]
    long_events: int
    lengths: tuple[int, ...]
    cohort_events: int


def full_settings() -> Settings:
    recipe = ml100k()
    return Settings(
        recipe=replace(recipe, fit=replace(recipe.fit, evaluate_steps=0)),
        short_shares=(0.0, 0.25, 0.5),
        long_events=50,
        lengths=LENGTHS,
        cohort_events=100,
    )


def smoke_settings() -> Settings:
    recipe = ml100k()
    prompter = PrompterConfig(
        max_prompt_tokens=256, max_item_tokens=24, max_profile_tokens=32, vocab_size=800
    )
    fit = replace(recipe.fit, epochs=1, positions_per_batch=2048, reread_items=4, evaluate_steps=0)
    return Settings(
        recipe=replace(recipe, name="job_market", size="tiny", prompter=prompter, fit=fit),
        short_shares=(0.0, 0.5),
        long_events=5,
        lengths=(0, 2),
        cohort_events=10,
    )


class LateTargets(PromptBook):
    """Prompts over a log, in whose training rows only what has a long history is a target.

    Args:
        prompter: as of `PromptBook`.
        interactions: as of `PromptBook`.
        least_events: how long.
    """

    def __init__(self, *of_book: object, least_events: int) -> None:
        super().__init__(*of_book)  # type: ignore[arg-type]
        self._least_events = least_events

    def assemble(self, windows: Windows, *, seed: int, epoch: int) -> Rows:
        """As `PromptBook.assemble`, without the targets of short histories."""
        rows = super().assemble(windows, seed=seed, epoch=epoch)
        num_rows = len(rows)
        row_M = np.repeat(np.arange(num_rows), np.diff(rows.event_offsets))
        row_K = np.repeat(np.arange(num_rows), np.diff(rows.next_offsets))
        before_M = np.arange(len(row_M)) - rows.event_offsets[row_M]
        ends_M = rows.event_end + rows.row_offsets[row_M]
        at_K = rows.next_position + rows.row_offsets[row_K]
        before_K = np.searchsorted(ends_M, at_K, side="right") - rows.event_offsets[row_K]
        kept_K = before_K >= self._least_events
        return replace(
            rows,
            event_is_target=rows.event_is_target & (before_M >= self._least_events),
            next_offsets=np.append(0, np.cumsum(kept_K))[rows.next_offsets],
            next_position=rows.next_position[kept_K],
            next_item=rows.next_item[kept_K],
        )


def measure_windows(settings: Settings, table: Table) -> None:
    """Models that differ in their training windows, at every length of history."""
    study = table.study
    for split, targets in study.targets.items():
        rank = popularity_answers(Asked(study.book, targets), study.split.train).rank
        assert rank is not None
        table.add(
            ndcg(rank, 10),
            split=split,
            least_events=0,
            model="popularity",
            params=None,
            context_tokens=settings.recipe.prompter.max_prompt_tokens,
            history_events=None,
        )
    arms: dict[str, Callable[[], Foundation]] = {
        f"short windows {share:g}": partial(study.train, f"short-{share:g}", short_share=share)
        for share in settings.short_shares
    }
    late = LateTargets(study.prompter, study.book.interactions, least_events=settings.long_events)
    arms[f"behind {settings.long_events} events only"] = partial(
        study.train, "late", book=late, short_share=0.0
    )
    plain: dict[tuple[str, int | None], Float64] = {}
    for arm, train in arms.items():
        # The first arm is what the others are held against: it is asked again where they are new.
        if table.has(arm) and (plain or all(table.has(other) for other in arms)):
            continue
        model = train()
        for split, targets in study.targets.items():
            for length in (*settings.lengths, None):
                values = study.ask(model, targets, num_events=length)
                before = plain.setdefault((split, length), values)
                against = (f"short_{settings.short_shares[0]:g}", before)
                for least_events in (0, settings.cohort_events):
                    table.add(
                        values,
                        split=split,
                        least_events=least_events,
                        model=arm,
                        params=model.num_parameters(),
                        context_tokens=settings.recipe.prompter.max_prompt_tokens,
                        history_events=length,
                        against=None if before is values else against,
                    )


def by_length(measured: Measured, settings: Settings) -> str:
    """Rows of the test split as a table: models down, lengths of history across."""
    histories = {length: str(length) for length in settings.lengths} | {None: "all"}
    lines = [f"{'events of history':42}" + "".join(f"{n:>9}" for n in histories.values())]
    told: dict[tuple[object, ...], dict[int | None, float]] = {}
    for row in measured.rows:
        if " test, " in row.split:
            line = (row.model, row.split.partition(", ")[2], row.seed, row.metric)
            told.setdefault(line, {})[row.history_events] = row.value
    for (model, who, seed, metric), values in told.items():
        name = f"{model}, {who}, seed {seed}" if metric == "ndcg@10" else f"    {metric}"
        cells = (f"{values[n]:9.4f}" if n in values else " " * 9 for n in histories)
        lines.append(f"{name:42}{''.join(cells)}")
    return "\n".join(lines)


def source_data(settings: Settings, path: Path | None, seed: int) -> SourceData:
    if settings.recipe.name == "job_market":
        return job_market(seed=seed, num_members=40, num_jobs=150, num_impressions=1600)
    if path is None:
        raise ValueError("--data is needed: the path of ml-100k.zip (or give --smoke).")
    return ml_100k(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="ml-100k.zip")
    parser.add_argument("--smoke", action="store_true", help="a tiny generated market and model")
    parser.add_argument("--out", type=Path, help="write rows as CSV; go on with what is there")
    parser.add_argument("--work", type=Path, help="keep trainings here; default: beside --out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of trainings; default 0")
    options = parser.parse_args(arguments)
    settings = smoke_settings() if options.smoke else full_settings()
    with work_of(options) as work:
        try:
            measured = Measured("context", asdict(settings), out=options.out)
            for seed in options.seeds:
                data = source_data(settings, options.data, seed)
                folder = work / measured.config_hash / str(seed)
                recipe = settings.recipe.with_seed(seed)
                study = Study(data, recipe=recipe, prompter=recipe.prompter, work=folder)
                measure_windows(settings, Table(measured, study))
        except (ValueError, OSError) as error:
            print(f"benchmarks.context: error: {error}", file=sys.stderr)
            return 1
    print(f"{settings.recipe.name}, NDCG@10 on test, seeds {options.seeds}. {hardware()}")
    print(by_length(measured, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
