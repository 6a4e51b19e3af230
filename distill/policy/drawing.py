"""Which pairs are looked at: some that were shown, some that are alike in words, some at random.

Of pairs drawn at random most are no match at all, so a teacher learns little from them. Those whose
words resemble each other hold the near misses: close by what retrieval sees, and not by the rules.

Legend: N people, C candidates, n pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from tqdm.auto import tqdm

from distill.policy.tables import Pairs, PolicyTables
from distill.policy.values import Int64
from promptify.schema import Field
from promptify.validation import BadInput
from promptify.words import columns_of, in_words

SOURCES = ("shown", "similar", "random")

_DEFAULT_SHARES = (0.3, 0.4, 0.3)
_LEAST_SIMILAR, _SIMILAR_PER_NEEDED = 10, 2
_SCORES_AT_ONCE = 4_000_000
# Up to so many scores everybody is compared with every item, which takes seconds. Where there are
# more, so many people are as that allows, but no fewer than have enough pairs.
_MOST_COMPARED = 100_000_000
# Up to so many pairs are there to be numbered and shuffled; of more, some are drawn and compared.
_MOST_NUMBERED = 20_000_000
_WORDS_OF = ("text", "category", "list")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """Different pairs, in no order.

    Attributes:
        pairs: n pairs.
        source: int8 [n], index in `SOURCES`.
    """

    pairs: Pairs
    source: NDArray[np.int8]


def pair_keys(pairs: Pairs, tables: PolicyTables) -> Int64:
    """A number for each pair, the same for the same user and item whatever was asked: int64 [n]."""
    return pairs.users * tables.num_items + pairs.items


def draw_pairs(
    tables: PolicyTables,
    count: int,
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = _DEFAULT_SHARES,
    without: Int64 | None = None,
    with_queries: bool = False,
) -> Drawn:
    """Draw different pairs; the same for the same arguments.

    Args:
        tables: people and items.
        count: n.
        seed: of the draws.
        shares: of the three sources, in order; where one runs out, random pairs take its place.
        without: keys of pairs (`pair_keys`) that must not be drawn.
        with_queries: whether shown pairs come with what was asked.

    Raises:
        BadInput: there are not so many pairs, or the shares are no shares.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise BadInput(f"shares={shares} must be three numbers of at least 0 that add up to 1.")
    taken = np.unique(np.zeros(0, np.int64) if without is None else without)
    possible = tables.num_users * len(tables.candidates) - len(taken)
    if not 0 < count <= possible:
        raise BadInput(
            f"count={count:,} pairs cannot be drawn: {tables.num_users:,} people and "
            f"{len(tables.candidates):,} items make {possible:,} that are free; ask for 1 to that."
        )
    draw = np.random.default_rng(seed)
    shown, contexts = _shown(tables, with_queries)
    parts: list[Int64] = []
    for source, share in enumerate(shares):
        wanted = round(share * count)
        if source == len(shares) - 1:
            wanted = count - sum(map(len, parts))
        if source == 0:
            free = draw.permutation(shown)
        elif source == 1:
            free = np.zeros(0, np.int64)
            if wanted:
                free = draw.permutation(_similar(tables, wanted, _compared(tables, wanted, draw)))
        else:
            free = _at_random(tables, wanted, taken, draw)
        chosen = free[~np.isin(free, taken)][:wanted]
        taken = np.union1d(taken, chosen)
        parts.append(chosen)
    keys = np.concatenate(parts)
    order = draw.permutation(len(keys))
    source_of = np.repeat(np.arange(len(parts), dtype=np.int8), [len(part) for part in parts])
    users, items = np.divmod(keys[order], tables.num_items)
    asked = _contexts_of(keys[order], shown, contexts) if with_queries else None
    pairs = Pairs(users=users, items=items, contexts=asked)
    return Drawn(pairs=pairs, source=source_of[order])


def _shown(tables: PolicyTables, with_queries: bool) -> tuple[Int64, Int64]:
    """Keys of the pairs that were shown, each once and rising, and the first one's context."""
    log = tables.interactions
    events = tables.shown_events
    events = events[np.isin(log.event_item[events], tables.candidates)]
    pairs = Pairs.of(log.event_user[events], log.event_item[events])
    keys, first = np.unique(pair_keys(pairs, tables), return_index=True)
    contexts = log.event_context[events[first]] if with_queries else np.zeros(0)
    return keys, contexts.astype(np.int64)


def _contexts_of(keys: Int64, shown: Int64, contexts: Int64) -> Int64:
    if not len(shown):
        return np.full(len(keys), -1)
    place = np.searchsorted(shown, keys).clip(max=len(shown) - 1)
    return np.where(shown[place] == keys, contexts[place], -1)


def _compared(tables: PolicyTables, wanted: int, draw: np.random.Generator) -> Int64:
    """Whose items are compared for so many alike pairs, rising: everybody's, if few enough."""
    least = -(-_SIMILAR_PER_NEEDED * wanted // min(_LEAST_SIMILAR, len(tables.candidates)))
    num = max(least, _MOST_COMPARED // len(tables.candidates))
    if num >= tables.num_users:
        return np.arange(tables.num_users)
    return np.sort(draw.choice(tables.num_users, num, replace=False))


def _similar(tables: PolicyTables, wanted: int, users: Int64) -> Int64:
    """Keys of each user's items whose words are most like theirs and what they did well with."""
    each = max(_LEAST_SIMILAR, -(-_SIMILAR_PER_NEEDED * wanted // len(users)))
    each = min(each, len(tables.candidates))
    user_vectors, item_vectors = _vectors(tables, users)
    found = []
    at_once = max(1, _SCORES_AT_ONCE // len(tables.candidates))
    for begin in tqdm(range(0, len(users), at_once), desc="alike", leave=False):
        scores = (user_vectors[begin : begin + at_once] @ item_vectors.T).toarray()
        nearest = np.argpartition(-scores, each - 1, axis=1)[:, :each]
        own = users[begin : begin + at_once, None] * tables.num_items
        found.append((own + tables.candidates[nearest]).ravel())
    return np.concatenate(found)


def _vectors(tables: PolicyTables, users: Int64) -> tuple[sp.csr_array, sp.csr_array]:
    """TF-IDF vectors of some people, [N, words], and of candidates, [C, words], of length 1."""
    log = tables.interactions
    user_texts = _texts(log.users, log.schema.user, users)
    item_fields = log.schema.items[tables.task.item_kind]
    item_texts = _texts(log.items, item_fields, tables.candidates)
    vectorizer = TfidfVectorizer(max_df=0.3, dtype=np.float32)
    try:
        item_vectors = sp.csr_array(vectorizer.fit_transform(item_texts))
    except ValueError:  # no word is left: every item alike
        empty = sp.csr_array((len(tables.candidates), 1), dtype=np.float32)
        return sp.csr_array((len(users), 1), dtype=np.float32), empty
    own = sp.csr_array(vectorizer.transform(user_texts))
    liked, offsets = tables.liked
    row_of = np.zeros(log.num_items, np.int64)
    row_of[tables.candidates] = np.arange(len(tables.candidates))
    shape = (log.num_users, len(tables.candidates))
    did = sp.csr_array((np.ones(len(liked), np.float32), row_of[liked], offsets), shape=shape)
    return normalize(own + normalize(did[users] @ item_vectors)), item_vectors


def _texts(table: Any, fields: tuple[Field, ...], rows: Int64) -> list[str]:
    told = [field for field in fields if field.kind in _WORDS_OF]
    columns = columns_of(table, told, rows)
    if not columns:
        return [""] * len(rows)
    return [" ".join(map(in_words, row)) for row in zip(*columns.values(), strict=True)]


def _at_random(tables: PolicyTables, wanted: int, taken: Int64, draw: np.random.Generator) -> Int64:
    """At least so many free pairs, each once."""
    num_candidates = len(tables.candidates)
    possible = tables.num_users * num_candidates
    if possible <= _MOST_NUMBERED:
        users, places = np.divmod(draw.permutation(possible), num_candidates)
        return users * tables.num_items + tables.candidates[places]
    found = np.zeros(0, np.int64)
    while len(found) < wanted:
        users = draw.integers(0, tables.num_users, wanted)
        keys = users * tables.num_items + draw.choice(tables.candidates, wanted)
        found = np.unique(np.concatenate([found, keys[~np.isin(keys, taken)]]))
    return draw.permutation(found)
