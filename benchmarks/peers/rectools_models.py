"""RecTools' models on a split that was handed over, in RecTools' own environment.

    python -m benchmarks.peers.rectools_models FOLDER --seconds N [--seed N]

FOLDER holds `grids.json`, what is tried of each model; `train.npz` (`user`, `item`, in the order of
time); what came before each request in `watch.npz`, `valid.npz` and `test.npz` (`request`, `item`,
and the requests' `count`); and the items that should have been put first in `watch-targets.npz` and
`valid-targets.npz` (`request`, `item`). Each model is trained once for every entry of its grid, for
so many seconds of processor time at most. A transformer ends with the weights whose NDCG@10 on
`watch` was best, and the looks at it are within its seconds. What is left of an entry is its
NDCG@10 on `valid` and its hundred best of every request of `test` (`request`, `item`, `score`); see
`benchmarks.peers.tuning`. What is there already is not tried again.

Source: RecTools (MobileTeleSystems/RecTools), SASRec and BERT4Rec with its softmax loss over the
whole catalogue; item k-NN from implicit.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
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

from benchmarks.peers.tuning import BestWeights, Try, untried
from foundation.resuming import thread_seconds

TOP = 100
NEIGHBOURS = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
TRANSFORMERS = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel}
_EPOCHS = 100_000  # The clock ends a training.


class Watch(lightning.Callback):  # type: ignore[misc]  # untyped where it is installed
    """Ends a training by the clock, with the weights that were best on validation.

    RecTools trains with a deep copy of its trainer and of this. What measures must see the model
    itself, so it is a plain function, which is not copied.
    """

    def __init__(self, seconds: float, measure: Callable[[], float]) -> None:
        self.best = BestWeights(seconds=seconds, measure=measure)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any, **__: Any) -> None:
        """Called by the trainer after each step."""
        trainer.should_stop = self.best.step(module.torch_model)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Called by the trainer when it has stopped."""
        self.best.finish(module.torch_model)


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
        for name in ("watch", "valid", "test"):
            kept = np.load(folder / f"{name}.npz")
            requests = np.arange(int(kept["count"]))
            self.histories[name] = self.dataset(kept["request"], kept["item"], requests)
        self.targets = {}
        for name in ("watch", "valid"):
            targets = np.load(folder / f"{name}-targets.npz")
            self.targets[name] = pd.DataFrame({key: targets[key] for key in ("request", "item")})

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

    def top(self, model: Any, name: str, *, count: int) -> pd.DataFrame:
        """The best items of each request that a model can say something of.

        Returns:
            Columns request, item, score and rank.
        """
        dataset = self.histories[name]
        found = model.recommend(
            users=dataset.user_id_map.external_ids,
            dataset=dataset,
            k=count,
            filter_viewed=True,
            on_unsupported_targets="ignore",  # who did nothing yet
        )
        return found.rename(columns={Columns.User: "request", Columns.Item: "item"})

    def ndcg(self, model: Any, name: str) -> float:
        """NDCG@10 over the targets of `watch` or `valid`; only to choose by."""
        targets = self.targets[name]
        found = targets.merge(self.top(model, name, count=10), on=["request", "item"])
        return float((1 / np.log2(1 + found["rank"])).sum() / len(targets))


def train(
    name: str, config: Mapping[str, Any], handed: Handed, *, seconds: float
) -> tuple[Any, tuple[tuple[float, float], ...]]:
    """A trained model, and NDCG@10 on the watched requests as (seconds, value).

    Args:
        name: of the model.
        config: an entry of its grid, in RecTools' words.
        handed: what it is trained on and watched by.
        seconds: of a transformer's training.
    """
    if name == "popularity":
        return PopularModel().fit(handed.train), ()
    if name == "item-knn":
        neighbours = NEIGHBOURS[config["kind"]](K=config["neighbours"])
        return ImplicitItemKNNWrapperModel(neighbours).fit(handed.train), ()

    def measure() -> float:
        # It can be asked as soon as there are weights, and refuses until training has ended.
        model.is_fitted = True
        value = handed.ndcg(model, "watch")
        model.lightning_model.train()  # Being asked has turned dropout off.
        return value

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=_EPOCHS,
            callbacks=[Watch(seconds, measure)],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = TRANSFORMERS[name](**config, get_trainer_func=trainer)
    model.fit(handed.train)
    [watch] = [found for found in model.fit_trainer.callbacks if isinstance(found, Watch)]
    return model, tuple(watch.best.curve)


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
    options = parser.parse_args()
    grids = json.loads((options.folder / "grids.json").read_text("utf-8"))
    with quiet():
        handed = Handed(options.folder)
        for name, place, config in untried(options.folder, grids):
            lightning.seed_everything(options.seed, verbose=False)
            began = thread_seconds()
            model, curve = train(name, config, handed, seconds=options.seconds)
            took = thread_seconds() - began
            value = handed.ndcg(model, "valid")
            print(f"{name} {config}: {value:.4f} on validation, {took:.0f} s", file=sys.stderr)
            top = handed.top(model, "test", count=TOP)
            answers = {key: top[key].to_numpy() for key in ("request", "item", "score")}
            tried = Try(config=config, valid_ndcg=value, seconds=took, curve=curve)
            tried.save(options.folder, name, place, answers=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
