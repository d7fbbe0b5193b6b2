"""Measured rates and the arithmetic of storing against seeing again."""

from dataclasses import replace
from pathlib import Path

import pytest

from curation.config import EmbedConfig
from curation.encoders.config import BackboneConfig
from pipeline.measure import Rates, measure, verdict

RATES = Rates(row_bytes=1000, write=100.0, read_disk=50.0, read_memory=900.0, backbone=10.0)


def test_storing_pays_once_the_writing_is_earned_by_reading() -> None:
    epochs = RATES.break_even_epochs
    assert 1 / RATES.write + epochs / RATES.read_disk == pytest.approx(epochs / RATES.backbone)
    assert "5 times faster; storing pays after 10 / (100 - 20) = 0.125 epochs" in verdict(RATES)


def test_storing_never_pays_where_the_backbone_outruns_the_disk() -> None:
    assert replace(RATES, backbone=60.0).break_even_epochs == float("inf")
    assert "--train.live.enabled" in verdict(replace(RATES, backbone=60.0))


def test_rates_are_measured_with_the_recipes_records(tmp_path: Path) -> None:
    config = EmbedConfig(
        backbone=BackboneConfig("random-vit", image_size=56), content="grid", grid=2, dtype="int8"
    )
    rates = measure(config, tmp_path)
    assert rates.row_bytes >= (1 + 4 + 4) * (32 + 4)
    assert min(rates.write, rates.read_disk, rates.read_memory, rates.backbone) > 0
