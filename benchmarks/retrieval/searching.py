"""Build an index in one process and time it in another, beside the FAISS index that it holds.

What is timed is what a caller sees: vectors in, ids out, ours through `ItemIndex.search` and
FAISS's own `search` of the same index with the same parameters, in turn, the first changing. FAISS
gives row numbers; ours looks their ids up as well, and that is counted.

B requests, k candidates.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.isolated import alone, disk_bytes, from_status
from benchmarks.retrieval.vectors import Drawn, K, recall
from retrieval import ItemIndex

Floats = NDArray[np.float32]

BUILT = "built.json"
BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """An index to be built.

    Attributes:
        name: in the rows.
        options: of `ItemIndex.build`.
    """

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What was measured of an index that lies on the disk.

    Attributes:
        recall: float64 [B], recall@100 of each request.
        load_seconds: until it can be searched.
        rss_bytes: more memory in use after loading and searching than before.
        one_seconds: float64 [n, 2], of one request: ours, FAISS's.
        batch_seconds: float64 [rounds, 2], of 64 at once.
        is_same: whether ours and FAISS found the same.
    """

    recall: NDArray[np.float64]
    load_seconds: float
    rss_bytes: int
    one_seconds: NDArray[np.float64]
    batch_seconds: NDArray[np.float64]
    is_same: bool


def built(folder: Path, kind: Kind, drawn: Drawn, *, threads: int) -> dict[str, Any]:
    """Build an index in a process of its own, unless the folder holds it already.

    Returns:
        `seconds`, `peak_bytes` of that process and `disk_bytes`, with the `manifest`.
    """
    if not (folder / BUILT).exists():
        shutil.rmtree(folder, ignore_errors=True)
        facts = alone(build, folder / "index", kind, drawn, threads)
        (folder / BUILT).write_text(json.dumps(facts))
    return dict(json.loads((folder / BUILT).read_text()))


def build(folder: Path, kind: Kind, drawn: Drawn, threads: int) -> dict[str, Any]:
    """Build and save; see `built`."""
    faiss.omp_set_num_threads(threads)
    vectors, ids = drawn.items, drawn.ids
    began = time.perf_counter()
    index = ItemIndex.build(
        vectors, ids, model_hash="benchmark", sample_vectors=drawn.sample, **kind.options
    )
    index.save(folder)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": from_status("VmHWM"),
        "disk_bytes": disk_bytes(folder),
        "manifest": described(index),
    }


def described(index: ItemIndex) -> dict[str, Any]:
    """What an index says of itself, as JSON values."""
    manifest = index.manifest
    return {"kind": manifest.kind, "recall_ceiling": manifest.recall_ceiling}


def searched(
    folder: Path, drawn: Drawn, *, threads: int, num_ones: int, num_batches: int
) -> Searched:
    """Load an index in a process of its own, and time it there."""
    return alone(search, folder / "index", drawn, threads, num_ones, num_batches)


def search(folder: Path, drawn: Drawn, threads: int, num_ones: int, num_batches: int) -> Searched:
    """See `searched`."""
    faiss.omp_set_num_threads(threads)
    queries, truth = drawn.queries, drawn.truth
    before = from_status("VmRSS")
    began = time.perf_counter()
    index = ItemIndex.load(folder, model_hash="benchmark")
    load_seconds = time.perf_counter() - began
    found = np.concatenate(
        [
            index.search(queries[start : start + BATCH], K).item_rows
            for start in range(0, len(queries), BATCH)
        ]
    )
    rss_bytes = from_status("VmRSS") - before
    raw = raw_faiss(index)
    # Beyond equal scores nothing may differ, and FAISS breaks ties alike within one index.
    alike = np.sort(raw.search(queries[:BATCH], K)[0]) == np.sort(
        index.search(queries[:BATCH], K).scores
    )
    ours: Callable[[Floats], Any] = lambda some: index.search(some, K).ids  # noqa: E731
    theirs: Callable[[Floats], Any] = lambda some: raw.search(some, K)  # noqa: E731
    ones = [queries[row : row + 1] for row in np.arange(num_ones) % len(queries)]
    batches = [np.roll(queries, -BATCH * turn, 0)[:BATCH].copy() for turn in range(num_batches)]
    return Searched(
        recall=recall(found, truth),
        load_seconds=load_seconds,
        rss_bytes=rss_bytes,
        one_seconds=in_turn(ours, theirs, ones),
        batch_seconds=in_turn(ours, theirs, batches),
        is_same=bool(alike.all()),
    )


def raw_faiss(index: ItemIndex) -> Any:
    """The FAISS index that an `ItemIndex` searches."""
    return index._index


def in_turn(
    ours: Callable[[Floats], Any], theirs: Callable[[Floats], Any], requests: list[Floats]
) -> NDArray[np.float64]:
    """Seconds float64 [n, 2] of ours and theirs for each request, the first changing."""
    for way in (ours, theirs):
        for warm_up in requests[:5]:
            way(warm_up)
    seconds = np.zeros((len(requests), 2))
    for turn, request in enumerate(requests):
        ways = [(0, ours), (1, theirs)]
        for column, way in ways if turn % 2 == 0 else ways[::-1]:
            began = time.perf_counter()
            way(request)
            seconds[turn, column] = time.perf_counter() - began
    return seconds
