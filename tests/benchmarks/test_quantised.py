from benchmarks import quantised
from decant.results import read_csv


def test_time_and_error_are_measured(tmp_path, capsys) -> None:
    out = tmp_path / "quantised.csv"
    assert quantised.main(["--smoke", "--out", str(out)]) == 0
    rows = {row.metric: row for row in read_csv(out)}
    assert set(rows) == {"int8_speedup", "float32_ms", "int8_ms", "max_abs_error"}
    assert 0 < rows["max_abs_error"].value < 1
    ratio = rows["int8_speedup"]
    assert 0.01 < ratio.ci_low <= ratio.value <= ratio.ci_high < 100
    assert "int8_speedup" in capsys.readouterr().out
