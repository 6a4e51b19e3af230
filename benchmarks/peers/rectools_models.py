"""RecTools' models on a split that was handed over, in RecTools' own environment.

    python -m benchmarks.peers.rectools_models FOLDER --seconds N [--seed N] [--smoke]

FOLDER holds `train.npz` (`user`, `item`, in the order of time), what came before each request in
`valid.npz` and `test.npz` (`request`, `item`, and the requests' `count`), and the items that those
of validation should have put first in `valid-targets.npz` (`request`, `item`). Each model is
trained once for every entry of its grid, for at most so many seconds of processor time each, chosen
by NDCG@10 on `valid`, and its hundred best of every request of `test` are written to
`MODEL-top.npz` (`request`, `item`, `score`).

Source: RecTools (MobileTeleSystems/RecTools), SASRec and BERT4Rec with its softmax loss over the
whole catalogue; item k-NN from implicit.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from numpy.typing import NDArray
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import (
    BERT4RecModel,
    ImplicitItemKNNWrapperModel,
    PopularModel,
    SASRecModel,
)

from benchmarks.measured import thread_seconds

TOP = 100
NEIGHBOURS = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "popularity": [{}],
    "item-knn": [
        {"kind": kind, "neighbours": count} for kind in NEIGHBOURS for count in (20, 100, 300)
    ],
    "sasrec": [{"n_factors": 128, "lr": lr} for lr in (1e-3, 3e-3)],
    "bert4rec": [{"n_factors": 128, "lr": lr} for lr in (1e-3, 3e-3)],
}
_EPOCHS = 1000  # The clock ends a training.


class Clock(lightning.Callback):  # type: ignore[misc]  # untyped where it is installed
    """Ends a training after some seconds of processor time; see `measured.thread_seconds`."""

    def __init__(self, seconds: float) -> None:
        self.ends = thread_seconds() + seconds

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Called by the trainer after each step."""
        trainer.should_stop = thread_seconds() >= self.ends


def make(name: str, config: Mapping[str, Any], *, seconds: float, history: int) -> Any:
    """A model of the grid, not trained yet."""
    if name == "popularity":
        return PopularModel()
    if name == "item-knn":
        return ImplicitItemKNNWrapperModel(NEIGHBOURS[config["kind"]](K=config["neighbours"]))

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=_EPOCHS,
            callbacks=[Clock(seconds)],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel}[name]
    return model(**config, session_max_len=history, n_blocks=2, n_heads=4, get_trainer_func=trainer)


class Handed:
    """The split as RecTools has it; users of requests are their own, so that each has one history.

    Args:
        folder: as described above.
    """

    def __init__(self, folder: Path) -> None:
        train = np.load(folder / "train.npz")
        self.items = IdMap.from_values(np.unique(train["item"]))
        self.train = self.dataset(train["user"], train["item"], np.unique(train["user"]))
        self.histories = {}
        for name in ("valid", "test"):
            kept = np.load(folder / f"{name}.npz")
            requests = np.arange(int(kept["count"]))
            self.histories[name] = self.dataset(kept["request"], kept["item"], requests)
        targets = np.load(folder / "valid-targets.npz")
        self.targets = pd.DataFrame({name: targets[name] for name in ("request", "item")})

    def dataset(
        self, user: NDArray[np.int64], item: NDArray[np.int64], users: NDArray[np.int64]
    ) -> Dataset:
        """Events of users in the order of time, without items that training lacks."""
        known = np.isin(item, self.items.external_ids)
        events = pd.DataFrame(
            {
                Columns.User: user[known],
                Columns.Item: item[known],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(np.flatnonzero(known), unit="s"),
            }
        )
        names = IdMap.from_values(users)
        return Dataset(names, self.items, Interactions.from_raw(events, names, self.items))

    def top(self, model: Any, name: str) -> pd.DataFrame:
        """The best items of each request that a model can say something of.

        Returns:
            Columns request, item, score and rank.
        """
        dataset = self.histories[name]
        found = model.recommend(
            users=dataset.user_id_map.external_ids,
            dataset=dataset,
            k=TOP,
            filter_viewed=True,
            on_unsupported_targets="ignore",  # who did nothing yet
        )
        return found.rename(columns={Columns.User: "request", Columns.Item: "item"})

    def ndcg(self, top: pd.DataFrame) -> float:
        """NDCG@10 over the targets of validation; only to choose by."""
        found = self.targets.merge(top, on=["request", "item"])
        gains = 1 / np.log2(1 + found.loc[found["rank"] <= 10, "rank"])
        return float(gains.sum() / len(self.targets))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries say of each other's newer versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--history", type=int, default=100, help="events that are read")
    parser.add_argument("--smoke", action="store_true", help="the first of each grid")
    options = parser.parse_args()
    with quiet():
        handed = Handed(options.folder)
        for name, grid in GRIDS.items():
            if (options.folder / f"{name}.json").exists():
                continue
            best: tuple[float, dict[str, Any], pd.DataFrame, float] | None = None
            for config in grid[:1] if options.smoke else grid:
                lightning.seed_everything(options.seed, verbose=False)
                began = thread_seconds()
                model = make(name, config, seconds=options.seconds, history=options.history)
                model.fit(handed.train)
                took = thread_seconds() - began
                value = handed.ndcg(handed.top(model, "valid"))
                print(f"{name} {config}: {value:.4f} on validation, {took:.0f} s", file=sys.stderr)
                if best is None or value > best[0]:
                    best = value, config, handed.top(model, "test"), took
            assert best is not None
            columns = {key: best[2][key].to_numpy() for key in ("request", "item", "score")}
            np.savez(options.folder / f"{name}-top.npz", **columns)
            note = {"valid_ndcg@10": best[0], "config": best[1], "seconds": best[3]}
            (options.folder / f"{name}.json").write_text(json.dumps(note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
