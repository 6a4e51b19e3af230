"""Items that nobody has met, among items that many have: does the catalogue have room for them?

    python -m benchmarks.cold_items --out benchmarks/results/cold_items.csv --movielens FOLDER

A seeded tenth of the items is taken out of training whole. Targets of that tenth are ranked among
the whole catalogue (`…_cold`) and among the cold items alone (`…_cold_alone`), all other targets
among the whole catalogue (`…_warm`). The first two tell what the model knows of new items and
whether warm ones crowd them out; the third what that costs. Rows `leave_one_out_cold_item_valid`
may choose; those of the test are read once. Arms differ in what a slot is made of; `…+give5` is the
same model with a bias for new items, chosen on validation so that warm targets lose no more than
5 % of their NDCG@10 there.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.ablations import TEXT
from benchmarks.arms import Arm, Part, Prepared, beds, of_code, prepare, save_arrays, trained
from decant.results import ResultRow, append_csv, read_csv
from decant.run_record import git_commit, hardware, json_hash, peak_rss_bytes, utc_now
from foundation import Foundation
from foundation.evaluation import bootstrap_interval, hit_rate, ndcg, paired_bootstrap
from foundation.new_items import fit_new_item_bias
from foundation.predictions import rank_catalogue, ranking_targets
from promptify.assembly import PromptBook
from promptify.splits import Split, Targets, cold_item

ARMS = (
    Arm(name="full"),
    Arm(name="dropped", foundation={"residual_dropout": 0.5}),
    Arm(name="text", foundation={"slot_parts": TEXT}),
    Arm(
        name="encoder+shrunk",
        encoder=True,
        foundation={"slot_parts": ("encoder", "residual")},
    ),
)
REFERENCE = ARMS[0].name
# Percent of the warm targets' NDCG@10 that may be given up for new items; None sets no bias.
GIVEN_UP: tuple[int | None, ...] = (None, 5, 10, 20)
SLICES = ("cold", "cold_alone", "warm")


@dataclass(frozen=True, kw_only=True, slots=True)
class ColdRanks:
    """Where an arm put the targets of one part.

    Attributes:
        user: int64 [m], whose target it is.
        is_cold: bool [m], whether its item was held out of training.
        rank: int64 [m], in the whole catalogue.
        rank_alone: int64 [m], among the cold items; of no meaning where `is_cold` is false.
    """

    user: NDArray[np.int64]
    is_cold: NDArray[np.bool_]
    rank: NDArray[np.int64]
    rank_alone: NDArray[np.int64]

    def of(self, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ranks of one of `SLICES`, and their users."""
        chosen = ~self.is_cold if part == "warm" else self.is_cold
        return (self.rank_alone if part == "cold_alone" else self.rank)[chosen], self.user[chosen]


def cold_ranks(
    prepared: Prepared, arm: Arm, *, encoder: Path | None, work: Path
) -> dict[str, dict[Part, ColdRanks]]:
    """Train an arm without the cold items, unless it was, and rank every target of the split.

    Args:
        prepared: the data; all its targets are ranked, its training events are without the cold.
        arm: what is changed.
        encoder: the text encoder's folder.
        work: keeps the ranks of each arm.

    Returns:
        Ranks by the name of the arm, and of the arm with each bias of `GIVEN_UP`.
    """
    log = prepared.data.interactions
    without = replace(prepared, split=cold_item(log, prepared.split, seed=prepared.seed))
    key = without.key(arm, encoder=encoder, given_up=GIVEN_UP)
    path = of_code(work / f"{prepared.bed.name}-cold-{arm.name}-{key}.npz", "benchmarks.cold_items")
    names = {arm.name if share is None else f"{arm.name}+give{share}": share for share in GIVEN_UP}
    if not path.exists():
        book = without.book(arm)
        scratch = path.with_suffix(".training")
        foundation = trained(without, arm, book, encoder=encoder, scratch=scratch)
        arrays: dict[str, NDArray[Any]] = {}
        for name, share in names.items():
            if share is not None:
                valid = prepared.split.valid
                fit_new_item_bias(foundation, book, valid, max_warm_loss=share / 100)
            for part, targets in prepared.targets.items():
                ranks = _ranks(foundation, book, targets, without.split)
                arrays |= {f"{name}/{part}/{f.name}": getattr(ranks, f.name) for f in fields(ranks)}
        save_arrays(path, arrays)
    with np.load(path, allow_pickle=False) as arrays:
        return {
            name: {
                part: ColdRanks(
                    **{f.name: arrays[f"{name}/{part}/{f.name}"] for f in fields(ColdRanks)}
                )
                for part in prepared.targets
            }
            for name in names
        }


def _ranks(foundation: Foundation, book: PromptBook, targets: Targets, split: Split) -> ColdRanks:
    cold_I = split.cold_items
    assert cold_I is not None
    wanted = ranking_targets(book, targets, task=0)
    vectors_nV = foundation.embed_users(book.prefixes(targets, task=0))
    items_VI = foundation.embed_items().T

    def scores(start: int, stop: int) -> NDArray[np.float32]:
        product: NDArray[np.float32] = vectors_nV[start:stop] @ items_VI
        return product

    def scores_alone(start: int, stop: int) -> NDArray[np.float32]:
        return np.where(cold_I, scores(start, stop), np.float32(-np.inf))

    return ColdRanks(
        user=targets.user[wanted.request].astype(np.int64),
        is_cold=cold_I[wanted.item],
        rank=rank_catalogue(scores, wanted, book, seen=targets, task=0),
        rank_alone=rank_catalogue(scores_alone, wanted, book, seen=targets, task=0),
    )


def rows_of(
    bed: str,
    arm: str,
    mine: Mapping[Part, ColdRanks],
    than: Mapping[Part, ColdRanks],
    **facts: Any,
) -> list[ResultRow]:
    """Rows of an arm: each metric of each slice, and its difference to the reference arm."""
    rows = []
    for part, ranks in mine.items():
        for piece in SLICES:
            rank, user = ranks.of(piece)
            if not len(rank):
                raise ValueError(f"bed {bed} has no {piece} target in {part}: it is too small.")
            other, _ = than[part].of(piece)
            for metric, gain in (("hr@10", hit_rate), ("ndcg@10", ndcg)):
                measured = {f"{metric}_{piece}": bootstrap_interval(gain(rank, 10), user)}
                if arm != REFERENCE:
                    measured[f"{metric}_{piece}_vs_{REFERENCE}"] = paired_bootstrap(
                        gain(other, 10), gain(rank, 10), user, statistic="difference"
                    )
                rows += [
                    ResultRow(
                        benchmark="cold_items",
                        task=bed,
                        split="leave_one_out_cold_item" + ("_valid" if part == "valid" else ""),
                        model=arm,
                        metric=name,
                        value=found.value,
                        ci_low=found.low if np.isfinite([found.low, found.high]).all() else None,
                        ci_high=found.high if np.isfinite([found.low, found.high]).all() else None,
                        n=len(rank),
                        hardware=hardware(),
                        commit=git_commit(),
                        timestamp=utc_now(),
                        **facts,
                    )
                    for name, found in measured.items()
                ]
    return rows


def table(rows: Sequence[ResultRow]) -> str:
    """One line per bed, seed, arm and part."""
    lines = [f"{'bed':13}{'seed':>5}  {'arm':22}{'':6}" + "".join(f"{p:>25}" for p in SLICES)]
    for key in dict.fromkeys((row.task, row.seed, row.model, row.split) for row in rows):
        mine = {
            row.metric: row for row in rows if (row.task, row.seed, row.model, row.split) == key
        }
        cells = []
        for piece in SLICES:
            change = mine.get(f"ndcg@10_{piece}_vs_{REFERENCE}")
            told = f"{mine[f'hr@10_{piece}'].value:.3f} {mine[f'ndcg@10_{piece}'].value:.4f}"
            cells.append(f"{told} {f'({change.value:+.4f})' if change else '':>9}")
        part = "valid" if key[3].endswith("_valid") else "test"
        lines.append(
            f"{key[0]:13}{key[1]:>5}  {key[2]:22}{part:6}" + "".join(f"{c:>25}" for c in cells)
        )
    return "\n".join([*lines, f"HR@10 NDCG@10 (NDCG@10 less that of {REFERENCE})"])


def measure(options: argparse.Namespace) -> list[ResultRow]:
    """Every arm on every bed with every seed; rows are written as they become known."""
    known = read_csv(options.out) if options.out and options.out.exists() else []
    rows: list[ResultRow] = []
    arms = [arm for arm in ARMS if not options.arms or arm.name in {REFERENCE, *options.arms}]
    arms = [arm for arm in arms if options.text_encoder or not arm.encoder]
    if set(options.arms or ()) - {arm.name for arm in arms}:
        raise ValueError(
            f"--arms {' '.join(options.arms)}: take some of {', '.join(a.name for a in ARMS)}."
        )
    found_beds = beds(options.beds, movielens=options.movielens, smoke=options.smoke)
    todo = [(bed, seed, arm) for bed in found_beds for seed in options.seeds for arm in arms]
    for bed, seed, arm in tqdm(todo, desc="arms"):
        prepared = prepare(bed, seed=seed)
        settings = prepared.settings(arm, encoder=options.text_encoder)
        config_hash = json_hash(["cold_items", GIVEN_UP, settings])
        found = [
            row
            for row in known
            if (row.task, row.seed, row.config_hash) == (bed.name, seed, config_hash)
        ]
        if not found:
            began = time.perf_counter()
            of = {"encoder": options.text_encoder, "work": options.work}
            than = cold_ranks(prepared, arms[0], **of)[REFERENCE]
            for name, mine in cold_ranks(prepared, arm, **of).items():
                found += rows_of(
                    bed.name,
                    name,
                    mine,
                    than,
                    seconds=time.perf_counter() - began,
                    peak_bytes=peak_rss_bytes(),
                    context_tokens=prepared.prompter_config(arm).max_prompt_tokens,
                    config_hash=config_hash,
                    seed=seed,
                )
            if options.out:
                append_csv(options.out, found)
        rows += found
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny market and decoder")
    parser.add_argument("--out", type=Path, help="CSV; a second call goes on where it stopped")
    parser.add_argument("--arms", nargs="+", help=f"some of them; {REFERENCE} is always among them")
    parser.add_argument(
        "--beds",
        nargs="+",
        default=["job_market"],
        help="data: job_market, ml100k, ml1m; the latter two want --movielens",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of data and weights")
    parser.add_argument("--movielens", type=Path, help="folder with ml-100k.zip and ml-1m.zip")
    parser.add_argument("--text-encoder", type=Path, help="folder of a pretrained text encoder")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/cold_items"), help="keeps what each arm said"
    )
    options = parser.parse_args(arguments)
    try:
        rows = measure(options)
    except ValueError as error:
        print(f"benchmarks.cold_items: error: {error}", file=sys.stderr)
        return 1
    print(f"{table(rows)}\n{hardware()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
