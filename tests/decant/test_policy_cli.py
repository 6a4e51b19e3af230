"""`decant policy`, as it is typed."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from decant.cli import main
from distill.policy import Policy
from distill.policy.golden import GoldenSet
from distill.policy.labels import read_labels
from promptify.sources.job_market import job_market


@pytest.fixture(scope="module")
def log_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a run folder as a policy looks at: the log and its tasks."""
    folder = tmp_path_factory.mktemp("log") / "run"
    data = job_market(num_members=150, num_jobs=100, num_impressions=2500)
    data.interactions.save(folder / "data" / "interactions")
    source = {"tasks": [task.to_dict() for task in data.tasks], "held_out_slates": 2}
    (folder / "data" / "source.json").write_text(json.dumps(source))
    return folder


@pytest.fixture(scope="module")
def sharper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job policy with a threshold in the place of a ramp, and a higher one for pay."""
    text = Policy.shipped("job_market").text
    text = text.replace("at_most: 1 + 3 * min(ramp(spare_years, -4, -1), ramp(spare_years, 10, 6))",
                        "at_most: 0 if spare_years < 0 else 4")  # fmt: skip
    text = text.replace("version: 1.0", "version: 2.0").replace("0.85, 0.97", "1.0, 1.2")
    path = tmp_path_factory.mktemp("policy") / "policy.md"
    path.write_text(text)
    return path


def said(capsys, *arguments: object) -> str:
    main(["policy", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(["policy", *map(str, arguments)])
    told = capsys.readouterr()
    return leaving.value.code, told.out, told.err


def test_help_teaches(capsys):
    code, text, _ = refused(capsys, "--help")
    assert code == 0
    assert [
        word
        for word in ("check", "diff", "explain", "sample", "agree", "label")
        if word not in text
    ] == []


def test_a_policy_is_tried_without_waiting_for_a_model(log_run):
    code = """
import sys
from decant.cli import main
main(sys.argv[1:])
assert {"torch", "transformers"}.isdisjoint(sys.modules)
"""
    pair = ["--user", "member-00001", "--item", "job-00001", "--run", str(log_run)]
    asked = [sys.executable, "-c", code, "policy", "explain", "job_market", *pair]
    assert subprocess.run(asked, check=False).returncode == 0


def test_check_tells_what_is_wrong_and_ends_with_1(capsys, log_run, sharper):
    code, text, _ = refused(capsys, "check", sharper, "--run", log_run, "--pairs", 5000)
    assert code == 1
    assert "policy.md line 150: jump: user.years" in text
    assert text.rstrip().splitlines()[-1].startswith("job_market 2.0 (")


def test_a_rule_for_a_judge_is_told_and_no_fault(capsys, log_run, tmp_path):
    rules = "## 1. Pay\n```rule\nvalue: ramp(item.pay / user.expected_pay, 0.8, 1)\n```\n"
    rules += "## 2. Tone\n```rule\njudge: Is it kind?\n```\n"
    (tmp_path / "p.md").write_text(f"---\npolicy: p\nversion: 1\n---\n{rules}")
    text = said(capsys, "check", tmp_path / "p.md", "--run", log_run, "--pairs", 500)
    assert "p.md line 9: judge: rule 2 asks a judge on 500 of 500 pairs" in text
    assert text.rstrip().endswith("2 rules, 500 pairs, no faults")
    harsher = tmp_path / "q.md"
    harsher.write_text((tmp_path / "p.md").read_text().replace("Is it kind?", "Is it cruel?"))
    text = said(capsys, "diff", tmp_path / "p.md", harsher, "--run", log_run, "--pairs", 500)
    assert "0 of 500 grades move" in text
    assert "500 of them have a rule in words, whose judge was not asked" in text
    told = ("--run", log_run, "--out", tmp_path / "golden", "--n", 50)
    text = said(capsys, "sample", harsher, *told)
    assert text.startswith("no judge is asked about rules in words (2): strata")


def test_a_folder_called_as_a_policy_does_not_hide_it(capsys, log_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job_market").mkdir()
    text = said(capsys, "diff", "job_market", "job_market", "--run", log_run, "--pairs", 500)
    assert "0 of 500 grades move" in text


def test_diff_counts_the_moves_and_names_the_rules(capsys, log_run, sharper):
    text = said(capsys, "diff", "job_market", sharper, "--run", log_run, "--pairs", 3000)
    assert text.startswith("job_market 1.0 → 2.0: ")
    assert "of 3,000 grades move" in text
    assert "rule 7. Years far off (line 150), changed: " in text
    assert "rule 8. Pay (line 156), changed: " in text
    user, item = text.splitlines()[-1].split()[3:6:2]
    text = said(capsys, "explain", sharper, "--run", log_run, "--user", user, "--item", item)
    assert text.startswith(f"{user} and {item}: grade ")
    assert text.count("\n") == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere.md"], "nowhere.md: no such file"),
        (["check", "no_such"], "no policy 'no_such' comes with the package"),
        (["check", "movielens"], "movielens.md line 35: "),
        (["explain", "job_market", "--user", "x", "--item", "job-00001"], "unknown user 'x'"),
        (["explain", "job_market", "--user", "member-00001", "--item", "job-00001", "--query", "x"],
         "query='x' is not in the log"),
        (["check", "job_market", "--task", "films"], "--task films is unknown"),
        (["check", "job_market", "--source", "ml1m"], "--source ml1m needs --data"),
        (["check", "job_market", "--run", "nowhere"],
         "--run nowhere: there is no run there; give the --out of a `decant run`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_code_2(capsys, log_run, arguments, message):
    if "--source" not in arguments and "--run" not in arguments:
        arguments = [*arguments, "--run", log_run]
    code, _, errors = refused(capsys, *arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_run_that_has_read_nothing_yet_is_told_from_a_damaged_one(capsys, tmp_path, log_run):
    (tmp_path / "recipe.json").write_text("{}")
    _, _, errors = refused(capsys, "check", "job_market", "--run", tmp_path)
    assert "its data is not read yet; give the same `decant run` command again" in errors
    copy = tmp_path / "copy"
    shutil.copytree(log_run, copy)
    (copy / "data" / "source.json").write_text("{")
    _, _, errors = refused(capsys, "check", "job_market", "--run", copy)
    assert "source.json is damaged" in errors


def test_from_a_golden_set_to_labels(capsys, log_run, tmp_path):
    golden, labels, data = tmp_path / "golden", tmp_path / "labels", ("--run", log_run)
    text = said(capsys, "sample", "job_market", *data, "--out", golden, "--n", 300)
    assert text.startswith("300 pairs by grade and seniority, ")
    assert str(golden / "sheet.html") in text

    table = GoldenSet.load(golden).table
    rows = list(zip(table["pair"].to_pylist(), table["grade"].to_pylist(), strict=True))
    for name, change in (("anna", 0), ("ben", 1)):
        lines = [f"{pair},{min(grade + change, 4)}" for pair, grade in rows]
        lines[0] = f"{rows[0][0]},{4 - 4 * (name == 'ben')}"
        (tmp_path / f"{name}.csv").write_text("pair,grade\n" + "\n".join(lines) + "\n")
    sheets = [tmp_path / "anna.csv", tmp_path / "ben.csv"]
    text = said(capsys, "agree", golden, *sheets)
    assert "all pairs" in text
    assert "rule 12. Industry, with its exceptions" in text
    assert "1 open" in text
    (tmp_path / "carl.csv").write_text(f"pair,grade\n{rows[0][0]},4\n")
    text = said(capsys, "agree", golden, *sheets, "--adjudicated", tmp_path / "carl.csv")
    assert "1 adjudicated" in text
    assert not re.search(r"\d open", text)

    command = ("label", "job_market", *data, "--out", labels, "--n", 4000, "--golden", golden)
    text = said(capsys, *command)
    assert "4,000 pairs judged in" in text
    assert "4,000 labels, 0 set aside" in text
    table = read_labels(labels, golden=GoldenSet.load(golden))
    assert len(table) == 4000
    again = said(capsys, *command)
    assert "judged in" not in again
    code, _, errors = refused(capsys, *command[:-2], "--seed", 3)
    assert code == 2
    assert "holds labels of another call (other in golden, seed)" in errors


class SaysTwo(BaseHTTPRequestHandler):
    """An endpoint that answers every question alike."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = json.dumps({"choices": [{"message": {"content": '{"grade": 2}'}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), SaysTwo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_model_that_disagrees_with_people_labels_nothing(capsys, log_run, tmp_path, endpoint):
    golden, labels = tmp_path / "golden", tmp_path / "labels"
    said(capsys, "sample", "job_market", "--run", log_run, "--out", golden, "--n", 60)
    table = GoldenSet.load(golden).table
    lines = [f"{pair},{grade}" for pair, grade in zip(*table.select([0, 6]), strict=True)]
    (tmp_path / "anna.csv").write_text("pair,grade\n" + "\n".join(lines) + "\n")
    assert "60 alone" in said(capsys, "agree", golden, tmp_path / "anna.csv")
    command = ["label", "job_market", "--run", log_run, "--out", labels, "--n", 50]
    command += ["--golden", golden, "--judge", "reader", "--endpoint", endpoint, "--model", "two"]
    code, _, errors = refused(capsys, *command, "--requests-per-minute", 100000)
    assert code == 2
    assert "judge 'model two' agrees with people by a weighted kappa of 0.000" in errors
    assert not labels.exists()
    assert (tmp_path / "labels-answers.db").exists()  # what was answered is kept
    code, _, errors = refused(capsys, *command, "--max-cost", 1)
    assert "max_cost=1.0 means nothing without prices" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "job_market", "--judge", "reader"], "reader needs --endpoint and --model"),
        (["label", "job_market", "--judge", "rules", "--endpoint", "http://x", "--model", "m"],
         "--judge rules needs --golden"),
        (["label", "job_market", "--golden", "nowhere"], "nowhere holds no whole golden set"),
        (["label", "job_market", "--n", 10**7], "pairs cannot be drawn"),
        (["sample", "job_market", "--n", 0], "count=0 must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_labelled_is_one_line(capsys, log_run, tmp_path, arguments, message):
    code, _, errors = refused(capsys, *arguments, "--run", log_run, "--out", tmp_path / "out")
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
