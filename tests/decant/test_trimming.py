"""`decant trim`: a run of its own that says the same with fewer tokens."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decant import Recommender, trimming
from decant.cli import main
from decant.layout import RunLayout
from decant.run_data import load_book, load_model
from foundation.checkpoint import weights_hash
from promptify.validation import BadInput
from retrieval import ItemIndex


def test_a_trimmed_run_predicts_the_same(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    not_synced: Callable[[Path], list[str]],
) -> None:
    out = tmp_path / "small"
    coming = tmp_path / "queries.txt"
    coming.write_text("zymurgy\nquokkas\n", encoding="utf-8")
    main(["trim", str(tiny_run), "--out", str(out), "--texts", str(coming)])
    assert not_synced(out) == []
    told = json.loads((out / trimming.TRIMMED).read_text("utf-8"))
    assert told["tokens"] <= told["tokens_before"]
    assert told["largest_difference"] < 1e-5
    assert f"→ {told['tokens']:,}" in capsys.readouterr().out
    before, after = Recommender.load(tiny_run), Recommender.load(out)
    book, split = load_book(RunLayout(tiny_run))
    for user in split.test.user[:3]:
        name = book.interactions.user_ids[user]
        there = before.predict_user(name, task="jobs", k=5)
        here = after.predict_user(name, task="jobs", k=5)
        assert [one.item_id for one in here] == [one.item_id for one in there]
        assert [one.probabilities for one in here] == [
            pytest.approx(one.probabilities, abs=1e-5) for one in there
        ]


def test_a_trimmed_run_has_an_index_of_the_same_kind(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    layout = RunLayout(run)
    path = layout.model(layout.served())
    model = load_model(path)
    model.settings = replace(model.settings, vector_widths=(4,))
    model.save_pretrained(path)
    asked = {"kind": "ivf", "storage": "int8", "target_recall": 0.9}
    vectors, ids = model.embed_items(width=4), list(model.item_ids)
    ItemIndex.build(vectors, ids, model_hash=weights_hash(path), **asked).save(layout.index)
    trimming.trim(run, tmp_path / "small")
    there = Recommender.load(tmp_path / "small").index.manifest
    assert {name: getattr(there, name) for name in asked} == asked
    assert there.dimension == 4


def test_what_stands_there_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(BadInput, match="holds something"):
        trimming.trim(tiny_run, tmp_path)
    with pytest.raises(BadInput, match="no finished model 'rung-9'"):
        trimming.trim(tiny_run, tmp_path / "new", model="rung-9")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_that_is_trimmed_to_the_same_folder_takes_nothing_from_it(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, indexed = tmp_path / "small", []
    plain = trimming.index_catalogue

    def index(*given, **options):
        indexed.append(given)
        if len(indexed) == 2:
            raise KeyboardInterrupt
        plain(*given, **options)
        if len(indexed) == 1:
            with pytest.raises(KeyboardInterrupt):
                trimming.trim(tiny_run, out)

    monkeypatch.setattr(trimming, "index_catalogue", index)
    trimming.trim(tiny_run, out)
    assert (out / "index" / "items").exists()
    assert len(Recommender.load(out).predict_user("member-00001", k=3)) == 3

    def taken(*_given, **_options):
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "mine").write_text("x")

    monkeypatch.setattr(trimming, "index_catalogue", taken)
    with pytest.raises(BadInput, match="holds something"):
        trimming.trim(tiny_run, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "taken"]


def test_another_score_stops_it(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trim = trimming.trim_vocabulary

    def changed(*given, **options):
        small = trim(*given, **options)
        embedding = small.decoder.get_input_embeddings().weight
        embedding.data = embedding.data[np.random.default_rng(0).permutation(len(embedding))]
        return small

    monkeypatch.setattr(trimming, "trim_vocabulary", changed)
    with pytest.raises(ArithmeticError, match="nothing was written"):
        trimming.trim(tiny_run, tmp_path / "new")
    assert not (tmp_path / "new").exists()
