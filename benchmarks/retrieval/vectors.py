"""Vectors that lie as learned ones do, with the true nearest of some requests.

Items lie around topics of uneven size, in few directions of falling weight, with a little noise in
all of them; requests come from the same process. Independent normal numbers would not do: there
every item is about as near as every other, no index beats reading all, and no model makes such
vectors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from promptify.whole import whole_file

Floats = NDArray[np.float32]

K = 100
_BLOCK = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """How vectors come about.

    Attributes:
        dimension: numbers per vector.
        intrinsic: directions that say anything; the j-th has the standard deviation j^-0.5.
        num_topics: centres; the t-th has the weight (t + 10)^-0.8.
        spread: of the items of a topic, against that of the centres.
        noise: standard deviation of each number's noise, against the root mean square of a vector's
            numbers.
        seed: of all of it.
    """

    dimension: int = 128
    intrinsic: int = 32
    num_topics: int = 2000
    spread: float = 0.6
    noise: float = 0.15
    seed: int = 0

    def draw(self, count: int, *, stream: int) -> Floats:
        """Unit vectors, float32 [count, D].

        Args:
            count: how many.
            stream: 0 for items, another number for each set of requests.
        """
        shape = np.random.default_rng([self.seed, 1 << 32])
        scale = np.arange(1, self.intrinsic + 1, dtype=np.float32) ** -0.5
        centres = shape.standard_normal((self.num_topics, self.intrinsic), np.float32) * scale
        axes = np.linalg.qr(shape.standard_normal((self.dimension, self.intrinsic)))[0]
        weight = (np.arange(self.num_topics) + 10.0) ** -0.8
        weight /= weight.sum()
        strength = np.linalg.norm(scale) * (1 + self.spread**2) ** 0.5 / self.dimension**0.5
        out = np.empty((count, self.dimension), np.float32)
        for start in range(0, count, _BLOCK):
            # A block has numbers of its own, so that fewer items are the first of more.
            rng = np.random.default_rng([self.seed, stream, start])
            size = min(_BLOCK, count - start)
            topic = rng.choice(self.num_topics, _BLOCK, p=weight)[:size]
            within = rng.standard_normal((_BLOCK, self.intrinsic), np.float32)[:size] * scale
            place = centres[topic] + self.spread * within
            part = place @ axes.T.astype(np.float32)
            part += self.noise * strength * rng.standard_normal(part.shape, np.float32)
            out[start : start + size] = part / np.linalg.norm(part, axis=1, keepdims=True)
        return out


def nearest(
    vectors: Floats, queries: Floats, rows: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Rows int64 [B, ≤ 100] of the largest inner products, by comparing with all.

    Args:
        vectors: float32 [I, D]; may be memory-mapped.
        queries: float32 [B, D].
        rows: int64 [m], ascending, of those that count; all when left out.
    """
    scores = np.empty((len(queries), 0), np.float32)
    best = np.empty((len(queries), 0), np.int64)
    count = len(vectors) if rows is None else len(rows)
    for start in tqdm(range(0, count, _BLOCK), desc="true nearest", delay=2, leave=False):
        stop = min(start + _BLOCK, count)
        part = np.arange(start, stop) if rows is None else rows[start:stop]
        some = vectors[start:stop] if rows is None else vectors[part]
        found, places = faiss.knn(
            queries,
            np.ascontiguousarray(some),
            min(K, len(part)),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        scores = np.concatenate([scores, found], 1)
        best = np.concatenate([best, part[places]], 1)
        order = np.argsort(-scores, 1, kind="stable")[:, :K]
        scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
    return best


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of the true nearest that were found, float64 [B]."""
    pairs = zip(found, truth, strict=True)
    return np.array([np.isin(true, here).mean() for here, true in pairs])


@dataclass(frozen=True, slots=True)
class Drawn:
    """Items and requests in a folder, made once.

    Attributes:
        folder: where they lie, as `.npy` files that are memory-mapped.
        num_items: how many items.
    """

    folder: Path
    num_items: int

    @property
    def items(self) -> Floats:
        """Float32 [I, D]."""
        return cast(Floats, np.load(self.folder / f"items-{self.num_items}.npy", mmap_mode="r"))

    @property
    def sample(self) -> Floats:
        """Float32 [S, D], requests that an index may be tuned on."""
        return cast(Floats, np.load(self.folder / "sample.npy"))

    @property
    def queries(self) -> Floats:
        """Float32 [B, D], requests that nothing was tuned on."""
        return cast(Floats, np.load(self.folder / "queries.npy"))

    @property
    def truth(self) -> NDArray[np.int64]:
        """Int64 [B, 100], rows of the true nearest of `queries`."""
        path = self.folder / f"truth-{self.num_items}.npy"
        return cast(NDArray[np.int64], np.load(path))

    @property
    def ids(self) -> list[str]:
        """An id for each item."""
        return [f"item-{row}" for row in range(self.num_items)]


def drawn(
    folder: Path, num_items: int, *, process: Process, num_sample: int, num_queries: int
) -> Drawn:
    """Items, requests and the true nearest; what is in the folder already is not made again."""
    made = Drawn(folder, num_items)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, stream in (
        (f"items-{num_items}", num_items, 0),
        ("sample", num_sample, 1),
        ("queries", num_queries, 2),
    ):
        if not (folder / f"{name}.npy").exists():
            _save(folder / f"{name}.npy", process.draw(count, stream=stream))
    if not (truth := folder / f"truth-{num_items}.npy").exists():
        _save(truth, nearest(made.items, made.queries))
    return made


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, array)
