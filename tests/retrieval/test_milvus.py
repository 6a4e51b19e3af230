"""What only the index in Milvus promises, against the embedded database."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from retrieval import IndexMismatch
from retrieval.milvus import MilvusIndex, collection, searching

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("milvus") / "test.db")


@pytest.fixture(scope="module")
def films(uri):
    """Five hundred vectors in an approximate index; the vectors and ids with it."""
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    ids = [f"i{row}" for row in range(500)]
    index = MilvusIndex.build(
        vectors,
        ids,
        model_hash="m",
        uri=uri,
        name="films",
        kind="IVF_FLAT",
        build_params={"nlist": 32},
        search_params={"nprobe": 1},
    )
    return index, vectors, ids


def ranked(vectors, ids, query):
    return [ids[row] for row in np.argsort(-(vectors @ query), kind="stable")]


def test_load_opens_what_was_built_and_refuses_another_models(uri, films):
    index, vectors, ids = films
    with MilvusIndex.load(uri=uri, name="films", model_hash="m") as loaded:
        assert loaded.manifest == index.manifest
        assert (loaded.manifest.kind, loaded.manifest.count) == ("IVF_FLAT", 500)
        assert loaded.manifest.search_params == {"nprobe": 1}
        best = ranked(vectors, ids, vectors[0])[:1]
        assert loaded.search(vectors[:1], 1, allow=ids).ids.tolist() == [best]
    with pytest.raises(IndexMismatch, match=r"'yours'.*'m'.*build"):
        MilvusIndex.load(uri=uri, name="films", model_hash="yours")
    with pytest.raises(IndexMismatch, match=r"'none'.*no such index"):
        MilvusIndex.load(uri=uri, name="none")


def test_allow_is_exact_whatever_the_index_finds(films):
    index, vectors, ids = films
    exact = [ranked(vectors, ids, query)[:5] for query in vectors[:20]]
    assert index.search(vectors[:20], 5).ids.tolist() != exact
    assert index.search(vectors[:20], 5, allow=ids).ids.tolist() == exact


def test_short_answers_are_completed_by_reading_every_row(films, caplog):
    index, vectors, ids = films
    query = vectors[3]
    # One list of 32 holds far fewer than all items.
    with caplog.at_level(logging.WARNING, "retrieval.milvus.searching"):
        found = index.search(query[None], 499, deny=["i4"]).ids[0].tolist()
    assert "came back short" in caplog.text
    assert found == [item for item in ranked(vectors, ids, query) if item != "i4"]


def test_denied_items_that_stand_in_the_way_are_excluded(uri, monkeypatch, caplog):
    vectors = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    ids = [f"i{row}" for row in range(300)]
    index = MilvusIndex.build(vectors, ids, model_hash="m", uri=uri, name="denied", kind="FLAT")
    order = ranked(vectors, ids, vectors[0])
    monkeypatch.setattr(searching, "MOST_HITS", 16)
    monkeypatch.setattr(searching, "SPARE", 4)
    # The 200 nearest are denied, and 16 come back at once.
    found = index.search(vectors[:1], 9, deny=order[:200]).ids[0].tolist()
    assert found == order[200:209]
    assert "came back short" not in caplog.text
    # Excluding more than fit into one expression is given up for reading every row.
    monkeypatch.setattr(searching, "MOST_EXCLUDED", 100)
    found = index.search(vectors[:1], 9, deny=order[:200]).ids[0].tolist()
    assert found == order[200:209]
    assert "came back short" in caplog.text
    with pytest.raises(ValueError, match="k is 16385; ask for 1 to 16,384"):
        index.search(vectors[:1], 16_385)


def test_of_many_allowed_items_no_other_comes_back(uri, monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    ids = [f"i{row}" for row in range(300)]
    index = MilvusIndex.build(vectors, ids, model_hash="m", uri=uri, name="allowed", kind="FLAT")
    monkeypatch.setattr(searching, "MOST_COMPARED", 20)
    monkeypatch.setattr(searching, "SPARE", 4)
    order = ranked(vectors, ids, vectors[0])
    few, many = order[100:120], order[90:150]
    denied = order[95:140]
    found = index.search(vectors[[0, 0]], 30, allow=[few, many], deny=denied).ids.tolist()
    assert found == [[None] * 30, [*order[90:95], *order[140:150], *[None] * 15]]


def test_masks_say_what_ids_say(films):
    index, vectors, ids = films
    rows = index.ids.tolist()
    assert sorted(rows) == sorted(ids)
    found = index.search(vectors[:2], 5)
    assert [[rows[row] for row in one] for one in found.item_rows] == found.ids.tolist()
    is_some = np.array([int(item[1:]) % 3 == 0 for item in rows])
    some = [item for item in rows if int(item[1:]) % 3 == 0]
    for masked, named in (
        ({"allow": is_some}, {"allow": some}),
        ({"allow": is_some[:90]}, {"allow": [item for item in rows[:90] if item in some]}),
        ({"deny": is_some}, {"deny": some}),
        ({"allow": np.stack([is_some, ~is_some])}, {"allow": [some, sorted({*ids} - {*some})]}),
    ):
        one, other = index.search(vectors[:2], 5, **masked), index.search(vectors[:2], 5, **named)
        assert one.ids.tolist() == other.ids.tolist()
    with pytest.raises(ValueError, match="deny is an array int64"):
        index.search(vectors[:2], 5, deny=np.arange(3))
    with pytest.raises(ValueError, match="allow has 3 masks for 2 requests"):
        index.search(vectors[:2], 5, allow=np.stack([is_some] * 3))


def test_rows_stay_while_items_come_and_go(uri):
    index = MilvusIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m", uri=uri, name="rows")
    before = index.ids.tolist()
    index.remove(["b"])
    index.add(np.eye(3)[:1], ["d"])
    after = [None if item == "b" else item for item in before]
    assert index.ids.tolist() == [*after, "d"]
    assert index.search(np.eye(3)[:1], 3, allow=np.array([True] * 3)).ids[0].tolist() != ["d"]


def test_a_mask_gives_no_row_to_what_another_process_added(uri, monkeypatch):
    monkeypatch.setattr(searching, "MOST_COMPARED", 0)
    index = MilvusIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m", uri=uri, name="met")
    assert len(index.ids) == 3
    with MilvusIndex.load(uri=uri, name="met") as other:
        other.add(np.eye(3)[:1], ["d"])
    found = index.search(np.eye(3), 3, allow=np.array([True] * 3)).ids
    assert {*found.ravel()} == {"a", "b", "c"}
    assert index.add(np.eye(3)[:1], ["e"]).tolist() == [3]


def test_build_replaces_an_index_and_who_had_it_open_is_refused(uri):
    old = MilvusIndex.build(np.eye(3), ["a", "b", "c"], model_hash="old", uri=uri, name="jobs")
    new = MilvusIndex.build(np.eye(3)[:2], ["x", "y"], model_hash="new", uri=uri, name="jobs")
    with pytest.raises(IndexMismatch, match="'old'"):
        MilvusIndex.load(uri=uri, name="jobs", model_hash="old")
    with pytest.raises(OSError, match="could not search"):
        old.search(np.eye(3)[:1], 1)
    again = MilvusIndex.load(uri=uri, name="jobs", model_hash="new")
    assert again.search(np.eye(3)[:1], 3).ids.tolist() == [["x", "y", None]]
    assert len(new) == 2


def test_build_that_fails_leaves_the_old_index_and_nothing_else(uri, monkeypatch):
    MilvusIndex.build(np.eye(3), ["a", "b", "c"], model_hash="old", uri=uri, name="people")
    index = MilvusIndex.load(uri=uri, name="people")
    before = sorted(index._collection.client.list_collections())

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(collection.Collection, "insert", full)
    with pytest.raises(OSError, match="disk full"):
        MilvusIndex.build(np.eye(3), ["x", "y", "z"], model_hash="new", uri=uri, name="people")
    assert sorted(index._collection.client.list_collections()) == before
    assert MilvusIndex.load(uri=uri, name="people").manifest.model_hash == "old"


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"model_hash": "m"}', '{"metric": "l2", "model_hash": "m"}']
)
def test_load_refuses_a_collection_without_our_manifest(uri, content):
    index = MilvusIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m", uri=uri, name="odd")
    client, made = index._collection.client, index._collection.name
    if content is None:
        client.drop_collection_properties(made, [collection._MANIFEST])
    else:
        client.alter_collection_properties(made, {collection._MANIFEST: content})
    with pytest.raises(IndexMismatch, match="no index of ours"):
        MilvusIndex.load(uri=uri, name="odd")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"metric": "l2"}, "metric 'l2'"), ({"dimension": 9}, "9 numbers per vector")],
)
def test_load_refuses_another_metric_or_dimension(uri, change, says):
    index = MilvusIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m", uri=uri, name="other")
    client, made = index._collection.client, index._collection.name
    manifest = json.loads(index._collection.manifest.text()) | change
    client.alter_collection_properties(made, {collection._MANIFEST: json.dumps(manifest)})
    with pytest.raises(IndexMismatch, match=says):
        MilvusIndex.load(uri=uri, name="other")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "no spaces"}, "'no spaces'; use up to 200 letters"),
        ({"name": ""}, "letters"),
        ({"ids": ["a" * 65_536, "b"]}, "65,536 bytes"),
        ({"ids": ["\ud800", "b"]}, "not valid Unicode"),
    ],
)
def test_build_refuses_what_milvus_would_not_keep(uri, arguments, says):
    good = {"vectors": np.eye(2), "ids": ["a", "b"], "model_hash": "m", "uri": uri, "name": "n"}
    with pytest.raises(ValueError, match=says):
        MilvusIndex.build(**{**good, **arguments})


def test_an_unknown_place_is_said(tmp_path):
    good = {"vectors": np.eye(2), "ids": ["a", "b"], "model_hash": "m", "name": "n"}
    with pytest.raises(OSError, match="could not connect"):
        MilvusIndex.build(**good, uri=str(tmp_path / "no_ending"))
    # What may be a password is not repeated.
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9") as refused:
        MilvusIndex.load(uri="http://me:secret@127.0.0.1:9", name="n")
    assert "secret" not in str(refused.value)


def test_without_pymilvus_it_says_what_to_install():
    code = (
        "import sys; sys.modules['pymilvus'] = None\n"
        "from retrieval.milvus import MilvusIndex\n"
        "try:\n    MilvusIndex.load(uri='x.db', name='n')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -e '.[milvus]'" in run.stdout
