"""A saved index is whole, old or new, whatever happens to the process; damage is refused."""

import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval import IndexMismatch, ItemIndex
from retrieval import folder as folders
from retrieval.manifest import IndexManifest

REPOSITORY = Path(__file__).parents[2]


def built(kind="ivf", count=200, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype("f4")
    ids = [f"i{row}" for row in range(count)]
    return ItemIndex.build(vectors, ids, model_hash="m", kind=kind), vectors, ids


def changed(index, vectors):
    index.add(3 * vectors[:7], [f"fresh {row}" for row in range(7)])
    index.remove(["i3", "i5", "fresh 1"])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def state(index):
    found = index.search(np.random.default_rng(9).normal(size=(4, 8)), 12)
    return [*index.ids.tolist(), *found.item_rows.ravel().tolist()]


def test_only_what_changed_is_written_again(tmp_path):
    index, vectors, _ = built()
    index.save(tmp_path)
    before = {path.name: path.stat() for path in tmp_path.iterdir()}
    for one in (index, ItemIndex.load(tmp_path)):
        one.save(tmp_path)
        after = {path.name: path.stat() for path in tmp_path.iterdir()}
        assert set(after) == set(before)
        for name in set(before) - {"manifest.json"}:
            assert after[name].st_ino == before[name].st_ino
            assert after[name].st_mtime_ns == before[name].st_mtime_ns
    changed(one, vectors)
    one.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {name.partition("-")[0] for name in names - set(before)} == {"delta", "removed"}
    assert set(before) < names
    one.compact()
    one.save(tmp_path)
    # The old base is swept up.
    left = {path.name for path in tmp_path.iterdir()}
    assert left & (names | set(before)) == {"manifest.json"}
    assert state(ItemIndex.load(tmp_path)) == state(one)


def test_two_folders_and_two_indexes_do_not_mix(tmp_path):
    index, vectors, _ = built()
    other, _, _ = built(seed=1)
    index.save(tmp_path / "a")
    other.save(tmp_path / "a")
    changed(index, vectors)
    index.save(tmp_path / "a")
    index.save(tmp_path / "b")
    assert contents(tmp_path / "a").keys() != contents(tmp_path / "b").keys()
    for folder in "ab":
        assert state(ItemIndex.load(tmp_path / folder)) == state(index)


def test_an_index_stays_usable_when_its_folder_is_saved_over(tmp_path):
    index, vectors, _ = built()
    index.save(tmp_path)
    mapped = ItemIndex.load(tmp_path)
    expected = state(mapped)
    changed(index, vectors)
    index.compact()
    index.save(tmp_path)
    assert state(mapped) == expected
    mapped.save(tmp_path)
    assert state(ItemIndex.load(tmp_path)) == expected


def test_a_file_that_goes_while_its_index_is_loaded_is_said_to_be_missing(tmp_path, monkeypatch):
    index, _, _ = built("flat", 40)
    index.save(tmp_path)
    digest_of = folders.sha256_of

    def swept_up(path):
        path.unlink()
        return digest_of(path)

    monkeypatch.setattr(folders, "sha256_of", swept_up)
    with pytest.raises(IndexMismatch, match="is missing; build the index again"):
        ItemIndex.load(tmp_path)


def flaky(real, left):
    """The same call, but it fails when what is left of calls has run out."""

    def call(*arguments, **named):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(28, f"No space left on device ({real.__name__})")
        return real(*arguments, **named)

    return call


def test_a_drive_that_syncs_no_folders_takes_an_index(tmp_path, monkeypatch):
    sync = os.fsync

    def refuses(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuses)
    index, _, _ = built("ivf", 90)
    index.save(tmp_path)
    assert state(ItemIndex.load(tmp_path)) == state(index)


@pytest.mark.parametrize("change", ["change", "compact", "other"])
def test_save_that_fails_anywhere_leaves_the_old_or_the_new(change, tmp_path, monkeypatch):
    """Each call to the system fails in turn, until none is left that can."""
    index, vectors, _ = built("flat", 40)
    old = state(index)
    index.save(tmp_path)
    calls = [(os, "fsync"), (os, "open"), (Path, "rename"), (Path, "unlink"), (Path, "open")]
    calls += [(Path, "write_bytes")]
    failed_at, outcomes = 0, []
    while True:
        again = ItemIndex.load(tmp_path)
        if change == "other":
            again = built("ivf", 90)[0]
        else:
            changed(again, vectors)
            if change == "compact":
                again.compact()
        new, left = state(again), [failed_at]

        with monkeypatch.context() as patch:
            for owner, name in calls:
                patch.setattr(owner, name, flaky(getattr(owner, name), left))
            try:
                again.save(tmp_path)
            except (OSError, IndexMismatch):
                pass
            else:
                if left[0] >= 0:
                    break
        outcomes.append(state(ItemIndex.load(tmp_path)))
        assert outcomes[-1] in (old, new)
        # Back to the start: the next failure finds the old index again.
        rebuilt, _, _ = built("flat", 40)
        rebuilt.save(tmp_path)
        failed_at += 1
    assert failed_at > 8
    assert old in outcomes
    assert state(ItemIndex.load(tmp_path)) == new


KILLED = """
import sys
import numpy as np
from retrieval import ItemIndex
index = ItemIndex.load(sys.argv[1])
vectors = np.random.default_rng(1).normal(size=(50, 8))
print("ready", flush=True)
for turn in range(100000):
    index.add(vectors, [f"{turn} {row}" for row in range(50)])
    index.remove([f"{turn} {row}" for row in range(40)])
    if turn % 3 == 2:
        index.compact()
    index.save(sys.argv[1])
"""


def test_a_process_killed_while_it_saves_leaves_a_whole_index(tmp_path):
    index, vectors, ids = built("ivf")
    index.save(tmp_path / "index")
    chance, counts = random.Random(0), []
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "index")],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        survivor = ItemIndex.load(tmp_path / "index", model_hash="m")
        # Each turn leaves ten more; nothing that was there at first is lost.
        assert (len(survivor) - 200) % 10 == 0
        assert survivor.rows_of(ids).tolist() == list(range(200))
        np.testing.assert_array_equal(survivor.vectors_at(range(200)), vectors)
        counts.append(len(survivor))
    assert counts[-1] > 200
    survivor.save(tmp_path / "index")
    listed = set(json.loads((tmp_path / "index" / "manifest.json").read_text())["files"])
    assert {path.name for path in (tmp_path / "index").iterdir()} == {*listed, "manifest.json"}


def test_a_first_save_that_was_killed_does_not_stand_in_the_way(tmp_path):
    index, _, _ = built()
    index.save(tmp_path)
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.json.0123456789ab.new")
    with pytest.raises(IndexMismatch, match="holds no index"):
        ItemIndex.load(tmp_path)
    built(seed=2)[0].save(tmp_path)
    assert len(ItemIndex.load(tmp_path)) == 200
    assert len(list(tmp_path.iterdir())) == 5


def test_what_waits_under_an_old_name_of_a_first_write_is_not_written_through(tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("theirs")
    built()[0].save(tmp_path / "index")
    (tmp_path / "index" / "manifest.json.new").symlink_to(theirs)
    built(seed=2)[0].save(tmp_path / "index")
    assert theirs.read_text() == "theirs"
    assert not list((tmp_path / "index").glob("*.new"))


def test_another_programs_manifest_is_not_overwritten(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "Web app"}')
    with pytest.raises(FileExistsError, match="holds other files"):
        built()[0].save(tmp_path)
    assert contents(tmp_path) == {"manifest.json": b'{"name": "Web app"}'}


def test_an_index_with_a_cut_manifest_is_replaced(tmp_path):
    built()[0].save(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    (tmp_path / "notes.txt").write_text("ours")
    built(seed=2)[0].save(tmp_path)
    assert len(ItemIndex.load(tmp_path)) == 200
    assert (tmp_path / "notes.txt").read_text() == "ours"


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_random_corruption_is_refused_or_harmless(kind, tmp_path):
    index, vectors, _ = built(kind)
    changed(index, vectors)
    index.save(tmp_path)
    expected, whole = state(index), contents(tmp_path)
    chance, refused = random.Random(1), 0
    for turn in range(200):
        name = sorted(whole)[turn % len(whole)]
        data = bytearray(whole[name])
        place = chance.randrange(len(data))
        how = chance.choice(["flip", "cut", "insert", "zero"])
        if how == "flip":
            data[place] ^= 1 << chance.randrange(8)
        elif how == "cut":
            del data[place : place + chance.choice([1, 8, len(data)])]
        elif how == "insert":
            data[place:place] = chance.randbytes(chance.choice([1, 8, 400]))
        else:
            data[place : place + 16] = bytes(len(data[place : place + 16]))
        (tmp_path / name).write_bytes(data)
        try:
            loaded = ItemIndex.load(tmp_path, model_hash="m")
        except IndexMismatch:
            refused += 1
        else:
            assert state(loaded) == expected
        (tmp_path / name).write_bytes(whole[name])
    assert refused > 150


@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 9},
        {"dimension": 1 << 40},
        {"dimension": True},
        {"count": 199},
        {"num_rows": -1},
        {"kind": "ivf"},
        {"num_probes": 0},
        {"metric": "l2"},
        {"storage": "float16"},
        {"storage": "int4"},
        {"recall_ceiling": 2},
        {"files": {"../../outside": "0"}},
        {"files": {}},
        {"files": []},
        {"model_hash": ""},
        {"model_hash": 3},
        {"new": 1},
    ],
)
def test_a_forged_manifest_is_refused_before_faiss_reads_anything(change, tmp_path):
    """Even one whose checksum is right."""
    index, _, _ = built("flat")
    index.save(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text()) | change
    del content["checksum"]
    text = json.dumps(content, sort_keys=True)
    content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))
    with pytest.raises(IndexMismatch):
        ItemIndex.load(tmp_path)


def test_a_manifest_that_is_no_object_is_refused(tmp_path):
    for text in ("[]", "3", "{", "\xff", "[" * 100_000, "{}" + " " * (2 << 20)):
        (tmp_path / "manifest.json").write_text(text, "latin-1")
        with pytest.raises(IndexMismatch, match="cannot be read"):
            IndexManifest.read(tmp_path)
