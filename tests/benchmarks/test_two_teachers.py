"""The benchmark of two teachers: its rows are what the arms answered, and are measured once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks import teacher_arms, teacher_segments, two_teachers
from benchmarks.measured import Measured
from benchmarks.teacher_arms import ARMS, School, mixed
from benchmarks.teacher_beds import SMOKE, in_sheets, market
from benchmarks.teacher_numbers import (
    Kept,
    Told,
    expected_auc_of_users,
    in_order,
    mean_of_seeds,
)
from benchmarks.teacher_rows import Bench
from benchmarks.teacher_segments import fairness, gap
from decant.results import read_csv
from foundation.evaluation import auc_of_users, mean_of_users
from promptify.interactions import Interactions
from promptify.schema import Field, Schema
from promptify.sources import SourceData
from promptify.sources.movielens import FILMS

FILM_SCHEMA = Schema(
    user=tuple(Field(name=name, kind="category") for name in ("age", "gender", "occupation")),
    items={"film": (Field(name="title", kind="text"), Field(name="genres", kind="list"))},
)
CALLED = [
    *("policy teacher", "click teacher", "student", "policy-only", "click-only"),
    "student, other seed",
]


def test_arms_set_each_weight_to_zero() -> None:
    weights = {name: (a.weights.alpha, a.weights.beta, a.weights.gamma) for name, a in ARMS.items()}
    assert min(weights["student"]) > 0
    for place, which in enumerate(("alpha", "beta", "gamma")):
        wanted = tuple(w * (other != place) for other, w in enumerate(weights["student"]))
        assert weights[f"student, {which} 0"] == wanted


def test_a_mix_at_its_ends_is_one_side_alone() -> None:
    click, policy = np.array([-1.0, -np.inf]), np.array([-np.inf, -2.0])
    np.testing.assert_array_equal(mixed(click, policy, 0), click)
    np.testing.assert_array_equal(mixed(click, policy, 1), policy)
    assert mixed(np.array([-1.0]), np.array([-2.0]), 0.25) == pytest.approx([-1.25])


def test_pairs_are_in_order_as_far_as_they_differ() -> None:
    worth, user = np.array([2, 0, 1, 1, 1]), np.array([4, 4, 4, 7, 7])
    shares, whose = in_order(np.array([0.5, 0.5, 0.1, 1.0, 2.0]), worth, user)
    # 2 ties with 0 and is above 1; 1 is below 0. Of the other's pairs none is better.
    np.testing.assert_array_equal(whose, [4])
    assert shares == pytest.approx([(0.5 + 1 + 0) / 3])


def test_an_expected_auc_is_that_of_certain_labels_and_the_mean_of_drawn_ones() -> None:
    rng = np.random.default_rng(0)
    row, score = rng.integers(0, 12, 300), rng.integers(0, 9, 300).astype(float)
    label, weights = rng.random(300) < 0.4, rng.integers(0, 3, (5, 12)).astype(float)
    certain = expected_auc_of_users(label.astype(float), score, row, 12)
    np.testing.assert_allclose(certain(weights), auc_of_users(label, score, row, 12)(weights))
    chance, every = rng.random(300), np.ones((1, 12))
    drawn = [auc_of_users(rng.random(300) < chance, score, row, 12)(every)[0] for _ in range(300)]
    told = expected_auc_of_users(chance, score, row, 12)(every)[0]
    assert told == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 300**0.5)


def test_a_mean_over_seeds_draws_the_people_of_each() -> None:
    one, two = np.array([1.0, 3.0]), np.array([10.0, 20.0, 30.0])
    kept = [
        Kept(
            told=Told(of=mean_of_users(values, np.arange(len(values)), len(values)), n=len(values)),
            num_users=len(values),
            n=len(values),
            cells={"params": 5},
        )
        for values in (one, two)
    ]
    mean = mean_of_seeds(kept)
    assert isinstance(mean.told, Told)
    assert (mean.num_users, mean.n) == (5, 5)
    drawn = np.array([[1.0, 1, 1, 1, 1], [0, 2, 0, 0, 3]])
    np.testing.assert_allclose(mean.told.of(drawn), [(2 + 20) / 2, (3 + 30) / 2])
    assert mean_of_seeds([Kept(told=v, num_users=9, n=1, cells={}) for v in (1.0, 4.0)]).told == 2.5


def test_ratings_in_a_row_are_a_sheet_and_the_last_ones_stay(films_log: Interactions) -> None:
    data = SourceData(interactions=films_log, tasks=(FILMS,))
    log = in_sheets(data, 0, viewers=2, ratings=5, sheet=2).interactions
    assert log.num_users == 2
    for user in range(2):
        mine = np.flatnonzero(log.event_user == user)
        before = films_log.event_user == films_log.user_ids.index(log.user_ids[user])
        wanted = np.array(films_log.item_ids)[films_log.event_item[before][-5:]]
        np.testing.assert_array_equal(np.array(log.item_ids)[log.event_item[mine]], wanted)
        np.testing.assert_array_equal(
            np.unique(log.event_slate[mine], return_counts=True)[1], [2, 2, 1]
        )


@pytest.fixture(scope="module")
def films_log() -> Interactions:
    rng = np.random.default_rng(3)
    films = [f"f{row}" for row in range(12)]
    rated = [
        (user, film, 100 * n) for user in "abc" for n, film in enumerate(rng.permutation(films)[:9])
    ]
    return Interactions.from_tables(
        users=pa.table(
            {
                "user_id": list("abc"),
                "age": ["25 to 34"] * 3,
                "gender": ["female"] * 3,
                "occupation": ["artist"] * 3,
            }
        ),
        items=pa.table(
            {"item_id": films, "title": [f"{f} (1990)" for f in films], "genres": [["Drama"]] * 12}
        ),
        events=pa.table(
            {
                "user_id": [user for user, _, _ in rated],
                "item_id": [str(film) for _, film, _ in rated],
                "action": ["liked"] * len(rated),
                "timestamp": [when for _, _, when in rated],
            }
        ),
        schema=FILM_SCHEMA,
        actions=FILMS.actions,
        surfaces=(FILMS.name,),
    )


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


def test_rows_say_what_was_answered(
    called: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = called
    rows = {(row.model, row.metric): row for row in read_csv(folder / "rows.csv")}
    school = School(market(smoke=True), 0, folder / "work")
    labels, said = school.labels, school.said("student")
    right = said.pair_grade.argmax(1) == labels.grade
    assert rows["student", "policy_alignment"].value == pytest.approx(right.mean())
    assert rows["student", "policy_alignment"].n == len(right)
    # A click model alone has learned no grades to agree with.
    assert ("click teacher", "policy_alignment") not in rows

    # Each person's pairs, two by two.
    score = said.pair_policy
    shares = []
    for user in np.unique(labels.user):
        mine = np.flatnonzero(labels.user == user)
        two = [(a, b) for a in mine for b in mine if labels.grade[a] > labels.grade[b]]
        if two:
            shares.append(
                np.mean([(score[a] > score[b]) + (score[a] == score[b]) / 2 for a, b in two])
            )
    told = rows["student, blend=1", "policy_concordance"]
    assert told.value == pytest.approx(np.mean(shares))
    assert told.value == pytest.approx(rows["student", "policy_concordance"].value)

    # Rules that let everything through change nothing; others put no pair in the wrong order.
    for name, alone in (("student", "student, blend=0.5"), ("click-only", "click-only")):
        order = [rows[f"{name}, rules >= {n}", "policy_concordance"].value for n in range(5)]
        assert order[0] == pytest.approx(rows[alone, "policy_concordance"].value)
        assert min(order) == order[0] < max(order)

    # What is held out is in no label that is learned from, and grades are the policy's.
    assert (labels.pairs.find(labels.user, labels.item) == -1).all()
    wanted = labels.grades(labels.user, labels.item)
    np.testing.assert_array_equal(labels.grade, wanted)
    np.testing.assert_array_equal(
        labels.pairs.share_PG.argmax(1), labels.grades(labels.pairs.user, labels.pairs.item)
    )

    # Nobody is served what they have seen.
    bench = Bench(school, Measured("teachers", {}, out=None))
    top = bench.top(said.served(0.5))
    assert top.shape == (SMOKE.requests, 10)
    assert not np.take_along_axis(bench.seen_qJ, top, 1).any()

    # What is lost against oneself is nothing, and a gap is between segments with enough people.
    bench.compare("student", said, "itself", said, "policy")
    assert bench.measured.rows[-1].value == 0
    segment = np.arange(school.log.num_users) % 2
    users = bench.users
    found = gap(bench, segment[users] * 0.5, users, segment)
    assert found is not None
    assert found.of(np.ones((1, len(users)))) == pytest.approx([0.5])
    assert gap(bench, np.ones(30), users[:30], segment) is None
    monkeypatch.setattr(teacher_segments, "_LEAST_IN_SEGMENT", 2)
    fairness(bench, "student", said, blend=0.5)
    gaps = [row for row in bench.measured.rows if row.metric.startswith("fairness_gap")]
    assert gaps
    # No interval of a largest difference holds none: no draws of people make one.
    assert all(isinstance(bench.kept[row.model, row.metric].told, float) for row in gaps)


def test_every_student_starts_as_what_is_left_of_the_policy_teacher(
    called: tuple[Path, list[str]],
) -> None:
    school = School(market(smoke=True), 0, called[0] / "work")
    teacher = school.model("policy teacher")
    assert school._start("click teacher").state_dict().keys() == teacher.state_dict().keys()
    half = school._start("policy half")
    assert half.decoder.config.num_hidden_layers == SMOKE.layers[2]
    torch.testing.assert_close(
        half.items.residual_ID, teacher.items.residual_ID, msg="residuals are the teacher's"
    )


def test_models_of_other_code_are_not_taken(
    called: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = School(market(smoke=True), 0, called[0] / "work").work
    assert mine.is_dir()
    monkeypatch.setattr(teacher_arms, "code_key", lambda _: "other")
    assert not School(market(smoke=True), 0, called[0] / "work").work.exists()


def test_what_cannot_be_written_ends_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("no,results\n")
    assert two_teachers.main(["--smoke", "--out", str(tmp_path / "rows.csv")]) == 1
    assert "error" in capsys.readouterr().err


def test_films_without_their_zip_end_with_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert two_teachers.main(["--bed", "ml1m", "--smoke"]) == 1
    assert "--data" in capsys.readouterr().err
