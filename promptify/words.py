"""Values → words: how a profile, an item or a note reads, and why text from outside forges nothing.

A number is told by where it stands among the training values ("pay: top tenth"): a language model
reads digits badly, and a percentile means the same in every country and year.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from promptify.interactions import Interactions
from promptify.schema import Field, Schema

if TYPE_CHECKING:
    import datasets

BANDS = ("bottom tenth", "low", "middle", "high", "top tenth")
_CUTS = (0.1, 0.3, 0.7, 0.9)

SEPARATOR = " · "
ARROW = " =>"
ENDING = "here"
"""What ends a line that no letter or digit ends."""

# Control characters, surrogates and every kind of space, seen or not, would let text start a line
# of its own; bidirectional overrides would let a line read as another.
_BLANK = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    r"\u2800\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]+"
)
# Nor is it seen where a word may be parted, or what joins letters and pictures: that stays where it
# does so, between those of scripts that need it.
_JOINS = r"[\u0590-\u1fff\u2070-\U0010ffff]"
_UNSEEN = re.compile(rf"\xad|(?<!{_JOINS})[\u200c\u200d]|[\u200c\u200d](?!{_JOINS})")
# A word said again and again drowns out the rest of its text; names say one twice at most.
_SAID_AGAIN = re.compile(r"(?<!\S)(\S+)(?: \1){2,}(?!\S)", re.IGNORECASE)
# What stands between two fields, whatever it is written beside; within a word ("l·l") it does not.
_SEPARATES = re.compile(r" ?(?<!\S)·+")
_BRACKETS = str.maketrans({"⟦": "[", "⟧": "]"})
# To put the marks on a letter in order takes the square of their number; Unicode's Stream-Safe Text
# Format (UAX #15) has as many on one.
_MOST_MARKS = 30
# Marks are no letters and begin at U+0300. Fewer than these are too few, whatever they fall into.
_MANY_SIGNS = re.compile(r"[^\x00-\u02ff\w]{12,}")

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Neutralizer:
    r"""Text from outside, made harmless: one line of one field, no arrow, label, slot or token.

    A label's token means that somebody did this, wherever it stands: the model that says a label is
    the one that reads it, and an item that repeats a good one would rise. So what starts as a label
    does is written another way, which other tokens spell: `apply` becomes `Apply`. A word is said
    twice in a row at most.

    Args:
        forbidden: strings that the tokenizer reads as one special token.
        labels: label words at the start of a word.

    Example:
        >>> told = Neutralizer.of(["<|endoftext|>"], ["apply"])
        >>> told("Great job => apply\nOther <|endoftext|>job")
        'Great job → Apply Other job'
    """

    forbidden: re.Pattern[str] | None
    labels: re.Pattern[str] | None = None

    @classmethod
    def of(cls, special_tokens: Iterable[str], label_words: Iterable[str] = ()) -> Self:
        """A neutraliser for a tokenizer with these special tokens, and these labels."""
        special = _any_of(token for token in special_tokens if token.strip())
        labels = _any_of(label_words)
        return cls(
            forbidden=re.compile(special, re.IGNORECASE) if special else None,
            labels=re.compile(rf"(?<!\S)(?:{labels})") if labels else None,
        )

    def __call__(self, text: str) -> str:
        """The same text in NFC, without anything that means something to a prompt."""
        text = nfc(_BLANK.sub(" ", text)).translate(_BRACKETS)
        # Without what stood between them a letter and its accent are one.
        text = nfc(_UNSEEN.sub("", text))
        if self.forbidden is not None:
            # Once more as long as it takes: what is cut out may leave a forbidden word behind.
            while self.forbidden.search(text):
                text = " ".join(self.forbidden.sub(" ", text).split())
        text = _SEPARATES.sub(",", " ".join(text.replace("=>", "→").split()))
        text = _SAID_AGAIN.sub(r"\1 \1", text)
        return self.without_labels(text)

    def without_labels(self, text: str) -> str:
        """A text that is neutral but for labels, of one value or of several."""
        return text if self.labels is None else self.labels.sub(self._another_way, text)

    def _another_way(self, label: re.Match[str]) -> str:
        assert self.labels is not None
        word = label[0]
        other = word[0].swapcase() + word[1:]
        # A script without case, or a label that differs from another by its case alone.
        return f"'{word}" if other == word or self.labels.match(other) else other


def nfc(text: str) -> str:
    r"""The text in Unicode's NFC; of the marks on one letter the first 30, since more take minutes.

    Example:
        >>> nfc("Cafe\u0301"), len(nfc("e" + "\u0301" * 99))
        ('Café', 30)
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _MANY_SIGNS.sub(_few_marks, text))


def _few_marks(signs: re.Match[str]) -> str:
    kept, num_marks = [], 0
    before = signs.string[signs.start() - 1 : signs.start()]
    for sign in (before, *signs[0]):
        for part in unicodedata.normalize("NFD", sign):
            num_marks = num_marks + 1 if unicodedata.combining(part) else 0
        if num_marks <= _MOST_MARKS:
            kept.append(sign)
    return "".join(kept)[len(before) :]


def _any_of(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest that fits."""
    return "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Puts rows of a table in words, as the schema says.

    Args:
        schema: what each column is.
        cuts: table (``"user"`` or ``"item"``) and field → four cuts between the five bands.
        neutralize: applied to every value.
    """

    schema: Schema
    cuts: Mapping[tuple[str, str], tuple[float, ...]]
    neutralize: Neutralizer

    @classmethod
    def fit(
        cls, schema: Schema, *, users: Columns, items: Columns, neutralize: Neutralizer
    ) -> Self:
        """Fit the bands of every number.

        Args:
            schema: what each column is.
            users: columns of the users that were trained on.
            items: columns of the items that were trained on.
            neutralize: applied to every value.
        """
        tables = (("user", schema.user, users), ("item", schema.item_columns, items))
        cuts = {
            (table, field.name): percentile_cuts(columns[field.name])
            for table, fields, columns in tables
            for field in fields
            if field.kind == "number"
        }
        return cls(schema=schema, cuts=cuts, neutralize=neutralize)

    def profiles(self, columns: Columns, *, num_rows: int) -> list[str]:
        """One line per user, as a prompt tells it; empty where nothing is known."""
        return self._lines("user", self.schema.user, columns, num_rows)

    def items(self, kind: str, columns: Columns, *, num_rows: int) -> list[str]:
        """One line per item of that kind."""
        return self._lines("item", self.schema.items[kind], columns, num_rows)

    def _lines(
        self, table: str, fields: Sequence[Field], columns: Columns, num_rows: int
    ) -> list[str]:
        told = [
            self._values(field, columns[field.name], self.cuts.get((table, field.name)))
            for field in fields
            if field.is_told and field.name in columns
        ]
        rows = zip(*told, strict=True) if told else (() for _ in range(num_rows))
        return [SEPARATOR.join(value for value in row if value) for row in rows]

    def _values(
        self, field: Field, values: Sequence[Any], cuts: tuple[float, ...] | None
    ) -> list[str]:
        label = f"{self.neutralize(field.label)}: " if field.label else ""
        if field.kind == "number":
            texts = percentile_words(values, cuts or ())
        else:
            texts = [in_words(value) for value in values]
        # Many rows share a value, and neutralising one takes longer than all else here. A band is
        # neutralised too: a label may be its own word, "low".
        told = {text: self.neutralize(text) for text in set(texts)}
        phrases = {text: label + word if word else "" for text, word in told.items()}
        return [phrases[text] for text in texts]


def columns_of(
    table: "datasets.Dataset", fields: Iterable[Field], rows: NDArray[Any]
) -> dict[str, list[Any]]:
    """The chosen rows of some columns, as Python values."""
    chosen = pa.array(rows)
    return {f.name: table.data.column(f.name).take(chosen).to_pylist() for f in fields}


def item_texts(words: Words, interactions: Interactions, rows: NDArray[Any]) -> list[str]:
    """The chosen items in words, each as its kind is told."""
    return table_texts(words, interactions.items.data.table.take(pa.array(rows)))


def table_texts(words: Words, items: pa.Table) -> list[str]:
    """Items in words, each as its kind is told.

    Args:
        words: puts them in words.
        items: the columns of `items`.
    """
    kinds = np.array(items.column("kind").to_pylist(), dtype=np.str_)
    texts = np.empty(len(items), dtype=object)
    for kind, fields in words.schema.items.items():
        mine = np.flatnonzero(kinds == kind)
        part = items.select([field.name for field in fields]).take(pa.array(mine))
        columns = {field.name: part.column(field.name).to_pylist() for field in fields}
        texts[mine] = words.items(kind, columns, num_rows=len(mine))
    return list(texts)


one_line = Neutralizer.of(())
"""Makes text for a screen, which goes to no model, one line that tells a terminal nothing."""


def item_titles(words: Words, interactions: Interactions, rows: NDArray[Any]) -> list[str]:
    """The chosen items as people see them: their name, where they have one, and their words."""
    titles = item_texts(words, interactions, rows)
    for kind in words.schema.items:
        fields = words.schema.names(kind)
        mine = np.flatnonzero(interactions.item_kinds[rows] == kind)
        columns = columns_of(interactions.items, fields, rows[mine])
        for place, *names in zip(mine.tolist(), *columns.values(), strict=True):
            told = [one_line(name) for name in names if name]
            titles[place] = SEPARATOR.join([*told, titles[place]])
    return titles


def percentile_cuts(values: Sequence[Any]) -> tuple[float, ...]:
    """The 10th, 30th, 70th and 90th percentile of the known values; empty if none is known."""
    numbers = _numbers(values)
    known = numbers[np.isfinite(numbers)]
    return tuple(np.quantile(known, _CUTS).tolist()) if len(known) else ()


def percentile_words(values: Sequence[Any], cuts: Sequence[float]) -> list[str]:
    """The band of each value; empty where it is missing, or where nothing was fitted.

    A value that many rows share can equal several cuts; it is told as the band in their middle, so
    that a column of equal values is "middle" throughout.

    Example:
        >>> percentile_words([1, 5, 99, None], (2, 4, 6, 8))
        ['bottom tenth', 'middle', 'top tenth', '']
    """
    numbers = _numbers(values)
    if not len(cuts):
        return [""] * len(numbers)
    below = np.searchsorted(cuts, numbers, side="left")
    upto = np.searchsorted(cuts, numbers, side="right")
    known = np.isfinite(numbers)
    bands = (below + upto) // 2
    return [BANDS[band] if ok else "" for band, ok in zip(bands, known, strict=True)]


def in_words(value: Any) -> str:
    """A text, category or list as it stands; empty if missing.

    Example:
        >>> in_words(["Action", None, "Crime"]), in_words("true"), in_words(float("nan"))
        ('Action, Crime', 'true', '')
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(word for word in map(in_words, value) if word.strip())
    return str(value)


def closed(line: str, *, ending: str = ENDING) -> str:
    """The line, ending in a letter or digit.

    Common byte-level tokenizers read punctuation and the newline after it as one token; the
    newline must stand alone, because the person is read there.

    Args:
        line: in words.
        ending: a word put behind a line that ends otherwise.

    Example:
        >>> closed("Pay first."), closed("who knows C++"), closed("?!")
        ('Pay first', 'who knows C++ here', '')
    """
    line = line.rstrip(" .,:;!?…")
    return line if not line or _ends_in_word(line) else f"{line} {ending}"


def cut_to_word(line: str) -> str:
    """The line without anything after its last letter or digit."""
    while line and not _ends_in_word(line):
        line = line[:-1]
    return line


def _ends_in_word(line: str) -> bool:
    return unicodedata.category(line[-1])[0] in "LN"


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)


def _spans(amounts: Sequence[tuple[int, int, str]]) -> list[tuple[int, str]]:
    return [
        (num * seconds, f"{num} {unit}{'s' if num > 1 else ''}")
        for seconds, most, unit in amounts
        for num in range(1, most + 1)
    ]


_HOUR, _DAY = 3600, 86400
_SPANS = _spans(
    [(_HOUR, 23, "hour"), (_DAY, 6, "day"), (7 * _DAY, 4, "week"), (30 * _DAY, 12, "month")]
) + _spans([(365 * _DAY, 9, "year")])
_SPAN_SECONDS = np.array([seconds for seconds, _ in _SPANS])
SPAN_WORDS = tuple(words for _, words in _SPANS)


def span_index(seconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index into `SPAN_WORDS` of the longest span not above each duration; -1 below an hour.

    Example:
        >>> [SPAN_WORDS[i] for i in span_index(np.array([4000, 3 * 86400 + 5, 10**9]))]
        ['1 hour', '3 days', '9 years']
    """
    return np.searchsorted(_SPAN_SECONDS, seconds, side="right") - 1
