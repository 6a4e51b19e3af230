from pathlib import Path

import numpy as np
import pytest

from benchmarks import steering
from benchmarks import tasks as benchmark
from decant.results import read_csv
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources.job_market import TASKS, job_market, job_market_with_truth


def test_together_is_held_against_alone_and_rows_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tasks.csv"
    assert benchmark.main(["--smoke", "--out", str(out)]) == 0
    rows = read_csv(out)
    found = {(row.task, row.model, row.metric) for row in rows}
    for task in ("jobs", "people"):
        assert {(task, "together", "auc_vs_alone"), (task, "together", "ndcg@10_vs_alone")} <= found
        assert {(task, m, "auc") for m in (f"{task} alone", "oracle", "popularity")} <= found
    oracle = [row.value for row in rows if (row.task, row.model) == ("notes", "oracle")]
    assert oracle == pytest.approx([1.0, 1.0])
    for wording in ("trained wording", "held-out wording", "held-out wording, other notes"):
        assert ("notes", wording, "note_correlation_action") in found
    assert {("fit", "third task", "auc"), ("fit", "jobs task", "auc")} <= found
    assert "auc_vs_alone" in capsys.readouterr().out

    written = out.read_bytes()
    assert benchmark.main(["--smoke", "--out", str(out), "--work", str(tmp_path / "none")]) == 0
    assert out.read_bytes() == written
    assert not (tmp_path / "none").exists()


def test_each_arm_has_its_tasks_targets_as_often() -> None:
    data = job_market(num_members=60, num_jobs=150, num_impressions=1500)
    log = data.interactions
    train = np.ones(log.num_events, bool)
    config = PrompterConfig(max_prompt_tokens=256, max_item_tokens=24, max_profile_tokens=32)
    prompter = Prompter.fit(log, train, TASKS, config=config)
    targets = {}
    for arm, tasks in benchmark.ARMS.items():
        book = benchmark.BookOfTasks(prompter, log, tasks)
        rows = book.assemble(book.windows(train, seed=0, epoch=0), seed=0, epoch=0)
        targets[arm] = np.bincount(rows.event_task[rows.event_is_target], minlength=2)
    alone = targets["jobs alone"] + targets["people alone"]
    np.testing.assert_array_equal(targets["together"], alone)
    assert targets["jobs alone"][1] == targets["people alone"][0] == 0
    assert alone.min() > 0


def test_correlation_is_of_rankings_within_a_request() -> None:
    rng = np.random.default_rng(0)
    true, user = rng.normal(size=(30, 8)), np.arange(30)
    found = steering.correlation(3 * true + rng.normal(size=(30, 1)), true, user)
    assert found is not None
    assert found[0].value == pytest.approx(1.0)
    mirrored = steering.correlation(-true, true, user)
    assert mirrored is not None
    assert mirrored[0].value == pytest.approx(-1.0)
    unmoved = steering.correlation(np.ones_like(true), true, user)
    assert unmoved is not None
    assert unmoved[0].value == 0
    # A note that moves every job alike says nothing of rankings.
    true[:10] = 4.0
    some = steering.correlation(true, true, user)
    assert some is not None
    assert some[1] == 20
    assert steering.correlation(true[:10], true[:10], user[:10]) is None


def test_true_scores_are_the_log_probability_of_applying() -> None:
    _, truth, _ = job_market_with_truth(num_members=60, num_jobs=50, num_impressions=600)
    requests = steering.Requests(
        user=np.array([3, 7]),
        history_start=np.zeros(2, int),
        history_end=np.zeros(2, int),
        day=np.array([20.0, 90.0]),
        jobs=np.array([[0, 4, 9], [1, 2, 3]]),
    )
    scores = steering.true_scores(truth, requests, np.array([1, 5]))
    assert scores.shape == (2, 3)
    for row, place in ((0, 2), (1, 1)):
        user, job = requests.user[[row]], requests.jobs[row, [place]]
        utility = truth.utility(user, job, requests.day[[row]], np.array([1, 5])[[row]])
        expected = truth.action_probabilities(user, utility)[0, 0]
        assert scores[row, place] == pytest.approx(np.log(expected), rel=1e-5)
