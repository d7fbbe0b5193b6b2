"""Segmentation is perfect with an encoder that sees colours; constant maps score as the baselines
say.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from colors import (
    NAMES,
    BlindEncoder,
    ColorEncoder,
    picture,
    png,
    scene,
    segmentation_files,
    write_folder,
)
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from evaluate import segmentation
from evaluate.config import SegmentationConfig
from evaluate.parts import Parts
from evaluate.prompts import PLAIN
from evaluate.segmentation import Segmenter, scene_parts, segmentation_baselines
from evaluate.sets.kinds import SegmentationSet
from evaluate.sets.known import load_mask, open_segmentation

AS_IT_IS = SegmentationConfig(short_side=64, window=32, stride=16, background_prompts=("black",))
THRESHOLD = SegmentationConfig(64, 32, 16, background="threshold", background_cosine=0.9)


@pytest.fixture
def dataset(tmp_path: Path) -> SegmentationSet:
    return open_segmentation(write_folder(tmp_path, segmentation_files()))


def test_seeing_encoder_finds_every_cell(dataset: SegmentationSet) -> None:
    result = Segmenter(ColorEncoder(), dataset, PLAIN, AS_IT_IS, shown=[1]).segment()
    truth = load_mask(dataset, 1, (96, 64))
    inner = np.s_[
        4:12, 4:12
    ]  # bilinear upsampling of 8 px patches mixes the colours at the borders of 16 px cells
    assert list(result.maps) == [1]
    for top in range(0, 64, 16):
        for left in range(0, 96, 16):
            cell = np.s_[top : top + 16, left : left + 16]
            assert (result.maps[1][cell][inner] == truth[cell][inner]).all()
    assert result.tallies["miou"].value > 0.8


@pytest.mark.parametrize("config", [AS_IT_IS, THRESHOLD])
def test_seeing_encoder_scores_exactly_one_on_uniform_scenes(
    tmp_path: Path, config: SegmentationConfig
) -> None:
    files = {"labels.json": json.dumps(["background", *NAMES[1:]]).encode()}
    for label, color in enumerate(NAMES):
        mask = Image.fromarray(np.full((40, 56), label, np.uint8))
        files |= {f"images/{color}.png": picture(color, (56, 40)), f"masks/{color}.png": png(mask)}
    dataset = open_segmentation(write_folder(tmp_path, files))
    result = Segmenter(ColorEncoder(), dataset, PLAIN, config).segment()
    assert {name: tally.value for name, tally in result.tallies.items()} == {
        "miou": 1.0,
        "miou_objects": 1.0,
        "pixel_accuracy": 1.0,
        "mean_accuracy": 1.0,
        "boundary_f1": 0.0,  # uniform scenes have no boundary
    }


def test_parts_give_the_tallies_and_pictures_of_the_whole_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two names of a class, and classes that are alike in part: every kind of count is there.
    labels = ["background", ["red", "white"], *NAMES[2:]]
    dataset = open_segmentation(write_folder(tmp_path / "set", segmentation_files(7, labels)))
    alike = np.eye(len(labels)) * 0.75 + 0.25
    segmenter = Segmenter(
        ColorEncoder(), dataset, PLAIN, AS_IT_IS, alike, shown=list(range(0, 7, 2))
    )
    whole = segmenter.segment()

    monkeypatch.setattr(segmentation, "SCENES_PER_PART", 2)
    parts = Parts(tmp_path / "parts")
    first, _, *rest = scene_parts(7)
    for part in (first, *rest):
        parts.write(part, segmenter.compute(part))
    joined = segmenter.segment(parts=parts)

    assert joined.tallies.keys() == whole.tallies.keys() >= {"open_miou", "name_ap", "synonym_drop"}
    for metric, tally in joined.tallies.items():
        assert np.array_equal(tally.hits, whole.tallies[metric].hits)
        assert np.array_equal(tally.trials, whole.tallies[metric].trials)
    assert joined.maps.keys() == whole.maps.keys()
    assert all(np.array_equal(joined.maps[index], whole.maps[index]) for index in whole.maps)
    assert joined.heats.keys() == whole.heats.keys() == {0, 2, 4, 6}
    assert all(joined.heats[index][0] == whole.heats[index][0] for index in whole.heats)
    assert joined.chance_of_name == whole.chance_of_name


def test_blind_encoder_scores_as_a_constant_map(dataset: SegmentationSet) -> None:
    result = Segmenter(BlindEncoder(), dataset, PLAIN, AS_IT_IS, shown=[0]).segment()
    (label,) = np.unique(result.maps[0])
    pixels = result.pixels
    assert result.tallies["miou"].value == pytest.approx(
        pixels[label] / pixels.sum() / (pixels > 0).sum()
    )
    assert (
        result.tallies["miou"].value
        <= segmentation_baselines(pixels, 0)["best_single_class"]["miou"]
    )


class ConstantEncoder(BlindEncoder):
    """Sees one class everywhere."""

    def __init__(self, name: str) -> None:
        self._name = name

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        return torch.eye(3)[[0 if text == self._name else 1 for text in texts]]


@pytest.mark.parametrize("background", [None, 0, 3])
def test_baseline_is_the_best_constant_map_in_each_metric(
    tmp_path: Path, background: int | None
) -> None:
    truth = np.repeat([0, 1, 2], [900, 60, 40]).reshape(20, 50).astype(np.uint8)
    names = ["dog", "cat", "tree"]
    names.insert(background or 0, "lake" if background is None else "background")
    files = {
        "labels.json": json.dumps({"labels": names}).encode(),
        "images/a.png": picture("red", (50, 20)),
        "masks/a.png": png(Image.fromarray(truth)),
    }
    dataset = open_segmentation(write_folder(tmp_path, files))
    config = SegmentationConfig(16, 16, 16, background_prompts=("background",))
    results = [Segmenter(ConstantEncoder(name), dataset, PLAIN, config).segment() for name in names]
    scored = [
        {metric: tally.value for metric, tally in result.tallies.items()} for result in results
    ]
    baselines = segmentation_baselines(results[0].pixels, background)
    assert baselines["best_single_class"] == pytest.approx(
        {
            metric: max(scores[metric] for scores in scored)
            for metric in baselines["best_single_class"]
        }
    )
    if background is not None:
        assert baselines["all_background"] == pytest.approx(
            {metric: scored[background][metric] for metric in baselines["all_background"]}
        )


def test_set_of_ignored_pixels_only_is_an_error(tmp_path: Path) -> None:
    mask = png(Image.new("L", (96, 64), 255))
    files = segmentation_files(1, labels={"labels": [*NAMES], "ignore_index": 255}) | {
        "masks/scene-0.png": mask
    }
    dataset = open_segmentation(write_folder(tmp_path, files))
    with pytest.raises(ValueError, match="all have mask values that are ignored"):
        Segmenter(ColorEncoder(), dataset, PLAIN, AS_IT_IS).segment()


def test_threshold_above_every_cosine_gives_all_background(dataset: SegmentationSet) -> None:
    config = SegmentationConfig(64, 32, 16, background="threshold", background_cosine=2.0)
    result = Segmenter(ColorEncoder(), dataset, PLAIN, config).segment()
    assert result.tallies["miou"].value == pytest.approx(
        segmentation_baselines(result.pixels, 0)["all_background"]["miou"]
    )
    assert result.tallies["miou_objects"].value == 0


def test_ignored_pixels_change_no_metric(tmp_path: Path) -> None:
    labels = {"labels": ["void", *NAMES[1:]], "ignore_index": 0}
    dataset = open_segmentation(write_folder(tmp_path, segmentation_files(labels=labels)))
    result = Segmenter(ColorEncoder(), dataset, PLAIN, AS_IT_IS).segment()
    void = sum(int((np.asarray(scene(index)[1]) == 0).sum()) for index in range(3))
    assert len(dataset.labels) == len(NAMES) - 1
    assert result.pixels.sum() == 3 * 64 * 96 - void
    assert result.tallies["pixel_accuracy"].value > 0.85


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 100, "stride": 101}, r"segmentation\.stride is 101 .* lower the stride"),
        ({"stride": 0}, r"segmentation\.stride is 0: must be at least 1"),
        ({"window": 0, "stride": 0}, r"segmentation\.window is 0: must be at least 1"),
        ({"short_side": 0}, r"segmentation\.short_side is 0: must be at least 1"),
        ({"logit_scale": -1.0}, r"segmentation\.logit_scale is -1\.0: must be above 0"),
    ],
)
def test_sizes_that_segment_nothing_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationConfig(**wrong)
