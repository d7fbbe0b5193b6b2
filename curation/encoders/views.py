"""Views of an image: the center that embeddings are made of, or a random crop and flip.

A random view is a function of the image, the settings and one number, so that it can be made again.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
ASPECTS = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class AugmentConfig:
    """Random resized crop and flip."""

    least_area: float = 0.5
    """Smallest share of the image's area in a crop. Captions describe the whole image, so this is
    far above the 0.08 of classifiers."""
    flip: bool = True
    """Mirror half of the views; turn it off for captions that say left and right."""

    def __post_init__(self) -> None:
        if not 0 < self.least_area <= 1:
            raise ValueError(
                f"augment.least_area is {self.least_area}: must be in (0, 1]; 1 crops to the "
                "aspect alone"
            )


def random_view(image: Image.Image, side: int, config: AugmentConfig, draw: int) -> Image.Image:
    """A square view, `side` pixels wide; equal numbers in `draw` give equal views."""
    random = np.random.default_rng(draw)
    box = random_box(*image.size, config.least_area, random)
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=box)

    if config.flip and random.random() < 0.5:
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def random_box(width: int, height: int, least_area: float, random: np.random.Generator) -> Box:
    """A crop of random area and aspect inside the image; the center square when none fits."""
    for _ in range(TRIES):
        area = width * height * random.uniform(least_area, 1)

        # Uniform in the logarithm: 3:4 is as likely as 4:3
        aspect = math.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        box_width = math.sqrt(area * aspect)
        box_height = math.sqrt(area / aspect)

        if box_width <= width and box_height <= height:
            left = random.uniform(0, width - box_width)
            top = random.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return center_box(width, height)


def center_view(image: Image.Image, side: int) -> Image.Image:
    """The center square, resized to `side` pixels: what embeddings are made of."""
    return image.resize((side, side), Image.Resampling.BICUBIC, box=center_box(*image.size))


def center_box(width: int, height: int) -> Box:
    """The largest square in the middle."""
    short = min(width, height)
    left = (width - short) / 2
    top = (height - short) / 2
    return left, top, left + short, top + short


def draft_px(side: int, least_area: float) -> int:
    """Smallest side, in pixels, at which a JPEG may be decoded so that the smallest crop is never
    enlarged."""
    return math.ceil(side / math.sqrt(least_area))
