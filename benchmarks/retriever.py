"""Does the retriever find what the ranker would have picked, and what does training it so cost?

    python -m benchmarks.retriever --out benchmarks/results/retriever.csv --movielens FOLDER

Each arm is a small training on the same data. Every request is scored whole, so that retrieval
alone, retrieval followed by the ranker, and the ranker over everything are read off the same
numbers:

* `recall@k_of_top10`: share of the ranker's first ten of the whole catalogue among the k retrieved;
* `recall@k_of_full`: of the first ten of the `full` arm's ranker, the same for all arms;
* `ndcg@10_retrieval`, `ndcg@10_retrieve_rank` (50 retrieved, re-ranked), `ndcg@10_rank_all`, and
  HR@10 of each; `hr_ceiling@50`: the targets that are among the 50, which no ranker can mend.

`mined` stands beside `sampled`, which has as many competitors in its softmax, all drawn at random,
and beside `restarted`, which is `sampled` cut into the same rounds, each with a warm-up of its own,
as `mined_added` is, whose mined negatives come on top of as large a sample;
`widths@w` beside `alone<w>`, trained at that width and no other; `ranker<weight>` beside `longer`,
trained on as long without the ranker's word. `…_vs_X` is the difference to that arm, target by
target. Rows `leave_one_out_valid` may choose (each arm's `w` is chosen there); those of the test
are read once.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms import Bed, Part, beds, prepare
from benchmarks.measured import Measured
from benchmarks.retriever_arms import FULL, SMOKE, Bench, Said, Sizes, by_slices, reranked, unseen
from foundation.evaluation import (
    Interval,
    bootstrap_interval,
    hit_rate,
    ndcg,
    paired_bootstrap,
    seen_items,
    top_items,
)
from foundation.predictions import tie_order

NUM_RETRIEVED = 50
RECALL_AT = (20, 50, 200)
SPLITS: Mapping[Part, str] = {"valid": "leave_one_out_valid", "test": "leave_one_out"}
Values = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""By metric: a number for each target or request, and whose it is."""


def values(bench: Bench, part: Part, said: Said, reference: Said, *, width: int) -> Values:
    """Every metric of one arm at one width, a number for each target or request."""
    asked = bench.asked[part]
    targets, user = asked.targets, asked.answers(None, None).user
    seen = seen_items(
        bench.book.interactions.event_item, targets.history_start, targets.history_end
    )
    options: dict[str, Any] = {
        "exclude": seen,
        "tie_order": tie_order(bench.book.interactions.item_ids),
    }
    found_nI = unseen(asked, said.retrieval(width))
    kept: Values = {}
    for name, scores in (
        ("retrieval", found_nI),
        ("retrieve_rank", reranked(found_nI, said.full(), NUM_RETRIEVED)),
        ("rank_all", said.full()),
    ):
        rank = asked.ranks_by(by_slices(scores))
        kept[f"ndcg@10_{name}"] = ndcg(rank, 10), user
        kept[f"hr@10_{name}"] = hit_rate(rank, 10), user
        if name == "retrieval":
            kept[f"hr_ceiling@{NUM_RETRIEVED}"] = hit_rate(rank, NUM_RETRIEVED), user
    by_request = targets.user.astype(np.int64)
    for whose, model in (("top10", said), ("full", reference)):
        best = top_items(model.full(), 10, **options)
        for k in RECALL_AT:
            retrieved = top_items(found_nI, k, **options)
            hits = (best[:, :, None] == retrieved[:, None]).any(2) & (best >= 0)
            share = hits.sum(1) / np.maximum((best >= 0).sum(1), 1)
            kept[f"recall@{k}_of_{whose}"] = share, by_request
    return kept


def measure(
    bed: Bed, seeds: Sequence[int], sizes: Sizes, *, out: Path | None, work: Path
) -> Measured:
    """Every arm on a bed with every seed; rows are written as they become known."""
    settings = {"bed": bed.name, "data": dict(bed.settings), "sizes": str(sizes)}
    measured = Measured("retriever", {**settings, "size": bed.recipe.size}, out=out)
    pooled: dict[tuple[str, Part], list[Values]] = {}
    than: dict[str, str] = {}
    for seed in seeds:
        bench = Bench(prepare(bed, seed=seed), sizes, work)
        here: dict[tuple[str, Part], Values] = {}
        for arm, training in bench.trainings.items():
            said, reference = bench.said(arm), bench.said("full")
            for width in bench.prepared.foundation_config(training.arm).widths:
                name = f"widths@{width}" if arm == "widths" else arm
                than |= {name: training.than[width]} if width in training.than else {}
                for part in SPLITS:
                    found = values(bench, part, said[part], reference[part], width=width)
                    here[name, part] = found
                    # Users are drawn by row, once for all seeds: of films it is the same user; of
                    # markets others, whose mean is no surer for being drawn together, nor less so.
                    pooled.setdefault((name, part), []).append(found)
                    _add(
                        measured,
                        bed,
                        name,
                        part,
                        found,
                        here.get((than.get(name, ""), part)),
                        than=than.get(name),
                        seed=seed,
                    )
    if len(seeds) > 1:
        means = {key: _joined(parts) for key, parts in pooled.items()}
        for (name, part), found in means.items():
            other = means.get((than.get(name, ""), part))
            _add(measured, bed, name, part, found, other, than=than.get(name), seed="mean")
    return measured


def _joined(parts: Sequence[Values]) -> Values:
    return {
        metric: (
            np.concatenate([part[metric][0] for part in parts]),
            np.concatenate([part[metric][1] for part in parts]),
        )
        for metric in parts[0]
    }


def _add(
    measured: Measured,
    bed: Bed,
    name: str,
    part: Part,
    found: Values,
    other: Values | None,
    *,
    than: str | None,
    seed: Any,
) -> None:
    with measured.at_once():
        for metric, (value, user) in found.items():
            rows: dict[str, Interval] = {metric: bootstrap_interval(value, user)}
            if other is not None:
                rows[f"{metric}_vs_{than}"] = paired_bootstrap(
                    other[metric][0], value, user, statistic="difference"
                )
            for label, interval in rows.items():
                measured.add(
                    seed=seed,
                    interval=interval,
                    task=bed.name,
                    split=SPLITS[part],
                    model=name,
                    metric=label,
                    n=len(value),
                    context_tokens=bed.recipe.prompter.max_prompt_tokens,
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny market and decoder")
    parser.add_argument("--out", type=Path, help="CSV; a second call goes on where it stopped")
    parser.add_argument(
        "--beds",
        nargs="+",
        choices=sorted(FULL),
        default=["job_market"],
        help="data; ml100k wants --movielens",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of data and weights")
    parser.add_argument("--movielens", type=Path, help="folder with ml-100k.zip")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/retriever"), help="keeps models and what they said"
    )
    options = parser.parse_args(arguments)
    try:
        for bed in beds(options.beds, movielens=options.movielens, smoke=options.smoke):
            sizes = SMOKE if options.smoke else FULL[bed.name]
            measured = measure(bed, options.seeds, sizes, out=options.out, work=options.work)
            print(measured.table())
    except ValueError as error:
        print(f"benchmarks.retriever: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
