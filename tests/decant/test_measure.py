import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from decant.layout import RunLayout
from decant.measure import (
    Answers,
    Asked,
    Reranked,
    last_item_answers,
    oracle_answers,
    popularity_answers,
    rerank,
)
from decant.run_data import load_tasks, sample_targets, split_of
from foundation.predictions import predict_targets


@pytest.fixture(scope="module")
def split(recommender, tiny_run):
    return split_of(recommender.interactions, load_tasks(RunLayout(tiny_run)))


@pytest.fixture(scope="module")
def asked(recommender, split) -> Asked:
    return Asked(recommender.book, split.test)


def answers(**changes) -> Answers:
    known = {
        "user": np.array([1, 2, 3]),
        "rank": np.array([1, 20, 2]),
        "is_positive_target": np.array([True, False, True]),
        "action_user": np.array([1, 2, 3, 3]),
        "action_positive": np.array([True, False, True, False]),
        "action_probability": np.array([0.9, 0.2, 0.6, 0.7]),
    }
    return Answers(**{**known, **changes})


def test_each_metric_comes_with_its_interval_and_what_it_was_counted_over():
    found = answers().metrics()
    assert found["hr@10"][0].value == pytest.approx(2 / 3)
    assert found["ndcg@10"][0].value == pytest.approx((1 + 1 / np.log2(3)) / 3)
    assert found["auc"][0].value == pytest.approx(0.75)
    assert {name: n for name, (_, n) in found.items()} == {
        "hr@10": 3,
        "ndcg@10": 3,
        "auc": 4,
        "ece": 4,
    }


def test_what_a_system_cannot_say_has_no_metric():
    assert "auc" not in answers(action_probability=None).metrics()
    assert "auc" not in answers(action_positive=np.ones(4, bool)).metrics()
    assert "ndcg@10" not in answers(rank=None).metrics()


def test_where_the_bootstrap_says_nothing_the_interval_is_the_value_alone():
    # Every other draw of these two people holds one label only: there is no AUC of it.
    found = answers(action_user=np.array([1, 2, 1, 2])).metrics()
    assert all(np.isfinite([one.low, one.high]).all() for one, _ in found.values())
    interval, _ = found["auc"]
    assert interval.low == interval.value == interval.high


def test_positive_targets_are_the_ones_acted_on_well():
    positive = answers().positive_targets()
    assert positive.user.tolist() == [1, 3]
    assert positive.rank.tolist() == [1, 2]
    assert positive.is_positive_target.all()


@given(
    retrieval=hnp.arrays(np.float32, (3, 5), elements=st.floats(-9, 9, width=32)),
    action=hnp.arrays(np.float32, (3, 5), elements=st.floats(-9, 0, width=32)),
    num_found=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    weight=st.sampled_from([0.0, 0.5, 4.0]),
)
def test_ranks_are_places_in_the_order_of_the_full_score(retrieval, action, num_found, weight):
    retrieval = -np.sort(-retrieval, axis=1)
    for row, count in enumerate(num_found):
        retrieval[row, count:] = action[row, count:] = -np.inf
    request = np.repeat(np.arange(3), 5)
    place = np.tile(np.arange(5), 3)
    place[place >= np.array(num_found)[request]] = -1
    reranked = Reranked(
        retrieval_nK=retrieval, log_positive_nK=action, target_place=place, request=request
    )
    with np.errstate(all="raise"):
        rank = reranked.ranks(weight, np.full(15, 77))
    for target in range(15):
        if place[target] < 0:
            assert rank[target] == 77
            continue
        here = slice(0, num_found[request[target]])
        score = retrieval[request[target], here] + weight * action[request[target], here]
        order = np.argsort(-score, kind="stable")
        assert order[rank[target] - 1] == place[target]
    if weight == 0:
        found = place >= 0
        assert (rank[found] == place[found] + 1).all()


def test_reranking_finds_each_target_where_retrieval_put_it(recommender, asked):
    some = Asked(asked.book, sample_targets(asked.targets, 12))
    found = rerank(recommender, some, progress=False)
    ranked = predict_targets(recommender.foundation, some.book, some.targets).rank
    # The catalogue is smaller than what is retrieved: everything is found, in the same order.
    assert (found.target_place >= 0).all()
    assert found.ranks(0.0, ranked).tolist() == ranked.tolist()
    assert np.isfinite(found.log_positive_nK[np.isfinite(found.retrieval_nK)]).all()


def test_nothing_learned_beats_the_oracle_and_popularity_counts_training_events(
    asked, split, job_of, tiny_run
):
    oracle = oracle_answers(asked, job_of(tiny_run).load().oracle).metrics()
    popular = popularity_answers(asked, split.train)
    assert oracle["ndcg@10"][0].value > popular.metrics()["ndcg@10"][0].value
    assert oracle["auc"][0].value > popular.metrics()["auc"][0].value
    # The most popular item comes first for whoever has not seen it.
    log = asked.book.interactions
    jobs = (log.event_surface == log.surfaces.index("jobs")) & split.train
    count_I = np.bincount(log.event_item[jobs], minlength=log.num_items)
    is_first = asked.wanted.item == count_I.argmax()
    assert (popular.rank[is_first] == 1).all()
    assert (popular.rank >= 1).all()


@pytest.mark.parametrize("neighbours", ["cosine", "transitions"])
def test_neighbours_of_the_last_item_say_nothing_of_actions(asked, split, neighbours):
    found = last_item_answers(asked, split.train, neighbours=neighbours)
    assert found.action_probability is None
    assert found.rank.shape == asked.wanted.item.shape
    assert set(found.metrics()) == {"hr@10", "ndcg@10"}


def test_the_sample_is_spread_evenly_and_never_more_than_there_is(split):
    some = sample_targets(split.test, 5)
    assert len(some) == 5
    assert some.first_event[0] == split.test.first_event[0]
    assert some.first_event[-1] == split.test.first_event[-1]
    assert sample_targets(split.test, 10**6) is split.test
    assert sample_targets(split.test, None) is split.test
