"""A run with a policy: two teachers, one student, and what runs again when a rule changes."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from decant import cli, recipes, taught
from decant.concluding import Finished
from decant.layout import RunLayout
from decant.measure import Asked, rerank
from decant.pipeline import run
from decant.policy_measure import PolicyMeasure
from decant.recipes import recipe_of
from decant.recommender import Recommender
from decant.results import read_csv
from decant.run_data import drop_rungs, load_book, load_model
from decant.run_labels import read_graded, write_labels
from decant.stages import Stages
from decant.taught import run_taught
from decant.teaching import WEIGHTS, Teaching
from distill.policy import Grader, Pairs, Policy, PolicyTables
from distill.policy.document import GRADES
from distill.policy.golden import sample_golden
from distill.policy.labels import read_labels
from distill.student import StudentConfig
from foundation.checkpoint import weights_hash
from promptify.sources import generated
from promptify.validation import BadInput

STAGES = (
    "data",
    "labels",
    "prompter",
    "click-teacher",
    "policy-teacher",
    "student",
    "index",
    "evaluation",
)
OF_THE_POLICY = ["labels", "policy-teacher", "student", "index", "evaluation"]
TEXT = Policy.shipped("job_market").text
OTHER_RULE = TEXT.replace("weight: 0.3 if user.seniority", "weight: 0.5 if user.seniority")
AT_ODDS = """---
policy: odds
version: 1
---
## 1. Remote
```rule
value: 1 if item.workplace == "remote" else 0
```

## 2. Never remote
```rule
value: 0 if item.workplace == "remote" else 1
```
"""


def teaching_of(text: str = TEXT, **changes: object) -> Teaching:
    return Teaching(
        **{
            "policy": Policy.parse(text, file="mine.md"),
            "student": StudentConfig(**WEIGHTS),
            "labels": 1500,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def typed(job_of, recipe) -> Iterator[Callable[..., str]]:
    """Types a command of `decant` on the small market of `job_of`; returns what it prints."""

    def entered(*arguments: object) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            cli.main([str(argument) for argument in arguments])
        return out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "demo", lambda: recipe)
        patch.setattr(generated, "generated_job_market", lambda seed: job_of(Path()).load())
        yield entered


@pytest.fixture(scope="module")
def two(typed, tmp_path_factory, drawing) -> tuple[Path, str]:
    """A run with a policy, and the table that it ended with."""
    folder = tmp_path_factory.mktemp("taught") / "two"
    policy = ["--policy", "job_market", "--labels", 1500]
    with drawing():
        return folder, typed("run", "demo", *policy, "--out", folder)


@pytest.fixture(scope="module")
def swapped(two, typed, tmp_path_factory) -> tuple[Path, str]:
    """The same run after one rule was edited, in its own folder, and what a dry run said before."""
    folder = tmp_path_factory.mktemp("swapped") / "two"
    shutil.copytree(two[0], folder)
    (folder.parent / "mine.md").write_text(OTHER_RULE)
    policy = ["--policy", folder.parent / "mine.md", "--labels", 1500]
    plan = typed("run", "demo", *policy, "--out", folder, "--dry-run")
    typed("run", "demo", *policy, "--out", folder)
    return folder, plan


def running(done: Finished) -> list[str]:
    return [stage.name for stage in done.stages if stage.runs]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def numbers(folder: Path) -> list[tuple[str, str, str, float]]:
    return [
        (row.benchmark, row.model, row.metric, row.value)
        for row in read_csv(folder / "results.csv")
    ]


def test_a_dry_run_names_what_a_changed_rule_reruns_and_says_why(two, job_of):
    before = content(two[0])
    planned = run_taught(job_of(two[0]), teaching_of(OTHER_RULE), dry_run=True)
    assert [stage.name for stage in planned.stages] == list(STAGES)
    assert running(planned) == OF_THE_POLICY
    reasons = {stage.name: stage.reason for stage in planned.stages}
    assert reasons["labels"].startswith("inputs changed: policy.rules.9.weight was")
    assert "labels was" in reasons["policy-teacher"]
    assert content(two[0]) == before


@pytest.mark.parametrize(
    ("changes", "reruns"),
    [
        ({"text": TEXT.replace("A day trip each morning", "An hour each morning")}, []),
        ({"text": TEXT.replace("version: 1.0", "version: 1.1")}, []),
        ({"text": TEXT.replace("junior: junior", "junior: junior, trainee")}, OF_THE_POLICY),
        ({"text": TEXT.replace("[0.3, 0.5", "[0.35, 0.5")}, OF_THE_POLICY),
        ({"labels": 1400}, OF_THE_POLICY),
        ({"student": StudentConfig(alpha=2)}, ["student", "index", "evaluation"]),
    ],
    ids=["prose", "version", "table", "cuts", "labels", "alpha"],
)
def test_only_what_decides_something_reruns(two, job_of, changes, reruns):
    assert running(run_taught(job_of(two[0]), teaching_of(**changes), dry_run=True)) == reruns


@pytest.mark.parametrize(
    ("module", "reruns"),
    [
        ("taught", ["click-teacher", *OF_THE_POLICY[1:]]),
        ("making", ["click-teacher", *OF_THE_POLICY[1:]]),
        ("on_validation", ["click-teacher", *OF_THE_POLICY[1:]]),
        ("run_labels", OF_THE_POLICY),
        ("policy_measure", ["evaluation"]),
        ("report", []),
    ],
)
def test_other_code_of_ours_reruns_what_it_makes(two, job_of, changed_code, module, reruns):
    changed_code.add(f"decant.{module}")
    assert running(run_taught(job_of(two[0]), teaching_of(), dry_run=True)) == reruns


def test_a_changed_rule_leaves_what_it_does_not_touch_equal_to_the_byte(
    two, swapped, typed, job_of
):
    folder, plan = swapped
    assert [line.split()[0] for line in plan.splitlines() if "  runs  " in line] == OF_THE_POLICY
    for name in STAGES:
        same = content(two[0] / name) == content(folder / name)
        assert same == (name not in OF_THE_POLICY), name
    told = json.loads((folder / "recipe.json").read_text())["teaching"]["policy"]
    assert told["rules"]["9"]["weight"].startswith("0.5 if")
    assert not list((folder / ".scratch").glob("*"))
    assert running(run_taught(job_of(folder), teaching_of(OTHER_RULE), dry_run=True)) == []
    count = len(Recommender.load(folder).index)
    assert typed("index", folder) == f"indexed {count:,} items\n"


def test_another_policy_is_swapped_and_another_recipe_refused(two, job_of):
    with pytest.raises(ValueError, match=r"another run \(recipe\.timed_requests was 3, now 4\)"):
        run_taught(job_of(two[0], timed_requests=4), teaching_of(OTHER_RULE), dry_run=True)


def test_a_run_with_a_policy_and_one_without_do_not_mix(two, job_of, tmp_path):
    job = job_of(two[0])
    with pytest.raises(ValueError, match="another run"):
        run(job, dry_run=True)
    plain = {"recipe": job.recipe.to_dict(), "source": job.source, "continued": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"another run \(teaching"):
        run_taught(job_of(tmp_path), teaching_of(), dry_run=True)


def test_the_student_serves_and_a_request_blends(two, typed):
    folder = two[0]
    layout = RunLayout(folder)
    assert layout.served() == "student"
    recommender = Recommender.load(folder)
    user = recommender.interactions.user_ids[0]
    found = {b: recommender.predict_user(user, k=60, blend=b) for b in (None, 0.0, 1.0)}
    assert [one.item_id for one in found[None]] == [one.item_id for one in found[0.0]]
    assert tuple(found[1.0][0].grades) == GRADES
    policies = [one.policy for one in found[1.0]]
    assert policies == sorted(policies, reverse=True)
    asked = ["predict", folder, "--user", user, "--blend", 1, "--json"]
    lines = [json.loads(line) for line in typed(*asked).splitlines()]
    assert [line["item_id"] for line in lines] == [one.item_id for one in found[1.0][:10]]
    teacher = Recommender.load(folder, model="policy-teacher")
    assert teacher.foundation.num_parameters() > recommender.foundation.num_parameters()
    with pytest.raises(BadInput, match="run with a policy"):
        layout.model("foundation")


def test_the_report_tells_policy_beside_clicks(two):
    folder, told = two
    header, _, *rows = told.partition("\n\n")[0].splitlines()
    names = [name.strip() for name in header.split("  ") if name.strip()]
    places = [names.index(name) - len(names) for name in ("policy", "grade of 10")]
    cells = {row.split("  ")[0]: row.split() for row in rows}
    assert set(cells) >= {"policy-teacher", "click-teacher", "student", "system, blend=0.5"}
    assert [cells["click-teacher"][place] == "–" for place in places] == [True, False]
    assert [cells["system, blend=1"][place] == "–" for place in places] == [True, False]
    assert "–" not in (cells["policy-teacher"][place] for place in places)
    found = read_csv(folder / "results.csv")
    rows = {(r.model, r.metric): r for r in found if r.benchmark == "teachers"}
    assert {metric for _, metric in rows} == {"policy_alignment", "click_auc", "top10_grade"}
    held = pq.read_table(folder / "labels" / "held_out.parquet")
    assert rows["student", "policy_alignment"].n == len(held)
    auc = {r.model: r.value for r in found if r.benchmark == "quality" and r.metric == "auc"}
    assert rows["student", "click_auc"].value == auc["student"]
    assert "top10_grade" in json.dumps(json.loads((folder / "evaluation/metrics.json").read_text()))
    html = (folder / "report.html").read_text()
    assert "<th>grade of 10</th>" in html
    assert "The gate: student against click-teacher" in html
    assert ">policy loss</text>" in html


def test_what_is_graded_stands_first_in_what_is_served(two):
    recommender = Recommender.load(two[0])
    log, (book, split) = recommender.interactions, load_book(RunLayout(two[0]))
    few = Asked(book, split.test[np.arange(6)])
    scored = rerank(recommender, few, progress=False)
    weight = recommender.foundation.rank_weight(0)
    best = scored.best_items(weight)
    for request, items in enumerate(best):
        served = recommender.predict_target(few.targets[np.array([request])], k=10)
        assert [one.item_id for one in served] == [log.item_ids[item] for item in items]
    tables = PolicyTables(log, book.prompter.tasks[0], events=split.train)
    grader = Grader(Policy.parse(TEXT), tables)
    users = np.repeat(few.targets.user, 10)
    share = grader.grades(Pairs.of(users, best.ravel())).grade.mean() / 4
    found = PolicyMeasure(grader, None).top_grade(few, scored, weight, blend=0.0)
    interval, count = found["top10_grade"]
    assert (interval.value, count) == (pytest.approx(share), 6)
    # By policy alone nothing that is left is held to fit better than what is shown.
    best = scored.best_items(weight, blend=1.0)
    assert scored.log_policy_nK is not None
    for items, all_items, said in zip(best, scored.item_nK, scored.log_policy_nK, strict=True):
        is_best = np.isin(all_items, items)
        assert said[is_best].min() >= said[~is_best & (all_items >= 0)].max()


def test_held_out_pairs_are_never_learned(two):
    folder = two[0]
    book, split = load_book(RunLayout(folder))
    learned, held_out = read_graded(RunLayout(folder), book.interactions, teaching_of())
    assert len(held_out) > 20
    assert (learned.find(held_out.user, held_out.item) < 0).all()
    assert np.isin(held_out.user, split.test.user).all()
    labels = read_labels(folder / "labels" / "judged", golden=None)
    assert len(labels) == 1500
    counts = np.bincount(held_out.share_PG.argmax(1), minlength=5)
    assert counts.max() <= 0.5 * np.bincount(labels["grade"]).max()


def test_what_a_golden_set_holds_out_is_not_labelled(two, job_of, tmp_path):
    book, split = load_book(RunLayout(two[0]))
    tables = PolicyTables(book.interactions, book.prompter.tasks[0], events=split.train)
    grader = Grader(Policy.parse(TEXT), tables)
    golden = sample_golden(grader, tmp_path / "golden", count=200, segment="seniority")
    write = {"seed": 0, "out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    (tmp_path / "out").mkdir()
    write_labels(teaching_of(golden=golden), tables, split.test, **write)
    labels = read_labels(tmp_path / "out" / "judged", golden=golden)
    assert len(labels) == 1500
    # The labels of the run, which knows no golden set, hold some of them: they are refused.
    with pytest.raises(BadInput, match="held out"):
        read_graded(RunLayout(two[0]), book.interactions, teaching_of(golden=golden))
    planned = run_taught(job_of(two[0]), teaching_of(golden=golden), dry_run=True)
    assert running(planned) == OF_THE_POLICY


def test_rules_at_odds_are_refused_before_anything_is_trained(job_of, tmp_path):
    with pytest.raises(BadInput, match=r"mine\.md line 5 and 10: contradiction"):
        run_taught(job_of(tmp_path / "run"), teaching_of(AT_ODDS))
    assert not (tmp_path / "run" / "prompter").exists()
    assert not (tmp_path / "run" / "labels").exists()
    # The folder is of the same run once the rules are mended.
    planned = run_taught(job_of(tmp_path / "run"), teaching_of(), dry_run=True)
    assert running(planned) == list(STAGES[1:])


def test_what_check_warns_of_is_told_and_trained_on(two, caplog, tmp_path):
    book, split = load_book(RunLayout(two[0]))
    tables = PolicyTables(book.interactions, book.prompter.tasks[0], events=split.train)
    idle = TEXT + "\n## 13. Nobody\n```rule\nwhen: user.years > 500\nat_most: 1\n```\n"
    (tmp_path / "out").mkdir()
    write = {"seed": 0, "out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    write_labels(teaching_of(idle), tables, split.test, **write)
    assert "mine.md line" in caplog.text
    assert "never fires" in caplog.text
    assert (tmp_path / "out" / "held_out.parquet").exists()


def test_of_few_labels_none_is_held_out(two, tmp_path):
    book, split = load_book(RunLayout(two[0]))
    tables = PolicyTables(book.interactions, book.prompter.tasks[0], events=split.train)
    (tmp_path / "labels").mkdir()
    write = {"seed": 0, "out": tmp_path / "labels", "scratch": tmp_path / "scratch"}
    write_labels(teaching_of(labels=3), tables, split.test, **write)
    learned, held_out = read_graded(RunLayout(tmp_path), book.interactions, teaching_of(labels=3))
    assert (len(learned), len(held_out)) == (3, 0)


def test_a_rule_for_a_judge_is_refused():
    asks = TEXT + "\n## 13. Tone\n```rule\njudge: Is it friendly?\n```\n"
    with pytest.raises(BadInput, match=r"mine\.md line \d+: rule 13 asks a judge"):
        teaching_of(asks)


def test_a_label_file_cut_in_half_is_told_and_mended_by_the_same_command(two, job_of, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(two[0], folder)
    [shard] = (folder / "labels" / "judged").glob("labels-*.arrow")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    shutil.rmtree(folder / "student")
    with pytest.raises(BadInput, match=rf"is damaged .* delete {folder / 'labels'} and give"):
        run_taught(job_of(folder), teaching_of())
    shutil.rmtree(folder / "labels")
    done = run_taught(job_of(folder), teaching_of())
    # The same labels come out: what was learned of them stays, and nothing else is lost.
    assert running(done) == ["labels", "student"]
    assert content(folder / "labels" / "judged") == content(two[0] / "labels" / "judged")


def test_killed_in_every_stage_it_ends_with_the_same_numbers(
    two, swapped, job_of, tmp_path, monkeypatch
):
    execute, killed = Stages._execute, []
    folder = tmp_path / "two"
    shutil.copytree(two[0], folder)

    def killed_at_the_end(self, function, out, scratch, record, **options):
        if record.name in killed:
            return execute(self, function, out, scratch, record, **options)
        killed.append(record.name)
        # Its work is done, and what it wrote for itself to resume from is all that is left.
        (tmp_path / record.name).mkdir()
        function(tmp_path / record.name, scratch)
        raise KeyboardInterrupt

    monkeypatch.setattr(Stages, "_execute", killed_at_the_end)
    for name in OF_THE_POLICY:
        # What was whole before stays until what takes its place is whole.
        before = content(folder / name)
        with pytest.raises(KeyboardInterrupt):
            run_taught(job_of(folder), teaching_of(OTHER_RULE))
        assert content(folder / name) == before
    done = run_taught(job_of(folder), teaching_of(OTHER_RULE))
    assert killed == OF_THE_POLICY
    assert running(done) == ["evaluation"]
    assert numbers(folder) == numbers(swapped[0])


def test_what_is_published_names_no_folder(job_of, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Stages, "run", lambda *_, **__: None)
    monkeypatch.setattr(taught, "check_model", lambda *_: None)
    monkeypatch.setattr(taught, "conclude", lambda *given: told.append(given[2]))
    model = str(tmp_path)
    run_taught(job_of(tmp_path / "run", size=None, model=model), teaching_of())
    assert told[0].config["recipe"]["model"] == tmp_path.name
    assert recipe_of(tmp_path / "run").model == model


def test_a_ladder_adds_a_rung_that_serves_and_without_it_the_rung_is_gone(two, job_of, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(two[0], folder)
    done = run_taught(job_of(folder), teaching_of(ladder=True))
    assert running(done) == ["rung-1", "index", "evaluation"]
    layout = RunLayout(folder)
    assert layout.served() == "rung-1"
    models = [load_model(layout.model(name)) for name in ("student", "rung-1")]
    assert models[1].num_parameters() < models[0].num_parameters()
    assert {row.split()[0] for row in done.table.splitlines()} >= {"student", "rung-1"}
    planned = run_taught(job_of(folder), teaching_of(), dry_run=True)
    assert running(planned) == ["index", "evaluation"]
    assert (folder / "rung-1").exists()
    drop_rungs(layout, but=["student"])
    assert layout.served() == "student"


def test_the_student_in_few_bits_is_not_lost_to_the_runs_own_rung(two, job_of, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(two[0], folder)
    layout = RunLayout(folder)
    own = weights_hash(layout.model("student"))
    shutil.copytree(folder / "student" / "model", folder / "rung-1" / "model")
    made_of = {"inputs": {"weights": "int8", "above": own, "top": own}}
    made_of |= {"key": "another", "uses": {}, "code": {}}
    (folder / "rung-1" / "stage.json").write_text(json.dumps(made_of))
    (folder / "rung-1" / "rung.json").write_text(json.dumps({"accepted": True}))
    before = content(folder / "rung-1")
    with pytest.raises(BadInput, match="rung-1 was made by `decant quantise`"):
        run_taught(job_of(folder), teaching_of(ladder=True))
    assert content(folder / "rung-1") == before
    assert layout.served() == "rung-1"


def test_a_rung_of_another_student_does_not_go_on_serving(two, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(two[0], folder)
    layout = RunLayout(folder)
    own = weights_hash(layout.model("student"))
    for name, above in (("rung-1", own), ("rung-2", "another")):
        shutil.copytree(folder / "student" / "model", folder / name / "model")
        made_of = {"inputs": {"above": above, "top": own}}
        (folder / name / "stage.json").write_text(json.dumps(made_of))
        (folder / name / "rung.json").write_text(json.dumps({"accepted": True}))
    drop_rungs(layout, but=["student"])
    assert layout.models()[-1] == "rung-1"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--policy", "nowhere.md"], "nowhere.md"),
        (["--policy", "job_market", "--alpha", "-1"], "StudentConfig.alpha=-1"),
        (["--policy", "job_market", "--labels", "0"], "Teaching.labels=0"),
        (["--policy", "job_market", "--golden", "nowhere"], "no whole golden set"),
        (["--alpha", "1"], "--alpha is of a run with a policy"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(capsys, tmp_path, arguments, told):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["run", "demo", "--out", str(tmp_path / "run"), *arguments])
    assert leaving.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


POLICY_OF_TABLES = """---
policy: films
version: 1
---
## 1. Even films for even ages
```rule
value: 1 if contains(item.title, "even") else 0
when: user.age < 40
```

## 2. Odd films for the others
```rule
value: 1 if contains(item.title, "odd") else 0
when: user.age >= 40
```
"""


def test_a_policy_on_anyones_tables(typed, tmp_path):
    rng = np.random.default_rng(0)
    people, films = range(40), range(30)
    lines = ["user_id,item_id,action,timestamp"]
    for user in people:
        for moment, item in enumerate(rng.permutation(30)[:8].tolist()):
            action = "liked" if item % 2 == user % 2 else "disliked"
            lines.append(f"u{user},i{item},{action},{1_700_000_000 + 60 * moment}")
    titles = [f"i{n},{('Even', 'Odd')[n % 2]} film number {n}" for n in films]
    for name, content_of in {
        "users.csv": ["user_id,age", *(f"u{n},{18 + n}" for n in people)],
        "items.csv": ["item_id,title", *titles],
        "events.csv": lines,
        "task.yaml": [
            "name: films",
            "instruction: Predict whether they like each film.",
            "actions: [liked, disliked]",
            "positive: [liked]",
            "item_kind: film",
        ],
        "mine.md": [POLICY_OF_TABLES],
    }.items():
        (tmp_path / name).write_text("\n".join(content_of) + "\n")
    files = ["--users", "users.csv", "--items", "items.csv", "--events", "events.csv"]
    command = ["run", "table", *files, "--task", "task.yaml", "--size", "tiny", "--epochs", "1"]
    command = [tmp_path / one if one.endswith((".csv", ".yaml")) else one for one in command]
    out = tmp_path / "run"
    table = typed(*command, "--policy", tmp_path / "mine.md", "--out", out)
    assert "policy-teacher" in table
    # Of 1,200 pairs half are labelled: nothing would be left to be surprised by.
    assert len(read_labels(out / "labels" / "judged", golden=None)) == 600
    found = json.loads(typed("predict", out, "--user", "u1", "--blend", 1, "--json").split("\n")[0])
    assert sum(found["grades"].values()) == pytest.approx(1)
