"""What a recommender asks of an index, whether it lies in this process or in a database."""

from collections.abc import Sequence
from typing import Protocol

import numpy.typing as npt

from retrieval.checks import Floats, IdFilter, ItemIds, Rows


class Candidates(Protocol):
    """What a search found, best first: B requests, k candidates each."""

    @property
    def item_rows(self) -> Rows:
        """Int64 [B, k]: rows of the index; −1 where there are no more."""

    @property
    def ids(self) -> ItemIds:
        """Object [B, k]: the item ids; None where there are no more."""

    @property
    def scores(self) -> Floats:
        """Float32 [B, k]: inner products; −inf where there are no more."""


class Manifest(Protocol):
    """What an index holds, and who made it."""

    @property
    def model_hash(self) -> str:
        """Of the model that made the vectors."""

    @property
    def dimension(self) -> int:
        """Numbers per vector."""

    @property
    def count(self) -> int:
        """Vectors in the index."""


class CandidateIndex(Protocol):
    """The verbs of `retrieval.ItemIndex` and `retrieval.milvus.MilvusIndex`.

    What they promise alike: a denied item never comes back; nothing comes back but what is allowed;
    no answer is short while there are items left; another model's vectors are refused; `add` and
    `remove` refuse and then change nothing; a row stays its item's while the index is open.
    """

    def __len__(self) -> int:
        """How many items can be found."""

    def __contains__(self, item_id: str, /) -> bool:
        """Whether the item can be found."""

    @property
    def manifest(self) -> Manifest:
        """What the index holds now."""

    @property
    def ids(self) -> ItemIds:
        """Object [rows]: the id at each row, None where it is not held."""

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int,
        *,
        allow: IdFilter | None = None,
        deny: IdFilter | None = None,
    ) -> Candidates:
        """Find each request's nearest items; see `ItemIndex.search`."""

    def add(
        self, vectors: npt.ArrayLike, ids: Sequence[str], *, model_hash: str | None = None
    ) -> Rows:
        """Add items that the index does not hold; the row of each, int64 [n]."""

    def remove(self, ids: Sequence[str]) -> None:
        """Remove items that the index holds."""

    def compact(self) -> None:
        """Take back the room of what was removed."""
