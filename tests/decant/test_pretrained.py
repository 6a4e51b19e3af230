"""What a recipe names as its pretrained decoder, and is none that a run may start from."""

from dataclasses import replace
from pathlib import Path

import pytest

from decant.layout import FOUNDATION, RunLayout
from decant.pretrained import check_model
from decant.recipes import Recipe
from decant.run_data import load_model
from distill.exports import export_causal
from foundation.checkpoint import load_decoder
from promptify.validation import BadInput


def test_an_export_of_a_run_is_no_pretrained_decoder(
    tiny_run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    export = tmp_path / "stock"
    export_causal(load_model(RunLayout(tiny_run).model(FOUNDATION)), export)
    of_export = replace(recipe, size=None, model=str(export))
    with pytest.raises(BadInput, match=r"stock is a run's model .*export.json.*--continue RUN"):
        check_model(of_export, tmp_path / "made")
    own = RunLayout(tiny_run).model(FOUNDATION)
    with pytest.raises(BadInput, match=r"is a run's model .*foundation.json.*--continue RUN"):
        check_model(replace(of_export, model=str(own)), tmp_path / "made")
    # A finished stage needs none, and whoever loads it in Python may.
    check_model(of_export, tiny_run / FOUNDATION)
    assert load_decoder(export).config.model_type == "qwen3"
