"""`ItemIndex` against numpy: what it finds, what it refuses, what it leaves on the disk."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import IndexMismatch, ItemIndex
from retrieval.base import Base
from retrieval.tuning import halves


def vectors_and_ids(num_items, dimension=8, seed=0):
    """Random vectors, and ids whose order is not that of the rows."""
    vectors = np.random.default_rng(seed).normal(size=(num_items, dimension)).astype(np.float32)
    return vectors, [f"item {(7 * row) % num_items}-{row}" for row in range(num_items)]


def brute_force(vectors, queries, k, keep):
    """Rows [B, k] of the largest inner products among `keep` bool [B, I], −1 where none is left."""
    scores = np.where(keep, queries @ vectors.T, -np.inf)
    rows = np.argsort(-scores, axis=1)[:, :k]
    rows = np.where(np.take_along_axis(scores, rows, 1) > -np.inf, rows, -1)
    return np.pad(rows, ((0, 0), (0, max(0, k - rows.shape[1]))), constant_values=-1)


@pytest.fixture(scope="module")
def ivf():
    """Clustered vectors in lists; the vectors and ids with it."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(60, 16))
    vectors = (centres[rng.integers(60, size=4000)] + 0.3 * rng.normal(size=(4000, 16))).astype(
        "f4"
    )
    ids = [f"i{row}" for row in range(4000)]
    index = ItemIndex.build(vectors, ids, model_hash="m", kind="ivf", target_recall=0.9)
    return index, vectors, ids


@settings(deadline=None, max_examples=60)
@given(
    num_items=st.integers(1, 40),
    k=st.integers(1, 50),
    seed=st.integers(0, 1000),
    allow_kind=st.sampled_from(["none", "shared", "each"]),
    deny_kind=st.sampled_from(["none", "shared", "each"]),
)
def test_flat_search_equals_numpy_under_any_filter(num_items, k, seed, allow_kind, deny_kind):
    vectors, ids = vectors_and_ids(num_items, seed=seed)
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(3, 8)).astype(np.float32)
    keep = np.ones((3, num_items), bool)
    filters = {}
    for name, kind in (("allow", allow_kind), ("deny", deny_kind)):
        if kind == "none":
            continue
        listed = rng.random((3, num_items)) < rng.random()
        if kind == "shared":
            listed[:] = listed[0]
        # Ids from elsewhere and ids given twice have no effect.
        lists = [[ids[row] for row in np.flatnonzero(one)] * 2 + ["unknown"] for one in listed]
        filters[name] = lists[0] if kind == "shared" else lists
        keep &= listed if name == "allow" else ~listed
    index = ItemIndex.build(vectors, ids, model_hash="m")

    result = index.search(queries, k, **filters)

    expected = brute_force(vectors, queries, k, keep)
    assert result.item_rows.dtype == np.int64
    assert result.scores.dtype == np.float32
    np.testing.assert_array_equal(result.item_rows, expected)
    found = expected >= 0
    exact = np.take_along_axis(queries @ vectors.T, np.maximum(expected, 0), 1)
    np.testing.assert_allclose(result.scores[found], exact[found], rtol=1e-5, atol=1e-5)
    assert (result.scores[~found] == -np.inf).all()
    names = [[ids[row] if row >= 0 else None for row in one] for one in expected]
    assert result.ids.tolist() == names


def test_empty_allow_list_finds_nothing_and_empty_deny_list_drops_nothing():
    vectors, ids = vectors_and_ids(5)
    index = ItemIndex.build(vectors, ids, model_hash="m")
    assert (index.search(vectors, 3, allow=[]).item_rows == -1).all()
    assert (index.search(vectors, 3, allow=[[]] * 5).item_rows == -1).all()
    assert (index.search(vectors, 3, deny=[]).item_rows >= 0).all()
    assert (index.search(vectors, 3, deny=[[]] * 5).item_rows >= 0).all()


def test_no_requests_give_no_rows():
    index = ItemIndex.build(*vectors_and_ids(5), model_hash="m")
    assert index.search(np.empty((0, 8)), 3).item_rows.shape == (0, 3)
    assert index.search(np.empty((0, 8)), 3, deny=[["a"]][:0]).ids.shape == (0, 3)


def test_ivf_reaches_its_recall_and_reports_it(ivf):
    index, vectors, _ = ivf
    found = index.search(vectors[:500], 100).item_rows
    truth = brute_force(vectors, vectors[:500], 100, np.ones((500, 4000), bool))
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)])
    manifest = index.manifest
    assert manifest.kind == "ivf"
    assert 1 <= manifest.num_probes < manifest.num_lists
    assert recall == pytest.approx(manifest.recall_ceiling, abs=0.03)
    assert recall > 0.87


def test_ivf_asked_for_more_recall_reads_more_lists(ivf):
    index, vectors, ids = ivf
    exact = ItemIndex.build(vectors, ids, model_hash="m", kind="ivf", target_recall=1.0)
    assert exact.manifest.num_probes > index.manifest.num_probes
    assert exact.manifest.recall_ceiling > 0.999


@pytest.fixture
def tuned_on(ivf):
    """The manifest of an index of the same items that is tuned on a sample."""
    _, vectors, ids = ivf

    def built(sample):
        return ItemIndex.build(
            vectors, ids, model_hash="m", kind="ivf", target_recall=0.9, sample_vectors=sample
        ).manifest

    return built


def test_the_order_of_a_sample_does_not_matter(ivf, tuned_on):
    near = ivf[1][:200]
    far = 3 * np.random.default_rng(2).normal(size=(200, 16)).astype("f4")
    one, other = tuned_on(np.concatenate([near, far])), tuned_on(np.concatenate([far, near]))
    assert one.recall_ceiling == pytest.approx(other.recall_ceiling, abs=0.03)
    assert one.recall_ceiling == pytest.approx(0.9, abs=0.03)


def test_ivf_is_tuned_on_half_the_sample_and_measured_on_the_other(ivf, tuned_on):
    index, vectors, _ = ivf
    same = np.repeat(vectors[:1], 100, axis=0)
    choosing, measuring = halves(200)
    mixed = np.empty((200, 16), "f4")
    mixed[choosing] = same
    mixed[measuring] = np.random.default_rng(2).normal(size=(100, 16))
    alike, apart = tuned_on(np.concatenate([same, same])), tuned_on(mixed)
    assert alike.num_probes == apart.num_probes != index.manifest.num_probes
    assert alike.recall_ceiling >= 0.9
    assert 0.3 < apart.recall_ceiling < 1
    assert apart.recall_ceiling != alike.recall_ceiling


def test_ivf_under_filters_is_exact_or_full(ivf):
    index, vectors, ids = ivf
    queries = vectors[:4]
    allowed = np.zeros((4, 4000), bool)
    allowed[:, ::13] = True
    rows = index.search(queries, 20, allow=ids[::13]).item_rows
    np.testing.assert_array_equal(rows, brute_force(vectors, queries, 20, allowed))
    # All but 30 denied: the lists that are near hold almost none of them.
    kept = np.zeros((4, 4000), bool)
    kept[:, 3970:] = True
    for deny in (ids[:3970], [ids[:3970]] * 4):
        rows = index.search(queries, 30, deny=deny).item_rows
        np.testing.assert_array_equal(rows, brute_force(vectors, queries, 30, kept))
    assert (index.search(queries, 4000).item_rows >= 0).all()


def test_half_of_the_items_denied_are_passed_over_and_not_compared_with(ivf, monkeypatch):
    index, vectors, _ = ivf
    compared = []
    exact = Base.exact

    def counted(self, queries, k, keep):
        compared.append(len(queries))
        return exact(self, queries, k, keep)

    monkeypatch.setattr(Base, "exact", counted)
    rng = np.random.default_rng(8)
    queries = vectors[rng.integers(len(vectors), size=40)]
    for denied_share, k in ((0.0, 200), (0.5, 200), (0.75, 100)):
        denied = rng.random(len(vectors)) < denied_share
        found = index.search(queries, k, deny=denied)
        assert (found.item_rows >= 0).all()
        assert not denied[found.item_rows].any()
        wanted = brute_force(vectors, queries, k, np.tile(~denied, (40, 1)))
        recalled = [np.isin(a, b).mean() for a, b in zip(wanted, found.item_rows, strict=True)]
        assert np.mean(recalled) > 0.9
    assert sum(compared) <= 4  # of 120


def test_auto_is_flat_below_the_limit(monkeypatch):
    vectors, ids = vectors_and_ids(100)
    assert ItemIndex.build(vectors, ids, model_hash="m").manifest.kind == "flat"
    monkeypatch.setattr("retrieval.kinds.FLAT_BELOW", 100)
    assert ItemIndex.build(vectors, ids, model_hash="m").manifest.kind == "ivf"


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_add_and_remove_keep_the_rows_of_the_others(kind, tmp_path):
    vectors, ids = vectors_and_ids(200)
    index = ItemIndex.build(vectors[:150], ids[:150], model_hash="m", kind=kind, target_recall=1.0)
    before = index.search(vectors[:3], 2)
    gone = ids[:3]
    names_before = before.ids.tolist()
    index.remove([*gone, gone[0]])
    index.add(vectors[150:], ids[150:])
    index.add(vectors[:1], [gone[0]])
    index.save(tmp_path / "index")
    for one in (index, ItemIndex.load(tmp_path / "index")):
        assert len(one) == one.manifest.count == 198
        assert gone[0] in one
        assert gone[1] not in one
        keep = np.ones((9, 201), bool)
        keep[:, [ids.index(name) for name in gone]] = False
        known = np.concatenate([vectors, vectors[:1]])
        rows = one.search(vectors[:9], 250).item_rows
        np.testing.assert_array_equal(rows, brute_force(known, vectors[:9], 250, keep))
        # The one that came back did so as a new row.
        assert one.search(vectors[:1], 1, allow=[gone[0]]).item_rows.tolist() == [[200]]
        denied = one.search(vectors[:1], 198, deny=[gone[0]]).item_rows
        np.testing.assert_array_equal(
            denied, brute_force(known[:200], vectors[:1], 198, keep[:1, :200])
        )
    assert before.ids.tolist() == names_before


def test_everything_removed_finds_nothing():
    vectors, ids = vectors_and_ids(3)
    index = ItemIndex.build(vectors, ids, model_hash="m")
    index.remove(ids)
    assert len(index) == 0
    assert (index.search(vectors, 2).item_rows == -1).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_load_gives_what_was_saved(kind, tmp_path):
    vectors, ids = vectors_and_ids(300)
    index = ItemIndex.build(vectors, ids, model_hash="m", kind=kind, target_recall=0.7)
    index.save(tmp_path / "deep" / "index")
    loaded = ItemIndex.load(tmp_path / "deep" / "index", model_hash="m")
    assert loaded.manifest == index.manifest
    assert loaded.ids.tolist() == ids
    before, after = index.search(vectors, 9), loaded.search(vectors, 9)
    np.testing.assert_array_equal(before.item_rows, after.item_rows)
    np.testing.assert_array_equal(before.scores, after.scores)
    manifest = json.loads((tmp_path / "deep" / "index" / "manifest.json").read_text())
    assert {"dimension", "metric", "count", "model_hash", "recall_ceiling"} < set(manifest)
    kept = {"codec", "ids", "vectors"} | ({"index"} if kind == "ivf" else set())
    assert {name.partition("-")[0] for name in manifest["files"]} == kept


def test_save_replaces_an_index_and_nothing_else(tmp_path):
    vectors, ids = vectors_and_ids(20)
    ItemIndex.build(vectors, ids, model_hash="old").save(tmp_path / "index")
    ItemIndex.build(vectors[:5], ids[:5], model_hash="new").save(tmp_path / "index")
    assert len(ItemIndex.load(tmp_path / "index", model_hash="new")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("rain")
    with pytest.raises(FileExistsError, match="diary holds other files"):
        ItemIndex.build(vectors, ids, model_hash="m").save(tmp_path / "diary")
    assert (tmp_path / "diary" / "monday.txt").read_text() == "rain"


def test_save_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    vectors, ids = vectors_and_ids(20)
    ItemIndex.build(vectors, ids, model_hash="old").save(tmp_path / "index")

    def full(*_):
        raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr("retrieval.folder.faiss.write_index", full)
    with pytest.raises(OSError, match="No space left"):
        ItemIndex.build(vectors, ids, model_hash="new").save(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert ItemIndex.load(tmp_path / "index").manifest.model_hash == "old"


def test_save_that_fails_at_the_very_end_puts_the_old_index_back(tmp_path, monkeypatch):
    vectors, ids = vectors_and_ids(20)
    ItemIndex.build(vectors, ids, model_hash="old").save(tmp_path / "index")
    path_type = type(tmp_path)
    rename = path_type.rename

    def refuse_the_new(self, target):
        if target.name == "manifest.json":
            raise PermissionError("not today")
        return rename(self, target)

    monkeypatch.setattr(path_type, "rename", refuse_the_new)
    with pytest.raises(PermissionError):
        ItemIndex.build(vectors, ids, model_hash="new").save(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert ItemIndex.load(tmp_path / "index").manifest.model_hash == "old"


def test_load_refuses_another_models_index(tmp_path):
    vectors, ids = vectors_and_ids(5)
    index = ItemIndex.build(vectors, ids, model_hash="mine")
    index.save(tmp_path / "index")
    with pytest.raises(IndexMismatch, match=r"'yours'.*'mine'.*build"):
        ItemIndex.load(tmp_path / "index", model_hash="yours")
    with pytest.raises(IndexMismatch, match="yours"):
        index.add(vectors, ["a", "b", "c", "d", "e"], model_hash="yours")
    assert len(index) == 5


@pytest.mark.parametrize(
    "content", ["codec", "vectors", "ids", "index", "delta", "removed", "manifest"]
)
def test_load_refuses_files_that_are_cut_changed_or_missing(content, tmp_path):
    vectors, ids = vectors_and_ids(50)
    index = ItemIndex.build(vectors[:40], ids[:40], model_hash="m", kind="ivf")
    index.add(vectors[40:], ids[40:])
    index.remove(ids[:1])
    index.save(tmp_path / "index")
    (path,) = (tmp_path / "index").glob(f"{content}*")
    name = path.name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IndexMismatch, match=name):
        ItemIndex.load(tmp_path / "index")
    if name != "manifest.json":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(IndexMismatch, match=name):
            ItemIndex.load(tmp_path / "index")
    path.unlink()
    with pytest.raises(IndexMismatch, match=name):
        ItemIndex.load(tmp_path / "index")


@pytest.mark.parametrize("change", [{"dimension": 9}, {"count": 49}, {"metric": "l2"}, {"new": 1}])
def test_load_refuses_a_manifest_that_does_not_fit(change, tmp_path):
    ItemIndex.build(*vectors_and_ids(50), model_hash="m").save(tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(IndexMismatch):
        ItemIndex.load(tmp_path / "index")


def test_load_refuses_a_folder_that_is_no_index(tmp_path):
    with pytest.raises(IndexMismatch, match="holds no index"):
        ItemIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"vectors": np.empty((0, 4)), "ids": []}, "at least one item"),
        ({"vectors": [[1.0, np.nan], [0, 0]]}, "row 0 holds NaN"),
        ({"vectors": [[1.0, 0], [np.inf, 0]]}, "row 1 holds NaN or infinity"),
        ({"vectors": [1.0, 2.0]}, "shape"),
        ({"vectors": np.empty((2, 0))}, "shape"),
        ({"ids": ["a", "a"]}, "'a' stands there twice"),
        ({"ids": ["a", 2]}, "2 is not a text"),
        ({"ids": ["a"]}, "1 entries for 2 vectors"),
        ({"model_hash": ""}, "model_hash is empty"),
        ({"kind": "hsnw"}, "kind is 'hsnw'.*'hnsw'"),
        ({"kind": "IDMap,Flat"}, "kind.*add"),
        ({"kind": "L2norm,Flat"}, "kind is 'L2norm,Flat'.*another factory string"),
        ({"storage": "int4"}, "storage is 'int4'.*int8"),
        ({"max_bytes": 3}, "max_bytes is 3"),
        ({"kind": "PQ1", "max_bytes": 3}, "factory string"),
        ({"target_recall": 0.0}, "target_recall"),
        ({"kind": "ivf", "sample_vectors": [[1.0, 0]]}, "at least 2"),
        ({"kind": "ivf", "sample_vectors": [[1.0], [0]]}, "sample_vectors has 1 numbers"),
        ({"kind": "ivf", "vectors": [[1.0, 0]], "ids": ["a"]}, "kind is 'ivf'.*one item.*'flat'"),
    ],
)
def test_build_refuses(arguments, says):
    good = {"vectors": np.eye(2), "ids": ["a", "b"], "model_hash": "m"}
    with pytest.raises(ValueError, match=says):
        ItemIndex.build(**{**good, **arguments})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"vectors": np.eye(3)}, "3 numbers per vector, the index 2"),
        ({"vectors": [[np.nan, 0]]}, "NaN"),
        ({"deny": "a"}, "list of ids"),
        ({"allow": [["a"]]}, "1 lists for 2 requests"),
    ],
)
def test_search_refuses(arguments, says):
    index = ItemIndex.build(np.eye(2), ["a", "b"], model_hash="m")
    with pytest.raises(ValueError, match=says):
        index.search(**{"vectors": np.eye(2), "k": 1, **arguments})


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([1.7], r"rows=array\(\[1\.7\]\) .*whole numbers"),
        ([True, False], "rows=.*whole numbers"),
        (["1"], "rows=.*whole numbers"),
        (1, r"rows has the shape \(\); give \[rows\]"),
        ([[1]], r"rows has the shape \(1, 1\)"),
        ([1, 2], "rows: 2 holds no item"),
        ([-1], "rows: -1 holds no item"),
    ],
)
def test_vectors_at_refuses(rows, says):
    index = ItemIndex.build(np.eye(2), ["a", "b"], model_hash="m")
    assert index.vectors_at([]).shape == (0, 2)
    assert index.vectors_at(np.array([1], np.uint8)).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=says):
        index.vectors_at(rows)


@pytest.mark.filterwarnings("error")
def test_numbers_whose_sum_is_infinite_are_finite():
    large = np.array([[3e38, 0], [0, -3e38]], np.float32)
    index = ItemIndex.build(large, ["a", "b"], model_hash="m")
    assert index.search([[1.0, -0.5], [0.0, -1.0]], 1).ids.tolist() == [["a"], ["b"]]
    assert index.search(large / 1e38, 1).ids.tolist() == [["a"], ["b"]]
    with pytest.raises(ValueError, match=r"row 1 holds NaN or infinity \(1 such rows\)"):
        index.search([[1.0, 0], [np.inf, -np.inf]], 1)


def test_long_lists_of_ids_say_what_masks_say():
    """Short lists become positions and long ones masks; ids may repeat, be unknown or be new."""
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (3000, 3))
    ids = [f"i{row}" for row in range(3000)]
    index = ItemIndex.build(vectors[:2900], ids[:2900], model_hash="m", kind="ivf")
    index.remove(["i7"])
    index.add(vectors[2900:], ids[2900:])
    for count in (3, 1024, 1500, 2950):
        rows = rng.permutation(3000)[:count]
        mask = np.zeros(3000, bool)
        mask[rows] = True
        named = [ids[row] for row in rows] + [ids[rows[0]], "nobody"]
        for masked, said in (
            ({"allow": mask}, {"allow": named}),
            ({"deny": mask}, {"deny": named}),
        ):
            wanted, found = (index.search(queries, 40, **how) for how in (masked, said))
            assert found.ids.tolist() == wanted.ids.tolist()
            [alone] = [index.search(queries[:1], 40, **{k: [v]}) for k, v in said.items()]
            assert alone.ids.tolist() == wanted.ids.tolist()[:1]
            array = {k: np.array(v) for k, v in said.items()}
            assert index.search(queries, 40, **array).ids.tolist() == wanted.ids.tolist()


def test_add_and_remove_refuse_and_change_nothing():
    index = ItemIndex.build(np.eye(2), ["a", "b"], model_hash="m")
    with pytest.raises(ValueError, match="'b' is in the index already"):
        index.add(np.eye(2), ["c", "b"])
    with pytest.raises(ValueError, match="'c' is not in the index"):
        index.remove(["a", "c"])
    assert index.search(np.eye(2), 3).ids.tolist() == [["a", "b", None], ["b", "a", None]]
