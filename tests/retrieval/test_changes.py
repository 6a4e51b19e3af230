"""An index that is added to, removed from, compacted, saved and loaded: search is brute force."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import ItemIndex, delta

DIMENSION = 8
KINDS = ["flat", "ivf", "ivf-pq", "hnsw", "PCA4,SQ8"]


class Oracle:
    """What the index should hold, in plain numpy: a vector per row, None where removed."""

    def __init__(self, vectors, ids):
        self.vectors, self.ids = [*vectors], [*ids]

    def add(self, vectors, ids):
        self.vectors += [*vectors]
        self.ids += [*ids]

    def remove(self, ids):
        self.ids = [None if item in ids else item for item in self.ids]

    def live(self):
        return [item for item in self.ids if item is not None]

    def keep(self, allow, deny):
        return np.array(
            [
                item is not None and (allow is None or item in allow) and item not in (deny or ())
                for item in self.ids
            ]
        )


def check(index, oracle, rng, *, exact):
    """Search in every way that filters can be given, and compare."""
    stored = np.zeros((len(oracle.ids), DIMENSION), "f4")
    held = [row for row, item in enumerate(oracle.ids) if item is not None]
    stored[held] = index.vectors_at(held)
    # A byte a number is coarse, and what lies outside the range of the build is cut to it.
    assert np.abs(stored[held] - np.array(oracle.vectors)[held]).max(initial=0) < 0.2
    queries = rng.normal(size=(3, DIMENSION)).astype("f4")
    k = int(rng.integers(1, len(oracle.ids) + 3))
    assert len(index) == index.manifest.count == len(held)
    assert index.ids.tolist() == oracle.ids
    assert index.rows_of(["nobody", *oracle.live()]).tolist() == [-1, *held]
    known = [item for item in oracle.ids if item is not None] + ["nobody"]

    def some(share):
        return [str(item) for item in rng.permutation(known)[: int(share * len(known))]]

    lists = {"none": None, "one": some(rng.random()), "each": [some(rng.random()) for _ in queries]}
    for allow_kind in lists:
        for deny_kind in rng.permutation([*lists])[:2]:
            allow, deny = lists[allow_kind], lists[deny_kind]
            keeps = np.array(
                [
                    oracle.keep(
                        allow[request] if allow_kind == "each" else allow,
                        deny[request] if deny_kind == "each" else deny,
                    )
                    for request in range(3)
                ]
            )
            as_masks = {}
            if allow is not None:
                as_masks["allow"] = keeps if "each" in (allow_kind, deny_kind) else keeps[0]
            elif deny is not None:
                as_masks["deny"] = ~keeps if deny_kind == "each" else ~keeps[0]
            for filters in ({"allow": allow, "deny": deny}, as_masks):
                found = index.search(queries, k, **filters)
                expect(found, stored, queries, keeps, k, oracle, exact=exact or allow is not None)


def expect(found, stored, queries, keeps, k, oracle, *, exact):
    scores = np.where(keeps, queries @ stored.T, -np.inf)
    best = -np.sort(-scores, axis=1)[:, :k]
    assert found.item_rows.shape == found.scores.shape == (3, k)
    for request, (rows, said) in enumerate(zip(found.item_rows, found.scores, strict=True)):
        real = rows[rows >= 0]
        # Never short while there are items left, never one twice, never one that is kept out.
        assert len(real) == min(k, keeps[request].sum())
        assert len(set(real)) == len(real)
        assert keeps[request][real].all()
        np.testing.assert_allclose(said[: len(real)], scores[request][real], rtol=1e-4, atol=1e-4)
        assert (np.diff(said[: len(real)]) <= 1e-5).all()
        assert (said[len(real) :] == -np.inf).all()
        if exact:
            np.testing.assert_allclose(
                said[: len(real)], best[request][: len(real)], rtol=1e-4, atol=1e-4
            )
        assert found.ids[request].tolist() == [None if row < 0 else oracle.ids[row] for row in rows]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    storage=st.sampled_from(["float32", "float16", "int8"]),
    steps=st.lists(
        st.sampled_from(["add", "remove", "remove", "compact", "save", "again", "all"]), max_size=7
    ),
    seed=st.integers(0, 10_000),
)
def test_search_is_brute_force_whatever_happened(kind, storage, steps, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    names = (f"item {number}" for number in range(10_000))
    count = int(rng.integers(40, 90))
    oracle = Oracle(
        rng.uniform(-1, 1, (count, DIMENSION)).astype("f4"), [next(names) for _ in range(count)]
    )
    index = ItemIndex.build(
        oracle.vectors, oracle.ids, model_hash="m", kind=kind, storage=storage, target_recall=1.0
    )
    folder = None
    for step in steps:
        live = oracle.live()
        if step in ("remove", "all"):
            num_gone = len(live) if step == "all" else rng.integers(len(live) + 1)
            gone = [str(item) for item in rng.permutation(live)[:num_gone]]
            index.remove(gone)
            oracle.remove(gone)
        elif step in ("add", "again"):
            fresh = rng.uniform(-0.99, 0.99, (int(rng.integers(30)), DIMENSION)).astype("f4")
            # Removed ids may come back; as a new row.
            back = [item for item in ("item 0", "item 1") if item not in live]
            ids = [*(back if step == "again" else []), *(next(names) for _ in fresh)][: len(fresh)]
            index.add(fresh, ids)
            oracle.add(fresh, ids)
        elif step == "compact":
            index.compact()
        else:
            folder = folder or tmp_path_factory.mktemp("index")
            index.save(folder)
            index = ItemIndex.load(folder, model_hash="m")
        check(index, oracle, rng, exact=kind in ("flat", "ivf"))


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_many_denied_or_removed_leave_none_short(kind):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12_000, DIMENSION)).astype("f4")
    ids = [f"i{row}" for row in range(len(vectors))]
    index = ItemIndex.build(vectors, ids, model_hash="m", kind=kind, target_recall=0.5)
    queries = rng.normal(size=(6, DIMENSION)).astype("f4")
    nearest = np.argsort(-queries @ vectors.T, axis=1)
    # What lies nearest to each is what it may not have: more than is ever asked for at once.
    deny = [[ids[row] for row in near[: 5000 * (at % 2)]] for at, near in enumerate(nearest)]
    mask = np.zeros((6, len(ids)), bool)
    for at, near in enumerate(nearest):
        mask[at, near[: 5000 * (at % 2)]] = True
    for filters in ({"deny": deny}, {"deny": mask}, {"allow": ~mask}):
        rows = index.search(queries, 10, **filters).item_rows
        for at, near in enumerate(nearest):
            if at % 2 or kind == "flat" or "allow" in filters:
                assert rows[at].tolist() == near[5000 * (at % 2) :][:10].tolist()
    index.remove([ids[row] for row in nearest[0][:6000]])
    left = np.ones(len(ids), bool)
    left[nearest[0][:6000]] = False
    rows = index.search(queries[:1], 10).item_rows
    assert rows[0].tolist() == nearest[0][6000:6010].tolist()
    assert left[index.search(queries, 6000).item_rows].all()


def test_threads_see_one_state_while_others_change_it():
    """Items come in pairs with opposite vectors, and a pair lives or dies in one change."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(300, DIMENSION)).astype("f4")
    index = ItemIndex.build(
        np.concatenate([half, -half]),
        [f"{sign}{at}" for sign in "+-" for at in range(300)],
        model_hash="m",
        kind="flat",
    )
    stop, failures, searches = threading.Event(), [], [0]

    def search(seed):
        own = np.random.default_rng(seed)
        while not stop.is_set():
            queries = own.normal(size=(2, DIMENSION)).astype("f4")
            found = index.search(queries, 20, deny=["+1", "-1"])
            every = index.search(queries[:1], 5000)
            searches[0] += 1
            try:
                for names in found.ids:
                    assert not {"+1", "-1", None} & set(names)
                for query, rows, scores in zip(queries, found.item_rows, found.scores, strict=True):
                    assert len(set(rows.tolist())) == 20
                    assert (np.diff(scores) <= 1e-5).all()
                    del query
                held = [name for name in every.ids[0] if name is not None]
                assert len(set(held)) == len(held)
                assert {n[1:] for n in held if n[0] == "+"} == {n[1:] for n in held if n[0] == "-"}
                # A score is the inner product with the item that is named.
                for name, score in zip(every.ids[0], every.scores[0], strict=True):
                    if name is not None:
                        at, sign = int(name[1:]), 1 if name[0] == "+" else -1
                        assert abs(sign * vectors[at] @ queries[0] - score) < 1e-3
            except AssertionError as error:
                failures.append(error)
                return

    vectors = {at: half[at] for at in range(300)}
    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    alive, number = list(range(2, 300)), 300
    for change in range(60):
        fresh = rng.normal(size=(20, DIMENSION)).astype("f4")
        numbers = list(range(number, number + 20))
        number += 20
        vectors.update(zip(numbers, fresh, strict=True))
        index.add(
            np.concatenate([fresh, -fresh]), [f"{sign}{at}" for sign in "+-" for at in numbers]
        )
        gone = [alive.pop(int(rng.integers(len(alive)))) for _ in range(20)]
        index.remove([f"{sign}{at}" for sign in "+-" for at in gone])
        alive += numbers
        if change % 10 == 9:
            index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert searches[0] > 10
    assert len(index) == 2 * (len(alive) + 2)


def test_an_item_is_found_the_moment_it_is_added():
    index = ItemIndex.build(np.eye(4), ["a", "b", "c", "d"], model_hash="m")
    before = index.search([[0, 1.0, 0, 0]], 1)
    index.add([[0, 9.0, 0, 0]], ["new"])
    assert index.search([[0, 1.0, 0, 0]], 2).ids.tolist() == [["new", "b"]]
    assert "new" in index
    index.remove(["new", "b"])
    assert "new" not in index
    assert before.ids.tolist() == [["b"]]
    assert index.rows_of(["new", "c"]).tolist() == [-1, 2]


def test_a_mask_made_before_items_were_added_does_not_cover_them():
    index = ItemIndex.build(np.eye(2), ["a", "b"], model_hash="m")
    mask = np.array([True, False])
    index.add([[5.0, 5.0]], ["c"])
    assert index.search([[1.0, 1.0]], 3, allow=mask).ids.tolist() == [["a", None, None]]
    assert index.search([[1.0, 1.0]], 3, deny=mask).ids.tolist() == [["c", "b", None]]
    with pytest.raises(ValueError, match=r"shape \(4,\).*per row of the index \(3\)"):
        index.search([[1.0, 1.0]], 1, allow=np.ones(4, bool))
    with pytest.raises(ValueError, match="2 masks for 1 requests"):
        index.search([[1.0, 1.0]], 1, deny=np.ones((2, 3), bool))


def test_an_add_that_is_cut_short_leaves_nothing_behind(monkeypatch):
    index = ItemIndex.build(np.eye(4, dtype="f4"), list("abcd"), model_hash="m")
    index.add(2 * np.eye(4, dtype="f4")[:1], ["e"])
    plain = delta.replace

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(delta, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.add(5 * np.eye(4, dtype="f4")[:2], ["f", "h"])
    monkeypatch.setattr(delta, "replace", plain)
    assert "f" not in index
    index.add(9 * np.eye(4, dtype="f4")[2:3], ["g"])
    assert index.search(np.eye(4, dtype="f4")[2:3], 1).ids.tolist() == [["g"]]
    assert index.ids.tolist() == ["a", "b", "c", "d", "e", "g"]
    assert index.rows_of(["a", "e", "f", "h", "g"]).tolist() == [0, 4, -1, -1, 5]
