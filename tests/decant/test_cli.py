import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from decant import pipeline, recipes
from decant.cli import main
from decant.concluding import Finished
from decant.recommender import Recommender

TASK = """\
name: films
instruction: Predict how this viewer rates each film.
actions: [liked, disliked]
positive: [liked]
item_kind: film
"""


def said(capsys, *arguments: object) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ([], ["demo", "run", "ladder", "sweep", "export", "predict", "index"]),
        (["demo"], ["--out", "--seed", "--dry-run", "five minutes"]),
        (["run"], ["ml1m", "ml100k", "table", "goes on"]),
        (["run", "ml1m"], ["--data", "--form", "--continue", "zip"]),
        (["run", "ml100k"], ["--data", "--form", "--continue", "zip"]),
        (["run", "table"], ["--task", "--on-bad-rows", "--epochs", "positive", "quarantine"]),
        (["predict"], ["--user", "--profile", "--history", "--json", "--users", "-k", "--where"]),
        (["predict"], ["--include-seen", "where people come back to things", "buy the same again"]),
        (["ladder"], ["--to", "--max-loss", "--max-step", "--minutes-per-rung", "--out", "waiver"]),
        (["ladder"], ["The gate asks about the first task alone"]),
        (["sweep"], ["--grid", "--out", "--model", "validation", "goes on", "seed=0,1,2"]),
        (["export"], ["--model", "--kind", "classifier", "nothing of ours"]),
        (["export"], ["Items that were added to the run since", "int8"]),
        (
            ["index"],
            ["Embed the catalogue", "--items", "--out", "--kind", "accelerate launch", "goes on"],
        ),
    ],
    ids=lambda value: " ".join(value) if value and "--" not in value[0] else "",
)
def test_help_teaches(capsys, command, taught):
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [word for word in taught if word not in text] == []


def test_without_a_command_it_helps_and_says_that_nothing_was_done(capsys):
    with pytest.raises(SystemExit) as leaving:
        main([])
    assert leaving.value.code == 2
    assert "predict" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = "import sys, decant.cli; decant.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["bogus"], ["run"], ["predict"], ["index", "a", "b"]])
def test_what_the_command_line_does_not_know_ends_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    errors = capsys.readouterr().err
    assert "error:" in errors
    assert "Traceback" not in errors


def test_a_model_is_trained_on_by_the_schedule_of_its_own_form(capsys, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    old = {"recipe": recipes.ml1m("text").to_dict()}
    (tmp_path / "old" / "recipe.json").write_text(json.dumps(old))
    (tmp_path / "films.zip").touch()
    asked = []
    done = Finished(stages=(), table="")
    monkeypatch.setattr(pipeline, "run", lambda job, **_: asked.append(job.recipe) or done)
    where = ["--data", tmp_path / "films.zip", "--out", tmp_path / "new"]
    said(capsys, "run", "ml1m", *where, "--continue", tmp_path / "old")
    assert asked == [recipes.ml1m("text")]


def test_somebody_of_the_log_in_words_and_in_json(capsys, tiny_run, recommender):
    text = said(capsys, "predict", tiny_run, "--user", "member-00001", "-k", 3)
    found = said(capsys, "predict", tiny_run, "--user", "member-00001", "--k", 3, "--json")
    predictions = [json.loads(line) for line in found.splitlines()]
    wanted = recommender.predict_user("member-00001", k=3)
    assert [one["item_id"] for one in predictions] == [one.item_id for one in wanted]
    assert sum(predictions[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    lines = text.splitlines()
    assert len(lines) == 6
    for one, title, actions in zip(wanted, lines[::2], lines[1::2], strict=True):
        assert one.title[:40] in title
        assert len(title) < 110
        assert f"apply {one.probabilities['apply']:.2f}" in actions
        assert f"[{one.item_id}]" in actions


def test_somebody_never_seen(capsys, tiny_run, tmp_path, recommender):
    profile = {"headline": "Nurse in oncology", "years": None}
    history = [{"item": "job-00001", "action": "apply"}, {"item": "job-00002", "action": "view"}]
    history[0]["context"] = "near\u2028home"  # The end of a line, but not of one of JSON.
    (tmp_path / "p.json").write_text(json.dumps(profile))
    lines = [json.dumps(event, ensure_ascii=False) for event in history]
    (tmp_path / "h.jsonl").write_text("\n".join(lines) + "\n\n")
    files = ["--profile", tmp_path / "p.json", "--history", tmp_path / "h.jsonl"]
    found = said(capsys, "predict", tiny_run, *files, "--query", "near home", "-k", 4, "--json")
    wanted = recommender.predict_next_actions(profile, history, query="near home", k=4)
    assert [json.loads(line)["score"] for line in found.splitlines()] == [o.score for o in wanted]


def test_a_nightly_batch_is_a_parquet_file(capsys, tiny_run, tmp_path, recommender):
    people = recommender.interactions.user_ids[:3]
    (tmp_path / "people.txt").write_text("\n".join(people))
    out = tmp_path / "tonight.parquet"
    files = ["--users", tmp_path / "people.txt", "--out", out]
    assert "3 people" in said(capsys, "predict", tiny_run, *files, "-k", 2)
    rows = pq.read_table(out).to_pylist()
    assert [(row["user_id"], row["rank"]) for row in rows] == [
        (user, rank) for user in people for rank in (1, 2)
    ]
    assert rows[0]["item_id"] == recommender.predict_user(people[0], k=1)[0].item_id
    assert set(dict(rows[0]["probabilities"])) == {"apply", "view", "dismiss"}
    # All are asked by the same words, where some are given.
    said(capsys, "predict", tiny_run, *files, "-k", 1, "--query", "near home")
    [first, *_] = pq.read_table(out).to_pylist()
    [wanted] = recommender.predict_user(people[0], k=1, query="near home")
    assert (first["item_id"], first["score"]) == (wanted.item_id, pytest.approx(wanted.score))
    assert first["score"] != pytest.approx(rows[0]["score"])


def test_what_the_history_holds_is_answered_where_that_is_asked_for(
    capsys, tiny_run, tmp_path, recommender
):
    history = [{"item": "job-00001", "action": "apply"}]
    (tmp_path / "h.jsonl").write_text(json.dumps(history[0]))
    user = recommender.interactions.user_ids[0]
    (tmp_path / "people.txt").write_text(user)
    out = tmp_path / "tonight.parquet"
    k = len(recommender.predict_next_actions({}, exclude_seen=False, k=10_000))

    def asked(*who: object) -> list[str]:
        found = said(capsys, "predict", tiny_run, *who, "--include-seen", "-k", k, "--json")
        return [json.loads(line)["item_id"] for line in found.splitlines()]

    assert "job-00001" in asked("--history", tmp_path / "h.jsonl")
    assert len(asked("--user", user)) == k
    files = ["--users", tmp_path / "people.txt", "--out", out]
    said(capsys, "predict", tiny_run, *files, "--include-seen", "-k", k)
    assert pq.read_table(out).num_rows == k


def test_the_catalogue_is_indexed_again(capsys, tiny_run, recommender):
    count = len(recommender.index)
    assert said(capsys, "index", tiny_run) == f"indexed {count:,} items\n"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A log in three formats: who likes even films, who odd ones; two rows do not fit."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    users = pa.table({"user_id": [f"u{n}" for n in range(40)], "age": [18 + n for n in range(40)]})
    pa.csv.write_csv(users, folder / "users.csv")
    items = pa.table(
        {
            "item_id": [f"i{n}" for n in range(30)],
            "title": [f"{('Even', 'Odd')[n % 2]} film number {n}" for n in range(30)],
        }
    )
    pq.write_table(items, folder / "items.parquet")
    lines = []
    for user in range(40):
        for moment, item in enumerate(rng.permutation(30)[:8].tolist()):
            action = "liked" if item % 2 == user % 2 else "disliked"
            event = {"user_id": f"u{user}", "item_id": f"i{item}", "action": action}
            lines.append(json.dumps({**event, "timestamp": 1_700_000_000 + 60 * moment}))
    lines[7] = lines[7].replace('"action": "', '"action": "very ')
    lines.append(lines[0])  # the same event twice
    (folder / "events.jsonl").write_text("\n".join(lines))
    (folder / "task.yaml").write_text(TASK)
    return folder


def table_command(tables, out, *more: object) -> list[object]:
    files = {"users": "users.csv", "items": "items.parquet", "events": "events.jsonl"}
    options = [word for name, file in files.items() for word in (f"--{name}", tables / file)]
    task = ["--task", tables / "task.yaml", "--size", "tiny", "--epochs", 2]
    return ["run", "table", *options, *task, "--out", out, *more]


@pytest.mark.parametrize("form", ["slot", "text"])
def test_anyones_tables_train_and_predict(capsys, tables, tmp_path, form):
    out = tmp_path / "run"
    more = ["--on-bad-rows", "quarantine", "--form", form]
    plan = said(capsys, *table_command(tables, out, *more, "--dry-run"))
    assert plan.count("runs  (never run)") == 6
    assert not out.exists()

    table = said(capsys, *table_command(tables, out, *more))
    assert table.endswith(f"{out / 'report.html'}\n")
    assert "popularity" in table
    assert "oracle" not in table
    [bad] = [
        json.loads(line)
        for line in (tmp_path / "run-quarantine.jsonl").read_text().splitlines()
        if "very" in line
    ]
    assert (bad["file"], bad["line"], bad["column"]) == ("events.jsonl", 8, "action")
    set_aside = json.loads((out / "data" / "source.json").read_text())["set_aside"]
    assert sum(set_aside.values()) == 2

    found = said(capsys, "predict", out, "--user", "u1", "-k", 3, "--json").splitlines()
    assert len(found) == 3
    assert set(json.loads(found[0])["probabilities"]) == {"liked", "disliked"}


def test_the_served_model_is_exported(capsys, tiny_run, tmp_path):
    out = tmp_path / "ranker"
    said(capsys, "export", tiny_run, "--out", out, "--kind", "classifier", "--task", "people")
    about = json.loads((out / "export.json").read_text())
    assert about["task"] == "people"
    assert json.loads((out / "config.json").read_text())["architectures"] == [
        "Qwen3ForSequenceClassification"
    ]
    with pytest.raises(SystemExit):
        main(["export", str(tiny_run), "--out", str(tmp_path / "x"), "--task", "gossip"])
    assert "--task gossip is unknown; the model has jobs" in capsys.readouterr().err


def test_an_export_warns_of_items_that_it_leaves_out(capsys, caplog, tiny_run, tmp_path):
    said(capsys, "export", tiny_run, "--out", tmp_path / "before")
    assert not caplog.records
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    recommender = Recommender.load(run)
    new = {**recommender.interactions.items[0], "item_id": "new"}
    recommender.add_items([new])
    recommender.save()
    said(capsys, "export", run, "--out", tmp_path / "since")
    assert f"{run / 'catalogue'}: what was added" in caplog.text
