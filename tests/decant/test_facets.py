"""A query's facets are what stands in it as items have it, whatever the case, accents and order."""

import time
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decant.facets import Facets, fold, folded_words
from promptify.interactions import Interactions
from promptify.schema import Field, Schema

SCHEMA = Schema(
    user=(),
    items={
        "person": (
            Field(name="headline", kind="text"),
            Field(name="skills", kind="list"),
            Field(name="place", kind="category"),
            Field(name="industry", kind="category"),
            Field(name="company", kind="text"),
        )
    },
)
PLACES = ("Köln, Germany", "Berlin, Germany", "New York, USA", "York, England", "Łódź, Poland")
INDUSTRIES = ("health care", "software", "media", "media", "health care")


@pytest.fixture(scope="module")
def log() -> Interactions:
    rows = range(20)
    return Interactions.from_tables(
        users=pa.table({"user_id": ["u"]}),
        items=pa.table(
            {
                "item_id": [f"i{row}" for row in rows],
                "headline": [f"Software Engineer number {row}" for row in rows],
                "skills": [["medication rounds", "home care"] for _ in rows],
                "place": [PLACES[row % 5] for row in rows],
                "industry": [INDUSTRIES[row % 5] for row in rows],
                "company": ["Alder Bank" if row < 10 else "Fern Bank" for row in rows],
            }
        ),
        events=pa.table({"user_id": ["u"], "item_id": ["i0"], "action": ["a"], "timestamp": [0]}),
        schema=SCHEMA,
        actions=["a"],
    )


@pytest.fixture(scope="module")
def facets(log: Interactions) -> Facets:
    return Facets.of(log, kind="person")


def told(facets: Facets, query: str) -> tuple[str, list[tuple[str, tuple[str, ...]]]]:
    read = facets.read(query)
    return read.rest, [(facet.field, facet.values) for facet in read.facets]


def test_the_longest_match_on_borders_of_words(facets: Facets) -> None:
    assert told(facets, "nurses in New York") == ("nurses", [("place", ("New York, USA",))])
    assert told(facets, "nurses in York") == ("nurses", [("place", ("York, England",))])
    assert told(facets, "Yorkshire mediation") == ("Yorkshire mediation", [])


def test_a_part_stands_for_all_that_have_it_and_a_shared_text_is_a_facet(facets: Facets) -> None:
    both = ("Berlin, Germany", "Köln, Germany")
    assert told(facets, "anybody, from Germany?") == ("anybody?", [("place", both)])
    expert = "an expert on wounds, with many years behind them"
    assert told(facets, expert.replace(",", " in Berlin,"))[0] == expert
    assert told(facets, "clerk at alder bank")[1] == [("company", ("Alder Bank",))]
    assert facets.mask(facets.read("germany").facets[0]).sum() == 8


def test_a_query_of_marks_without_end_is_read_in_no_time(facets: Facets) -> None:
    # A hundred thousand marks on one letter take many seconds to put in order.
    began = time.process_time()
    facets.read("nurse in a" + "\u0315\u0300" * 50_000)
    assert time.process_time() - began < 3


def test_what_items_call_their_work_is_a_subject(facets: Facets) -> None:
    assert told(facets, "software in the media") == ("software", [("industry", ("media",))])
    assert told(facets, "health care") == ("", [("industry", ("health care",))])


@given(
    st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True),
    st.randoms(use_true_random=False),
    st.sampled_from(["NFC", "NFD", "plain"]),
)
def test_any_case_accents_and_order(facets: Facets, places, rng, form) -> None:
    towns = [place.split(",")[0] for place in places]
    plain = form == "plain"
    written = [fold(town) if plain else unicodedata.normalize(form, town) for town in towns]
    written = ["".join(rng.choice([c.upper(), c.lower()]) for c in town) for town in written]
    read = facets.read("who knows wounds in " + " or ".join(written))
    assert [facet.values for facet in read.facets] == [(place,) for place in places]
    assert not set(folded_words(read.rest)) & {w for town in towns for w in folded_words(town)}
    assert read.rest.startswith("who knows wounds")


@given(st.text(max_size=200))
def test_any_text_is_read_and_what_is_kept_is_of_it(facets: Facets, query: str) -> None:
    read = facets.read(query)
    left = list(folded_words(query))
    for word in folded_words(read.rest):
        assert word in left
