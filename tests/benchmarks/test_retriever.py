from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import retriever, retriever_arms
from benchmarks.arms import Arm, beds, prepare
from benchmarks.retriever_arms import SMOKE, Bench, Said, Training, reranked, unseen
from decant.results import read_csv
from foundation import Foundation
from foundation.evaluation import ndcg

NO = -np.inf


def test_smoke_measures_every_arm_and_a_second_call_measures_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--smoke", "--out", str(tmp_path / "rows.csv"), "--work", str(tmp_path / "work")]
    assert retriever.main(call) == 0
    assert "widths@16" in capsys.readouterr().out
    before = (tmp_path / "rows.csv").read_bytes()
    rows = {(row.model, row.split, row.metric): row for row in read_csv(tmp_path / "rows.csv")}
    arms = {
        "full",
        "sampled",
        "mined",
        "restarted",
        "mined_added",
        "alone16",
        "alone32",
        "longer",
        "ranker2",
        "ranker8",
    }
    assert {model for model, *_ in rows} == arms | {"widths@16", "widths@32", "widths@64"}

    # The same from what was kept.
    bench = Bench(
        prepare(beds(["job_market"], movielens=None, smoke=True)[0], seed=0),
        SMOKE,
        tmp_path / "work",
    )
    said, asked = bench.said("widths")["test"], bench.asked["test"]
    scores = said.persons_nV[:, :16] @ said.items_IV[:, :16].T
    rank = asked.ranks_by(lambda start, stop: scores[start:stop])
    row = rows["widths@16", "leave_one_out", "ndcg@10_retrieval"]
    assert row.value == pytest.approx(ndcg(rank, 10).mean(), abs=1e-9)
    assert row.n == len(rank)
    other = rows["alone16", "leave_one_out", "ndcg@10_retrieval"].value
    gap = rows["widths@16", "leave_one_out", "ndcg@10_retrieval_vs_alone16"]
    assert gap.value == pytest.approx(row.value - other)
    # No ranker mends what was not found, and more is found among more.
    for model in arms:
        found = {k: rows[model, "leave_one_out", f"recall@{k}_of_top10"].value for k in (20, 200)}
        assert found[20] <= found[200] <= 1
        ceiling = rows[model, "leave_one_out", "hr_ceiling@50"].value
        assert rows[model, "leave_one_out", "hr@10_retrieve_rank"].value <= ceiling

    assert retriever.main(call) == 0
    assert (tmp_path / "rows.csv").read_bytes() == before


def test_a_kept_model_of_other_code_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(Foundation, "fit", fit)
    monkeypatch.setattr(Foundation, "from_pretrained", lambda folder: folder)
    bed = beds(["job_market"], movielens=None, smoke=True)[0]
    bench = Bench(prepare(bed, seed=0), SMOKE, tmp_path)
    monkeypatch.setattr(retriever_arms, "code_key", lambda _: "a")
    kept = bench._path("full", ".model")
    kept.mkdir(parents=True)
    assert bench.model("full") == kept
    monkeypatch.setattr(retriever_arms, "code_key", lambda _: "b")
    with pytest.raises(InterruptedError):
        bench.model("full")


def test_seeds_of_the_same_people_make_a_mean_no_surer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, user = np.random.default_rng(0).random(60), np.arange(60) // 2

    class Of:
        """A bench whose only arm says the same with every seed."""

        def __init__(self, *_: object) -> None:
            self.trainings = {"full": Training(arm=Arm(name="full"))}
            self.prepared = SimpleNamespace(
                foundation_config=lambda _: SimpleNamespace(widths=(64,))
            )

        def said(self, _: str) -> dict[str, None]:
            return dict.fromkeys(retriever.SPLITS)

    monkeypatch.setattr(retriever, "Bench", Of)
    monkeypatch.setattr(retriever, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(retriever, "values", lambda *_, **__: {"ndcg@10_retrieval": (values, user)})
    bed = beds(["job_market"], movielens=None, smoke=True)[0]
    measured = retriever.measure(bed, [0, 1, 2], SMOKE, out=None, work=tmp_path)
    ends = {
        row.seed: (row.value, row.ci_low, row.ci_high)
        for row in measured.rows
        if row.split == "leave_one_out"
    }
    assert ends["mean"] == pytest.approx(ends[0])


def test_the_retrieved_come_first_in_the_ranker_s_order() -> None:
    retrieval = np.array([[5.0, 4.0, 3.0, 2.0, NO], [1.0, 2.0, NO, NO, NO]])
    full = np.array([[-9.0, -7.0, -8.0, 99.0, NO], [-3.0, -4.0, NO, NO, NO]])
    order = np.argsort(-reranked(retrieval, full, 3), axis=1, kind="stable")
    assert order[0].tolist() == [1, 2, 0, 3, 4]
    assert order[1, :2].tolist() == [0, 1]


def test_what_does_not_help_is_said_by_the_ranking_formula() -> None:
    said = Said(
        persons_nV=np.array([[1.0, 0.0]], np.float32),
        items_IV=np.array([[1.0, 9.0], [0.5, 9.0], [2.0, 0.0]], np.float32),
        liked_nI=np.array([[-1.0, -3.0, NO]], np.float32),
        weight=2.0,
    )
    assert said.retrieval(1).tolist() == [[1.0, 0.5, NO]]
    assert said.full().tolist() == [[-1.0, -5.5, NO]]
    assert said.full(0.0).tolist() == [[1.0, 0.5, NO]]


def test_seen_items_are_not_retrieved_and_none_of_them_is_wanted() -> None:
    bench = Bench(
        prepare(beds(["job_market"], movielens=None, smoke=True)[0], seed=0), SMOKE, Path("unused")
    )
    asked = bench.asked["test"]
    log, targets = bench.book.interactions, asked.targets
    open_nI = unseen(asked, np.zeros((len(targets), log.num_items)))
    start, end = int(targets.history_start[0]), int(targets.history_end[0])
    seen = set(log.event_item[start:end].tolist())
    wanted = set(asked.wanted.item[asked.wanted.request == 0].tolist())
    assert seen
    assert set(np.flatnonzero(open_nI[0] == NO).tolist()) == seen
    assert not seen & wanted
    assert (open_nI[asked.wanted.request, asked.wanted.item] == 0).all()


def test_a_bed_without_its_zip_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert retriever.main(["--beds", "ml100k"]) == 1
    assert "--movielens" in capsys.readouterr().err
