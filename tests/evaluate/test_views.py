"""How images are cut: the published view to the pixel, by numbers that torchvision's transforms
give.
"""

import numpy as np
import pytest
from PIL import Image

from evaluate.config import ViewConfig
from evaluate.sets.kinds import Facts
from evaluate.views import View, ahead, choose_view, resize_crop

PUBLISHED = Facts("imagenet", published=True)
OWN = Facts("folders")


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((500, 375), (341, 256), (58, 16)),
        ((375, 500), (256, 341), (16, 58)),
        ((256, 256), (256, 256), (16, 16)),
    ],
)
def test_resize_crop_cuts_the_long_side_and_rounds_the_corner(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )
    left, top = corner
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop(
        (left, top, left + 224, top + 224)
    )
    np.testing.assert_array_equal(np.asarray(resize_crop(image, 256, 224)), np.asarray(expected))


def test_published_sets_are_cropped_and_others_are_squares() -> None:
    protocol = {"image_size": 336}
    assert choose_view(ViewConfig(), PUBLISHED, protocol) == View("resize-crop", 336, 384)
    assert choose_view(ViewConfig(), OWN, protocol) == View("square", 336)
    assert choose_view(ViewConfig(crop="square"), PUBLISHED, protocol) == View("square", 336)
    assert choose_view(ViewConfig(resize=400), PUBLISHED, protocol).describe() == (
        "resize-crop: short side to 400 px, bicubic, center crop 336 px"
    )
    with pytest.raises(ValueError, match=r"view\.resize is 300, but the model's image size is 336"):
        choose_view(ViewConfig(resize=300), PUBLISHED, protocol)


def test_images_of_an_encoder_without_a_side_are_left_as_they_are() -> None:
    image = Image.new("RGB", (30, 20))
    assert choose_view(ViewConfig(), PUBLISHED, {"image_size": "any"})(image) is image


def test_loading_ahead_keeps_the_order_and_raises_what_fails() -> None:
    assert list(ahead(lambda item: item * item, range(20), 3)) == [
        item * item for item in range(20)
    ]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda item: 1 // (item - 5), range(20), 3))
