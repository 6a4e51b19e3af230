"""The expressions of a policy: a small part of Python's grammar, read by `ast`, never evaluated.

    0.3 if user.seniority == "junior" else 0.15
    ramp(item.pay / user.expected_pay, 0.85, 1.0)
    item.workplace in ("remote", user.workplace) and not contains(query, "on site")

There are numbers, texts in quotes, `true` and `false`; fields of `user`, `item` and `history` (what
the person did well with), and `query`; names of the policy's own terms and tables; `+ - * /`,
comparisons, `in`, `and`, `or`, `not`, `A if C else B`, and the functions of
`distill.policy.functions`. Everything else is refused when the policy is read, with its line.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distill.policy.functions import FUNCTIONS
from promptify.validation import BadInput, shown

OWNERS = ("user", "item", "history")
# Python's own stack is the limit of a recursive walk; nobody writes so long a rule.
_MAX_CHARACTERS = 2000
_MAX_DEPTH = 20
_CONSTANTS = {"true": True, "false": False}
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.And, ast.Or, ast.Not, ast.USub,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a file and a line of it, from 1."""

    file: str
    line: int

    def refusal(self, what: str) -> BadInput:
        """The error for what stands here."""
        return BadInput(f"{self.file} line {self.line}: {what}")


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """An expression that was read; two are equal in meaning where their `text` is.

    Attributes:
        text: as it was written, on one line.
        tree: what `ast` made of it.
        place: where it begins.
    """

    text: str
    tree: ast.expr
    place: Place

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The fields it reads, as owner and name, each once; `("query", "")` for the query."""
        return tuple(dict.fromkeys(_fields(self.tree)))

    @property
    def names(self) -> tuple[str, ...]:
        """Terms and tables that it refers to, each once."""
        known = {*OWNERS, *_CONSTANTS, "query", *FUNCTIONS}
        names = (node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name))
        return tuple(dict.fromkeys(name for name in names if name not in known))

    @property
    def compared(self) -> tuple[tuple[str, str, str], ...]:
        """Fields that it compares with texts, each as owner, name and text."""
        return tuple(dict.fromkeys(_compared_texts(self.tree)))


def parse_expression(text: str, place: Place) -> Expression:
    """Read an expression.

    Args:
        text: as it stands in the policy.
        place: where it stands.

    Raises:
        BadInput: it is none; the message has the line, what stands there and what may.

    Example:
        >>> parse_expression("user.years >= item.years", Place("policy.md", 7)).fields
        (('user', 'years'), ('item', 'years'))
    """
    text = " ".join(text.split())
    if not text:
        raise place.refusal("an expression is expected and nothing stands there.")
    if len(text) > _MAX_CHARACTERS:
        raise place.refusal(
            f"an expression of {len(text):,} characters is too long to be read by anyone; name "
            "parts of it in ```terms."
        )
    try:
        tree = ast.parse(text, mode="eval").body
        _check(tree, place, 0)
    except BadInput:
        raise
    except SyntaxError as error:
        at = max((error.offset or 1) - 1, 0)
        raise place.refusal(
            f"{shown(text)} cannot be read from {shown(text[at:] or text[-10:])} on ({error.msg})."
        ) from None
    except (ValueError, MemoryError, RecursionError):
        raise place.refusal(f"{shown(text)} cannot be read; say it in simpler parts.") from None
    return Expression(text, tree, place)


def constant(node: ast.expr) -> bool | float | str | None:
    """The value of a node that is a constant, else None."""
    if isinstance(node, ast.Name):
        return _CONSTANTS.get(node.id)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return float(node.value) if type(node.value) is int else node.value
    return None


def _check(node: ast.expr, place: Place, depth: int) -> None:
    """Refuse whatever is not of the grammar."""
    if depth > _MAX_DEPTH:
        raise place.refusal(
            f"more than {_MAX_DEPTH} operations stand in each other; name parts in ```terms."
        )
    for child in _children(node, place):
        _check(child, place, depth + 1)


def _children(node: ast.expr, place: Place) -> Sequence[ast.expr]:
    match node:
        case ast.Constant(value=bool(truth)):
            raise place.refusal(f"{truth} is written {str(truth).lower()}.")
        case ast.Constant(value=str()):
            return ()
        case ast.Constant(value=int(number) | float(number)) if abs(number) < 1e15:
            return ()
        case ast.Name():
            if node.id in OWNERS:
                raise place.refusal(f"{node.id} stands alone; name a field: {node.id}.years, say.")
            if node.id in FUNCTIONS:
                raise place.refusal(f"{node.id} is a function; write {FUNCTIONS[node.id].usage}.")
            return ()
        case ast.Attribute(value=ast.Name(id=owner)) if owner in OWNERS:
            return ()
        case ast.Attribute():
            raise place.refusal(
                f"{shown(ast.unparse(node))} is no field; fields are those of {', '.join(OWNERS)}."
            )
        case ast.BoolOp():
            return node.values
        case ast.BinOp(op=op) if isinstance(op, _OPERATORS):
            return (node.left, node.right)
        case ast.UnaryOp(op=op) if isinstance(op, _OPERATORS):
            return (node.operand,)
        case ast.IfExp():
            return (node.test, node.body, node.orelse)
        case ast.Compare() if all(isinstance(op, _OPERATORS) for op in node.ops):
            return _compared(node, place)
        case ast.Call():
            return _called(node, place)
    raise place.refusal(
        f"{shown(ast.unparse(node))} is not of a policy's language; there are fields, numbers, "
        "texts in quotes, + - * /, comparisons, in, and, or, not, A if C else B, and "
        f"{', '.join(FUNCTIONS)}."
    )


def _compared(node: ast.Compare, place: Place) -> Sequence[ast.expr]:
    """The sides of a comparison; behind `in` there may be a choice in brackets."""
    sides = [node.left]
    for op, side in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, ast.In | ast.NotIn) and isinstance(side, ast.Tuple | ast.List):
            if not side.elts:
                raise place.refusal(f"{shown(ast.unparse(node))} chooses among nothing.")
            if len(node.ops) > 1:
                raise place.refusal(f"{shown(ast.unparse(node))}: join comparisons by `and`.")
            sides += side.elts
        else:
            sides.append(side)
    return sides


def _called(node: ast.Call, place: Place) -> Sequence[ast.expr]:
    name = ast.unparse(node.func)
    if name not in FUNCTIONS:
        raise place.refusal(
            f"there is no function {shown(name)}; there are {', '.join(FUNCTIONS)}."
        )
    function = FUNCTIONS[name]
    count = len(node.args)
    plain = not node.keywords and not any(isinstance(arg, ast.Starred) for arg in node.args)
    if not plain or count < function.least or count > (function.most or count):
        raise place.refusal(f"{shown(ast.unparse(node))} is written {function.usage}.")
    if function.takes_table:
        if not isinstance(node.args[0], ast.Name) or node.args[0].id in _CONSTANTS:
            raise place.refusal(f"{name} takes a table first: it is written {function.usage}.")
        return node.args[1:]
    for arg in node.args[1:] if function.takes_phrases else ():
        if not isinstance(constant(arg), str):
            raise place.refusal(
                f"{shown(ast.unparse(arg))} must be a text in quotes: {name} is written "
                f"{function.usage}."
            )
    return node.args


def _compared_texts(tree: ast.expr) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides: list[ast.expr] = [node.left]
            for side in node.comparators:
                sides += side.elts if isinstance(side, ast.Tuple | ast.List) else [side]
            texts = [text for side in sides if isinstance(text := constant(side), str)]
            for side in sides:
                for owner, name in _fields(side) if isinstance(side, ast.Attribute) else ():
                    yield from ((owner, name, text) for text in texts)


def _fields(tree: ast.expr) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        elif isinstance(node, ast.Name) and node.id == "query":
            yield "query", ""
