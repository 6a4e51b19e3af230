"""`policy.md`: what a good recommendation is, for people to read and for machines to apply.

    ---
    policy: films
    version: 1.2
    cuts: [0.2, 0.4, 0.6, 0.8]
    ---
    # What we recommend, and why
    Prose, as much as it takes.

    ```terms
    pay_ratio = item.pay / user.expected_pay
    ```

    ```table levels
    junior: junior, trainee
    senior: senior, lead
    ```

    ## 1. Pay
    Somebody who is paid what they expect is content; fifteen percent less is an insult.

    ```rule
    weight: 0.3 if rank(levels, user.headline) == 0 else 0.15
    value: ramp(pay_ratio, 0.85, 1.0)
    unless: item.relocation == "relocation paid"
    ```

Front matter names the policy, its version and the *cuts*: the scores from which a grade is 1, 2, 3
and 4. Each rule is a numbered heading, prose, and one block, which has exactly one of

- `value`: how well a pair does by the rule, 0 to 1, which counts by `weight` (1 if not given);
- `judge`: the same in words, for a judge who reads, who answers 0 to 4;
- `at_most`, `at_least`: a limit on the grade, whatever the score.

`when` and `unless` say for which pairs it speaks. Where a number that it needs is unknown, a rule
is silent. A line that begins with a blank goes on with the line before; `#` begins a comment.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import yaml

from distill.policy.expressions import Expression, Place
from distill.policy.functions import Table
from distill.policy.rules import Rule, RuleReader
from promptify.plain_yaml import load_yaml
from promptify.validation import BadInput, shown

MAX_GRADE = 4
GRADES = ("unfit", "doubtful", "passable", "fitting", "ideal")
"""Words of the grades 0 to 4, for a task that has none of its own."""

# Terms are evaluated within each other, on Python's own stack.
_MAX_DEPTH = 8
_DEFAULT_CUTS = (0.2, 0.4, 0.6, 0.8)
_FRONT_MATTER = {"policy", "version", "cuts"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Policy:
    """A policy that was read.

    Attributes:
        name: of the front matter.
        version: of the front matter, as text.
        cuts: four rising scores in (0, 1].
        rules: in order.
        terms: named expressions.
        tables: named lists of phrases.
        text: the whole document, which a judge is given to read.
        file: its name in messages.
    """

    name: str
    version: str
    cuts: tuple[float, float, float, float]
    rules: tuple[Rule, ...]
    terms: Mapping[str, Expression]
    tables: Mapping[str, Table]
    text: str
    file: str

    @property
    def digest(self) -> str:
        """Which document this is, prose included: 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def meaning(self) -> dict[str, Any]:
        """What decides its grades, JSON values only: two documents that agree in it judge alike.

        Prose, titles, name and version are no part of it.
        """
        parts = ("when", "unless", "weight")
        return {
            "cuts": list(self.cuts),
            "terms": {name: term.text for name, term in self.terms.items()},
            # Rows of a table have an order, keys of JSON have none.
            "tables": {
                name: [[row, *phrases] for row, phrases in table.rows.items()]
                for name, table in self.tables.items()
            },
            "rules": {
                str(rule.number): {
                    rule.effect: rule.body.text if rule.body else rule.instruction,
                    **{part: said.text for part in parts if (said := getattr(rule, part))},
                }
                for rule in self.rules
            },
        }

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """Every field that it reads, as owner and name; `("query", "")` for the query."""
        said = [one for rule in self.rules for one in rule.expressions]
        return tuple(
            dict.fromkeys(field for one in [*said, *self.terms.values()] for field in one.fields)
        )

    @property
    def reads_query(self) -> bool:
        """Whether a judgement depends on what somebody asked."""
        return ("query", "") in self.fields

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy from a file.

        Raises:
            BadInput: the file is no policy; the message has the line, the value and the mend.
            OSError: it cannot be read.
        """
        try:
            text = Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
        return cls.parse(text, file=Path(path).name)

    @classmethod
    def shipped(cls, name: str) -> Self:
        """A policy that comes with the package: `job_market` or `movielens`.

        Raises:
            BadInput: there is none of that name.
        """
        folder = files(__package__) / "shipped"
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".md"))
        if f"{name}.md" not in names:
            raise BadInput(
                f"no policy {shown(name)} comes with the package; there are "
                f"{', '.join(one.removesuffix('.md') for one in names)}."
            )
        return cls.parse((folder / f"{name}.md").read_text("utf-8"), file=f"{name}.md")

    @classmethod
    def parse(cls, text: str, *, file: str = "policy.md") -> Self:
        """Read a policy.

        Args:
            text: the document.
            file: its name in messages.

        Raises:
            BadInput: it is none; the message has the line, the value and the mend.

        Example:
            >>> policy = Policy.parse('''---
            ... policy: near
            ... version: 1
            ... ---
            ... ## 1. Close to home
            ... ```rule
            ... value: item.place == user.place
            ... ```
            ... ''')
            >>> policy.rules[0].title, policy.fields
            ('Close to home', (('item', 'place'), ('user', 'place')))
        """
        text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        lines = text.split("\n")
        first, about = _front_matter(lines, file)
        rules, terms, tables = RuleReader(lines, first, file).read()
        policy = cls(
            name=str(about["policy"]),
            version=str(about["version"]),
            cuts=_cuts(about, file),
            rules=rules,
            terms=terms,
            tables=tables,
            text=text,
            file=file,
        )
        _check_names(policy)
        return policy


def _front_matter(lines: list[str], file: str) -> tuple[int, dict[str, Any]]:
    """What stands between the first two lines of ---, and the index of the line behind it."""
    ends = [place for place, line in enumerate(lines) if line.strip() == "---"][:2]
    if len(ends) < 2 or ends[0] != 0:
        raise Place(file, 1).refusal(
            "a policy begins with front matter: a line ---, `policy:` and `version:`, a line ---."
        )
    try:
        # Texts as they are written: version 1.10 is not 1.1.
        about = load_yaml("\n".join(lines[1 : ends[1]]), as_text=True)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 2 + (mark.line if mark else 0)
        what = getattr(error, "problem", None) or "it cannot be read"
        raise Place(file, line).refusal(f"the front matter is no YAML ({what}).") from None
    about = about if isinstance(about, dict) else {}
    unknown = sorted(str(key) for key in about if key not in _FRONT_MATTER)
    missing = [key for key in ("policy", "version") if about.get(key) in (None, "")]
    if unknown or missing:
        wrong = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        raise Place(file, 1).refusal(
            f"the front matter {wrong}; it holds policy, version and, if you like, cuts."
        )
    return ends[1] + 1, about


def _cuts(about: Mapping[str, Any], file: str) -> tuple[float, float, float, float]:
    said = about.get("cuts", list(_DEFAULT_CUTS))
    try:
        cuts = [float(cut) for cut in said]
    except (TypeError, ValueError):
        cuts = []
    if len(cuts) != MAX_GRADE or not 0 < cuts[0] < cuts[1] < cuts[2] < cuts[3] <= 1:
        raise Place(file, 1).refusal(
            f"cuts={shown(said)} must be four rising numbers in (0, 1]: the scores from which the "
            "grade is 1, 2, 3 and 4."
        )
    return cuts[0], cuts[1], cuts[2], cuts[3]


def _check_names(policy: Policy) -> None:
    """Refuse names that nothing defines, and terms that lead back to themselves or too deep."""
    depths: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise policy.terms[above[-1]].place.refusal(
                f"the term {' → '.join([*above[above.index(name) :], name])} leads back to itself."
            )
        if name not in depths and len(above) < _MAX_DEPTH:
            inner = [one for one in policy.terms[name].names if one in policy.terms]
            depths[name] = 1 + max((depth(one, (*above, name)) for one in inner), default=0)
        if depths.get(name, _MAX_DEPTH + 1) > _MAX_DEPTH:
            raise policy.terms[name].place.refusal(
                f"more than {_MAX_DEPTH} terms rest on each other; say less."
            )
        return depths[name]

    expressions = [one for rule in policy.rules for one in rule.expressions]
    for expression in [*expressions, *policy.terms.values()]:
        for name in expression.names:
            if name not in policy.terms and name not in policy.tables:
                known = ", ".join([*policy.terms, *policy.tables]) or "none yet"
                raise expression.place.refusal(
                    f"nothing is called {shown(name)}; terms and tables are: {known}. A text "
                    "stands in quotes."
                )
    for name in policy.terms:
        depth(name, ())
