"""A few directions in which the centroids differ most, and bounds on scores that need only these.

Let y and z be the coordinates of a row x and a centroid c in the subspace of these directions, and
x' and c' what lies outside of it. Then x.c = y.z + x'.c', and x'.c' is at most |x'| |c'|
(Cauchy-Schwarz inequality): y.z + |x'| |c'| bounds the score from above. Where the bound is below
the score of some good centroid, c cannot be the nearest one. Exact search by such bounds is that of
FEXIPRO (Li et al., SIGMOD 2017).

With 10,000 centroids of 384 values, 64 directions typically leave 1 to 2 % of the centroids, so that
most of the 384 products per row and centroid are never made. Vectors without such directions gain
nothing; a sample of the rows tells (`choose_basis`).
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float32, Float64, Int64

from curation.clusters.bounds import FLOAT32_ROUNDING, Centered, float64_blocks
from curation.clusters.search_kernels import USUAL_SHARE

FEWEST_CENTROIDS = 1000  # with fewer, finding the directions takes longer than it saves
SIZES = (32, 48, 64, 96, 128, 192)  # directions, at most half of all
SAMPLE_CENTROIDS = 2048  # enough to find the directions
ROUNDING = 0.04  # usual error of 8-bit scores, relative to the vectors' lengths


class Costs(NamedTuple):
    """Time per value, relative to that of the product of all rows with all centroids."""

    projection: float
    """Of the product of a row with the directions, in float32."""
    column: float
    """Of reading a score; per row and centroid, not per value."""
    candidate: float
    """Of the product of a row with a centroid of its own."""


class Subspace:
    """The centroids' coordinates in a subspace, and the lengths of what lies outside of it."""

    def __init__(self, centered: Centered, basis: Float32[np.ndarray, "d m"]) -> None:
        self.basis = basis
        dim, size = basis.shape
        exact = basis.astype(np.float64)
        # Rounded to float32, the directions are not quite orthonormal. With E = B'B - I, lengths in
        # the subspace and inner products there are off by at most a share |E| of the full lengths.
        self.skew = float(np.linalg.norm(exact.T @ exact - np.eye(size)))

        num_clusters = len(centered.centroids)
        self.coordinates = np.empty((num_clusters, size), np.float32)
        self.rest = np.empty(num_clusters, np.float32)
        for rows, centroids in float64_blocks(centered.centroids):
            offsets = centroids - centered.mean
            inside = offsets @ exact
            self.coordinates[rows] = inside
            self.rest[rows] = _rest(_squares(offsets), _squares(inside) * (1 - self.skew))

        self.origin: Float32[np.ndarray, " m"] = (centered.mean.astype(np.float64) @ exact).astype(
            np.float32
        )
        self.mean_length = float(np.linalg.norm(centered.mean))
        # A coordinate is a float32 sum of d products; all of them together are off by at most this
        # share of the length of the row.
        self.rounding = (dim + 8) * FLOAT32_ROUNDING * size**0.5

    def project(self, x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n m"]:
        """The rows' coordinates, relative to the centroids' mean."""
        coordinates = x @ self.basis
        coordinates -= self.origin
        return coordinates

    def lost(self, length: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """How far a row's coordinates may be off, for rows at these distances from the mean."""
        return self.rounding * (length + 2 * np.float32(self.mean_length)) + self.skew * length

    def row_rest(
        self, length: Float32[np.ndarray, " n"], inside: Float32[np.ndarray, " n"]
    ) -> Float32[np.ndarray, " n"]:
        """An upper bound of |x'|, from |x - mean| and the length of the coordinates."""
        # Both lengths are roots of float32 sums. The last factor covers the rounding of the bound's
        # own product and sum.
        most = length * (1 + len(self.basis) * np.float32(FLOAT32_ROUNDING))
        least = np.maximum(inside - self.lost(length), 0) * (1 - 256 * np.float32(FLOAT32_ROUNDING))
        return _rest(most * most, least * least * (1 - self.skew)) * np.float32(1 + 2.0**-20)


def choose_basis(
    centered: Centered, sample: Float32[np.ndarray, "n d"], costs: Costs
) -> Float32[np.ndarray, "d m"] | None:
    """As many leading directions as make the search fastest; None if it is faster without.

    `sample` are rows like those to come.
    """
    num_clusters, dim = centered.centroids.shape
    without = num_clusters * (dim + costs.column)
    # Cost per row of each size that would pay if its bounds left no candidate.
    bounding = {
        size: costs.projection * dim * size + num_clusters * (size + 2 * costs.column)
        for size in SIZES
        if 2 * size <= dim
    }
    bounding = {size: cost for size, cost in bounding.items() if cost < without}
    if num_clusters < FEWEST_CENTROIDS or not bounding or not len(sample):
        return None

    basis = _leading_directions(centered, max(bounding))
    candidates = _count_candidates(centered, sample, basis, list(bounding))
    total = {
        size: cost + costs.candidate * dim * count
        for (size, cost), count in zip(bounding.items(), candidates, strict=True)
    }
    best = min(total, key=lambda size: total[size])
    return _mixed(basis[:, :best]) if total[best] < without else None


def _leading_directions(centered: Centered, size: int) -> Float32[np.ndarray, "d m"]:
    """Orthonormal directions in which the centroids vary most, most variable first."""
    step = -(-len(centered.centroids) // SAMPLE_CENTROIDS)
    offsets = centered.centroids[::step] - centered.mean
    dim = offsets.shape[1]
    _, vectors = scipy.linalg.eigh(offsets.T @ offsets, subset_by_index=[dim - size, dim - 1])
    return vectors[:, ::-1]


def _count_candidates(
    centered: Centered,
    sample: Float32[np.ndarray, "n d"],
    basis: Float32[np.ndarray, "d m"],
    sizes: list[int],
) -> Float64[np.ndarray, " sizes"]:
    """How many centroids the bounds leave per row, for the first directions of each size."""
    shifted = sample - centered.mean
    inside = shifted @ basis
    num_clusters = len(centered.centroids)
    bounds = np.empty((len(sizes), len(sample), num_clusters), np.float32)
    usual = np.empty_like(bounds)
    scores = np.empty((len(sample), num_clusters), np.float32)

    for rows, exact in float64_blocks(centered.centroids):
        offsets = (exact - centered.mean).astype(np.float32)
        coordinates = offsets @ basis
        bias = centered.bias[rows]
        scores[:, rows] = shifted @ offsets.T + bias
        for index, size in enumerate(sizes):
            row_rest = _rest(_squares(shifted), _squares(inside[:, :size]))
            rest = _rest(_squares(offsets), _squares(coordinates[:, :size]))
            partial = inside[:, :size] @ coordinates[:, :size].T + bias
            bounds[index][:, rows] = partial + np.outer(row_rest, rest)
            usual[index][:, rows] = partial + np.outer(USUAL_SHARE * row_rest, rest)

    good = np.take_along_axis(scores[None], usual.argmax(2)[..., None], 2)
    margin = ROUNDING * centered.longest * np.sqrt(_squares(shifted))
    return (bounds >= good - margin[:, None]).sum(2).mean(1)


def _mixed(basis: Float32[np.ndarray, "d m"]) -> Float32[np.ndarray, "d m"]:
    """The same subspace by directions in which the centroids vary about equally.

    8-bit integers with one scale for all coordinates are then used fully.
    """
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((basis.shape[1],) * 2))
    return (basis @ rotation).astype(np.float32)


def near_one_another(coordinates: Float32[np.ndarray, "k m"]) -> Int64[np.ndarray, " k"]:
    """An order of the centroids in which similar ones mostly stand side by side.

    They are sorted by the signs of their first 16 coordinates.
    """
    signs = np.packbits(coordinates[:, :16] > 0, axis=1)
    return np.lexsort(signs.T[::-1])


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", vectors, vectors)


def _rest(squares: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(squares - inside, 0))
