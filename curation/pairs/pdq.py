"""PDQ, a 256-bit hash of what a picture looks like: of an image, and of forms that it is often
altered to.

As published (Davis and Rosen 2019, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
Algorithm"): 64 x 64 gray values, the 16 x 16 lowest frequencies of their cosine transform without
the constant, one bit for each that is above the median. The reduction is Pillow's triangle filter,
so 13 of 256 bits differ on average from Meta's program.

Two pictures without anything in common differ in 128 bits. Scaling, compression, gray values and
brightness change at most 30; a crop or a border changes nearly as much as another picture. So the
crops and borders of an image are hashed, too: they are products of its 64 x 64 gray values with
fixed matrices, and cost a tenth of a millisecond.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

HASH_BYTES = 32
REDUCED_PX = 64
FREQUENCIES = 16
ORIENTATIONS = 8
ROUNDING = 6  # decimals: the frequencies of a flat or symmetric image are zeros, not noise
LEAST_GRADIENT = (
    45.0  # mean steps in gray values, times 64 px: below, the bits are noise (Meta's quality of 50)
)

CENTER_CROPS = (0.05, 0.10, 0.15, 0.20, 0.25)
CORNER_CROPS = (0.10, 0.20)
BORDERS = (0.03, 0.06, 0.10)
BLACK = 0.0
WHITE = 255.0


class Window(NamedTuple):
    """The part of an image that a form shows, as shares of its sides; beyond 0 and 1 it shows a
    border of `fill`.
    """

    top: float
    bottom: float
    left: float
    right: float
    fill: float = BLACK


def _windows() -> Iterator[Window]:
    """The image itself, then its forms."""
    yield Window(0.0, 1.0, 0.0, 1.0)

    for share in CENTER_CROPS:
        yield Window(share / 2, 1 - share / 2, share / 2, 1 - share / 2)

    for share in CORNER_CROPS:
        for top in (0.0, share):
            for left in (0.0, share):
                yield Window(top, 1 - share + top, left, 1 - share + left)

    for margin in BORDERS:
        for fill in (BLACK, WHITE):
            yield Window(-margin, 1 + margin, -margin, 1 + margin, fill)


WINDOWS = tuple(_windows())
NUM_HASHES = len(WINDOWS)
"""Hashes of an image with its forms."""


def pdq_hashes(image: Image.Image, num_hashes: int = 1) -> UInt8[np.ndarray, "hashes bytes"]:
    """The hash of an image, then those of its first forms; all zeros when the image is too flat to
    be told by one.

    `num_hashes` is at most NUM_HASHES.
    """
    if not num_hashes:
        return np.zeros((0, HASH_BYTES), np.uint8)

    small = image.convert("L").resize(
        (REDUCED_PX, REDUCED_PX), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    gray = np.asarray(small, np.float64)
    if _is_flat(gray):
        return np.zeros((num_hashes, HASH_BYTES), np.uint8)

    # Cutting a window, scaling it to 64 x 64 and the cosine transform are one product on either
    # side.
    rows, columns, borders = (matrix[:num_hashes] for matrix in _matrices())
    frequencies = (rows @ gray @ columns + borders).round(ROUNDING).reshape(num_hashes, -1)

    return np.packbits(frequencies > np.median(frequencies, axis=1, keepdims=True), axis=1)


def _is_flat(gray: Float64[np.ndarray, "h w"]) -> bool:
    """Whether an image has too few edges, as PDQ's quality says: noise would decide most bits."""
    steps = np.abs(np.diff(gray, axis=0)).sum() + np.abs(np.diff(gray, axis=1)).sum()
    return bool(steps / 255 < LEAST_GRADIENT)


@cache
def _matrices() -> tuple[
    Float64[np.ndarray, "hashes f px"],
    Float64[np.ndarray, "hashes px f"],
    Float64[np.ndarray, "hashes f f"],
]:
    """Per window: what gray values are multiplied with from the left and from the right, and what
    its border adds.
    """
    positions = np.arange(REDUCED_PX) + 0.5
    cosines = np.cos(np.pi / REDUCED_PX * np.outer(np.arange(1, FREQUENCIES + 1), positions))

    rows = []
    columns = []
    borders = []

    for window in WINDOWS:
        down, is_row = _samples(window.top, window.bottom)
        across, is_column = _samples(window.left, window.right)
        outside = 1.0 - np.outer(is_row, is_column)
        rows.append(cosines @ down)
        columns.append((cosines @ across).T)
        borders.append(window.fill * cosines @ outside @ cosines.T)

    return np.stack(rows), np.stack(columns), np.stack(borders)


def _samples(
    low: float, high: float
) -> tuple[Float64[np.ndarray, "px px"], Bool[np.ndarray, " px"]]:
    """64 even samples of [low, high] as weights of the 64 values of [0, 1], and which of them lie
    inside it.
    """
    at = low + (high - low) * (np.arange(REDUCED_PX) + 0.5) / REDUCED_PX
    values_at = (np.arange(REDUCED_PX) + 0.5) / REDUCED_PX

    # linear interpolation between the two nearest values; at an edge one of them is missing
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - values_at) * REDUCED_PX)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)

    is_inside = (at >= 0) & (at <= 1)

    return weights * is_inside[:, None], is_inside


def turned(hashes: UInt8[np.ndarray, "n bytes"]) -> UInt8[np.ndarray, "n orientations bytes"]:
    """The hashes of the same images mirrored and turned by quarters: upright first.

    Mirroring changes the sign of every second frequency and turning exchanges the axes, so that
    bits are inverted and transposed. Only bits of frequencies between the median and its negative
    may differ from those of a turned image.
    """
    upright = np.unpackbits(hashes, axis=1).reshape(-1, FREQUENCIES, FREQUENCIES)
    is_odd = (np.arange(1, FREQUENCIES + 1) % 2).astype(np.uint8)

    forms = []

    for bits in (upright, upright.transpose(0, 2, 1)):
        for down in (0, 1):
            for across in (0, 1):
                inverted = (down * is_odd)[:, None] ^ (across * is_odd)
                forms.append(np.packbits((bits ^ inverted).reshape(-1, 8 * HASH_BYTES), axis=1))

    return np.stack(forms, axis=1)
