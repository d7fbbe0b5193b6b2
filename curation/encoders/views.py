"""Views of an image: its center square, which is what is embedded, or a random crop and flip.

A random view is a function of the image, the settings and one number, so it can be repeated.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from PIL import Image

from cluster.ranges import check_ranges

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
ASPECTS = (3 / 4, 4 / 3)  # width by height
TRIES = 10  # until a crop fits inside the image, as in torchvision


@dataclass(frozen=True)
class AugmentConfig:
    """Random resized crop and flip."""

    least_area: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Smallest share of the image's area in a crop. Captions describe the whole image, so it is far
    above the usual 0.08 of classifiers."""
    flip: bool = True
    """Mirror half of the views. Turn it off if captions say left and right."""

    def __post_init__(self) -> None:
        check_ranges(self, "augment")


def random_view(image: Image.Image, side: int, config: AugmentConfig, draw: int) -> Image.Image:
    """A square view, `side` pixels wide; the same `draw` gives the same view."""
    random = np.random.default_rng(draw)
    box = random_box(*image.size, config.least_area, random)
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=box)

    if config.flip and random.random() < 0.5:
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def random_box(width: int, height: int, least_area: float, random: np.random.Generator) -> Box:
    """A crop of random area and aspect inside the image; the center square if none fits."""
    for _ in range(TRIES):
        area = width * height * random.uniform(least_area, 1)

        # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
        aspect = math.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        box_width = math.sqrt(area * aspect)
        box_height = math.sqrt(area / aspect)

        if box_width <= width and box_height <= height:
            left = random.uniform(0, width - box_width)
            top = random.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return center_box(width, height)


def center_view(image: Image.Image, side: int) -> Image.Image:
    """The center square, resized to `side` pixels: the view that is embedded."""
    return image.resize((side, side), Image.Resampling.BICUBIC, box=center_box(*image.size))


def center_box(width: int, height: int) -> Box:
    """The largest square in the middle."""
    short = min(width, height)
    left = (width - short) / 2
    top = (height - short) / 2
    return left, top, left + short, top + short


def draft_px(side: int, least_area: float) -> int:
    """Smallest side, in pixels, at which a JPEG may be decoded so that no crop is enlarged.

    A crop with the share `least_area` of a square image has sides shorter by the root of the share.
    """
    return math.ceil(side / math.sqrt(least_area))
