"""Views of an image: the centre that embeddings are made of, or a random crop and flip as a function of a number."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
ASPECTS = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class AugmentConfig:
    """Random resized crop and flip."""

    least_area: float = 0.5
    """Smallest share of the image that a crop keeps; captions speak of the whole, so not the 0.08 of classifiers."""
    flip: bool = True
    """Mirror half of the views; turn it off for captions that say left and right."""

    def __post_init__(self) -> None:
        if not 0 < self.least_area <= 1:
            raise ValueError(f"augment.least_area is {self.least_area}: a share above 0 and up to 1; 1 crops least")


def random_view(image: Image.Image, side: int, config: AugmentConfig, draw: int) -> Image.Image:
    """A square view of so many pixels a side; the same for the same `draw`."""
    random = np.random.default_rng(draw)
    box = random_box(*image.size, config.least_area, random)
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if config.flip and random.random() < 0.5 else view


def random_box(width: int, height: int, least_area: float, random: np.random.Generator) -> Box:
    """A crop of random area and aspect inside the image; the centre square when none fits."""
    for _ in range(TRIES):
        area = width * height * random.uniform(least_area, 1)
        aspect = math.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            left, top = random.uniform(0, width - box_width), random.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return centre_box(width, height)


def centre_view(image: Image.Image, side: int) -> Image.Image:
    """The centre square, so many pixels a side: what embeddings are made of."""
    return image.resize((side, side), Image.Resampling.BICUBIC, box=centre_box(*image.size))


def centre_box(width: int, height: int) -> Box:
    """The largest square in the middle."""
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return left, top, left + short, top + short


def draft_px(side: int, least_area: float) -> int:
    """Sides below which a JPEG must not be decoded so that no crop is enlarged more than its file asks for."""
    return math.ceil(side / math.sqrt(least_area))
