from pathlib import Path

import numpy as np
import pytest

from benchmarks import promptify as benchmark
from decant.results import read_csv


def test_assembly_is_twenty_times_the_plain_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "promptify.csv"
    assert benchmark.main(["--smoke", "--out", str(path)]) == 0
    speedup, *rates = read_csv(path)
    assert speedup.metric == "speedup_vs_per_example"
    assert speedup.value >= benchmark.TARGET_SPEEDUP
    assert [rate.metric for rate in rates] == ["tokens_per_s"] * 2
    assert rates[0].value > rates[1].value
    assert f"Speedup {speedup.value:.1f}" in capsys.readouterr().out


def test_different_ids_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "tokenized", lambda *_: [np.zeros(1, int)])
    assert benchmark.main(["--smoke"]) == 1
    assert "different ids" in capsys.readouterr().err
