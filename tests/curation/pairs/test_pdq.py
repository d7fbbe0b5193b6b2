"""PDQ: what changes its bits and what does not."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from curation.pairs.pdq import NUM_HASHES, ORIENTATIONS, WINDOWS, pdq_hashes, turned

Draw = Callable[..., Image.Image]


def photo(seed: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    """Details at every scale, as a photograph has."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 128.0)
    for cells in (3, 6, 12, 24, 48):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        pixels += (
            np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float64)
            - 128
        ) * 0.45
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def bits_between(a: Image.Image, b: Image.Image) -> int:
    return int(np.bitwise_count(pdq_hashes(a) ^ pdq_hashes(b)).sum())


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda p: p.resize((200, 150), Image.Resampling.LANCZOS), 12),
        (lambda p: p.resize((224, 224), Image.Resampling.BICUBIC), 12),
        (lambda p: p.convert("L").convert("RGB"), 4),
        (lambda p: ImageEnhance.Contrast(ImageEnhance.Brightness(p).enhance(1.1)).enhance(1.1), 30),
    ],
)
def test_scaling_and_colors_change_few_bits(
    change: Callable[[Image.Image], Image.Image], most: int
) -> None:
    for seed in range(5):
        assert bits_between(photo(seed), change(photo(seed))) <= most


def test_other_pictures_differ_in_half_of_the_bits() -> None:
    distances = [bits_between(photo(seed), photo(seed + 100)) for seed in range(30)]
    assert 110 < np.mean(distances) < 146
    assert min(distances) > 84


def test_turned_hashes_are_those_of_turned_images() -> None:
    """All eight orientations, each once; the bits between the median and its negative may
    differ.
    """
    picture = photo(3)
    forms = [picture.transpose(Image.Transpose.TRANSPOSE), picture]
    forms = [flipped for form in forms for flipped in (form, ImageOps.mirror(form))]
    forms = [turned_form for form in forms for turned_form in (form, ImageOps.flip(form))]
    orientations = turned(pdq_hashes(picture))[0]

    nearest = []
    for form in forms:
        bits = np.bitwise_count(orientations ^ pdq_hashes(form)).sum(axis=1)
        assert bits.min() <= 12
        nearest.append(int(bits.argmin()))
    assert sorted(nearest) == list(range(ORIENTATIONS))


def test_turned_starts_upright() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (7, 32), dtype=np.uint8)
    np.testing.assert_array_equal(turned(hashes)[:, 0], hashes)


@pytest.mark.parametrize("number", range(1, NUM_HASHES))
def test_a_form_has_the_hash_of_the_altered_image(number: int) -> None:
    window = WINDOWS[number]
    for seed in range(3):
        picture = photo(seed, (640, 480))
        width, height = picture.size
        border = round(max(0.0, -window.left) * width), round(max(0.0, -window.top) * height)
        if any(border):
            altered = Image.new(
                "RGB", (width + 2 * border[0], height + 2 * border[1]), (int(window.fill),) * 3
            )
            altered.paste(picture, border)
        else:
            box = (
                window.left * width,
                window.top * height,
                window.right * width,
                window.bottom * height,
            )
            altered = picture.crop(tuple(round(side) for side in box))
        expected = pdq_hashes(picture, NUM_HASHES)[number]
        assert np.bitwise_count(expected ^ pdq_hashes(altered)[0]).sum() <= 24


def test_flat_images_have_no_hash() -> None:
    assert not pdq_hashes(Image.new("RGB", (50, 40), "gray"), 3).any()
    assert pdq_hashes(photo(0)).any()
    assert pdq_hashes(photo(0), 0).shape == (0, 32)
