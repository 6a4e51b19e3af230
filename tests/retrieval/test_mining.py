"""Hard negatives against brute force: near, never right, never denied."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import ItemIndex
from retrieval.mining import mine_hard_negatives


@pytest.fixture(scope="module")
def items():
    """An index of 60 items, and their vectors."""
    vectors = np.random.default_rng(0).normal(size=(60, 6)).astype("f4")
    return ItemIndex.build(vectors, [f"i{row}" for row in range(60)], model_hash="m"), vectors


@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 70),
    skip=st.integers(0, 5),
    margin=st.none() | st.floats(-2, 4),
    max_depth=st.integers(1, 80),
    num_denied=st.integers(0, 30),
)
def test_negatives_are_what_brute_force_says(items, seed, k, skip, margin, max_depth, num_denied):
    index, vectors = items
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(5, 6)).astype("f4")
    right = rng.integers(60, size=5)
    denied = [rng.integers(60, size=rng.integers(num_denied + 1)) for _ in right]

    found = mine_hard_negatives(
        index,
        queries,
        right,
        k=k,
        skip=skip,
        margin=margin,
        deny_rows=denied,
        max_depth=max_depth,
    )

    assert found.dtype == np.int32
    assert found.shape == (5, k)
    for row, query, answer, refused in zip(found, queries, right, denied, strict=True):
        scores = vectors @ query
        order = [r for r in np.argsort(-scores) if r != answer and r not in refused]
        expected = [
            r
            for r in order[skip:max_depth]
            if margin is None or scores[r] <= scores[answer] - np.float32(margin)
        ][:k]
        assert row.tolist() == expected + [-1] * (k - len(expected))


def test_without_denials_only_the_right_item_is_left_out(items):
    index, vectors = items
    found = mine_hard_negatives(index, vectors[:9], np.arange(9), k=59)
    assert [sorted(row) for row in found.tolist()] == [
        [r for r in range(60) if r != row] for row in range(9)
    ]


def test_no_queries_give_no_negatives(items):
    assert mine_hard_negatives(items[0], np.empty((0, 6)), [], k=3).shape == (0, 3)


def test_removed_items_are_no_negatives():
    index = ItemIndex.build(np.eye(4), ["a", "b", "c", "d"], model_hash="m")
    index.remove(["b"])
    query = [[1.0, 0.9, 0.8, 0.7]]
    assert mine_hard_negatives(index, query, [0], k=3).tolist() == [[2, 3, -1]]
    with pytest.raises(ValueError, match="rows"):
        mine_hard_negatives(index, query, [1], k=1, margin=0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"skip": -1}, "skip is -1"),
        ({"max_depth": 0}, "max_depth is 0"),
        ({"margin": np.nan}, "margin is nan"),
        ({"right_rows": [1]}, "one per query"),
        ({"right_rows": [1, 60]}, "60 is no row"),
        ({"right_rows": [-1, 0]}, "-1 is no row"),
        ({"right_rows": [0.5, 1]}, "whole numbers"),
        ({"deny_rows": [[1]]}, "1 entries for 2 queries"),
        ({"deny_rows": [[1], [99]]}, "99 is no row"),
        ({"queries": np.ones((2, 5))}, "5 numbers per vector"),
    ],
)
def test_mining_refuses(items, arguments, says):
    good = {"queries": np.ones((2, 6)), "right_rows": [0, 1], "k": 3}
    with pytest.raises(ValueError, match=says):
        mine_hard_negatives(items[0], **{**good, **arguments})
