"""Attribute filters: what is written is what Python would say item by item."""

import time
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decant.where import Compare, Joined, Negated, Where, matching, parse_where
from promptify.schema import Field, Schema
from promptify.validation import BadInput

SCHEMA = Schema(
    user=(),
    items={
        "job": (
            Field(name="title", kind="text"),
            Field(name="place", kind="category"),
            Field(name="skills", kind="list"),
            Field(name="pay", kind="number"),
            Field(name="posted", kind="time"),
        ),
        "person": (
            Field(name="headline", kind="text"),
            Field(name="place", kind="category"),
            Field(name="full_name", kind="name"),
        ),
    },
)
PLACES = ["Berlin, Germany", "Trinidad and Tobago", "Rome (Italy)", 'The "Hague"', "a|b & c"]
SKILLS = ["welding", "nursing", "R&D"]
DAY = 86400


def item(number: int, **fields: Any) -> dict[str, Any]:
    nothing = dict.fromkeys([field.name for field in SCHEMA.item_columns])
    return {"item_id": f"i{number}", "kind": "job", **nothing, **fields}


ITEMS = [
    item(0, title="Nurse", place=PLACES[0], skills=[], pay=1.0, posted=0),
    item(1, title="Welder", place=PLACES[1], skills=SKILLS[:2], pay=2.5, posted=20_000 * DAY),
    item(2, title="Nurse", place=PLACES[2], skills=SKILLS[1:], pay=-3.0, posted=19_999 * DAY),
    item(3, title="and", place=PLACES[3], skills=[SKILLS[0]]),
    item(4, title="or", place=PLACES[4], pay=2.5, posted=20_000 * DAY + 5),
    item(5, kind="person", headline="Tax adviser", place=PLACES[0]),
    item(6, title="x", skills=[SKILLS[2], SKILLS[2]], pay=1e9),
]
TYPES = {"skills": pa.list_(pa.string()), "pay": pa.float64(), "posted": pa.int64()}
TABLE = pa.table(
    {
        name: pa.array([row[name] for row in ITEMS], TYPES.get(name, pa.string()))
        for name in ITEMS[0]
    }
)


def found(where: str | Where) -> list[int]:
    parsed = parse_where(where) if isinstance(where, str) else where
    return np.flatnonzero(matching(parsed, TABLE, SCHEMA)).tolist()


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("place=Berlin, Germany | pay > 2", [0, 1, 4, 5, 6]),
        ("place = Trinidad and Tobago", [1]),
        ("place = Trinidad and Tobago and pay < 3 or item_id = i0", [0, 1]),
        ("title = and", [3]),
        ("title=or|title=and", [3, 4]),
        ('place = "Rome (Italy)"', [2]),
        (r'place="The \"Hague\""', [3]),
        ('place = "a|b & c" & pay=2.5', [4]),
        ('place in (Trinidad and Tobago, "Berlin, Germany")', [0, 1, 5]),
        ("skills = nursing", [1, 2]),
        ('skills in (welding, "R&D")', [1, 2, 3, 6]),
        ("skills != nursing", [0, 3, 4, 5, 6]),
        ("pay >= 2.5", [1, 4, 6]),
        ("pay < 0", [2]),
        ("pay != 2.5", [0, 2, 3, 5, 6]),
        ("not pay = 2.5", [0, 2, 3, 5, 6]),
        ("!(pay < 2 | pay > 2)", [3, 5]),
        ("posted > 2024-10-04", [4]),
        ("posted >= 2024-10-04T00:00:00", [1, 4]),
        ("posted = 0", [0]),
        ("kind = person & place = Berlin, Germany", [5]),
        ("NOT kind = job OR item_id IN (i1)", [1, 5]),
        ("item_id in (i3,i1)", [1, 3]),
        ("  pay   >   1   ", [1, 4, 6]),
        ("pay = 1|pay = 2.5&posted = 0", [0]),
        ("(pay = 1|pay = 2.5)&title=Welder", [1]),
        (Compare(column="pay", operator="in", values=(1, 2.5)), [0, 1, 4]),
    ],
    ids=str,
)
def test_it_means_what_it_says(where: str | Where, wanted: list[int]) -> None:
    assert found(where) == wanted


def test_minus_zero_is_zero() -> None:
    rows = [item(number, pay=pay) for number, pay in enumerate((0.0, -0.0, 1.0, None))]
    table = pa.Table.from_pylist(rows, TABLE.schema)
    for zero in ("0", "-0", "0.0", "-0.0"):
        for where, wanted in (
            (f"pay = {zero}", [0, 1]),
            (f"pay in ({zero}, 1)", [0, 1, 2]),
            (f"pay != {zero}", [2, 3]),
        ):
            assert np.flatnonzero(matching(parse_where(where), table, SCHEMA)).tolist() == wanted


def holds(where: Where, row: dict[str, Any]) -> bool:
    """The reference: one item at a time, in plain Python."""
    if isinstance(where, Negated):
        return not holds(where.part, row)
    if isinstance(where, Joined):
        return {"all": all, "any": any}[where.how](holds(part, row) for part in where.parts)
    value = row[where.column]
    if where.column == "skills":
        is_in = bool(set(value or ()) & set(where.values))
    else:
        is_in = value is not None and value in where.values
    if where.operator in ("=", "in"):
        return is_in
    if where.operator == "!=":
        return not is_in
    [wanted] = where.values
    orders = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    return value is not None and getattr(float(value), orders[where.operator])(float(wanted))


def compare(column: str, values: list[Any], ordered: bool) -> st.SearchStrategy[Where]:
    operators = ["=", "!=", *(["<", "<=", ">", ">="] if ordered else [])]
    one = st.builds(
        Compare,
        column=st.just(column),
        operator=st.sampled_from(operators),
        values=st.tuples(st.sampled_from(values)),
    )
    some = st.builds(
        Compare,
        column=st.just(column),
        operator=st.just("in"),
        values=st.lists(st.sampled_from(values), min_size=1, max_size=3).map(tuple),
    )
    return one | some


COMPARISONS = st.one_of(
    compare("place", PLACES, False),
    compare("skills", SKILLS, False),
    compare("title", ["Nurse", "and", "or", "x"], False),
    compare("pay", [1.0, 2.5, -3.0, 1e9], True),
    compare("posted", [0, 19_999 * DAY, 20_000 * DAY], True),
    compare("kind", ["job", "person"], False),
)
EXPRESSIONS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(Negated, part=inner)
        | st.builds(
            Joined,
            how=st.sampled_from(["all", "any"]),
            parts=st.lists(inner, min_size=2, max_size=3).map(tuple),
        )
    ),
    max_leaves=8,
)


def written(where: Where) -> str:
    """An expression as somebody would write it, every value in quotes."""
    if isinstance(where, Negated):
        return f"!({written(where.part)})"
    if isinstance(where, Joined):
        sign = {"all": " & ", "any": " | "}[where.how]
        return sign.join(f"({written(part)})" for part in where.parts)
    quoted = ['"' + str(v).replace("\\", "\\\\").replace('"', '\\"') + '"' for v in where.values]
    if where.operator == "in":
        return f"{where.column} in ({', '.join(quoted)})"
    return f"{where.column}{where.operator}{quoted[0]}"


@given(EXPRESSIONS)
def test_any_expression_is_what_python_says_item_by_item(where: Where) -> None:
    wanted = [place for place, row in enumerate(ITEMS) if holds(where, row)]
    assert found(where) == wanted
    assert found(written(where)) == wanted


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "a column is expected at its beginning, but it ends there"),
        ("place", "is expected after 'place', but it ends there"),
        ("place=", "a value is expected after 'place='"),
        ("place ~ Berlin", "'~ Berlin' stands there"),
        ("place=Berlin", "no item has place 'Berlin'; near it: 'Berlin, Germany'"),
        ("place in (Berlin)", "no item has place 'Berlin'; near it: 'Berlin, Germany'"),
        ("skills=weldin", "no item has skills 'weldin'; near it: 'welding'"),
        ("plase=x", "no column 'plase'; did you mean place"),
        ("__class__=x", "no column '__class__'"),
        ("pay=much", "pay 'much' is not a number; the column holds numbers"),
        ("pay<nan", "pay 'nan' is not a number"),
        ('full_name=""', "full_name '' is empty; the column holds names"),
        ("pay>1e999", "pay '1e999' is not a number"),
        ("posted<yesterday", "posted 'yesterday' is not a time; the column holds times"),
        ("posted<1740000000000", "looks like milliseconds"),
        ("title<x", "'title' holds words .* < 'x' cannot be asked"),
        ("skills>=x", "'skills' holds words"),
        ("(pay>1", r"\) is expected after '\(pay>1', but it ends there"),
        ("pay>1)", r"'\)' stands there"),
        ("pay>1 &", "a column is expected after 'pay>1 &'"),
        ("place in ()", "a value is expected"),
        ("place in (a", r", or \) is expected"),
        ('place="Berlin', "a value is expected"),
        ("!" * 2000 + "pay>1", "stand in each other"),
        ("(" * 2000, "stand in each other"),
        ("place=\ud800", "place '.*' is not"),
        (7, "where=7 must be a text"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "backslashreplace").decode(),
)
def test_what_does_not_fit_is_named_with_what_is_near(where: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        matching(parse_where(where), TABLE, SCHEMA)


def test_what_is_near_among_many_values_is_found_at_once() -> None:
    letters = np.random.default_rng(0).choice(list("abcdefghijklmno"), (20_000, 50))
    titles = ["".join(line) for line in letters]
    meant = titles[11_000]
    began = time.process_time()
    with pytest.raises(BadInput, match=f"near it: '{meant}'"):
        matching(
            parse_where(f"title = {meant[:20]}{meant[21:]}x"), pa.table({"title": titles}), SCHEMA
        )
    assert time.process_time() - began < 1  # Of a turn, in which others wait.


def test_a_value_of_a_million_letters_is_refused_and_no_text_as_long_is_near() -> None:
    with pytest.raises(BadInput, match=r"no item has title 'xxx.*…[^;]*$"):
        matching(parse_where(f"title = {'x' * 1_000_000}"), TABLE, SCHEMA)
    prose = pa.table({"title": ["Nurse", "Nurses " * 40]})
    with pytest.raises(BadInput, match=r"near it: 'Nurse'\.$"):
        matching(parse_where("title = nurse"), prose, SCHEMA)


@given(
    st.lists(
        st.sampled_from(
            [
                *'=!()|&<," 1',
                "\\",
                "\x00",
                *["place", "pay", "skills", "in", "and", "or", "not", "é"],
                PLACES[0],
            ]
        ),
        max_size=12,
    ).map("".join)
    | st.text(max_size=30)
)
def test_whatever_is_written_is_answered_or_refused_by_us(text: str) -> None:
    with suppress(BadInput):
        assert matching(parse_where(text), TABLE, SCHEMA).shape == (len(ITEMS),)


PAID = Compare(column="pay", operator=">", values=(1,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Compare(column="pay", operator="like", values=(1,)), "operator='like'"),
        (lambda: Compare(column="pay", operator="=", values=()), "values"),
        (lambda: Compare(column="pay", operator="=", values=(1, 2)), "values"),
        (lambda: Compare(column="pay", operator="=", values="12"), "values"),
        (lambda: Joined(how="all", parts=()), "of some parts"),
        (lambda: Joined(how="all", parts=[PAID]), r"Joined.parts=\[Compare\(.* must be a tuple"),
        (lambda: Joined(how="all", parts=PAID), "Joined.parts=Compare.* must be a tuple"),
        (lambda: Joined(how="any", parts=(PAID, [PAID])), r"where=\[Compare\(.* must be a text"),
        (lambda: Negated(part=[PAID]), r"where=\[Compare\(.* must be a text"),
        (lambda: Compare(column=["pay"], operator="=", values=(1,)), r"Compare.column=\['pay'\]"),
        (lambda: Compare(column="pay", operator="=", values=([1],)), r"pay \[1\] must be a text"),
        (lambda: found(Compare(column="pay", operator="=", values=(None,))), "a text or a number"),
        (lambda: found(Negated(part="pay")), "where='pay' must be"),
    ],
)
def test_an_expression_that_is_none_is_refused(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()
