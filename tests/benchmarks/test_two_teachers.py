"""The benchmark of two teachers: its rows are what the arms answered, and are measured once."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import two_teachers
from benchmarks.teacher_arms import ARMS, SMOKE, Market, mixed
from benchmarks.two_teachers import Bench, _gap
from decant.results import read_csv

CALLED = ["policy teacher", "click teacher", "student", "policy-only", "student, other seed"]


def test_arms_set_each_weight_to_zero() -> None:
    weights = {name: (a.weights.alpha, a.weights.beta, a.weights.gamma) for name, a in ARMS.items()}
    assert weights["student"] == (1, 1, 1)
    for place, which in enumerate(("alpha", "beta", "gamma")):
        wanted = tuple(float(other != place) for other in range(3))
        assert weights[f"student, {which} 0"] == wanted


def test_a_mix_at_its_ends_is_one_side_alone() -> None:
    click, policy = np.array([-1.0, -np.inf]), np.array([-np.inf, -2.0])
    np.testing.assert_array_equal(mixed(click, policy, 0), click)
    np.testing.assert_array_equal(mixed(click, policy, 1), policy)
    assert mixed(np.array([-1.0]), np.array([-2.0]), 0.25) == pytest.approx([-1.25])


def test_a_gap_is_between_segments_with_enough_people() -> None:
    segment = np.repeat([0, 1, 2], [30, 30, 5])
    values = np.where(segment == 0, 0.75, np.where(segment == 1, 0.25, 9.0))
    gap = _gap(values, np.arange(65), segment, draws=20)
    assert gap is not None
    assert gap.value == pytest.approx(0.5)
    assert _gap(values[:30], np.arange(30), segment) is None


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("teachers")
    call = ["--smoke", "--out", str(folder / "rows.csv"), "--work", str(folder / "work")]
    call += ["--plot", str(folder / "curve.png"), "--arm", *CALLED]
    assert two_teachers.main(call) == 0
    return folder, call


def test_smoke_measures_and_a_second_call_measures_nothing_again(
    called: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, call = called
    before = (folder / "rows.csv").read_bytes()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert two_teachers.main(call) == 0
    assert "policy_alignment" in capsys.readouterr().out
    assert (folder / "rows.csv").read_bytes() == before
    metrics = {row.metric for row in read_csv(folder / "rows.csv")}
    wanted = {"policy_alignment", "click_auc", "stability_top10", "ndcg@10", "p95_ms"}
    assert wanted <= metrics
    assert any(metric.startswith("exposure_workplace=") for metric in metrics)


def test_rows_say_what_was_answered(called: tuple[Path, list[str]]) -> None:
    folder, _ = called
    rows = {(row.model, row.metric): row for row in read_csv(folder / "rows.csv")}
    market = Market(0, SMOKE, folder / "work")
    said = market.said("student")
    right = said.pair_grade.argmax(1) == market.pair_grade
    assert rows["student", "policy_alignment"].value == pytest.approx(right.mean())
    assert rows["student", "policy_alignment"].n == len(right)
    # A click model alone has learned no grades to agree with.
    assert ("click teacher", "policy_alignment") not in rows

    # Each person's pairs, two by two.
    score = said.pair_policy
    shares = []
    for user in np.unique(market.pair_user):
        mine = np.flatnonzero(market.pair_user == user)
        two = [(a, b) for a in mine for b in mine if market.pair_grade[a] > market.pair_grade[b]]
        if two:
            shares.append(
                np.mean([(score[a] > score[b]) + (score[a] == score[b]) / 2 for a, b in two])
            )
    told = rows["student, blend=1", "policy_concordance"]
    assert told.value == pytest.approx(np.mean(shares))
    assert told.value == pytest.approx(rows["student", "policy_concordance"].value)

    # What is held out is in no label that is learned from, and grades are the policy's.
    assert (market.pairs.find(market.pair_user, market.pair_item) == -1).all()
    wanted = market.grades(market.pair_user, market.pair_item)
    np.testing.assert_array_equal(market.pair_grade, wanted)
    np.testing.assert_array_equal(
        market.pairs.share_PG.argmax(1), market.grades(market.pairs.user, market.pairs.item)
    )

    # Nobody is served what they have seen.
    bench = Bench(market, two_teachers.Measured("teachers", {}, out=None))
    top = bench.top(said.served(0.5))
    assert top.shape == (SMOKE.requests, 10)
    assert not np.take_along_axis(bench.seen_qJ, top, 1).any()


def test_what_cannot_be_written_ends_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("no,results\n")
    assert two_teachers.main(["--smoke", "--out", str(tmp_path / "rows.csv")]) == 1
    assert "error" in capsys.readouterr().err
