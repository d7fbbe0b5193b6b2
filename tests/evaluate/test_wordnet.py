"""Similarity of names in a WordNet of eleven senses, and Open-mIoU against loops over pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from colors import BlindEncoder, segmentation_files, write_folder

from evaluate.config import EvaluateConfig, SegmentationConfig
from evaluate.evaluate import Evaluator
from evaluate.metrics import constant_map_open_miou, intersections_and_unions, open_overlaps
from evaluate.results import result_file
from evaluate.sets.kinds import IGNORED
from evaluate.tally import Tally
from evaluate.wordnet import Nouns

INDEX = """\
  1 This line and the next are the license.
  2 Its lines begin with blanks.
entity n 1 1 ~ 1 0 00000001
animal n 1 2 @ ~ 1 0 00000002
dog n 2 2 @ ~ 2 1 00000003 00000007
cat n 1 1 @ 1 0 00000005
traffic_light n 1 1 @ 1 0 00000008
paris n 1 1 @i 1 0 00000009
red n 1 1 @ 1 0 00000010
blue n 1 1 @ 1 0 00000011
"""
DATA = """\
  1 This line is the license.
00000001 03 n 01 entity 0 002 ~ 00000002 n 0000 ~ 00000008 n 0000 | all there is
00000002 05 n 02 animal 0 beast 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | it lives @ 1
00000003 05 n 01 dog 0 002 @ 00000004 n 0000 #m 00000008 n 0000 | it barks
00000004 05 n 01 canine 0 001 @ 00000002 n 0000 | dogs and wolves
00000005 05 n 01 cat 0 001 @ 00000006 n 0000 | it purrs
00000006 05 n 0a feline 0 felid 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 00000002 n 0000 | ten words
00000007 18 n 01 dog 1 001 @ 00000001 n 0000 | a chap
00000008 06 n 01 traffic_light 0 001 @ 00000001 n 0000 | red or green
00000009 15 n 01 Paris 0 001 @i 00000001 n 0000 | a city
00000010 07 n 01 red 0 001 @ 00000001 n 0000 | as blood
00000011 07 n 01 blue 0 001 @ 00000001 n 0000 | as the sky
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "index.noun").write_text(INDEX)
    (tmp_path / "wordnet" / "data.noun").write_text(DATA)
    return tmp_path / "wordnet"


def test_similarity_is_one_over_one_plus_the_links_between_the_nearest_senses(folder: Path) -> None:
    names = (
        ("dog",),
        ("Cats",),
        ("traffic  light",),
        ("unicorn",),
        ("unicorn", "animal"),
        ("Paris",),
    )
    alike = Nouns(folder).similarities(names)
    links = {(0, 1): 4, (0, 2): 2, (1, 2): 4, (0, 4): 2, (1, 4): 2, (2, 4): 2}
    links |= {(0, 5): 2, (1, 5): 4, (2, 5): 2, (4, 5): 2}
    expected = np.eye(6)
    for (row, column), count in links.items():
        expected[row, column] = expected[column, row] = 1 / (1 + count)
    np.testing.assert_array_equal(alike, expected)


def test_a_folder_without_the_nouns_is_named(folder: Path) -> None:
    (folder / "data.noun").unlink()
    with pytest.raises(
        ValueError, match=r"wordnet is .*/wordnet, which has no data.noun: the folder"
    ):
        Nouns(folder)


def test_open_overlaps_equal_a_loop_over_pixels() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, (8, 9)).astype(np.int32)
    truth[0] = IGNORED
    predicted = random.integers(0, 5, (8, 9)).astype(np.int32)
    alike = random.random((5, 5))
    np.fill_diagonal(alike, 1)

    overlap, union = np.zeros(5), np.zeros(5)
    for right, guess in zip(truth.ravel(), predicted.ravel(), strict=True):
        if right != IGNORED:
            overlap[right] += alike[right, guess]
            union[right] += 1
            union[guess] += 1 - alike[right, guess]
    np.testing.assert_allclose(open_overlaps(truth, predicted, alike), [overlap, union])

    plain = open_overlaps(truth, predicted, np.eye(5))
    np.testing.assert_array_equal(plain, intersections_and_unions(truth, predicted, 5))


def test_constant_map_open_miou_equals_scoring_that_map() -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 4, (9, 11)).astype(np.int32)
    alike = np.maximum(np.eye(6), random.random((6, 6)))
    pixels = np.bincount(truth.ravel(), minlength=6)
    for label in range(6):
        overlap, union = open_overlaps(truth, np.full_like(truth, label), alike)
        expected = Tally(overlap[None], union[None]).value
        assert constant_map_open_miou(pixels, label, alike) == pytest.approx(expected)


def test_evaluation_adds_open_miou_where_wordnet_is_named(tmp_path: Path, folder: Path) -> None:
    """A blind encoder calls everything by one name, to which red and blue are alike in part."""
    sets = {"segmentation": write_folder(tmp_path / "scenes", segmentation_files())}
    config = EvaluateConfig(segmentation=SegmentationConfig(64, 32, 16))
    for out, inputs in (("plain", sets), ("open", sets | {"wordnet": folder})):
        Evaluator(config, tmp_path / out, inputs, BlindEncoder).evaluate("segmentation")
    plain, more = (
        json.loads(result_file(tmp_path / out, "segmentation").read_text())
        for out in ("plain", "open")
    )
    added = more["metrics"].pop("open_miou")
    assert more["metrics"] == plain["metrics"]
    assert added["value"] > plain["metrics"]["miou"]["value"]
    assert "WordNet" in more["protocol"]["alike"]
