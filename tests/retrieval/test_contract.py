"""What every index promises, whether FAISS or a database holds the vectors."""

import logging
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import IndexMismatch, ItemIndex
from retrieval.milvus import MilvusIndex

# pymilvus logs each refusal with its traceback before it raises it.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

STRANGE_IDS = [
    "it's",
    'a "quoted" one',
    "back\\slash",
    'both \\" at once\\',
    "' or 1 == 1 --",
    'x"] or key not in ["',
    "漢字 é 🎬",
    "e\u0301",  # Not the é above, though it looks like it.
    "line\nbreak\tand\0null",
    "",
    " ",
    "%s {} $meta",
    "long" * 2500,
    "長" * 10_000,
]


class Makers:
    """Makes indexes of each kind; those in Milvus share one embedded database."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder / "test.db")
        self.num_made = 0

    def faiss(self, vectors, ids, *, model_hash="m"):
        return ItemIndex.build(vectors, ids, model_hash=model_hash, kind="flat")

    def milvus(self, vectors, ids, *, model_hash="m", name=None, **options):
        self.num_made += 1
        return MilvusIndex.build(
            vectors,
            ids,
            model_hash=model_hash,
            uri=self.uri,
            name=name or f"index_{self.num_made}",
            **{"kind": "FLAT", **options},
        )


@pytest.fixture(scope="module")
def makers(tmp_path_factory) -> Makers:
    return Makers(tmp_path_factory.mktemp("milvus"))


@pytest.fixture(params=["faiss", "milvus"])
def build(request, makers):
    return getattr(makers, request.param)


def some_vectors(num_items, seed=0):
    return np.random.default_rng(seed).normal(size=(num_items, 8)).astype(np.float32)


def best_names(vectors, ids, queries, k, keep):
    """The names [B][k] of the largest inner products among `keep` bool [B, I]; None beyond."""
    found = []
    for query, kept in zip(queries, keep, strict=True):
        order = np.argsort(-(vectors @ query), kind="stable")
        names = [ids[row] for row in order if kept[row]][:k]
        found.append(names + [None] * (k - len(names)))
    return found


@pytest.fixture(params=["faiss", "milvus"], scope="module")
def forty(request, makers):
    """Forty items; the vectors and ids with them."""
    vectors, ids = some_vectors(40, seed=7), [f"item {(7 * row) % 40}" for row in range(40)]
    return getattr(makers, request.param)(vectors, ids), vectors, ids


@settings(deadline=None, max_examples=40)
@given(
    k=st.integers(1, 50),
    seed=st.integers(0, 1000),
    allow_kind=st.sampled_from(["none", "shared", "each"]),
    deny_kind=st.sampled_from(["none", "shared", "each"]),
)
def test_search_is_brute_force_under_any_filter(forty, k, seed, allow_kind, deny_kind):
    index, vectors, ids = forty
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(3, 8)).astype(np.float32)
    keep = np.ones((3, 40), bool)
    filters = {}
    for name, kind in (("allow", allow_kind), ("deny", deny_kind)):
        if kind == "none":
            continue
        listed = rng.random((3, 40)) < rng.random()
        if kind == "shared":
            listed[:] = listed[0]
        lists = [[ids[row] for row in np.flatnonzero(one)] * 2 + ["unknown"] for one in listed]
        filters[name] = lists[0] if kind == "shared" else lists
        keep &= listed if name == "allow" else ~listed

    result = index.search(queries, k, **filters)

    assert result.ids.tolist() == best_names(vectors, ids, queries, k, keep)
    assert result.scores.dtype == np.float32
    is_found = result.ids != None  # noqa: E711 elementwise
    assert (result.scores[~is_found] == -np.inf).all()
    for request, query in enumerate(queries):
        rows = [ids.index(name) for name in result.ids[request] if name is not None]
        scores = result.scores[request, : len(rows)]
        np.testing.assert_allclose(scores, vectors[rows] @ query, rtol=1e-4, atol=1e-4)


def test_ids_of_any_text_are_found_filtered_and_removed(build):
    num = len(STRANGE_IDS)
    vectors = np.eye(num, dtype=np.float32)
    index = build(vectors, STRANGE_IDS)
    assert index.search(vectors, 1).ids[:, 0].tolist() == STRANGE_IDS
    for row, item in enumerate(STRANGE_IDS):
        assert item in index
        query = vectors[row : row + 1]
        assert index.search(query, 2, allow=[item]).ids.tolist() == [[item, None]]
        denied = index.search(query, num, deny=[item]).ids[0].tolist()
        assert set(denied) == {*STRANGE_IDS, None} - {item}
    assert "it's " not in index
    gone = STRANGE_IDS[::2]
    index.remove(gone)
    assert [item in index for item in STRANGE_IDS] == [False, True] * (num // 2)
    index.add(vectors[::2], gone)
    assert index.search(vectors, 1).ids[:, 0].tolist() == STRANGE_IDS


def test_added_is_found_at_once_and_removed_never_again(build):
    vectors = some_vectors(300)
    ids = [f"i{row}" for row in range(300)]
    index = build(vectors[:200], ids[:200])
    index.remove([*ids[:50], ids[0]])
    index.add(vectors[200:], ids[200:])
    index.add(vectors[:10], ids[:10])
    index.add(np.empty((0, 8)), [])
    index.remove([])
    held = [*ids[:10], *ids[50:]]
    for _ in range(2):
        assert len(index) == index.manifest.count == 260
        assert ids[0] in index
        assert ids[10] not in index
        found = index.search(vectors[::7], 280)
        assert all(set(names) == {*held, None} for names in found.ids.tolist())
        assert (found.ids[:, 260:] == None).all()  # noqa: E711 elementwise
        assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
        index.compact()


def test_filters_may_be_series_whatever_their_own_rows_are_called(build):
    index = build(np.eye(3), ["a", "b", "c"])
    named = pd.Series(["b", "c"], index=[7, 9])
    assert index.search([[3.0, 2, 1]], 3, allow=named).ids.tolist() == [["b", "c", None]]
    assert index.search([[3.0, 2, 1]], 3, deny=named).ids.tolist() == [["a", None, None]]
    rows = np.isin(index.ids, ["b", "c"])
    masked = pd.Series(rows, index=[7, 9, 8])
    assert index.search([[3.0, 2, 1]], 3, deny=masked).ids.tolist() == [["a", None, None]]
    with pytest.raises(ValueError, match="'d' is not in the index"):
        index.remove(pd.Series(["a", "d"], index=[7, 9]))


def test_add_says_which_rows_it_gave(build):
    index = build(np.eye(8)[:2], ["a", "b"])
    assert index.ids.tolist() == ["a", "b"]
    index.remove(["a"])
    rows = index.add(np.eye(8)[[2, 0, 3]], ["c", "a", "d"])
    assert index.search(np.eye(8)[[2, 0, 3]], 1).item_rows[:, 0].tolist() == rows.tolist()
    assert [index.ids[row] for row in rows] == ["c", "a", "d"]
    assert index.add(np.empty((0, 8)), []).tolist() == []


def test_everything_removed_finds_nothing(build):
    index = build(some_vectors(3), ["a", "b", "c"])
    index.remove(["a", "b", "c"])
    assert len(index) == 0
    assert index.search(some_vectors(2), 2).ids.tolist() == [[None] * 2] * 2
    assert index.search(some_vectors(2), 2, allow=["a"]).ids.tolist() == [[None] * 2] * 2


def test_no_requests_give_no_answers(forty):
    index, *_ = forty
    assert index.search(np.empty((0, 8)), 3).ids.shape == (0, 3)
    assert index.search(np.empty((0, 8)), 3, allow=["item 1"], deny=[]).scores.shape == (0, 3)


def test_k_may_be_a_whole_number_of_numpys(forty):
    index, vectors, _ = forty
    plain = index.search(vectors[:2], 3).ids.tolist()
    for k in (np.int64(3), np.uint8(3)):
        assert index.search(vectors[:2], k).ids.tolist() == plain
        assert index.search(vectors[:2], k, deny=["item 1"]).ids.shape == (2, 3)


def test_what_is_no_id_is_named(forty):
    index, *_ = forty
    for ids in ([3], ["item 1", None]):
        with pytest.raises(ValueError, match=r"ids: \S+ is not a text; ids are strings"):
            index.remove(ids)
    with pytest.raises(ValueError, match="ids is the text 'item 1'; give a list of ids"):
        index.remove("item 1")
    with pytest.raises(ValueError, match="ids: 3 is not a text"):
        assert 3 in index
    assert len(index) == 40


def test_add_and_remove_refuse_and_change_nothing(build):
    index = build(some_vectors(2), ["a", "b"])
    with pytest.raises(ValueError, match="'b' is in the index already"):
        index.add(some_vectors(2), ["c", "b"])
    with pytest.raises(ValueError, match="'c' is not in the index"):
        index.remove(["a", "c"])
    with pytest.raises(IndexMismatch, match=r"'yours'.*'m'.*build"):
        index.add(some_vectors(1), ["c"], model_hash="yours")
    with pytest.raises(ValueError, match="8"):
        index.add(np.ones((1, 9)), ["c"])
    with pytest.raises(ValueError, match="NaN"):
        index.add(np.full((1, 8), np.nan), ["c"])
    assert len(index) == 2
    assert index.manifest.model_hash == "m"
    assert index.manifest.dimension == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"vectors": np.eye(3)}, "3 numbers per vector, the index 8"),
        ({"vectors": np.full((1, 8), np.inf)}, "infinity"),
        ({"deny": "a"}, "list of ids"),
        ({"allow": "a"}, "list of ids"),
        ({"allow": [["a"]]}, "1 lists for 2 requests"),
        ({"allow": [["a"], "b"]}, "'b' beside lists"),
        ({"deny": [7, 8]}, "deny: 7 is not a text; ids are strings"),
        ({"allow": [7]}, "allow: 7 is not a text; ids are strings"),
        ({"allow": [None]}, "allow: None is not a text"),
        ({"deny": ["item 1", 3]}, "deny: 3 is not a text"),
        ({"deny": [["item 1"], ["item 2", 3]]}, "deny: 3 is not a text"),
        ({"deny": ["item 1", ["item 2"]]}, r"deny: \['item 2'\] is not a text"),
        ({"deny": ["\ud800"]}, "deny: .* is not valid Unicode"),
        ({"allow": {"item 1"}}, r"allow=\{'item 1'\} is a set; give a list of ids"),
        ({"deny": {"item 1": 2}}, "deny=.* is a dict; give a list of ids"),
        ({"allow": 7}, "allow=7 is an int; give a list of ids"),
        ({"k": -1}, "k is -1; ask for"),
        ({"k": 2.0}, r"k is 2\.0; ask for .*whole number"),
        ({"k": float("nan")}, "k is nan; ask for .*whole number"),
        ({"k": "2"}, "k is '2'; ask for .*whole number"),
        ({"k": None}, "k is None; ask for .*whole number"),
        ({"k": True}, "k is True; ask for .*whole number"),
        ({"deny": np.arange(2)}, "array int64"),
        ({"allow": np.ones((3, 0), bool)}, "3 masks for 2 requests"),
        ({"allow": np.ones(10_000, bool)}, "one bool per row"),
    ],
)
def test_search_refuses(forty, arguments, says):
    index, *_ = forty
    with pytest.raises(ValueError, match=says):
        index.search(**{"vectors": some_vectors(2), "k": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"vectors": np.empty((0, 8)), "ids": []}, "at least one item"),
        ({"vectors": [[1.0, np.nan], [0, 0]]}, "row 0 holds NaN"),
        ({"ids": ["a", "a"]}, "'a' stands there twice"),
        ({"ids": ["a", 2]}, "2 is not a text"),
        ({"ids": ["a"]}, "1 entries for 2 vectors"),
        ({"model_hash": ""}, "model_hash is empty"),
    ],
)
def test_build_refuses(build, arguments, says):
    with pytest.raises(ValueError, match=says):
        build(**{"vectors": np.eye(2), "ids": ["a", "b"], "model_hash": "m", **arguments})


def test_searches_while_items_come_and_go_find_only_what_is_there(build):
    """Half of the items stay; of the others a search may or may not see each."""
    vectors = some_vectors(200)
    ids = [f"i{row}" for row in range(200)]
    index = build(vectors[:100], ids[:100])
    stop, wrong, num_searches = threading.Event(), [], 0

    def search():
        nonlocal num_searches
        while not stop.is_set():
            names = index.search(vectors[:4], 100, deny=["i7"]).ids
            num_searches += 1
            for found in names.tolist():
                items = [item for item in found if item is not None]
                if "i7" in items or len(set(items)) < len(items):
                    wrong.append(items)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        for _ in range(4):
            for start in range(100, 200, 25):
                index.add(vectors[start : start + 25], ids[start : start + 25])
            index.remove(ids[100:])
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert num_searches > 0
