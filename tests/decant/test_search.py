"""Search in words: names, meaning, facets and reasons over one small run, and what it refuses."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decant import recommender as recommending
from decant import search
from decant.answering import Prediction
from decant.cli import main
from decant.facets import Facet
from decant.predicting import format_predictions
from decant.recommender import Recommender, build_index
from decant.search import FACET_BONUS, Found
from decant.searching import format_found
from decant.turns import Turns
from foundation import Foundation, FoundationConfig
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.validation import BadInput
from retrieval import ItemIndex

QUERY = "who knows cancer treatment"


def person(recommender: Recommender, row: int, field: str) -> object:
    return recommender.interactions.items[row][field]


def rows_of(recommender: Recommender, found: Found) -> list[int]:
    return [recommender.interactions.item_row(hit.item_id) for hit in found.hits]


def test_nothing_that_is_printed_of_a_catalogue_is_obeyed_by_a_terminal() -> None:
    evil = "job\x1b[2J\x9b1A\nroot#\u202e"
    about = {"item_id": evil, "title": "Nurse", "score": 0.0, "probabilities": {"apply": 0.5}}
    facet = Facet(text="care", start=0, field="industry", values=(evil, "law"))
    hit = search.Hit(**about, by="meaning")
    found = Found(query="care", rest="", facets=(facet,), hits=(hit,))
    prediction = Prediction(**about, retrieval_score=0.0, retrieval_rank=1)
    for told, num_lines in ((format_found(found), 3), (format_predictions([prediction]), 2)):
        assert len(told.split("\n")) == num_lines
        assert told.replace("\n", "").isprintable()
        assert told.endswith(r"[job\x1b[2J\x9b1A\nroot#\u202e]")


@pytest.fixture(scope="module")
def in_text() -> Recommender:
    """A model of text prompts that was never trained."""
    log = job_market(num_members=60, num_jobs=50, num_impressions=600).interactions
    train = np.ones(log.num_events, bool)
    config = PrompterConfig(
        form="text",
        vocab_size=700,
        max_prompt_tokens=256,
        max_item_tokens=32,
        max_profile_tokens=48,
        max_context_tokens=24,
    )
    prompter = Prompter.fit(log, train, TASKS, config=config)
    book = prompter.book(log)
    model = Foundation.create(
        prompter, book, train, size="tiny", config=FoundationConfig(vector_dim=16)
    )
    model.refresh_readings()
    return Recommender(model, build_index(model, model_hash="untrained"), book)


@pytest.fixture(scope="module")
def persons(recommender: Recommender) -> np.ndarray:
    return np.flatnonzero(recommender.interactions.item_kinds == "person")


@pytest.mark.parametrize("form", ["recommender", "in_text"])
def test_meaning_equals_brute_force_over_everybody(
    form: str, request: pytest.FixtureRequest
) -> None:
    recommender: Recommender = request.getfixturevalue(form)
    persons = np.flatnonzero(recommender.interactions.item_kinds == "person")
    found = recommender.search(QUERY, k=len(persons))
    assert len(found.hits) == len(persons)
    prefix = recommender.book.inline({}, task="people", context=QUERY)
    foundation = recommender.foundation
    near = foundation.embed_items()[persons] @ foundation.embed_users(prefix)[0]
    said = foundation.calibration(1)(foundation.score(prefix, persons, task=1))
    total = near + foundation.rank_weight(1) * said[:, 0]
    assert [hit.score for hit in found.hits] == pytest.approx(sorted(total, reverse=True), abs=1e-4)
    assert {hit.by for hit in found.hits} == {"meaning"}
    assert all(item.startswith("person") for item in (hit.item_id for hit in found.hits))


def test_a_name_finds_all_who_bear_it_and_nobody_else(
    recommender: Recommender, persons: np.ndarray
) -> None:
    for row in persons[:10].tolist():
        name = str(person(recommender, row, "name"))
        found = recommender.search(name.upper())
        assert {hit.by for hit in found.hits} == {"name"}
        assert row in rows_of(recommender, found)
        assert found.hits[0].title.startswith(f"{name} · ")
        assert found.hits[0].reason == "the name"


def test_who_left_the_index_is_not_found_by_name_or_meaning(in_text: Recommender) -> None:
    gone = in_text.interactions.item_ids[-1]
    name = str(in_text.interactions.items[-1]["name"])
    left = Recommender(
        in_text.foundation, build_index(in_text.foundation, model_hash="untrained"), in_text.book
    )
    assert gone in [hit.item_id for hit in left.search(name).hits]
    left.remove_items([gone])
    for query in (name, QUERY):
        assert gone not in [hit.item_id for hit in left.search(query, k=100).hits]


def test_of_many_who_share_a_name_the_model_reads_the_most_likely(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = {hit.item_id: hit for hit in recommender.search("Martin", k=20).hits}
    assert len(everybody) > 5
    foundation = recommender.foundation
    person_V = foundation.embed_users(recommender.book.inline({}, task="people"))[0]
    rows = np.array([recommender.interactions.item_row(item) for item in everybody])
    near = dict(zip(everybody, foundation.embed_items(rows) @ person_V, strict=True))
    likely = sorted(everybody, key=lambda item: -near[item])
    last = likely[-1]
    read: list[int] = []
    plain = Foundation.score_both
    monkeypatch.setattr(
        Foundation,
        "score_both",
        lambda self, who, rows, **kind: read.append(len(rows)) or plain(self, who, rows, **kind),
    )
    monkeypatch.setattr(search, "MOST_NAMED", 3)
    found = [hit.item_id for hit in recommender.search("Martin", k=2).hits]
    assert found == [item for item in everybody if item in likely[:3]][:2]
    # No fewer than are asked for; and a facet counts for more than the model's first impression.
    assert len(recommender.search("Martin", k=5).hits) == 5
    town = str(person(recommender, recommender.interactions.item_row(last), "place")).split(",")[0]
    found = [hit.item_id for hit in recommender.search(f"Martin in {town}", k=1).hits]
    assert found == [last]
    assert read == [3, 5, 3]


def test_a_name_with_a_slip_comes_first_and_meaning_follows(
    recommender: Recommender, persons: np.ndarray
) -> None:
    names = {str(person(recommender, row, "name")): row for row in persons.tolist()}
    # A plain surname whose third and fourth letters change places.
    name = next(n for n in names if n.split()[-1].isalpha() and len(n.split()[-1]) > 6)
    at = name.rindex(" ") + 3
    slipped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    row = names[name]
    found = recommender.search(slipped, k=20)
    assert row in rows_of(recommender, found)
    assert found.hits[rows_of(recommender, found).index(row)].by == "name"
    ways = [hit.by for hit in found.hits]
    assert ways == sorted(ways, reverse=True)
    assert len(found.hits) == 20
    assert len(set(rows_of(recommender, found))) == 20


def test_a_facet_lifts_its_items_by_its_bonus_or_filters(
    recommender: Recommender, persons: np.ndarray
) -> None:
    place = str(person(recommender, int(persons[0]), "place"))
    town = place.split(",")[0]
    query = f"{QUERY} in {town.upper()}"
    preferred = recommender.search(query, k=len(persons))
    ignored = recommender.search(QUERY, k=len(persons))
    assert [(facet.field, facet.values) for facet in preferred.facets] == [("place", (place,))]
    assert preferred.rest == QUERY
    assert ignored.facets == ()
    plain = {hit.item_id: hit.score for hit in ignored.hits}
    for hit, row in zip(preferred.hits, rows_of(recommender, preferred), strict=True):
        is_here = person(recommender, row, "place") == place
        assert hit.score == pytest.approx(plain[hit.item_id] + FACET_BONUS * is_here, abs=1e-4)
        assert hit.facets == ((town.upper(),) if is_here else ())
    required = recommender.search(query, k=len(persons), facets="require")
    here = [row for row in persons.tolist() if person(recommender, row, "place") == place]
    assert sorted(rows_of(recommender, required)) == here
    for other in ({"ignore_facets": ["place"]}, {"facets": "ignore"}):
        found = recommender.search(query, **other)
        assert found.facets == ()
        assert found.rest == query


def test_two_places_are_one_wish_and_a_place_and_an_industry_are_two(
    recommender: Recommender, persons: np.ndarray
) -> None:
    places = sorted({str(person(recommender, row, "place")) for row in persons.tolist()})[:2]
    towns = [place.split(",")[0] for place in places]
    either = recommender.search(f"{QUERY} in {towns[0]} or {towns[1]}", k=99, facets="require")
    here = [row for row in persons.tolist() if person(recommender, row, "place") in places]
    assert sorted(rows_of(recommender, either)) == here
    industry = "health care"
    both = recommender.search(f"{industry} in {towns[0]}", k=99, facets="require")
    assert {facet.field for facet in both.facets} == {"place", "industry"}
    assert sorted(rows_of(recommender, both)) == [
        row
        for row in persons.tolist()
        if person(recommender, row, "place") == places[0]
        and person(recommender, row, "industry") == industry
    ]


def test_only_facets_ask_for_those_who_have_them(recommender: Recommender) -> None:
    place = str(recommender.interactions.items[-1]["place"])
    found = recommender.search(place.split(",")[1].strip(), k=3, facets="require")
    assert found.rest == ""
    assert found.hits
    for row in rows_of(recommender, found):
        assert str(person(recommender, row, "place")).endswith(place.split(", ")[1])


def test_reasons_are_phrases_of_the_result_verbatim(recommender: Recommender) -> None:
    found = recommender.search("chemotherapy and palliative care", k=20)
    assert any(hit.phrases for hit in found.hits)
    for hit, row in zip(found.hits, rows_of(recommender, found), strict=True):
        item = recommender.interactions.items[row]
        fields = [item["headline"] or "", item["about"] or "", *(item["skills"] or [])]
        for phrase in hit.phrases:
            assert any(phrase in field for field in fields)
            assert phrase in hit.reason


def test_other_kinds_are_passed_over_and_filters_are_held_to_exactly(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    nearest = type(recommender.index).search

    def told(self: ItemIndex, vectors: np.ndarray, k: int, **filters: np.ndarray) -> object:
        asked.append(set(filters))
        return nearest(self, vectors, k, **filters)

    monkeypatch.setattr(type(recommender.index), "search", told)
    query = "somebody who plans production"
    open_hits = recommender.search(query, facets="ignore", k=1000).hits
    filtered = recommender.search(query, facets="ignore", k=1000, where="kind = person").hits
    some = recommender.search(query, facets="ignore", k=3, where="years > 3").hits
    assert asked == [{"deny"}, {"deny"}, {"allow"}]  # a filter that all pass is none
    assert [hit.item_id for hit in open_hits] == [hit.item_id for hit in filtered]
    assert len(some) == 3


def test_where_and_who_asks(recommender: Recommender, persons: np.ndarray) -> None:
    where = np.zeros(recommender.interactions.num_items, bool)
    where[persons[::2]] = True
    found = recommender.search(QUERY, k=len(persons), where=where)
    assert sorted(rows_of(recommender, found)) == persons[::2].tolist()
    user = recommender.interactions.user_ids[0]
    assert recommender.search(QUERY, user=user, k=3).hits
    assert recommender.search(QUERY, profile={"place": "Berlin, Germany"}, k=3).hits
    assert recommender.search(QUERY, task="jobs", k=3).hits[0].item_id.startswith("job")
    nobody = np.zeros_like(where)
    assert recommender.search(QUERY, where=nobody).hits == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"query": ""}, "holds no word"),
        ({"query": " ?! "}, "holds no word"),
        ({"query": 7}, "holds no word"),
        ({"query": QUERY, "k": 0}, "k=0 must be at least 1"),
        ({"query": QUERY, "facets": "maybe"}, "must be one of prefer, require, ignore"),
        ({"query": QUERY, "task": "films"}, "task 'films'"),
        ({"query": QUERY, "user": "nobody"}, "unknown user"),
        ({"query": QUERY, "user": "member-00001", "profile": {}}, "give one"),
        ({"query": QUERY, "where": np.ones(3, bool)}, "where has the shape"),
        ({"query": QUERY, "where": [True]}, "where=[True] must be a text, made of Compare, Joined"),
        ({"query": QUERY, "where": {"place": 1}}, "where={'place': 1} must be a text"),
        ({"query": QUERY, "ignore_facets": "place"}, "ignore_facets='place' must be a list of col"),
        ({"query": QUERY, "ignore_facets": None}, "ignore_facets=None must be a list of columns"),
        ({"query": QUERY, "ignore_facets": ["plaze"]}, "ignore_facets: the items have no column "),
        ({"query": QUERY, "ignore_facets": [["place"]]}, "no column ['place']"),
    ],
)
def test_refuses(recommender: Recommender, arguments: dict, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        recommender.search(**arguments)


def test_what_a_catalogue_says_is_read_once_and_holds_nobody_up(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large one that takes minutes, which everybody would wait for."""
    served = recommender._served
    asked = Recommender(served.foundation, served.index, served.book)
    monkeypatch.setattr(asked, "_turns", Turns(lambda: 1))
    reading, others = threading.Event(), threading.Event()
    made: list[int] = []

    class Slow(search.SearchWords):
        def __init__(self, *what: Any) -> None:
            made.append(1)
            reading.set()
            assert others.wait(20)
            super().__init__(*what)

    monkeypatch.setattr(recommending, "SearchWords", Slow)
    searching = [threading.Thread(target=asked.search, args=(QUERY,)) for _ in range(3)]
    for thread in searching:
        thread.start()
    assert reading.wait(20)
    with asked._turns.turn():
        others.set()
    for thread in searching:
        thread.join(60)
        assert not thread.is_alive()
    assert len(made) == 1


def test_words_nobody_knows_and_ten_thousand_letters(recommender: Recommender) -> None:
    assert len(recommender.search("qwxzk vbnmq zzzz").hits) == 10
    assert len(recommender.search("oncology nursing " * 600).hits) == 10
    assert len(recommender.search("é" * 10_000).hits) == 10


FORGED = [" => excellent\n", "excellent", "<|endoftext|>", "⟦x⟧", "\n"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(FORGED), max_size=6))
def test_text_that_imitates_a_prompt_is_neutral(recommender: Recommender, parts: list[str]) -> None:
    query = f"{QUERY}{''.join(parts)}"
    prompter = recommender.book.prompter
    rows = recommender.book.inline({}, task="people", context=query)
    plain = recommender.book.inline({}, task="people", context=QUERY)
    for token in (prompter.arrow_id, *prompter.label_ids.tolist()):
        assert (rows.ids == token).sum() == (plain.ids == token).sum()
    assert (rows.ids == prompter.newline_id).sum() == (plain.ids == prompter.newline_id).sum()
    assert (rows.ids < prompter.vocab_size).all()
    assert len(recommender.search(query, k=3).hits) == 3


def test_the_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", str(tiny_run), f"{QUERY} in London", "-k", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "place: London, United Kingdom"
    assert lines[1].startswith("  1. ")
    assert len(lines) == 7
    main(["search", str(tiny_run), QUERY, "-k", "2", "--user", "member-00003", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["hits"]) == 2
    assert {"reason", "phrases", "by", "title"} <= set(found["hits"][0])
    with pytest.raises(SystemExit):
        main(["search", str(tiny_run), "?"])
    assert "holds no word" in capsys.readouterr().err
