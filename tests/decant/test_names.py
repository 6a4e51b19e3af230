"""Names are found whatever the case, the accents and the order, and slips find who was meant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decant.facets import folded_words
from decant.names import MAX_WORDS, NameIndex
from promptify.sources.job_market import job_market
from promptify.sources.job_market import vocabulary as words

NAMES = (
    "Anna Müller",
    "Anna Müller",
    "Anna Müller-Kowalski",
    "Łukasz Wójcik",
    "Seán O'Brien",
    "José Fernández",
    "María José Ibáñez",
    "Hugo Brown",
)
INDEX = NameIndex(np.arange(10, 10 + len(NAMES)), [folded_words(name) for name in NAMES])


def found(query: str, **known: frozenset[str]) -> list[str]:
    return [NAMES[row - 10] for row in INDEX.find(query, **known).rows]


def test_all_who_bear_a_name_come_before_those_who_bear_more() -> None:
    assert found("Anna Müller") == ["Anna Müller", "Anna Müller", "Anna Müller-Kowalski"]
    assert INDEX.find("Anna Müller").closeness[:2].tolist() == [1.0, 1.0]


@given(st.sampled_from(sorted(set(NAMES))), st.randoms(), st.sampled_from([str.upper, str.lower]))
def test_case_accents_and_order_do_not_matter(name: str, rng, case) -> None:
    parts = list(folded_words(name)) if rng.random() < 0.5 else name.replace("-", " ").split()
    rng.shuffle(parts)
    match = INDEX.find(case(" ".join(parts)))
    assert match.is_exact
    assert name in [NAMES[row - 10] for row in match.rows[match.closeness == 1.0]]


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("Ana Muller", "Anna Müller"),
        ("lukas wojcik", "Łukasz Wójcik"),
        ("Jose Fernandes", "José Fernández"),
        ("Sean Obrien", "Seán O'Brien"),
        ("Sean Osborne", None),
        ("Hugo Borwn", "Hugo Brown"),
    ],
)
def test_near_names(slip: str, meant: str | None) -> None:
    match = INDEX.find(slip)
    assert (found(slip)[:1] or [None]) == [meant]
    assert not match.is_exact


def test_a_query_of_which_a_word_is_no_name_names_nobody() -> None:
    assert found("Anna who knows cancer treatment") == []
    assert found("who knows") == []
    assert found("") == []
    assert found(" ".join(["Anna"] * (MAX_WORDS + 1))) == []
    assert found("Anna Brown") == []


def test_what_the_catalogue_means_otherwise_is_no_slip_and_no_name_alone() -> None:
    known = frozenset({"brown", "bakery"})
    assert found("brown", known=known) == []
    assert found("Hugo Brown", known=known) == ["Hugo Brown"]
    assert NameIndex(np.array([0]), [("baker",)]).find("bakery", known=known).rows.tolist() == []


def test_the_market_has_shared_surnames_equal_names_accents_and_hyphens() -> None:
    log = job_market(num_members=2000, num_jobs=60, num_impressions=2500).interactions
    names = [name for name in log.items.data.column("name").to_pylist() if name]
    assert len(names) == 800
    assert len(set(names)) < len(names) < 1.4 * len(set(names))
    assert any("-" in name for name in names)
    assert any(not name.isascii() for name in names)
    index = NameIndex.of(log, kind="person")
    for name in sorted(set(names))[::40]:
        bearers = {row for row in range(len(names)) if names[row] == name}
        match = index.find(name)
        assert {int(row) - 60 for row in match.rows[match.closeness == 1.0]} >= bearers
    assert all(len(word) > 1 for word in (*words.FIRST_NAMES, *words.LAST_NAMES))


def test_a_kind_without_names_has_an_empty_index() -> None:
    log = job_market(num_members=60, num_jobs=50, num_impressions=300).interactions
    index = NameIndex.of(log, kind="job")
    assert len(index) == 0
    assert index.find("Anna").rows.tolist() == []
