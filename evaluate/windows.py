"""Class maps from the cosines of sliding windows, without scores of all classes at full resolution.

The published protocol up-samples the cosines of a window to its pixels, takes the soft-max over the
classes there, adds it up over the windows that see a pixel, divides by their number, up-samples
that to the output and takes the largest. Here the same is done for a block of output rows at a
time, classes last in memory, so that a block stays in the cache.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from numba import njit
from torch import Tensor
from torch.nn.functional import interpolate

from cluster.compilation import compiled

BLOCK_ELEMENTS = 1_600_000  # float32 mean scores in a block of output rows: 6.4 MB
LANES = 16  # float32 numbers in one vector register of 512 bits, or in two of 256
# Taylor's series of the exponential: from -1 to 1 its error is below 3e-9, less than float32's.
A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11 = (
    np.float32(1 / math.factorial(term)) for term in range(12)
)


def starts(full: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, and one that ends at the border.

    Example: windows of 4 with stride 3 on 11 positions begin at 0, 3, 6 and 7.
    """
    last = max(0, full - window)
    return [*range(0, last, stride), last]


def bilinear(source: int, target: int) -> Float[Tensor, "target source"]:
    """The matrix of torch's bilinear interpolation (align_corners=False) along one axis.

    Example: bilinear(2, 4) is [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]].
    """
    if source == target:
        return torch.eye(source)

    # Interpolated unit vectors are the columns of the matrix.
    return interpolate(torch.eye(source)[None], size=target, mode="linear", align_corners=False)[
        0
    ].T


def sliding_argmax(
    cosines: Float[Tensor, "tops lefts h w channels"],
    begins: tuple[Sequence[int], Sequence[int]],
    window: tuple[int, int],
    size: tuple[int, int],
    out: tuple[int, int],
    logit_scale: float,
) -> Int64[np.ndarray, "height width"]:
    """The channel that wins each pixel of an `out` map, as the module says.

    `begins` are the first rows and columns of the windows in an image of `size`, px; all pairs are
    (height, width). `logit_scale` multiplies the cosines before the soft-max.
    """
    tops, lefts = begins
    channels = cosines.shape[-1]

    # Two interpolations, each along rows and along columns: from the patches to the pixels of a
    # window, and, after the mean over windows, from the image to the `out` map.
    first_rows, row_shares = _two_taps(cosines.shape[2], window[0])
    next_rows = np.minimum(first_rows + 1, cosines.shape[2] - 1)
    to_columns = bilinear(cosines.shape[3], window[1])
    to_out = _two_taps(size[0], out[0])
    across = _two_taps(size[1], out[1])
    down_seen, across_seen = (_times_seen(*axis) for axis in zip(begins, window, size, strict=True))
    seen = (down_seen[:, None] * across_seen).numpy()

    # Columns of a window are up-sampled once; its rows only for the block of output rows at hand.
    wide = torch.einsum("xw,tlhwc->tlhxc", to_columns, logit_scale * cosines).contiguous()

    # A mean of two values lies between them: a range that holds here holds for every pixel.
    add_softmax = _add_small_softmax if float(wide.abs().max()) <= 1 else _add_any_softmax
    block = max(1, BLOCK_ELEMENTS // (channels * max(size[1], out[1])))
    winners = np.empty(out, np.int64)

    for first in range(0, out[0], block):
        # The image rows of which this block of output rows is mixed: each output row reads its
        # upper row, and the one below with the share `down`.
        upper = to_out[0][first : first + block]
        down = to_out[1][first : first + block]
        begin = int(upper[0])
        end = min(int(upper[-1]) + 2, size[0])

        mean = np.zeros((end - begin, size[1], channels), np.float32)
        for number, top in enumerate(tops):
            # Rows low to high of the image lie in the block and in these windows, which call them
            # rows `span`.
            low = max(begin, top)
            high = min(end, top + window[0])
            if low >= high:
                continue

            span = slice(low - top, high - top)
            taps = (first_rows[span], next_rows[span], row_shares[span])
            for place, left in enumerate(lefts):
                part = wide[number, place].numpy()
                add_softmax(part, *taps, seen[begin:end], mean, low - begin, left)

        _argmax(mean, upper - begin, down, *across, winners[first : first + block])

    return winners


def _add_any_softmax(
    wide: Float32[np.ndarray, "h window channels"],
    first: Int32[np.ndarray, " rows"],
    following: Int32[np.ndarray, " rows"],
    share: Float32[np.ndarray, " rows"],
    seen: Float32[np.ndarray, "height width"],
    mean: Float32[np.ndarray, "height width channels"],
    top: int,
    left: int,
) -> None:
    """Add the soft-max over the channels of up-sampled rows to `mean`, at (top, left), each divided
    by how many windows have `seen` the pixel.

    A row is mixed of the rows `first` and `following` of `wide`, the latter with its `share`.
    """
    # An array as index makes a copy: the interpolation in place does not change `wide`.
    rows = torch.from_numpy(wide[first])
    rows.lerp_(torch.from_numpy(wide[following]), torch.from_numpy(share)[:, None, None])
    here = np.s_[top : top + rows.shape[0], left : left + rows.shape[1]]
    mean[here] += rows.softmax(-1).numpy() / seen[here][..., None]


@compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
@no_type_check
def _add_small_softmax(
    wide: Float32[np.ndarray, "h window channels"],
    first: Int32[np.ndarray, " rows"],
    following: Int32[np.ndarray, " rows"],
    share: Float32[np.ndarray, " rows"],
    seen: Float32[np.ndarray, "height width"],
    mean: Float32[np.ndarray, "height width channels"],
    top: int,
    left: int,
) -> None:
    """The same for values from -1 to 1, as cosines are, in a tenth of the time: all in one pass,
    and the exponential as a polynomial, which the compiler turns into vector instructions.
    """
    # "reassoc" lets the compiler add up `total` in the lanes of a vector.
    channels = wide.shape[2]
    powers = np.empty(channels, np.float32)

    for row in range(len(first)):
        upper = wide[first[row]]
        lower = wide[following[row]]
        low = share[row]
        for column in range(wide.shape[1]):
            one = upper[column]
            two = lower[column]
            into = mean[top + row, left + column]

            # No maximum is subtracted: from -1 to 1, no exponential overflows.
            total = np.float32(0)
            for channel in range(channels):
                x = one[channel] + (two[channel] - one[channel]) * low
                powers[channel] = _exp(x)
                total += powers[channel]

            # One division serves the soft-max and the mean over windows.
            scale = np.float32(1) / (total * seen[top + row, left + column])
            for channel in range(channels):
                into[channel] += powers[channel] * scale


@njit(inline="always")
@no_type_check
def _exp(x: np.float32) -> np.float32:
    """The exponential of a number from -1 to 1; a loop over the terms would not be vectorized."""
    # Horner's scheme: one multiplication and one addition per term, from the highest power down.
    high = ((((A11 * x + A10) * x + A9) * x + A8) * x + A7) * x + A6
    return (((((high * x + A5) * x + A4) * x + A3) * x + A2) * x + A1) * x + A0


def _times_seen(begins: Sequence[int], window: int, full: int) -> Float[Tensor, " full"]:
    """How many windows cover each position of one axis."""
    seen = torch.zeros(full)
    for begin in begins:
        seen[begin : begin + window] += 1
    return seen


def _two_taps(
    source: int, target: int
) -> tuple[Int32[np.ndarray, " target"], Float32[np.ndarray, " target"]]:
    """Bilinear interpolation along one axis as the first of two neighbors and the weight of the
    second.

    Example: from 2 to 4 positions, the first neighbors are [0, 0, 0, 1], and the weights of the
    second ones [0, 0.25, 0.75, 0]. The first neighbor of the last position has no next one: callers
    stop at the border.
    """
    # A row of the matrix has one entry, or two neighboring ones that add up to 1.
    matrix = bilinear(source, target)
    first = (matrix != 0).int().argmax(1)
    share = 1 - matrix[torch.arange(target), first]
    return first.numpy().astype(np.int32), share.numpy()


@compiled(fastmath={"nnan", "nsz", "contract"})
@no_type_check
def _argmax(
    scores: Float32[np.ndarray, "h w channels"],
    top: Int32[np.ndarray, " height"],
    down: Float32[np.ndarray, " height"],
    left: Int32[np.ndarray, " width"],
    across: Float32[np.ndarray, " width"],
    winners: Int64[np.ndarray, "height width"],
) -> None:
    """The channel with the largest bilinear score at each output pixel; neighbors are mixed pixel
    by pixel. Of equal channels, the first wins.

    Maxima are taken over lanes, as a processor's vector unit works: the compiler does not find that
    by itself. With 4 lanes, the scores 3 1 2 5 4 0 9 1 have the lane maxima 4 1 9 5, of which 9 is
    the largest.
    """
    num_rows, num_columns, channels = scores.shape

    # Rounded up to whole lanes; what is beyond the channels stays -inf and never wins. This is why
    # the compiler may not assume that numbers are finite ("ninf" is missing above).
    mixed = np.full((channels + LANES - 1) // LANES * LANES, -np.inf, np.float32)
    tops = np.empty(LANES, np.float32)

    for row in range(len(top)):
        upper = scores[top[row]]
        lower = scores[min(top[row] + 1, num_rows - 1)]
        low = down[row]
        for column in range(len(left)):
            here = left[column]
            there = min(here + 1, num_columns - 1)
            share = across[column]
            one = upper[here]
            two = upper[there]
            three = lower[here]
            four = lower[there]
            for channel in range(channels):
                above = one[channel] + (two[channel] - one[channel]) * share
                below = three[channel] + (four[channel] - three[channel]) * share
                mixed[channel] = above + (below - above) * low

            tops[:] = mixed[:LANES]
            for start in range(LANES, len(mixed), LANES):
                part = mixed[start : start + LANES]
                for lane in range(LANES):
                    tops[lane] = part[lane] if part[lane] > tops[lane] else tops[lane]
            largest = tops.max()

            # Lane maxima do not say which channel they are of: a second pass finds it.
            channel = 0
            while mixed[channel] < largest:
                channel += 1
            winners[row, column] = channel


def sliding_mean(
    cosines: Float[Tensor, "tops lefts h w channels"],
    begins: tuple[Sequence[int], Sequence[int]],
    window: tuple[int, int],
    size: tuple[int, int],
    out: tuple[int, int],
) -> Float32[np.ndarray, "channels height width"]:
    """The mean over the windows of the up-sampled values, bilinear to an `out` map: all channels in
    full, for few of them. Pairs are (height, width), as in `sliding_argmax`.
    """
    total = torch.zeros(cosines.shape[-1], *size)
    for top, row in zip(begins[0], cosines, strict=True):
        for left, grid in zip(begins[1], row, strict=True):
            total[:, top : top + window[0], left : left + window[1]] += _resized(
                grid.permute(2, 0, 1), window
            )

    down, across = (
        _times_seen(starts_of, side, full)
        for starts_of, side, full in zip(begins, window, size, strict=True)
    )
    return _resized(total / (down[:, None] * across), out).numpy()


def _resized(
    maps: Float[Tensor, "channels h w"], size: tuple[int, int]
) -> Float[Tensor, "channels height width"]:
    if maps.shape[1:] == size:
        return maps
    return interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def whole_argmax(
    cosines: Float[Tensor, "h w channels"], out: tuple[int, int]
) -> Int64[np.ndarray, "height width"]:
    """The channel with the largest bilinear score at each pixel of an `out` map.

    There is no soft-max: after the interpolation, it would not change which channel is the largest.
    """
    winners = np.empty(out, np.int64)
    height, width = cosines.shape[:2]
    _argmax(
        cosines.contiguous().numpy(), *_two_taps(height, out[0]), *_two_taps(width, out[1]), winners
    )
    return winners
