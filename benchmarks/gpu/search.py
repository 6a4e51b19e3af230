"""FAISS on the GPU against FAISS on the CPU: flat and inverted lists, a million vectors and ten.

Vectors are drawn around centres, as item vectors lie, and requests near them; GPU and CPU search
the same index, made once, and take turns. Where the index is flat and of a million, so does an
`ItemIndex` of the same vectors, which answers with rows, without filters and with a hundred items
denied to each request.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.session import Session
from benchmarks.scoring_rounds import median

Floats = NDArray[np.float32]

K = 100
_DENIED = 100
_CENTRES = 2000
_SPREAD = 0.6
# FAISS advises no more for the training of lists.
_TRAINING_VECTORS_PER_LIST = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What is searched.

    Attributes:
        num_vectors: in the index.
        dimension: of each.
        num_lists: of the inverted lists; None for a flat index.
        num_probes: lists that a search reads.
        batches: requests at once.
        rounds: in which the two take turns.
        ours: an `ItemIndex` of the same vectors takes its turn too; flat alone.
    """

    num_vectors: int
    dimension: int = 256
    num_lists: int | None = None
    num_probes: int = 32
    batches: tuple[int, ...] = (1, 64, 1024)
    rounds: int = 7
    ours: bool = False

    @property
    def kind(self) -> str:
        """Of the index, in words."""
        return f"IVF{self.num_lists}, {self.num_probes} probes" if self.num_lists else "flat"


FULL = (
    Search(num_vectors=1_000_000, ours=True),
    Search(num_vectors=1_000_000, num_lists=4096),
    Search(num_vectors=10_000_000, batches=(1, 64), rounds=3),
    Search(num_vectors=10_000_000, num_lists=16384, rounds=5),
)
SMOKE = (
    Search(num_vectors=2000, dimension=16, batches=(1, 8), rounds=2, ours=True),
    Search(num_vectors=2000, dimension=16, num_lists=8, num_probes=2, batches=(8,), rounds=2),
)


def measure_search(session: Session, search: Search) -> None:
    """Queries a second on both, the speedup, and the recall of inverted lists.

    Args:
        session: takes the rows; without a GPU, or with a FAISS that knows none, the CPU's alone.
        search: what is searched.

    Raises:
        ImportError: FAISS is not there.
    """
    import faiss

    on_gpu = session.device.type == "cuda" and hasattr(faiss, "StandardGpuResources")
    session.forget_peak()
    vectors, queries = drawn(search, session.device, num_queries=max(search.batches))
    resources = faiss.StandardGpuResources() if on_gpu else None
    cpu, gpu = _indexes(faiss, search, vectors, resources)
    if search.num_lists:
        recall = _recall(faiss, cpu, vectors, queries[:64])
        _add(session, search, "faiss cpu", "recall@100", recall, n=min(64, len(queries)))
    ours = _ours(vectors, on_gpu=on_gpu) if search.ours else None
    place = "gpu" if on_gpu else "cpu"
    for batch in search.batches:
        some = queries[:batch]
        searches: dict[str, Callable[[], Any]] = {"faiss cpu": partial(cpu.search, some, K)}
        if gpu is not None:
            searches["faiss gpu"] = partial(gpu.search, some, K)
        if ours is not None:
            denied = [_ids(range(at, at + _DENIED)) for at in range(batch)]
            searches[f"decant {place}"] = partial(ours.search, some, K)
            searches[f"decant {place}, {_DENIED} denied"] = partial(
                ours.search, some, K, deny=denied
            )
        seconds = {name: np.zeros(search.rounds) for name in searches}
        for one in searches.values():
            one()
        for number in range(search.rounds):
            for name, one in searches.items():
                began = time.perf_counter()
                one()
                seconds[name][number] = time.perf_counter() - began
        for name, taken in seconds.items():
            metric = f"queries_per_s_batch{batch}"
            _add(session, search, name, metric, median(batch / taken), n=search.rounds)
            if name != "faiss cpu":
                ratio = median(seconds["faiss cpu"] / taken)
                _add(session, search, name, f"speedup_batch{batch}", ratio, n=search.rounds)


def drawn(search: Search, device: torch.device, *, num_queries: int) -> tuple[Floats, Floats]:
    """Unit vectors around centres, and requests near some of them, float32 [n, D] both."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    centres_CD = torch.nn.functional.normalize(normal(_CENTRES, search.dimension), dim=1)
    vectors = np.empty((search.num_vectors, search.dimension), dtype=np.float32)
    step = 1 << 20

    def near(count: int) -> Floats:
        centre_N = torch.randint(_CENTRES, (count,), device=device, generator=generator)
        noise_ND = normal(count, search.dimension) * (_SPREAD / search.dimension**0.5)
        around: Floats = (
            torch.nn.functional.normalize(centres_CD[centre_N] + noise_ND, dim=1).cpu().numpy()
        )
        return around

    for start in range(0, search.num_vectors, step):
        stop = min(start + step, search.num_vectors)
        vectors[start:stop] = near(stop - start)
    return vectors, near(num_queries)


def _indexes(faiss: Any, search: Search, vectors: Floats, resources: Any) -> tuple[Any, Any]:
    """The same index on the CPU and, where there is one, on the GPU; lists are trained there."""
    inner_product = faiss.METRIC_INNER_PRODUCT
    kind = f"IVF{search.num_lists},Flat" if search.num_lists else "Flat"
    index = faiss.index_factory(search.dimension, kind, inner_product)
    made = faiss.index_cpu_to_gpu(resources, 0, index) if resources else index
    if search.num_lists:
        some = min(len(vectors), _TRAINING_VECTORS_PER_LIST * search.num_lists)
        made.train(vectors[:some])
    for start in range(0, len(vectors), 1 << 20):
        made.add(vectors[start : start + (1 << 20)])
    cpu = faiss.index_gpu_to_cpu(made) if resources else made
    for one in (cpu, made):
        if search.num_lists:
            one.nprobe = search.num_probes
    return cpu, made if resources else None


def _ours(vectors: Floats, *, on_gpu: bool) -> Any:
    """An `ItemIndex` of the same vectors, on the same device."""
    # It needs FAISS, which is missed when it is asked for alone.
    from retrieval import ItemIndex

    index = ItemIndex.build(vectors, _ids(range(len(vectors))), model_hash="drawn", kind="flat")
    return index.to_gpu() if on_gpu else index


def _ids(rows: range) -> list[str]:
    return [f"item-{row}" for row in rows]


def _recall(faiss: Any, index: Any, vectors: Floats, queries: Floats) -> float:
    """Share of the true nearest 100 that an index finds."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    truth, found = exact.search(queries, K)[1], index.search(queries, K)[1]
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def _add(
    session: Session,
    search: Search,
    model: str,
    metric: str,
    value: float | tuple[float, tuple[float, float]],
    *,
    n: int,
) -> None:
    session.add(
        value,
        task=f"{search.num_vectors:,} x {search.dimension}",
        split=search.kind,
        model=model,
        metric=metric,
        n=n,
    )
