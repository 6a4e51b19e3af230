import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decant import fingerprints, processes
from decant.fingerprints import fingerprint
from decant.run_record import json_hash
from decant.stages import Stages
from promptify.validation import BadInput

Made = list[str]


def make(log: Made, text: str = "made") -> Callable[[Path, Path], None]:
    def function(out: Path, scratch: Path) -> None:
        log.append(text)
        (out / "file.txt").write_text(text)

    return function


def test_a_stage_runs_once_and_its_folder_holds_what_it_wrote(tmp_path):
    log: Made = []
    for _ in range(2):
        with Stages(tmp_path, recipe={"seed": 1}) as stages:
            out = stages.run("data", make(log), inputs={"seed": 1})
    assert log == ["made"]
    assert out == tmp_path / "data"
    assert (out / "file.txt").read_text() == "made"
    assert json.loads((out / "stage.json").read_text())["inputs"] == {"seed": 1}


def test_what_a_stage_wrote_is_on_the_disk_when_it_is_done(tmp_path, not_synced):
    with Stages(tmp_path, recipe={}) as stages:
        out = stages.run("data", make([]), inputs={})
    assert not_synced(out) == []


def test_changed_inputs_run_a_stage_and_what_uses_it_but_nothing_else(tmp_path):
    log: Made = []
    for seed in (1, 2):
        with Stages(tmp_path, recipe={}) as stages:
            stages.run("data", make(log, f"data-{seed}"), inputs={"seed": seed})
            stages.run("model", make(log, f"model-{seed}"), inputs={}, uses=["data"])
            stages.run("other", make(log, f"other-{seed}"), inputs={})
    assert log == ["data-1", "model-1", "other-1", "data-2", "model-2"]
    assert [stage.runs for stage in stages.plan()] == [True, True, False]
    assert "seed was 1, now 2" in stages.plan()[0].reason
    assert "used stage changed: data" in stages.plan()[1].reason
    assert (tmp_path / "data" / "file.txt").read_text() == "data-2"
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix in {".old", ".partial"}]


def test_changed_code_runs_a_stage_and_a_comment_does_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    log: Made = []
    reasons = []
    for source in ("X = 1", "X = 1  # said", "X = 2"):
        (tmp_path / "their_room.py").write_text(source)
        fingerprints.code_hash.cache_clear()
        with Stages(tmp_path / "run", recipe={}) as stages:
            stages.run("data", make(log), inputs={}, code=["their_room"])
        reasons.append(stages.plan()[0].reason)
    assert reasons[:2] == ["never run", "up to date"]
    assert reasons[2].startswith("code changed: their_room")
    assert len(log) == 2


def test_what_code_says_is_the_same_for_every_python():
    source = 'def f(x):  # why\n\n    """What # it is."""\n    return f"{x!r:>4} # {x}"  \n'
    stripped = fingerprints._stripped(source)
    assert stripped == 'def f(x):\n    """What # it is."""\n    return f"{x!r:>4} # {x}"'
    assert fingerprints._stripped(source.replace("    return", "return")) != stripped
    # A prompt's text may have blank lines, and they are told to the model.
    told = 'TEXT = """a\n\nb  \n"""\n\nX = f"""{TEXT}\n\nc"""\n'
    assert fingerprints._stripped(told) == told.replace('"""\n\nX', '"""\nX').rstrip()


def test_the_default_code_is_that_of_the_rooms(tmp_path):
    with Stages(tmp_path, recipe={}) as stages:
        out = stages.run("data", make([]), inputs={})
    code = json.loads((out / "stage.json").read_text())["code"]
    assert set(code) == {"promptify", "foundation", "retrieval", "distill"}


def test_what_was_deleted_and_made_otherwise_runs_what_uses_it_and_made_alike_nothing(tmp_path):
    log: Made = []

    def given(text: str, *, dry_run: bool = False) -> list[bool]:
        def data(out: Path, scratch: Path) -> None:
            (out / "told").mkdir()
            (out / "told" / "file.txt").write_text(text)
            (out / "took.txt").write_text(f"{len(log)} seconds")
            log.append(text)

        with Stages(tmp_path, recipe={}, dry_run=dry_run) as stages:
            stages.run("data", data, inputs={}, output="told")
            stages.run("model", make(log), inputs={}, uses=["data"])
        return [stage.runs for stage in stages.plan()]

    assert given("one") == [True, True]
    shutil.rmtree(tmp_path / "data")
    assert given("one") == [True, False]
    shutil.rmtree(tmp_path / "data")
    assert given("two", dry_run=True) == [True, True]
    assert given("two") == [True, True]
    assert given("two") == [False, False]


def test_what_began_on_an_output_that_was_made_again_is_not_resumed(tmp_path):
    seen: list[Path] = []

    def killed(out: Path, scratch: Path) -> None:
        seen.extend(scratch.iterdir())
        (scratch / "checkpoint").touch()
        raise KeyboardInterrupt

    for text in ("one", "one", "two"):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        with Stages(tmp_path, recipe={}) as stages:
            stages.run("data", make([], text), inputs={})
            with pytest.raises(KeyboardInterrupt):
                stages.run("model", killed, inputs={}, uses=["data"])
    assert len(seen) == 1


def test_what_a_version_before_noted_less_of_is_up_to_date(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for room in ("their_room", "their_measure"):
        (tmp_path / f"{room}.py").write_text("X = 1")
    log: Made = []

    def given(**options: Any) -> list[bool]:
        fingerprints.code_hash.cache_clear()
        with Stages(tmp_path / "run", recipe={}) as stages:
            code = ["their_room", "their_measure"]
            stages.run("data", make(log), inputs={"seed": 1}, code=code, **options)
            stages.run("model", make(log), inputs={}, uses=["data"], code=code)
        return [stage.runs for stage in stages.plan()]

    given(contents={"model": "0a"})
    keys: dict[str, str] = {}
    for name in ("data", "model"):
        path = tmp_path / "run" / name / "stage.json"
        now = json.loads(path.read_text())
        told = {
            "name": name,
            "inputs": now["inputs"],
            "uses": {used: keys[used] for used in now["uses"]},
            "code": {"their_room": now["code"]["their_room"]},
        }
        keys[name] = json_hash(told)
        path.write_text(json.dumps(told | {"key": keys[name]}))
    assert given(contents={"model": "0b"}) == [False, False]
    (tmp_path / "their_measure.py").write_text("X = 2")
    assert given(contents={"model": "0b"}) == [False, False]
    (tmp_path / "their_room.py").write_text("X = 2")
    assert given(contents={"model": "0b"}) == [True, True]
    (tmp_path / "their_measure.py").write_text("X = 3")
    assert given(contents={"model": "0b"}) == [True, True]


def test_other_contents_of_what_is_named_by_its_place_run_a_stage(tmp_path):
    log: Made = []
    for content in ("0a", "0a", "0b"):
        with Stages(tmp_path, recipe={}) as stages:
            stages.run("model", make(log), inputs={"model": "qwen"}, contents={"model": content})
    assert len(log) == 2
    assert stages.plan()[0].reason == 'contents changed: model was "0a", now "0b"'


def test_a_recipe_is_compared_as_this_version_says_it(tmp_path):
    def as_now(found: dict[str, Any]) -> dict[str, Any]:
        return {"people": None} | found

    Stages(tmp_path, recipe={"seed": 1}).close()
    with pytest.raises(ValueError, match="another run"):
        Stages(tmp_path, recipe={"seed": 1, "people": None})
    with pytest.raises(ValueError, match=r"another run \(people was null, now 5\)"):
        Stages(tmp_path, recipe={"seed": 1, "people": 5}, as_now=as_now)
    Stages(tmp_path, recipe={"seed": 1, "people": None}, as_now=as_now).close()
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"seed": 1, "people": None}


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    log: Made = []
    for _ in range(2):
        with Stages(folder, recipe={}, dry_run=True) as stages:
            stages.run("data", make(log), inputs={})
            stages.run("model", make(log), inputs={}, uses=["data"])
        assert [stage.reason for stage in stages.plan()] == ["never run", "never run"]
    assert not log
    assert not folder.exists()


def test_a_failed_stage_leaves_its_last_whole_version_and_its_scratch(tmp_path):
    def fail(out: Path, scratch: Path) -> None:
        (out / "half.bin").write_bytes(b"ha")
        (scratch / "checkpoint").write_text("step 10")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "half.bin"))

    def resume(out: Path, scratch: Path) -> None:
        (out / "file.txt").write_text((scratch / "checkpoint").read_text())

    with Stages(tmp_path, recipe={}) as stages:
        stages.run("model", make([], "old"), inputs={"steps": 5})
    with Stages(tmp_path, recipe={}) as stages, pytest.raises(OSError, match="No space left"):
        stages.run("model", fail, inputs={"steps": 10})
    assert (tmp_path / "model" / "file.txt").read_text() == "old"
    assert not list(tmp_path.rglob("half.bin"))

    with Stages(tmp_path, recipe={}) as stages:
        stages.run("model", resume, inputs={"steps": 10})
    assert stages.plan()[0].reason == "interrupted, resumes"
    assert (tmp_path / "model" / "file.txt").read_text() == "step 10"
    assert not list(tmp_path.rglob("checkpoint"))


def test_scratch_of_other_inputs_is_never_resumed_from(tmp_path):
    def fail(out: Path, scratch: Path) -> None:
        (scratch / "checkpoint").touch()
        raise RuntimeError

    seen = []
    with Stages(tmp_path, recipe={}) as stages, pytest.raises(RuntimeError):
        stages.run("model", fail, inputs={"seed": 1})
    with Stages(tmp_path, recipe={}) as stages, pytest.raises(RuntimeError):
        stages.run("model-b", fail, inputs={"seed": 1})
    with Stages(tmp_path, recipe={}) as stages:
        stages.run("model", lambda out, scratch: seen.extend(scratch.iterdir()), inputs={"seed": 2})
    assert not seen
    left = [path.parent.name for path in tmp_path.rglob("checkpoint")]
    assert [name.rpartition("-")[0] for name in left] == ["model-b"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    log: Made = []
    with Stages(tmp_path, recipe={}) as stages:
        stages.run("data", make(log), inputs={})
    (tmp_path / "data").rename(tmp_path / ".data.old")
    with Stages(tmp_path, recipe={}) as stages:
        out = stages.run("data", make(log), inputs={})
    assert log == ["made"]
    assert (out / "file.txt").exists()


def test_the_folder_of_another_run_is_refused_unless_continued(tmp_path):
    with Stages(tmp_path, recipe={"data": "ml1m", "seed": 1}):
        pass
    with pytest.raises(ValueError, match=r"holds another run \(seed was 1, now 2\)"):
        Stages(tmp_path, recipe={"data": "ml1m", "seed": 2})
    with Stages(tmp_path, recipe={"data": "ml1m", "seed": 2}, continuing=True):
        pass
    with Stages(tmp_path, recipe={"data": "ml1m", "seed": 2}):
        pass


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        Stages(tmp_path, recipe={})
    assert not (tmp_path / "recipe.json").exists()


def test_killed_in_its_first_write_a_run_goes_on(tmp_path):
    (tmp_path / ".recipe.json.partial-1f").write_text('{"seed": ')
    for _ in range(2):
        with Stages(tmp_path, recipe={"seed": 1}):
            pass


def test_a_stage_that_lies_on_another_disk_is_made_anew_as_often_as_it_must(tmp_path):
    run, disk, log = tmp_path / "run", tmp_path / "disk", []
    for version in range(3):
        with Stages(run, recipe={}) as stages:
            out = stages.run("data", make(log, f"version {version}"), inputs={"v": version})
        assert (out / "file.txt").read_text() == f"version {version}"
        if version == 0:
            out.rename(disk)
            out.symlink_to(disk)
    # What a link shows is not ours to delete.
    assert (disk / "file.txt").read_text() == "version 0"
    assert {path.name for path in run.iterdir()} - {".lock", ".scratch"} == {"recipe.json", "data"}


@pytest.mark.parametrize("name", [".scratch", ".scratch/data-0123"])
def test_a_scratch_folder_that_lies_elsewhere_is_refused_and_left_as_it_is(tmp_path, name):
    with Stages(tmp_path / "run", recipe={}) as stages:
        stages.run("data", make([]), inputs={})
    kept = tmp_path / "theirs" / "data-mine" / "file.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("theirs")
    link = tmp_path / "run" / name
    if link.parent.name == ".scratch":
        link.parent.mkdir(exist_ok=True)
    else:
        link.rmdir()
    link.symlink_to(tmp_path / "theirs")
    with pytest.raises(BadInput, match=f"{name} is a link .* remove it"):
        Stages(tmp_path / "run", recipe={})
    assert kept.read_text() == "theirs"
    link.unlink()
    with Stages(tmp_path / "run", recipe={}) as stages:
        stages.run("data", make([]), inputs={"seed": 2})


def test_a_recipe_that_was_cut_in_half_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"recipe\.json is not a JSON object"):
        Stages(tmp_path, recipe={})


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    with Stages(tmp_path, recipe={}), pytest.raises(ValueError, match="another process"):
        Stages(tmp_path, recipe={})
    with Stages(tmp_path, recipe={}):
        pass


def test_a_killed_process_leaves_no_lock_and_resumes_from_its_scratch(tmp_path):
    child = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from decant.stages import Stages

        def train(out, scratch):
            (out / "half").touch()
            (scratch / "checkpoint").write_text("step 10")
            print("training", flush=True)
            time.sleep(60)

        with Stages(Path(sys.argv[1]), recipe={}) as stages:
            stages.run("model", train, inputs={}, code=())
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", child, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    def resume(out: Path, scratch: Path) -> None:
        assert not list(out.iterdir())
        (out / "file.txt").write_text((scratch / "checkpoint").read_text())

    with Stages(tmp_path, recipe={}) as stages:
        out = stages.run("model", resume, inputs={}, code=())
    assert (out / "file.txt").read_text() == "step 10"


@pytest.mark.parametrize("name", ["", "Data", "../data", "a/b", ".data"])
def test_a_stage_name_is_a_plain_folder_name(tmp_path, name):
    with Stages(tmp_path, recipe={}) as stages, pytest.raises(ValueError, match="name"):
        stages.run(name, make([]), inputs={})


def test_a_name_twice_and_an_unknown_use_are_refused(tmp_path):
    with Stages(tmp_path, recipe={}) as stages:
        stages.run("data", make([]), inputs={})
        with pytest.raises(ValueError, match="each name once"):
            stages.run("data", make([]), inputs={})
        with pytest.raises(ValueError, match=r"\['split'\]"):
            stages.run("model", make([]), inputs={}, uses=["split"])


def test_fingerprint_follows_the_content_and_not_the_name(tmp_path):
    for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(content)
        (tmp_path / f"{name}-folder").mkdir()
        (tmp_path / f"{name}-folder" / "file").write_text(content)
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    a, b, c = (fingerprint(tmp_path / f"{name}-folder") for name in "abc")
    assert a == b != c
    (tmp_path / "b-folder" / "file").rename(tmp_path / "b-folder" / "another")
    assert fingerprint(tmp_path / "b-folder") != a


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Take the place of one process of a launch; what the first tells is kept for the second."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(processes, "tell", told.__setitem__)
    monkeypatch.setattr(processes, "hear", told.__getitem__)
    return lambda rank: monkeypatch.setenv("RANK", str(rank))


def test_of_a_launch_the_others_join_where_the_stage_is_run_together(
    tmp_path: Path, launch: Callable[[int], None]
) -> None:
    folder = tmp_path / "run"
    called: list[tuple[int, str]] = []

    def both(rank: int) -> None:
        launch(rank)
        with Stages(folder, recipe={"seed": 1}) as stages:
            for name in ("alone", "joint"):

                def function(out: Path, scratch: Path, name: str = name) -> None:
                    called.append((rank, name))
                    (out / "made-by.txt").write_text(str(rank))

                stages.run(name, function, inputs={}, code=(), together=name == "joint")

    both(0)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    both(1)
    assert called == [(0, "alone"), (0, "joint"), (1, "joint")]
    # The second writes nothing, locks nothing, and says nothing about the folder.
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert (folder / "joint" / "made-by.txt").read_text() == "0"
    # What is up to date nobody runs again.
    both(0)
    both(1)
    assert len(called) == 3


def test_what_fails_in_one_process_leaves_the_folder_to_the_first(
    tmp_path: Path, launch: Callable[[int], None]
) -> None:
    folder = tmp_path / "run"
    with Stages(folder, recipe={"seed": 1}):
        processes.tell("joint runs", True)
        launch(1)

        def broken(out: Path, scratch: Path) -> None:
            raise RuntimeError("lost its GPU")

        with (
            pytest.raises(RuntimeError, match="lost its GPU"),
            Stages(folder, recipe={"seed": 1}) as following,
        ):
            following.run("joint", broken, inputs={}, code=(), together=True)
        assert (folder / "recipe.json").exists()
        launch(0)


def test_a_swappable_part_of_the_recipe_may_change_and_no_other(tmp_path):
    log: Made = []

    def given(recipe, **options):
        with Stages(tmp_path, recipe=recipe, **options) as stages:
            stages.run("policy", make(log), inputs=recipe["policy"])

    given({"seed": 1, "policy": {"rule": 1}})
    given({"seed": 1, "policy": {"rule": 2}}, swappable=("policy",))
    assert len(log) == 2
    assert json.loads((tmp_path / "recipe.json").read_text())["policy"] == {"rule": 2}
    for other, options in (
        ({"seed": 1, "policy": {"rule": 3}}, {}),
        ({"seed": 2, "policy": {"rule": 3}}, {"swappable": ("policy",)}),
    ):
        with pytest.raises(ValueError, match="another run"):
            given(other, **options)
    assert len(log) == 2
