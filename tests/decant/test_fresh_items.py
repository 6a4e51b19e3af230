"""Items that come and go while a recommender serves: found by their text, kept on disk or not."""

import gc
import json
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus.exceptions import MilvusException

import decant.search
import decant.served
from decant import Recommender
from decant.answering import Cascade, Prediction
from decant.catalogue import SavedCatalogue
from decant.cli import main
from decant.layout import RunLayout
from decant.pipeline import index_again, index_manifest
from decant.recommender import build_index
from decant.served import Served
from foundation import Foundation
from foundation.predictions import log_positive
from promptify.interactions import Interactions
from promptify.prompter import HistoryEvent
from promptify.validation import BadInput
from promptify.whole import write_whole
from promptify.words import Words
from retrieval import IndexMismatch, ItemIndex
from retrieval import folder as folders
from retrieval.milvus import MilvusIndex, searching

PROFILE = {"headline": "Nurse in oncology", "place": "Berlin, Germany"}
HISTORY = [
    {"item": "job-00001", "action": "apply"},
    {"item": "job-00002", "action": "dismiss"},
]
NURSE = {
    "item_id": "job-nurse",
    "kind": "job",
    "title": "Nurse in oncology",
    "place": "Berlin, Germany",
    "skills": ["nursing", "oncology"],
    "pay": 4000,
    "posted": "2025-06-01",
}
ADVISER = {"item_id": "person-adviser", "kind": "person", "headline": "Tax adviser"}


def ids(predictions: list[Prediction]) -> list[str]:
    return [one.item_id for one in predictions]


def jobs_of(recommender: Recommender, **limits: Any) -> list[str]:
    return ids(recommender.predict_next_actions(PROFILE, HISTORY, k=10_000, **limits))


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def fresh(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture
def in_database(fresh: Recommender, tmp_path: Path) -> Iterator[Recommender]:
    """The same, with its vectors in a Milvus database."""
    with MilvusIndex.build(
        fresh.foundation.embed_items(),
        fresh.foundation.item_ids,
        model_hash=fresh.index.manifest.model_hash,
        uri=str(tmp_path / "items.db"),
        name="items",
        kind="FLAT",
    ) as index:
        yield Recommender(fresh.foundation, index, fresh.book)


@pytest.fixture(scope="module")
def fuzzed(tiny_run: Path) -> Recommender:
    """For all examples of a test; others share `recommender`, whose catalogue must stay."""
    return Recommender.load(tiny_run)


def test_added_found_removed_not_found_and_added_again(fresh: Recommender) -> None:
    before = fresh.predict_next_actions(PROFILE, HISTORY, k=10_000)
    fresh.add_items([NURSE, ADVISER])
    found = fresh.predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert set(ids(found)) == {*ids(before), "job-nurse"}
    [nurse] = [one for one in found if one.item_id == "job-nurse"]
    assert nurse.title.startswith("Nurse in oncology · ")
    assert sum(nurse.probabilities.values()) == pytest.approx(1, abs=1e-5)
    others = {one.item_id: one for one in found}
    for one in before:
        assert others[one.item_id].score == pytest.approx(one.score, abs=1e-4)
    people = fresh.predict_next_actions(PROFILE, task="people", k=10_000)
    assert "person-adviser" in ids(people)

    fresh.remove_items(["job-nurse", "job-00009"])
    assert set(jobs_of(fresh)) == set(ids(before)) - {"job-00009"}
    gone = ["job-nurse", "job-00009"]
    assert jobs_of(fresh, candidates=[*gone, "job-00003"]) == ["job-00003"]
    assert jobs_of(fresh, allow=[*gone, "job-00003"]) == ["job-00003"]

    fresh.add_items([{**NURSE, "title": "Welder"}, {**NURSE, "item_id": "job-00009"}])
    again = {one.item_id: one for one in fresh.predict_next_actions(PROFILE, HISTORY, k=10_000)}
    assert again["job-nurse"].title.startswith("Welder")
    assert again["job-nurse"].score != pytest.approx(nurse.score, abs=1e-6)
    assert again["job-00009"].title == nurse.title


@pytest.mark.parametrize("where_it_lies", ["fresh", "in_database"])
def test_an_item_told_anew_leaves_every_other_its_place(
    where_it_lies: str, request: pytest.FixtureRequest
) -> None:
    served: Recommender = request.getfixturevalue(where_it_lies)
    before = set(jobs_of(served))
    served.remove_items(["job-00003"])
    without = served._served
    served.add_items([{**NURSE, "item_id": "job-00003"}])
    served.add_items([{**NURSE, "item_id": "job-new", "title": "Welder"}])
    assert jobs_of(served, allow=["job-new"]) == ["job-new"]
    assert jobs_of(served, where="item_id = job-new") == ["job-new"]
    everything = served.predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert sorted(ids(everything)) == sorted({*before, "job-new"})
    given_ = served.predict_next_actions(PROFILE, HISTORY, candidates=ids(everything), k=10_000)
    assert {one.item_id: one.score for one in everything} == pytest.approx(
        {one.item_id: one.score for one in given_}, abs=1e-4
    )
    # Who began while it was gone does not find it, and nobody comes back short for that.
    vector_V = served.foundation.embed_users(served.book.inline(PROFILE, task="jobs"))[0]
    rows_C, _ = without.nearest(vector_V, without.interactions.num_items)
    held_I = without.is_held_I
    assert sorted(rows_C.tolist()) == np.flatnonzero(held_I).tolist()
    assert not held_I[without.interactions.item_row("job-00003")]


def test_what_another_process_adds_to_a_database_moves_nothing(
    in_database: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few items are compared with: then nothing else is met.
    monkeypatch.setattr(searching, "MOST_COMPARED", 0)
    before = set(jobs_of(in_database))
    stranger = in_database.foundation.embed_items()[:1]
    with MilvusIndex.load(uri=str(tmp_path / "items.db"), name="items") as other:
        other.add(stranger, ["a stranger"])
    # A search meets it, with a filter and without, and leaves it.
    assert set(jobs_of(in_database)) == before
    now = in_database._served
    vector_V = in_database.foundation.embed_users(now.book.inline(PROFILE, task="jobs"))[0]
    rows_C, _ = now.nearest(vector_V, now.interactions.num_items)
    assert len(rows_C) == now.interactions.num_items
    assert jobs_of(in_database, where="item_id = job-00003") == ["job-00003"]
    in_database.add_items([NURSE])
    assert jobs_of(in_database, allow=["job-nurse"]) == ["job-nurse"]
    assert set(jobs_of(in_database)) == {*before, "job-nurse"}


def test_an_add_whose_answer_was_lost_is_made_again(
    in_database: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(jobs_of(in_database))
    client = in_database.index._collection.client
    upsert = client.upsert

    def lost(*arguments: Any) -> None:
        upsert(*arguments)
        raise MilvusException(message="deadline exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(client, "upsert", lost)
        with pytest.raises(OSError, match="deadline exceeded"):
            in_database.add_items([NURSE])
    assert "job-nurse" in in_database.index
    assert set(jobs_of(in_database)) == before
    in_database.add_items([NURSE])
    assert set(jobs_of(in_database)) == {*before, "job-nurse"}
    with pytest.raises(BadInput, match="'job-nurse' is in the catalogue already"):
        in_database.add_items([NURSE])
    in_database.remove_items(["job-nurse"])
    assert set(jobs_of(in_database)) == before


def test_what_a_database_holds_beyond_the_catalogue_is_passed_over_and_said(
    fresh: Recommender,
    in_database: Recommender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Few items are compared with: then nothing else is met.
    monkeypatch.setattr(searching, "MOST_COMPARED", 0)
    before = set(jobs_of(in_database))
    in_database.add_items([NURSE, ADVISER])
    # As when the process starts again.
    with MilvusIndex.load(uri=str(tmp_path / "items.db"), name="items") as index:
        again = Recommender(fresh.foundation, index, fresh.book)
        assert "the index holds 2 items that the catalogue lacks" in caplog.text
        assert set(jobs_of(again)) == before
        assert set(jobs_of(again, where="kind = job")) == before
        assert set(jobs_of(again, allow=sorted(before))) == before
        vector_V = again.foundation.embed_users(again.book.inline(PROFILE, task="jobs"))[0]
        rows_C, _ = again._served.nearest(vector_V, 10_000)
        assert sorted(rows_C.tolist()) == list(range(again.interactions.num_items))
        again.add_items([NURSE])
        assert set(jobs_of(again)) == {*before, "job-nurse"}
    stranger = fresh.index.vectors_at([0])
    fresh.index.add(stranger, ["a stranger"])
    with pytest.raises(BadInput, match=r"holds 'a stranger'.*which the catalogue lacks"):
        Recommender(fresh.foundation, fresh.index, fresh.book)


def test_a_new_item_is_what_its_text_says_wherever_it_stands(fresh: Recommender) -> None:
    fields = {name: value for name, value in NURSE.items() if name not in ("item_id", "kind")}
    fields["posted"] = 1_748_736_000
    told = {"item": fields, "action": "apply"}
    by_text = fresh.predict_next_actions(PROFILE, [told], candidates=["job-00003"])
    fresh.add_items([NURSE])
    named = {"item": "job-nurse", "action": "apply"}
    by_id = fresh.predict_next_actions(PROFILE, [named], candidates=["job-00003"])
    assert by_id[0].score == pytest.approx(by_text[0].score, abs=1e-4)
    # As candidate, allowed alone, and among all: the same.
    [candidate] = fresh.predict_next_actions(PROFILE, HISTORY, candidates=["job-nurse"])
    [allowed] = fresh.predict_next_actions(PROFILE, HISTORY, allow=["job-nurse"])
    assert candidate.score == pytest.approx(allowed.score, abs=1e-4)
    assert "job-nurse" not in jobs_of(fresh, deny=["job-nurse"])
    seen = fresh.predict_next_actions(PROFILE, [named], k=10_000)
    assert "job-nurse" not in ids(seen)
    assert jobs_of(fresh, where="item_id = job-nurse") == ["job-nurse"]


def test_its_vector_is_that_of_its_text_and_no_other_item_is_read(
    fresh: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = Foundation.read_pieces
    monkeypatch.setattr(
        Foundation,
        "read_pieces",
        lambda self, pieces, chosen: read.append(len(chosen)) or plain(self, pieces, chosen),
    )
    fresh.add_items([NURSE])
    assert sum(read) == 1
    row = fresh.interactions.item_row("job-nurse")
    alone = fresh.foundation.embed_items(fresh.book.item_pieces.take(np.array([row])))
    stored = fresh.index.vectors_at(np.array([fresh.index.num_rows - 1]))
    np.testing.assert_allclose(stored, alone, atol=1e-5)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items were embedded, call by call."""
    plain = Foundation.embed_items
    counts: list[int] = []

    def embedding(self: Foundation, items: Any = None, **kind: Any) -> Any:
        vectors = plain(self, items, **kind)
        counts.append(len(vectors))
        return vectors

    monkeypatch.setattr(Foundation, "embed_items", embedding)
    return counts


def test_candidates_are_not_embedded_again_when_an_item_goes(
    in_database: Recommender, embedded: list[int]
) -> None:
    wanted = ["job-00003", "job-00004"]
    before = in_database.predict_next_actions(PROFILE, HISTORY, candidates=wanted)
    assert embedded == [in_database.interactions.num_items]
    in_database.remove_items(["job-00009"])
    assert in_database.predict_next_actions(PROFILE, HISTORY, candidates=wanted) == before
    assert len(embedded) == 1


def test_what_the_models_own_index_holds_whole_is_not_embedded_again(
    fresh: Recommender, embedded: list[int]
) -> None:
    fresh.predict_next_actions(PROFILE, HISTORY, candidates=["job-00003"])
    assert embedded == []
    fresh.remove_items(["job-00003", "job-00009"])
    fresh.add_items([{**NURSE, "item_id": "job-00003"}])
    embedded.clear()

    def state(**known: str) -> Served:
        return Served.of(fresh.foundation, fresh.book, fresh.index, **known)

    mine = {"model_hash": fresh.index.manifest.model_hash}
    vectors_IV = state(**mine).item_vectors_IV
    assert embedded == [1]  # The one that the index lacks.
    # Of an index that may be another model's nothing is taken.
    np.testing.assert_allclose(vectors_IV, state().item_vectors_IV, rtol=1e-4, atol=1e-5)
    assert embedded == [1, len(vectors_IV)]
    # An item that goes before its state was asked is still of that state.
    before = state(**mine)
    fresh.remove_items(["job-00004"])
    np.testing.assert_allclose(before.item_vectors_IV, vectors_IV, rtol=1e-4, atol=1e-5)


def test_another_models_vectors_are_not_added(
    fresh: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jobs_of(fresh)
    mine = fresh.index.manifest.model_hash
    # As when the index was made anew by another process.
    monkeypatch.setattr(fresh.index, "_manifest", replace(fresh.index.manifest, model_hash="other"))
    with pytest.raises(IndexMismatch, match=f"'{mine}'.*'other'"):
        fresh.add_items([NURSE])
    assert jobs_of(fresh) == before
    with pytest.raises(IndexMismatch, match=f"'{mine}'.*'other'"):
        Recommender(fresh.foundation, fresh.index, fresh.book, model_hash=mine)


def test_a_catalogue_that_was_replaced_is_let_go_at_once(fresh: Recommender) -> None:
    jobs_of(fresh, where="workplace = remote")
    before = weakref.ref(fresh.foundation)
    gc.disable()
    try:
        fresh.add_items([NURSE])
        assert before() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["arrow", "pandas", "mappings"])
def test_items_come_as_a_table_or_as_mappings(fresh: Recommender, kind: str) -> None:
    columns = [field.name for field in fresh.interactions.schema.items["job"]]
    row = {name: NURSE.get(name) for name in ("item_id", "kind", *columns)}
    table = pa.Table.from_pylist([{**row, "unused": 1}])
    items = {"arrow": table, "pandas": table.to_pandas(), "mappings": [NURSE]}[kind]
    fresh.add_items(items)
    [found] = fresh.predict_next_actions(PROFILE, allow=["job-nurse"])
    assert found.title.startswith("Nurse in oncology · ")


def test_words_of_people_are_read_again_when_people_change_and_not_when_jobs_do(
    fresh: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = decant.search.item_texts

    def reading(words: Words, log: Interactions, rows: Any) -> list[str]:
        read.append(len(rows))
        return plain(words, log, rows)

    monkeypatch.setattr(decant.search, "item_texts", reading)
    people = fresh.book.prompter.task_index("people")
    num_people = int((fresh.interactions.item_kinds == "person").sum())
    before = fresh.search_words(people)
    fresh.add_items([NURSE])
    fresh.remove_items(["job-00003"])
    fresh.add_items([{**NURSE, "item_id": "job-00003"}])
    assert fresh.search_words(people) is fresh.search_words(people)
    assert read == [num_people]
    # The rest is of the catalogue as it is now.
    assert fresh.search_words(people).interactions is fresh.interactions
    assert fresh.search("Berlin", task="people", k=3).hits
    fresh.add_items([{**ADVISER, "name": "Zaphod Quux"}])
    assert read == [num_people]  # Nobody asked yet.
    after = fresh.search_words(people)
    assert read == [num_people, num_people + 1]
    assert (len(after.names), after.known - before.known) == (len(before.names) + 1, {"adviser"})


def test_what_was_saved_is_there_when_the_run_is_loaded_again(run: Path) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.remove_items(["job-00003"])
    before = served.predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert set(jobs_of(Recommender.load(run))) ^ set(ids(before)) == {"job-nurse", "job-00003"}
    served.save()
    again = Recommender.load(run)
    after = again.predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert ids(after) == ids(before)
    np.testing.assert_allclose([p.score for p in after], [p.score for p in before], atol=1e-5)
    # It goes on from there: told anew, saved over itself, and nothing else is left behind.
    again.remove_items(["job-nurse"])
    again.add_items([{**NURSE, "title": "Welder"}])
    again.save()
    third = Recommender.load(run)
    assert third.predict_next_actions(PROFILE, allow=["job-nurse"])[0].title.startswith("Welder")
    assert third.predict_next_actions(PROFILE, [{"item": "job-00003", "action": "apply"}])
    assert len(list(RunLayout(run).catalogue.glob("v*"))) == 1
    # Another model than the served one reads the texts itself; what is measured is the log.
    top = Recommender.load(run, model="foundation")
    assert set(jobs_of(top)) == set(jobs_of(third))
    with pytest.raises(BadInput, match="load it with"):
        top.save()
    plain = Recommender.load(run, with_saved_items=False)
    assert "job-00003" in jobs_of(plain)
    assert "job-nurse" not in jobs_of(plain)


def test_saving_compacts_an_index_of_which_a_tenth_came_or_went(run: Path) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.save()
    once = Recommender.load(run)
    assert 0 < once.index.changed_share < 0.1  # What little came lies beside what was there.
    news = [{**NURSE, "item_id": f"job-new-{number}"} for number in range(6)]
    once.add_items(news)
    once.remove_items(["job-nurse", *once.interactions.item_ids[3:8]])
    before = once.predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert once.index.changed_share > 0.1
    once.save()
    assert once.index.changed_share == 0
    again = Recommender.load(run)
    assert again.index.changed_share == 0
    for recommender in (once, again):
        after = recommender.predict_next_actions(PROFILE, HISTORY, k=10_000)
        assert ids(after) == ids(before)
        assert set(jobs_of(recommender, allow=["job-new-3", "job-nurse"])) == {"job-new-3"}
    again.add_items([NURSE])
    assert jobs_of(again, allow=["job-nurse"]) == ["job-nurse"]


def test_a_catalogue_from_which_everything_was_removed_is_one(run: Path) -> None:
    served = Recommender.load(run)
    served.remove_items(served.interactions.item_ids)
    assert jobs_of(served) == []
    served.save()
    again = Recommender.load(run)
    assert jobs_of(again) == []
    again.add_items([NURSE])
    assert jobs_of(again) == ["job-nurse"]


def test_an_index_of_nothing_is_refused_with_what_brings_items_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Recommender.load(run)
    served.remove_items(served.interactions.item_ids)
    served.save()
    refused = "all [0-9]+ items .* were removed.*decant index RUN --items FILE.*catalogue"
    with pytest.raises(BadInput, match=refused):
        Recommender.load(run, model="foundation")
    with pytest.raises(SystemExit):
        main(["index", str(run)])
    assert re.search(refused, " ".join(capsys.readouterr().err.split()))
    # As it says.
    new = tmp_path / "new.jsonl"
    new.write_text("\n".join(map(json.dumps, [NURSE, ADVISER])))
    main(["index", str(run), "--items", str(new)])
    assert jobs_of(Recommender.load(run, model="foundation")) == ["job-nurse"]


def test_the_index_command_embeds_what_was_saved_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.remove_items(["job-00003"])
    served.save()
    wanted = served.predict_next_actions(PROFILE, HISTORY, k=10_000)
    # Of another model, as after training anew: refused, and mended as it says.
    index = build_index(served.foundation, model_hash="another", without=["job-00003"])
    catalogue = SavedCatalogue(RunLayout(run).catalogue)
    told = catalogue.read(served.interactions.schema).told
    other = Served.of(served.foundation, served.book, index, told=told)
    catalogue.write(other, index)
    with pytest.raises(ValueError, match=r"`decant index .*run` does"):
        Recommender.load(run)
    main(["index", str(run)])
    assert capsys.readouterr().out == f"indexed {len(served.index):,} items\n"
    again = Recommender.load(run).predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert ids(again) == ids(wanted)
    np.testing.assert_allclose([p.score for p in again], [p.score for p in wanted], atol=1e-4)


def test_what_is_saved_is_on_the_disk_before_it_counts(
    run: Path, not_synced: Callable[[Path], list[str]]
) -> None:
    recommender = Recommender.load(run)
    recommender.add_items([NURSE])
    recommender.save()
    (version,) = RunLayout(run).catalogue.glob("v*-*")
    assert not_synced(version) == []
    modes = {path.stat().st_mode for path in version.rglob("*") if path.is_file()}
    assert modes == {(version.parent / "current.json").stat().st_mode}


def test_who_may_not_read_what_was_saved_is_told_that(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.save()

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("decant.catalogue.sha256_of", refused)
    with pytest.raises(BadInput, match=r"may not be read by this user \(PermissionError: .*v1-"):
        Recommender.load(run)


def test_a_save_that_is_cut_short_leaves_what_was_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.save()
    served.remove_items(["job-nurse"])
    places = ["decant.catalogue.pq.write_table", "decant.catalogue.save_file"]
    places += ["retrieval.ItemIndex.save", "decant.catalogue.write_whole"]
    for place in places:
        with monkeypatch.context() as patch:
            patch.setattr(place, full_disk)
            with pytest.raises(OSError, match="full"):
                served.save()
        assert "job-nurse" in jobs_of(Recommender.load(run))
        assert len(list(RunLayout(run).catalogue.glob("v*"))) == 1
    served.save()
    assert "job-nurse" not in jobs_of(Recommender.load(run))


def test_an_interrupt_once_the_new_version_is_named_leaves_it_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.save()
    served.add_items([{**NURSE, "item_id": "job-second"}])

    def interrupted(path: Path, content: str) -> None:
        write_whole(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("decant.catalogue.write_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            served.save()
    assert {"job-nurse", "job-second"} <= set(jobs_of(Recommender.load(run)))
    served.remove_items(["job-nurse"])
    served.save()
    assert "job-nurse" not in jobs_of(Recommender.load(run))
    assert len(list(RunLayout(run).catalogue.glob("v*"))) == 1


def full_disk(*_: object, **__: object) -> None:
    raise OSError("the disk is full")


def test_two_who_save_do_not_lose_each_others_items(run: Path) -> None:
    one, two = Recommender.load(run), Recommender.load(run)
    one.add_items([NURSE])
    one.save()
    two.add_items([ADVISER])
    with pytest.raises(BadInput, match="another process saved items since"):
        two.save()
    assert "job-nurse" in jobs_of(Recommender.load(run))


def test_a_catalogue_that_lies_elsewhere_is_refused_and_left_as_it_is(
    run: Path, tmp_path: Path
) -> None:
    elsewhere, catalogue = tmp_path / "home", RunLayout(run).catalogue
    (elsewhere / "v1-abc" / "thesis").mkdir(parents=True)
    shutil.rmtree(catalogue, ignore_errors=True)
    catalogue.symlink_to(elsewhere)
    served = Recommender.load(run)
    served.add_items([NURSE])
    with pytest.raises(BadInput, match="catalogue is a link to another place"):
        served.save()
    assert [path.name for path in elsewhere.iterdir()] == ["v1-abc"]
    # Nor is anything deleted that only looks like a version.
    catalogue.unlink()
    (catalogue / "vim-plug").mkdir(parents=True)
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.save()
    assert (catalogue / "vim-plug").is_dir()


def test_a_model_that_serves_no_more_saves_nothing(run: Path) -> None:
    old = Recommender.load(run)
    assert old.index.manifest.model_hash == index_manifest(RunLayout(run).index).model_hash
    shutil.rmtree(run / "rung-1")
    index_again(RunLayout(run))  # For the foundation, which serves now.
    old.add_items([NURSE])
    with pytest.raises(BadInput, match=r"run: another model serves this run now.*load the run"):
        old.save()
    new = Recommender.load(run)
    assert new.index.manifest.model_hash != old.index.manifest.model_hash
    new.add_items([NURSE])
    new.save()
    assert "job-nurse" in jobs_of(Recommender.load(run))


def test_who_loads_while_another_saves_gets_a_version_that_is_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Recommender.load(run)
    saver.add_items([NURSE])
    saver.save()
    load, digest_of = ItemIndex.load.__func__, folders.sha256_of
    withdrawn = iter(["job-00003", "job-00004"])

    def another_saves() -> None:
        item = next(withdrawn, None)
        if item is not None:
            saver.remove_items([item])
            saver.save()

    def loading(cls: type[ItemIndex], *arguments: Any, **known: Any) -> ItemIndex:
        another_saves()
        return load(cls, *arguments, **known)

    def digesting(path: Path) -> str:
        if path.suffix != ".new":  # What the other one writes.
            another_saves()
        return digest_of(path)

    monkeypatch.setattr(ItemIndex, "load", classmethod(loading))
    monkeypatch.setattr(folders, "sha256_of", digesting)
    loaded = Recommender.load(run)
    assert next(withdrawn, None) is None
    assert jobs_of(loaded) == jobs_of(saver)
    loaded.add_items([ADVISER])
    loaded.save()


def test_a_damaged_catalogue_is_refused_or_harmless(run: Path) -> None:
    served = Recommender.load(run)
    served.add_items([NURSE])
    served.save()
    wanted = jobs_of(served)
    catalogue = RunLayout(run).catalogue
    files = [path for path in catalogue.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) > 6
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for _ in range(3):
            torn = bytearray(whole)
            if whole and rng.random() < 0.7:
                torn[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
            else:
                torn = torn[: len(whole) // 2]
            path.write_bytes(bytes(torn))
            try:
                found = jobs_of(Recommender.load(run))
            except ValueError as error:
                assert "index" in str(error) or "delete it" in str(error)  # noqa: PT017
            else:
                assert found == wanted
        path.write_bytes(whole)
    assert jobs_of(Recommender.load(run)) == wanted


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{**NURSE, "item_id": "job-00001"}], "'job-00001' is in the catalogue already.*remove_"),
        ([NURSE, NURSE], "items row 2: item_id 'job-nurse' stands twice"),
        ([{**NURSE, "pay": "much"}], "items row 1: pay 'much' is not a number"),
        ([{**NURSE, "titel": "Nurse"}], r"items\[0\] has no field 'titel'; an item has item_id"),
        ([{**NURSE, "kind": "film"}], "kind 'film' is not one of the schema's: job, person"),
        ([{"item_id": "x", "title": "Nurse"}], "lacks the column kind"),
        ([{"item_id": "x", "kind": "job"}], "'x' has nothing to read"),
        ([{"kind": "job", "title": "Nurse"}], "items row 1: item_id None is missing"),
        ([{**NURSE, "item_id": " "}], "items row 1: item_id ' ' is missing"),
        ([{**NURSE, "posted": 10**14}], "looks like milliseconds"),
        ([{**NURSE, "title": {"de": "Pflege"}}], "is not text"),
        ([7], r"items\[0\]=7 must be a mapping"),
        (NURSE, "must be a list of mappings"),
        ("job", "must be a list of mappings"),
        (pa.table({"id": ["a"]}), "lacks the column item_id"),
        (pd.DataFrame({"item_id": ["a"], "kind": ["job"]}), "lacks the column title"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_an_item_that_does_not_fit_is_named_and_nothing_changes(
    recommender: Recommender, items: Any, message: str
) -> None:
    before = len(recommender.index), recommender.interactions.item_ids
    with pytest.raises(ValueError, match=message):
        recommender.add_items(items)
    assert (len(recommender.index), recommender.interactions.item_ids) == before


def test_a_row_of_pandas_is_an_item_and_what_it_lacks_is_missing(fresh: Recommender) -> None:
    table = pd.DataFrame([NURSE, {**ADVISER, "years": 7}])
    assert table.isna().any(axis=None)
    table["posted"] = pd.to_datetime(table["posted"])
    fresh.add_items([row.to_dict() for _, row in table.iterrows()])
    assert "job-nurse" in jobs_of(fresh)
    assert ids(fresh.predict_next_actions(PROFILE, task="people", allow=["person-adviser"]))


def test_what_mends_a_bad_item_is_no_option_of_the_command_line(recommender: Recommender) -> None:
    with pytest.raises(BadInput, match=r"set them aside with on_bad_rows='skip'\.$"):
        recommender.add_items([{**NURSE, "pay": "much"}])


def test_what_was_told_stays_in_one_piece_however_often_items_are_added(
    fresh: Recommender,
) -> None:
    for number in range(3):
        fresh.add_items([{**NURSE, "item_id": f"job-new-{number}"}])
    fresh.remove_items(["job-new-1"])
    fresh.add_items([{**NURSE, "item_id": "job-new-1", "title": "Welder"}])
    told = fresh._served.told
    assert told["item_id"].to_pylist() == ["job-new-0", "job-new-2", "job-new-1"]
    assert {column.num_chunks for column in told.columns} == {1}


def test_of_no_items_nothing_comes(recommender: Recommender) -> None:
    before = recommender._served
    for nothing in ([], (), pa.table({"item_id": pa.array([], pa.string())}), pd.DataFrame()):
        recommender.add_items(nothing)
    recommender.remove_items([])
    assert recommender._served is before


def test_rows_that_do_not_fit_may_be_skipped(fresh: Recommender) -> None:
    fresh.add_items([{**NURSE, "item_id": "bad", "pay": "much"}, NURSE], on_bad_rows="skip")
    assert "job-nurse" in jobs_of(fresh)
    with pytest.raises(BadInput, match="unknown item 'bad'"):
        jobs_of(fresh, allow=["bad"])


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["job-1"], "unknown item 'job-1'"),
        (["job-00001", "job-00001"], "stands twice"),
        ("job-00001", "give a list"),
        ([7], "unknown item 7"),
        (None, "remove_items=None must be a list of item ids"),
        ({}, "remove_items={} must be a list of item ids"),
        ({"job-00001": True}, "must be a list of item ids"),
    ],
)
def test_what_cannot_be_removed_is_named(
    recommender: Recommender, removed: Any, message: str
) -> None:
    before = len(recommender.index)
    with pytest.raises(BadInput, match=message):
        recommender.remove_items(removed)
    assert len(recommender.index) == before


@pytest.mark.parametrize("listed", [pd.Series, np.array, set])
def test_what_is_removed_may_stand_in_any_list(fresh: Recommender, listed: Any) -> None:
    fresh.remove_items(listed(["job-00003", "job-00004"]))
    assert {"job-00003", "job-00004"}.isdisjoint(jobs_of(fresh))
    fresh.remove_items(listed([]))


def test_what_was_removed_is_not_removed_again(fresh: Recommender) -> None:
    fresh.remove_items(["job-00001"])
    with pytest.raises(BadInput, match="'job-00001' was removed already"):
        fresh.remove_items(["job-00004", "job-00001"])
    assert "job-00004" in jobs_of(fresh)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.text(max_size=5) | st.none() | st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["2025-06-01", "=> apply", "<|endoftext|>", "⟦0⟧", "\ud800", "Nurse"]),
)
NAMES = st.sampled_from(
    ["item_id", "kind", "title", "pay", "posted", "skills", "headline", "years"]
)


def held_by(recommender: Recommender) -> set[str]:
    return {item for item in recommender.index.ids.tolist() if item is not None}


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(NAMES | st.text(max_size=4), VALUES, max_size=6)
        | st.builds(lambda more: {**NURSE, **more}, st.dictionaries(NAMES, VALUES, max_size=2)),
        max_size=3,
    )
)
def test_whatever_is_added_is_found_or_refused_by_us(
    fuzzed: Recommender, items: list[dict[str, Any]]
) -> None:
    before = set(fuzzed.interactions.item_ids)
    held = held_by(fuzzed)
    try:
        fuzzed.add_items(items)
    except BadInput:
        assert held_by(fuzzed) == held
        return
    new = [str(item["item_id"]).strip() for item in items]
    task_of = {"job": "jobs", "person": "people"}
    now = fuzzed.interactions
    names = [now.item_ids[row] for row in range(now.num_items)]
    added = [name for name in names if name not in before] or new
    for name in added:
        task = task_of[str(now.item_kinds[now.item_row(name)])]
        found = fuzzed.predict_next_actions(PROFILE, task=task, allow=[name])
        assert ids(found) == [name]
        assert np.isfinite(found[0].score)
    came = [name for name in names if name in fuzzed.index and name not in held]
    assert len(came) == len(items)
    fuzzed.remove_items(came)
    assert held_by(fuzzed) == held


def brute_force(
    recommender: Recommender, admitted: set[str], *, task: int, k: int, retrieved: int
) -> list[tuple[str, float]]:
    """Compare with every admitted item, keep the nearest, rank those by the formula."""
    foundation, book = recommender.foundation, recommender.book
    asked = book.prompter.tasks[task]
    history = [HistoryEvent(**event) for event in HISTORY]
    prefix = book.inline(PROFILE, history, task=asked.name)
    near_I = foundation.embed_items() @ foundation.embed_users(prefix)[0]
    rows = np.array([recommender.interactions.item_row(item) for item in sorted(admitted)], int)
    rows = rows[np.argsort(-near_I[rows], kind="stable")][:retrieved]
    if not len(rows):
        return []
    said = foundation.calibration(task)(foundation.score(prefix, rows, task=task))
    good = log_positive(said, np.array(asked.is_positive))
    total = near_I[rows] + foundation.rank_weight(task) * good
    best = np.argsort(-total, kind="stable")[:k]
    return [(recommender.interactions.item_ids[rows[b]], float(total[b])) for b in best]


@pytest.mark.parametrize("retrieved", [7, 200])
@pytest.mark.parametrize(
    "where",
    [
        None,
        "workplace = remote",
        "workplace = remote | pay > 4000",
        "!(workplace = remote) & years < 6",
        "kind = person",
        "item_id = job-nurse | posted < 2025-01-01",
    ],
)
def test_filters_answer_what_brute_force_over_the_filtered_catalogue_does(
    recommender_with_news: Recommender,
    where: str | None,
    retrieved: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = recommender_with_news
    monkeypatch.setattr(served, "_cascade", Cascade(retrieved=retrieved))
    log = served.interactions
    jobs = [item for item in log.item_ids if log.item_kinds[log.item_row(item)] == "job"]
    rows = log.items.data.table.to_pylist()
    tests = {
        None: lambda row: True,
        "workplace = remote": lambda row: row["workplace"] == "remote",
        "workplace = remote | pay > 4000": lambda row: (
            row["workplace"] == "remote" or (row["pay"] or 0) > 4000
        ),
        "!(workplace = remote) & years < 6": lambda row: (
            row["workplace"] != "remote" and row["years"] is not None and row["years"] < 6
        ),
        "kind = person": lambda row: row["kind"] == "person",
        "item_id = job-nurse | posted < 2025-01-01": lambda row: (
            row["item_id"] == "job-nurse"
            or (row["posted"] is not None and row["posted"] < 1_735_689_600)
        ),
    }
    is_like = {row["item_id"] for row in rows if tests[where](row)}
    limits: list[dict[str, Any]] = [
        {},
        {"allow": jobs[::2]},
        {"deny": jobs[::3]},
        {"allow": [*jobs[10:], "person-00001"], "deny": jobs[::3], "exclude_seen": False},
    ]
    for limit in limits:
        admitted = is_like & set(jobs) - {"job-00007"} & set(limit.get("allow", jobs))
        admitted -= set(limit.get("deny", []))
        if limit.get("exclude_seen", True):
            admitted -= {event["item"] for event in HISTORY}
        found = served.predict_next_actions(PROFILE, HISTORY, where=where, k=5, **limit)
        wanted = brute_force(served, admitted, task=0, k=5, retrieved=retrieved)
        assert ids(found) == [item for item, _ in wanted]
        np.testing.assert_allclose(
            [one.score for one in found], [score for _, score in wanted], atol=1e-4
        )
        given_ = served.predict_next_actions(
            PROFILE, HISTORY, where=where, k=5, candidates=sorted(is_like & set(jobs)), **limit
        )
        if retrieved == 200:
            assert ids(given_) == ids(found)


@pytest.fixture(scope="module")
def recommender_with_news(tiny_run: Path) -> Recommender:
    served = Recommender.load(tiny_run)
    served.add_items([NURSE, ADVISER])
    served.remove_items(["job-00007"])
    return served


def test_a_filter_goes_with_every_verb_and_is_evaluated_once(
    fresh: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[object] = []
    plain = decant.served.matching
    monkeypatch.setattr(
        "decant.served.matching",
        lambda where, *more: evaluated.append(where) or plain(where, *more),
    )
    where = "workplace = remote"
    user = fresh.interactions.user_ids[0]
    found = fresh.predict_user(user, where=where, k=5)
    assert dict(fresh.predict_many([user], where=where, k=5)) == {user: found}
    assert ids(fresh.predict_user(user, where=where, k=5)) == ids(found)
    assert len(evaluated) == 1
    with pytest.raises(BadInput, match="no item has workplace 'remot'; near it: 'remote'"):
        next(fresh.predict_many([user], where="workplace = remot"))
    # What comes later is found by a filter that was asked before.
    fresh.add_items([{**NURSE, "workplace": "remote"}])
    assert "job-nurse" in ids(fresh.predict_user(user, where=where, k=10_000))


def test_a_filter_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, recommender: Recommender
) -> None:
    where = "workplace = remote | place = Berlin, Germany"
    main(["predict", str(tiny_run), "--user", "member-00001", "--where", where, "--json"])
    found = [json.loads(line)["item_id"] for line in capsys.readouterr().out.splitlines()]
    assert found == ids(recommender.predict_user("member-00001", where=where))
    with pytest.raises(SystemExit) as leaving:
        main(["predict", str(tiny_run), "--user", "member-00001", "--where", "place = Berlin"])
    assert leaving.value.code == 2
    assert "no item has place 'Berlin'; near it: 'Berlin, Germany'" in capsys.readouterr().err


def test_people_are_served_while_items_come_and_go(fresh: Recommender) -> None:
    jobs = set(jobs_of(fresh))
    wrong: list[object] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                found = ids(fresh.predict_next_actions(PROFILE, HISTORY, k=10_000))
                news = [int(item.partition("-new-")[2]) for item in found if item not in jobs]
                # One moment: all of the old ones, and of the new ones two that came together.
                if not jobs <= set(found) or len(found) != len(set(found)) or len(news) > 2:
                    wrong.append(found)
                if len(news) == 2 and news[0] // 2 != news[1] // 2:
                    wrong.append(news)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        pair = [{**NURSE, "item_id": f"job-new-{2 * turn + n}"} for n in (0, 1)]
        fresh.add_items(pair)
        named = [item["item_id"] for item in pair]
        assert set(jobs_of(fresh, allow=named)) == set(named)
        fresh.remove_items(named)
        assert jobs_of(fresh, allow=named) == []
    is_over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
