"""PDQ, a 256-bit hash of what a picture looks like: of an image, and of its common altered forms.

As published (Davis and Rosen 2019, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
Algorithm"), the image is reduced to 64 x 64 gray values. Of their cosine transform, the 16 x 16
lowest frequencies without the constant have one bit each: whether it is above the median. The
reduction is Pillow's triangle filter, so on average 13 of 256 bits differ from Meta's program.

Two pictures that have nothing in common differ in 128 bits on average. Scaling, compression, loss
of color and brightness change at most 30; a crop or a border changes nearly as many as another
picture. So the crops and borders of an image are hashed, too. Their frequencies are products of the
image's 64 x 64 gray values with fixed matrices, and cost a tenth of a millisecond.
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

# Sum of the steps between neighboring gray values, with white at 1. Below it, the bits are noise.
# It corresponds to a quality of 50 in Meta's program.
LEAST_GRADIENT = 45.0

CENTER_CROPS = (0.05, 0.10, 0.15, 0.20, 0.25)
CORNER_CROPS = (0.10, 0.20)
BORDERS = (0.03, 0.06, 0.10)
BLACK = 0.0
WHITE = 255.0


class Window(NamedTuple):
    """The part of an image that a form shows, as shares of the image's sides.

    Below 0 and above 1, the form shows a border with the gray value `fill`.
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
    """The hash of an image, then those of its first forms, `num_hashes` in all.

    `num_hashes` is from 0 to NUM_HASHES. All hashes are zeros if the image is too flat to have a
    meaningful one.
    """
    if not num_hashes:
        return np.zeros((0, HASH_BYTES), np.uint8)

    small = image.convert("L").resize(
        (REDUCED_PX, REDUCED_PX), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    gray = np.asarray(small, np.float64)
    if _is_flat(gray):
        return np.zeros((num_hashes, HASH_BYTES), np.uint8)

    # To cut a window, scale it to 64 x 64 and transform it is linear: one matrix from the left for
    # rows, and one from the right for columns.
    rows, columns, borders = (matrix[:num_hashes] for matrix in _matrices())
    frequencies = (rows @ gray @ columns + borders).round(ROUNDING).reshape(num_hashes, -1)

    # 256 bits as 32 bytes.
    return np.packbits(frequencies > np.median(frequencies, axis=1, keepdims=True), axis=1)


def _is_flat(gray: Float64[np.ndarray, "h w"]) -> bool:
    """Whether an image has too few edges, by PDQ's measure of quality: its bits would be noise."""
    steps = np.abs(np.diff(gray, axis=0)).sum() + np.abs(np.diff(gray, axis=1)).sum()
    return bool(steps / 255 < LEAST_GRADIENT)


@cache
def _matrices() -> tuple[
    Float64[np.ndarray, "hashes f px"],
    Float64[np.ndarray, "hashes px f"],
    Float64[np.ndarray, "hashes f f"],
]:
    """(left, right, border) per window: its frequencies are left @ gray @ right + border."""
    # Rows of the cosine transform (DCT-II) of 64 values, frequencies 1 to 16.
    positions = np.arange(REDUCED_PX) + 0.5
    cosines = np.cos(np.pi / REDUCED_PX * np.outer(np.arange(1, FREQUENCIES + 1), positions))

    rows = []
    columns = []
    borders = []

    for window in WINDOWS:
        down, is_row = _samples(window.top, window.bottom)
        across, is_column = _samples(window.left, window.right)
        # 1 at each pixel of the form that lies outside the image: the border has constant gray
        # values, so its frequencies do not depend on the image.
        outside = 1.0 - np.outer(is_row, is_column)
        rows.append(cosines @ down)
        columns.append((cosines @ across).T)
        borders.append(window.fill * cosines @ outside @ cosines.T)

    return np.stack(rows), np.stack(columns), np.stack(borders)


def _samples(
    low: float, high: float
) -> tuple[Float64[np.ndarray, "px px"], Bool[np.ndarray, " px"]]:
    """(weights, is_inside) of 64 even samples of [low, high] among 64 even values of [0, 1].

    A row of weights makes one sample of the values. Samples outside [0, 1] have no weights.
    """
    at = low + (high - low) * (np.arange(REDUCED_PX) + 0.5) / REDUCED_PX
    values_at = (np.arange(REDUCED_PX) + 0.5) / REDUCED_PX

    # Linear interpolation: the weight falls from 1 at a value to 0 at its neighbors. At an edge one
    # of the two values is missing, so weights are scaled to sum to 1.
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - values_at) * REDUCED_PX)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)

    is_inside = (at >= 0) & (at <= 1)

    return weights * is_inside[:, None], is_inside


def turned(hashes: UInt8[np.ndarray, "n bytes"]) -> UInt8[np.ndarray, "n orientations bytes"]:
    """The hashes of the same images in eight orientations: upright first, mirrored, turned.

    Mirroring changes the sign of every second frequency, and turning also exchanges the axes. In
    the hash, bits are therefore inverted and transposed. Compared with a hash of the turned pixels,
    only bits of frequencies between the median and its negative may differ.
    """
    upright = np.unpackbits(hashes, axis=1).reshape(-1, FREQUENCIES, FREQUENCIES)
    # Frequencies 1, 3, 5, ... are odd functions about the middle: a mirror changes their sign.
    is_odd = (np.arange(1, FREQUENCIES + 1) % 2).astype(np.uint8)
    forms = []

    for bits in (upright, upright.transpose(0, 2, 1)):
        for down in (0, 1):
            for across in (0, 1):
                # One mirror inverts a bit, two mirrors leave it as it is: exclusive or.
                inverted = (down * is_odd)[:, None] ^ (across * is_odd)
                forms.append(np.packbits((bits ^ inverted).reshape(-1, 8 * HASH_BYTES), axis=1))

    return np.stack(forms, axis=1)
