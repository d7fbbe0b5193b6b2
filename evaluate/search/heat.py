"""Cosines of patches as pictures: how well words fit each place, and which of several names fits
best.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

HEAT = (255, 60, 0)
MOST_OPAQUE = 0.78
LOWEST_SHOWN = 0.5  # quantile of an image's cosines from which on pixels are colored
LABEL_OPAQUE = 0.62
PALETTE = (
    (230, 75, 53),
    (77, 187, 213),
    (0, 160, 135),
    (243, 195, 0),
    (60, 84, 136),
    (243, 155, 127),
    (145, 70, 168),
    (126, 97, 72),
    (145, 209, 94),
    (220, 0, 90),
    (110, 118, 130),
    (0, 92, 230),
)


def cosine_maps(
    patches: Float[Tensor, "h w p"], texts: Float[Tensor, "n p"], size: tuple[int, int]
) -> Float[Tensor, "n height width"]:
    """Cosine of each pixel's patch with each text, bilinear between patches; `size` is height and
    width.
    """
    cosines = torch.einsum("hwp,np->nhw", patches.float(), texts.float())
    return F.interpolate(cosines[None], size=size, mode="bilinear", align_corners=False)[0]


def heat_picture(cosines: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA: one color, more opaque where the words fit better.

    Relative to the image: from its median cosine (transparent) to its largest one. A patch's cosine
    means little alone, because models differ in how they spread.
    """
    # Below the median, strength is clipped to 0: half of the picture stays as it is.
    values = cosines.numpy()
    low = np.quantile(values, LOWEST_SHOWN)
    spread = max(float(values.max() - low), 1e-6)
    strength = np.clip((values - low) / spread, 0, 1)

    picture = np.empty((*values.shape, 4), np.uint8)
    picture[..., :3] = HEAT
    picture[..., 3] = np.round(255 * MOST_OPAQUE * strength)
    return picture


def label_picture(labels: Int64[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA: the color of each pixel's label."""
    colors = np.array([color_of(label) for label in range(int(labels.max()) + 1)], np.uint8)
    alpha = np.full((*labels.shape, 1), round(255 * LABEL_OPAQUE), np.uint8)
    return np.concatenate([colors[labels], alpha], axis=-1)


def color_of(label: int) -> tuple[int, int, int]:
    """A color per label; they repeat after twelve."""
    return PALETTE[label % len(PALETTE)]


def shares(labels: Int64[np.ndarray, "h w"], names: Sequence[str]) -> dict[str, float]:
    """Share of the pixels that each name has."""
    counts = np.bincount(labels.ravel(), minlength=len(names))
    return {name: float(count / labels.size) for name, count in zip(names, counts, strict=True)}


def as_png(picture: UInt8[np.ndarray, "h w 4"]) -> bytes:
    """An RGBA picture as a PNG file."""
    # The fastest compression: a picture is made per request, and is small.
    buffer = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
