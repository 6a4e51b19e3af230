from pathlib import Path

import numpy as np
import pytest

from benchmarks import persuasion as benchmark
from benchmarks.subjects import Sizes, Subject, finished, trained
from decant.results import read_csv

SMALL = Sizes(
    num_members=80,
    num_jobs=40,
    num_impressions=800,
    epochs={"text": 0.1, "slot": 0.5},
    num_requests=3,
    num_items=4,
)


@pytest.fixture(scope="module", params=["text", "slot"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return trained(request.param, SMALL, seed=0, scratch=tmp_path_factory.mktemp("fit"))


def test_no_attack_forges_a_token_that_means_something(subject: Subject) -> None:
    prompter = subject.book.prompter
    tried = list(benchmark.attacks(prompter.tasks[0]).values())
    pieces = prompter.item_pieces(
        prompter.item_text({"title": words}, kind="job") for words in tried
    )
    ids = pieces.ids
    assert np.count_nonzero(ids == prompter.arrow_id) == len(tried)
    forged = [prompter.newline_id, *prompter.label_ids, *prompter.tokenizer.all_special_ids]
    assert not np.isin(ids, forged).any()
    assert ids.max() < prompter.vocab_size


def test_a_control_takes_as_many_tokens(subject: Subject) -> None:
    prompter = subject.book.prompter
    for words in benchmark.attacks(prompter.tasks[0]).values():
        for neutral in benchmark.NEUTRAL:
            told = benchmark.in_as_many_tokens(prompter, words, neutral)
            attack, control = (
                len(prompter.item_pieces([prompter.words.neutralize(text)])[0])
                for text in (words, told)
            )
            assert attack <= control <= attack + 8


def test_a_posting_as_it_is_stands_where_its_text_puts_it(subject: Subject) -> None:
    rows = np.array([3, 11, 20])
    foundation, postings = benchmark.posted_anew(
        subject, rows, {"as it is": [""] * 3, "louder": ["Great pay"] * 3}
    )
    pieces = subject.book.item_pieces
    told = foundation.item_pieces
    for row, posting, louder in zip(rows, postings["as it is"], postings["louder"], strict=True):
        np.testing.assert_array_equal(told[int(posting)], pieces[int(row)])
        assert not np.array_equal(told[int(louder)], pieces[int(row)])
    np.testing.assert_array_equal(foundation.items.exposure_I[postings["as it is"]], 0)
    found = benchmark.ranks(subject, foundation, rows, postings, num_requests=3)
    served = found["served"]["as it is"]
    assert served.shape == (3, 3)
    assert (served >= 1).all()
    assert (served <= SMALL.num_jobs).all()
    # By hand, for one request and one posting, by p(item next).
    log, requests = subject.book.interactions, benchmark.sample_targets(subject.split.test, 3)
    prefixes = subject.book.prefixes(requests, task=0)
    scores = foundation.embed_users(prefixes)[0] @ foundation.embed_items().T
    seen = set(log.event_item[requests.history_start[0] : requests.history_end[0]].tolist())
    others = set(range(SMALL.num_jobs)) - seen - {3}
    mine = scores[postings["as it is"][0]]
    rank = 1 + sum(scores[other] >= mine - 1e-6 for other in others)
    assert found["next_item"]["as it is"][0, 0] == rank


def test_places_won_are_counted_with_their_interval() -> None:
    won = np.tile(np.arange(-10, 11), (5, 1))
    median = benchmark.with_interval(won, np.median, seed=0)
    assert median.value == 0
    assert median.low < 0 < median.high


def test_the_command_writes_its_rows_and_skips_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SMOKE", SMALL)
    path = tmp_path / "persuasion.csv"
    assert benchmark.main(["--smoke", "--form", "slot", "--out", str(path)]) == 0
    rows = read_csv(path)
    tried = {row.split for row in rows}
    assert {"all", "all, control", "repeated_label", "repeated_label, control"} <= tried
    assert {"median_rank_change", "p95_rank_change"} <= {row.metric for row in rows}
    assert {row.n for row in rows if row.split == "praise"} == {12}
    said = capsys.readouterr().out
    assert "repeated_label" in said
    assert "at most 1 wanted" in said
    assert benchmark.main(["--smoke", "--form", "slot", "--out", str(path)]) == 0
    assert "already" in capsys.readouterr().out
    assert read_csv(path) == rows


def test_a_run_folder_that_is_none_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--smoke", "--run", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nothing"):
        finished(tmp_path / "nothing")
