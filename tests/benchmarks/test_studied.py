from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import studied as studying
from foundation import FitConfig, Foundation


def test_what_is_trained_like_a_run_is_chosen_by_validation_as_the_run_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = studying.smoke(tmp_path)
    fit = replace(run.recipe.fit, evaluate_steps=3, patience=2)
    run = replace(run, recipe=replace(run.recipe, fit=fit))
    seen: dict[str, Any] = {}

    def watched(model: Foundation, *_: Any, config: FitConfig, validate: Any, **__: Any) -> None:
        seen.update(config=config, found=validate())

    monkeypatch.setattr(Foundation, "fit", watched)
    studying.train_like(run, run.data, run.split, scratch=tmp_path / "like")
    assert (seen["config"].evaluate_steps, seen["config"].patience) == (3, 2)
    assert 0 <= seen["found"]["ndcg@10"] <= 1
