import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from tqdm import tqdm

from decant.errors import explain, one_line_errors
from decant.stages import Stages


def leave_with(raise_it, capsys):
    with pytest.raises(SystemExit) as leaving, one_line_errors():
        raise_it()
    return leaving.value.code, capsys.readouterr().err


def test_a_check_of_ours_becomes_one_line_and_code_2(tmp_path, capsys):
    (tmp_path / "mine").touch()
    code, said = leave_with(lambda: Stages(tmp_path, recipe={}), capsys)
    assert code == 2
    assert said.startswith(f"decant: error: folder {tmp_path} is not empty")
    assert said.count("\n") == 1


def test_output_that_nobody_reads_on_is_no_error():
    code = (
        "from decant.errors import one_line_errors\n"
        "with one_line_errors():\n    for line in range(10**6):\n        print(line)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("path", "message"), [("missing", "no such file or folder"), (".", "this is a folder")]
)
def test_a_path_that_cannot_be_read_is_named(tmp_path, capsys, path, message):
    code, said = leave_with(lambda: (tmp_path / path).open(), capsys)
    assert code == 2
    assert said.startswith(f"decant: error: {tmp_path / path}: {message}".replace("/.:", ":"))


def test_a_full_disk_is_recognised_in_whatever_wraps_it(capsys):
    def raise_it():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("cannot write the table") from error

    code, said = leave_with(raise_it, capsys)
    assert code == 2
    assert "the disk is full" in said


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
    ids=["safetensors", "torch.save"],
)
def test_a_full_disk_is_recognised_where_only_words_are_left_of_it(error):
    assert "the disk is full" in str(explain(error))
    assert explain(type(error)("something else")) is None


def test_ctrl_c_is_one_line_and_code_130(capsys):
    def raise_it():
        raise KeyboardInterrupt

    code, said = leave_with(raise_it, capsys)
    assert code == 130
    assert said.startswith("decant: error: interrupted")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        1 / 0  # noqa: B018


def test_a_value_error_that_is_not_ours_is_a_bug():
    with pytest.raises(json.JSONDecodeError), one_line_errors():
        json.loads("{")


def test_a_library_call_that_fails_inside_our_code_is_a_bug_and_a_raise_is_not():
    ours = {"__name__": "decant.recipes", "np": np}
    exec("def mismatch(): return np.ones(2) + np.ones(3)", ours)
    exec("def check(): raise ValueError('k is\\n 0: ask for 1 or more')", ours)
    with pytest.raises(ValueError, match="broadcast") as bug:
        ours["mismatch"]()
    with pytest.raises(ValueError, match="k is") as check:
        ours["check"]()
    assert explain(bug.value) is None
    assert explain(check.value) == "k is 0: ask for 1 or more"


def test_the_traceback_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv("DECANT_TRACEBACK", "1")
    code, said = leave_with(Path("/no/such/file").read_bytes, capsys)
    assert code == 2
    assert said.startswith("Traceback")
    assert said.endswith("decant: error: /no/such/file: no such file or folder\n")


def test_a_bar_that_was_cut_short_ends_before_the_line(capsys):
    def raise_it() -> None:
        raise KeyboardInterrupt

    bar = tqdm(total=10, file=sys.stderr)
    bar.update(3)
    code, said = leave_with(raise_it, capsys)
    assert code == 130
    assert "\ndecant: error: interrupted" in said
    assert said.count("decant") == 1
