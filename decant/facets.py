"""Facets of a query: places, industries, sizes … that stand in it as items have them.

    facets = Facets.of(interactions, kind="person")
    read = facets.read("who knows cancer treatment in berlin")
    read.rest, [facet.values for facet in read.facets]
    # 'who knows cancer treatment', [('Berlin, Germany',)]

Values are those of the columns that sort items into few kinds: categories, and texts that many
items share (a company). They are found by longest match on the borders of words, whatever the case
and the accents; of ``Berlin, Germany`` each part will do as well. A value that is also how items
call what they do ("software" in "Software Engineer") is no facet: there it is a subject.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.words import nfc

_WORD = re.compile(r"[^\W_]+")
# Letters that Unicode does not take apart into a letter and an accent.
_LETTERS = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"}
)
# What leads up to a facet goes with it: "in Berlin", "from the media".
_LEADS = frozenset({"in", "at", "from", "near", "around", "of", "the", "based", "within", "for"})
# Blanks before punctuation, and a comma before more of it, are what a facet leaves behind.
_LEFT_BEHIND = re.compile(r"[ ,;:]+(?=[,.;:?!])")
_MAX_WORDS = 6
# A text that items share this much on average sorts them, as a category does.
_ITEMS_PER_VALUE = 2.0


def fold(text: str) -> str:
    """The text without case and accents.

    Example:
        >>> fold("ŁÓDŹ"), fold("Straße"), fold("Zoe\u0308")
        ('lodz', 'strasse', 'zoe')
    """
    apart = unicodedata.normalize("NFKD", nfc(text.casefold().translate(_LETTERS)))
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def words_of(text: str) -> list[tuple[str, int, int]]:
    """The words of a text in NFC, folded, with where each starts and ends."""
    return [(fold(m[0]), m.start(), m.end()) for m in _WORD.finditer(text)]


def folded_words(text: str) -> tuple[str, ...]:
    """The words of a text, folded."""
    return tuple(word for word, _, _ in words_of(nfc(text)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Facet:
    """What a query says of a column.

    Attributes:
        text: the words of the query.
        start: where they start in it (in NFC). One text may be of several columns.
        field: the column.
        values: of the column, as items have them; more than one where a part stands for several
            (a country).
    """

    text: str
    start: int
    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadQuery:
    """A query, taken apart.

    Attributes:
        rest: what is left without the facets; may be empty.
        facets: in the order of the query.
    """

    rest: str
    facets: tuple[Facet, ...]


class Facets:
    """The facets that items of one kind can have. Build one with `of`.

    Args:
        interactions: the catalogue.
        forms: folded words → column → values that they stand for.
    """

    def __init__(
        self, interactions: Interactions, forms: dict[tuple[str, ...], dict[str, tuple[str, ...]]]
    ) -> None:
        self._interactions = interactions
        self._forms = forms
        self._longest = max(map(len, forms), default=0)

    @classmethod
    def of(cls, interactions: Interactions, *, kind: str) -> Self:
        """The facets of a kind of item, from its columns."""
        is_mine = pc.equal(interactions.items.data.column("kind"), kind)
        fields = interactions.schema.items[kind]
        headline = next((field for field in fields if field.kind == "text"), None)
        told: list[str] = []
        forms: dict[tuple[str, ...], dict[str, set[str]]] = {}
        for field in fields:
            if field.kind not in ("category", "text", "list"):
                continue
            values = interactions.items.data.column(field.name).filter(is_mine)
            values = (pc.list_flatten(values) if field.kind == "list" else values).drop_null()
            distinct = pc.unique(values).to_pylist()
            if field.kind == "list" or field is headline:
                told += distinct
            elif field.kind == "category" or len(distinct) * _ITEMS_PER_VALUE <= len(values):
                for value in distinct:
                    for form in {folded_words(value), *map(folded_words, value.split(","))}:
                        if 0 < len(form) <= _MAX_WORDS:
                            forms.setdefault(form, {}).setdefault(field.name, set()).add(value)
        # Only what could be a facet is kept: the runs of a million headlines would fill the memory.
        subjects = {run for text in told for run in _runs(folded_words(text)) if run in forms}
        return cls(
            interactions,
            {
                form: {name: tuple(sorted(values)) for name, values in columns.items()}
                for form, columns in forms.items()
                if form not in subjects
            },
        )

    def read(self, query: str, *, ignore: Collection[str] = ()) -> ReadQuery:
        """Take a query apart.

        Args:
            query: of any length.
            ignore: columns that it says nothing about, whatever stands in it.
        """
        query = nfc(query)
        words = words_of(query)
        facets: list[Facet] = []
        kept: list[str] = []
        at = done = 0
        while at < len(words):
            length, columns = self._match(words, at, ignore)
            if not length:
                at += 1
                continue
            start, end = words[at][1], words[at + length - 1][2]
            facets += [
                Facet(text=query[start:end], start=start, field=name, values=values)
                for name, values in columns.items()
            ]
            lead = at
            while lead and words[lead - 1][1] >= done and words[lead - 1][0] in _LEADS:
                lead -= 1
            kept.append(query[done : words[lead][1]])
            done = end
            at += length
        kept.append(query[done:])
        rest = _joined(kept)
        return ReadQuery(rest=rest if folded_words(rest) else "", facets=tuple(facets))

    def mask(self, facet: Facet) -> NDArray[np.bool_]:
        """Which items have a facet, bool [I]."""
        column = self._interactions.items.data.column(facet.field)
        return np.asarray(pc.is_in(column, value_set=pa.array(facet.values, pa.string())))

    def _match(
        self, words: list[tuple[str, int, int]], at: int, ignore: Collection[str]
    ) -> tuple[int, dict[str, tuple[str, ...]]]:
        """How many words from there on are the longest facet, 0 for none; and of what."""
        for length in range(min(self._longest, len(words) - at), 0, -1):
            form = tuple(word for word, _, _ in words[at : at + length])
            columns = {
                name: values
                for name, values in self._forms.get(form, {}).items()
                if name not in ignore
            }
            if columns:
                return length, columns
        return 0, {}


def _runs(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every run of words that is short enough to be a facet."""
    for start in range(len(words)):
        for end in range(start + 1, min(start + _MAX_WORDS, len(words)) + 1):
            yield words[start:end]


def _joined(parts: list[str]) -> str:
    """What is left of a text, with the punctuation that it had and no more blanks than one."""
    text = " ".join(" ".join(parts).split())
    return _LEFT_BEHIND.sub("", text).strip(" ,.;:·-–—")
