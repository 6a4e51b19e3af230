import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks.peers import environment
from benchmarks.peers.environment import PeerError, built, ensure


def ask(python: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def want(folder: Path, lines: str) -> Path:
    (folder / "requirements-tiny.txt").write_text(lines)
    return folder


def wheel(folder: Path, *, version: str) -> Path:
    path = folder / f"tinypeer-{version}-py3-none-any.whl"
    about = f"tinypeer-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tinypeer.py", f"VERSION = '{version}'\n")
        file.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: tinypeer\nVersion: {version}\n"
            "Requires-Dist: torch==1.0\n",
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return path


def test_a_peer_stands_on_our_packages_and_moves_none(tmp_path):
    line = f"tinypeer @ {wheel(tmp_path, version='1.5').as_uri()}  # asks for another torch\n"
    python = ensure("tiny", requirements=want(tmp_path, line), cache=tmp_path / "cache")
    assert ask(python, "import tinypeer; print(tinypeer.VERSION)") == "1.5"
    where = "import importlib.util as u; print(u.find_spec('torch').origin)"
    assert ask(python, where) == torch.__file__
    assert ask(python, "import sys; print(sys.prefix)") == str(python.parents[1])
    # Built once: nothing is asked of pip again, and no half of it is left.
    made = python.parents[1].stat().st_mtime_ns
    assert ensure("tiny", requirements=tmp_path, cache=tmp_path / "cache") == python
    assert python.parents[1].stat().st_mtime_ns == made
    assert [p for p in (tmp_path / "cache").iterdir() if "partial" in p.name] == []


def test_other_requirements_are_another_environment(tmp_path):
    cache = tmp_path / "cache"
    first = ensure("tiny", requirements=want(tmp_path, "# nothing yet\n"), cache=cache)
    assert ensure("tiny", requirements=want(tmp_path, "# a reason\n"), cache=cache) == first
    want(tmp_path, f"tinypeer @ {wheel(tmp_path, version='2.0').as_uri()}\n")
    assert built("tiny", requirements=tmp_path, cache=cache) is None
    assert ensure("tiny", requirements=tmp_path, cache=cache) != first


def test_the_cache_is_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    python = ensure("tiny", requirements=want(tmp_path, ""))
    assert python.is_relative_to(tmp_path / "xdg" / "decant" / "peers")
    assert built("tiny", requirements=tmp_path) == python


def test_what_a_killed_build_left_is_not_used(tmp_path):
    want(tmp_path, "")
    cache = tmp_path / "cache"
    python = ensure("tiny", requirements=tmp_path, cache=cache)
    whole = python.parents[1]
    partial = cache / f".{whole.name}.partial-killed"
    os.rename(whole, partial)
    assert built("tiny", requirements=tmp_path, cache=cache) is None
    assert ensure("tiny", requirements=tmp_path, cache=cache) == python
    assert not partial.exists()
    assert ask(python, "print('works')") == "works"


def test_an_index_out_of_reach_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    want(tmp_path, "no-such-peer==1.0\n")
    with pytest.raises(
        PeerError, match=r"(?s)peer tiny needs.*no-such-peer.*package index"
    ) as info:
        ensure("tiny", requirements=tmp_path, cache=tmp_path / "cache")
    assert "PIP_INDEX_URL" in str(info.value)
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [("trl>=1\n", "pin 'trl>=1'"), ("torch==2.0  # why not\n", "torch must stay Decant's own")],
)
def test_requirements_are_pinned_and_leave_torch_alone(tmp_path, line, said):
    with pytest.raises(ValueError, match=said):
        ensure("tiny", requirements=want(tmp_path, line), cache=tmp_path)


def test_an_unknown_peer_is_told_the_known_ones():
    with pytest.raises(ValueError, match=r"no peer 'trll'.*sentence-transformers.*trl"):
        ensure("trll")


def test_a_reason_stands_beside_every_pin():
    for path in environment.REQUIREMENTS.glob("requirements-*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert lines
        assert [line for line in lines if "  # " not in line] == []
        assert built(path.stem.removeprefix("requirements-"), cache=Path("/nowhere")) is None
