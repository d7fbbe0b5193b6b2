"""Screens of 8-bit integers: products with all centroids, or in a subspace first (subspace.py)."""

from typing import NamedTuple

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


class Rounded(NamedTuple):
    """Rows less a vector, as 8-bit integers times one scale per row; see `shift_and_round`."""

    integers: Int8[np.ndarray, "n d"]
    scale: Float32[np.ndarray, " n"]
    lost: Float32[np.ndarray, " n"]
    length: Float32[np.ndarray, " n"]

    @classmethod
    def buffers(cls, num_rows: int, dim: int) -> "Rounded":
        """Room for this many rows, which every tile uses again."""
        return cls(np.empty((num_rows, dim), np.int8), *np.empty((3, num_rows), np.float32))

    def set(self, x: Float32[np.ndarray, "n d"], mean: Float32[np.ndarray, " d"]) -> "Rounded":
        """These rows less the mean, in the first buffers."""
        rounded = Rounded(*(buffer[: len(x)] for buffer in self))
        shift_and_round(x, mean, *rounded)
        return rounded


class IntegerScreen:
    """Products of 8-bit integers. All centroids share one scale; each row has its own."""

    def __init__(self, centered: Centered) -> None:
        self.centered = centered
        num_clusters, dim = centered.centroids.shape
        # One scale for all centroids, because a scale per centroid would be one more multiplication
        # per score.
        self.centroid_scale = max(centered.largest / IntegerProduct.largest_weight, SMALLEST_SCALE)
        integers, self.residual = centered.rounded(torch.int8, self.centroid_scale)
        self.product = IntegerProduct(integers.numpy())

        # Buffers that every call uses again.
        self.tile_rows = tile_rows(num_clusters, LARGEST_TILE, TILE_SCORES)
        self.rows = Rounded.buffers(self.tile_rows, dim)
        self.products = np.empty((self.tile_rows, num_clusters), np.int32)
        self.ends = np.empty(self.tile_rows + 1, np.int64)
        self.columns = np.empty(self.tile_rows * num_clusters, np.int32)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row; the next call overwrites them."""
        rows = self.rows.set(x, self.centered.mean)
        products = self.products[: len(x)]
        self.product(rows.integers, products)

        margin = 2 * self.centered.bound(rows.length, rows.lost, self.residual)
        # A product of integers times both scales is the score.
        scale = rows.scale * np.float32(self.centroid_scale)
        shortlist(products, scale, self.centered.bias, margin, self.ends, self.columns)

        return Shortlist(self.ends, self.columns)


class SubspaceScreen:
    """Bounds from a subspace rule out most centroids; rounded products with the others decide.

    Centroids stand in another order here, in which similar ones are neighbours: those that are left
    for a row are then mostly read in one piece.
    """

    def __init__(self, centered: Centered, basis: Float32[np.ndarray, "d m"]) -> None:
        self.centered = centered
        self.subspace = Subspace(centered, basis)
        self.order = near_one_another(self.subspace.coordinates)
        self.bias = centered.bias[self.order]
        self.rest = self.subspace.rest[self.order]

        coordinates = self.subspace.coordinates[self.order]
        largest = float(np.abs(coordinates).max())
        self.inner_scale = max(largest / IntegerProduct.largest_weight, SMALLEST_SCALE)
        inner = np.rint(coordinates / np.float32(self.inner_scale))
        self.inner_residual = _longest_row(coordinates - inner * np.float32(self.inner_scale))
        self.product = IntegerProduct(inner.astype(np.int8))

        self.centroid_scale = max(centered.largest / LARGEST_INT8, SMALLEST_SCALE)
        integers, self.residual = centered.rounded(torch.int8, self.centroid_scale)
        self.weights = integers.numpy()[self.order]

        # Buffers that every call uses again.
        num_clusters, dim = centered.centroids.shape
        self.tile_rows = tile_rows(num_clusters, LARGEST_TILE, TILE_SCORES)
        self.rows = Rounded.buffers(self.tile_rows, dim)
        self.inner_rows = Rounded.buffers(self.tile_rows, basis.shape[1])
        self.zero = np.zeros(basis.shape[1], np.float32)
        self.products = np.empty((self.tile_rows, num_clusters), np.int32)
        self.ends = np.empty(self.tile_rows + 1, np.int64)
        self.columns = np.empty(self.tile_rows * num_clusters, np.int32)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row; the next call overwrites them."""
        rows = self.rows.set(x, self.centered.mean)
        inner = self.inner_rows.set(self.subspace.project(x), self.zero)
        products = self.products[: len(x)]
        self.product(inner.integers, products)

        error = self.centered.bound(rows.length, rows.lost, self.residual)
        inner_lost = inner.lost + self.subspace.lost(rows.length)
        inner_error = self.centered.bound(inner.length, inner_lost, self.inner_residual)
        # A product of integers times both scales is the score.
        scale = rows.scale * np.float32(self.centroid_scale)

        shortlist_by_bounds(
            products,
            inner.scale * np.float32(self.inner_scale),
            self.bias,
            self.subspace.row_rest(rows.length, inner.length),
            self.rest,
            error + inner_error,
            rows.integers,
            scale,
            self.weights,
            self.ends,
            self.columns,
        )
        keep_near(rows.integers, self.weights, scale, self.bias, 2 * error, self.ends, self.columns)

        listed = self.columns[: self.ends[len(x)]]
        listed[:] = self.order[listed]
        return Shortlist(self.ends, self.columns)


def _longest_row(vectors: Float32[np.ndarray, "n d"]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max()))
