"""Screens of 8-bit integers: products with all centroids, or in a subspace first (subspace.py)."""

import numpy as np
import torch
from jaxtyping import Float32, Int8

from curation.clusters.bounds import Centered
from curation.clusters.integers import IntegerProduct
from curation.clusters.screens import LARGEST_TILE, TILE_SCORES, Shortlist, tile_rows
from curation.clusters.search_kernels import (
    keep_near,
    shift_and_round,
    shortlist,
    shortlist_by_bounds,
)
from curation.clusters.subspace import Subspace, near_one_another

LARGEST_INT8 = 127
SMALLEST_SCALE = 1e-30  # where all centroids are equal


class RoundedRows:
    """Rows less a vector, as 8-bit integers times one scale per row.

    The buffers are used by every tile again.
    """

    def __init__(self, num_rows: int, dim: int) -> None:
        self.integers = np.empty((num_rows, dim), np.int8)
        self.scale, self.lost, self.length = np.empty((3, num_rows), np.float32)

    def set(
        self, x: Float32[np.ndarray, "n d"], mean: Float32[np.ndarray, " d"]
    ) -> tuple[
        Int8[np.ndarray, "n d"],
        Float32[np.ndarray, " n"],
        Float32[np.ndarray, " n"],
        Float32[np.ndarray, " n"],
    ]:
        """(integers, scale, lost, length) of these rows: see `shift_and_round`."""
        rows = slice(len(x))
        rounded = (self.integers[rows], self.scale[rows], self.lost[rows], self.length[rows])
        integers, scale, lost, length = rounded
        shift_and_round(x, mean, integers, scale, lost, length)
        return rounded


class IntegerScreen:
    """Products of 8-bit integers. All centroids share one scale; each row has its own."""

    def __init__(self, centered: Centered, product: type[IntegerProduct]) -> None:
        self.centered = centered
        num_clusters, dim = centered.centroids.shape
        # One scale for all centroids, because a scale per centroid would be one more multiplication
        # per score.
        self.centroid_scale = max(centered.largest / product.largest_weight, SMALLEST_SCALE)
        integers, self.residual = centered.rounded(torch.int8, self.centroid_scale)
        self.product = product(integers.numpy())

        # Buffers that every call uses again.
        self.tile_rows = tile_rows(num_clusters, LARGEST_TILE, TILE_SCORES)
        self.rows = RoundedRows(self.tile_rows, dim)
        self.products = np.empty((self.tile_rows, num_clusters), np.int32)
        self.ends = np.empty(self.tile_rows + 1, np.int64)
        self.columns = np.empty(self.tile_rows * num_clusters, np.int32)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row; the next call overwrites them."""
        integers, scale, lost, length = self.rows.set(x, self.centered.mean)
        products = self.products[: len(x)]
        self.product(integers, products)

        margin = 2 * self.centered.bound(length, lost, self.residual)
        # A product of integers times both scales is the score.
        scale *= np.float32(self.centroid_scale)
        shortlist(products, scale, self.centered.bias, margin, self.ends, self.columns)

        return Shortlist(self.ends, self.columns)


class SubspaceScreen:
    """Bounds from a subspace rule out most centroids; rounded products with the others decide.

    Centroids stand in another order here, in which similar ones are neighbours: those that are left
    for a row are then mostly read in one piece.
    """

    def __init__(
        self, centered: Centered, product: type[IntegerProduct], basis: Float32[np.ndarray, "d m"]
    ) -> None:
        self.centered = centered
        self.subspace = Subspace(centered, basis)
        self.order = near_one_another(self.subspace.coordinates)
        self.bias = centered.bias[self.order]
        self.rest = self.subspace.rest[self.order]

        coordinates = self.subspace.coordinates[self.order]
        largest = float(np.abs(coordinates).max())
        self.inner_scale = max(largest / product.largest_weight, SMALLEST_SCALE)
        inner = np.rint(coordinates / np.float32(self.inner_scale))
        self.inner_residual = _longest_row(coordinates - inner * np.float32(self.inner_scale))
        self.product = product(inner.astype(np.int8))

        self.centroid_scale = max(centered.largest / LARGEST_INT8, SMALLEST_SCALE)
        integers, self.residual = centered.rounded(torch.int8, self.centroid_scale)
        self.weights = integers.numpy()[self.order]

        # Buffers that every call uses again.
        num_clusters, dim = centered.centroids.shape
        self.tile_rows = tile_rows(num_clusters, LARGEST_TILE, TILE_SCORES)
        self.rows = RoundedRows(self.tile_rows, dim)
        self.inner_rows = RoundedRows(self.tile_rows, basis.shape[1])
        self.zero = np.zeros(basis.shape[1], np.float32)
        self.products = np.empty((self.tile_rows, num_clusters), np.int32)
        self.ends = np.empty(self.tile_rows + 1, np.int64)
        self.columns = np.empty(self.tile_rows * num_clusters, np.int32)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row; the next call overwrites them."""
        integers, scale, lost, length = self.rows.set(x, self.centered.mean)
        inner, inner_scale, inner_lost, inside = self.inner_rows.set(
            self.subspace.project(x), self.zero
        )
        products = self.products[: len(x)]
        self.product(inner, products)

        error = self.centered.bound(length, lost, self.residual)
        inner_error = self.centered.bound(
            inside, inner_lost + self.subspace.lost(length), self.inner_residual
        )
        # A product of integers times both scales is the score.
        scale *= np.float32(self.centroid_scale)
        inner_scale *= np.float32(self.inner_scale)

        shortlist_by_bounds(
            products,
            inner_scale,
            self.bias,
            self.subspace.row_rest(length, inside),
            self.rest,
            error + inner_error,
            integers,
            scale,
            self.weights,
            self.ends,
            self.columns,
        )
        keep_near(integers, self.weights, scale, self.bias, 2 * error, self.ends, self.columns)

        listed = self.columns[: self.ends[len(x)]]
        listed[:] = self.order[listed]
        return Shortlist(self.ends, self.columns)


def _longest_row(vectors: Float32[np.ndarray, "n d"]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max()))
