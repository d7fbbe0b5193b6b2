"""The window protocol against an independent slow version of the published one, pixel by pixel."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from colors import BlindEncoder
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from evaluate.config import SegmentationConfig
from evaluate.queries import Queries
from evaluate.segmentation import label_map, resize_short_side
from evaluate.windows import (
    _add_any_softmax,
    _add_small_softmax,
    sliding_argmax,
    starts,
    whole_argmax,
)

PATCH = 14


@pytest.mark.parametrize(
    ("full", "window", "stride"), [(10, 10, 5), (11, 4, 3), (12, 4, 4), (100, 30, 7), (5, 8, 4)]
)
def test_starts_cover_every_pixel_and_end_at_the_border(
    full: int, window: int, stride: int
) -> None:
    begins = starts(full, window, stride)
    covered = {pixel for begin in begins for pixel in range(begin, min(full, begin + window))}
    assert covered == set(range(full))
    assert begins[-1] == max(0, full - window)
    # As the published code counts them.
    assert len(begins) == max(full - window + stride - 1, 0) // stride + 1


class PixelEncoder(BlindEncoder):
    """Patches are random linear maps of their pixels; images are stretched up to whole patches."""

    def __init__(self) -> None:
        self.map = torch.randn(3 * PATCH * PATCH, 6, generator=torch.Generator().manual_seed(0))

    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        return torch.cat([self.one(pixels(image)) for image in images])

    def one(self, image: Tensor) -> Tensor:
        height, width = (-(-side // PATCH) * PATCH for side in image.shape[1:])
        image = interpolate(image[None], size=(height, width), mode="bicubic", align_corners=False)[
            0
        ]
        tiles = (
            image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(2)
        )
        return normalize(tiles @ self.map, dim=-1)[None]


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, np.float32) / 255 - 0.5).permute(2, 0, 1)


def published_map(
    encoder: PixelEncoder,
    image: Image.Image,
    texts: Tensor,
    side: int,
    stride: int,
    size: tuple[int, int],
) -> np.ndarray:
    """As DINOv3's notebook says: all classes at full resolution, window by window."""
    normalized = pixels(image)
    _, height, width = normalized.shape
    probabilities = torch.zeros(len(texts), height, width)
    counts = torch.zeros(height, width)
    for i in range(max(height - side + stride - 1, 0) // stride + 1):
        for j in range(max(width - side + stride - 1, 0) // stride + 1):
            bottom = min(i * stride + side, height)
            right = min(j * stride + side, width)
            top = max(bottom - side, 0)
            left = max(right - side, 0)
            cosines = torch.einsum(
                "cd,hwd->chw", texts, encoder.one(normalized[:, top:bottom, left:right])[0]
            )
            up = interpolate(
                cosines[None],
                size=(bottom - top, right - left),
                mode="bilinear",
                align_corners=False,
            )[0]
            probabilities[:, top:bottom, left:right] += up.softmax(0)
            counts[top:bottom, left:right] += 1
    mean = probabilities / counts
    return (
        interpolate(mean[None], size=size, mode="bilinear", align_corners=False)[0]
        .argmax(0)
        .numpy()
    )


@pytest.mark.parametrize("size", [(150, 97), (97, 150), (64, 64), (40, 130)])
def test_label_map_is_the_published_one_pixel_by_pixel(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    encoder = PixelEncoder()
    texts = normalize(torch.randn(7, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    queries = Queries(texts, np.arange(7), None, 0)

    config = SegmentationConfig(short_side=80, window=60, stride=30)
    predicted = label_map(encoder, image, queries, config)
    expected = published_map(
        encoder, resize_short_side(image, 80), texts, 60, 30, (size[1], size[0])
    )
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(predicted, expected)


def test_whole_image_equals_interpolating_every_class() -> None:
    cosines = torch.rand(5, 9, 11, generator=torch.Generator().manual_seed(0))
    expected = interpolate(
        cosines.permute(2, 0, 1)[None], size=(33, 70), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_array_equal(whole_argmax(cosines, (33, 70)), expected.argmax(0).numpy())


def test_polynomial_soft_max_is_the_soft_max_to_single_precision() -> None:
    """Of values from -1 to 1, rows mixed of two, added to what is there, divided by the windows."""
    random = np.random.default_rng(0)
    wide = random.uniform(-1, 1, (3, 5, 37)).astype(np.float32)
    first = np.array([0, 1, 1, 2], np.int32)
    following = np.array([1, 2, 2, 2], np.int32)
    share = random.random(4).astype(np.float32)
    seen = random.integers(1, 4, (6, 9)).astype(np.float32)
    means = [np.ones((6, 9, 37), np.float32) for _ in range(2)]
    for add, mean in zip((_add_small_softmax, _add_any_softmax), means, strict=True):
        add(wide, first, following, share, seen, mean, 1, 3)
    assert (means[1] == 1).sum() == 37 * (6 * 9 - 4 * 5)
    np.testing.assert_allclose(means[0], means[1], rtol=0, atol=2e-7)


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_winners_are_those_of_all_windows_in_full(scale: float) -> None:
    cosines = torch.rand(2, 2, 4, 4, 5, generator=torch.Generator().manual_seed(1)) - 0.5
    total, seen = torch.zeros(5, 40, 42), torch.zeros(40, 42)
    for row, top in enumerate((0, 10)):
        for column, left in enumerate((0, 12)):
            here = np.s_[..., top : top + 30, left : left + 30]
            grid = scale * cosines[row, column].permute(2, 0, 1)[None]
            total[here] += interpolate(grid, size=(30, 30), mode="bilinear")[0].softmax(0)
            seen[here] += 1
    expected = interpolate((total / seen)[None], size=(57, 23), mode="bilinear")[0].argmax(0)
    winners = sliding_argmax(cosines, ([0, 10], [0, 12]), (30, 30), (40, 42), (57, 23), scale)
    np.testing.assert_array_equal(winners, expected.numpy())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = torch.rand(2, 2, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    arguments = (([0, 10], [0, 12]), (30, 30), (40, 42), (57, 23), 1.0)
    whole = sliding_argmax(cosines, *arguments)
    monkeypatch.setattr("evaluate.windows.BLOCK_ELEMENTS", 500)
    np.testing.assert_array_equal(sliding_argmax(cosines, *arguments), whole)


@pytest.mark.parametrize(
    ("size", "resized"),
    [((100, 75), (682, 512)), ((75, 100), (512, 682)), ((512, 900), (512, 900))],
)
def test_short_side_is_resized_and_the_long_one_cut(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert resize_short_side(Image.new("RGB", size), 512).size == resized
