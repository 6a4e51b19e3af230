"""Looking somebody up by name: exact first, then near, whatever the case, accents and order.

An inverted index over the words of names; near words are found by RapidFuzz. A query is taken for a
name only where all of it is one: a name says who is wanted, everything else what is wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import OSA

from decant.facets import folded_words
from promptify.interactions import Interactions
from promptify.words import columns_of

Int64 = NDArray[np.int64]

# A name of more words than this is a sentence.
MAX_WORDS = 8
# One slip in four letters, two in eight: "Kowalsky" and "Szymanksi" are near, "Kelly" and "Kerry"
# are not.
_MIN_SIMILARITY = 0.75
_NEAR_WORDS = 8
_MIN_LETTERS = 3
# Words that nobody asked for take less than a tenth, and a slip takes more.
_EXACT = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class NameMatch:
    """Items that are called as asked, the best first.

    Attributes:
        rows: int64 [N], rows of the catalogue.
        closeness: float [N], in (0, 1]: 1 is the whole name, letter by letter but for case and
            accents; below it stand names with more words than asked, then names with slips.
    """

    rows: Int64
    closeness: NDArray[np.float64]

    @property
    def is_exact(self) -> bool:
        """Whether somebody bears every word of the query, letter by letter."""
        return bool(len(self.rows)) and bool(self.closeness[0] >= _EXACT)

    def only(self, kept_N: NDArray[np.bool_]) -> "NameMatch":
        """Some of them, by mask."""
        return NameMatch(rows=self.rows[kept_N], closeness=self.closeness[kept_N])


class NameIndex:
    """Names of the items of one kind. Build one with `of`.

    Args:
        rows: int64 [N], rows of the catalogue that have a name.
        names: their names as folded words, N of them.
    """

    def __init__(self, rows: Int64, names: Sequence[tuple[str, ...]]) -> None:
        self._rows, self._names = rows, names
        self._bearers: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            for word in set(name):
                self._bearers.setdefault(word, []).append(place)
        self._words = list(self._bearers)

    def __len__(self) -> int:
        return len(self._names)

    @classmethod
    def of(cls, interactions: Interactions, *, kind: str) -> Self:
        """The names of a kind of item: every field of kind ``name``, joined."""
        fields = interactions.schema.names(kind)
        rows = np.flatnonzero(interactions.item_kinds == kind)
        columns = columns_of(interactions.items, fields, rows)
        told = zip(*columns.values(), strict=True) if columns else (() for _ in rows)
        names = [folded_words(" ".join(part for part in row if part)) for row in told]
        named = np.array([bool(name) for name in names], bool)
        return cls(rows[named].astype(np.int64), [name for name in names if name])

    def find(self, query: str, *, known: frozenset[str] = frozenset()) -> NameMatch:
        """Items that the whole query names; none where a word of it is in no name.

        Args:
            query: words in any order, case and with or without accents.
            known: folded words that mean something else in this catalogue. They are never taken for
                a name with a slip, and one of them alone names nobody.
        """
        words = folded_words(query)
        nobody = NameMatch(rows=np.zeros(0, np.int64), closeness=np.zeros(0))
        if not 0 < len(words) <= MAX_WORDS or not self._names:
            return nobody
        if len(words) == 1 and words[0] in known:
            return nobody
        likeness: list[dict[int, float]] = []
        for word in words:
            near = {word: 1.0} if word in self._bearers else {}
            if word not in known and len(word) >= _MIN_LETTERS:
                found = process.extract(
                    word,
                    self._words,
                    scorer=OSA.normalized_similarity,
                    score_cutoff=_MIN_SIMILARITY,
                    limit=_NEAR_WORDS,
                )
                near |= {other: score for other, score, _ in found if other != word}
            likeness.append({})
            for other, score in near.items():
                for place in self._bearers[other]:
                    likeness[-1][place] = max(score, likeness[-1].get(place, 0.0))
        places = set(likeness[0]).intersection(*likeness[1:])
        if not places:
            return nobody
        asked = set(words)
        graded = []
        for place in places:
            likely = sum(found[place] for found in likeness) / len(likeness)
            # Words that nobody asked for take less than any slip.
            whole = min(1.0, len(asked) / len(set(self._names[place])))
            closeness = likely * (_EXACT + (1 - _EXACT) * whole)
            graded.append((closeness if likely == 1 else closeness * _EXACT, place))
        graded.sort(key=lambda one: (-one[0], one[1]))
        return NameMatch(
            rows=self._rows[[place for _, place in graded]],
            closeness=np.array([closeness for closeness, _ in graded]),
        )
