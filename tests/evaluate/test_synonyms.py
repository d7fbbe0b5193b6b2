"""Points lost with synonyms: exact where names are exchanged, and the difference of two evaluations
with one name per class each; absent where no class has two names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colors import (
    NAMES,
    ColorEncoder,
    classification_files,
    classified,
    picture,
    png,
    segmentation_files,
    write_folder,
)
from PIL import Image

from evaluate.config import SegmentationConfig
from evaluate.prompts import PLAIN
from evaluate.segmentation import Segmenter
from evaluate.sets.kinds import ClassNames
from evaluate.sets.known import open_classification, open_segmentation
from evaluate.synonyms import first_and_last
from evaluate.tallies import read_tallies, write_result
from evaluate.tally import Tally, estimate

EXCHANGED = {"red": ["red", "green"], "green": ["green", "red"]}
"""Two classes of eight whose last names are each other's: both are always wrong then."""
SEVERAL: Mapping[str, Sequence[str]] = {
    "red": ["red", "red rose", "magenta"],
    "magenta": ["magenta", "yellow"],
    "yellow": ["yellow", "red"],
}
"""Three names in a circle: no two classes have one last name, so that no rounding decides a tie."""
CONFIG = SegmentationConfig(64, 32, 16, background_prompts=("black",))


def class_files(names: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    listing = {color: names.get(color, color) for color in NAMES}
    return classification_files() | {"classes.json": json.dumps(listing).encode()}


def labels(names: Mapping[str, Sequence[str]]) -> object:
    return {"labels": ["background", *(names.get(color, color) for color in NAMES[1:])]}


def uniform_scenes(names: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    files = {"labels.json": json.dumps(labels(names)).encode()}
    for label, color in enumerate(NAMES):
        mask = Image.fromarray(np.full((40, 56), label, np.uint8))
        files |= {f"images/{color}.png": picture(color, (56, 40)), f"masks/{color}.png": png(mask)}
    return files


def only(names: ClassNames, place: int) -> ClassNames:
    return tuple((each[place],) for each in names)


def test_places_of_the_first_and_the_last_names() -> None:
    assert first_and_last([0, 1, 1, 1, 2]) == ([0, 1, 4], [0, 3, 4])


def test_two_classes_of_eight_that_exchange_their_last_names_cost_a_quarter(
    tmp_path: Path,
) -> None:
    images = open_classification(write_folder(tmp_path / "classes", class_files(EXCHANGED)))
    drop = classified(ColorEncoder(), images, PLAIN, 3).tallies["synonym_drop"]
    assert drop.value == 0.25
    scenes = open_segmentation(write_folder(tmp_path / "scenes", uniform_scenes(EXCHANGED)))
    assert (
        Segmenter(ColorEncoder(), scenes, PLAIN, CONFIG).segment().tallies["synonym_drop"].value
        == 0.25
    )


def test_drop_of_classification_is_that_of_two_evaluations(tmp_path: Path) -> None:
    dataset = open_classification(write_folder(tmp_path, class_files(SEVERAL)))
    top1 = [
        classified(ColorEncoder(), replace(dataset, class_names=names), PLAIN, 5).tallies["top1"]
        for names in (only(dataset.class_names, 0), only(dataset.class_names, -1))
    ]
    drop = classified(ColorEncoder(), dataset, PLAIN, 5).tallies["synonym_drop"]
    assert drop.value == pytest.approx(top1[0].value - top1[1].value)
    assert drop.value != 0

    # The same resamples of both: the interval is that of the difference.
    drawn = np.random.default_rng(1).integers(0, 16, (200, 16), dtype=np.int32)
    values = [(top1[0].hits[rows] - top1[1].hits[rows]).mean() for rows in drawn]
    interval = estimate(drop, samples=200, seed=1)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, protocol="whole"),
        replace(CONFIG, background="threshold", background_cosine=0.9),
    ],
)
def test_drop_of_segmentation_is_that_of_two_evaluations(
    tmp_path: Path, config: SegmentationConfig
) -> None:
    dataset = open_segmentation(write_folder(tmp_path, segmentation_files(labels=labels(SEVERAL))))
    first, last = (
        Segmenter(ColorEncoder(), replace(dataset, labels=names), PLAIN, config)
        .segment()
        .tallies["miou"]
        .value
        for names in (only(dataset.labels, 0), only(dataset.labels, -1))
    )
    drop = Segmenter(ColorEncoder(), dataset, PLAIN, config).segment().tallies["synonym_drop"].value
    assert drop == pytest.approx(first - last)
    assert drop != 0


def test_without_synonyms_there_is_no_drop(tmp_path: Path) -> None:
    images = open_classification(write_folder(tmp_path / "classes", classification_files()))
    assert "synonym_drop" not in classified(ColorEncoder(), images, PLAIN, 3).tallies
    # The background has several prompts, which are no synonyms of a class.
    scenes = open_segmentation(write_folder(tmp_path / "scenes", segmentation_files()))
    config = replace(CONFIG, background_prompts=("black", "something black"))
    assert "synonym_drop" not in Segmenter(ColorEncoder(), scenes, PLAIN, config).segment().tallies


def test_kinds_of_tallies_are_the_same_when_read_again(tmp_path: Path) -> None:
    parts = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.ones((3, 2))
    tallies = {kind: Tally(*parts, statistic=kind) for kind in ("mean", "difference", "median")}
    write_result(tmp_path, {"set": "classification"}, tallies)  # type: ignore[typeddict-item]
    again = read_tallies(tmp_path, "classification")
    assert {name: tally.statistic for name, tally in again.items()} == {
        name: name for name in tallies
    }
    assert again["difference"].value == pytest.approx(1 / 3)
