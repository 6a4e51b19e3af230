"""Saved files corrupted at random: each index must be refused, or answer as before.

A process reads one corrupted folder after another and says what came of each. Dying or falling
silent there is an answer too, and another process goes on behind it.
"""

import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from retrieval import IndexMismatch, ItemIndex

WAYS = ("flip", "cut", "insert", "swap")
GOOD = ("refused", "harmless")
BAD = ("wrong", "error", "crash", "hang")
SECONDS_PER_LOAD = 30.0
_K = 20

Answers = Callable[[Path], list[Any]]


def corrupted(whole: bytes, way: str, rng: np.random.Generator) -> bytes:
    """Some bytes with one thing wrong with them; never the same bytes.

    Args:
        whole: at least one byte.
        way: ``flip`` a bit, ``cut`` off an end or something out of the middle, ``insert`` up to 64
            bytes, or ``swap`` two pieces of equal length.
        rng: decides where.
    """
    size = len(whole)
    while True:
        first, second = np.sort(rng.integers(size, size=2)).tolist()
        if way == "flip":
            changed = bytearray(whole)
            changed[first] ^= 1 << int(rng.integers(8))
        elif way == "cut":
            end = size if rng.random() < 0.5 else second + 1
            changed = bytearray(whole[:first] + whole[end:])
        elif way == "insert":
            more = rng.bytes(int(rng.integers(1, 65)))
            changed = bytearray(whole[:first] + more + whole[first:])
        else:
            length = int(rng.integers(1, 65))
            changed = bytearray(whole)
            one, other = whole[first : first + length], whole[second : second + length]
            if len(one) == len(other) and first + length <= second:
                changed[first : first + length], changed[second : second + length] = other, one
        if changed != whole:
            return bytes(changed)


def outcomes(
    index: ItemIndex, folder: Path, *, count: int, seed: int, answers: Answers | None = None
) -> Counter[tuple[str, str]]:
    """Corrupt the files of a saved index, one at a time.

    Args:
        index: small, since it is written and read as often as that.
        folder: to work in; emptied.
        count: corruptions.
        seed: of all of them; the n-th depends on it and n alone.
        answers: loads a folder and asks it; a function of a module, since another process calls it.

    Returns:
        How many there were of each way and outcome: `refused` by an `IndexMismatch`, `harmless`
        where it answers as before, else `wrong` answers, another `error`, a `crash`, a `hang`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    index.save(folder / "index")
    found: Counter[tuple[str, str]] = Counter()
    done = 0
    with tqdm(total=count, desc="corruptions") as bar:
        while done < count:
            for way, outcome in _some(folder, range(done, count), seed, answers or all_answers):
                found[way, outcome] += 1
                done += 1
                bar.update()
    return found


def _some(folder: Path, numbers: range, seed: int, answers: Answers) -> list[tuple[str, str]]:
    """Outcomes of one process, until it is through or dies."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_corrupt_and_load, args=(folder, numbers, seed, answers, there)
    )
    process.start()
    there.close()
    said: list[tuple[str, str]] = []
    try:
        while len(said) < len(numbers):
            if not here.poll(SECONDS_PER_LOAD):
                said.append((_way(numbers[len(said)]), "hang"))
                break
            said.append(here.recv())
    except EOFError:
        said.append((_way(numbers[len(said)]), "crash"))
    finally:
        process.kill()
        process.join()
        here.close()
    return said


def _way(number: int) -> str:
    return WAYS[number % len(WAYS)]


def _corrupt_and_load(
    folder: Path, numbers: range, seed: int, answers: Answers, out: Connection
) -> None:
    # What FAISS says before it dies would be lost among the rows of the benchmark.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    files = _files(folder / "index")
    wanted = answers(folder / "index")
    names = sorted(files)
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        path = names[int(rng.integers(len(names)))]
        _replace(path, corrupted(files[path], _way(number), rng))
        try:
            outcome = "harmless" if _equal(answers(folder / "index"), wanted) else "wrong"
        except IndexMismatch:
            outcome = "refused"
        except Exception:
            outcome = "error"
        _replace(path, files[path])
        out.send((_way(number), outcome))


def _files(folder: Path) -> dict[Path, bytes]:
    """Every file with something in it, and what is in it."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if content}


def _replace(path: Path, content: bytes) -> None:
    """Write a new file under the old name: who has mapped the old one still reads that."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.rename(path)


def all_answers(folder: Path) -> list[Any]:
    """All that a saved index says: what it is, what it holds, what it finds.

    Raises:
        IndexMismatch: it is refused.
    """
    index = ItemIndex.load(folder, model_hash="benchmark")
    queries = np.random.default_rng(0).normal(size=(8, index.manifest.dimension))
    found = index.search(queries, _K)
    allowed = index.search(queries, _K, allow=[item for item in index.ids[::3] if item is not None])
    manifest = asdict(index.manifest)
    return [manifest, index.ids, found.ids, found.scores, allowed.ids, allowed.scores]


def _equal(said: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(
        np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        for one, other in zip(said, wanted, strict=True)
    )
