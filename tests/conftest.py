import os

# Before any library is imported: tests never reach for the network, and say little.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import foundation
from decant import panels

# The same examples on every machine, and no complaint about a slow one.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; there is none here"))


def pytest_collection_finish() -> None:
    # A training collects garbage at its ends, half a second each time for all that was imported.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def drawing() -> Callable[[], AbstractContextManager[None]]:
    """Within it figures are drawn; elsewhere a report's are made and saved blank (see below)."""
    originals = {"to_png": panels.to_png, "to_svg": panels.to_svg}

    @contextmanager
    def drawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, original in originals.items():
                patch.setattr(panels, name, original)
            yield

    return drawn


@pytest.fixture(scope="session", autouse=True)
def blank_figures(drawing: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Drawing takes a second a figure, and hundreds of reports are written; few are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "to_png", lambda figure: b"")
        patch.setattr(panels, "to_svg", lambda figure, *, name, description: "<svg></svg>")
        yield


@pytest.fixture
def not_synced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """Names files below a folder that were not synced since the test began: a power cut's prey."""
    synced, sync = set(), os.fsync

    def noted(handle: int) -> None:
        sync(handle)
        synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    return lambda folder: sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_ino not in synced
    )


@pytest.fixture(scope="session")
def launch_two() -> Callable[..., str]:
    """Runs a command as two processes of one launch; returns what they print."""
    root = Path(foundation.__file__).parents[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--config_file", str(root / "foundation" / "configs" / "fsdp2.yaml")]
    launch += ["--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> str:
        # In a session of its own: should they wait for each other for ever, all of them are ended.
        with subprocess.Popen(
            [*launch, *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, errors = process.communicate(timeout=240)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == 0, errors[-9000:]
        return said

    return run
