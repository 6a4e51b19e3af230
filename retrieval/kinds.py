"""Kinds of index: which to build, what it will weigh, and how it is made.

Shapes: `I` items, `D` numbers per vector, `S` bytes per stored vector.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import faiss
import numpy as np
from tqdm import tqdm

from retrieval.checks import Floats
from retrieval.storage import BYTES_PER_NUMBER, Storage, VectorStore, copy_ranges

FLAT_BELOW = 50_000
"""`auto` stays flat below this many items: a search is then a few milliseconds, and exact."""
TRAIN_VECTORS_PER_LIST = 39
"""FAISS warns below this many; no list is made for fewer."""
SAMPLE_VECTORS_PER_LIST = 50
"""Lists are trained on so many vectors each; more moves recall little and costs in proportion."""
HNSW_LINKS = 32
DIMENSIONS_PER_CODE = 4
"""`ivf-pq` spends a byte on so many numbers, where memory allows."""
PQ_TRAINING_VECTORS = 256 * TRAIN_VECTORS_PER_LIST
"""With fewer, a byte's 256 centroids cannot be trained; half a byte is used then."""

_QUANTIZERS = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be built.

    Attributes:
        kind: `flat`, `ivf`, `ivf-pq`, `hnsw`, or the factory string that was asked for.
        factory: FAISS's words for the structure beside the stored vectors; "" for `flat`.
        num_lists: inverted lists; 1 where there are none, or FAISS is told by a factory string.
        num_bytes: what a search without filters reads and so wants in memory; 0 if not known.
    """

    kind: str
    factory: str
    num_lists: int
    num_bytes: int

    @property
    def is_refined(self) -> bool:
        """Whether candidates are found by other numbers than the stored vectors, then compared."""
        return self.kind not in ("flat", "ivf", "hnsw")

    def num_training_vectors(self, num_items: int) -> int:
        """How many vectors it is trained on."""
        if self.kind in ("flat", "hnsw"):
            return 0
        if self.kind == "ivf":
            return min(num_items, SAMPLE_VECTORS_PER_LIST * self.num_lists)
        if self.kind == "ivf-pq":
            least = PQ_TRAINING_VECTORS
            return min(num_items, max(least, SAMPLE_VECTORS_PER_LIST * self.num_lists))
        lists = re.search(r"IVF(\d+)", self.factory)
        wanted = SAMPLE_VECTORS_PER_LIST * int(lists[1]) if lists else 0
        return min(num_items, max(65_536, wanted))


def plan(
    kind: str, num_items: int, dimension: int, storage: Storage, max_bytes: int | None
) -> Plan:
    """Choose what to build.

    `auto` is `flat` below 50,000 items, then `ivf` where that fits, else `ivf-pq`. It never takes
    `hnsw`, whose graph costs many times the build time of lists.

    Args:
        kind: `flat`, `ivf`, `ivf-pq`, `hnsw`, `auto`, or a FAISS factory string.
        num_items: I, at least 1.
        dimension: D.
        storage: of the vectors.
        max_bytes: that a search without filters may want in memory; None for no limit.

    Raises:
        ValueError: no such kind fits into `max_bytes`, or it goes with a factory string, whose
            weight is FAISS's to know.
    """
    if kind not in ("flat", "ivf", "ivf-pq", "hnsw", "auto"):
        if max_bytes is not None:
            raise ValueError(
                f"max_bytes is {max_bytes:,}, but kind is the factory string {kind!r}: it says "
                "itself how much it takes; leave max_bytes out, or use 'auto'"
            )
        return Plan(kind=kind, factory=kind, num_lists=1, num_bytes=0)
    limit = np.inf if max_bytes is None else max_bytes
    size = dimension * BYTES_PER_NUMBER[storage]
    num_lists = max(1, min(int(4 * num_items**0.5), num_items // TRAIN_VECTORS_PER_LIST))
    lists = f"IVF{num_lists}"
    list_bytes = num_lists * dimension * 4 + num_items * 8
    plans = {
        "flat": Plan(kind="flat", factory="", num_lists=1, num_bytes=num_items * size),
        "ivf": Plan(
            kind="ivf",
            factory=f"{lists},{_QUANTIZERS[storage]}",
            num_lists=num_lists,
            num_bytes=num_items * size + list_bytes,
        ),
        "hnsw": Plan(
            kind="hnsw",
            factory=f"HNSW{HNSW_LINKS},{_QUANTIZERS[storage]}",
            num_lists=1,
            # Twice the links at the lowest level, four bytes each, and a few for the others.
            num_bytes=num_items * (size + 4 * (2 * HNSW_LINKS + 4)),
        ),
    }
    bits = 8 if num_items >= PQ_TRAINING_VECTORS else 4
    divisors = [
        m for m in range(max(1, dimension // DIMENSIONS_PER_CODE), 0, -1) if dimension % m == 0
    ]
    coded = [
        Plan(
            kind="ivf-pq",
            factory=f"{lists},PQ{m}x{bits}",
            num_lists=num_lists,
            num_bytes=num_items * -(-m * bits // 8) + list_bytes,
        )
        for m in divisors
    ]
    fitting = [one for one in coded if one.num_bytes <= limit]
    plans["ivf-pq"] = (fitting or coded[-1:])[0]
    if kind == "auto":
        small = num_items < FLAT_BELOW
        order = ["flat", "ivf", "ivf-pq"] if small else ["ivf", "ivf-pq"]
        kind = next((one for one in order if plans[one].num_bytes <= limit), order[-1])
    chosen = plans[kind]
    if chosen.num_bytes > limit:
        raise ValueError(
            f"max_bytes is {max_bytes:,}, but {num_items:,} vectors of {dimension} numbers as "
            f"{kind} ({storage}) want {chosen.num_bytes:,}; allow more, or use a kind or storage "
            "that takes less"
        )
    return chosen


def new_structure(chosen: Plan, codec: Any, sample: Floats, *, verbose: bool = False) -> Any | None:
    """Make what finds the near vectors, trained and empty; None where the stored vectors do.

    Args:
        chosen: the plan.
        codec: of the stored vectors.
        sample: float32 [any, D], vectors to train on; at least one.
        verbose: let FAISS say how its training goes.

    Raises:
        ValueError: FAISS does not know the factory string, or cannot train it on so few vectors.
    """
    if chosen.kind == "flat":
        return None
    if chosen.kind == "hnsw":
        return new_graph(codec)
    try:
        structure = faiss.index_factory(codec.d, chosen.factory, faiss.METRIC_INNER_PRODUCT)
        if (lists := inverted_lists(structure)) is not None:
            lists.cp.max_points_per_centroid = SAMPLE_VECTORS_PER_LIST + 1
            lists.cp.min_points_per_centroid = 1
            lists.cp.verbose = verbose
        if chosen.kind == "ivf" and hasattr(structure, "by_residual"):
            # The lists then hold what the store holds, and their scores are the store's.
            structure.by_residual = False
        structure.train(sample)
    except RuntimeError as error:
        said = str(error).split("Error: ")[-1]
        raise ValueError(
            f"kind is {chosen.kind!r} ({chosen.factory}): FAISS cannot make it of "
            f"{len(sample)} training vectors: {said}; use 'flat', 'ivf', 'ivf-pq', 'hnsw', 'auto' "
            "or another factory string"
        ) from error
    if chosen.kind == "ivf" and hasattr(codec, "sq"):
        copy_ranges(faiss.vector_to_array(codec.sq.trained), structure)
    return structure


def new_graph(codec: Any) -> Any:
    """An empty HNSW graph over vectors stored like this."""
    metric = faiss.METRIC_INNER_PRODUCT
    if isinstance(codec, faiss.IndexFlat):
        return faiss.IndexHNSWFlat(codec.d, HNSW_LINKS, metric)
    structure = faiss.IndexHNSWSQ(codec.d, codec.sq.qtype, HNSW_LINKS, metric)
    copy_ranges(faiss.vector_to_array(codec.sq.trained), faiss.downcast_index(structure.storage))
    structure.is_trained = True
    return structure


def fill(structure: Any, store: VectorStore, *, start: int = 0, progress: bool = False) -> None:
    """Add stored vectors from position `start` on, in order, so that labels are positions.

    Raises:
        ValueError: the structure cannot be added to like this.
    """
    with tqdm(total=len(store), initial=start, desc="index", disable=not progress) as bar:
        for place in range(start, len(store), store.vectors_per_block):
            block = store.at(slice(place, place + store.vectors_per_block))
            # In steps, so that the bar of a slow graph moves.
            for step in range(0, len(block), 4096):
                try:
                    structure.add(block[step : step + 4096])
                except RuntimeError as error:
                    said = str(error).split("Error: ")[-1]
                    raise ValueError(f"kind: FAISS cannot add to this index: {said}") from error
                bar.update(len(block[step : step + 4096]))


def share_store(structure: Any, store: VectorStore) -> None:
    """Let a graph look at the stored vectors, instead of at a copy of its own."""
    _drop_storage(structure)
    structure.storage, structure.own_fields = store.flat, False


def own_store(structure: Any, store: VectorStore) -> None:
    """Let a graph that nobody else sees have a copy of the vectors, so that it can be added to."""
    own = faiss.clone_index(store.codec)
    own.add_sa_codes(np.ascontiguousarray(store.codes))
    _drop_storage(structure)
    structure.storage, structure.own_fields = own, True
    own.this.disown()


def _drop_storage(structure: Any) -> None:
    if structure.storage is not None and structure.own_fields:
        # The graph gives it up, so it is ours to free.
        faiss.downcast_index(structure.storage).this.own(True)
    structure.storage, structure.own_fields = None, False


def refined(structure: Any, store: VectorStore) -> Any:
    """An index that takes more candidates from `structure` and orders them by stored vectors."""
    return faiss.IndexRefine(structure, store.flat)


def inverted_lists(structure: Any) -> Any:
    """The part of an index that has inverted lists; None if it has none."""
    return None if structure is None else faiss.try_extract_index_ivf(structure)


def has_movable_lists(structure: Any) -> bool:
    """Whether all that an index holds are lists of codes, which can be copied as they are."""
    inner = structure
    if isinstance(structure, faiss.IndexPreTransform):
        inner = faiss.downcast_index(structure.index)
    return isinstance(inner, faiss.IndexIVF) and not isinstance(
        faiss.downcast_InvertedLists(inner.invlists), faiss.BlockInvertedLists
    )


def graph_of(structure: Any) -> Any | None:
    """The HNSW graph of an index; None if it has none."""
    if isinstance(structure, faiss.IndexPreTransform):
        structure = faiss.downcast_index(structure.index)
    return cast(Any, structure.hnsw) if isinstance(structure, faiss.IndexHNSW) else None


def emptied(structure: Any, codec: Any) -> Any:
    """A structure with the same training and nothing in it; the one given must be nobody else's.

    Lists may be larger than memory, so they are set aside and not copied.
    """
    if isinstance(structure, faiss.IndexHNSW):
        return new_graph(codec)
    lists = inverted_lists(structure)
    if lists is None or isinstance(
        faiss.downcast_InvertedLists(lists.invlists), faiss.BlockInvertedLists
    ):
        empty = faiss.clone_index(structure)
        empty.reset()
        return empty
    held, lists.own_invlists = lists.invlists, False
    blank = faiss.ArrayInvertedLists(lists.nlist, lists.code_size)
    lists.replace_invlists(blank, False)
    try:
        empty = faiss.clone_index(structure)
    finally:
        lists.replace_invlists(held, True)
    empty.reset()
    return empty
