"""What `auto` chooses, how well it lands, and what kinds and storages promise."""

import numpy as np
import pytest

from retrieval import ItemIndex
from retrieval.base import Base
from retrieval.kinds import plan
from retrieval.storage import new_codec, rounded


def clustered(count, dimension=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, dimension))
    noise = 0.4 * rng.normal(size=(count, dimension))
    return (centres[rng.integers(50, size=count)] + noise).astype("f4")


@pytest.mark.parametrize(("target", "max_bytes"), [(0.8, None), (0.95, None), (0.9, 110_000)])
def test_auto_lands_within_one_per_cent_of_its_target(target, max_bytes, monkeypatch):
    monkeypatch.setattr("retrieval.kinds.FLAT_BELOW", 1000)
    # No clusters: then a search reads lists enough to hold a hundred, and their number is fine.
    vectors = np.random.default_rng(0).normal(size=(9000, 16)).astype("f4")
    items, sample, unseen = vectors[:6000], vectors[6000:7500], vectors[7500:]
    index = ItemIndex.build(
        items,
        [str(row) for row in range(6000)],
        model_hash="m",
        target_recall=target,
        max_bytes=max_bytes,
        sample_vectors=sample,
    )
    manifest = index.manifest
    assert manifest.kind == ("ivf" if max_bytes is None else "ivf-pq")
    assert max_bytes is None or manifest.num_bytes <= max_bytes
    found = index.search(unseen, 100).item_rows
    truth = np.argsort(-unseen @ items.T, axis=1)[:, :100]
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)])
    # Both sides: a search that finds much more than was asked for is slower than was asked for.
    assert abs(manifest.recall_ceiling - recall) < 0.01
    assert target - 0.01 <= recall
    assert recall <= target + (0.01 if max_bytes is None else 0.06)


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq", "PCA12,IVF100,SQ8"])
def test_who_asks_for_more_than_was_tuned_for_is_not_compared_with_all(kind, monkeypatch):
    vectors = clustered(4000)
    items, queries = vectors[:3900], vectors[3900:]
    index = ItemIndex.build(items, [str(row) for row in range(3900)], model_hash="m", kind=kind)
    manifest = index.manifest
    assert manifest.num_probes / manifest.num_lists * 3900 < 2 * 300
    compared = []
    plain = Base.exact
    monkeypatch.setattr(
        Base,
        "exact",
        lambda self, some, *more: compared.append(len(some)) or plain(self, some, *more),
    )
    truth = np.argsort(-queries @ items.T, axis=1)
    for k, filters in ((400, {}), (300, {"deny": ["5"]})):
        found = index.search(queries, k, **filters).item_rows
        assert (found >= 0).all()
        recall = [np.isin(a, b).mean() for a, b in zip(truth[:, :k], found, strict=True)]
        assert np.mean(recall) > 0.85
    assert sum(compared) <= 10
    # What was tuned and measured is searched as it was.
    searched = index._snapshot.base.searcher.search(queries, 100)[1]
    is_full = searched[:, -1] >= 0
    np.testing.assert_array_equal(index.search(queries, 100).item_rows[is_full], searched[is_full])


@pytest.mark.parametrize("kind", ["ivf-pq", "PCA12,IVF100,PQ4x4"])
def test_who_asks_for_fewer_than_was_tuned_for_finds_as_much(kind):
    vectors = clustered(6200)
    items, queries = vectors[:6000], vectors[6000:]
    index = ItemIndex.build(
        items, [str(row) for row in range(6000)], model_hash="m", kind=kind, target_recall=0.9
    )
    truth = np.argsort(-queries @ items.T, axis=1)
    recall = {}
    for k in (1, 10, 100):
        found = index.search(queries, k)
        assert found.item_rows.shape == found.scores.shape == (200, k)
        recall[k] = np.mean(
            [np.isin(a, b).mean() for a, b in zip(truth[:, :k], found.item_rows, strict=True)]
        )
    assert recall[100] > 0.85
    assert min(recall[1], recall[10]) > recall[100]


def test_a_graph_looks_harder_for_more_recall():
    # A target that the least view cannot miss, and one that it can.
    vectors = np.random.default_rng(0).normal(size=(2300, 24)).astype("f4")
    items, sample = vectors[:2000], vectors[2000:]
    ids = [str(row) for row in range(2000)]
    efforts = []
    for target in (0.5, 0.995):
        index = ItemIndex.build(
            items,
            ids,
            model_hash="m",
            kind="hnsw",
            target_recall=target,
            sample_vectors=sample,
        )
        efforts.append(index.manifest.ef_search)
        assert index.manifest.recall_ceiling >= target - 0.02
    assert efforts[0] < efforts[1]


@pytest.mark.parametrize(
    ("count", "storage", "max_bytes", "kind"),
    [
        (49_999, "float32", None, "flat"),
        (50_000, "float32", None, "ivf"),
        (1_000_000, "float32", 600_000_000, "ivf"),
        (1_000_000, "float32", 500_000_000, "ivf-pq"),
        (1_000_000, "float16", 300_000_000, "ivf"),
        (1_000_000, "int8", 150_000_000, "ivf"),
        (100_000_000, "float16", 8 << 30, "ivf-pq"),
    ],
)
def test_auto_takes_what_fits(count, storage, max_bytes, kind):
    chosen = plan("auto", count, 128, storage, max_bytes)
    assert chosen.kind == kind
    assert max_bytes is None or chosen.num_bytes <= max_bytes


def test_what_fits_nowhere_is_refused_with_what_it_would_take():
    with pytest.raises(ValueError, match=r"max_bytes is 1,000,000.*ivf-pq.*want [\d,]+; allow"):
        plan("auto", 1_000_000, 128, "float32", 1_000_000)
    with pytest.raises(ValueError, match="as hnsw"):
        plan("hnsw", 1_000_000, 128, "float32", 600_000_000)


def test_bytes_are_what_the_index_takes():
    vectors = clustered(4000)
    ids = [str(row) for row in range(4000)]
    for kind in ("ivf", "ivf-pq"):
        index = ItemIndex.build(vectors, ids, model_hash="m", kind=kind, target_recall=0.5)
        lists = index._snapshot.base.structure.invlists
        # FAISS counts codes and labels; the centres come besides.
        held = lists.compute_ntotal() * (lists.code_size + 8) + lists.nlist * 16 * 4
        assert index.manifest.num_bytes == held


@pytest.mark.parametrize(("storage", "error"), [("float32", 0), ("float16", 1e-3), ("int8", 0.01)])
def test_storage_rounds_once(storage, error):
    vectors = np.random.default_rng(0).uniform(-1, 1, (500, 8)).astype("f4")
    codec = new_codec(8, storage, low_D=vectors.min(0), high_D=vectors.max(0))
    once = rounded(codec, vectors)
    assert np.abs(once - vectors).max() <= error
    np.testing.assert_array_equal(rounded(codec, once), once)


LARGEST = 65_504.0


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_number_that_float16_cannot_hold_is_refused(kind):
    vectors = clustered(60)
    vectors[7, 3], vectors[8, 2] = LARGEST, -LARGEST
    ids = [str(row) for row in range(60)]
    build = {"model_hash": "m", "kind": kind, "storage": "float16"}
    index = ItemIndex.build(vectors, ids, **build)
    np.testing.assert_array_equal(index.vectors_at([7, 8])[[0, 1], [3, 2]], [LARGEST, -LARGEST])
    beyond = np.nextafter(np.float32(LARGEST), np.float32(np.inf))
    for value in (beyond, -1e30):
        vectors[9, 1] = value
        with pytest.raises(ValueError, match=r"vectors: row 9 holds .*65,504.*normalise.*float32"):
            ItemIndex.build(vectors, ids, **build)
        with pytest.raises(ValueError, match="vectors: row 1 holds"):
            index.add(vectors[8:10], ["new", "newer"])
        assert len(index) == 60
        wide = ItemIndex.build(vectors, ids, **{**build, "storage": "float32"})
        assert wide.vectors_at([9])[0, 1] == np.float32(value)


def test_a_range_that_float32_cannot_hold_is_refused_for_bytes():
    vectors = clustered(60)
    vectors[7, 3], vectors[8, 3] = -2e38, 2e38
    build = {"ids": [str(row) for row in range(60)], "model_hash": "m", "storage": "int8"}
    says = r"dimension 3 goes from -1\.9\d+e\+38 to 1\.9\d+e\+38.*normalise"
    with pytest.raises(ValueError, match=says):
        ItemIndex.build(vectors, **build)
    vectors[8, 3] = 1e38
    assert np.isfinite(ItemIndex.build(vectors, **build).vectors_at(np.arange(60))).all()


def test_a_dimension_that_never_changes_is_stored_as_it_is():
    vectors = np.ones((60, 4), "f4") * [1, -2, 0, 0.5]
    vectors[:, 3] = np.linspace(0, 1, 60)
    index = ItemIndex.build(
        vectors, [str(row) for row in range(60)], model_hash="m", storage="int8"
    )
    np.testing.assert_allclose(index.vectors_at([3, 59]), vectors[[3, 59]], atol=0.01)


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq"])
def test_one_item_and_few_items_can_be_any_kind(kind):
    for count in (1, 20):
        vectors = clustered(count)
        ids = [str(row) for row in range(count)]
        sample = clustered(4, seed=1)
        build = {"model_hash": "m", "kind": kind, "sample_vectors": sample}
        if kind == "ivf-pq" and count == 1:
            with pytest.raises(ValueError, match="FAISS cannot make it of 1 training vectors"):
                ItemIndex.build(vectors, ids, **build)
            continue
        rows = ItemIndex.build(vectors, ids, **build).search(sample, 30).item_rows
        assert ((rows >= 0).sum(1) == count).all()
