"""`python -m retrieval.build`: what it builds is what memory would have built; what it refuses."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval import ItemIndex
from retrieval.build import main

COUNT, DIMENSION = 3000, 16


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, DIMENSION))
    vectors = centres[rng.integers(40, size=COUNT)] + 0.4 * rng.normal(size=(COUNT, DIMENSION))
    return vectors.astype("f4"), [f"item-{row}-é" for row in range(COUNT)]


def write(path, vectors, ids, kind=None, **columns):
    kind = kind or pa.list_(pa.float32())
    table = {"item_id": ids, "vector": pa.array([list(one) for one in vectors], kind), **columns}
    pq.write_table(pa.table(table), path, row_group_size=700)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def shards(items, tmp_path_factory):
    """A folder of three files, one of them empty, with columns of different types."""
    vectors, ids = items
    folder = tmp_path_factory.mktemp("shards")
    write(folder / "a.parquet", vectors[:1100], pa.array(ids[:1100], pa.large_string()))
    write(folder / "b.parquet", vectors[:0], pa.array([], pa.string()))
    fixed = pa.list_(pa.float32(), DIMENSION)
    write(
        folder / "c.parquet",
        vectors[1100:],
        pa.array(ids[1100:]).dictionary_encode(),
        fixed,
        other=list(range(COUNT - 1100)),
    )
    return folder


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        ("flat", "float32"),
        ("flat", "int8"),
        ("ivf", "float32"),
        ("ivf", "float16"),
        ("ivf", "int8"),
        ("ivf-pq", "float16"),
        ("hnsw", "float32"),
        ("hnsw", "int8"),
        ("PCA8,IVF20,PQ4x4", "float16"),
    ],
)
def test_streamed_index_is_the_one_made_in_memory(
    kind, storage, items, shards, tmp_path, capsys, monkeypatch
):
    vectors, ids = items
    monkeypatch.setattr("retrieval.streaming.SAMPLE_SIZE", 200)
    monkeypatch.setattr("retrieval.building.SAMPLE_SIZE", 200)
    # Many batches and many blocks of lists.
    monkeypatch.setattr("retrieval.shards.BATCH_BYTES", 40_000)
    monkeypatch.setattr("retrieval.streaming.LIST_BLOCK_BYTES", 60_000)
    monkeypatch.setattr("retrieval.storage.BLOCK_BYTES", 60_000)
    out = tmp_path / "index"
    arguments = [str(shards), "--out", str(out), "--model-hash", "m", "--kind", kind]
    assert main([*arguments, "--storage", storage, "--target-recall", "0.9", "--quiet"]) == 0
    said = capsys.readouterr().out

    one = ItemIndex.build(
        vectors, ids, model_hash="m", kind=kind, storage=storage, target_recall=0.9
    )
    other = ItemIndex.load(out, model_hash="m")

    assert other.manifest == one.manifest
    assert other.ids.tolist() == ids
    queries = vectors[::50]
    for filters in ({}, {"deny": ids[:40]}, {"allow": ids[::3]}):
        ours, theirs = one.search(queries, 20, **filters), other.search(queries, 20, **filters)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)
        assert (ours.item_rows == theirs.item_rows).mean() > 0.999
    assert f"{one.manifest.recall_ceiling:.4f} of the nearest 100" in said
    assert f"{COUNT:,} of {DIMENSION} numbers as {storage}" in said
    names = {path.name.partition("-")[0] for path in out.iterdir()}
    is_merged = "IVF" in one.manifest.factory and kind != "flat"
    is_merged = is_merged and other.manifest.count * other._snapshot.base.store.codes.shape[1] > 6e4
    assert ("lists" in names) == is_merged
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_streamed_index_moves_grows_and_is_saved_again(items, shards, tmp_path, monkeypatch):
    vectors, ids = items
    monkeypatch.setattr("retrieval.streaming.LIST_BLOCK_BYTES", 60_000)
    out = tmp_path / "index"
    arguments = [str(shards), "--out", str(out), "--model-hash", "m", "--kind", "ivf"]
    assert main([*arguments, "--target-recall", "1", "--quiet"]) == 0
    out.rename(tmp_path / "moved")
    index = ItemIndex.load(tmp_path / "moved")
    index.remove(ids[:10])
    index.add(2 * vectors[:5], [f"fresh {row}" for row in range(5)])
    index.save(tmp_path / "copy")
    for one in (index, ItemIndex.load(tmp_path / "copy")):
        for _ in range(2):
            expected = np.argsort(-vectors[:5] @ np.concatenate([vectors, 2 * vectors[:5]]).T)
            expected = [row[row >= 10][:3].tolist() for row in expected]
            assert one.search(vectors[:5], 3).item_rows.tolist() == expected
            one.compact()


def test_lists_on_disk_are_saved_on_from_where_they_were_saved_last(
    items, shards, tmp_path, monkeypatch
):
    monkeypatch.setattr("retrieval.streaming.LIST_BLOCK_BYTES", 60_000)
    out = tmp_path / "0"
    arguments = [str(shards), "--out", str(out), "--model-hash", "m", "--kind", "ivf"]
    assert main([*arguments, "--quiet"]) == 0
    index = ItemIndex.load(out)
    for turn in range(3):
        index.remove([items[1][turn]])
        index.save(tmp_path / str(turn + 1))
        # A copy that is gone again is not missed either.
        index.save(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
        index.save(tmp_path / str(turn + 1))
        shutil.rmtree(tmp_path / str(turn))
    assert any(path.name.startswith("lists-") for path in (tmp_path / "3").iterdir())
    expected = index.search(items[0][:5], 9).item_rows.tolist()
    assert ItemIndex.load(tmp_path / "3").search(items[0][:5], 9).item_rows.tolist() == expected


def test_a_sample_of_queries_chooses_and_measures(items, shards, tmp_path, capsys):
    sample = write(tmp_path / "people.parquet", items[0][:1].repeat(50, 0), ["p"] * 50)
    arguments = [str(shards), "--out", str(tmp_path / "index"), "--model-hash", "m"]
    arguments += ["--kind", "ivf", "--target-recall", "1", "--quiet"]
    assert main([*arguments, "--sample", str(sample)]) == 0
    assert "1.0000 of the nearest 100" in capsys.readouterr().out
    assert ItemIndex.load(tmp_path / "index").manifest.num_probes < 50


def test_auto_obeys_the_bytes_it_may_take(shards, tmp_path, capsys):
    arguments = [str(shards), "--out", str(tmp_path / "index"), "--model-hash", "m", "--quiet"]
    assert main([*arguments, "--max-bytes", "120K"]) == 0
    assert "ivf-pq" in capsys.readouterr().out
    manifest = ItemIndex.load(tmp_path / "index").manifest
    assert manifest.kind == "ivf-pq"
    assert 0 < manifest.num_bytes <= 120 << 10
    assert main([*arguments, "--max-bytes", "1K"]) == 2
    assert "max_bytes is 1,024" in capsys.readouterr().err
    # What was there is still there.
    assert ItemIndex.load(tmp_path / "index").manifest == manifest


GOOD = np.ones((5, 4))


def holed(value):
    vectors = GOOD.tolist()
    vectors[3][2] = value
    return vectors


@pytest.mark.parametrize(
    ("second", "ids", "kind", "says"),
    [
        (GOOD[:, :3], "fghij", None, r"b.parquet: row 0: the vector is not 4 numbers long"),
        (GOOD[:, :3], "fghij", pa.list_(pa.float32(), 3), "b.parquet: row 0: vectors are 3"),
        (holed(np.nan), "fghij", None, "b.parquet: row 3: the vector holds NaN"),
        (holed(np.inf), "fghij", pa.list_(pa.float16()), "b.parquet: row 3: the vector holds NaN"),
        (holed(None), "fghij", None, "b.parquet: row 3: the vector holds NaN, infinity or nothing"),
        (GOOD, "fghia", None, "b.parquet: row 4: the id 'a' .* twice; .*a.parquet: row 0"),
        (GOOD, ["f", None, "h", "i", "j"], None, "b.parquet: row 1: the id is missing"),
        (GOOD, range(5), None, "b.parquet: column 'item_id' holds int64; ids are texts"),
        (GOOD, "fghij", pa.list_(pa.int64()), "b.parquet: column 'vector' holds list.*int64"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_file_and_row(second, ids, kind, says, tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "a.parquet", GOOD, list("abcde"))
    write(folder / "b.parquet", second, list(ids), kind)
    out = tmp_path / "index"
    assert main([str(folder), "--out", str(out), "--model-hash", "m", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(says, error), error
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("kind", "most_bytes"),
    [("flat", 100_000), ("hnsw", 400_000)],
    ids=["the vectors, by NumPy", "the graph, by FAISS"],
)
def test_a_file_that_cannot_grow_leaves_the_old_index(kind, most_bytes, shards, tmp_path):
    arguments = [str(shards), "--out", str(tmp_path / "index"), "--model-hash", "m", "--quiet"]
    assert main(arguments) == 0
    before = contents(tmp_path / "index")
    pytest.importorskip("resource")
    # Every process has a limit like that of a full disk, and it is the one we may set. It sets it
    # itself: to run anything between fork and exec, gRPC's threads of other tests would be forked.
    limited = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes}))
runpy.run_module("retrieval.build", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--kind", kind],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"no index was written to {tmp_path / 'index'} (" in line
    assert "File too large" in line
    assert "free some space or give another folder" in line
    assert contents(tmp_path / "index") == before


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_disk_too_full_for_what_is_mapped_is_said_before(
    kind, shards, tmp_path, capsys, monkeypatch
):
    """Writing to a mapped file that the disk has no room for kills the process."""
    monkeypatch.setattr("retrieval.streaming.LIST_BLOCK_BYTES", 60_000)
    sizes = {"flat": COUNT * 16, "ivf": COUNT * (4 * DIMENSION + 8)}
    used = shutil.disk_usage(tmp_path)

    def usage(_):
        return used._replace(free=sizes[kind] - 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    arguments = [str(shards), "--out", str(tmp_path / "index"), "--model-hash", "m", "--quiet"]
    assert main([*arguments, "--kind", kind]) == 2
    assert f"({sizes[kind]:,} bytes are needed" in capsys.readouterr().err
    assert list((tmp_path / "index").iterdir()) == []
    sizes[kind] += 1
    assert main([*arguments, "--kind", kind]) == 0


def test_a_number_that_float16_cannot_hold_is_named_by_file_and_row(
    items, shards, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("retrieval.shards.BATCH_BYTES", 4 * DIMENSION * 10)
    vectors, ids = items
    beyond = vectors[:40].copy()
    beyond[33, 2] = -70_000
    file = write(tmp_path / "b.parquet", beyond, ids[:40])
    arguments = [str(file), "--out", str(tmp_path / "index"), "--model-hash", "m", "--quiet"]
    assert main([*arguments, "--storage", "float16"]) == 2
    said = capsys.readouterr().err
    assert f"{file}: row 33 holds -70000" in said
    assert list((tmp_path / "index").iterdir()) == []
    assert main(arguments) == 0


def test_missing_columns_files_and_sizes_are_refused(shards, tmp_path, capsys):
    rest = ["--out", str(tmp_path / "out"), "--model-hash", "m", "--quiet"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet at all")
    for arguments, says in (
        ([str(shards), "--id-column", "id"], "there is no column 'id'; it has item_id, vector"),
        ([str(shards), "--vector-column", "v"], "there is no column 'v'"),
        ([str(tmp_path / "empty")], "holds no *.parquet files"),
        ([str(tmp_path / "none.parquet")], "none.parquet is not there"),
        ([str(tmp_path / "text.parquet")], "no Parquet file"),
        ([str(shards), "--kind", "fancy"], "kind is 'fancy'"),
        ([str(shards), "--storage", "int4"], "storage is 'int4'"),
        ([str(shards), "--target-recall", "2"], "target_recall is 2"),
    ):
        assert main([*arguments, *rest]) == 2
        assert says in capsys.readouterr().err
    for arguments in ([str(shards)], [str(shards), *rest, "--max-bytes", "many"]):
        with pytest.raises(SystemExit):
            main(arguments)
        capsys.readouterr()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "diary.txt").write_text("rain")
    assert main([str(shards), *rest]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["diary.txt"]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for word in ("auto", "ivf-pq", "recall ceiling", "--max-bytes", "examples", "normalise"):
        assert word in said


def test_the_manifest_says_what_was_built(shards, tmp_path):
    arguments = [str(shards), "--out", str(tmp_path / "index"), "--model-hash", "m"]
    assert main([*arguments, "--storage", "float16"]) == 0
    said = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert said["storage"] == "float16"
    assert said["kind"] == "flat"
    assert said["num_bytes"] == COUNT * DIMENSION * 2
