"""Screens: rounded scores, which are cheap, narrow the search to a few centroids per row.

A screen lists every centroid whose score lies within twice the error bound of the row's best score
(bounds.py): the best score may be too high by one bound, and the true nearest one's too low by
another. The nearest centroid is therefore always listed, whatever the rounding.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import faiss
import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Float32, Int32, Int64
from torch import Tensor

from curation.clusters.bounds import FLOAT32_ROUNDING, SLACK, Centered, float64_blocks, longest_row
from curation.clusters.groups import offsets_of

SMALLEST_TILE = 64  # rows
LARGEST_TILE = 4096
TILE_SCORES = 1 << 19  # 2 MB of 32-bit scores, which stay in the processor's cache
LARGEST_GPU_TILE = 1 << 15
GPU_TILE_SCORES = 1 << 27  # 512 MB of float32 scores, enough to keep a GPU busy
GPU_PAIR_VALUES = 1 << 25  # 256 MB of float64 for the vectors of rows and their candidates

# Largest relative error of one rounding.
BFLOAT16_ROUNDING = 2.0**-8
FLOAT64_ROUNDING = 2.0**-53


class Shortlist(NamedTuple):
    """Candidates per row: those of row i are columns[ends[i] : ends[i + 1]], at least one."""

    ends: Int64[np.ndarray, " n_plus_1"]
    columns: Int32[np.ndarray, " pairs"]


@runtime_checkable
class Screen(Protocol):
    """Lists the centroids that may be nearest."""

    tile_rows: int
    """Maximum number of rows per call."""

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row; the next call may overwrite them."""
        ...


class FaissScreen:
    """FAISS's exact search in float32. The best two scores decide most rows.

    For the other rows, all scores are computed. The bias is one more coordinate of the centroids,
    and that coordinate is 1 in every row: inner products then serve both metrics.
    """

    def __init__(self, centered: Centered) -> None:
        self.centered = centered
        num_clusters, dim = centered.centroids.shape
        self.extended = np.empty((num_clusters, dim + 1), np.float32)
        self.extended[:, -1] = centered.bias
        self.residual = 0.0

        for rows, exact in float64_blocks(centered.centroids):
            offsets = exact - centered.mean
            self.extended[rows, :-1] = offsets
            self.residual = max(self.residual, longest_row(offsets - self.extended[rows, :-1]))

        # The bias is one term of the float32 sum, so the sum's rounding errors grow with it.
        self.bias_in_sum = (dim + 8) * FLOAT32_ROUNDING * centered.largest_bias
        self.tile_rows = LARGEST_TILE

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row."""
        shifted = np.ones((len(x), x.shape[1] + 1), np.float32)
        np.subtract(x, self.centered.mean, out=shifted[:, :-1])
        num_best = min(2, len(self.extended))
        scores, nearest = faiss.knn(
            shifted, self.extended, num_best, metric=faiss.METRIC_INNER_PRODUCT
        )

        length = np.linalg.norm(shifted[:, :-1], axis=1)
        bound = self.centered.bound(length, np.float32(FLOAT32_ROUNDING) * length, self.residual)
        # Where even the second best score is out of reach, the best centroid is the only candidate.
        least = scores[:, 0] - 2 * (bound + np.float32(self.bias_in_sum))
        close = np.flatnonzero(scores[:, -1] >= least) if num_best > 1 else np.empty(0, np.int64)

        # One candidate per row, except for the rows whose two best scores are too close.
        counts = np.ones(len(x), np.int64)
        listed = []
        for row in close:
            listed.append(np.flatnonzero(self.extended @ shifted[row] >= least[row]))
            counts[row] = len(listed[-1])

        ends = offsets_of(counts)
        columns = np.empty(ends[-1], np.int32)
        columns[ends[:-1]] = nearest[:, 0]
        for row, candidates in zip(close, listed, strict=True):
            columns[ends[row] : ends[row + 1]] = candidates

        return Shortlist(ends, columns)


class TorchScreen:
    """Products in bfloat16 on the GPU, or on the processor if there is no GPU.

    The few candidates of each row are compared in float64 on the same device, so that only those
    remain that are equally near but for the rounding of float64.
    """

    def __init__(self, centered: Centered) -> None:
        self.centered = centered
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mean = torch.from_numpy(centered.mean).to(self.device)
        self.bias = torch.from_numpy(centered.bias).to(self.device)
        rounded, self.residual = centered.rounded(torch.bfloat16)
        self.offsets = rounded.to(self.device)
        # A GPU can give its sums unrounded; a processor rounds them to bfloat16.
        self.product_rounding = 0.0 if self.device.type == "cuda" else BFLOAT16_ROUNDING

        self.centroids = torch.from_numpy(centered.centroids).to(self.device)
        self.exact_bias = torch.from_numpy(centered.exact_bias).to(self.device)
        self.longest = float(torch.linalg.vector_norm(self.centroids, dim=1).max())

        limits = (LARGEST_GPU_TILE, GPU_TILE_SCORES)
        self.tile_rows = tile_rows(
            len(rounded), *(limits if self.device.type == "cuda" else (LARGEST_TILE, TILE_SCORES))
        )
        # By way of pinned memory, rows reach a GPU three times faster.
        self.pinned = torch.empty(
            (self.tile_rows, rounded.shape[1]), pin_memory=self.device.type == "cuda"
        )

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """The candidates of each row."""
        pinned = self.pinned[: len(x)].copy_(torch.from_numpy(x))
        on_device = pinned.to(self.device, non_blocking=True)
        shifted = on_device - self.mean
        rounded = shifted.bfloat16()
        scores = self._products(rounded).add_(self.bias)
        top = scores.amax(1)

        lost = torch.linalg.vector_norm(rounded - shifted, dim=1)
        length = torch.linalg.vector_norm(shifted, dim=1)
        bound = torch.from_numpy(
            self.centered.bound(length.cpu().numpy(), lost.cpu().numpy(), self.residual)
        )

        # Where products come out rounded, the error grows with their size. A product is a score
        # less its bias, and of scores near the best it is at most this large.
        largest = torch.maximum(top - self.bias.min(), self.bias.max() - top)
        least = top - 2 * (bound.to(self.device) + SLACK * self.product_rounding * largest)

        # nonzero lists (row, column) by row, so the rows are sorted and their ends can be searched.
        rows, columns = (scores >= least[:, None]).nonzero().T
        is_near = self._is_nearest(on_device, rows, columns)
        listed = rows[is_near].cpu().numpy()
        return Shortlist(
            np.searchsorted(listed, np.arange(len(x) + 1)),
            columns[is_near].int().cpu().numpy(),
        )

    def _products(self, rounded: BFloat16[Tensor, "n d"]) -> Float32[Tensor, "n k"]:
        if self.device.type == "cuda":
            return torch.mm(rounded, self.offsets.T, out_dtype=torch.float32)
        return (rounded @ self.offsets.T).float()

    def _is_nearest(
        self,
        x: Float32[Tensor, "n d"],
        rows: Int64[Tensor, " pairs"],
        columns: Int64[Tensor, " pairs"],
    ) -> Bool[Tensor, " pairs"]:
        """Whether a candidate can be the nearest of its row, by scores in float64."""
        is_alone = torch.bincount(rows, minlength=len(x))[rows] == 1
        rows = rows[~is_alone]
        columns = columns[~is_alone]

        scores = self.exact_bias[columns]
        step = max(1, GPU_PAIR_VALUES // x.shape[1])
        for start in range(0, len(rows), step):
            pairs = slice(start, start + step)
            exact_rows = x[rows[pairs]].double()
            scores[pairs] += (exact_rows * self.centroids[columns[pairs]]).sum(1)

        best = scores.new_full((len(x),), -torch.inf).scatter_reduce_(0, rows, scores, "amax")
        # This sum and the one that decides (kernels.py) each have an error of at most about d
        # roundings; so has each of the two scores that are compared.
        length = torch.linalg.vector_norm(x, dim=1).double()
        reach = length * self.longest + self.exact_bias.abs().max()
        margin = 4 * SLACK * (x.shape[1] + 8) * FLOAT64_ROUNDING * reach

        is_near = is_alone.clone()
        is_near[~is_alone] = scores >= (best - margin)[rows]
        return is_near


def tile_rows(num_clusters: int, largest: int, scores: int) -> int:
    """Rows per tile, at most `largest`, such that a tile has about `scores` scores, one per row and
    cluster.
    """
    return max(SMALLEST_TILE, min(largest, scores // num_clusters))
