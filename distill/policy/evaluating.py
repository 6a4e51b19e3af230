"""Expressions over a million pairs: what depends on the person alone is computed once for each.

A node of an expression is computed in the narrowest *scope* that its fields allow: once (`one`),
for each user, for each item, or for each pair. Only the last is done pair by pair.
"""

import ast
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np

from distill.policy.expressions import Expression, constant
from distill.policy.functions import (
    FUNCTIONS,
    Table,
    as_number,
    as_truth,
    chosen,
    in_list,
)
from distill.policy.tables import Owner, Pairs, PolicyTables
from distill.policy.values import Bool, Float64, Int64, Lists, Texts, Value, kind_of, taken
from promptify.validation import BadInput, shown

Scope = Literal["one", "user", "item", "pair"]
Scoped = tuple[Value, Scope]

_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_ORDERS = {ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal}


class Evaluation:
    """Evaluates the expressions of one policy over one log.

    Args:
        tables: what expressions may look at.
        terms: the policy's named expressions.
        phrases: its tables.
    """

    def __init__(
        self,
        tables: PolicyTables,
        terms: Mapping[str, Expression],
        phrases: Mapping[str, Table],
    ) -> None:
        self._tables = tables
        self._terms = terms
        self._phrases = phrases
        self._kept: dict[int, Scoped] = {}
        self._tallied: dict[int, Value] = {}

    def numbers(self, expression: Expression, pairs: Pairs, of_pairs: dict[int, Scoped]) -> Float64:
        """A number for each pair, float64 [n]; NaN where it is unknown.

        Args:
            expression: of the policy.
            pairs: n pairs.
            of_pairs: empty for new pairs; shared between the expressions of the same ones.

        Raises:
            BadInput: it gives something else, or reads what is not there; with its line.
        """
        value, scope = self._value(expression.tree, expression, pairs, of_pairs)
        with _at(expression):
            number = as_number(_lifted(value, scope, "pair", pairs))
        return np.broadcast_to(number, len(pairs))

    def truths(self, expression: Expression, pairs: Pairs, of_pairs: dict[int, Scoped]) -> Bool:
        """Whether it holds for each pair, bool [n]; as `numbers`."""
        value, scope = self._value(expression.tree, expression, pairs, of_pairs)
        with _at(expression):
            truth = as_truth(_lifted(value, scope, "pair", pairs))
        return np.broadcast_to(truth, len(pairs))

    def _value(
        self, node: ast.expr, inside: Expression, pairs: Pairs, of_pairs: dict[int, Scoped]
    ) -> Scoped:
        for kept in (self._kept, of_pairs):
            if id(node) in kept:
                return kept[id(node)]
        found = self._computed(node, inside, pairs, of_pairs)
        (of_pairs if found[1] == "pair" else self._kept)[id(node)] = found
        return found

    def _computed(
        self, node: ast.expr, inside: Expression, pairs: Pairs, of_pairs: dict[int, Scoped]
    ) -> Scoped:
        fixed = constant(node)
        if isinstance(fixed, str):
            return Texts(np.zeros(1, np.int32), (fixed,)), "one"
        if fixed is not None:
            return np.array([fixed]), "one"
        if isinstance(node, ast.Name):
            if node.id == "query":
                return self._query(pairs), "pair"
            if node.id not in self._terms:
                raise inside.place.refusal(
                    f"there is no term {shown(node.id)}; the terms are "
                    f"{', '.join(self._terms) or 'none yet'}, and a text stands in quotes."
                )
            term = self._terms[node.id]
            return self._value(term.tree, term, pairs, of_pairs)
        if isinstance(node, ast.Attribute):
            owner = cast(Owner, cast(ast.Name, node.value).id)
            with _at(inside):
                value = self._tables.field(owner, node.attr)
            return value, "item" if owner == "item" else "user"
        return self._operation(node, inside, pairs, of_pairs)

    def _operation(
        self, node: ast.expr, inside: Expression, pairs: Pairs, of_pairs: dict[int, Scoped]
    ) -> Scoped:
        parts, table = _parts(node), None
        if isinstance(node, ast.Call):
            function = FUNCTIONS[cast(ast.Name, node.func).id]
            if function.takes_table:
                table = self._table(cast(ast.Name, node.args[0]).id, inside)
        found = [self._value(part, inside, pairs, of_pairs) for part in parts]
        if isinstance(node, ast.Call) and function.tallies:
            found = [self._in_short(part, *one) for part, one in zip(parts, found, strict=True)]
        scope = _joined([scope for _, scope in found])
        values = [_lifted(value, own, scope, pairs) for value, own in found]
        with _at(inside), np.errstate(divide="ignore", invalid="ignore"):
            match node:
                case ast.BoolOp(op=op):
                    join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                    truth = as_truth(values[0])
                    for value in values[1:]:
                        truth = join(truth, as_truth(value))
                    return truth, scope
                case ast.UnaryOp(op=ast.Not()):
                    return ~as_truth(values[0]), scope
                case ast.UnaryOp():
                    return -as_number(values[0]), scope
                case ast.BinOp(op=op):
                    number = _ARITHMETIC[type(op)](as_number(values[0]), as_number(values[1]))
                    return np.where(np.isfinite(number), number, np.nan), scope
                case ast.IfExp():
                    return chosen(as_truth(values[0]), values[1], values[2]), scope
                case ast.Compare():
                    return _comparison(node, values), scope
                case ast.Call():
                    arguments = values if table is None else [table, *values]
                    return FUNCTIONS[cast(ast.Name, node.func).id].call(*arguments), scope
        raise AssertionError(ast.dump(node))  # the parser let nothing else through

    def _in_short(self, node: ast.expr, value: Value, scope: Scope) -> Scoped:
        if not isinstance(value, Lists) or scope == "pair":
            return value, scope
        if id(node) not in self._tallied:
            self._tallied[id(node)] = value.tallied()
        return self._tallied[id(node)], scope

    def _query(self, pairs: Pairs) -> Texts:
        words = self._tables.queries.words
        codes = np.full(len(pairs), -1) if pairs.contexts is None else pairs.contexts
        return Texts(codes.astype(np.int32), words)

    def _table(self, name: str, inside: Expression) -> Table:
        if name not in self._phrases:
            raise inside.place.refusal(
                f"there is no table {shown(name)}; the tables are "
                f"{', '.join(self._phrases) or 'none yet'}."
            )
        return self._phrases[name]


class _at:
    """Puts the place of an expression before what is wrong with it."""

    def __init__(self, expression: Expression) -> None:
        self._expression = expression

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        place = self._expression.place
        prefix = f"{place.file} line "
        if isinstance(error, BadInput) and not str(error).startswith(prefix):
            said = str(error).rstrip(".")
            raise place.refusal(f"in {shown(self._expression.text)}, {said}.") from None


def _parts(node: ast.expr) -> list[ast.expr]:
    """The expressions inside one; the choices behind `in` come one by one, tables not at all."""
    match node:
        case ast.BoolOp():
            return node.values
        case ast.BinOp():
            return [node.left, node.right]
        case ast.UnaryOp():
            return [node.operand]
        case ast.IfExp():
            return [node.test, node.body, node.orelse]
        case ast.Compare():
            sides = [node.left]
            for side in node.comparators:
                sides += side.elts if isinstance(side, ast.Tuple | ast.List) else [side]
            return sides
        case ast.Call():
            takes_table = FUNCTIONS[cast(ast.Name, node.func).id].takes_table
            return node.args[takes_table:]
    raise AssertionError(ast.dump(node))


def _joined(scopes: list[Scope]) -> Scope:
    different = {scope for scope in scopes if scope != "one"}
    return "one" if not different else different.pop() if len(different) == 1 else "pair"


def _lifted(value: Value, scope: Scope, wanted: Scope, pairs: Pairs) -> Value:
    """A column in a wider scope; what is the same for all stays one row."""
    if scope in (wanted, "one") or wanted != "pair":
        return value
    rows: Int64 = pairs.users if scope == "user" else pairs.items
    return taken(value, rows)


def _comparison(node: ast.Compare, values: list[Value]) -> Bool:
    """A chain of comparisons: `1 <= x < 5` holds where all of it does."""
    if isinstance(node.comparators[0], ast.Tuple | ast.List):
        equal = [_equal(values[0], choice) for choice in values[1:]]
        held = [np.logical_or.reduce(np.broadcast_arrays(*equal))]
    else:
        held = [
            _compared(op, left, right)
            for op, left, right in zip(node.ops, values[:-1], values[1:], strict=True)
        ]
    truths = [
        ~truth if isinstance(op, ast.NotIn | ast.NotEq) else truth
        for op, truth in zip(node.ops, held, strict=True)
    ]
    return cast(Bool, np.logical_and.reduce(np.broadcast_arrays(*truths)))


def _compared(op: ast.cmpop, left: Value, right: Value) -> Bool:
    if isinstance(op, ast.Eq | ast.NotEq):
        return _equal(left, right)
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, Lists):
            raise BadInput(
                f"behind `in` stands {kind_of(right)}; give a list, or choices in brackets"
            )
        return in_list(left, right)
    if isinstance(left, Texts) or isinstance(right, Texts):
        raise BadInput("texts have no order; use rank(table, text) to give them one")
    return cast(Bool, _ORDERS[type(op)](as_number(left), as_number(right)))


def _equal(left: Value, right: Value) -> Bool:
    """Where two columns are the same; nothing is the same as what is unknown."""
    if isinstance(left, Texts) and isinstance(right, Texts):
        words: dict[str, int] = {}
        one, other = left.told_as(words), right.told_as(words)
        return cast(Bool, (one == other) & (one >= 0))
    if isinstance(left, Texts | Lists) or isinstance(right, Texts | Lists):
        raise BadInput(f"{kind_of(left)} is compared with {kind_of(right)}")
    return cast(Bool, as_number(left) == as_number(right))
