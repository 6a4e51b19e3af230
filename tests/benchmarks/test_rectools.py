from pathlib import Path

import numpy as np
import pytest

from benchmarks import rectools as benchmark
from benchmarks.peers.environment import built
from benchmarks.studied import Studied
from decant import recipes
from decant.measure import Asked, popularity_answers
from decant.results import read_csv
from foundation import Foundation
from promptify.assembly import PromptBook
from promptify.sources import SourceData
from promptify.splits import Split


@pytest.fixture(scope="module")
def studied(market_model: Foundation, market_book: PromptBook, market_split: Split) -> Studied:
    log, tasks = market_book.interactions, tuple(market_book.prompter.tasks)
    return Studied(
        recipe=recipes.demo(),
        data=SourceData(interactions=log, tasks=tasks),
        split=market_split,
        book=market_book,
        foundation=market_model,
        weights="none",
        fit_seconds=1.0,
    )


def test_what_is_handed_over_is_the_split_and_nothing_after_it(
    studied: Studied, tmp_path: Path
) -> None:
    benchmark.hand_over(studied, tmp_path)
    log, split = studied.data.interactions, studied.split
    jobs = log.item_kinds == "job"
    train = np.load(tmp_path / "train.npz")
    wanted = [
        (log.event_timestamp[row], int(log.event_user[row]), int(log.event_item[row]))
        for row in np.flatnonzero(split.train)
        if jobs[log.event_item[row]]
    ]
    told = list(zip(train["user"].tolist(), train["item"].tolist(), strict=True))
    assert sorted(told) == sorted((user, item) for _, user, item in wanted)
    # In time order for everyone.
    for user in np.unique(train["user"]):
        rows = np.flatnonzero(split.train & (log.event_user == user) & jobs[log.event_item])
        assert train["item"][train["user"] == user].tolist() == log.event_item[rows].tolist()
    test = np.load(tmp_path / "test.npz")
    assert int(test["count"]) == len(split.test)
    for request in range(len(split.test)):
        history = log.event_item[
            split.test.history_start[request] : split.test.history_end[request]
        ]
        told_items = test["item"][test["request"] == request]
        assert told_items.tolist() == [item for item in history.tolist() if jobs[item]]


def test_ranks_of_the_best_are_ours_and_what_is_missing_is_no_hit(studied: Studied) -> None:
    # What popularity says, cut to thirty a request, has the same ranks up to there.
    asked = Asked(studied.book, studied.split.test)
    log, train = studied.data.interactions, studied.split.train
    whole = popularity_answers(asked, train).rank
    surface = train & (log.event_surface == log.surfaces.index("jobs"))
    count_I = np.bincount(log.event_item[surface], minlength=log.num_items).astype(np.float64)
    order = np.argsort(np.array(log.item_ids))
    place = np.empty(len(order))
    place[order] = np.arange(len(order))
    request, item, score = [], [], []
    for row in range(len(asked.targets)):
        seen = log.event_item[asked.targets.history_start[row] : asked.targets.history_end[row]]
        open_items = np.setdiff1d(np.flatnonzero(log.item_kinds == "job"), seen)
        best = open_items[np.lexsort((place[open_items], -count_I[open_items]))][:30]
        request += [row] * len(best)
        item += best.tolist()
        score += count_I[best].tolist()
    top = {"request": np.array(request), "item": np.array(item), "score": np.array(score)}
    ranks = benchmark.ranks_of(asked, top)
    assert whole is not None
    np.testing.assert_array_equal(ranks <= 25, whole <= 25)
    near = whole <= 25
    assert near.any()
    np.testing.assert_array_equal(ranks[near], whole[near])


def test_the_peers_answer_the_same_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if built("rectools") is None:
        pytest.skip("RecTools' environment is not built; python -m benchmarks.rectools builds it")
    out = tmp_path / "rows.csv"
    assert benchmark.main(["--smoke", "--out", str(out)]) == 0
    rows = [row for row in read_csv(out) if row.metric == "ndcg@10"]
    assert {row.model for row in rows} == {
        "foundation",
        *(f"rectools {p}" for p in benchmark.PEERS),
    }
    assert len({row.n for row in rows}) == 1
    assert "rectools sasrec" in capsys.readouterr().out


def test_without_a_run_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
