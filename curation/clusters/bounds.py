"""Centroids less their mean, and a bound on the error of scores made of rounded vectors.

The score of a row x and a centroid c is x.c + b, largest for the nearest centroid: b is 0 for inner
products of unit vectors and -|c|^2 / 2 for Euclidean distances. With x^ and c^ the rounded vectors,
|x.c - x^.c^| is at most |x - x^| |c| + |x^| |c - c^| (Cauchy-Schwarz inequality). The error is
therefore small where the vectors are short. Subtracting the mean of the centroids from rows and
centroids makes them short, and does not change which centroid is nearest.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Float64

# Centroids are converted to float64 this many values at a time (2 MB). With millions of centroids,
# a float64 copy of all of them would not fit in memory.
EXACT_VALUES = 1 << 18

FLOAT32_ROUNDING = 2.0**-24  # largest relative error of one rounding to float32
SLACK = 1.02  # the bound is itself computed in float32


class Centered:
    """Centroids less their mean m. Callers subtract `mean` from the rows, too.

    x.c + b = (x - m).(c - m) + b' + a constant of the row, with b' = -|c - m|^2 / 2 for Euclidean
    distances, and m.c for inner products. The constant does not matter: scores are only compared
    within a row.
    """

    def __init__(self, centroids: Float32[np.ndarray, "k d"], unit: bool) -> None:
        self.centroids = centroids
        # Rows are shifted in float32, so the mean must be exactly the float32 vector that they use.
        self.mean: Float32[np.ndarray, " d"] = centroids.mean(axis=0, dtype=np.float64).astype(
            np.float32
        )

        # |x - c|^2 is smallest where x.c - |c|^2 / 2 is largest, as |x|^2 is the same for all
        # centroids. For unit vectors, x.c alone decides, and this bias is zero.
        self.exact_bias: Float64[np.ndarray, " k"] = np.zeros(len(centroids))
        bias = np.empty(len(centroids))
        self.longest = 0.0
        self.largest = 0.0

        for rows, exact in float64_blocks(centroids):
            offsets = exact - self.mean
            if unit:
                bias[rows] = exact @ self.mean.astype(np.float64)
            else:
                bias[rows] = -np.einsum("kd,kd->k", offsets, offsets) / 2
                self.exact_bias[rows] = -np.einsum("kd,kd->k", exact, exact) / 2
            self.longest = max(self.longest, longest_row(offsets))
            self.largest = max(self.largest, float(np.abs(offsets).max()))

        # The same constant added to every score changes no order. Without their mean, biases lie
        # near zero, where float32 is finer.
        self.bias: Float32[np.ndarray, " k"] = (bias - bias.mean()).astype(np.float32)
        self.largest_bias = float(np.abs(self.bias).max())
        # A bias is rounded when it is stored and when it is added to a product. Four roundings of
        # values at most this large cover both.
        self.bias_rounding = 4 * FLOAT32_ROUNDING * (self.largest_bias + float(np.abs(bias).max()))

    def rounded(self, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, float]:
        """The offsets c - m in units of `scale`, rounded to `dtype`, and the largest error.

        The error is the largest Euclidean length of (c - m) - scale * rounded over all centroids.
        """
        rounded = torch.empty(self.centroids.shape, dtype=dtype)
        residual = 0.0
        for rows, exact in float64_blocks(self.centroids):
            offsets = torch.from_numpy(exact - self.mean)
            scaled = offsets / scale
            # A cast to integers truncates; a cast to a float type rounds by itself.
            rounded[rows] = scaled if dtype.is_floating_point else scaled.round()
            residual = max(
                residual, longest_row((offsets - rounded[rows].double() * scale).numpy())
            )

        return rounded, residual

    def bound(
        self, length: Float32[np.ndarray, " n"], lost: Float32[np.ndarray, " n"], residual: float
    ) -> Float32[np.ndarray, " n"]:
        """The largest error of each row's scores.

        `length` is |x - m|, `lost` is the length of what rounding changed in x - m, and `residual`
        comes from `rounded`. Rounding errors of the products' float32 sums are included.
        """
        # A float32 sum of d products has an error of at most about d roundings. A few more cover
        # the shift and the scale.
        sums = (self.centroids.shape[1] + 8) * FLOAT32_ROUNDING * self.longest
        bound = length * (residual + sums) + lost * (self.longest + residual)
        return (SLACK * bound + self.bias_rounding).astype(np.float32)


def float64_blocks(
    centroids: Float32[np.ndarray, "k d"],
) -> Iterator[tuple[slice, Float64[np.ndarray, "n d"]]]:
    """(rows, their centroids in float64), by blocks; results must not depend on the blocks."""
    step = max(1, EXACT_VALUES // centroids.shape[1])
    for start in range(0, len(centroids), step):
        yield slice(start, start + step), centroids[start : start + step].astype(np.float64)


def longest_row(vectors: Float64[np.ndarray, "n d"]) -> float:
    """The largest Euclidean length of a row."""
    return float(np.linalg.norm(vectors, axis=1).max())
