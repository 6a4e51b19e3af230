"""Peers that others keep: RecTools' SASRec, BERT4Rec, item k-NN and popularity, on a run's split.

    python -m benchmarks.rectools RUN [--seconds N] [--out FILE.csv] [--work FOLDER]
    python -m benchmarks.rectools --smoke

They live in an environment of their own, which is built once (`benchmarks/peers/`). The split is
handed over as files of numbers: training events of the kind that is ranked, and what came before
each request. Each model is trained for every entry of a small grid, as long as the run's model was
(or so many seconds) each, and chosen on validation: they are tuned, and get the more time for it.
What comes back are the hundred best items of each test request; ranks, ties and seen items are
ours, the same for all. An item that training lacks they cannot recommend.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms import save_arrays
from benchmarks.cold_start import of_foundation
from benchmarks.measured import Measured
from benchmarks.peers.environment import PeerError, ensure
from benchmarks.quality import relative_gain
from benchmarks.studied import Studied, opened, run_parser
from decant.measure import Asked
from decant.run_record import hardware
from foundation.evaluation import bootstrap_interval, hit_rate, ndcg
from foundation.predictions import served_items
from promptify.splits import Targets
from promptify.windows import between

PEERS = ("popularity", "item-knn", "sasrec", "bert4rec")
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
    for name, targets in (("valid", split.valid), ("test", split.test)):
        request, item = _history(studied, targets, served_I)
        arrays = {"request": request, "item": item, "count": np.array(len(targets))}
        save_arrays(folder / f"{name}.npz", arrays)
    wanted = Asked(studied.book, split.valid).wanted
    save_arrays(folder / "valid-targets.npz", {"request": wanted.request, "item": wanted.item})


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


def ask_peers(folder: Path, *, seconds: float, seed: int, is_smoke: bool) -> None:
    """Train and ask RecTools' models in their environment; what is there is kept.

    Raises:
        PeerError: the environment cannot be built, or a model failed.
    """
    python = ensure("rectools")
    command = [str(python), "-m", "benchmarks.peers.rectools_models", str(folder)]
    command += ["--seconds", str(seconds), "--seed", str(seed), *["--smoke"] * is_smoke]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise PeerError(f"RecTools' models failed:\n{done.stderr[-2000:]}")
    for line in done.stderr.splitlines():
        if " on validation, " in line:
            print(line, file=sys.stderr)


def measure(studied: Studied, measured: Measured, *, folder: Path) -> None:
    """Rows of the run's model and of each peer, and the gain of the one over the others."""
    split = studied.split
    asked = Asked(studied.book, split.test)
    user = split.test.user[asked.wanted.request].astype(np.int64)
    rank = asked.ranks_by(of_foundation(studied.foundation, studied.book)(split.test))
    add = partial(
        measured.add,
        task=studied.recipe.name,
        split=split.name.replace("_", "-"),
        seed=studied.recipe.seed,
        n=len(user),
    )

    def add_model(model: str, rank: NDArray[np.int64], **cells: Any) -> None:
        for metric, values in (("ndcg@10", ndcg(rank, 10)), ("hr@10", hit_rate(rank, 10))):
            add(model=model, metric=metric, interval=bootstrap_interval(values, user), **cells)

    params = studied.foundation.num_parameters()
    add_model("foundation", rank, params=params, seconds=round(studied.fit_seconds, 1))
    for peer in PEERS:
        with np.load(folder / f"{peer}-top.npz", allow_pickle=False) as kept:
            theirs = ranks_of(asked, {name: kept[name] for name in kept.files})
        note = json.loads((folder / f"{peer}.json").read_text("utf-8"))
        add_model(f"rectools {peer}", theirs, seconds=round(note["seconds"], 1))
        gain = relative_gain(ndcg(theirs, 10), ndcg(rank, 10), user)
        if gain is not None:
            add(model="foundation", metric=f"gain_vs_rectools_{peer}", interval=gain)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when something could not be measured."""
    assert __doc__ is not None
    parser = run_parser(__doc__)
    parser.add_argument("--seconds", type=float, help="of each training; default: as the run's")
    options = parser.parse_args(arguments)
    try:
        with opened(options) as (studied, work):
            seconds = options.seconds or studied.fit_seconds
            settings = {"recipe": studied.recipe.to_dict(), "weights": studied.weights,
                        "seconds": seconds}  # fmt: skip
            measured = Measured("quality", settings, out=options.out)
            folder = work / measured.config_hash
            hand_over(studied, folder)
            ask_peers(folder, seconds=seconds, seed=studied.recipe.seed, is_smoke=options.smoke)
            measure(studied, measured, folder=folder)
    except (ValueError, OSError, PeerError) as error:
        print(f"benchmarks.rectools: error: {error}", file=sys.stderr)
        return 1
    print(f"{studied.recipe.name}, the whole catalogue. {hardware()}\n{measured.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
