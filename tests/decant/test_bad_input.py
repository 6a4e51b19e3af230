"""What the command cannot use, each in its way: one line, code 2, nothing half-written."""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from decant.cli import main
from retrieval import IndexManifest

TASK = """\
name: films
instruction: Predict how this viewer rates each film.
actions: [liked, disliked]
positive: [liked]
item_kind: film
"""
USERS = ["user_id,age", *(f"u{n},{20 + n}" for n in range(8))]
ITEMS = ["item_id,title", *(f"i{n},Film number {n}" for n in range(12))]
EVENTS = [
    "user_id,item_id,action,timestamp",
    *(
        f"u{user},i{(user * 5 + n * 3) % 12},{('liked', 'disliked')[n % 2]},{1_700_000_000 + n}"
        for user in range(8)
        for n in range(6)
    ),
]
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys, monkeypatch) -> Refused:
    """Runs the command and returns its one line."""
    monkeypatch.delenv("DECANT_TRACEBACK", raising=False)

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        assert leaving.value.code == 2
        said, errors = capsys.readouterr()
        assert said == ""
        assert "Traceback" not in errors
        # Bars of work that began before it failed are no lines of their own.
        [line] = [line for line in errors.splitlines() if line.startswith("decant: error: ")]
        assert errors.endswith(line + "\n")
        return line

    return run


@pytest.fixture
def tables(tmp_path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, lines in (("users", USERS), ("items", ITEMS), ("events", EVENTS)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(TASK)
    return folder


def run_table(tables: Path, *more: object) -> list[object]:
    named = [(f"--{name}", tables / f"{name}.csv") for name in ("users", "items", "events")]
    options = [word for pair in named for word in pair]
    out = ["--task", tables / "task.yaml", "--out", tables.parent / "out"]
    return ["run", "table", *options, *out, "--size", "tiny", "--epochs", 1, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("file", "line", "text", "message"),
    [
        (
            "events",
            3,
            "nobody,i1,liked,1700000000",
            "events.csv line 3: user_id 'nobody' is not in",
        ),
        ("events", 3, "u1,i99,liked,1700000000", "events.csv line 3: item_id 'i99' is not in"),
        ("events", 3, "u1,i1,loved,1700000000", "action 'loved' is not one of liked, disliked"),
        ("events", 3, "u1,i1,liked,1700000000000", "looks like milliseconds; divide by 1000"),
        ("events", 3, "u1,i1,liked,NaN", "events.csv line 3: timestamp 'NaN'"),
        ("events", 3, "u1,i1,liked,", "events.csv line 3: timestamp"),
        ("events", 3, "u1,i1", "events.csv line 3: the line"),
        ("events", 3, b"u1,i\xff1,liked,1700000000", "events.csv line 3: item_id"),
        ("items", 3, b"i1,Caf\xe9", "items.csv line 3: title"),
        ("items", 3, "i0,Film number 0", "items.csv line 3: item_id 'i0' stands twice"),
        ("items", 3, "i1,", "items.csv line 3: item_id 'i1' has nothing to read"),
        ("users", 3, "u0,30", "users.csv line 3: user_id 'u0' stands twice"),
        ("events", 1, "who,item_id,action,timestamp", "events.csv lacks the column user_id"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_row_that_does_not_fit(refused, tables, file, line, text, message):
    path = tables / f"{file}.csv"
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(b"\n".join(lines))
    assert message in refused(*run_table(tables))
    assert not (tables.parent / "out").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("items.csv", "item_id,title\n", "items.csv holds no rows that fit"),
        ("items.csv", "", "items.csv is empty"),
        ("events.csv", EVENTS[0] + "\n", "events.csv holds no events that fit"),
        ("events.csv", "\n".join(EVENTS[:3]) + "\n", "the log is too short for it"),
        ("task.yaml", "name: [films", "task.yaml cannot be read as a YAML task"),
        ("task.yaml", "films", "task.yaml must hold a task's fields"),
        ("task.yaml", TASK.replace("name: films", "title: films"), "does not know title"),
        ("task.yaml", TASK.replace("[liked]", "[loved]"), "Task.positive=('loved',)"),
        ("task.yaml", TASK.replace("item_kind: film", "item_kind: 7"), "task.yaml"),
        ("task.yaml", TASK + "schema: 5\n", "task.yaml"),
    ],
    ids=lambda value: value if " " in value and "\n" not in value else "",
)
def test_a_file_that_does_not_fit(refused, tables, file, text, message):
    (tables / file).write_text(text)
    assert message in refused(*run_table(tables))
    assert not (tables.parent / "out").exists()


def test_a_task_that_cannot_be_is_named_before_a_table_is_read(refused, tables):
    (tables / "task.yaml").write_text(TASK.replace("[liked, disliked]", "[5, 4]"))
    (tables / "events.csv").write_text("")
    for more in ([], ["--dry-run"]):
        said = refused(*run_table(tables, *more))
        assert "Task.actions[0]=5 must be one word of letters" in said
        assert "values: {action: {5: loved" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "gigantic"], "--size gigantic is unknown; choose one of tiny"),
        (["--epochs", "0"], "--epochs 0 must be above 0"),
        (["--seed", "-1"], "seed=-1 must be a whole number from 0 to 4294967295"),
        (["--seed", "-1", "--dry-run"], "seed=-1 must be a whole number"),
        (["--seed", "4294967296"], "seed=4294967296 must be a whole number"),
        (["--model", "some/model"], "exclude each other"),
        (["--max-item-tokens", "7"], "--max-item-tokens 7 must be from 8 to 128"),
        (["--max-item-tokens", "129"], "--max-item-tokens 129 must be from 8 to 128"),
        (["--users", "missing.csv"], "missing.csv: no such file or folder"),
        (["--users", "."], ".: this is a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_option_that_does_not_fit(refused, tables, options, message):
    assert message in refused(*run_table(tables), *options)
    assert not (tables.parent / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "old is not a run folder"),
        (["--size", "tiny"], "--size tiny and --continue"),
        (["--model", "some/model"], "--model some/model and --continue"),
        (["--form", "slot"], "--form slot and --continue"),
        (["--text-encoder", "minilm"], "leave --text-encoder out"),
        (["--max-item-tokens", "96"], "leave --max-item-tokens out"),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else "",
)
def test_what_a_model_that_is_trained_on_cannot_become(refused, tables, options, message):
    arguments = [*of_no_size(tables), "--continue", tables / "old", *options]
    assert message in refused(*arguments)
    assert not (tables.parent / "out").exists()


def of_no_size(tables: Path) -> list[object]:
    return [one for one in run_table(tables) if one not in ("--size", "tiny")]


def test_a_pretrained_model_that_is_none(refused, tables):
    arguments = of_no_size(tables)
    (tables / "model").mkdir()
    assert "model" in refused(*arguments, "--model", tables / "model")
    # The folder is free for the command with its mistake mended.
    assert not (tables.parent / "out").exists()
    (tables / "granite").mkdir()
    (tables / "granite" / "config.json").write_text('{"model_type": "granite"}')
    (tables / "granite" / "model.safetensors").touch()
    Tokenizer(WordLevel({"a": 0}, "a")).save(str(tables / "granite" / "tokenizer.json"))
    of_other_parts = refused(*arguments, "--model", tables / "granite")
    assert "type 'granite' cannot be pruned" in of_other_parts
    assert not (tables.parent / "out").exists()
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}
    (tables / "granite" / "config.json").write_text(json.dumps(config))
    in_few_bits = refused(*arguments, "--model", tables / "granite")
    assert "granite holds weights in fp8" in in_few_bits
    (tables / "granite" / "config.json").write_text('{"model_type": "llama", "hidden_size": "32"}')
    assert "granite/config.json: Validation" in refused(*arguments, "--model", tables / "granite")
    (tables / "granite" / "config.json").write_text('{"model_type": "qwen3"}')
    (tables / "granite" / "tokenizer.json").unlink()
    assert "has no vocabulary" in refused(*arguments, "--model", tables / "granite")
    assert not (tables.parent / "out").exists()
    mistyped = refused(*arguments, "--model", "models/qwne", "--dry-run")
    assert "--model models/qwne is no folder with a model and its tokenizer" in mistyped


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (None, "is not a whole zip file"),
        ({"holiday.jpg": "x"}, "lacks ratings.dat, movies.dat, users.dat"),
        ({"ml-1m/ratings.dat": "x", "ml-1m/movies.dat": "x", "ml-1m/users.dat": "x"}, "users.dat"),
    ],
    ids=["no zip", "another zip", "other lines"],
)
def test_a_zip_that_is_not_movielens(refused, tmp_path, members, message):
    path = tmp_path / "ml-1m.zip"
    if members is None:
        path.write_bytes(b"PK\x03\x04" + b"half" * 100)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
    line = refused("run", "ml1m", "--data", path, "--out", tmp_path / "out")
    assert message in line
    assert "ml-1m.zip" in line
    assert not (tmp_path / "out").exists()


def test_an_output_folder_of_another_run(refused, tables, tiny_run):
    before = contents(tiny_run)
    line = refused(*run_table(tables), "--out", tiny_run)
    assert f"folder {tiny_run} holds another run (" in line
    assert "choose another folder, or delete this one first" in line
    assert len(line) < 1000
    assert contents(tiny_run) == before


def test_an_output_folder_that_holds_something_else(refused, tables, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    line = refused(*run_table(tables), "--out", tmp_path / "thesis")
    assert "is not empty and holds no run" in line
    assert [path.name for path in (tmp_path / "thesis").iterdir()] in (
        ["thesis.tex"],
        ["thesis.tex", ".lock"],
        [".lock", "thesis.tex"],
    )


def test_an_output_folder_that_is_a_file(refused, tables):
    assert "task.yaml" in refused(*run_table(tables), "--out", tables / "task.yaml")
    assert (tables / "task.yaml").read_text() == TASK


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say who is asked about by one of --user"),
        (["--user", "member-00001", "--profile", "p.json"], "got --user and --profile"),
        (["--user", "nobody"], "unknown user 'nobody'"),
        (["--user", "member-00001", "-k", "0"], "k=0 must be at least 1"),
        (["--user", "member-00001", "-k", "100000"], "-k 100000 is more than the catalogue of"),
        (["--user", "member-00001", "--task", "films"], "films"),
        (["--user", "member-00001", "--model", "rung-9"], "no finished model 'rung-9'"),
        (["--users", "people.txt"], "--users FILE and --out FILE.parquet belong together"),
        (["--users", "people.txt", "--out", "x.csv"], "--out x.csv is written as Parquet; call it"),
        (
            ["--users", "people.txt", "--out", "out.parquet", "--json"],
            "--json prints, and --users writes into out.parquet; leave --json out",
        ),
        (["--profile", "missing.json"], "missing.json: no such file or folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_prediction_that_cannot_be_asked_for(refused, tiny_run, options, message):
    assert message in refused("predict", tiny_run, *options)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--history", "", "holds no event; leave --history out"),
        ("--history", '{"item": "job-00001"', "line 1: not JSON"),
        ("--history", '{"item": "job-9", "action": "apply"}', "unknown item 'job-9'"),
        ("--history", '{"item": "job-00001", "action": "likes"}', "likes"),
        ("--history", '{"item": "job-00001"}', "history[0]: action"),
        ("--history", "[1, 2]", "history[0]"),
        (
            "--history",
            '{"item": "job-00001", "action": "apply", "timestamp": 1740000000000}',
            "looks like milliseconds; divide by 1000",
        ),
        (
            "--history",
            '{"item": "job-00001", "action": "apply", "timestamp": 1740000000}\n' * 2,
            "event 2 repeats event 1",
        ),
        ("--history", '{"item": {"pay": NaN}, "action": "apply"}', "line 1: NaN is not JSON"),
        ("--profile", '{"years": NaN}', "NaN is not JSON; write null"),
        ("--profile", '{"years": ', "not JSON"),
        ("--profile", '{"years": 1' + "0" * 400 + "}", "is not a number; leave it empty"),
        ("--profile", '{"years": 1' + "0" * 5000 + "}", "a number of too many digits"),
        ("--profile", '{"years": 1e999}', "profile: years=inf is not a number"),
        ("--profile", '{"years": ' + "[" * 99_999, "nested too deeply"),
        ("--profile", '{"yaers": 3}', "yaers"),
        ("--profile", "[]", "must be one JSON object"),
        ("--profile", b'{"headline": "Caf\xe9"}', "is not UTF-8 (byte 17)"),
        ("--users", "member-00001\nnobody\n", "unknown user 'nobody'"),
        ("--users", "\n", "holds no user id"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_request_file_that_does_not_fit(refused, tiny_run, tmp_path, option, text, message):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "request"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    more = ["--out", tmp_path / "in" / "out.parquet"] if option == "--users" else []
    assert message in refused("predict", tiny_run, option, path, *more)
    assert [entry.name for entry in (tmp_path / "in").iterdir()] == ["request"]


def test_where_one_stands_may_be_the_run_s_folder(refused, tables, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    command = [*run_table(tables), "--out", "."]
    command[command.index("--users") + 1] = tmp_path / "none.csv"
    assert "none.csv" in refused(*command)


def test_texts_for_a_vocabulary_that_are_no_text(refused, tiny_run, tmp_path):
    (tmp_path / "queries.txt").write_bytes(b"caf\xe9\n")
    line = refused("trim", tiny_run, "--texts", tmp_path / "queries.txt", "--out", tmp_path / "new")
    assert "queries.txt is not UTF-8 (byte 3); save it as UTF-8" in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["predict", "index"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "is not a run folder"),
    ],
    ids=["missing", "empty"],
)
def test_a_run_folder_that_is_none(refused, tmp_path, command, make, message):
    make(tmp_path / "run")
    more = ["--user", "1"] if command == "predict" else []
    assert message in refused(command, tmp_path / "run", *more)
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "rung-1/model/model.safetensors",
        "rung-1/model/heads.safetensors",
        "rung-1/model/config.json",
        "rung-1/model/foundation.json",
        "rung-1/model/catalogue.parquet",
        "rung-1/model/prompter/prompter.json",
        "rung-1/model/prompter/tokenizer.json",
        "data/interactions/events.arrow",
        "data/interactions/users.arrow",
        "data/interactions/interactions.json",
        "index/items/vectors-*.codes",
        "index/items/ids-*.arrow",
        "index/items/manifest.json",
    ],
)
def test_a_file_of_a_run_that_was_cut_in_half(refused, tiny_run, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (path,) = folder.glob(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = contents(folder)
    line = refused("predict", folder, "--user", "member-00001")
    stage = folder / name.partition("/")[0]
    assert str(stage) in line
    assert "again" in line
    assert contents(folder) == before


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"),
    [(os, "fsync"), (safetensors.torch, "save_file"), (pq, "write_table")],
    ids=["small files", "weights", "catalogue"],
)
def test_a_full_disk_while_training(refused, tables, monkeypatch, module, name):
    if name == "save_file":
        from foundation import checkpoint

        module = checkpoint
    monkeypatch.setattr(module, name, full_disk)
    assert "the disk is full" in refused(*run_table(tables))
    out = tables.parent / "out"
    left = [path for path in out.rglob("*") if "partial" in path.name or path.name == "model"]
    assert not left
    assert not list(out.glob("foundation*"))


def test_a_full_disk_while_predicting(refused, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "people.txt").write_text("member-00001\n")
    (tmp_path / "out.parquet").write_text("of last night")
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full_disk)
    more = ["--users", tmp_path / "people.txt", "--out", tmp_path / "out.parquet"]
    assert "the disk is full" in refused("predict", tiny_run, *more)
    assert (tmp_path / "out.parquet").read_text() == "of last night"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "people.txt"]


def test_the_index_of_another_model(refused, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    items = folder / "index" / "items"
    another = replace(IndexManifest.read(items), model_hash="another")
    (items / "manifest.json").write_bytes(another.to_bytes())
    line = refused("predict", folder, "--user", "member-00001")
    assert "vectors of two models cannot be compared" in line
    assert f"decant index {folder}" in line
