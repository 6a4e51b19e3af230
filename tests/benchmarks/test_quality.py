from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import arms, quality
from benchmarks.peers.sasrec import SASRecConfig
from decant.results import ResultRow, read_csv
from promptify.sources.job_market import job_market


@pytest.fixture
def small_market(monkeypatch: pytest.MonkeyPatch) -> None:
    market = job_market(num_members=60, num_jobs=50, num_impressions=600)
    monkeypatch.setattr(quality, "load", lambda *_: (quality.recipes.demo(), market))


@pytest.fixture
def contest(small_market: None, tmp_path: Path) -> quality.Contest:
    recipe, data = quality.load("job_market", None)
    return quality.Contest(quality.smaller(recipe), data, tmp_path)


@pytest.fixture
def answers(contest: quality.Contest, monkeypatch: pytest.MonkeyPatch) -> quality.Answers:
    """What every model says, for nothing is trained: what is popular."""
    said = quality.popularity_answers(contest.asked, contest.split.train)
    monkeypatch.setattr(contest, "answered", lambda *_: (said, {"seconds": 1.0}))
    return said


def test_both_answer_the_same_targets_and_a_second_call_trains_nothing(
    small_market: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "quality.csv"
    command = ["job_market", "--smoke", "--out", str(out), "--work", str(tmp_path / "work")]
    assert quality.main(command) == 0
    rows = {(row.model, row.metric, row.seed): row for row in read_csv(out)}
    ours, theirs = rows["foundation", "ndcg@10", 0], rows["sasrec", "ndcg@10", 0]
    assert ours.n == theirs.n
    assert ours.seconds is not None
    assert theirs.seconds is not None
    # As long, or until validation stops it.
    assert 0 < theirs.seconds < 1.5 * ours.seconds
    mean = rows["foundation", "ndcg@10", "mean"].value
    assert mean == pytest.approx(ours.value)
    assert "sasrec" in capsys.readouterr().out

    monkeypatch.setattr(quality.Foundation, "fit", None)
    monkeypatch.setattr(quality.sasrec, "fit", None)
    again = tmp_path / "again.csv"
    assert quality.main([*command[:3], str(again), *command[4:]]) == 0
    values = [row.value for row in read_csv(again)]
    assert values == [row.value for row in read_csv(out)]

    # Beside SASRecs of other shapes, of other code and of other data nothing is known yet.
    with pytest.raises(TypeError, match="not callable"):
        quality.main([*command, "--tune-sasrec"])
    with monkeypatch.context() as patched:
        patched.setattr(arms, "code_key", lambda _: "other")
        with pytest.raises(TypeError, match="not callable"):
            quality.main(command)
    other = job_market(num_members=60, num_jobs=50, num_impressions=600, seed=1)
    monkeypatch.setattr(quality, "load", lambda *_: (quality.recipes.demo(), other))
    with pytest.raises(TypeError, match="not callable"):
        quality.main(command)
    # Rows of all that are in the file still.
    assert set(rows) <= {(row.model, row.metric, row.seed) for row in read_csv(out)}


def test_a_mean_of_more_seeds_is_not_written_over(
    contest: quality.Contest, answers: quality.Answers, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    assert quality.contest_rows(contest, [0, 1], out)
    before = read_csv(out)
    with pytest.raises(ValueError, match=r"rows.csv holds seeds 0 of the same settings"):
        quality.contest_rows(contest, [1, 2], out)
    assert read_csv(out) == before
    quality.contest_rows(contest, [0, 1, 2], out)
    seeds = [row.seed for row in read_csv(out) if (row.model, row.metric) == ("sasrec", "hr@10")]
    assert sorted(seeds, key=str) == [0, 1, 2, "mean"]


def test_targets_of_the_time_of_their_history_are_told_apart(
    contest: quality.Contest, answers: quality.Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = contest.asked
    assert quality.later_targets(asked).all()
    rows = quality.contest_rows(contest, [0], None)
    assert "leave-one-out, later" not in {row.split for row in rows}

    newest = asked.targets.history_end - 1
    time = asked.book.interactions.event_timestamp.copy()
    tied = np.flatnonzero(asked.targets.history_end > asked.targets.history_start)[::2]
    time[newest[tied]] = time[asked.targets.first_event[tied]]
    monkeypatch.setattr(asked.book.interactions, "event_timestamp", time)
    is_later = ~np.isin(asked.wanted.request, tied)
    np.testing.assert_array_equal(quality.later_targets(asked), is_later)
    rows = quality.contest_rows(contest, [0], None)
    told = [row for row in rows if row.split == "leave-one-out, later"]
    assert {(row.model, row.seed) for row in told} == {
        (row.model, row.seed) for row in rows if row.metric == "ndcg@10"
    }
    assert answers.rank is not None
    expected = quality.ndcg(answers.rank, 10)[is_later].mean()
    [known] = [row for row in told if row.model == "popularity"]
    assert known.value == pytest.approx(expected)
    assert {row.n for row in told} == {int(is_later.sum())}


def test_targets_that_were_acted_on_well_stand_beside_all(
    contest: quality.Contest, answers: quality.Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = np.arange(len(answers.user)) % 3 > 0

    def rows(is_positive: np.ndarray) -> list[ResultRow]:
        told = replace(answers, is_positive_target=is_positive)
        monkeypatch.setattr(contest, "answered", lambda *_: (told, {"seconds": 1.0}))
        monkeypatch.setattr(contest.asked, "answers", lambda *_: told)
        return quality.contest_rows(contest, [0, 1], None)

    # Where they are all of them, or none is, there is nothing to tell apart.
    for same in (np.ones_like(some), np.zeros_like(some)):
        assert {row.split for row in rows(same)} == {"leave-one-out"}
    every = rows(some)
    told = [row for row in every if row.split == "leave-one-out, positive"]
    assert {(row.model, row.metric, row.seed) for row in told} == {
        (row.model, row.metric, row.seed) for row in every if row.metric == "ndcg@10"
    }
    assert answers.rank is not None
    expected = quality.ndcg(answers.rank, 10)[some].mean()
    [mean] = [row for row in told if (row.model, row.seed) == ("sasrec", "mean")]
    assert mean.value == pytest.approx(expected)
    assert {row.n for row in told} == {int(some.sum())}


def test_the_rank_of_the_target_tells_mrr_too(
    contest: quality.Contest, answers: quality.Answers
) -> None:
    rows = quality.contest_rows(contest, [0], None)
    told = [row for row in rows if row.metric == "mrr@100"]
    assert {(row.model, row.seed) for row in told} == {
        (row.model, row.seed)
        for row in rows
        if (row.metric, row.split) == ("hr@10", "leave-one-out")
    }
    assert answers.rank is not None
    expected = np.where(answers.rank <= 100, 1 / answers.rank, 0).mean()
    values = [row.value for row in told if row.model in ("popularity", "foundation")]
    assert values == pytest.approx([expected] * 3)


def test_a_gain_is_relative_and_none_over_nothing() -> None:
    reference, user = np.array([0.5, 1.0, 0.5, 1.0]), np.arange(4)
    gain = quality.relative_gain(reference, 1.2 * reference, user)
    assert gain is not None
    assert (gain.low, gain.value, gain.high) == pytest.approx((0.2, 0.2, 0.2))
    assert quality.relative_gain(np.zeros(4), reference, user) is None


def test_missing_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["ml1m", "--data", str(tmp_path / "nothing.zip")]) == 1
    assert "nothing.zip" in capsys.readouterr().err


def test_sasrec_is_given_the_rate_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["ml1m", "--sasrec-rate", "0"]) == 1
    assert "--sasrec-rate 0 must be above 0" in capsys.readouterr().err
    given: list[float] = []

    def contest(*_: object, configs: Sequence[SASRecConfig], **__: object) -> None:
        given.extend(config.learning_rate for config in configs)

    monkeypatch.setattr(quality, "load", lambda *_: (quality.recipes.ml1m(), None))
    monkeypatch.setattr(quality, "Contest", contest)
    monkeypatch.setattr(quality, "contest_rows", lambda *_: [])
    assert quality.main(["ml1m", "--sasrec-rate", "3e-3"]) == 0
    assert given == [3e-3]
