from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import context_length as benchmark
from benchmarks import length_rows
from benchmarks.context_length import Curves
from benchmarks.histories import POLICIES
from benchmarks.length_rows import Answered, Length, joined
from benchmarks.measured import Measured
from benchmarks.subjects import Subject
from decant.results import ResultRow, read_csv
from foundation import Foundation, FoundationConfig
from foundation.evaluation import bootstrap_interval, mean_of_users, ndcg
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market
from promptify.splits import leave_one_out


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A model whose prompts hold half of what people did."""
    log = job_market(num_members=40, num_jobs=400, num_impressions=2000).interactions
    split = leave_one_out(log, surface="jobs")
    config = PrompterConfig(
        form="slot",
        vocab_size=700,
        max_prompt_tokens=150,
        max_item_tokens=24,
        max_profile_tokens=32,
        max_context_tokens=16,
    )
    prompter = Prompter.fit(log, split.train, TASKS, config=config)
    book = prompter.book(log)
    model = Foundation.create(
        prompter,
        book,
        split.train,
        size="tiny",
        config=FoundationConfig(vector_dim=8),
        seed=0,
    )
    return Subject(foundation=model, book=book, split=split, task="job_market", seed=3)


@pytest.fixture(scope="module")
def smoke(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, of that model in the place of one that it would train."""
    out = tmp_path_factory.mktemp("context") / "rows.csv"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benchmark, "trained", lambda *_, **__: subject)
        assert benchmark.main(["--smoke", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def rows(smoke: Path) -> list[ResultRow]:
    return read_csv(smoke)


def rows_of(rows: Sequence[ResultRow], **cells: object) -> list[ResultRow]:
    return [
        row for row in rows if all(getattr(row, name) == value for name, value in cells.items())
    ]


def test_rows_carry_the_seed_of_the_training(rows: list[ResultRow]) -> None:
    assert {row.seed for row in rows} == {3}


def test_every_length_is_asked_of_the_same_people(rows: list[ResultRow]) -> None:
    for who in ("events or more", "fill", "all users"):
        asked = {row.n for row in rows_of(rows, metric="ndcg@10") if who in row.split}
        assert len(asked) == 1
    by_policy = {
        policy: {row.history_events for row in rows_of(rows, model=f"foundation, {policy}")}
        for policy in POLICIES
    }
    assert by_policy["recent"] == by_policy["relevant"] == by_policy["recent_per_action"]
    assert {0, 1, 2, 5, 10, 20} <= by_policy["recent"]


def test_without_events_the_policy_makes_no_difference(rows: list[ResultRow]) -> None:
    told = rows_of(rows, metric="ndcg@10", history_events=0)
    assert len({row.model for row in told}) == 3
    for split in {row.split for row in told}:
        assert len({row.value for row in told if row.split == split}) == 1


def test_what_was_trained_is_told_from_what_is_extrapolated(rows: list[ResultRow]) -> None:
    told = rows_of(rows, metric="ndcg@10", history_events=None)
    kinds = {
        tokens: {row.split.partition(", ")[2].rpartition("tokens, ")[2] for row in told
                 if row.context_tokens == tokens and "fill" in row.split}
        for tokens in {row.context_tokens for row in told}
    }  # fmt: skip
    assert kinds[150] == {"trained length"}
    assert kinds[192] == {"extrapolated, plain positions", "extrapolated, scaled positions"}
    # Events too, where they do not fit the trained prompt.
    long = rows_of(rows, metric="ndcg@10", history_events=50)
    assert all("extrapolated, plain" in row.split for row in long)
    read = rows_of(rows, metric="read_tokens", history_events=None, context_tokens=150)
    assert all(row.value <= 150 for row in read)


def test_what_lies_beyond_is_held_against_the_longest_trained(
    subject: Subject, tmp_path: Path
) -> None:
    curves = Curves(
        subject, Measured("context_length", {}, out=None), work=tmp_path, name="foundation"
    )
    ranked, asked = len(curves.asked.wanted.request), len(curves.targets)

    def said(rank: int) -> Answered:
        answers = curves.asked.answers(np.full(ranked, rank), None)
        return Answered(answers=answers, read_tokens=np.full(asked, 100))

    lengths = {
        Length(policy=policy, tokens=tokens, scaled=tokens > 150): said(rank)
        for policy in POLICIES
        for tokens, rank in ((100, 4), (150, 1), (192, 2))
    }
    curves.rows.write({("tokens", "all users"): lengths})
    beyond = {"metric": "ndcg@10_vs_trained", "model": "foundation, recent"}
    [row] = rows_of(curves.measured.rows, **beyond)
    assert row.context_tokens == 192
    assert "extrapolated, scaled" in row.split
    assert row.value == pytest.approx(1 / np.log2(3) - 1)


def test_the_mean_of_seeds_is_over_the_same_people(subject: Subject, tmp_path: Path) -> None:
    made = Measured("context_length", {}, out=None)
    events = (0, 5, 10)
    rng = np.random.default_rng(0)
    seeds, ranks = [], []
    for _ in range(2):
        curves = Curves(subject, made, work=tmp_path, name="foundation")
        num_asked = len(curves.asked.wanted.request)
        rank = rng.geometric((0.02, 0.2, 0.1), (num_asked, 3)).T
        curves.answered = {
            ("events", "all users"): {
                Length(policy=policy, events=n): Answered(
                    answers=curves.asked.answers(of_length, None),
                    read_tokens=np.full(len(curves.targets), 100),
                )
                for policy in POLICIES
                for n, of_length in zip(events, rank, strict=True)
            }
        }
        seeds.append(curves)
        ranks.append(rank)
    wanted = seeds[0].asked.wanted
    user = subject.split.test.user[wanted.request]
    # A length and people of one seed alone have no mean.
    told = seeds[0].answered["events", "all users"]
    seeds[0].answered["events", "20 events or more"] = dict(told)
    told |= {replace(one, events=20): said for one, said in told.items() if one.events == 10}
    measured = Measured("context_length", {"mean": 1}, out=None)
    mean = replace(seeds[0].rows, measured=measured, seed="mean")
    mean.write(joined([one.answered for one in seeds]))
    assert not made.rows
    assert {row.seed for row in measured.rows} == {"mean"}
    assert not rows_of(measured.rows, history_events=20)
    assert not [row for row in measured.rows if "20 events" in row.split]
    mine = {"model": "foundation, recent"}
    for place, n in enumerate(events):
        [row] = rows_of(measured.rows, metric="ndcg@10", history_events=n, **mine)
        per_target = np.mean([ndcg(rank[place], 10) for rank in ranks], axis=0)
        expected = bootstrap_interval(per_target, user)
        assert row.n == 2 * len(user)
        found = (row.value, row.ci_low, row.ci_high)
        assert found == pytest.approx((expected.value, expected.low, expected.high), rel=1e-6)
    [peak] = rows_of(measured.rows, metric="peak_events", **mine)
    assert peak.value == 5


def test_the_model_is_left_as_it_was(subject: Subject, smoke: Path) -> None:
    assert smoke.exists()
    assert subject.foundation.prompter.config.max_prompt_tokens == 150
    rows = subject.book.prefixes(subject.split.test, task=0)
    fresh = Foundation.create(
        subject.book.prompter,
        subject.book,
        subject.split.train,
        size="tiny",
        config=FoundationConfig(vector_dim=8),
        seed=0,
    )
    np.testing.assert_array_equal(subject.foundation.embed_users(rows), fresh.embed_users(rows))


def test_peaks_and_costs_stand_beside_quality(rows: list[ResultRow]) -> None:
    peaks = rows_of(rows, metric="peak_events", model="foundation, recent")
    lengths = {row.history_events for row in rows_of(rows, metric="ndcg@10")}
    assert peaks
    assert all(row.value in lengths for row in peaks)
    assert {"peak_tokens", "ndcg@10_peak_vs_longest_tokens"} <= {r.metric for r in rows}
    held = {
        row.context_tokens: row.value
        for row in rows_of(rows, metric="prefix_bytes", history_events=None)
        if row.model == "foundation, recent"
    }
    assert held[192] > held[150] > 0
    assert len(rows_of(rows, metric="p50_ms")) == len(rows_of(rows, metric="p95_ms")) > 20


def test_a_second_call_goes_on_with_what_was_said(
    subject: Subject,
    smoke: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = smoke.read_bytes()
    monkeypatch.setattr(benchmark, "trained", lambda *_, **__: subject)
    # There is nothing to ask the model, and nothing to time.
    monkeypatch.setattr(benchmark, "predict_targets", None)
    monkeypatch.setattr(benchmark, "take_rows", None)
    assert benchmark.main(["--smoke", "--out", str(smoke)]) == 0
    assert smoke.read_bytes() == before
    assert "peak_events of foundation, recent" in capsys.readouterr().out


def test_the_place_of_the_best_is_drawn_with_the_people() -> None:
    # One person is best served at 10, the other at 50; together it is a draw, and the shorter wins.
    users = np.arange(2)
    means = [mean_of_users(np.array(v), users, 2) for v in ([0.0, 0.0], [0.9, 0.0], [0.0, 0.9])]
    sizes = np.array([0.0, 10.0, 50.0])
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    places = length_rows._place_of_best(weights, means=means, size_L=sizes)
    assert places.tolist() == [10, 10, 50]


def test_without_a_run_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
    assert benchmark.main([str(tmp_path)]) == 1
    assert "not a run folder" in capsys.readouterr().err


def test_fewer_people_reach_further(subject: Subject, tmp_path: Path) -> None:
    few, many = (
        Curves(subject, Measured("context_length", {}, out=None), work=tmp_path, name="x", least=n)
        for n in (1, 1000)
    )
    assert few.events[-1] > many.events[-1]
    assert few.tokens[-1] > many.tokens[-1]
    assert few.cohorts["tokens"].sum() < many.cohorts["tokens"].sum()
