"""What is written is whole, or what stood there before still stands."""

import os
import stat
from pathlib import Path

import pytest

from promptify.whole import whole_file, whole_folder, write_whole

posix = pytest.mark.skipif(os.name == "nt", reason="Windows cannot sync folders")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced, as `sync INODE`, and what is renamed, as `rename`, in order."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        order.append(f"sync {os.fstat(handle).st_ino}")
        sync(handle)

    def noted_replace(old: Path, new: Path) -> None:
        order.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return order


def synced(path: Path) -> str:
    return f"sync {path.stat().st_ino}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    write_whole(path, "né\r\n")
    assert path.read_bytes() == "né\r\n".encode()
    assert names(tmp_path) == ["a.json"]


def test_others_may_read_it_as_any_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with whole_folder(tmp_path / "folder"):
        pass
    (tmp_path / "made").mkdir()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "made").stat().st_mode


@posix
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_what_was_made_for_its_owner_alone_is_read_as_the_umask_has_it(
    tmp_path: Path, umask: int
) -> None:
    """As what `safetensors` writes."""
    (tmp_path / "outside").touch(mode=0o600)
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as partial:
            partial.touch(mode=0o600)
        with whole_folder(tmp_path / "folder") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "file").touch(mode=0o600)
            (partial / "script").touch()
            (partial / "script").chmod(0o700)
            (partial / "link").symlink_to(tmp_path / "outside")
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder" / "inner" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder" / "script").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o600
    assert names(tmp_path) == ["file", "folder", "outside"]
    assert names(tmp_path / "folder" / "inner") == ["file"]


def test_a_file_that_is_cut_short_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_whole(path, "old")

    def cut() -> None:
        with whole_file(path) as partial:
            partial.write_text("ha")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cut()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.npy"]


def test_a_full_disk_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


@posix
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, done: list[str]) -> None:
    path = tmp_path / "a.json"
    with whole_file(path) as partial:
        partial.write_text("new")
    assert done == [synced(path), "rename", synced(tmp_path)]
    done.clear()
    write_whole(path, "newer")
    assert done == [synced(path), "rename", synced(tmp_path)]


@posix
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, done: list[str]) -> None:
    folder = tmp_path / "folder"
    with whole_folder(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").touch()
        (partial / "file").touch()
    inside = [folder, folder / "file", folder / "inner", folder / "inner" / "file"]
    assert sorted(done[:4]) == sorted(map(synced, inside))
    assert done[4:] == ["rename", synced(tmp_path)]


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refused(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError("Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refused)
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "file").touch()
    assert names(tmp_path) == ["folder"]


def test_a_file_that_is_written_twice_at_once_is_one_of_the_two(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert names(tmp_path) == ["a"]


def test_a_folder_is_there_when_its_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    folder.mkdir(parents=True)  # An empty one is in nobody's way.
    with whole_folder(folder) as partial:
        (partial / "file").touch()
        assert names(folder) == []
    assert names(folder) == ["file"]
    assert names(folder.parent) == ["folder"]


@posix
def test_a_folder_takes_its_place_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "drive")
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "file").touch()
    assert names(tmp_path / "drive") == ["file"]
    assert (tmp_path / "folder").is_symlink()
    assert names(tmp_path) == ["drive", "folder"]


def test_a_folder_that_is_cut_short_is_not_there(tmp_path: Path) -> None:
    def cut() -> None:
        with whole_folder(tmp_path / "folder") as partial:
            (partial / "file").touch()
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cut()
    assert names(tmp_path) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(OSError, match="folder"), whole_folder(tmp_path / "folder") as partial:
        (partial / "file").touch()
    assert names(tmp_path / "folder") == ["mine"]
    assert names(tmp_path) == ["folder"]
