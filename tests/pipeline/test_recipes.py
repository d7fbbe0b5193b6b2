"""Recipes refuse what they would otherwise overrule in silence."""

from dataclasses import replace

import pytest

from curation.encoders.config import BackboneConfig
from curation.pairs.config import SourceConfig
from pipeline.presets import PRESETS
from pipeline.recipes import DataConfig

DEBUG = PRESETS["debug"]


@pytest.mark.parametrize(
    "name", ["pairs", "classification", "retrieval", "segmentation", "similarity", "leakage"]
)
def test_recipes_that_make_their_pairs_take_none(name: str) -> None:
    data = DataConfig(**{name: "mine" if name == "pairs" else ("mine",)})
    with pytest.raises(
        ValueError, match=rf"data\.{name} is .*mine.*, but recipe debug makes its own pairs"
    ):
        replace(DEBUG, data=data)
    assert replace(DEBUG, emoji=None, data=data).data == data


@pytest.mark.parametrize(
    ("section", "name", "value", "place"),
    [
        ("evaluate", "backbone", BackboneConfig("efficientnet-lite0"), "embed.backbone"),
        ("evaluate", "open_clip", "ViT-B-32:openai", "others"),
        ("live", "source", SourceConfig(split="val"), "embed.source"),
        ("live", "precision", "float32", "embed.precision"),
        ("live", "weights", "w.pth", "embed.backbone.weights"),
    ],
)
def test_settings_that_a_recipe_takes_from_elsewhere_are_refused(
    section: str, name: str, value: object, place: str
) -> None:
    if section == "live":
        changes = {"train": replace(DEBUG.train, live=replace(DEBUG.train.live, **{name: value}))}
    else:
        changes = {section: replace(getattr(DEBUG, section), **{name: value})}
    with pytest.raises(ValueError, match=rf"{name} is .* leave it out and set {place}"):
        replace(DEBUG, **changes)


@pytest.mark.parametrize("name", ["team/x", "", "two words", "[/b]"])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name is .*: a recipe's name has letters"):
        replace(DEBUG, name=name)


def test_views_and_a_live_backbone_exclude_each_other() -> None:
    live = replace(DEBUG.train, live=replace(DEBUG.train.live, enabled=True))
    with pytest.raises(ValueError, match=r"views is 2 and train\.live\.enabled is set"):
        replace(DEBUG, train=live, views=2)
