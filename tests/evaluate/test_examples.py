"""Which items are shown, and how label maps are painted."""

import numpy as np
import pytest
from PIL import Image

from evaluate.examples import evenly_spaced, overlay, palette


@pytest.mark.parametrize(("items", "wanted"), [(0, 5), (1, 5), (5, 5), (100, 8), (7, 1)])
def test_evenly_spaced_gives_distinct_indices_in_range(items: int, wanted: int) -> None:
    chosen = evenly_spaced(items, wanted)
    assert len(chosen) == len(set(chosen)) == min(items, wanted)
    assert all(0 <= index < items for index in chosen)


def test_palette_colours_are_distinct_and_the_background_is_light() -> None:
    colors = palette(150, background=0)
    assert len({tuple(color) for color in colors.tolist()}) == 150
    assert colors[0].min() > 200


def test_overlay_shows_the_colour_of_the_class_and_black_where_ignored() -> None:
    image, colors = Image.new("RGB", (4, 2), "white"), palette(3, None)
    labels = np.array([[0, 1, 2, 2], [0, 1, 2, 2]], np.int32)
    painted = np.asarray(overlay(image, labels, colors, ignore=2)).astype(int)
    assert np.abs(painted[0, 0] - (0.7 * colors[0] + 0.3 * 255)).max() <= 1
    assert painted[0, 2].max() < painted[0, 0].max()
    assert (painted[0, 2] == painted[1, 3]).all()
