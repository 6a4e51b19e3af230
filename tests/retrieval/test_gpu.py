"""An index on GPUs answers as the one on the CPU, whatever FAISS's GPU indexes ignore."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

# A machine that is there for its GPU may lack it; the other tests marked gpu run all the same.
faiss = pytest.importorskip("faiss")

from retrieval import ItemIndex  # noqa: E402


class StandIn:
    """A FAISS index as GPUs have them: no filters, 2,048 candidates, one thread, short answers."""

    def __init__(self, index):
        self.index, self.busy, self.searches = index, threading.Lock(), 0

    def search(self, queries, k, **ignored):
        assert k <= 2048
        assert not ignored
        assert self.busy.acquire(blocking=False), "two threads at once"
        try:
            scores, places = self.index.search(queries, k)
        finally:
            self.busy.release()
        # Every third search comes back with padding where there would be more.
        self.searches += 1
        if self.searches % 3 == 0:
            scores[:, k // 2 :], places[:, k // 2 :] = -np.inf, -1
        return scores, places


@pytest.fixture
def two_gpus(monkeypatch):
    """A FAISS that believes it has GPUs; says what it was asked to put there."""
    asked = []

    def clone(index, co, gpus):
        asked.append((type(index).__name__, co.shard, co.useFloat16, gpus))
        return StandIn(index)

    for name, value in (
        ("StandardGpuResources", object),
        ("get_num_gpus", lambda: 2),
        ("GpuMultipleClonerOptions", SimpleNamespace),
        ("index_cpu_to_gpus_list", clone),
    ):
        monkeypatch.setattr(faiss, name, value, raising=False)
    return asked


def test_a_number_that_float16_cannot_hold_does_not_go_to_a_gpu(two_gpus):
    vectors = np.eye(4)
    vectors[2, 1] = 1e5
    index = ItemIndex.build(vectors, list("abcd"), model_hash="m")
    with pytest.raises(ValueError, match=r"item 'c' holds 100000,.*float32"):
        index.to_gpu(float16=True)
    assert len(index.to_gpu()) == 4


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf-pq"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_answers_are_those_of_the_cpu(kind, storage, two_gpus):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 8)).astype("f4")
    ids = [f"i{row}" for row in range(3000)]
    # Codes find most of the nearest, lists that are all read find each of them.
    recall = 0.8 if kind == "ivf-pq" else 1.0
    index = ItemIndex.build(
        vectors[:2900],
        ids[:2900],
        model_hash="m",
        kind=kind,
        storage=storage,
        target_recall=recall,
        sample_vectors=vectors[:100],
    )
    on_gpu = index.to_gpu(devices=[1], mode="shard", float16=kind == "flat")
    assert two_gpus[0][1:] == (True, kind == "flat", [1])
    for step in range(3):
        if step == 1:
            for one in (index, on_gpu):
                one.remove(ids[:500])
                one.add(vectors[2900:], ids[2900:])
        if step == 2:
            index.compact()
            on_gpu.compact()
            assert len(two_gpus) == 2
        queries = rng.normal(size=(5, 8)).astype("f4")
        mask = rng.random(on_gpu.num_rows) < 0.1
        for filters in (
            {},
            {"allow": ids[::7]},
            {"allow": mask},
            {"deny": ids[:2800]},
            {"deny": [ids[at::3] for at in range(5)]},
            {"allow": [ids[at::9] for at in range(5)], "deny": ids[::2]},
        ):
            for k in (10, 2500):
                there, here = (
                    on_gpu.search(queries, k, **filters),
                    index.search(queries, k, **filters),
                )
                assert ((there.item_rows >= 0) == (here.item_rows >= 0)).all()
                assert (np.diff(there.scores[:, : (here.item_rows >= 0).sum(1).min()]) <= 0).all()
                if kind != "ivf-pq" or "allow" in filters:
                    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-5, atol=1e-5)
                    assert (there.item_rows == here.item_rows).mean() > 0.99
    assert len(on_gpu) == 2500


def test_two_indexes_of_the_same_items_go_their_own_ways(two_gpus):
    index = ItemIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m")
    index.add([[1.0, 1, 1]], ["d"])
    on_gpu = index.to_gpu()
    assert two_gpus[0][3] == [0, 1]
    index.add([[2.0, 2, 2]], ["here"])
    on_gpu.add([[3.0, 3, 3]], ["there"])
    assert index.search([[1.0, 1, 1]], 2).ids.tolist() == [["here", "d"]]
    assert on_gpu.search([[1.0, 1, 1]], 2).ids.tolist() == [["there", "d"]]


def test_many_threads_take_turns(two_gpus):
    index = ItemIndex.build(np.eye(16), [str(row) for row in range(16)], model_hash="m").to_gpu()
    failed = []

    def search():
        try:
            for _ in range(50):
                index.search(np.eye(16), 3)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_cannot_go_there_is_refused(two_gpus):
    vectors = np.random.default_rng(0).normal(size=(100, 4))
    ids = [str(row) for row in range(100)]
    index = ItemIndex.build(vectors, ids, model_hash="m", kind="hnsw")
    with pytest.raises(ValueError, match=r"IndexHNSWFlat has no form on a GPU.*'ivf'"):
        index.to_gpu()
    flat = ItemIndex.build(vectors, ids, model_hash="m")
    with pytest.raises(ValueError, match="mode is 'both'"):
        flat.to_gpu(mode="both")
    for devices in ([2], [], [-1]):
        with pytest.raises(ValueError, match="there are 2, numbered from 0"):
            flat.to_gpu(devices)


def test_without_gpu_code_or_a_gpu_the_error_says_what_to_install(monkeypatch):
    index = ItemIndex.build(np.eye(3), ["a", "b", "c"], model_hash="m")
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(RuntimeError, match=r"\[gpu\].*uninstall --yes faiss-cpu.*torch before"):
        index.to_gpu()
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(RuntimeError, match="sees no GPU"):
        index.to_gpu()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf-pq"])
@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_a_real_gpu_finds_what_the_cpu_finds(kind, mode):
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("the faiss that is installed has no GPU code")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20_000, 32)).astype("f4")
    ids = [f"i{row}" for row in range(20_000)]
    index = ItemIndex.build(vectors, ids, model_hash="m", kind=kind, target_recall=0.95)
    on_gpu = index.to_gpu(mode=mode)
    queries = rng.normal(size=(64, 32)).astype("f4")
    for step in range(3):
        if step == 1:
            for one in (index, on_gpu):
                one.remove(ids[:500])
                one.add(2 * queries[:8], [f"new{row}" for row in range(8)])
        if step == 2:
            index.compact()
            on_gpu.compact()
        for filters in ({}, {"deny": ids[::2]}, {"allow": ids[::50]}):
            here = index.search(queries, 50, **filters)
            there = on_gpu.search(queries, 50, **filters)
            assert (there.item_rows >= 0).all()
            same = [
                np.isin(a, b).mean() for a, b in zip(here.item_rows, there.item_rows, strict=True)
            ]
            assert np.mean(same) > (0.999 if filters.get("allow") else 0.95)
            if "deny" in filters:
                assert ((there.item_rows % 2 == 1) | (there.item_rows >= 20_000)).all()
            if step and not filters.get("allow"):
                assert (there.item_rows[:8, 0] == 20_000 + np.arange(8)).all()
                assert (there.item_rows >= 500).all()
    assert len(on_gpu) == 19_508


def test_codes_on_a_gpu_find_as_much_for_one_as_for_a_hundred(two_gpus):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3100, 16)).astype("f4")
    items, queries = vectors[:3000], vectors[3000:]
    index = ItemIndex.build(
        items, [str(row) for row in range(3000)], model_hash="m", kind="ivf-pq", target_recall=0.9
    )
    on_gpu = index.to_gpu()
    truth = np.argsort(-queries @ items.T, axis=1)
    recall = [
        np.mean([np.isin(a, b).mean() for a, b in zip(truth[:, :k], found, strict=True)])
        for k in (1, 100)
        for found in [on_gpu.search(queries, k).item_rows]
    ]
    assert recall[1] > 0.8
    assert recall[0] > recall[1] - 0.05
