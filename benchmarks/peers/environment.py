"""Environments that peers live in: their pinned packages on top of ours, built once.

    python = ensure("trl")
    subprocess.run([python, "-m", "benchmarks.some_worker"], env=..., check=True)

A peer must not move torch or transformers, or a ratio would compare two of each. So an environment
sees every package of the running interpreter and holds, before them, only the lines of
``requirements-NAME.txt``; nothing is installed that is not written there.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from filelock import FileLock

REQUIREMENTS = Path(__file__).parent
_ALWAYS_OURS = ("torch", "transformers", "tokenizers", "numpy")


class PeerError(RuntimeError):
    """A peer's environment could not be built; the message says what to do."""


def ensure(name: str, *, requirements: Path = REQUIREMENTS, cache: Path | None = None) -> Path:
    """The python of a peer's environment, which is built if it is not there yet.

    Run it with ``PYTHONPATH`` set to the repository, where `benchmarks` is. Its scripts other than
    python do not work: the environment was renamed after it was built.

    Args:
        name: of the peer; its packages are the lines of ``requirements-NAME.txt``.
        requirements: folder of that file.
        cache: folder of the environments; by default ``decant/peers`` in ``$XDG_CACHE_HOME``.

    Raises:
        ValueError: there is no such file, a line is not pinned, or one names a package that must
            stay ours.
        PeerError: pip could not install a line (the package index is out of reach, for one).
    """
    wanted = _read(name, requirements)
    folder = _folder(name, wanted, cache)
    if (folder / "bin" / "python").exists():
        return folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The kernel drops the lock of a builder that was killed.
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / "bin" / "python").exists():
            for partial in folder.parent.glob(f".{folder.name}.partial-*"):
                shutil.rmtree(partial)
            _build(name, wanted, folder)
    return folder / "bin" / "python"


def built(
    name: str, *, requirements: Path = REQUIREMENTS, cache: Path | None = None
) -> Path | None:
    """The python of a peer's environment if it is there, else None; nothing is built."""
    python = _folder(name, _read(name, requirements), cache) / "bin" / "python"
    return python if python.exists() else None


def _read(name: str, requirements: Path) -> str:
    path = requirements / f"requirements-{name}.txt"
    if not path.exists():
        known = sorted(p.stem.removeprefix("requirements-") for p in requirements.glob("*.txt"))
        raise ValueError(f"there is no peer {name!r}; the peers are {', '.join(known)}.")
    wanted = path.read_text(encoding="utf-8")
    for line in _lines(wanted):
        if not re.search(r"==|@", line):
            raise ValueError(f"{path.name}: pin {line!r} to one version with ==.")
        package = re.split(r"[\s=@\[]", line)[0].lower()
        if package in _ALWAYS_OURS:
            raise ValueError(f"{path.name}: {package} must stay Decant's own; take the line out.")
    return wanted


def _lines(wanted: str) -> list[str]:
    without_comments = (re.sub(r"(^|\s)#.*", "", line).strip() for line in wanted.splitlines())
    return [line for line in without_comments if line]


def _our_packages() -> list[str]:
    """Folders that the running interpreter imports installed packages from."""
    return [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]


def _folder(name: str, wanted: str, cache: Path | None) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = "\n".join([*_lines(wanted), sys.version, sys.base_prefix, *_our_packages()])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return (cache or home / "decant" / "peers") / f"{name}-{digest}"


def _build(name: str, wanted: str, folder: Path) -> None:
    print(f"Building the environment of {name}, once: {', '.join(_lines(wanted))}", file=sys.stderr)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        venv.create(partial, with_pip=False, symlinks=True)
        [packages] = partial.glob("lib/python*/site-packages")
        # The folders are added behind the environment's own, so what is pinned here comes first.
        (packages / "decant.pth").write_text("".join(f"{p}\n" for p in _our_packages()))
        (packages / "requirements.txt").write_text(wanted, encoding="utf-8")
        if _lines(wanted):
            _install(name, partial / "bin" / "python", packages / "requirements.txt")
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _install(name: str, python: Path, requirements: Path) -> None:
    # Our pip, working on the other environment: that needs none of its own.
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    command += ["--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run(
        [*command, "--requirement", str(requirements)], capture_output=True, text=True
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = "\n".join(errors or done.stderr.splitlines()[-3:])
        raise PeerError(
            f"cannot install what the peer {name} needs:\n{said}\n"
            "Is the package index within reach? `pip config list` says which one is asked; behind "
            "a mirror set PIP_INDEX_URL. What is built once is used without a network from then on."
        )
