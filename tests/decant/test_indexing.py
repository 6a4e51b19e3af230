"""`decant index --items`: a file of items embedded in shards, by one process or two, and found."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

import decant.embedding
import retrieval.folder
from decant import Recommender, processes
from decant.cli import main
from decant.embedding import ShardFolder, ShardPlan
from decant.layout import RunLayout
from decant.pipeline import index_again, index_if_stale
from foundation import Foundation
from foundation.checkpoint import weights_hash
from foundation.int8 import to_int8
from promptify.validation import BadInput
from retrieval import IndexManifest, ItemIndex

NUM_NEW = 25
PROFILE = {"headline": "Nurse in oncology", "place": "Berlin, Germany"}
HISTORY = [{"item": "job-00050", "action": "apply"}]


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["index", *map(str, arguments)])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def jobs(recommender: Recommender) -> list[dict[str, Any]]:
    """Ten jobs of the log as it has them, and new ones that nobody has met."""
    log = recommender.interactions
    fields = ["item_id", "kind", *(field.name for field in log.schema.items["job"])]
    known = [row for row in log.items.data.table.to_pylist() if row["kind"] == "job"][:10]
    new = [
        {**known[n % 10], "item_id": f"new-{n}", "title": f"Nurse on ward {n}"}
        for n in range(NUM_NEW)
    ]
    # The one and the other stand in every shard.
    mixed = [row for n in range(NUM_NEW) for row in ([*new[n : n + 1], *known[n : n + 1]])]
    return [{name: row[name] for name in fields} for row in mixed]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix in (".jsonl", ".json"):
        told = [{k: v for k, v in row.items() if v is not None} for row in rows]
        path.write_text("\n".join(map(json.dumps, told)) + "\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        flat = [{**row, "skills": "|".join(row["skills"] or [])} for row in rows]
        options = pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pa.csv.write_csv(pa.Table.from_pylist(flat), path, options)
    return path


@pytest.fixture(scope="module")
def items(jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(jobs, tmp_path_factory.mktemp("items") / "items.parquet")


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Path:
    return RunLayout(tiny_run).model("rung-1")


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "vectors").iterdir())}


@pytest.fixture(scope="module")
def whole(model: Path, items: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and index, made without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    main(["index", str(model), "--items", str(items), "--out", str(out), "--shard-items", "8"])
    return out


def test_vectors_are_the_models_and_known_items_keep_what_was_learned_of_them(
    whole: Path, model: Path, jobs: list[dict[str, Any]], recommender: Recommender
) -> None:
    assert len(shards(whole)) == 5
    table = pa.concat_tables([pq.read_table(p) for p in sorted((whole / "vectors").iterdir())])
    assert table["item_id"].to_pylist() == [row["item_id"] for row in jobs]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    known = Foundation.from_pretrained(model)
    row_of = {item: row for row, item in enumerate(known.item_ids)}
    wanted = known.embed_items()
    texts = [
        recommender.book.prompter.item_text({k: v for k, v in row.items() if k != "item_id"})
        for row in jobs
    ]
    alone = known.embed_items(recommender.book.prompter.item_pieces(texts))
    for place, row in enumerate(jobs):
        is_known = row["item_id"] in row_of
        right = wanted[row_of[row["item_id"]]] if is_known else alone[place]
        np.testing.assert_allclose(vectors[place], right, atol=2e-5)
    index = ItemIndex.load(whole / "index", model_hash=weights_hash(model))
    assert index.ids.tolist() == [row["item_id"] for row in jobs]
    nearest = index.search(alone[:3], 3).ids
    exact = np.argsort(-(alone[:3] @ vectors.T), axis=1, kind="stable")[:, :3]
    assert nearest.tolist() == [[jobs[i]["item_id"] for i in row] for row in exact]


def test_a_model_for_processors_stays_on_one(
    model: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Foundation.from_pretrained(model)
    to_int8(small)
    small.save_pretrained(tmp_path / "small")
    monkeypatch.setattr(processes, "training_device", lambda: "cuda")
    out = tmp_path / "out"
    main(["index", str(tmp_path / "small"), "--items", str(items), "--out", str(out)])
    assert len(ItemIndex.load(out / "index", model_hash=weights_hash(tmp_path / "small"))) > 0


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_the_format_of_the_file_makes_no_difference(
    capsys: Any, whole: Path, model: Path, jobs: Any, tmp_path: Path, suffix: str
) -> None:
    path = write(jobs, tmp_path / f"items{suffix}")
    out = tmp_path / "out"
    text = said(capsys, model, "--items", path, "--out", out, "--shard-items", 8)
    assert text.startswith(f"indexed {len(jobs)} items into {out / 'index'}: flat, float32, recall")
    assert "recall ceiling 1.0000" in text
    assert shards(out) == shards(whole)


def test_a_run_that_was_killed_goes_on_with_the_missing_shards(
    capsys: Any,
    whole: Path,
    model: Path,
    items: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    command = [model, "--items", items, "--out", out, "--shard-items", 8]
    plain, written = decant.embedding._write, []

    def killed(table: pa.Table, path: Path) -> None:
        if len(written) == 2:
            path.with_name(f".{path.name}.partial-1").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        plain(table, path)

    monkeypatch.setattr("decant.embedding._write", killed)
    with pytest.raises(SystemExit) as leaving:
        said(capsys, *command)
    assert leaving.value.code == 130
    assert "picks up where it stopped" in capsys.readouterr().err
    assert not (out / "index").exists()
    before = {path: path.stat().st_mtime_ns for path in written}
    again: list[Path] = []
    monkeypatch.setattr(
        "decant.embedding._write", lambda table, path: again.append(path) or plain(table, path)
    )
    said(capsys, *command)
    assert [path.name for path in again] == [f"{n:05}.parquet" for n in (2, 3, 4)]
    assert {path: path.stat().st_mtime_ns for path in written} == before
    whole_ones = {name: data for name, data in shards(out).items() if not name.startswith(".")}
    assert whole_ones == shards(whole)
    assert len(ItemIndex.load(out / "index")) == 35
    # With all of them there, another kind of index costs no embedding.
    again.clear()
    assert "recall ceiling" in said(capsys, *command, "--kind", "flat", "--storage", "float16")
    assert again == []
    # Another file is another job.
    other = shutil.copy(items, tmp_path / "other.parquet")
    table = pq.read_table(other)
    pq.write_table(table.slice(0, 9), other)
    said(capsys, model, "--items", other, "--out", out, "--shard-items", 8)
    assert len(ItemIndex.load(out / "index")) == 9


def test_two_processes_are_one(
    launch_two: Callable[..., str], whole: Path, model: Path, items: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["index", model, "--items", items, "--out", out, "--shard-items", 8]
    told = launch_two("-m", "decant", *command)
    assert told.count("indexed 35 items") == 1
    assert shards(out) == shards(whole)
    assert (
        ItemIndex.load(out / "index").ids.tolist() == ItemIndex.load(whole / "index").ids.tolist()
    )


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_run_recommends_the_items_of_the_file_and_no_others(
    capsys: Any, run: Path, items: Path, jobs: list[dict[str, Any]]
) -> None:
    by_hand = Recommender.load(run)
    assert f"indexed 35 items into {run}: flat" in said(
        capsys, run, "--items", items, "--shard-items", 8
    )
    served = Recommender.load(run)
    found = served.predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert {one.item_id for one in found} == {row["item_id"] for row in jobs}
    assert served.predict_next_actions(PROFILE, task="people") == []
    # As if they had been added, and the others removed, one by one.
    log = by_hand.interactions
    known = {row["item_id"] for row in jobs} & set(log.item_ids)
    by_hand.add_items([row for row in jobs if row["item_id"] not in known])
    by_hand.remove_items([item for item in log.item_ids if item not in known])
    wanted = by_hand.predict_next_actions(PROFILE, HISTORY, k=10_000)
    scores = {one.item_id: one.score for one in wanted}
    for one in found:
        assert one.score == pytest.approx(scores[one.item_id], abs=2e-4)
    assert [one.item_id for one in found[:3]] == [one.item_id for one in wanted[:3]]
    assert not RunLayout(run).catalogue_scratch.exists()
    # Fresh items come on top, and another file takes the place of this one.
    served.add_items([{**jobs[0], "item_id": "newest"}])
    served.save()
    again = Recommender.load(run)
    assert again.predict_next_actions(PROFILE, allow=["newest"])
    said(capsys, run, "--items", items)
    third = Recommender.load(run)
    assert third.predict_next_actions(PROFILE, allow=["newest"]) == []
    assert third.predict_next_actions(PROFILE, [{"item": "newest", "action": "apply"}])


def test_killed_before_its_first_shard_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ShardPlan(
        model_hash="of a model",
        file="of a file",
        shard_items=8,
        width=16,
        with_items=True,
        num_items=35,
        num_shards=5,
        repeated_lines=(),
    )

    def killed(path: Path, content: str) -> None:
        path.with_name(f".{path.name}.partial-1").write_text(content[:9])
        raise KeyboardInterrupt

    folder = ShardFolder(folder=tmp_path / "shards")
    with monkeypatch.context() as patch:
        patch.setattr("decant.embedding.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.start(plan)
    folder.start(plan)
    assert folder.vectors(0).parent.is_dir()


def test_a_run_that_was_killed_goes_on_wherever_that_was(
    capsys: Any, run: Path, items: Path, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [run, "--items", items, "--shard-items", 8]
    plain = shutil.rmtree

    def killed(folder: Path, **options: Any) -> None:
        plan = Path(folder) / "shards.json"
        if not plan.exists():
            return plain(folder, **options)
        plan.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit) as leaving:
            said(capsys, *command)
    assert leaving.value.code == 130
    with monkeypatch.context() as patch:
        patch.setattr("decant.indexing._build", killed_there)
        with pytest.raises(SystemExit):
            said(capsys, *command)
    # The last of a shard's two files alone says nothing of the other.
    scratch = ShardFolder(folder=RunLayout(run).catalogue_scratch)
    scratch.items(1).unlink()
    assert "indexed 35 items" in said(capsys, *command)
    assert list((run / ".scratch").glob("*/*")) == []
    found = Recommender.load(run).predict_next_actions(PROFILE, HISTORY, k=10_000)
    assert {one.item_id for one in found} == {row["item_id"] for row in jobs}


def killed_there(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_two_that_index_a_run_at_once_leave_it_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, second = retrieval.folder.commit, threading.Event()
    indexed: list[int] = []

    def commit(folder: Path, manifest: IndexManifest) -> None:
        if other.ident is None:
            other.start()
            second.wait(timeout=1)  # The first has written its files; the other overtakes it.
        else:
            second.set()
        plain(folder, manifest)

    monkeypatch.setattr(retrieval.folder, "commit", commit)
    other = threading.Thread(target=lambda: indexed.append(index_again(RunLayout(run))))
    indexed.append(index_again(RunLayout(run)))
    other.join()
    assert indexed == [len(Recommender.load(run).index)] * 2


@pytest.fixture
def narrow_run(run: Path) -> Path:
    """A run whose served model was made for vectors of 4 numbers, too."""
    path = RunLayout(run).model("rung-1")
    model = Foundation.from_pretrained(path)
    model.settings = replace(model.settings, vector_widths=(4,))
    model.save_pretrained(path)
    return run


def test_an_index_of_narrow_vectors_finds_and_whole_ones_rank(
    capsys: Any, narrow_run: Path, items: Path, tmp_path: Path
) -> None:
    said(capsys, narrow_run)
    wide = Recommender.load(narrow_run)
    assert wide.index.manifest.dimension == 16
    wanted = {one.item_id: one.score for one in wide.predict_next_actions(PROFILE, k=10_000)}
    said(capsys, narrow_run, "--width", 4)
    narrow = Recommender.load(narrow_run)
    assert narrow.index.manifest.dimension == 4
    found = narrow.predict_next_actions(PROFILE, k=10_000)
    assert {one.item_id: one.score for one in found} == pytest.approx(wanted, abs=2e-4)
    # The items of a file, and an index of their own.
    said(capsys, narrow_run, "--items", items, "--width", 4)
    assert Recommender.load(narrow_run).index.manifest.dimension == 4
    out = tmp_path / "out"
    said(capsys, narrow_run, "--items", items, "--out", out, "--width", 4)
    assert ItemIndex.load(out / "index").manifest.dimension == 4
    # Shards of another width are other shards.
    said(capsys, narrow_run, "--items", items, "--out", out)
    assert ItemIndex.load(out / "index").manifest.dimension == 16


def test_an_index_that_is_made_again_is_as_it_was_asked_for(
    capsys: Any, narrow_run: Path, items: Path
) -> None:
    layout = RunLayout(narrow_run)
    said(capsys, narrow_run, "--width", 4)
    asked = ["--kind", "ivf", "--storage", "int8", "--target-recall", 0.9, "--width", 4]
    said(capsys, narrow_run, "--items", items, *asked)

    def is_kept() -> bool:
        there = Recommender.load(narrow_run).index.manifest
        assert (there.kind, there.storage, there.target_recall) == ("ivf", "int8", 0.9)
        assert there.dimension == IndexManifest.read(layout.index).dimension == 4
        return True

    assert is_kept()
    # Another model serves, as after a ladder.
    path = layout.model(layout.served())
    model = Foundation.from_pretrained(path)
    torch.nn.init.normal_(model.item_head.weight)
    model.save_pretrained(path)
    with pytest.raises(BadInput, match="decant index"):
        Recommender.load(narrow_run)
    index_if_stale(layout)
    assert is_kept()
    said(capsys, narrow_run)
    assert is_kept()
    # What is said counts, and one that the model does not have is let go.
    said(capsys, narrow_run, "--width", 16)
    assert Recommender.load(narrow_run).index.manifest.dimension == 16
    said(capsys, narrow_run, "--width", 4)
    model.settings = replace(model.settings, vector_widths=())
    model.save_pretrained(path)
    said(capsys, narrow_run)
    again = Recommender.load(narrow_run).index.manifest
    assert (again.kind, again.storage, again.dimension) == ("ivf", "int8", 16)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def command(*arguments: object) -> str:
        with pytest.raises(SystemExit) as leaving:
            main(["index", *map(str, arguments)])
        assert leaving.value.code == 2
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        return errors.rpartition("decant: error: ")[2]

    return command


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("place", "changes", "message"),
    [
        (20, {"item_id": "new-1"}, "{unit} {line}: item_id 'new-1' stands twice"),
        (20, {"item_id": "new-9"}, "{unit} {line}: item_id 'new-9' stands twice"),
        (13, {"item_id": None}, "{unit} {line}: item_id .* is missing"),
        (13, {"kind": "film"}, "{unit} {line}: kind 'film' is not one of the schema's"),
        (13, {"posted": 10**14}, "{unit} {line}: posted .* looks like milliseconds"),
    ],
    ids=["twice, far", "twice, near", "no id", "kind", "time"],
)
def test_an_item_that_does_not_fit_is_named_before_anything_is_embedded(
    refused: Callable[..., str],
    model: Path,
    jobs: Any,
    tmp_path: Path,
    suffix: str,
    place: int,
    changes: dict[str, Any],
    message: str,
) -> None:
    rows = [dict(row) for row in jobs]
    rows[place] |= changes
    path = write(rows, tmp_path / f"items{suffix}")
    unit = "row" if suffix == ".parquet" else "line"
    line = place + (2 if suffix == ".csv" else 1)
    error = refused(model, "--items", path, "--out", tmp_path / "out", "--shard-items", 8)
    assert re.search(f"items{suffix} " + message.format(unit=unit, line=line), error), error
    assert not (tmp_path / "out" / "vectors").exists()


@pytest.mark.parametrize("how", ["skip", "quarantine"])
def test_items_that_do_not_fit_may_be_set_aside(
    capsys: Any, model: Path, jobs: Any, tmp_path: Path, how: str
) -> None:
    rows = [dict(row) for row in jobs]
    for row in rows[8:16]:
        row["kind"] = "film"  # all of a shard
    rows[20]["item_id"] = rows[0]["item_id"]
    path = write(rows, tmp_path / "items.csv")
    out = tmp_path / "out"
    command = [model, "--items", path, "--out", out, "--shard-items", 8, "--on-bad-rows", how]
    assert f"indexed {len(rows) - 9} items" in said(capsys, *command)
    kept = [row["item_id"] for n, row in enumerate(rows) if not 8 <= n < 16 and n != 20]
    assert ItemIndex.load(out / "index").ids.tolist() == kept
    aside = tmp_path / "out-quarantine.jsonl"
    assert aside.exists() == (how == "quarantine")
    if how == "quarantine":
        lines = [json.loads(line) for line in aside.read_text().splitlines()]
        assert sorted(line["line"] for line in lines) == [*range(10, 18), 22]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("MODEL --items ITEMS", "is a model without a run; say with --out"),
        ("RUN --out OUT", "--out goes with --items FILE"),
        ("RUN --text-encoder OUT", "--text-encoder goes with --items FILE"),
        ("MODEL --items ITEMS --out OUT --text-encoder OUT", "without one; leave it out.\n"),
        ("RUN --kind nonsense", "--kind goes with --items FILE; give one, or leave --kind out"),
        ("RUN --storage int8", "--storage goes with --items FILE"),
        ("RUN --target-recall 1", "--target-recall goes with --items FILE"),
        ("RUN --shard-items 8", "--shard-items goes with --items FILE"),
        ("RUN --on-bad-rows skip", "--on-bad-rows goes with --items FILE"),
        ("MODEL --items NONE.csv --out OUT", "no such file"),
        ("MODEL --items ITEMS --out FULL", "holds other files than shards"),
        ("MODEL --items ITEMS --out OUT --shard-items 0", "--shard-items 0 must be from 1"),
        ("MODEL --items ITEMS --out OUT --target-recall 2", "target_recall"),
        ("MODEL --items ITEMS --out OUT --width 3", "width=3 is none that the model was trained"),
        ("RUN --width 3", "width=3 is none that the model was trained at"),
        ("MODEL --items ITEMS --out OUT --kind nonsense", "nonsense"),
        ("MODEL --items BAD.csv --out OUT", "lacks the column item_id"),
        ("MODEL --items EMPTY.csv --out OUT", "EMPTY.csv is empty"),
        ("MODEL --items HEADER.csv --out OUT", "HEADER.csv holds no rows that fit"),
        ("MODEL --items TORN.parquet --out OUT", "is not a whole Parquet file"),
        ("MODEL --items FILE.xml --out OUT", "must end in .csv"),
        ("NOWHERE --items ITEMS", "is not a folder"),
        ("EMPTY --items ITEMS", "is not a run folder"),
    ],
)
def test_what_the_command_cannot_use_is_said(
    refused: Callable[..., str],
    tiny_run: Path,
    model: Path,
    items: Path,
    tmp_path: Path,
    options: str,
    message: str,
) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "thesis.txt").write_text("mine")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BAD.csv").write_text("id,title\na,Nurse\n")
    (tmp_path / "EMPTY.csv").write_text("")
    (tmp_path / "HEADER.csv").write_text("item_id,kind,title\n")
    (tmp_path / "FILE.xml").write_text("<items/>")
    (tmp_path / "TORN.parquet").write_bytes(items.read_bytes()[:200])
    named = {"MODEL": model, "RUN": tiny_run, "ITEMS": items}
    arguments = [
        word
        if word.startswith("--") or word.isdigit() or word in ("nonsense", "int8", "skip")
        else named.get(word, tmp_path / word)
        for word in options.split()
    ]
    assert message in refused(*arguments)
    assert (tmp_path / "FULL" / "thesis.txt").read_text() == "mine"
