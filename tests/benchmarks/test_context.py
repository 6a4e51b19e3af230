from pathlib import Path

import numpy as np
import pytest

from benchmarks import context as benchmark
from decant.results import read_csv
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import job_market


def test_short_and_long_histories_are_measured_and_rows_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "context.csv"
    assert benchmark.main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    lengths = {(row.model, row.history_events) for row in rows}
    for model in ("short windows 0", "short windows 0.5", "behind 5 events only"):
        assert {(model, 0), (model, 2), (model, None)} <= lengths
    paired = [row for row in rows if row.metric == "ndcg@10_vs_short_0"]
    assert {row.model for row in paired} == {"short windows 0.5", "behind 5 events only"}
    assert "events of history" in capsys.readouterr().out

    # Everything is there: nothing is trained, asked or written again.
    written = out.read_bytes()
    assert benchmark.main(["--smoke", "--out", str(out), "--work", str(tmp_path / "none")]) == 0
    assert out.read_bytes() == written
    assert not (tmp_path / "none").exists()


def test_only_long_histories_are_asked_behind() -> None:
    data = job_market(num_members=40, num_jobs=50, num_impressions=600)
    log = data.interactions
    train = np.ones(log.num_events, bool)
    config = PrompterConfig(max_prompt_tokens=256, max_item_tokens=24, max_profile_tokens=32)
    prompter = Prompter.fit(log, train, data.tasks, config=config)
    plain, late = prompter.book(log), benchmark.LateTargets(prompter, log, least_events=7)
    windows = plain.windows(train, seed=0, epoch=0)
    every, some = (book.assemble(windows, seed=0, epoch=0) for book in (plain, late))
    np.testing.assert_array_equal(every.ids, some.ids)
    for row in range(len(windows)):
        events = np.arange(every.event_offsets[row], every.event_offsets[row + 1])
        before = events - events[0]
        np.testing.assert_array_equal(
            some.event_is_target[events], every.event_is_target[events] & (before >= 7)
        )
        pairs = slice(*every.next_offsets[row : row + 2])
        kept = slice(*some.next_offsets[row : row + 2])
        behind = [
            np.count_nonzero(every.event_end[events] <= position) >= 7
            for position in every.next_position[pairs]
        ]
        np.testing.assert_array_equal(every.next_item[pairs][behind], some.next_item[kept])
        np.testing.assert_array_equal(every.next_position[pairs][behind], some.next_position[kept])
    assert 0 < len(some.next_item) < len(every.next_item)


def test_without_data_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main([]) == 1
    assert "--data is needed" in capsys.readouterr().err
    assert benchmark.main(["--data", str(tmp_path / "none.zip")]) == 1
    assert "none.zip" in capsys.readouterr().err
