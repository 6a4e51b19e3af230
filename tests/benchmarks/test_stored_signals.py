from benchmarks import stored_signals
from decant.results import read_csv


def test_bytes_and_speed_are_measured(tmp_path, capsys) -> None:
    out = tmp_path / "stored.csv"
    assert stored_signals.main(["--smoke", "--out", str(out)]) == 0
    values = {row.metric: row.value for row in read_csv(out)}
    assert set(values) == {"bytes_per_million_events", "stored_speedup"}
    # 64 candidates of six bytes for each event, at least.
    assert values["bytes_per_million_events"] > 200e6
    assert 0.2 < values["stored_speedup"] < 20
    assert "stored_speedup" in capsys.readouterr().out
