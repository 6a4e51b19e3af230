"""The numbered rules of a policy, and how they are read from its text.

Rules stand in fenced blocks under numbered headings, terms and tables in blocks of their own; all
else is prose. See `distill.policy.document` for what a block may say.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from distill.policy.expressions import Expression, Place, parse_expression
from distill.policy.functions import FUNCTIONS, Table, phrase_fault
from promptify.validation import BadInput, shown

Effect = Literal["value", "judge", "at_most", "at_least"]
EFFECTS = ("value", "judge", "at_most", "at_least")

_KEYS = ("when", "unless", "weight", *EFFECTS)
_HEADING = re.compile(r"^##\s+(\d+)\.\s*(.*?)\s*$")
_ANY_HEADING = re.compile(r"^#{1,6}\s")
_FENCE = re.compile(r"^(`{3,}|~{3,})\s*(.*?)\s*$")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What fired is kept as a list of numbers for every label.
_MAX_RULES = 60


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rule:
    """One numbered rule.

    Attributes:
        number: from 1.
        title: of its heading; rules of two versions are the same where their titles are.
        prose: what people read.
        effect: which of the four it has.
        line: of the heading.
        body: what the effect is worth; None for a judge.
        instruction: what a judge is asked; empty for the others.
        weight: of a `value` or a `judge`.
        when: for which pairs it speaks; None for all.
        unless: for which it does not; None for none.
    """

    number: int
    title: str
    prose: str
    effect: Effect
    line: int
    body: Expression | None
    instruction: str = ""
    weight: Expression | None = None
    when: Expression | None = None
    unless: Expression | None = None

    @property
    def scores(self) -> bool:
        """Whether it counts towards the score, rather than limits the grade."""
        return self.effect in ("value", "judge")

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """All that it says as expressions."""
        parts = (self.when, self.unless, self.weight, self.body)
        return tuple(part for part in parts if part is not None)

    @property
    def meaning(self) -> tuple[str, ...]:
        """What decides its judgements: two rules that agree in it judge alike, terms aside."""
        parts = (self.when, self.unless, self.weight, self.body)
        return (self.effect, self.instruction, *(part.text if part else "" for part in parts))


@dataclass(frozen=True, slots=True)
class _Block:
    """A fenced block: what it says it is, and its lines with their numbers."""

    kind: str
    line: int
    lines: tuple[tuple[int, str], ...]


class RuleReader:
    """Reads what stands below the front matter.

    Args:
        lines: of the document.
        first: index of the first line to read.
        file: its name in messages.
    """

    def __init__(self, lines: list[str], first: int, file: str) -> None:
        self._lines = lines
        self._first = first
        self._file = file

    def read(self) -> tuple[tuple[Rule, ...], dict[str, Expression], dict[str, Table]]:
        """Rules in order, terms and tables by name.

        Raises:
            BadInput: something is not as it should be; the message has its line.
        """
        rules: list[Rule] = []
        terms: dict[str, Expression] = {}
        tables: dict[str, Table] = {}
        heading: tuple[int, str, int] | None = None
        prose: list[str] = []
        for part in self._parts():
            if isinstance(part, _Block):
                kind, _, name = part.kind.partition(" ")
                if kind == "terms":
                    self._terms(part, terms)
                elif kind == "table":
                    tables[self._free(name.strip(), part.line, terms, tables)] = self._table(part)
                elif kind == "rule":
                    if heading is None:
                        raise self._place(part.line).refusal(
                            "this rule has no heading of its own; begin it with "
                            f"'## {len(rules) + 1}. …'."
                        )
                    rules.append(self._rule(heading, part, " ".join(prose).strip()))
                    heading, prose = None, []
                continue
            line, text = part
            found = _HEADING.match(text)
            if found or _ANY_HEADING.match(text):
                self._close(heading)
                heading, prose = None, []
            if found:
                heading = self._heading(found, line, len(rules) + 1, rules)
            elif text.strip():
                prose.append(text.strip())
        self._close(heading)
        if not rules:
            raise BadInput(
                f"{self._file} holds no rules; a rule is a heading '## 1. …', prose, and a block "
                "that begins with ```rule."
            )
        return tuple(rules), terms, tables

    def _place(self, line: int) -> Place:
        return Place(self._file, line)

    def _parts(self) -> Iterator[_Block | tuple[int, str]]:
        """Blocks, and the other lines with their numbers."""
        at = self._first
        while at < len(self._lines):
            fence = _FENCE.match(self._lines[at])
            at += 1
            if fence is None:
                yield at, self._lines[at - 1]
                continue
            begin = at
            while at < len(self._lines) and self._lines[at].strip() != fence[1]:
                at += 1
            if at == len(self._lines):
                raise self._place(begin).refusal(
                    f"this block is never closed; end it with {fence[1]}."
                )
            inside = ((n + 1, self._lines[n]) for n in range(begin, at))
            yield _Block(" ".join(fence[2].split()), begin, tuple(inside))
            at += 1

    def _heading(
        self, found: re.Match[str], line: int, expected: int, rules: list[Rule]
    ) -> tuple[int, str, int]:
        number, title = int(found[1]), found[2]
        if number != expected:
            raise self._place(line).refusal(
                f"rule {number} stands where rule {expected} is expected; number the rules "
                "1, 2, 3 … in order."
            )
        if not title:
            raise self._place(line).refusal(f"rule {number} has no title; give it a few words.")
        if number > _MAX_RULES:
            raise self._place(line).refusal(f"there are more than {_MAX_RULES} rules; merge some.")
        for other in rules:
            if other.title.casefold() == title.casefold():
                raise self._place(line).refusal(
                    f"rule {number} is called {shown(title)} like rule {other.number}; a title is "
                    "how a rule is found again in the next version, so give it its own."
                )
        return number, title, line

    def _close(self, heading: tuple[int, str, int] | None) -> None:
        if heading is not None:
            raise self._place(heading[2]).refusal(
                f"rule {heading[0]} has no block; write what it does between ```rule and ```."
            )

    def _entries(self, block: _Block, sign: str) -> Iterator[tuple[int, str, str]]:
        """`key sign value` by line; a line that begins with a blank goes on with the one before."""
        open_entry: tuple[int, str, str] | None = None
        for line, text in block.lines:
            said = _without_comment(text)
            if not said.strip():
                continue
            if said[0].isspace() and open_entry is not None:
                open_entry = (*open_entry[:2], f"{open_entry[2]} {said.strip()}")
                continue
            if open_entry is not None:
                yield open_entry
            key, found, value = said.partition(sign)
            if not found:
                raise self._place(line).refusal(
                    f"{shown(said.strip())} is not of the form name {sign} value."
                )
            open_entry = (line, key.strip(), value.strip())
        if open_entry is not None:
            yield open_entry

    def _terms(self, block: _Block, terms: dict[str, Expression]) -> None:
        for line, name, text in self._entries(block, "="):
            self._free(name, line, terms, {})
            terms[name] = parse_expression(text, self._place(line))

    def _free(
        self, name: str, line: int, terms: Mapping[str, object], tables: Mapping[str, object]
    ) -> str:
        taken = {"user", "item", "history", "query", "true", "false", *FUNCTIONS}
        if not _NAME.fullmatch(name) or name in taken or name in terms or name in tables:
            raise self._place(line).refusal(
                f"{shown(name)} cannot be the name of a term or table: a name is letters, digits "
                "and _, is given once, and is not one of the language's own."
            )
        return name

    def _table(self, block: _Block) -> Table:
        rows: dict[str, tuple[str, ...]] = {}
        for line, name, text in self._entries(block, ":"):
            phrases = tuple(phrase.strip() for phrase in text.split(",") if phrase.strip())
            if not name or not phrases or name in rows:
                raise self._place(line).refusal(
                    f"a row of a table is a name of its own, a colon and phrases with commas "
                    f"between them; here stands {shown(f'{name}: {text}')}."
                )
            rows[name] = phrases
        if not rows:
            raise self._place(block.line).refusal("this table is empty; give it rows.")
        if fault := phrase_fault(rows):
            raise self._place(block.line).refusal(f"{fault}.")
        return Table(name=block.kind.partition(" ")[2], rows=rows, line=block.line)

    def _rule(self, heading: tuple[int, str, int], block: _Block, prose: str) -> Rule:
        number, title, line = heading
        said: dict[str, tuple[int, str]] = {}
        for at, key, text in self._entries(block, ":"):
            if key not in _KEYS or key in said:
                what = "stands twice" if key in said else "is unknown"
                raise self._place(at).refusal(
                    f"{shown(key)} {what} in rule {number}; a rule has {', '.join(_KEYS)}, each "
                    "at most once."
                )
            if not text:
                raise self._place(at).refusal(f"{key}: of rule {number} is empty.")
            said[key] = (at, text)
        effects = [key for key in EFFECTS if key in said]
        if len(effects) != 1:
            raise self._place(block.line).refusal(
                f"rule {number} has {' and '.join(effects) or 'no effect'}; give it exactly one of "
                f"{', '.join(EFFECTS)}."
            )
        effect = effects[0]
        if "weight" in said and effect not in ("value", "judge"):
            raise self._place(said["weight"][0]).refusal(
                f"rule {number} limits the grade, so a weight means nothing; leave it out."
            )
        read = {
            key: parse_expression(text, self._place(at))
            for key, (at, text) in said.items()
            if key != "judge"
        }
        return Rule(
            number=number,
            title=title,
            prose=prose,
            effect=cast(Effect, effect),
            line=line,
            body=read.get(effect),
            instruction=said[effect][1] if effect == "judge" else "",
            weight=read.get("weight"),
            when=read.get("when"),
            unless=read.get("unless"),
        )


def _without_comment(text: str) -> str:
    """A line up to a `#` that begins a word and stands in no quotes: C# is no comment."""
    quote = ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign == "#" and (place == 0 or text[place - 1].isspace()):
            return text[:place].rstrip()
        elif sign in "\"'" and (place == 0 or not text[place - 1].isalnum()):
            quote = sign
    return text.rstrip()
