"""An index searched on GPUs, behind the same verbs.

FAISS's GPU indexes have taken filters and ignored them in silence, so none is handed to them: what
is removed or denied is dropped from more candidates than were asked for, what is allowed is
compared with exactly on the CPU, as everywhere else (`retrieval.filters`).

`faiss-gpu` and `faiss-cpu` install the same module, so one has to leave before the other comes, and
torch is imported before either: both bring an OpenMP runtime, and torch's has to be the first.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import faiss
import numpy as np

from retrieval.base import Base, Found
from retrieval.checks import Floats, Rows
from retrieval.probing import RECALL_AT
from retrieval.storage import VectorStore, check_storable

Mode = Literal["replicate", "shard"]

MAX_CANDIDATES = 2048
"""FAISS's GPU indexes find no more at once."""

_MEND = (
    "install the GPU build in place of the CPU one, since both install the same module: "
    "`pip install -e '.[gpu]'` in decant's folder, then `pip uninstall --yes faiss-cpu`, then "
    "`pip install --force-reinstall --no-deps 'faiss-gpu>=1.15,<2'`; and import torch before faiss"
)


@dataclass(frozen=True, slots=True, eq=False)
class OnDevice:
    """A FAISS index on GPUs, behind the one question that a base is asked.

    Attributes:
        index: is searched, by one thread at a time: FAISS's GPU resources bear no more.
        lock: held meanwhile.
        store: the stored vectors, on the CPU.
        refine_factor: candidates per item asked for that are then compared by their stored vectors;
            0 where the device has those vectors itself.
    """

    index: Any
    lock: threading.Lock
    store: VectorStore
    refine_factor: int

    def search(self, queries: Floats, k: int) -> Found:
        """Scores and positions [B, k]; −1 where there are no more."""
        # For fewer than a refinement was tuned for, its factor compares too few.
        compared = max(k, RECALL_AT) * self.refine_factor
        width = max(k, min(compared, MAX_CANDIDATES, len(self.store)))
        with self.lock:
            found = cast(Found, self.index.search(queries, width))
        return rescored(self.store, queries, found[1], k) if self.refine_factor else found


def rescored(store: VectorStore, queries: Floats, places_BW: Rows, k: int) -> Found:
    """Scores and positions [B, k] of the best of some candidates, by their stored vectors."""
    scores = np.full(places_BW.shape, -np.inf, np.float32)
    request, _ = real = np.nonzero(places_BW >= 0)
    scores[real] = np.einsum("md,md->m", store.at(places_BW[real]), queries[request])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places_BW, order, 1)


def placer(
    devices: Sequence[int] | None, mode: Mode, *, float16: bool, refine_factor: int
) -> Callable[[Base], Base]:
    """Return what puts a base on GPUs; its vectors, ids and filters stay on the CPU as well.

    Args:
        devices: their numbers; None for all.
        mode: `replicate` gives each device all vectors and a share of the requests, `shard` a share
            of the vectors and all requests.
        float16: keep vectors of a `flat` index in half the memory there; what is found is compared
            again by the stored ones.
        refine_factor: of the index, for kinds that find candidates by codes.

    Raises:
        RuntimeError: this FAISS has no GPU code, or there is no GPU; says what to install.
        ValueError: a mode that is not known, or a device that is not there.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; use 'replicate' or 'shard'")
    if not hasattr(faiss, "StandardGpuResources"):
        raise RuntimeError(f"the faiss that is installed has no GPU code; {_MEND}")
    num_devices = faiss.get_num_gpus()
    if num_devices == 0:
        raise RuntimeError("faiss sees no GPU; is there one, and does its driver fit CUDA 12?")
    chosen = list(range(num_devices)) if devices is None else list(devices)
    if not chosen or not set(chosen) <= set(range(num_devices)):
        raise ValueError(f"devices is {devices!r}; there are {num_devices}, numbered from 0")

    def place(base: Base) -> Base:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = mode == "shard"
        options.useFloat16 = float16
        cloneable = _cloneable(base, float16=float16)
        copied = faiss.index_cpu_to_gpus_list(cloneable, co=options, gpus=chosen)
        is_refined = isinstance(base.searcher, faiss.IndexRefine)
        factor = refine_factor if is_refined else 2 * int(float16)
        on_device = OnDevice(copied, threading.Lock(), base.store, factor)
        return replace(base, searcher=on_device, max_width=MAX_CANDIDATES)

    return place


def _cloneable(base: Base, *, float16: bool) -> Any:
    """What FAISS can copy to a GPU.

    Raises:
        ValueError: a kind that has no form there, or reads more lists than a GPU does, or a number
            that float16 does not hold.
    """
    if base.structure is None:
        # A GPU compares with numbers, so bytes and halves are decoded on the way there.
        flat = faiss.IndexFlatIP(base.store.dimension)

        def item_at(position: int) -> str:
            return f"item {base.table.ids[position].as_py()!r}"

        for start, block in base.store.blocks():
            if float16:
                check_storable(block, "float16", item_at, first_row=start)
            flat.add(block)
        return flat
    if not isinstance(base.structure, faiss.IndexIVF):
        raise ValueError(
            f"a {type(base.structure).__name__} has no form on a GPU; build 'flat', 'ivf' or "
            "'ivf-pq', or search this one on the CPU"
        )
    if base.structure.nprobe > MAX_CANDIDATES:
        raise ValueError(
            f"the index reads {base.structure.nprobe} lists per search, a GPU {MAX_CANDIDATES} at "
            "most; build it for less recall or as 'flat'"
        )
    return base.structure
