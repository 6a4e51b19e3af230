"""The language of rules: what it computes, and what it refuses."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.policy import Pairs, functions
from distill.policy.expressions import Place, parse_expression
from distill.policy.functions import ramp, share
from distill.policy.values import Lists, Texts, taken
from promptify.validation import BadInput

HERE = Place("policy.md", 12)
UNKNOWN = None
HEAD = "```table trades\nnursing: nurse, staff nurse\ncoding: programmer, C++\ncooking: chef\n```\n"
HEAD += "```table tools\ncare: triage, wounds\ncode: git\n```\n"


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u202f", ","])
def test_thousands_stand_apart_in_one_number(space):
    assert functions._number_in(f"from 900 to 1{space}250.50 kg") == 1250.5
    assert functions._number_in(f"12{space}345{space}678") == 12_345_678


def test_the_longest_phrase_is_found_wherever_it_begins():
    rows = {"a": ("senior software",), "b": ("software engineer lead",), "c": ("lead",)}
    table = functions.Table(name="levels", rows=rows, line=1)
    assert table.find("Senior Software Engineer Lead") == "b"
    assert table.find("Senior Software Engineer") == "a"
    assert table.find("Misleading software") is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # ann, bob and cy beside ward, code and cook, in this order.
        ("user.years", [1, 1, 1, 9, 9, 9, UNKNOWN, UNKNOWN, UNKNOWN]),
        ("item.pay / 10", [3, 9, 2] * 3),
        ("user.years - item.years", [0, -5, -1, 8, 3, 7, UNKNOWN, UNKNOWN, UNKNOWN]),
        ("1 / (item.years - 1)", [UNKNOWN, 0.2, 1] * 3),
        ("user.years >= item.years", [1, 0, 0, 1, 1, 1, 0, 0, 0]),
        ("not user.years >= item.years", [0, 1, 1, 0, 0, 0, 1, 1, 1]),
        ("1 < item.years <= 6", [0, 1, 1] * 3),
        ("user.place == item.place", [1, 0, 0, 0, 0, 0, 1, 0, 0]),
        # Nothing is the same as what is unknown, so `!=` holds.
        ("user.place != item.place", [0, 1, 1, 1, 1, 1, 0, 1, 1]),
        ("item.place in (user.place, 'Lyon, France')", [1, 1, 0, 0, 1, 0, 1, 1, 0]),
        ("item.place not in ('Lyon, France', 'x')", [1, 0, 1] * 3),
        ("after(user.place, ', ') == after(item.place, ', ')", [1, 0, 0, 0, 1, 0, 1, 0, 0]),
        ("0.3 if user.place == 'Cork, Ireland' else 0.15", [0.3] * 3 + [0.15] * 3 + [0.3] * 3),
        ("overlap(user.skills, item.skills)", [0.5, 0, UNKNOWN, 0, 0.5, UNKNOWN, 0, 0, UNKNOWN]),
        # Ann's charting and the SQL that is asked for stand in no table, and are not each other.
        ("overlap(find(tools, user.skills), find(tools, item.skills))",
         [1, 0, UNKNOWN, 0, 1, UNKNOWN, 0, 0, UNKNOWN]),
        ("overlap(find(trades, user.skills), find(trades, item.skills))", [UNKNOWN] * 9),
        ("'git' in item.skills", [0, 1, 0] * 3),
        ("count(history.title)", [1] * 3 + [2] * 3 + [0] * 3),
        ("mean(history.pay)", [30] * 3 + [55] * 3 + [UNKNOWN] * 3),
        ("share(history.title, item.title)", [1, 0, 0, 0, 0.5, 0.5] + [UNKNOWN] * 3),
        ("share(find(trades, history.title), find(trades, item.title))",
         [1, 0, 0, 0, 0.5, 0.5] + [UNKNOWN] * 3),
        ("find(trades, user.headline) == find(trades, item.title)", [1, 0, 0, 0, 1, 0, 0, 0, 0]),
        ("rank(trades, item.title)", [0, 1, 2] * 3),
        ("default(rank(trades, user.headline), 7)", [0] * 3 + [1] * 3 + [7] * 3),
        ("contains(user.headline, 'nurse', 'chef')", [1] * 3 + [0] * 6),
        ("contains(user.headline, 'nurs')", [0] * 9),
        ("known(user.headline)", [1] * 6 + [0] * 3),
        ("known(user.skills)", [1] * 6 + [0] * 3),
        ("max(user.years, item.years, 2)", [2, 6, 2, 9, 9, 9, UNKNOWN, UNKNOWN, UNKNOWN]),
        ("min(item.years, 2) + -abs(-1)", [0, 1, 1] * 3),
        ("number('a 12 b 7')", [7] * 9),
        ("number('$120,000')", [120_000] * 9),
        ("number('101,1023')", [1023] * 9),
        ("number('0,125')", [125] * 9),
        ("log(item.years - 1)", [UNKNOWN, math.log(5), 0] * 3),
        ("true and not false", [1] * 9),
        ("contains(query, 'remote')", [0] * 9),
    ],
)  # fmt: skip
def test_what_an_expression_is(number_of, text, wanted):
    found = number_of(text, head=HEAD)
    assert [UNKNOWN if math.isnan(one) else pytest.approx(one) for one in found] == wanted


def test_a_query_is_read_where_there_is_one(number_of):
    asked = Pairs.of([0, 1, 2], [0, 0, 0], [0, 1, -1])
    assert number_of("contains(query, 'ONLY remote')", pairs=asked) == [0.0, 1.0, 0.0]


@given(
    x=st.floats(-1e6, 1e6), low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6)
)  # fmt: skip
def test_a_ramp_stays_between_0_and_1_and_never_turns(x, low, high):
    column = np.array([x, x + 1.0])
    one, next_one = ramp(column, np.array([low]), np.array([high]))
    assert 0 <= one <= 1
    assert one <= next_one if low <= high else one >= next_one
    ends = ramp(np.array([low, high]), np.array([low]), np.array([high])).tolist()
    assert ends == ([1.0, 1.0] if low == high else [0.0, 1.0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an expression is expected"),
        ("user.years >", "cannot be read"),
        ("__import__('os').system('true')", "no function"),
        ("user.__class__.__mro__", "is no field"),
        ("(lambda: 1)()", "no function"),
        ("[x for x in user.skills]", "is not of a policy's language"),
        ("user.years ** 99", "is not of a policy's language"),
        ("user.years << 9", "is not of a policy's language"),
        ("user.skills[0]", "is not of a policy's language"),
        ("f'{user.years}'", "is not of a policy's language"),
        ("(years := 3)", "is not of a policy's language"),
        ("user.years is 3", "is not of a policy's language"),
        ("1j", "is not of a policy's language"),
        ("9e99", "is not of a policy's language"),
        ("b'x'", "is not of a policy's language"),
        ("None", "is not of a policy's language"),
        ("True", "is written true"),
        ("user", "stands alone"),
        ("ramp", "is a function; write ramp(x, low, high)"),
        ("ramp(1, 2)", "is written ramp(x, low, high)"),
        ("ramp(1, 2, high=3)", "is written ramp(x, low, high)"),
        ("max(*user.skills)", "is written max(a, b, …)"),
        ("eval('1')", "no function"),
        ("contains(user.headline, user.place)", "must be a text in quotes"),
        ("find('x', user.headline)", "takes a table first"),
        ("user.place in ()", "chooses among nothing"),
        ("1 + " * 600 + "1", "too long"),
        ("-" * 60 + "1", "stand in each other"),
        ("a." * 900 + "b", "cannot be read; say it in simpler parts"),
        ("user.years" + "[0]" * 500, "cannot be read"),
        ("(" * 300 + "1" + ")" * 300, "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_language_is_refused_with_its_line(text, said):
    with pytest.raises(BadInput, match=r"policy\.md line 12: ") as refused:
        parse_expression(text, HERE)
    assert said in str(refused.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_and_never_anything_else(text):
    with contextlib.suppress(BadInput):
        assert parse_expression(text, HERE).text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user.yers", "people have no field 'yers'; did you mean years?"),
        ("item.title_", "have no field 'title_'; did you mean title?"),
        ("user.called", "by which nobody is judged"),
        ("user.place < item.place", "texts have no order; use rank"),
        ("user.place + 1", "a number is expected, and text stands there"),
        ("user.years and true", "true or false is expected, and a number stands there"),
        ("user.skills == 'git'", "a list of texts is compared with text"),
        ("user.place == 3", "text is compared with a number"),
        ("user.place if true else 1", "one side gives text and the other a number"),
        ("'x' in user.place", "behind `in` stands text"),
        ("3 in user.skills", "a number is looked for in a list of texts"),
        ("mean(user.skills)", "a list of numbers is expected"),
        ("overlap(user.skills, item.title)", "a list is expected, and text stands there"),
        ("contains(user.years, 'x')", "a text is expected, and a number stands there"),
        ("user.skills", "a number is expected, and a list of texts stands there"),
    ],
)
def test_what_does_not_fit_the_tables_is_refused_with_its_line(number_of, text, said):
    with pytest.raises(BadInput, match=r"policy.md line 8: ") as refused:
        number_of(text)
    assert said in str(refused.value)


def test_fields_of_an_expression_are_known_without_data():
    found = parse_expression("ramp(user.years, 1, item.years) + count(history.pay)", HERE)
    assert found.fields == (("user", "years"), ("item", "years"), ("history", "pay"))
    assert parse_expression("contains(query, 'x') and fast", HERE).names == ("fast",)


@given(st.lists(st.lists(st.integers(-1, 3), max_size=6), min_size=1, max_size=5))
def test_a_tallied_list_has_the_same_shares(rows):
    words = ("a", "b", "c", "d")
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    codes = np.array([code for row in rows for code in row], np.int32)
    whole = Lists(offsets, Texts(codes, words))
    short = whole.tallied()
    assert short.lengths.tolist() == [len(set(row)) for row in rows]
    for word in words:
        asked = Texts(np.zeros(1, np.int32), (word,))
        np.testing.assert_array_equal(share(short, asked), share(whole, asked))
    twice = taken(short, np.array([len(rows) - 1, 0]))
    np.testing.assert_array_equal(share(twice, asked), share(whole, asked)[[-1, 0]])
