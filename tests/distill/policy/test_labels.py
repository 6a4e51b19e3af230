"""Labels: shard by shard, resumed after a kill, whole or refused."""

import json
import logging
import multiprocessing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from distill.policy import Grader, Pairs
from distill.policy.endpoint import EndpointStopped
from distill.policy.golden import sample_golden
from distill.policy.judges import ExecutableJudge, Judged
from distill.policy.labels import LABEL_SCHEMA, LabelConfig, label, read_labels
from promptify.grades import GradedPairs
from promptify.validation import BadInput

CONFIG = LabelConfig(count=5000, pairs_per_shard=1024, seed=4)


@pytest.fixture(scope="module")
def judge(job_grader) -> ExecutableJudge:
    return ExecutableJudge(job_grader)


@pytest.fixture(scope="module")
def golden(job_grader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "set"
    return sample_golden(job_grader, folder, count=600, segment="seniority", held_out=0.5)


class Counting:
    """The executable judge, with what it is asked and a way to fail."""

    def __init__(self, judge, fail_at=None, aside=()) -> None:
        self.name, self.policy = judge.name, judge.policy
        self._judge, self._fail_at, self._aside = judge, fail_at, set(aside)
        self.asked: list[int] = []

    def judge(self, pairs: Pairs) -> Judged:
        if len(self.asked) == self._fail_at:
            raise EndpointStopped("it died")
        self.asked.append(len(pairs))
        judged = self._judge.judge(pairs)
        grade = judged.grade.copy()
        grade[list(self._aside)] = -1
        why = dict.fromkeys(self._aside, "hm")
        return Judged(grade=grade, score=judged.score, rules=judged.rules, why_not=why)


def test_labels_are_what_the_policy_says_each_pair_once(judge, market_tables, golden, tmp_path):
    done = label(judge, market_tables, tmp_path / "labels", CONFIG, golden=golden)
    table = read_labels(tmp_path / "labels", golden=golden)
    assert table.schema.equals(LABEL_SCHEMA)
    assert len(table) == done.about["num_labels"] == done.num_judged == 5000
    log = market_tables.interactions
    pairs = Pairs.of(
        users=[log.user_row(one) for one in table["user_id"].to_pylist()],
        items=[log.item_row(one) for one in table["item_id"].to_pylist()],
    )
    assert len(set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))) == 5000
    grades = Grader(judge.policy, market_tables).grades(pairs)
    assert table["grade"].to_pylist() == grades.grade.tolist()
    assert table["rules"].to_pylist() == grades.rules.to_pylist()
    assert table["score"].to_pylist() == pytest.approx(grades.score.tolist())
    assert pc.unique(table["version"]).to_pylist() == [f"job_market 1.0 {judge.policy.digest}"]
    # Near misses are alike in words and bad by the policy.
    near = table.filter(table["near_miss"])
    assert set(near["source"].to_pylist()) == {"similar"}
    assert pc.max(near["grade"]).as_py() <= 1
    assert len(near) == done.about["num_near_misses"] > 400
    assert sum(done.about["by_grade"]) == sum(done.about["by_source"].values()) == 5000
    assert done.about["by_source"]["shown"] == 1500


def test_a_judge_that_dies_midway_goes_on_where_it_stopped(judge, market_tables, tmp_path):
    folder = tmp_path / "labels"
    dying = Counting(judge, fail_at=2)
    with pytest.raises(EndpointStopped):
        label(dying, market_tables, folder, CONFIG)
    with pytest.raises(BadInput, match="holds no finished labels; give the same"):
        read_labels(folder, golden=None)
    again = Counting(judge)
    done = label(again, market_tables, folder, CONFIG)
    assert (dying.asked, again.asked) == ([1024] * 2, [1024, 1024, 904])
    assert done.num_judged == 2952
    once = label(judge, market_tables, tmp_path / "once", CONFIG)
    assert [shard["sha256"] for shard in done.about["shards"]] == [
        shard["sha256"] for shard in once.about["shards"]
    ]
    third = Counting(judge)
    assert label(third, market_tables, folder, CONFIG).num_judged == 0
    assert third.asked == []


def test_a_kill_leaves_whole_shards_and_the_rest_is_made_again(judge, market_tables, tmp_path):
    folder = tmp_path / "labels"
    context = multiprocessing.get_context("fork")
    reached = context.Event()

    class Hanging(Counting):
        def judge(self, pairs):
            if len(self.asked) == 2:
                reached.set()
                context.Event().wait(60)
            return super().judge(pairs)

    process = context.Process(target=lambda: label(Hanging(judge), market_tables, folder, CONFIG))
    process.start()
    assert reached.wait(60)
    with pytest.raises(BadInput, match="another process writes labels"):
        label(judge, market_tables, folder, CONFIG)
    process.kill()
    process.join()
    (folder / ".labels-00002.arrow.123").write_bytes(b"half of a shard")
    again = Counting(judge)
    label(again, market_tables, folder, CONFIG)
    assert sum(again.asked) == 2952
    assert len(read_labels(folder, golden=None)) == 5000


@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_a_shard_that_was_cut_is_refused_and_made_again(
    judge, market_tables, tmp_path, caplog, keep
):
    folder = tmp_path / "labels"
    label(judge, market_tables, folder, CONFIG)
    path = folder / "labels-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BadInput, match=r"labels-00001.arrow is cut, damaged or missing; give"):
        read_labels(folder, golden=None)
    again = Counting(judge)
    with caplog.at_level(logging.WARNING):
        label(again, market_tables, folder, CONFIG)
    assert "labels-00001.arrow is cut or damaged; its 1,024 pairs are judged again" in caplog.text
    assert again.asked == [1024]
    assert path.read_bytes() == whole


def test_a_changed_label_is_refused_and_made_again(judge, market_tables, tmp_path):
    folder = tmp_path / "labels"
    label(judge, market_tables, folder, CONFIG)
    path = folder / "labels-00003.arrow"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(BadInput, match="is cut, damaged or missing"):
        read_labels(folder, golden=None)
    label(judge, market_tables, folder, CONFIG)  # and does not vouch for it
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(BadInput, match="is cut, damaged or missing"):
        read_labels(folder, golden=None)


def test_what_the_judge_did_not_answer_is_set_aside_and_counted(judge, market_tables, tmp_path):
    folder = tmp_path / "labels"
    done = label(Counting(judge, aside=(0, 7)), market_tables, folder, CONFIG)
    assert done.about["num_set_aside"] == 10
    assert len(read_labels(folder, golden=None)) == done.about["num_labels"] == 4990
    lines = (folder / "aside-00004.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["item_id", "said", "user_id"]] * 2
    again = Counting(judge)
    label(again, market_tables, folder, CONFIG)
    assert again.asked == []  # a shard without them is whole


def test_a_folder_is_of_one_call(judge, market_tables, tmp_path, golden):
    folder = tmp_path / "labels"
    label(judge, market_tables, folder, CONFIG)
    with pytest.raises(BadInput, match=r"of another call \(other in count, seed\)"):
        label(judge, market_tables, folder, LabelConfig(count=50, pairs_per_shard=1024))
    with pytest.raises(BadInput, match=r"of another call \(other in golden\)"):
        label(judge, market_tables, folder, CONFIG, golden=golden)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(BadInput, match=r"holds thesis.txt and no plan of labels"):
        label(judge, market_tables, tmp_path / "other", CONFIG)
    (folder / "plan.arrow").write_bytes(b"ARROW1")
    with pytest.raises(BadInput, match="of another call"):
        label(judge, market_tables, folder, CONFIG)
    with pytest.raises(BadInput, match="count=0"):
        LabelConfig(count=0)


def test_no_label_touches_what_is_held_out(judge, market_tables, golden, tmp_path):
    # Of all 30,000 pairs all but the held-out ones.
    free = 30_000 - int(golden.held_out.sum())
    label(judge, market_tables, tmp_path / "all", LabelConfig(count=free), golden=golden)
    labels = read_labels(tmp_path / "all", golden=golden)
    assert len(labels) == free
    label(judge, market_tables, tmp_path / "careless", LabelConfig(count=30_000))
    assert len(read_labels(tmp_path / "careless", golden=None)) == 30_000
    with pytest.raises(BadInput, match=f"holds {golden.held_out.sum():,} pairs of the part of"):
        read_labels(tmp_path / "careless", golden=golden)


def test_shards_read_by_themselves_as_plain_arrow(judge, market_tables, tmp_path):
    label(judge, market_tables, tmp_path / "labels", CONFIG)
    with pa.memory_map(str(tmp_path / "labels" / "labels-00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        assert table["grade"].type == pa.int8()
        assert set(np.unique(table["grade"])) <= set(range(5))


def test_a_training_takes_them_as_graded_pairs(judge, market_tables, golden, tmp_path):
    label(judge, market_tables, tmp_path / "labels", CONFIG, golden=golden)
    table = read_labels(tmp_path / "labels", golden=golden)
    log = market_tables.interactions
    pairs = GradedPairs.of_table(table, log, num_grades=5)
    assert len(pairs) == len(table)
    rows = [
        [getattr(log, row_of)(one) for one in table[name].to_pylist()]
        for row_of, name in (("user_row", "user_id"), ("item_row", "item_id"))
    ]
    found = pairs.find(*map(np.array, rows))
    np.testing.assert_array_equal(pairs.share_PG[found].argmax(1), table["grade"].to_numpy())
