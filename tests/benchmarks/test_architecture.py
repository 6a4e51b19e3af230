import pytest

from benchmarks import architecture, ladder
from decant.results import read_csv


@pytest.mark.slow
def test_both_shapes_are_measured_and_a_second_call_makes_nothing(
    tmp_path, capsys, monkeypatch
) -> None:
    out, work = tmp_path / "architecture.csv", tmp_path / "work"
    arguments = ["--smoke", "--out", str(out), "--work", str(work)]
    assert architecture.main(arguments) == 0
    rows = {(row.model, row.split, row.metric): row.value for row in read_csv(out)}
    for who in ("ladder's shape", "searched shape"):
        assert 0 < rows[who, "test", "params_ratio"] <= 0.6
        assert rows[who, "test", "latency_ratio"] > 0
        assert (who, "test", "ndcg@10") in rows
    far = [rows[w, "validation", "divergence"] for w in ("searched shape", "ladder's shape")]
    assert far[0] <= far[1]
    before = out.read_bytes()
    monkeypatch.setattr(ladder.Descent, "make", None)
    assert architecture.main(arguments) == 0
    assert out.read_bytes() == before
    assert "loss_vs_ladders_shape" in capsys.readouterr().out
