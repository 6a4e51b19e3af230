"""Baselines by hand, and on MovieLens-1M where it is at hand."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from foundation.evaluation import (
    ItemNeighbours,
    baselines,
    popularity,
    rank_metrics,
    rank_of_targets,
    seen_items,
)

ML_1M = Path(__file__).parents[4] / "shared" / "data" / "ml-1m.zip"


def test_popularity_counts():
    counts = popularity(np.array([1, 1, 3]), 5)
    assert counts.dtype == np.float64
    assert counts.tolist() == [0, 2, 0, 1, 0]


def test_followers_count_by_distance_within_a_user():
    user = np.array([0, 0, 0, 1, 1])
    item = np.array([0, 1, 2, 0, 2])
    neighbours = ItemNeighbours.fit(user, item, 4, window_events=2)
    # 0 → 1 once next; 0 → 2 once next and once two places later; 1 → 2 once next.
    expected = np.array([[0, 1, 1.5, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]) / 1.5
    np.testing.assert_allclose(neighbours.similarity.toarray(), expected, rtol=1e-6)
    near = ItemNeighbours.fit(user, item, 4, window_events=1)
    np.testing.assert_allclose(near.similarity.toarray()[0], [0, 1, 1, 0])


def test_cosine_by_hand():
    user = np.array([0, 0, 0, 1, 1, 2])
    item = np.array([0, 0, 1, 1, 0, 1])
    similarity = ItemNeighbours.fit_cosine(user, item, 3).similarity.toarray()
    np.testing.assert_allclose(similarity[0], [0, 2 / np.sqrt(2 * 3), 0], rtol=1e-6)
    np.testing.assert_allclose(similarity, similarity.T)


def test_of_very_many_items_of_a_person_the_newest_are_counted(monkeypatch):
    user = np.array([7, 7, 7, 7, 7, 7, 9, 9, 9, 9])
    item = np.array([0, 1, 2, 3, 0, 4, 1, 2, 2, 3])
    newest = np.array([3, 4, 5, 6, 7, 8, 9])
    whole = ItemNeighbours.fit_cosine(user, item, 5)
    monkeypatch.setattr(baselines, "MOST_ITEMS_OF_A_PERSON", 3)
    found = ItemNeighbours.fit_cosine(user, item, 5)
    expected = ItemNeighbours.fit_cosine(user[newest], item[newest], 5)
    np.testing.assert_array_equal(found.similarity.toarray(), expected.similarity.toarray())
    assert found.similarity.nnz < whole.similarity.nnz
    # How popular an item is, all events say.
    assert (found.tie_break[0] > found.tie_break[4]) & (
        expected.tie_break[0] == expected.tie_break[4]
    )


@pytest.mark.parametrize("fit", [ItemNeighbours.fit, ItemNeighbours.fit_cosine])
def test_popularity_breaks_ties_and_only_ties(fit):
    rng = np.random.default_rng(0)
    user, item = np.repeat(np.arange(30), 6), (12 * rng.random(180) ** 2).astype(int)
    neighbours = fit(user, item, 15)
    count = popularity(item, 15)
    unknown, never, known, both = neighbours.score(
        np.array([14, 0, 0, 1]), np.array([0, 0, 1, 2, 4])
    )
    np.testing.assert_allclose(unknown / unknown.max(), count / count.max(), rtol=1e-6)
    np.testing.assert_array_equal(unknown, never)
    similarity = neighbours.similarity[[0]].toarray()[0]
    second = neighbours.similarity[[1]].toarray()[0]
    np.testing.assert_allclose(both, similarity + second + neighbours.tie_break, rtol=1e-5)
    order = sorted(range(15), key=lambda item: (-round(float(similarity[item]), 5), -count[item]))
    assert (np.diff(known[order]) <= 0).all()
    assert len(set(similarity)) < 15


def test_training_without_pairs_is_popularity():
    neighbours = ItemNeighbours.fit(np.array([0, 1]), np.array([2, 2]), 3)
    assert np.argmax(neighbours.score(np.array([0]), np.array([0, 1]))) == 2
    nothing = ItemNeighbours.fit(np.empty(0, int), np.empty(0, int), 3)
    assert nothing.score(np.array([0]), np.array([0, 1, 1])).tolist() == [[0, 0, 0]] * 2


def test_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window_events is 0"):
        ItemNeighbours.fit(np.array([0, 0]), np.array([0, 1]), 2, window_events=0)


def test_movielens_figures():
    """Leave-one-out, last event, whole catalogue, seen films filtered, fitted on training only."""
    if not ML_1M.is_file():
        pytest.skip(f"MovieLens-1M is not at {ML_1M}")
    with zipfile.ZipFile(ML_1M) as archive:
        text = archive.read("ml-1m/ratings.dat").decode("latin-1").replace("::", " ")
    user, film, _, time = np.fromstring(text, np.int64, sep=" ").reshape(-1, 4).T
    order = np.lexsort((np.arange(len(user)), time, user))
    user, item = user[order], np.unique(film[order], return_inverse=True)[1]
    first = np.flatnonzero(np.diff(user, prepend=-1))
    last = np.append(first[1:], len(user)) - 1
    train = np.ones(len(user), bool)
    train[last] = train[last - 1] = False
    seen = seen_items(item, first, last)

    def measured(scores):
        return rank_metrics(rank_of_targets(scores, item[last], exclude=seen))

    num_items, one_each = item.max() + 1, np.arange(len(last) + 1)
    popular = popularity(item[train], num_items)
    of_popularity = measured(np.tile(popular, (len(last), 1)))
    of_neighbours = measured(
        ItemNeighbours.fit(user[train], item[train], num_items).score(item[last - 1], one_each)
    )
    of_cosine = measured(
        ItemNeighbours.fit_cosine(user[train], item[train], num_items).score(
            item[last - 1], one_each
        )
    )
    assert of_popularity["hr@10"] == pytest.approx(0.0376, abs=5e-4)
    assert of_popularity["ndcg@10"] == pytest.approx(0.0183, abs=5e-4)
    assert of_neighbours["hr@10"] == pytest.approx(0.2126, abs=5e-4)
    assert of_neighbours["ndcg@10"] == pytest.approx(0.1247, abs=5e-4)
    assert of_cosine["hr@10"] == pytest.approx(0.1459, abs=5e-4)
    assert of_cosine["ndcg@10"] == pytest.approx(0.0813, abs=5e-4)
