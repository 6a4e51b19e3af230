import numpy as np
import pytest

from benchmarks.gate import Design, drawn, main
from decant.results import read_csv
from foundation.evaluation import auc


@pytest.mark.parametrize("metric", ["ndcg@10", "auc"])
def test_a_loss_is_planted_as_large_as_it_says(metric: str) -> None:
    rng = np.random.default_rng(0)
    design = Design(metric=metric, num_users=200_000, targets_per_user=1)
    for loss in (0.0, 0.02, 0.1):
        before, after = drawn(design, loss, rng)
        if metric == "ndcg@10":
            was, now = (one.target_ndcg.mean() for one in (before, after))
        else:
            was, now = (auc(one.event_label, one.event_probability) for one in (before, after))
            assert was == pytest.approx(0.75, abs=0.004)
        assert (was - now) / was == pytest.approx(loss, abs=0.006)


def test_it_counts_and_goes_on_where_it_stopped(tmp_path, capsys) -> None:
    out = tmp_path / "gate.csv"
    assert main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    assert {(row.metric, row.model) for row in rows} == {
        ("gate_false_accept", "loss 2%"),
        ("gate_false_reject", "loss 0%"),
        ("gate_undecided", "loss 2%"),
        ("gate_undecided", "loss 0%"),
    }
    assert all(0 <= row.ci_low <= row.value <= row.ci_high <= 1 for row in rows)
    assert all(row.n == 20 for row in rows)
    before = out.read_bytes()
    assert main(["--smoke", "--out", str(out)]) == 0
    assert out.read_bytes() == before
    assert "gate_false_accept" in capsys.readouterr().out
