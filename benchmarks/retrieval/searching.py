"""Build an index in one process and time it in another, beside the FAISS index that it holds.

What is timed is what a caller sees, like beside like: vectors in, rows out, of `ItemIndex.search`
and of FAISS's own `search` of the index within it, with the same parameters; and vectors in, ids
out, where the FAISS way is the line that its user would write, an array of ids at the rows. All of
them are asked the same requests, in turn, but never one after the other, since the second would
find in the cache what the first has read. Where a plain index can be made in little time, one that
`index_factory` made of the same vectors is timed in the same way: what ours holds must not be
slower than what anyone would build.

B requests, k candidates.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.isolated import alone, disk_bytes, from_status
from benchmarks.retrieval.vectors import Drawn, Floats, K, recall
from retrieval import ItemIndex

Way = Callable[[Floats], Any]

BUILT = "built.json"
BATCH = 64

OURS = "{}"
OURS_IDS = "{} with ids"
FAISS = "faiss in {}"
FAISS_IDS = "faiss in {} with ids"
PLAIN = "plain faiss {}"
"""The ways that are timed, as a row calls them: of the name of a kind."""


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
        plain_recall: the same of the plain FAISS index; empty where there is none.
        one_seconds: float64 [n] by way, of each request alone.
        batch_seconds: float64 [rounds] by way, of each 64 at once.
        is_same: whether ours scores as the FAISS index within it.
    """

    recall: NDArray[np.float64]
    plain_recall: NDArray[np.float64]
    load_seconds: float
    rss_bytes: int
    one_seconds: dict[str, NDArray[np.float64]]
    batch_seconds: dict[str, NDArray[np.float64]]
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
    return asdict(index.manifest)


def searched(
    folder: Path, drawn: Drawn, *, threads: int, num_ones: int, num_batches: int, with_plain: bool
) -> Searched:
    """Load an index in a process of its own, and time it there."""
    return alone(search, folder / "index", drawn, threads, num_ones, num_batches, with_plain)


def search(
    folder: Path, drawn: Drawn, threads: int, num_ones: int, num_batches: int, with_plain: bool
) -> Searched:
    """See `searched`."""
    faiss.omp_set_num_threads(threads)
    queries, truth = drawn.queries, drawn.truth
    before = from_status("VmRSS")
    began = time.perf_counter()
    index = ItemIndex.load(folder, model_hash="benchmark")
    load_seconds = time.perf_counter() - began

    # 64 at once, as it is asked when it is timed: of very many FAISS may take another way.
    rows = [index.search(some, K).item_rows for some in _batches(queries)]
    rss_bytes = from_status("VmRSS") - before
    within = index._snapshot.base.searcher
    is_same = np.array_equal(
        within.search(queries[:BATCH], K)[0], index.search(queries[:BATCH], K).scores
    )
    ids = np.array(drawn.ids, object)
    ways: dict[str, Way] = {
        OURS: lambda some: index.search(some, K).item_rows,
        OURS_IDS: lambda some: index.search(some, K).ids,
        FAISS: lambda some: within.search(some, K)[1],
        FAISS_IDS: lambda some: ids[within.search(some, K)[1]],
    }
    plain_recall = np.empty(0)
    if with_plain:
        plain = plain_faiss(index, drawn)
        found = [plain.search(some, K)[1] for some in _batches(queries)]
        plain_recall = recall(np.concatenate(found), truth)
        ways[PLAIN] = lambda some: plain.search(some, K)[1]
    ones = [queries[row : row + 1] for row in np.arange(num_ones) % len(queries)]
    batches = [np.roll(queries, -BATCH * turn, 0)[:BATCH].copy() for turn in range(num_batches)]
    return Searched(
        recall=recall(np.concatenate(rows), truth),
        plain_recall=plain_recall,
        load_seconds=load_seconds,
        rss_bytes=rss_bytes,
        one_seconds=in_turn(ways, ones),
        batch_seconds=in_turn(ways, batches),
        is_same=is_same,
    )


def _batches(queries: Floats) -> list[Floats]:
    return [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]


def plain_faiss(index: ItemIndex, drawn: Drawn) -> Any:
    """What `index_factory` makes of the same vectors, searched as hard."""
    manifest, vectors = index.manifest, np.array(drawn.items)
    factory = manifest.factory or "Flat"
    if manifest.kind == "ivf-pq":
        factory += ",RFlat"
    plain = faiss.index_factory(manifest.dimension, factory, faiss.METRIC_INNER_PRODUCT)
    space = faiss.ParameterSpace()
    plain.train(vectors)
    plain.add(vectors)
    if manifest.kind == "ivf-pq":
        plain.k_factor = manifest.refine_factor
    if manifest.kind.startswith("ivf"):
        space.set_index_parameter(plain, "nprobe", manifest.num_probes)
    if manifest.kind == "hnsw":
        space.set_index_parameter(plain, "efSearch", manifest.ef_search)
    return plain


def in_turn(ways: Mapping[str, Way], requests: Sequence[Floats]) -> dict[str, NDArray[np.float64]]:
    """Seconds float64 [n] of each way for each request.

    They take turns in an order drawn anew, so that none always finds what the same one left in the
    caches; while one is asked a request, each other is at one that stands a part of all further on.
    """
    for way in ways.values():
        for warm_up in requests[:5]:
            way(warm_up)
    rng, names = np.random.default_rng(0), list(ways)
    seconds = {name: np.zeros(len(requests)) for name in names}
    for turn in range(len(requests)):
        for number in rng.permutation(len(names)).tolist():
            name = names[number]
            at = (turn + number * len(requests) // len(names)) % len(requests)
            began = time.perf_counter()
            ways[name](requests[at])
            seconds[name][at] = time.perf_counter() - began
    return seconds
