"""The functions of a policy's expressions, over whole columns.

What is unknown stays unknown: a function of an unknown number is NaN, and no text holds a phrase
that is not there. Phrases are compared in whole words, whatever the case.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import scipy.sparse as sp

from distill.policy.values import Bool, Float64, Lists, Texts, Value, kind_of
from promptify.validation import BadInput, shown

# Thousands may stand apart by a comma or a space that does not break; an ordinary space separates.
_APART = re.compile(r"[,\u00a0\u2009\u202f]")
_NUMBER = re.compile(rf"[1-9]\d{{0,2}}(?:{_APART.pattern}\d{{3}})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A named table of a policy: rows, each a name and the phrases that stand for it.

    Attributes:
        name: what expressions call it.
        rows: name → phrases, in order.
        line: where it begins.
    """

    name: str
    rows: Mapping[str, tuple[str, ...]]
    line: int

    @cached_property
    def _row_of(self) -> dict[str, str]:
        return {phrase.casefold(): row for row, phrases in self.rows.items() for phrase in phrases}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _whole_words(self._row_of)

    def find(self, text: str) -> str | None:
        """The row whose phrase stands in a text: the longest one, and of these the first."""
        text, found, start = text.casefold(), None, 0
        # Phrases may begin within one another, and the longest at a place is what matches there.
        while match := self._pattern.search(text, start):
            found = max(found or "", match[0], key=len)
            start = match.start() + 1
        return None if found is None else self._row_of[found]


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function that expressions may call.

    Attributes:
        usage: how it is written, and what it gives.
        call: takes the arguments' columns, all of the same rows (or of one).
        least: arguments.
        most: arguments; None for any number.
        takes_table: its first argument is the name of a table.
        takes_phrases: all but the first are texts in quotes.
        tallies: lists come to it tallied, which is much shorter for what many items share.
    """

    usage: str
    call: Callable[..., Value]
    least: int
    most: int | None
    takes_table: bool = False
    takes_phrases: bool = False
    tallies: bool = False


def as_number(value: Value) -> Float64:
    """A column of numbers; truths count as 0 and 1.

    Raises:
        BadInput: it holds texts or lists.
    """
    if isinstance(value, Texts | Lists):
        raise BadInput(f"a number is expected, and {kind_of(value)} stands there")
    return value.astype(np.float64)


def as_truth(value: Value) -> Bool:
    """A column of truths.

    Raises:
        BadInput: it holds anything else.
    """
    if isinstance(value, Texts | Lists) or value.dtype != np.bool_:
        raise BadInput(
            f"true or false is expected, and {kind_of(value)} stands there; compare it with "
            "something"
        )
    return cast(Bool, value)


def _text(value: Value) -> Texts:
    if not isinstance(value, Texts):
        raise BadInput(f"a text is expected, and {kind_of(value)} stands there")
    return value


def _list(value: Value) -> Lists:
    if not isinstance(value, Lists):
        raise BadInput(f"a list is expected, and {kind_of(value)} stands there")
    return value


def _of_texts(told: Callable[[Texts], Any]) -> Callable[[Value], Value]:
    """A function of a text as one of each text of a list as well."""

    def over(value: Value) -> Value:
        if isinstance(value, Lists):
            return Lists(value.offsets, told(_text(value.flat)))
        return cast(Value, told(_text(value)))

    return over


def ramp(value: Value, low: Value, high: Value) -> Float64:
    """0 up to `low`, 1 from `high` on, a straight line between; falls where low is above high."""
    x, start, end = as_number(value), as_number(low), as_number(high)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((x - start) / (end - start), 0.0, 1.0)
    step = np.where(np.isnan(x), np.nan, x >= start)
    return np.where(start == end, step, share)


def in_list(value: Value, values: Value) -> Bool:
    """Whether a list holds a text or number of the same row, bool [n]."""
    return np.nan_to_num(share(values, value)) > 0


def share(values: Value, value: Value) -> Float64:
    """Share of a list that equals a text or number; unknown for an empty list."""
    many = _list(values)
    one = value if isinstance(value, Texts) else as_number(value)
    if isinstance(one, Texts) != isinstance(many.flat, Texts):
        raise BadInput(f"{kind_of(value)} is looked for in {kind_of(values)}")
    rows = many.rows if len(one) > 1 else np.zeros(len(many.rows), np.int64)
    if isinstance(one, Texts):
        words: dict[str, int] = {}
        flat = cast(Texts, many.flat).told_as(words)
        asked = one.told_as(words)
        found = many.share((flat == asked[rows]) & (flat >= 0))
        known = asked >= 0
    else:
        found = many.share(cast(Float64, many.flat) == one[rows])
        known = np.isfinite(one)
    return np.where(known, found, np.nan)


def overlap(having: Value, wanted: Value) -> Float64:
    """Share of the second list's texts that the first has; unknown where the second has none.

    What is unknown, as what stands in no table is, is in neither list.
    """
    words: dict[str, int] = {}
    lists = [_list(having), _list(wanted)]
    codes = [_text(one.flat).told_as(words) for one in lists]
    has, wants = (
        sp.csr_array(
            (np.ones(known.sum()), (one.rows[known], code[known])), shape=(len(one), len(words))
        )
        for one, code in zip(lists, codes, strict=True)
        for known in [code >= 0]
    )
    for matrix in (has, wants):
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
    both = np.asarray(has.multiply(wants).sum(axis=1)).ravel()
    asked = np.asarray(wants.sum(axis=1)).ravel()
    return np.where(asked > 0, both / np.maximum(asked, 1), np.nan)


def _default(value: Value, other: Value) -> Value:
    if isinstance(value, Texts) and isinstance(other, Texts):
        return chosen(value.codes >= 0, value, other)
    known = as_number(value)
    return np.where(np.isnan(known), as_number(other), known)


def chosen(test: Bool, yes: Value, no: Value) -> Value:
    """One column where a test holds, the other elsewhere; both of numbers, truths or texts."""
    if isinstance(yes, Texts) and isinstance(no, Texts):
        words: dict[str, int] = {}
        codes = np.where(test, yes.told_as(words), no.told_as(words))
        return Texts(codes.astype(np.int32), tuple(words))
    if isinstance(yes, Texts | Lists) or isinstance(no, Texts | Lists):
        raise BadInput(f"one side gives {kind_of(yes)} and the other {kind_of(no)}")
    if yes.dtype == no.dtype == np.bool_:
        return cast(Bool, np.where(test, yes, no))
    return np.where(test, as_number(yes), as_number(no))


def _known(value: Value) -> Bool:
    if isinstance(value, Texts):
        return value.codes >= 0
    if isinstance(value, Lists):
        return value.lengths > 0
    return np.isfinite(as_number(value))


def _contains(value: Value, *phrases: Texts) -> Bool:
    pattern = _whole_words(phrase.words[0] for phrase in phrases)

    def holds(text: str) -> float:
        return float(pattern.search(text.casefold()) is not None)

    return np.nan_to_num(_text(value).numbered(holds)) > 0


def _after(value: Value, *phrases: Texts) -> Value:
    pattern = re.compile("|".join(re.escape(phrase.words[0]) for phrase in phrases), re.IGNORECASE)

    def rest(text: str) -> str | None:
        found = pattern.search(text)
        return text[found.end() :].strip() if found else None

    return _of_texts(lambda texts: texts.mapped(rest))(value)


def _number_in(text: str) -> float:
    found = _NUMBER.findall(text)
    return float(_APART.sub("", found[-1])) if found else np.nan


def _rank(table: Table, value: Value) -> Value:
    places = {row: float(place) for place, row in enumerate(table.rows)}

    def place(text: str) -> float:
        row = table.find(text)
        return np.nan if row is None else places[row]

    return _of_texts(lambda texts: texts.numbered(place))(value)


def _folded(join: Callable[[Any, Any], Any], values: Sequence[Value]) -> Float64:
    numbers = [as_number(value) for value in values]
    found = numbers[0]
    for number in numbers[1:]:
        found = join(found, number)
    return found


def _log(value: Value) -> Float64:
    number = as_number(value)
    return np.log(np.where(number > 0, number, np.nan))


def _whole_words(phrases: Any) -> re.Pattern[str]:
    longest_first = sorted({phrase.casefold() for phrase in phrases}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def _function(
    usage: str, call: Callable[..., Value], least: int, most: int | None = -1, **how: bool
) -> Function:
    return Function(usage=usage, call=call, least=least, most=least if most == -1 else most, **how)


FUNCTIONS: dict[str, Function] = {
    "ramp": _function("ramp(x, low, high), from 0 at low to 1 at high", ramp, 3),
    "min": _function("min(a, b, …)", lambda *values: _folded(np.minimum, values), 2, None),
    "max": _function("max(a, b, …)", lambda *values: _folded(np.maximum, values), 2, None),
    "abs": _function("abs(x)", lambda value: np.abs(as_number(value)), 1),
    "log": _function("log(x), the natural one", _log, 1),
    "known": _function("known(x), true or false", _known, 1),
    "default": _function("default(x, other), the other where x is unknown", _default, 2),
    "count": _function("count(list)", lambda value: _list(value).lengths.astype(np.float64), 1),
    "mean": _function("mean(list of numbers)", lambda value: _mean(value), 1),
    "share": _function("share(list, x), the share of the list that is x", share, 2, tallies=True),
    "overlap": _function(
        "overlap(has, wanted), the share of wanted that has holds", overlap, 2, tallies=True
    ),
    "contains": _function(
        'contains(text, "phrase", …), true or false', _contains, 2, None, takes_phrases=True
    ),
    "after": _function(
        'after(text, "phrase", …), what follows the phrase', _after, 2, None, takes_phrases=True
    ),
    "number": _function(
        "number(text), the last one in it; 120,000 is one and 120 000 two",
        _of_texts(lambda texts: texts.numbered(_number_in)),
        1,
    ),
    "find": _function(
        "find(table, text), the row whose phrase stands in it",
        lambda table, value: _of_texts(lambda texts: texts.mapped(table.find))(value),
        2,
        takes_table=True,
    ),
    "rank": _function(
        "rank(table, text), the number of that row, from 0", _rank, 2, takes_table=True
    ),
}


def _mean(value: Value) -> Float64:
    many = _list(value)
    if isinstance(many.flat, Texts):
        raise BadInput(f"a list of numbers is expected, and {kind_of(value)} stands there")
    return many.mean()


def phrase_fault(rows: Mapping[str, tuple[str, ...]]) -> str | None:
    """What is wrong with a table: a phrase that stands for two rows."""
    seen: dict[str, str] = {}
    for row, phrases in rows.items():
        for phrase in phrases:
            if (other := seen.setdefault(phrase.casefold(), row)) != row:
                return f"{shown(phrase)} stands for {other} and for {row}; keep one"
    return None
