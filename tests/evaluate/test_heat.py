"""Average precision of single names against a slow version; perfect and blind heat maps; names that
overlap.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from colors import NAMES, BlindEncoder, ColorEncoder, segmentation_files, write_folder
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from evaluate.config import SegmentationConfig
from evaluate.heat import LEVELS, average_precision, names_of
from evaluate.prompts import PLAIN
from evaluate.segmentation import Segmenter
from evaluate.sets.kinds import IGNORED
from evaluate.sets.known import open_segmentation
from evaluate.windows import sliding_mean

CONFIG = SegmentationConfig(64, 32, 16, background_prompts=("black",))
GROUPS = {"warm": ["red", "yellow"], "cold": ["blue", "cyan"]}
LABELS = {"labels": ["background", *NAMES[1:]], "groups": GROUPS}


def slow_average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """The definition: for each right item, the share of right ones among those as high or
    higher.
    """
    return float(np.mean([right[scores >= score].mean() for score in scores[right]]))


@pytest.mark.parametrize("distinct", [4, 10_000])
def test_average_precision_is_that_of_its_definition(distinct: int) -> None:
    random = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.99):
        steps = random.integers(0, distinct, 500) * (LEVELS // distinct)
        scores = (1 - (steps + 0.5) / (LEVELS / 2)).astype(np.float32)
        right = random.random(500) < share
        assert average_precision(scores, right) == pytest.approx(
            slow_average_precision(scores, right)
        )


def test_average_precision_of_the_example_and_of_the_ends_of_the_scale() -> None:
    right = np.array([True, False, True])
    assert average_precision(np.array([0.9, 0.8, 0.7], np.float32), right) == pytest.approx(5 / 6)
    ends = np.array([1.0000002, -1.0000002, 1.0], np.float32)
    assert average_precision(ends, right) == 1.0


def test_mean_over_windows_is_that_of_a_loop_over_pixels() -> None:
    begins = ([0, 4, 6], [0, 4])
    cosines = torch.rand(3, 2, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(3, 14, 12)
    seen = torch.zeros(14, 12)
    for row, top in enumerate(begins[0]):
        for column, left in enumerate(begins[1]):
            grid = cosines[row, column].permute(2, 0, 1)[None]
            up = interpolate(grid, size=(8, 8), mode="bilinear")[0]
            for y in range(8):
                for x in range(8):
                    total[:, top + y, left + x] += up[:, y, x]
                    seen[top + y, left + x] += 1
    expected = interpolate((total / seen)[None], size=(20, 30), mode="bilinear")[0]
    mean = sliding_mean(cosines, begins, (8, 8), (14, 12), (20, 30))
    np.testing.assert_allclose(mean, expected.numpy(), rtol=1e-5)


class GroupEncoder(ColorEncoder):
    """Knows that warm is what red and yellow have in common."""

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        known = {
            group: super(GroupEncoder, self).encode_text(members).mean(0)
            for group, members in GROUPS.items()
        }
        vectors = [
            known[text] if text in known else super(GroupEncoder, self).encode_text([text])[0]
            for text in texts
        ]
        return normalize(torch.stack(vectors), dim=-1)


def test_overlapping_names_are_all_right_for_an_encoder_that_sees(tmp_path: Path) -> None:
    """Yellow pixels are yellow and warm: mIoU could count only one of the two."""
    dataset = open_segmentation(write_folder(tmp_path, segmentation_files(labels=LABELS)))
    names = names_of(GroupEncoder(), dataset, PLAIN)
    assert names.shown == (*NAMES[1:], "warm", "cold")
    yellow, warm = names.shown.index("yellow"), names.shown.index("warm")
    truth = np.array([[NAMES.index("red"), NAMES.index("yellow"), IGNORED]], np.int32)
    assert names.where(yellow, truth).tolist() == [[False, True, False]]
    assert names.where(warm, truth).tolist() == [[True, True, False]]
    assert names.present(truth) == [NAMES.index("red") - 1, yellow]  # all that counts is warm

    tally = Segmenter(GroupEncoder(), dataset, PLAIN, CONFIG).segment().tallies["name_ap"]
    assert tally.per_column()[warm] > 0.85
    assert tally.value > 0.85


def test_map_without_heat_is_worth_the_share_of_the_name(tmp_path: Path) -> None:
    dataset = open_segmentation(write_folder(tmp_path, segmentation_files(labels=LABELS)))
    result = Segmenter(BlindEncoder(), dataset, PLAIN, CONFIG).segment()
    assert result.tallies["name_ap"].value == pytest.approx(result.chance_of_name)
    assert 0 < result.chance_of_name < 0.5


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"warm": ["red", "mauve"]}, "the group 'warm' names 'mauve', which is no label"),
        ({"warm": []}, "the group 'warm' names no label"),
        ({"17": ["red"]}, "'17' is a number"),
    ],
)
def test_groups_that_name_no_label_are_refused(
    tmp_path: Path, groups: dict[str, list[str]], message: str
) -> None:
    labels = {**LABELS, "groups": groups}
    folder = write_folder(tmp_path, segmentation_files(labels=labels))
    with pytest.raises(ValueError, match=message):
        open_segmentation(folder)
