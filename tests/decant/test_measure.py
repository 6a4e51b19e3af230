from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax

from decant.judging import gate_measurements, milliseconds
from decant.layout import RunLayout
from decant.measure import (
    NEIGHBOURS,
    Answers,
    Asked,
    Reranked,
    neighbour_answers,
    neighbour_scores,
    oracle_answers,
    popularity_answers,
    rerank,
)
from decant.on_validation import RANK_WEIGHTS, best_rank_weight
from decant.recommender import Recommender
from decant.run_data import load_tasks, sample_targets, split_of
from decant.saved_oracle import SavedOracle
from distill.gate import verdict
from foundation import calibration
from foundation.calibration import Calibration, Curve
from foundation.evaluation import ItemNeighbours
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
        "log_loss": 4,
    }


def test_calibration_is_measured_before_and_after():
    found = answers(uncalibrated_probability=np.array([0.5, 0.5, 0.5, 0.5]))
    metrics = {name: interval.value for name, (interval, _) in found.metrics().items()}
    assert metrics["ece_uncalibrated"] == pytest.approx(0)
    assert metrics["log_loss_uncalibrated"] == pytest.approx(np.log(2))
    assert metrics["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.6, 0.3]).mean())
    served, raw = found.reliability()
    assert (served.calibrated, raw.calibrated) == (True, False)
    assert served.said == [0.2, 0.6, 0.7, 0.9]
    assert served.happened == [0, 1, 0, 1]
    assert (raw.said, raw.happened, raw.num_events) == ([0.5], [0.5], [4])
    assert answers(action_probability=None).reliability() == []


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
    is_target=hnp.arrays(np.bool_, (3, 5)),
    weight=st.sampled_from([0.0, 0.5, 4.0]),
)
def test_ranks_are_places_among_what_was_not_acted_on(
    retrieval, action, num_found, is_target, weight
):
    retrieval = -np.sort(-retrieval, axis=1)
    for row, count in enumerate(num_found):
        retrieval[row, count:] = action[row, count:] = -np.inf
    request, place = np.nonzero(is_target)
    place[place >= np.array(num_found)[request]] = -1
    reranked = Reranked(
        item_nK=np.tile(np.arange(5), (3, 1)),
        retrieval_nK=retrieval,
        log_positive_nK=action,
        target_place=place,
        request=request,
    )
    with np.errstate(all="raise", under="ignore"):
        rank = reranked.ranks(weight, np.full(len(place), 77))
    for target in range(len(place)):
        if place[target] < 0:
            assert rank[target] == 77
            continue
        here = slice(0, num_found[request[target]])
        score = retrieval[request[target], here] + weight * action[request[target], here]
        order = np.argsort(-score, kind="stable")
        fellow = is_target[request[target]].copy()
        fellow[place[target]] = False
        order = order[~fellow[order]]
        assert order[rank[target] - 1] == place[target]


def test_reranking_finds_each_target_where_retrieval_put_it(recommender, asked):
    some = Asked(asked.book, sample_targets(asked.targets, 12))
    found = rerank(recommender, some, progress=False)
    ranked = predict_targets(recommender.foundation, some.book, some.targets).rank
    # The catalogue is smaller than what is retrieved: everything is found, in the same order.
    assert (found.target_place >= 0).all()
    assert found.ranks(0.0, ranked).tolist() == ranked.tolist()
    assert np.isfinite(found.log_positive_nK[np.isfinite(found.retrieval_nK)]).all()
    few = rerank(recommender, some, num_retrieved=3, progress=False)
    np.testing.assert_array_equal(few.retrieval_nK, found.retrieval_nK[:, :3])
    np.testing.assert_array_equal(few.target_place >= 0, ranked <= 3)


def reranked(retrieval, action, place):
    return Reranked(
        item_nK=np.tile(np.arange(retrieval.shape[1]), (len(place), 1)),
        retrieval_nK=retrieval.astype(np.float32),
        log_positive_nK=action.astype(np.float32),
        target_place=place,
        request=np.arange(len(place)),
    )


def test_what_was_not_retrieved_stands_behind_all_that_was():
    found = reranked(np.zeros((2, 3)), np.zeros((2, 3)), np.array([-1, -1]))
    # By vectors of full width it would be second: an index that misses it is to blame.
    assert found.ranks(1.0, np.array([2, 9])).tolist() == [4, 9]


@pytest.mark.parametrize("planted", [0.25, 2.0, 8.0])
def test_a_planted_weight_is_found(planted):
    rng = np.random.default_rng(0)
    retrieval = -np.sort(-rng.normal(size=(3000, 40)), axis=1)
    action = np.log(rng.uniform(0.05, 0.95, size=(3000, 40)))
    total = retrieval + planted * action
    chance = np.exp(2 * (total - total.max(1, keepdims=True)))
    place = (chance.cumsum(1) < rng.random((3000, 1)) * chance.sum(1, keepdims=True)).sum(1)
    found = reranked(retrieval, action, place)
    everyone = np.ones(3000, bool)
    assert best_rank_weight(found, place + 1, everyone) == planted
    # Only the targets that count decide: among the others the action says nothing.
    noise = reranked(retrieval, rng.permutation(action), place)
    both = reranked(
        np.concatenate([found.retrieval_nK, noise.retrieval_nK]),
        np.concatenate([found.log_positive_nK, noise.log_positive_nK]),
        np.tile(place, 2),
    )
    counts = np.arange(6000) < 3000
    assert best_rank_weight(both, np.tile(place + 1, 2), counts) == planted


def test_the_smallest_of_equal_weights_is_taken():
    # Every candidate is liked as much: no weight changes anything.
    retrieval = -np.sort(-np.random.default_rng(0).random((9, 5)))
    found = reranked(retrieval, np.zeros((9, 5)), np.full(9, 2))
    assert best_rank_weight(found, np.full(9, 3), np.ones(9, bool)) == RANK_WEIGHTS[0] == 0


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(temperature=0.3, bias=(1.0, 0.0, -1.0)),
        Calibration(curves=(Curve(said=(0.0, 0.3, 0.31, 1.0), meant=(0.1, 0.2, 0.6, 0.9)),) * 3),
    ],
    ids=["vector", "isotonic"],
)
def test_what_the_weight_is_fitted_on_is_what_a_request_does(
    recommender, asked, monkeypatch, calibration
):
    settings = replace(
        recommender.foundation.settings,
        rank_weight=(2.0, 0.0),
        calibration=(calibration, Calibration()),
    )
    monkeypatch.setattr(recommender.foundation, "settings", settings)
    # Slates of one good event: the rest of a slate is left out of a request, but not of a ranking.
    some = sample_targets(asked.targets, 12)
    alone = Asked(asked.book, some[some.last_event - some.first_event == 1])
    if not len(alone.wanted.item):
        alone = Asked(asked.book, some)
    scored = rerank(recommender, alone, progress=False)
    ranks = scored.ranks(2.0, np.zeros(len(alone.wanted.item), np.int64))
    ids = recommender.interactions.item_ids
    for place, (request, item) in enumerate(
        zip(alone.wanted.request, alone.wanted.item, strict=True)
    ):
        served = recommender.predict_target(alone.targets[np.array([request])], k=10**4)
        assert [one.item_id for one in served].index(ids[item]) + 1 == ranks[place]


def test_the_saved_oracle_says_the_same_of_its_targets_and_nothing_of_others(
    split, job_of, tiny_run
):
    oracle = job_of(tiny_run).load().oracle
    saved = SavedOracle.load(tiny_run / "data")
    some = split.test[::7]
    np.testing.assert_array_equal(saved.next_item_scores(some), oracle.next_item_scores(some))
    events = some.last_event - 1
    np.testing.assert_array_equal(
        saved.action_probabilities(events), oracle.action_probabilities(events)
    )
    with pytest.raises(ValueError, match="its own run only"):
        saved.next_item_scores(split.valid)
    assert SavedOracle.load(tiny_run) is None


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


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_neighbours_say_nothing_of_actions(asked, split, kind):
    found = neighbour_answers(asked, split.train, kind)
    assert found.action_probability is None
    assert found.rank.shape == asked.wanted.item.shape
    assert set(found.metrics()) == {"hr@10", "ndcg@10"}


def test_neighbours_are_of_the_newest_item_or_of_the_whole_history(asked, split):
    log, targets = asked.book.interactions, asked.targets
    kinds = ("item_knn", "last_item")
    whole, newest = (neighbour_scores(log, split.train, kind)(targets)(3, 9) for kind in kinds)
    fitted = ItemNeighbours.fit_cosine(
        log.event_user[split.train], log.event_item[split.train], log.num_items
    )
    similarity = fitted.similarity.toarray()
    for row, target in enumerate(range(3, 9)):
        items = log.event_item[targets.history_start[target] : targets.history_end[target]]
        told = similarity[items].sum(0) + fitted.tie_break
        np.testing.assert_allclose(whole[row], told, rtol=1e-5)
        told = similarity[items[-1:]].sum(0) + fitted.tie_break
        np.testing.assert_allclose(newest[row], told, rtol=1e-5)


def test_the_gate_weighs_a_model_by_the_best_calibration_whatever_its_own(recommender, split):
    model, book = recommender.foundation, recommender.book
    settings = model.settings
    said = []
    try:
        for own in (settings.calibration, ()):
            model.settings = replace(settings, calibration=own)
            said.append(gate_measurements(model, book, split.valid).event_probability)
    finally:
        model.settings = settings
    assert settings.calibration[0].method != "none"
    np.testing.assert_array_equal(*said)


@pytest.mark.parametrize("method", ["vector", "isotonic"])
def test_the_gate_sees_no_loss_of_auc_in_a_model_that_only_says_all_too_high(
    recommender, split, method, monkeypatch
) -> None:
    model, book = recommender.foundation, recommender.book
    said = predict_targets(model, book, split.valid)
    # A bias per action mends it, another one in each fold of people.
    too_high = said.action_log_probs + 0.4 * np.array(book.prompter.tasks[0].is_positive)
    too_high = log_softmax(too_high, axis=1).astype(np.float32)
    measured = []
    for log_probs, own in ((said.action_log_probs, "none"), (too_high, method)):
        monkeypatch.setattr(calibration, "METHODS", (own,))
        told = replace(said, action_log_probs=log_probs)
        measured.append(
            gate_measurements(model, book, split.valid, predict=lambda *_, told=told: told)
        )
    auc, *_ = verdict(*measured).metrics
    assert auc.metric == "auc"
    assert abs(auc.loss) < 1e-6


def test_the_sample_is_spread_evenly_and_never_more_than_there_is(split):
    some = sample_targets(split.test, 5)
    assert len(some) == 5
    assert some.first_event[0] == split.test.first_event[0]
    assert some.first_event[-1] == split.test.first_event[-1]
    assert sample_targets(split.test, 10**6) is split.test
    assert sample_targets(split.test, None) is split.test


def test_nobody_was_read_before_a_request_that_is_timed(recommender, split):
    served = Recommender(recommender.foundation, recommender.index, recommender.book)
    # A person with several targets is asked about more than once.
    taken = milliseconds({"served": served}, split.test[np.array([0, 0, 1, 1])], 4)
    assert taken["served"].shape == (4,)
    assert (taken["served"] > 0).all()
    cache = served.prefix_cache
    assert cache.misses >= 4
    assert (cache.hits, cache.extensions) == (0, 0)
