"""`run.json`: what was run, with which versions, on what, beside every result."""

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from promptify.whole import write_whole

_RECORDED_PACKAGES = (
    "decant",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "faiss-cpu",
    "faiss-gpu",
    "flash-attn",
    "pyarrow",
)
_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Everything that somebody needs to run it again and to judge its numbers.

    Attributes:
        config: the run's settings, JSON values only; a recipe as `Recipe.published` gives it.
        config_hash: `json_hash(config)`; equal hashes mean equal settings.
        versions: Python and the libraries that can change a number.
        commit: of the checkout, with `-dirty` when files differ from it; None outside one.
        seed: the run's seed.
        hardware: processor, cores, memory and GPU, in words.
        command: the command line; of paths that are absolute or there only the last part, since a
            record is published.
        started: UTC, ISO 8601 with seconds.
        finished: the same, or None while it runs.
        peak_rss_bytes: most memory the process held, or None while it runs.
    """

    config: Mapping[str, Any]
    config_hash: str
    versions: Mapping[str, str]
    commit: str | None
    seed: int
    hardware: str
    command: tuple[str, ...]
    started: str
    finished: str | None = None
    peak_rss_bytes: int | None = None

    @classmethod
    def start(cls, config: Mapping[str, Any], *, seed: int) -> "RunRecord":
        """A record of the run that begins now.

        Raises:
            TypeError: `config` holds something that JSON cannot.
            ValueError: `config` holds NaN or an infinity.
        """
        return cls(
            config=config,
            config_hash=json_hash(config),
            versions=versions(),
            commit=git_commit(),
            seed=seed,
            hardware=hardware(),
            command=tuple(_without_folders(argument) for argument in sys.argv),
            started=utc_now(),
        )

    def finish(self) -> "RunRecord":
        """The same record with the time and the peak memory of now."""
        return replace(self, finished=utc_now(), peak_rss_bytes=peak_rss_bytes())

    def write(self, folder: Path) -> Path:
        """Write `run.json` into `folder`, whole or not at all, and return its path."""
        path = folder / "run.json"
        write_whole(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        return path


def _without_folders(argument: str) -> str:
    """An argument with the last part of each path in it; a hub's name is no path."""
    option, sign, value = argument.partition("=")
    # A path may have any of the signs between values in its name.
    if os.path.exists(argument):
        return _last_part(argument)
    if sign and os.path.exists(value):
        return f"{option}={_last_part(value)}"
    return "".join(map(_last_part, re.split(r"([=,\[\]]\s*)", argument)))


def _last_part(named: str) -> str:
    if os.sep in named and (os.path.isabs(named) or os.path.exists(named)):
        return Path(named).name or named
    return without_paths(named)


def without_paths(text: str) -> str:
    """A message as a record says it, which is published: of absolute paths the last part.

    Example:
        >>> without_paths("the text encoder in /home/ann/minilm cannot be loaded.")
        'the text encoder in minilm cannot be loaded.'
    """
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\"]+/)+", "", text)


def json_hash(value: object) -> str:
    """Sixteen hex digits that depend on a JSON value and not on the order of its keys.

    Raises:
        TypeError: the value holds something that JSON cannot.
        ValueError: the value holds NaN or an infinity.

    Example:
        >>> json_hash({"seed": 1, "form": "slot"}) == json_hash({"form": "slot", "seed": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def utc_now() -> str:
    """The time in UTC, ISO 8601 to the second: `2026-03-01T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of each installed library that can change a number."""
    found = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout this code runs from, ending in `-dirty` if files were changed.

    None when the code runs from anywhere but its own checkout, or git is not there to ask.
    """
    if not (_REPOSITORY / ".git").exists():
        return None  # asking git would find whatever repository holds the virtual environment
    command = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware() -> str:
    """The machine in words: processor, usable cores, memory, GPUs.

    Example: `AMD EPYC 9654, 2 cores, 23 GiB RAM, no GPU`.
    """
    ram_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return (
        f"{_processor()}, {num_cores()} cores, {ram_gib:.0f} GiB RAM, {', '.join(gpus) or 'no GPU'}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """The most resident memory this process, or any child it has waited for, has held."""
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return peak if sys.platform == "darwin" else peak * 1024
