from dataclasses import replace

import pytest

from decant import recipes
from decant.recipes import RungConfig
from foundation.sizes import SHAPES


@pytest.mark.parametrize("size", SHAPES)
def test_the_rung_of_every_size_is_smaller_than_its_foundation(size: str) -> None:
    layers, _, neurons, *_ = SHAPES[size]
    for recipe in (recipes.table(), replace(recipes.table(), rung=RungConfig())):
        rung = recipe.with_model(size=size, model=None).rung
        kept = (rung.num_layers or layers) * (rung.intermediate_size or neurons)
        assert kept < layers * neurons
        assert rung.fit == recipe.rung.fit


def test_a_rung_that_cuts_something_stays_as_it_is() -> None:
    fewer_neurons = RungConfig(num_layers=2, intermediate_size=64)
    recipe = replace(recipes.table(), rung=fewer_neurons)
    assert recipe.with_model(size="tiny", model=None).rung == fewer_neurons
    assert recipe.with_model(size=None, model="Qwen/Qwen3-0.6B").rung == fewer_neurons
    assert recipes.table().with_model(size="mini", model=None).rung == recipes.table().rung
