import json
import subprocess

import pytest

from decant import run_record
from decant.run_record import RunRecord, git_commit, hardware, json_hash, peak_rss_bytes


def test_the_record_is_written_as_json_with_all_it_takes_to_run_again(tmp_path):
    path = RunRecord.start({"size": "tiny"}, seed=7).finish().write(tmp_path)
    found = json.loads(path.read_text())
    assert path == tmp_path / "run.json"
    assert found["config"] == {"size": "tiny"}
    assert found["config_hash"] == json_hash({"size": "tiny"})
    assert found["seed"] == 7
    assert found["versions"]["torch"].startswith("2.")
    assert found["started"] <= found["finished"]
    assert found["started"].endswith("+00:00")
    assert found["peak_rss_bytes"] > 50 * 2**20


def test_the_command_is_told_without_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    (tmp_path / "lr=0.1,2").mkdir()
    given = {
        "/home/a/.venv/bin/decant": "decant",
        "--data=/home/a/ml-1m.zip": "--data=ml-1m.zip",
        "/home/ann lee/ml-1m.zip": "ml-1m.zip",
        "Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B",
        "--model=Qwen/Qwen3-0.6B": "--model=Qwen/Qwen3-0.6B",
        "models/minilm": "minilm",
        "model=a/b,c/d": "model=a/b,c/d",
        "model=/home/a/b,Qwen/Qwen3-0.6B,/home/c": "model=b,Qwen/Qwen3-0.6B,c",
        "model=[/home/a/b, models/minilm]": "model=[b, minilm]",
        f"--out={tmp_path}/lr=0.1,2": "--out=lr=0.1,2",
        f"{tmp_path}/lr=0.1,2": "lr=0.1,2",
        "http://127.0.0.1:8000/v1": "http://127.0.0.1:8000/v1",
        '{"folder": "/home/a/b"}': '{"folder": "b"}',
        "place = Berlin / remote": "place = Berlin / remote",
        "1/2": "1/2",
        "/": "/",
        "x" * 5000 + "/y": "x" * 5000 + "/y",
    }
    monkeypatch.setattr("sys.argv", list(given))
    assert RunRecord.start({}, seed=0).command == tuple(given.values())


def test_the_hash_follows_values_and_not_the_order_of_keys():
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1})
    assert json_hash({"a": 1}) != json_hash({"a": 2})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_config_without_an_equal_is_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        json_hash({"learning_rate": value})


def test_peak_memory_grows_with_what_was_held():
    before = peak_rss_bytes()
    held = bytearray(before + 64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_rss_bytes() >= len(held)


def test_the_hardware_is_told_in_words():
    assert " cores, " in hardware()
    assert " GiB RAM, " in hardware()


def test_the_commit_is_that_of_our_checkout_and_says_when_files_differ(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--no-verify", "--message", "one")
    git("tag", "v1")
    monkeypatch.setattr(run_record, "_REPOSITORY", tmp_path)
    clean = git_commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("two")
    assert git_commit() == f"{clean}-dirty"
    monkeypatch.setattr(run_record, "_REPOSITORY", tmp_path / "elsewhere")
    assert git_commit() is None
