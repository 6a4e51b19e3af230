"""The house itself: what is installed, what is pinned, who may import whom."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ["promptify", "foundation", "retrieval", "distill", "decant"]
REQUIREMENTS = [
    Requirement(line)
    for line in (
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["benchmarks"],
        *PROJECT["project"]["optional-dependencies"]["peft"],
        *PROJECT["project"]["optional-dependencies"]["milvus"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
    )
    if not line.startswith("decant[")  # an extra of our own, listed by itself
]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


def test_the_rooms_are_installed_and_nothing_else_is():
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ROOMS
    assert all((ROOT / room / "__init__.py").exists() for room in ROOMS)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_what_ci_uses_is_pinned_within_what_is_allowed(requirement):
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier
    assert {clause.operator for clause in requirement.specifier} == {">=", "<"}


def test_torch_is_pinned_first_and_exactly():
    assert next(iter(PINS.items())) == ("torch", "2.13.0")


def test_a_reason_stands_beside_every_bound():
    bounds = [
        line
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if re.match(r'\s*(\w+ = \[)?"[\w-]+>=', line)
    ]
    assert len(bounds) == len(REQUIREMENTS) + 3  # and the build backend, gpu and flash
    assert [line for line in bounds if "  # " not in line] == []


def test_make_help_names_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^  make (\w+) +\S", said.stdout, re.MULTILINE)
    assert targets == ["help", "install", "demo", "test", "lint", "clean"]


def test_the_contracts_break_when_a_room_is_entered_by_the_wrong_door(tmp_path):
    for room in [*ROOMS, "benchmarks"]:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("*.pyc"))
        (tmp_path / room / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in (
        ("promptify/intruder.py", "import torch\nimport foundation\n"),
        ("retrieval/intruder.py", "import promptify\n"),
        ("decant/intruder.py", "import promptify.sources.job_market\n"),
    ):
        (tmp_path / module).write_text(line)
    lint = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1
    broken = re.findall(r"^(.+?) BROKEN$", found.stdout, re.MULTILINE)
    wanted = PROJECT["tool"]["importlinter"]["contracts"]
    assert sorted(broken) == sorted(contract["name"] for contract in wanted)
