from pathlib import Path

import numpy as np
import pytest

from benchmarks import cold_items
from benchmarks.arms import beds, prepare
from decant.results import read_csv
from foundation.evaluation import ndcg
from promptify.splits import cold_item


def test_smoke_ranks_cold_and_warm_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "cold.csv", tmp_path / "work"
    call = ["--smoke", "--arms", "full", "--out", str(out), "--work", str(work)]
    assert cold_items.main(call) == 0
    rows = {(row.split, row.metric): row for row in read_csv(out) if row.model == "full"}
    given = {row.model: row.value for row in read_csv(out) if row.metric == "ndcg@10_warm"}
    assert list(given) == ["full", "full+give5", "full+give10", "full+give20"]
    assert "warm" in capsys.readouterr().out

    # The same from the ranks that were kept, and the slices as they should be.
    prepared = prepare(beds(["job_market"], movielens=None, smoke=True)[0], seed=0)
    arm = cold_items.ARMS[0]
    ranks = cold_items.cold_ranks(prepared, arm, encoder=None, work=work)["full"]["test"]
    cold = cold_item(prepared.data.interactions, prepared.split, seed=0).cold_items
    assert cold is not None
    assert 0 < ranks.is_cold.sum() < len(ranks.is_cold)
    assert (ranks.rank_alone[ranks.is_cold] <= ranks.rank[ranks.is_cold]).all()
    assert ranks.rank_alone[ranks.is_cold].max() <= cold.sum()
    for name, chosen, rank in (
        ("cold", ranks.is_cold, ranks.rank),
        ("cold_alone", ranks.is_cold, ranks.rank_alone),
        ("warm", ~ranks.is_cold, ranks.rank),
    ):
        row = rows["leave_one_out_cold_item", f"ndcg@10_{name}"]
        assert row.n == chosen.sum()
        assert row.value == pytest.approx(ndcg(rank[chosen], 10).mean())

    before = out.read_bytes()
    assert cold_items.main(call) == 0
    assert out.read_bytes() == before


def test_an_unknown_arm_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cold_items.main(["--smoke", "--arms", "nonsense"]) == 1
    assert "--arms" in capsys.readouterr().err


def test_slices_part_the_targets() -> None:
    ranks = cold_items.ColdRanks(
        user=np.array([0, 1, 2]),
        is_cold=np.array([True, False, True]),
        rank=np.array([30, 2, 40]),
        rank_alone=np.array([3, 1, 4]),
    )
    assert [ranks.of(part)[0].tolist() for part in cold_items.SLICES] == [[30, 40], [3, 4], [2]]
    assert [ranks.of(part)[1].tolist() for part in cold_items.SLICES] == [[0, 2], [0, 2], [1]]
