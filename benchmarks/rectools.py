"""Peers that others keep: RecTools' SASRec, BERT4Rec, item k-NN and popularity, on a run's split.

    python -m benchmarks.rectools RUN [RUN …] [--seconds N] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.rectools --smoke

They live in an environment of their own, which is built once (`benchmarks/peers/`). The split is
handed over as files of numbers: training events of the kind that is ranked, and what came before
each request. Each model is trained for every entry of a small grid, as long as the run's model was
(or so many seconds) each, and chosen on validation: they are tuned, and get the more time for it.
As with ours, a transformer's weights are those that ranked best, of some twenty looks, the
validation requests that a run watches, and the looks count as training. What comes back are the
hundred best items of each test request; ranks, ties and seen items are ours, the same for all. An
item that training lacks they cannot recommend. With `--out` or `--work` what was tried is kept: a
call that was killed goes on at the next entry of a grid.

Of several runs, which differ by their seed alone, come rows of each and then of their mean, whose
interval is over people, each drawn with all that was asked of them under every seed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms import save_arrays
from benchmarks.cold_start import of_foundation
from benchmarks.measured import Measured
from benchmarks.peers.environment import PeerError, ensure
from benchmarks.peers.tuning import best_try
from benchmarks.quality import relative_gain
from benchmarks.seeds import Found, each_run, mean_of, pooled
from benchmarks.studied import Studied, opened, run_parser
from decant.measure import Asked
from decant.on_validation import NUM_WATCHED_REQUESTS
from decant.run_data import sample_targets
from decant.run_record import hardware
from foundation.evaluation import bootstrap_interval, hit_rate, ndcg
from foundation.predictions import served_items
from promptify.splits import Targets
from promptify.whole import write_whole
from promptify.windows import between

_SHAPE = {"n_factors": 128, "n_blocks": 2, "n_heads": 4, "recommend_batch_size": 32}
# RecTools' own batch, and smaller ones: in minutes of a core 128 people are too few steps. It
# learns from the newest `session_max_len` events of each: 100 of them, its default, are 62 % of
# MovieLens-100K's events, 300 are 95 %, 50 are 40 % and 10 are 10 %; all rows of a batch are padded
# to as many. Ten are what the SASRec of `benchmarks.peers` reads best, from all of the events.
_TRANSFORMERS = [
    {**_SHAPE, "session_max_len": events, "batch_size": people, "lr": rate}
    for events, people, rate in (
        (10, 128, 1e-3),
        (50, 32, 1e-3),
        (50, 32, 3e-3),
        (100, 128, 1e-3),
        (100, 16, 1e-3),
        (100, 16, 3e-3),
        (300, 8, 1e-3),
        (300, 8, 3e-3),
    )
]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "popularity": [{}],
    "item-knn": [
        {"kind": kind, "neighbours": count}
        for kind in ("cosine", "tfidf", "bm25")
        for count in (20, 100, 300)
    ],
    "sasrec": _TRANSFORMERS,
    "bert4rec": _TRANSFORMERS,
}
"""What is tried of each model, in RecTools' words."""
_SMALL = [{"n_factors": 16, "session_max_len": events} for events in (10, 20)]
SMOKE_GRIDS = {
    **{name: GRIDS[name][:2] for name in ("popularity", "item-knn")},
    "sasrec": _SMALL,
    "bert4rec": _SMALL,
}
_ROOT = Path(__file__).resolve().parents[1]


def hand_over(studied: Studied, folder: Path) -> None:
    """Write the split as `benchmarks.peers.rectools_models` reads it.

    Args:
        studied: whose split.
        folder: made if need be.
    """
    log, split = studied.data.interactions, studied.split
    served_I = served_items(studied.book, 0)
    train = np.flatnonzero(split.train & served_I[log.event_item])
    # Users stand one after the other in the log; in time they are interleaved.
    train = train[np.argsort(log.event_timestamp[train], kind="stable")]
    save_arrays(
        folder / "train.npz",
        {
            "user": log.event_user[train].astype(np.int64),
            "item": log.event_item[train].astype(np.int64),
        },
    )
    watched = sample_targets(split.valid, NUM_WATCHED_REQUESTS)
    for name, targets in (("watch", watched), ("valid", split.valid), ("test", split.test)):
        request, item = _history(studied, targets, served_I)
        arrays = {"request": request, "item": item, "count": np.array(len(targets))}
        save_arrays(folder / f"{name}.npz", arrays)
        if name != "test":
            wanted = Asked(studied.book, targets).wanted
            arrays = {"request": wanted.request, "item": wanted.item}
            save_arrays(folder / f"{name}-targets.npz", arrays)


def _history(
    studied: Studied, targets: Targets, served_I: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, offsets = between(targets.history_start, targets.history_end)
    request = np.repeat(np.arange(len(targets)), np.diff(offsets))
    item = studied.data.interactions.event_item[rows].astype(np.int64)
    return request[served_I[item]], item[served_I[item]]


def ranks_of(asked: Asked, top: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Rank of each target, from the best items of each request; what is not among them ties last.

    Args:
        asked: the requests.
        top: `request`, `item` and `score` of every item that came back.
    """
    shape = (len(asked.targets), asked.book.interactions.num_items)
    scores_nI = np.full(shape, -np.inf, np.float32)
    scores_nI[top["request"], top["item"]] = top["score"]
    return asked.ranks_by(lambda start, stop: scores_nI[start:stop])


def ask_peers(folder: Path, *, seconds: float, seed: int) -> None:
    """Train and ask RecTools' models in their environment; what is there is kept.

    Args:
        folder: with `grids.json` and what `hand_over` wrote.
        seconds: of each training.
        seed: of each training.

    Raises:
        PeerError: the environment cannot be built, or a model failed.
    """
    python = ensure("rectools")
    command = [str(python), "-m", "benchmarks.peers.rectools_models", str(folder)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    said = []
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if " on validation, " in line:
                print(line, end="", file=sys.stderr)
    if process.returncode != 0:
        raise PeerError(f"RecTools' models failed:\n{''.join(said)[-2000:]}")


def found_by(
    studied: Studied, *, folder: Path, grids: Mapping[str, Sequence[dict[str, Any]]]
) -> tuple[Found, dict[str, float]]:
    """Ranks of the run's model and of each peer's best try, and the seconds each was trained for.

    Args:
        studied: the run.
        folder: where `ask_peers` left what it said.
        grids: what was tried.
    """
    test = studied.split.test
    asked = Asked(studied.book, test)
    found = Found(test.user[asked.wanted.request].astype(np.int64), {})
    found.rank_m["foundation"] = asked.ranks_by(
        of_foundation(studied.foundation, studied.book)(test)
    )
    seconds = {"foundation": studied.fit_seconds}
    for peer, grid in grids.items():
        tried, top = best_try(folder, peer, num_tries=len(grid))
        print(f"{peer}: {tried.config} is best on validation", file=sys.stderr)
        found.rank_m[f"rectools {peer}"] = ranks_of(asked, top)
        seconds[f"rectools {peer}"] = tried.seconds
    return found, seconds


def write(
    measured: Measured,
    studied: Studied,
    found: Found,
    *,
    seed: int | Literal["mean"],
    seconds: Mapping[str, float],
) -> None:
    """Rows of every model, and of our gain over each peer."""
    add = partial(
        measured.add,
        task=studied.recipe.name,
        split=studied.split.name.replace("_", "-"),
        seed=seed,
        n=len(found.user_m),
    )
    user = found.user_m
    ours = found.rank_m["foundation"]
    for model, rank in found.rank_m.items():
        cells: dict[str, Any] = {"seconds": round(seconds[model], 1)}
        if model == "foundation":
            cells["params"] = studied.foundation.num_parameters()
        for metric, values in (("ndcg@10", ndcg(rank, 10)), ("hr@10", hit_rate(rank, 10))):
            add(model=model, metric=metric, interval=bootstrap_interval(values, user), **cells)
        gain = (
            None if model == "foundation" else relative_gain(ndcg(rank, 10), ndcg(ours, 10), user)
        )
        if gain is not None:
            metric = f"gain_vs_{model.replace(' ', '_')}"
            add(model="foundation", metric=metric, interval=gain)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__, takes_several=True)
    parser.add_argument("--seconds", type=float, help="of each training; default: as the run's")
    options = parser.parse_args(arguments)
    grids = SMOKE_GRIDS if options.smoke else GRIDS
    seen: list[tuple[Found, dict[str, float]]] = []
    try:
        for one in each_run(options):
            with opened(one) as (studied, work):
                seconds = studied.seconds_for_peers(options.seconds, option="--seconds")
                settings = {"recipe": studied.recipe.to_dict(), "weights": studied.weights,
                            "seconds": seconds, "grids": grids}  # fmt: skip
                measured = Measured("quality", settings, out=options.out)
                folder = work / measured.config_hash
                hand_over(studied, folder)
                write_whole(folder / "grids.json", json.dumps(grids))
                ask_peers(folder, seconds=seconds, seed=studied.recipe.seed)
                found, took = found_by(studied, folder=folder, grids=grids)
                write(measured, studied, found, seed=studied.recipe.seed, seconds=took)
                seen.append((found, took))
        if len(seen) > 1:
            measured = mean_of("quality", studied.recipe, {"grids": grids}, out=options.out)
            took = {model: fmean(each[model] for _, each in seen) for model in took}
            mean = pooled([found for found, _ in seen])
            write(measured, studied, mean, seed="mean", seconds=took)
    except (ValueError, OSError, PeerError) as error:
        print(f"benchmarks.rectools: error: {error}", file=sys.stderr)
        return 1
    told = f"{studied.recipe.name}, the whole catalogue"
    told += f", mean of {len(seen)} seeds" if len(seen) > 1 else ""
    print(f"{told}. {hardware()}\n{measured.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
