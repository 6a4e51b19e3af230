from pathlib import Path

import numpy as np
import pytest

from benchmarks import drift
from benchmarks import studied as studying
from decant.results import read_csv


def test_models_of_one_moment_are_asked_in_spans_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studied = studying.smoke(tmp_path)
    monkeypatch.setattr(studying, "smoke", lambda _: studied)
    out = tmp_path / "drift.csv"
    assert drift.main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    for model in ("foundation", "sasrec", "popularity", "last_item_transitions"):
        mine = {row.split: row for row in rows if (row.model, row.metric) == (model, "ndcg@10")}
        assert list(mine) == [f"global-time, t+{n}" for n in range(1, drift.NUM_SPANS + 1)]
        [change] = [
            row for row in rows if (row.model, row.metric) == (model, "ndcg@10_vs_first_span")
        ]
        ends = mine["global-time, t+5"].value - mine["global-time, t+1"].value
        assert change.value == pytest.approx(ends)
    assert "t+5" in capsys.readouterr().out

    # Nothing that trains is later than anything that is asked, and spans follow each other.
    split, log = drift.split_by_time(studied), studied.data.interactions
    asked = log.event_timestamp[split.test.first_event]
    assert log.event_timestamp[split.train].max() < asked.min()
    span = drift.spans(studied, split.test)
    counts = np.bincount(span)
    assert len(counts) == drift.NUM_SPANS
    assert counts.max() - counts.min() <= 1
    latest = [asked[span == n].max() for n in range(drift.NUM_SPANS)]
    earliest = [asked[span == n].min() for n in range(drift.NUM_SPANS)]
    assert all(a <= b for a, b in zip(latest[:-1], earliest[1:], strict=True))

    # A second call trains nothing; a model that has seen more is another.
    before = out.read_bytes()
    monkeypatch.setattr(drift, "train_like", None)
    monkeypatch.setattr(drift.sasrec, "fit", None)
    assert drift.main(["--smoke", "--out", str(out), "--train-share", "0.7"]) == 0
    assert out.read_bytes() == before
    with pytest.raises(TypeError, match="not callable"):
        drift.main(["--smoke", "--out", str(out), "--train-share", "0.8"])
    longer = drift.split_by_time(studied, train_share=0.8)
    assert longer.train.mean() == pytest.approx(0.8, abs=0.01)
    ageing = drift.Ageing(studied, None, work=tmp_path, train_sasrec=None, train_share=0.8)
    assert ageing.split.train.sum() == longer.train.sum() > split.train.sum()
    moment = log.event_timestamp[longer.train].max()
    assert moment < log.event_timestamp[longer.valid.first_event].min()


@pytest.mark.parametrize("share", ["0", "0.95", "nan"])
def test_a_share_that_leaves_nothing_to_train_on_or_to_ask_is_refused(
    share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drift.main(["--smoke", "--train-share", share]) == 1
    assert f"--train-share {share} must lie between 0 and 0.95" in capsys.readouterr().err


def test_without_a_run_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert drift.main([]) == 1
    assert "RUN is needed" in capsys.readouterr().err
