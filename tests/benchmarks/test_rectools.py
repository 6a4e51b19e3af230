import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rectools as benchmark
from benchmarks.peers.environment import built
from benchmarks.peers.tuning import Try, untried
from benchmarks.studied import Studied
from decant import recipes
from decant.measure import Asked, popularity_answers
from decant.results import read_csv
from decant.run_data import sample_targets
from decant.run_record import hardware
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
        hardware=hardware(),
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


def test_what_is_watched_are_the_requests_that_a_run_watches(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "NUM_WATCHED_REQUESTS", 7)
    benchmark.hand_over(studied, tmp_path)
    log, valid = studied.data.interactions, studied.split.valid
    jobs = log.item_kinds == "job"
    watched = sample_targets(valid, 7)
    watch = np.load(tmp_path / "watch.npz")
    assert int(watch["count"]) == 7 < len(valid)
    for request in range(7):
        history = log.event_item[watched.history_start[request] : watched.history_end[request]]
        told_items = watch["item"][watch["request"] == request]
        assert told_items.tolist() == [item for item in history.tolist() if jobs[item]]
    for name, targets in (("watch", watched), ("valid", valid)):
        told = np.load(tmp_path / f"{name}-targets.npz")
        wanted = Asked(studied.book, targets).wanted
        assert told["request"].tolist() == wanted.request.tolist()
        assert told["item"].tolist() == wanted.item.tolist()
    assert not (tmp_path / "test-targets.npz").exists()


def test_other_grids_are_another_measurement(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def opened(_: object) -> Iterator[tuple[Studied, Path]]:
        yield studied, tmp_path / "work"

    asked_for = []

    def ask(folder: Path, **_: object) -> None:
        for name, place, config in untried(folder, json.loads((folder / "grids.json").read_text())):
            asked_for.append((name, config))
            item = np.array([place])
            answers = {"request": np.array([0]), "item": item, "score": np.ones(1)}
            tried = Try(config=config, valid_ndcg=config["lr"], seconds=1.0)
            tried.save(folder, name, place, answers=answers)

    monkeypatch.setattr(benchmark, "opened", opened)
    monkeypatch.setattr(benchmark, "ask_peers", ask)
    out = tmp_path / "rows.csv"
    first, second = {"sasrec": [{"lr": 1}]}, {"sasrec": [{"lr": 1}, {"lr": 2}]}
    for grids in (first, first, second):
        monkeypatch.setattr(benchmark, "GRIDS", grids)
        assert benchmark.main(["RUN", "--out", str(out)]) == 0
    assert asked_for == [("sasrec", {"lr": lr}) for lr in (1, 1, 2)]
    rows = [row for row in read_csv(out) if row.model == "rectools sasrec"]
    assert [row.metric for row in rows] == ["ndcg@10", "hr@10"] * 2
    assert len({row.config_hash for row in rows}) == 2


def test_of_several_runs_come_rows_of_each_and_of_their_mean(
    studied: Studied,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def opened(options: Namespace) -> Iterator[tuple[Studied, Path]]:
        recipe = studied.recipe.with_seed(int(options.run.name))
        yield replace(studied, recipe=recipe), tmp_path / "work"

    def ask(folder: Path, *, seconds: float, seed: int) -> None:
        requests = int(np.load(folder / "test.npz")["count"])
        num_items = studied.book.interactions.num_items
        answers = {
            "request": np.repeat(np.arange(requests), num_items),
            "item": np.tile(np.arange(num_items), requests),
            "score": np.random.default_rng(seed).random(requests * num_items),
        }
        Try(config={}, valid_ndcg=0.5, seconds=seconds + seed).save(
            folder, "sasrec", 0, answers=answers
        )

    monkeypatch.setattr(benchmark, "GRIDS", {"sasrec": [{}]})
    monkeypatch.setattr(benchmark, "opened", opened)
    monkeypatch.setattr(benchmark, "each_run", lambda o: [Namespace(run=run) for run in o.run])
    monkeypatch.setattr(benchmark, "ask_peers", ask)
    out = tmp_path / "rows.csv"
    for seeds in (["0", "1"], ["0", "1", "2"]):
        assert benchmark.main([*seeds, "--out", str(out)]) == 0
        assert f"mean of {len(seeds)} seeds" in capsys.readouterr().out
        for model in ("foundation", "rectools sasrec"):
            rows = {
                row.seed: row
                for row in read_csv(out)
                if (row.model, row.metric) == (model, "ndcg@10")
            }
            mean = rows.pop("mean")
            assert list(rows) == [int(seed) for seed in seeds]
            assert mean.value == pytest.approx(np.mean([row.value for row in rows.values()]))
            assert mean.n == sum(row.n or 0 for row in rows.values())
        assert mean.seconds == pytest.approx(1 + np.mean([int(seed) for seed in seeds]))
        means = [(row.model, row.metric) for row in read_csv(out) if row.seed == "mean"]
        assert len(means) == len(set(means))


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
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("rows.work/*/*rec-*.json")]
    assert len(notes) == 4
    for note in notes:
        # Few requests are watched whole, so that the weights kept are seen in what they do.
        assert len(note["curve"]) > 2
        assert note["valid_ndcg"] == max(value for _, value in note["curve"])
    rows = [row for row in read_csv(out) if row.metric == "ndcg@10"]
    assert {row.model for row in rows} == {
        "foundation",
        *(f"rectools {name}" for name in benchmark.GRIDS),
    }
    assert len({row.n for row in rows}) == 1
    assert "rectools sasrec" in capsys.readouterr().out


def test_without_a_run_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
