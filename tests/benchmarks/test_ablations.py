from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablations, arms, cold_items
from benchmarks.arms import Arm, beds, prepare
from decant.measure import Answers
from decant.results import read_csv
from foundation.evaluation import ndcg
from promptify.validation import BadInput


def test_smoke_writes_rows_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablations.csv"
    call = [
        "--smoke",
        "--arms",
        "full",
        "no_text",
        "--out",
        str(out),
        "--work",
        str(tmp_path / "w"),
    ]
    assert ablations.main(call) == 0
    rows = read_csv(out)
    assert {row.model for row in rows} == {"full", "no_text"}
    assert {row.split for row in rows} == {"leave_one_out", "leave_one_out_valid"}
    value = {(r.model, r.split, r.metric): r.value for r in rows}
    for split in ("leave_one_out", "leave_one_out_valid"):
        for metric in ablations.METRICS:
            apart = value["no_text", split, metric] - value["full", split, metric]
            together = value["no_text", split, f"{metric}_vs_full"]
            assert together == pytest.approx(apart, abs=1e-9)
    assert "no_text" in capsys.readouterr().out

    def must_not_train(*_: object, **__: object) -> None:
        raise AssertionError("an arm that is known was trained again")

    monkeypatch.setattr(arms, "trained", must_not_train)
    assert ablations.main(call) == 0
    assert read_csv(out) == rows
    # What each arm said is kept apart from its rows.
    out.unlink()
    assert ablations.main(call) == 0
    assert [row.value for row in read_csv(out)] == [row.value for row in rows]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["--arms", "nonsense"], "--arms"),
        (["--beds", "nonsense"], "unknown"),
        (["--beds", "ml100k"], "--movielens"),
        (["--study", "slots", "--arms", "encoder"], "--text-encoder"),
    ],
)
def test_what_cannot_be_measured_is_said(
    call: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations.main(["--smoke", *call]) == 1
    assert said in capsys.readouterr().err


def test_every_arm_is_a_configuration_of_its_bed() -> None:
    prepared = prepare(beds(["job_market"], movielens=None, smoke=True)[0], seed=0)
    for study in ablations.STUDIES.values():
        settings = [prepared.settings(arm) for arm in study]
        assert study[0] == Arm(name="full")
        assert all(settings.count(one) == 1 for one in settings)


def test_an_arm_of_another_text_encoder_is_another_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, weights in (("a", "1"), ("b", "2"), ("copy", "1")):
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (tmp_path / name / file).write_text(weights if file.startswith("model") else "{}")
    kept: list[str] = []

    def noted(*_: object, scratch: Path, **__: object) -> None:
        kept.append(scratch.name)
        raise KeyboardInterrupt

    for module in (arms, cold_items):
        monkeypatch.setattr(module, "trained", noted)
    prepared = prepare(beds(["job_market"], movielens=None, smoke=True)[0], seed=0)
    monkeypatch.setattr(type(prepared), "book", lambda *_: None)
    with_encoder, plain = Arm(name="encoder", encoder=True), Arm(name="full")
    for arm, encoders in ((with_encoder, "a copy b"), (plain, "a copy b")):
        for asked in (arms.answers, cold_items.cold_ranks):
            for name in encoders.split():
                with pytest.raises(KeyboardInterrupt):
                    asked(prepared, arm, encoder=tmp_path / name, work=tmp_path)
    names = [kept[at : at + 3] for at in range(0, 12, 3)]
    assert all(one == copy for one, copy, _ in names)
    assert [one != other for one, _, other in names] == [True, True, False, False]
    with pytest.raises(BadInput, match=r"--text-encoder .*nowhere.* cannot be read"):
        arms.answers(prepared, with_encoder, encoder=tmp_path / "nowhere", work=tmp_path)


def said(rank: list[int], *, user: list[int], probability: list[float]) -> Answers:
    return Answers(
        user=np.array(user),
        rank=np.array(rank),
        is_positive_target=np.ones(len(rank), bool),
        action_user=np.array(user),
        action_positive=np.array([True, False, True]),
        action_probability=np.array(probability),
    )


def test_the_mean_over_seeds_pairs_users() -> None:
    good = [
        said([1, 2, 3], user=[0, 1, 2], probability=[0.9, 0.1, 0.8]),
        said([1, 1, 50], user=[0, 1, 2], probability=[0.9, 0.2, 0.1]),
    ]
    bad = [
        said([2, 3, 4], user=[0, 1, 2], probability=[0.1, 0.9, 0.8]),
        said([9, 9, 99], user=[0, 1, 2], probability=[0.9, 0.2, 0.1]),
    ]
    gains = [ndcg(np.array(r), 10).mean() for r in ([1, 2, 3], [1, 1, 50], [2, 3, 4], [9, 9, 99])]
    found, count = ablations.interval("ndcg@10", good)
    assert count == 6
    assert found.value == pytest.approx((gains[0] + gains[1]) / 2)
    assert found.low <= found.value <= found.high
    less, _ = ablations.interval("ndcg@10", bad, good)
    assert less.value == pytest.approx((gains[2] + gains[3] - gains[0] - gains[1]) / 2)
    assert less.high < 0
    area, _ = ablations.interval("auc", good)
    assert area.value == pytest.approx((1.0 + 0.5) / 2)
