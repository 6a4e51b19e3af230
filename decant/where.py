r"""Attribute filters: which items may be recommended, said over the columns of the items.

    where = parse_where("place = Berlin, Germany | workplace = remote", interactions.schema)
    is_match_I = matching(where, items)

    expression := both ("|" both)*                 also: or
    both       := single ("&" single)*             also: and
    single     := "!" single | "(" expression ")"  also: not
                | column operator value
                | column "in" "(" value ("," value)* ")"
    operator   := = | != | < | <= | > | >=

A value stands as it is up to the next `|`, `&` or `)`, and in a list of values up to the next
comma; one that holds such a sign is written "in quotes", with \" for a quote. `and` and `or` join
where a comparison follows; anywhere else they are words of the value. `=` on a list asks whether it
holds the value. Times are seconds since 1970 or ISO 8601 dates. Where a value is unknown no
comparison holds, so `!=` and `not` do.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

from promptify.columns import ARROW_TYPES, read_column
from promptify.schema import FieldKind, Schema
from promptify.validation import BadInput, shown

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in"]
Value = str | float | int

_ORDERS: dict[str, Callable[..., pa.Array]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_OWN_COLUMNS: dict[str, FieldKind] = {"item_id": "text", "kind": "category"}
_NUM_NEAR = 5
# Different values of a column that are looked through for values spelt alike.
_MAX_LOOKED_THROUGH = 20_000
# Longer texts are prose, which is not what somebody meant to write.
_MAX_NEAR_LETTERS = 200
_MIN_SIMILARITY = 0.4
# Python's own stack is the limit of a recursive parser; nobody writes so many brackets.
_MAX_DEPTH = 50

_COMPARISON = r"(?:(?:not\b|!(?!=)|\()\s*)*[^\W\d]\w*\s*(?:!=|<=|>=|=|<|>|in\s*\()"
_NEXT_WORD = re.compile(rf"(?<=\s)(?:and|or)\s+(?={_COMPARISON})", re.IGNORECASE)
_IN_COMPARISON = re.compile(r"[^|&)]*")
_IN_LIST = re.compile(r"[^,)]*")
_COLUMN = re.compile(r"[^\W\d]\w*")
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>|in(?=\s*\()", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Compare:
    """A column beside one value, or several for ``in``; texts as the items have them.

    Args:
        column: of the items.
        operator: as in the grammar above; a list holds the value, or one of them.
        values: one, or more for ``in``.
    """

    column: str
    operator: Operator
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.operator not in get_args(Operator):
            raise BadInput(
                f"Compare.operator={self.operator!r} must be one of {', '.join(get_args(Operator))}"
            )
        if not isinstance(self.column, str):
            raise BadInput(f"Compare.column={shown(self.column)} must be the name of a column.")
        is_one = isinstance(self.values, tuple) and len(self.values) == 1
        is_some = isinstance(self.values, tuple) and self.operator == "in" and self.values
        if not (is_one or is_some):
            raise BadInput(
                f"Compare.values={shown(self.values)} of column {self.column!r} must be a tuple of "
                "one value, or of some for the operator 'in'."
            )
        strange = [value for value in self.values if not isinstance(value, str | int | float)]
        if strange:
            raise BadInput(f"where: {self.column} {shown(strange[0])} must be a text or a number.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """Several conditions: ``all`` of them hold, or ``any``."""

    how: Literal["all", "any"]
    parts: "tuple[Where, ...]"

    def __post_init__(self) -> None:
        if self.how not in ("all", "any") or not self.parts:
            raise BadInput(f"Joined.how={self.how!r} must be 'all' or 'any', of some parts.")
        if not isinstance(self.parts, tuple):
            raise BadInput(f"Joined.parts={shown(self.parts)} must be a tuple of conditions.")
        for part in self.parts:
            check_where(part)


@dataclass(frozen=True, kw_only=True, slots=True)
class Negated:
    """A condition that does not hold."""

    part: "Where"

    def __post_init__(self) -> None:
        check_where(self.part)


Where = Compare | Joined | Negated


def check_where(where: object) -> None:
    """Refuse what is no filter.

    Raises:
        BadInput: it is not made of `Compare`, `Joined` and `Negated`.
    """
    if not isinstance(where, Where):
        raise BadInput(f"where={shown(where)} must be a text, or made of Compare, Joined, Negated.")


def parse_where(text: str) -> Where:
    """Read a filter as it is written; see the grammar above.

    Args:
        text: such as ``place = Berlin, Germany | workplace = remote``.

    Raises:
        BadInput: it is no expression; the message shows where it goes wrong.

    Example:
        >>> parse_where('workplace=remote & !(pay < 3000)')  # doctest: +NORMALIZE_WHITESPACE
        Joined(how='all', parts=(Compare(column='workplace', operator='=', values=('remote',)),
        Negated(part=Compare(column='pay', operator='<', values=('3000',)))))
    """
    if not isinstance(text, str):
        raise BadInput(f"where={shown(text)} must be a text, or made of Compare, Joined, Negated.")
    parser = _Parser(text)
    found = parser.expression(0)
    if not parser.is_at_end():
        raise parser.refusal("| or & or the end")
    return found


def matching(where: Where, items: pa.Table, schema: Schema) -> NDArray[np.bool_]:
    """Which items a filter admits, bool [I].

    Args:
        where: the filter.
        items: `item_id`, `kind` and the schema's item fields, I rows.
        schema: what the columns are.

    Raises:
        BadInput: a column is unknown, a value is not of its type, or no item has it.
    """
    if isinstance(where, Negated):
        return ~matching(where.part, items, schema)
    if isinstance(where, Joined):
        join = np.logical_and if where.how == "all" else np.logical_or
        found = join.reduce([matching(part, items, schema) for part in where.parts])
        return cast(NDArray[np.bool_], found)
    kinds = _OWN_COLUMNS | {field.name: field.kind for field in schema.item_columns}
    if where.column not in kinds:
        near = difflib.get_close_matches(where.column, kinds, _NUM_NEAR, cutoff=0.5)
        raise BadInput(
            f"where: the items have no column {where.column!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
            + f" They have {', '.join(kinds)}."
        )
    return _compared(where, items.column(where.column), kinds[where.column])


def _compared(where: Compare, column: pa.ChunkedArray, kind: FieldKind) -> NDArray[np.bool_]:
    values = _typed(where, kind)
    if where.operator in _ORDERS:
        if kind not in ("number", "time"):
            raise BadInput(
                f"where: column {where.column!r} holds words ({kind}), which have no order: "
                f"{where.operator} {shown(where.values[0])} cannot be asked; use =, != or in."
            )
        return _true(_ORDERS[where.operator](column, values[0]))
    if kind == "list":
        rows, words = _flat(column)
        _check_known(where.column, values, words)
        found = np.zeros(len(column), np.bool_)
        found[rows[_true(pc.is_in(words, values))]] = True
    else:
        if kind in ("text", "category"):
            _check_known(where.column, values, column)
        if kind == "number":
            # `is_in` tells minus zero from zero, until zero is added.
            column, values = pc.add(column, 0.0), pc.add(values, 0.0)
        # A null among the items is in no set of values.
        found = _true(pc.is_in(column, values))
    return ~found if where.operator == "!=" else found


def _typed(where: Compare, kind: FieldKind) -> pa.Array:
    """The values of a comparison, as its column has them."""
    told = "text" if kind == "list" else kind
    typed = []
    for value in where.values:
        try:
            read, faults = read_column(pa.array([value]), cast(FieldKind, told))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise BadInput(f"where: {where.column} {shown(value)} is not a {kind}.") from None
        reasons = [fault.reason.partition(";")[0] for fault in faults if fault.rows.any()]
        if reasons or read.null_count:
            reason = reasons[0] if reasons else "is empty"
            raise BadInput(
                f"where: {where.column} {shown(value)} {reason}; the column holds "
                f"{_EXPECTED[kind]}."
            )
        typed += read.to_pylist()
    return pa.array(typed, ARROW_TYPES[cast(FieldKind, told)])


_EXPECTED: dict[FieldKind, str] = {
    "text": "text",
    "category": "words",
    "name": "names",
    "list": "lists of words",
    "number": "numbers",
    "time": "times (seconds since 1970, or an ISO 8601 date)",
}


def _check_known(column: str, values: pa.Array, held: pa.Array | pa.ChunkedArray) -> None:
    """Refuse a value that no item has: it is misspelt more often than it is rare."""
    known = pc.unique(held).drop_null()
    unknown = values.filter(pc.invert(pc.is_in(values, known)))
    if len(unknown):
        value = unknown[0].as_py()
        near = ", ".join(map(shown, _near(value, known)))
        raise BadInput(
            f"where: no item has {column} {shown(value)}" + (f"; near it: {near}." if near else ".")
        )


def _near(value: str, known: pa.Array) -> list[str]:
    """A few of the known values that resemble one: those that hold it, then those spelt alike."""
    if len(value) > _MAX_NEAR_LETTERS:
        return []
    short = known.filter(pc.less_equal(pc.utf8_length(known), _MAX_NEAR_LETTERS))
    holding = short.filter(pc.match_substring(short, value, ignore_case=True))
    near = holding.slice(0, _NUM_NEAR).to_pylist()
    looked_through = short.slice(0, _MAX_LOOKED_THROUGH).to_pylist()
    alike = process.extract(
        value,
        looked_through,
        scorer=Indel.normalized_similarity,
        score_cutoff=_MIN_SIMILARITY,
        limit=_NUM_NEAR,
    )
    near += [other for other, _, _ in alike]
    return list(dict.fromkeys(near))[:_NUM_NEAR] or looked_through[:_NUM_NEAR]


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """All words of a column of lists, and the row of each."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    return np.asarray(pc.list_parent_indices(lists), np.int64), pc.list_flatten(lists)


def _true(found: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """What is known to be true, bool [n]."""
    return np.asarray(pc.fill_null(found, False), np.bool_)


class _Parser:
    """Reads one expression from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def is_at_end(self) -> bool:
        self._skip()
        return self._at == len(self._text)

    def expression(self, depth: int) -> Where:
        if depth > _MAX_DEPTH:
            raise BadInput(f"where: more than {_MAX_DEPTH} brackets stand in each other; say less.")
        return _joined("any", self._parts("|", "or", lambda: self._both(depth)))

    def _both(self, depth: int) -> Where:
        return _joined("all", self._parts("&", "and", lambda: self._single(depth)))

    def _parts(self, sign: str, word: str, read: Callable[[], Where]) -> Iterator[Where]:
        yield read()
        while self._take(sign) or self._take_word(word):
            yield read()

    def _single(self, depth: int) -> Where:
        if depth > _MAX_DEPTH:
            raise BadInput(f"where: more than {_MAX_DEPTH} signs stand in each other; say less.")
        if self._take("!") or self._take_word("not"):
            return Negated(part=self._single(depth + 1))
        if self._take("("):
            found = self.expression(depth + 1)
            if not self._take(")"):
                raise self.refusal(")")
            return found
        return self._comparison()

    def _comparison(self) -> Where:
        column = self._match(_COLUMN, "a column")
        operator = cast(Operator, self._match(_OPERATOR, "one of = != < <= > >= in (...)").lower())
        if operator != "in":
            return Compare(column=column, operator=operator, values=(self._value(_IN_COMPARISON),))
        self._take("(")
        values = [self._value(_IN_LIST)]
        while self._take(","):
            values.append(self._value(_IN_LIST))
        if not self._take(")"):
            raise self.refusal(", or )")
        return Compare(column=column, operator="in", values=tuple(values))

    def _value(self, plain: re.Pattern[str]) -> str:
        self._skip()
        if quoted := _QUOTED.match(self._text, self._at):
            self._at = quoted.end()
            return re.sub(r"\\(.)", r"\1", quoted[1])
        found = plain.match(self._text, self._at)
        end = found.end() if found else self._at
        if plain is _IN_COMPARISON and (word := _NEXT_WORD.search(self._text, self._at, end)):
            end = word.start()
        value = self._text[self._at : end].strip()
        if not value or value.startswith('"'):
            raise self.refusal("a value")
        self._at = end
        return value

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1

    def _take(self, sign: str) -> bool:
        self._skip()
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def _take_word(self, word: str) -> bool:
        self._skip()
        found = re.compile(rf"{word}\b(?=\s*{_COMPARISON})", re.IGNORECASE).match(
            self._text, self._at
        )
        if found:
            self._at = found.end()
        return bool(found)

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        self._skip()
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self.refusal(what)
        self._at = found.end()
        return found[0]

    def refusal(self, wanted: str) -> BadInput:
        """The error for what stands here in the place of something else."""
        rest = self._text[self._at :].strip()
        found = f"{shown(rest)} stands there" if rest else "it ends there"
        before = self._text[: self._at].strip()
        where = f"after {shown(before)}" if before else "at its beginning"
        return BadInput(
            f"where: {wanted} is expected {where}, but {found}. An example: "
            "place = Berlin, Germany | workplace = remote. A value that holds | & , ( or ) stands "
            "in quotes."
        )


def _joined(how: Literal["all", "any"], parts: Iterator[Where]) -> Where:
    found = tuple(parts)
    return found[0] if len(found) == 1 else Joined(how=how, parts=found)
