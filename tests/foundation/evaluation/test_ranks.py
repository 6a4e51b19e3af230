"""Ranks and rank metrics against a loop, a total order, and ir-measures."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.evaluation import (
    coverage,
    hit_rate,
    mrr,
    ndcg,
    rank_metrics,
    rank_of_targets,
    seen_items,
    top_items,
)


def lists(per_request):
    """Item lists of a list of lists."""
    indptr = np.cumsum([0, *map(len, per_request)])
    return indptr, np.array([item for one in per_request for item in one], np.int32)


@settings(deadline=None, max_examples=100)
@given(
    num_requests=st.integers(1, 5),
    num_items=st.integers(1, 12),
    num_levels=st.integers(1, 12),
    seed=st.integers(0, 10_000),
)
def test_ranks_and_lists_are_one_total_order(num_requests, num_items, num_levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.choice([-np.inf, *range(num_levels)], size=(num_requests, num_items))
    scores = scores.astype(np.float32)
    tie_order = rng.permutation(100)[:num_items]
    seen = [rng.integers(num_items, size=rng.integers(0, 8)).tolist() for _ in range(num_requests)]
    request = np.sort(rng.integers(num_requests, size=6))
    target = rng.integers(num_items, size=6)

    ranks = rank_of_targets(
        scores, target, request=request, exclude=lists(seen), tie_order=tie_order
    )
    top = top_items(scores, num_items, exclude=lists(seen), tie_order=tie_order)

    for one, (row, item) in enumerate(zip(request, target, strict=True)):
        out = ({*seen[row]} | {*target[request == row]}) - {item}
        ranked = sorted(set(range(num_items)) - out, key=lambda i: (-scores[row, i], tie_order[i]))
        assert ranks[one] == ranked.index(item) + 1
    for row in range(num_requests):
        left = set(range(num_items)) - set(seen[row])
        ranked = sorted(left, key=lambda i: (-scores[row, i], tie_order[i]))
        assert top[row].tolist() == ranked + [-1] * (num_items - len(ranked))


def test_equal_scores_rank_by_id_whoever_the_target_is():
    scores = np.zeros((3, 3))
    assert rank_of_targets(scores, np.array([0, 1, 2])).tolist() == [1, 2, 3]
    by_id = np.array([2, 0, 1])
    assert rank_of_targets(scores, np.array([0, 1, 2]), tie_order=by_id).tolist() == [3, 1, 2]


def test_a_target_in_the_history_is_ranked_and_repeats_count_once():
    scores = np.array([[3.0, 2.0, 1.0]])
    seen = lists([[0, 0, 2]])
    assert rank_of_targets(scores, np.array([2]), exclude=seen).tolist() == [2]
    assert rank_of_targets(scores, np.array([1]), exclude=seen).tolist() == [1]


def test_fellow_targets_do_not_stand_in_each_others_way():
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    ranks = rank_of_targets(scores, np.array([0, 2, 3, 0]), request=np.array([0, 0, 0, 1]))
    assert ranks.tolist() == [1, 2, 2, 4]


def test_the_places_of_a_catalogue_are_not_sorted_for_every_slice(monkeypatch):
    scores = np.zeros((2, 4))
    by_id = np.array([2, 0, 3, 1])
    expected = top_items(scores, 4, tie_order=by_id)
    monkeypatch.setattr(np, "unique", None)
    np.testing.assert_array_equal(top_items(scores, 4, tie_order=by_id), expected)
    assert rank_of_targets(scores, np.array([0, 3]), tie_order=by_id).tolist() == [3, 2]


def test_metrics_agree_with_ir_measures():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.permutation(150) for _ in range(40)]).astype(np.float32)
    target = rng.integers(150, size=40)
    seen = [rng.choice(150, size=20, replace=False).tolist() for _ in range(40)]
    ranks = rank_of_targets(scores, target, exclude=lists(seen))
    qrels = {str(row): {str(item): 1} for row, item in enumerate(target)}
    run = {
        str(row): {
            str(item): float(scores[row, item])
            for item in range(150)
            if item not in seen[row] or item == target[row]
        }
        for row in range(40)
    }
    oracle = ir_measures.calc_aggregate(
        [ir_measures.Success @ 10, ir_measures.nDCG @ 10, ir_measures.RR @ 100], qrels, run
    )
    ours = rank_metrics(ranks)
    assert ours["hr@10"] == pytest.approx(oracle[ir_measures.Success @ 10])
    assert ours["ndcg@10"] == pytest.approx(oracle[ir_measures.nDCG @ 10], abs=1e-4)
    assert ours["mrr@100"] == pytest.approx(oracle[ir_measures.RR @ 100])
    assert 0 < ours["ndcg@10"] < ours["hr@10"]


def test_metrics_by_hand():
    ranks = np.array([1, 2, 10, 11])
    assert hit_rate(ranks, 10).tolist() == [1, 1, 1, 0]
    assert ndcg(ranks, 10) == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(11), 0])
    assert mrr(ranks, 10) == pytest.approx([1, 0.5, 0.1, 0])
    assert np.isnan(list(rank_metrics(ranks[:0]).values())).all()


def test_coverage_counts_items_once_and_padding_never():
    assert coverage(np.array([[0, 1], [1, -1]]), 8) == 0.25


def test_top_items_pads_above_the_catalogue():
    assert top_items(np.array([[1.0, 2.0]]), 3).tolist() == [[1, 0, -1]]


def test_seen_items_are_the_histories():
    item = np.array([5, 6, 7, 8, 9], np.int32)
    indptr, indices = seen_items(item, np.array([3, 1, 0]), np.array([5, 1, 2]))
    assert indptr.tolist() == [0, 2, 2, 4]
    assert indices.tolist() == [8, 9, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scores": np.array([[1.0, np.nan]])}, "NaN at request 0, item 1"),
        ({"scores": np.zeros(2)}, "shape"),
        ({"target_item": np.array([2])}, "target_item holds 2 to 2"),
        ({"target_item": np.array([-1])}, "target_item holds -1"),
        ({"target_item": np.array([0, 1])}, "2 entries for 1 rows"),
        ({"request": np.array([1])}, "request holds 1"),
        ({"request": np.array([0, 0])}, "request has 2 entries"),
        ({"exclude": (np.array([0, 1]), np.array([2]))}, "exclude holds 2"),
        ({"exclude": (np.array([0, 1, 1]), np.array([1]))}, "indptr has 3 entries"),
        ({"tie_order": np.array([1, 1])}, "place of its own"),
        ({"tie_order": np.array([1])}, "place of its own"),
        ({"tie_order": np.array([-1, -1])}, "2 entries, 1 of them different"),
        ({"tie_order": np.array([7, 7])}, "2 entries, 1 of them different"),
    ],
)
def test_bad_arguments_are_named(arguments, says):
    good = {"scores": np.zeros((1, 2)), "target_item": np.array([0])}
    with pytest.raises(ValueError, match=says):
        rank_of_targets(**{**good, **arguments})
