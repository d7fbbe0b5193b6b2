"""Recipes refuse what they would otherwise overrule in silence."""

from dataclasses import replace

import pytest

from pipeline.presets import PRESETS
from pipeline.recipes import DataConfig

DEBUG = PRESETS["debug"]


@pytest.mark.parametrize("name", ["pairs", "classification", "retrieval", "segmentation", "leakage"])
def test_recipes_that_make_their_pairs_take_none(name: str) -> None:
    data = DataConfig(**{name: "mine" if name == "pairs" else ("mine",)})
    with pytest.raises(ValueError, match=rf"data\.{name} is .*mine.*, but recipe debug makes its own pairs"):
        replace(DEBUG, data=data)
    assert replace(DEBUG, emoji=None, data=data).data == data
