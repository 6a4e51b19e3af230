import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from decant.layout import RunLayout
from decant.recipes import Recipe, demo, recipe_of
from decant.run_data import drop_rungs, load_book, load_model, reading
from foundation import Foundation
from promptify.validation import BadInput


def test_a_run_keeps_how_many_slates_it_holds_out(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    _, split = load_book(RunLayout(folder))
    assert split.name == "leave_one_out"
    path = folder / "data" / "source.json"
    source = json.loads(path.read_text())
    assert source["held_out_slates"] == 2
    path.write_text(json.dumps(source | {"held_out_slates": 4}))
    _, longer = load_book(RunLayout(folder))
    assert longer.name == "leave_last_4"
    assert len(longer.valid) > len(split.valid)
    assert np.unique(longer.valid.user, return_counts=True)[1].max() == 3
    assert longer.train.sum() < split.train.sum()
    path.write_text(json.dumps(source | {"held_out_slates": 4, "test_slates": 2}))
    _, more_tests = load_book(RunLayout(folder))
    assert np.unique(more_tests.test.user, return_counts=True)[1].max() == 2
    np.testing.assert_array_equal(more_tests.train, longer.train)
    path.write_text(json.dumps(source | {"held_out_slates": 4, "held_out_people": 5}))
    _, fewer = load_book(RunLayout(folder))
    assert len(np.unique(fewer.test.user)) == 5
    assert fewer.train.sum() > split.train.sum()
    path.write_text(json.dumps(source | {"held_out_people": "many"}))
    with pytest.raises(BadInput, match=r"source\.json is damaged"):
        load_book(RunLayout(folder))


def test_a_runs_recipe_says_where_the_text_encoder_lies(tmp_path, monkeypatch):
    def opened(name, **given):
        return load_model(tmp_path / name / "model", **given)

    told = staticmethod(lambda _, *, text_encoder: text_encoder)
    monkeypatch.setattr(Foundation, "from_pretrained", told)
    for name, encoder in (("foundation", {"path": "minilm"}), ("rung-1", None)):
        (tmp_path / name / "model").mkdir(parents=True)
        settings = json.dumps({"text_encoder": encoder})
        (tmp_path / name / "model" / "foundation.json").write_text(settings)
    assert opened("foundation") is None  # a model of no run
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"recipe": {"text_encoder": "/models/minilm"}}))
    assert opened("foundation") == Path("/models/minilm")
    assert opened("rung-1") is None
    assert opened("foundation", text_encoder=Path("here")) == Path("here")
    recipe.write_text('{"recipe": ')
    with pytest.raises(BadInput, match=r"recipe\.json is damaged"):
        opened("foundation")


def test_a_decoder_in_a_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("qwen").mkdir()
    for named in ("qwen", "./qwen/", tmp_path / "qwen"):
        recipe = demo().with_model(size=None, model=str(named))
        assert recipe.model == str(tmp_path / "qwen")
    assert demo().with_model(size=None, model="Qwen/Qwen3-0.6B").model == "Qwen/Qwen3-0.6B"


def test_a_recipe_comes_back_from_its_run(tiny_run, recipe, tmp_path):
    assert recipe_of(tiny_run) == recipe
    for one in (demo(), demo().with_held_out(10), demo().with_held_out(10, 50)):
        assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    with pytest.raises(BadInput, match="--held-out 1 must be 2 or more"):
        demo().with_held_out(1)
    with pytest.raises(BadInput, match="--held-out-people 0 must be 1 or more"):
        demo().with_held_out(None, 0)
    with pytest.raises(BadInput, match="is not a run folder"):
        recipe_of(tmp_path)
    for seed in (-1, 2**32):
        with pytest.raises(BadInput, match=f"seed={seed} must be a whole number from 0 to"):
            demo().with_seed(seed)
    newer = demo().to_dict()
    newer["fit"]["colour"] = newer["hue"] = "blue"
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": newer}))
    with pytest.raises(BadInput, match=r"newer version of decant: this one knows no fit\.colour"):
        recipe_of(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": {"name": "x", "rung": {}}}')
    with pytest.raises(BadInput, match="is damaged"):
        recipe_of(tmp_path)


def test_rungs_are_in_order_of_their_numbers(tmp_path):
    for name in ("foundation", "rung-1", "rung-2", "rung-10", "rung-x"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "recipe.json").touch()
    layout = RunLayout(tmp_path)
    assert layout.models() == ["foundation", "rung-1", "rung-2", "rung-10"]
    assert layout.served() == "rung-10"
    for name, accepted in (("rung-2", True), ("rung-10", False)):
        (tmp_path / name / "rung.json").write_text(json.dumps({"accepted": accepted}))
    assert layout.served() == "rung-2"


def test_a_rung_that_was_cut_is_named(tmp_path):
    for name in ("foundation", "rung-1"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "recipe.json").touch()
    for cut in ('{"name": ', "[]", "{}"):
        (tmp_path / "rung-1" / "rung.json").write_text(cut)
        with pytest.raises(BadInput, match=r"rung-1.rung\.json is damaged"):
            RunLayout(tmp_path).served()


@pytest.mark.parametrize("is_linked", [False, True])
def test_killed_while_a_rung_is_removed_it_never_serves(tmp_path, monkeypatch, is_linked):
    run = tmp_path / "run"
    for name in ("foundation", "rung-1"):
        (run / name / "model").mkdir(parents=True)
    (run / "recipe.json").touch()
    made_of = {"ladder": {}, "above": "another", "top": "another"}
    (run / "rung-1" / "stage.json").write_text(json.dumps({"inputs": made_of}))
    (run / "rung-1" / "rung.json").write_text(json.dumps({"accepted": False}))
    if is_linked:
        (run / "rung-1").rename(tmp_path / "elsewhere")
        (run / "rung-1").symlink_to(tmp_path / "elsewhere")

    def killed(folder, **_):
        (Path(folder) / "rung.json").unlink()
        raise KeyboardInterrupt

    layout = RunLayout(run)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        if is_linked:
            drop_rungs(layout, but=["foundation"])
            assert (tmp_path / "elsewhere" / "rung.json").exists()
        else:
            with pytest.raises(KeyboardInterrupt):
                drop_rungs(layout, but=["foundation"])
    assert layout.models() == ["foundation"]
    assert layout.served() == "foundation"
    drop_rungs(layout, but=["foundation"])
    assert sorted(path.name for path in run.iterdir()) == ["foundation", "recipe.json"]


def test_what_this_user_may_not_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "source.json"
    with (
        pytest.raises(BadInput, match=r"source\.json may not be read by this user; have its owner"),
        reading(path),
    ):
        raise PermissionError(13, "Permission denied", str(path))
