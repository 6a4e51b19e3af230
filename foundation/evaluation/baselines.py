"""What any model has to beat: popularity, and the neighbours of the items of a history.

Shapes: `E` training events, `n` requests, `I` items.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse

Ints = npt.NDArray[np.integer[Any]]

MOST_ITEMS_OF_A_PERSON = 2_500
"""Different items of a person that cosine neighbours look at: 6 M pairs, some 300 MiB."""


def popularity(event_item: Ints, num_items: int) -> npt.NDArray[np.float64]:
    """How often each item stands in the training events; int [E] → float64 [I]."""
    return np.bincount(event_item, minlength=num_items).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class ItemNeighbours:
    """Ranks items by how near they are to those of a history: to its last one, say, or to all.

    Attributes:
        similarity: float32 sparse [I, I], at most 1; row `i` holds the neighbours of item `i`.
        tie_break: float32 [I], popularity, scaled to a thousandth of the least similarity: it ranks
            equal neighbours, the items that are no neighbours, and everything for people without a
            history.
    """

    similarity: Any
    tie_break: npt.NDArray[np.float32]

    @classmethod
    def fit(
        cls, event_user: Ints, event_item: Ints, num_items: int, *, window_events: int = 5
    ) -> Self:
        """Neighbours are the items that came soon after: a follower `d` places later counts 1 / d.

        Args:
            event_user: int [E], sorted, and in time order for each user.
            event_item: int [E] in [0, I).
            num_items: I.
            window_events: how far behind an item its followers are looked for.

        Source: a first-order Markov chain with the weights of GloVe's co-occurrences (Pennington et
            al., 2014). Of windows of 1 to 50, equal or falling weights, one or both directions, and
            counts divided by popularity to the power 0 to 0.75, the best on the validation events
            of MovieLens-1M (leave-one-out, NDCG@10 .126; the cosine below, .083).
        """
        if window_events < 1:
            raise ValueError(f"window_events is {window_events}; use at least 1")
        followers = scipy.sparse.csr_array((num_items, num_items), dtype=np.float32)
        for distance in range(1, min(window_events, len(event_item) - 1) + 1):
            same = event_user[:-distance] == event_user[distance:]
            pair = (event_item[:-distance][same], event_item[distance:][same])
            weight = np.full(len(pair[0]), 1 / distance, np.float32)
            followers = followers + scipy.sparse.csr_array((weight, pair), followers.shape)
        if followers.nnz:
            followers = followers / followers.max()
        return cls._with_tie_break(followers, event_item)

    @classmethod
    def fit_cosine(cls, event_user: Ints, event_item: Ints, num_items: int) -> Self:
        """Neighbours are the items that the same people have, by cosine; order plays no part.

        The textbook item-item recommender, but that of each person the newest
        `MOST_ITEMS_OF_A_PERSON` different items are counted: pairs grow with their square. Holds
        every pair of items that anyone has both of, so it is for catalogues of thousands.

        Args:
            event_user: int [E], any integers; the events of each in time order.
            event_item: int [E] in [0, I).
            num_items: I.

        Source: Sarwar et al., "Item-based collaborative filtering", WWW 2001, section 3.1.1.
        """
        users, row = np.unique(event_user, return_inverse=True)
        pairs = _newest_items(row, event_item, num_items)
        has = scipy.sparse.csr_array(
            (np.ones(len(pairs[0]), np.float32), pairs), (len(users), num_items)
        )
        scale = 1 / np.sqrt(np.maximum(1, has.sum(0)))
        together = (has.T @ has) * scale[:, None] * scale[None, :]
        together = scipy.sparse.csr_array(together)
        together.setdiag(0)
        together.eliminate_zeros()
        return cls._with_tie_break(together, event_item)

    @classmethod
    def _with_tie_break(cls, similarity: Any, event_item: Ints) -> Self:
        count = popularity(event_item, similarity.shape[0])
        least = similarity.data.min(initial=1.0)
        tie_break = 1e-3 * least * count / max(1.0, count.max(initial=0))
        return cls(similarity, tie_break.astype(np.float32))

    def score(self, item: Ints, offsets: Ints) -> npt.NDArray[np.float32]:
        """Score the catalogue for each request.

        Args:
            item: int [h], the items of all histories, one history after another.
            offsets: int [n + 1], where each begins and ends among them.

        Returns:
            float32 [n, I], higher is more likely next: the sum over the items of a history.
        """
        num_items = self.similarity.shape[0]
        has = scipy.sparse.csr_array(
            (np.ones(len(item), np.float32), item, offsets), (len(offsets) - 1, num_items)
        )
        scores: npt.NDArray[np.float32] = (has @ self.similarity).toarray() + self.tie_break
        return scores


def _newest_items(row: Ints, item: Ints, num_items: int) -> tuple[Ints, Ints]:
    """Who has what, each once: of each row the items that it had last, rising."""
    pair, since = np.unique((row * num_items + item)[::-1], return_index=True)
    owner = pair // num_items
    newest_first = np.lexsort((since, owner))
    nth = np.arange(len(pair)) - np.searchsorted(owner, owner)
    return np.divmod(pair[np.sort(newest_first[nth < MOST_ITEMS_OF_A_PERSON])], num_items)
