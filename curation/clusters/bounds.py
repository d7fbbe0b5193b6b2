"""Centroids less their mean, in float64 or rounded, and a bound on the error of a score made of
rounded vectors.

The score of a row x and a centroid c is x.c + b, largest for the nearest centroid: b is 0 for inner
products of unit vectors and -|c|^2 / 2 for Euclidean distances. With x^ and c^ the rounded vectors,
|x.c - x^.c^| is at most
|x - x^| |c| + |x^| |c - c^| (Cauchy and Schwarz), so the shorter the vectors, the smaller the error. Taking the mean of
the centroids from both sides makes them short and leaves the order of the centroids as it is.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Float64

# Centroids are converted to float64 this many values at a time (2 MB): a copy of all is too large
# where there are many.
EXACT_VALUES = 1 << 18

FLOAT32_ROUNDING = 2.0**-24
SLACK = 1.02  # the bound is itself computed in float32


class Centered:
    """Centroids less their mean m; the rows have to be moved by m, too.

    x.c + b = (x - m).(c - m) + b' + a constant of the row, with b' = -|c - m|^2 / 2, or m.c for
    inner products.
    """

    def __init__(self, centroids: Float32[np.ndarray, "k d"], unit: bool) -> None:
        self.centroids = centroids
        self.mean: Float32[np.ndarray, " d"] = centroids.mean(axis=0, dtype=np.float64).astype(
            np.float32
        )

        bias = np.empty(len(centroids))
        self.longest = 0.0
        self.largest = 0.0

        for rows, exact in float64_blocks(centroids):
            offsets = exact - self.mean
            if unit:
                bias[rows] = exact @ self.mean.astype(np.float64)
            else:
                bias[rows] = -np.einsum("kd,kd->k", offsets, offsets) / 2
            self.longest = max(self.longest, longest_row(offsets))
            self.largest = max(self.largest, float(np.abs(offsets).max()))

        # Adding the same constant to every score changes nothing, and biases near zero lose less to
        # rounding.
        self.bias: Float32[np.ndarray, " k"] = (bias - bias.mean()).astype(np.float32)
        self.largest_bias = float(np.abs(self.bias).max())
        self.bias_rounding = 4 * FLOAT32_ROUNDING * (self.largest_bias + float(np.abs(bias).max()))

    def rounded(self, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, float]:
        """The offsets c - m in units of `scale`, rounded to `dtype`, and the length of the largest
        rounding error.
        """
        rounded = torch.empty(self.centroids.shape, dtype=dtype)
        residual = 0.0
        for rows, exact in float64_blocks(self.centroids):
            offsets = torch.from_numpy(exact - self.mean)
            scaled = offsets / scale
            rounded[rows] = scaled if dtype.is_floating_point else scaled.round()
            residual = max(
                residual, longest_row((offsets - rounded[rows].double() * scale).numpy())
            )

        return rounded, residual

    def bound(
        self, length: Float32[np.ndarray, " n"], lost: Float32[np.ndarray, " n"], residual: float
    ) -> Float32[np.ndarray, " n"]:
        """The largest error of a row's scores: `length` is |x - m|, of which rounding moved `lost`.

        The rounding errors of the products' float32 sums are included.
        """
        sums = (self.centroids.shape[1] + 8) * FLOAT32_ROUNDING * self.longest
        bound = length * (residual + sums) + lost * (self.longest + residual)
        return (SLACK * bound + self.bias_rounding).astype(np.float32)


def float64_blocks(
    centroids: Float32[np.ndarray, "k d"],
) -> Iterator[tuple[slice, Float64[np.ndarray, "n d"]]]:
    """The centroids in float64, some at a time; callers must treat each row by itself."""
    step = max(1, EXACT_VALUES // centroids.shape[1])
    for start in range(0, len(centroids), step):
        yield slice(start, start + step), centroids[start : start + step].astype(np.float64)


def longest_row(vectors: Float64[np.ndarray, "n d"]) -> float:
    """The largest Euclidean length of a row."""
    return float(np.linalg.norm(vectors, axis=1).max())
