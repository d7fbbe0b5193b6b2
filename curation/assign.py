"""The nearest centroid of each row, exactly: low-precision products screen, close calls are decided in float64.

The screen comes with a proven error bound a row: |x.c - x^.c^| <= |x - x^| |c| + |x^| |c - c^|, where x^ and c^ are the
rounded values. Centroids whose screened score lies within twice the bound of the best are evaluated in float32, what is
still open in float64, ties going to the lowest index. Labels are therefore those of a float64 brute force, whatever the
engine, the block size or the machine. FAISS is the independent reference, exact up to float32.
"""

from typing import Literal, NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, Shaped
from torch import Tensor

Engine = Literal["auto", "int8", "bfloat16", "float32", "faiss"]

SMALLEST_TILE, LARGEST_TILE = 64, 4096  # rows
TILE_SCORES = 1 << 20
PAIRS_AT_ONCE = 1 << 10
FLOAT32_ROUNDING = 2.0**-24
BFLOAT16_ROUNDING = 2.0**-8
INT8_MOST = 127
DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32, "faiss": torch.float32}


class Pairs(NamedTuple):
    """Rows and centroids that may be their nearest, sorted by row, then centroid."""

    rows: Int64[np.ndarray, " pairs"]
    centroids: Int64[np.ndarray, " pairs"]

    def where(self, chosen: Bool[np.ndarray, " pairs"]) -> "Pairs":
        return Pairs(self.rows[chosen], self.centroids[chosen])


def choose_engine(engine: Engine) -> Engine:
    """What `auto` means on this machine: bfloat16 where the hardware multiplies it, otherwise float32.

    int8 is faster where clusters are well apart (0.8 times the time on real embeddings), slower where many are close.
    """
    if engine != "auto":
        return engine
    if torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"


class Assigner:
    """Centroids made ready for search: by inner product when vectors are `unit`, otherwise by Euclidean distance."""

    def __init__(self, centroids: Float32[np.ndarray, "k d"], unit: bool, engine: Engine = "auto") -> None:
        self.centroids, self.unit, self.engine = centroids, unit, choose_engine(engine)
        exact = centroids.astype(np.float64)
        self.bias: Float64[np.ndarray, " k"] = -np.einsum("kd,kd->k", exact, exact) / 2 * (not unit)
        # x.c = x.(c - m) + a constant of the row: without the mean m less is rounded away
        offsets = exact - exact.mean(axis=0)
        self.offsets = offsets.astype(np.float32)
        self.norm = float(np.linalg.norm(offsets, axis=1).max())
        self.bias_rounding = 3 * FLOAT32_ROUNDING * float(np.abs(self.bias).max())
        self.sum_rounding = (centroids.shape[1] + 8) * FLOAT32_ROUNDING
        self._load(offsets)

    def _load(self, offsets: Float64[np.ndarray, "k d"]) -> None:
        """What the screen multiplies, and the buffers of one tile: fresh memory would cost as much as the products."""
        num_clusters, dim = offsets.shape
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.offset_unit = 1.0
        if self.engine == "int8":
            self.offset_unit = max(float(np.abs(offsets).max()) / INT8_MOST, 1e-30)
        dtype = DTYPES[self.engine]
        rounded = torch.from_numpy(np.rint(offsets / self.offset_unit) if self.engine == "int8" else offsets).to(dtype)
        self.residual = float(np.linalg.norm(offsets - self.offset_unit * rounded.double().numpy(), axis=1).max())
        self.device_offsets = rounded.to(self.device)
        self.device_bias = torch.from_numpy(self.bias).float().to(self.device)
        self.tile_rows = max(SMALLEST_TILE, min(LARGEST_TILE, TILE_SCORES // num_clusters))
        self.rounded = torch.empty(self.tile_rows, dim, dtype=dtype, device=self.device)
        self.lost = torch.empty(self.tile_rows, dim, device=self.device)
        self.products = torch.empty(self.tile_rows, num_clusters, dtype=dtype, device=self.device)
        self.scores = torch.empty(self.tile_rows, num_clusters, device=self.device)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        """The index of the nearest centroid of each row; the lowest one when several are equally near."""
        if self.engine == "faiss":
            metric = faiss.METRIC_INNER_PRODUCT if self.unit else faiss.METRIC_L2
            return faiss.knn(x, self.centroids, 1, metric=metric)[1][:, 0].astype(np.int32)
        starts = range(0, len(x), self.tile_rows)
        tiles = [self._assign_tile(x[start : start + self.tile_rows]) for start in starts]
        return np.concatenate(tiles) if tiles else np.empty(0, np.int32)

    def _assign_tile(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        labels, pairs = self._screen(x)
        if len(pairs.rows):
            scores = _scores(x, self.offsets, self.bias.astype(np.float32), pairs)
            lengths = np.ones(len(x)) if self.unit else np.sqrt(np.einsum("nd,nd->n", x, x))
            bound = 1.02 * lengths * self.norm * self.sum_rounding + self.bias_rounding
            pairs = pairs.where(scores >= _best_of_rows(scores, pairs.rows) - 2 * bound[pairs.rows])
            labels[pairs.rows] = pairs.centroids
            is_open = np.bincount(pairs.rows, minlength=len(x)) > 1
            self._decide(x, pairs.where(is_open[pairs.rows]), labels)
        return labels

    def _screen(self, x: Float32[np.ndarray, "n d"]) -> tuple[Int32[np.ndarray, " n"], Pairs]:
        """The best by rounded products, and the candidates of those rows where another could be nearer."""
        exact, scores = torch.from_numpy(x).to(self.device), self.scores[: len(x)]
        lost, unit_of_scores = self._multiply(exact, scores)
        if not self.unit:
            scores.mul_(unit_of_scores).add_(self.device_bias)
            unit_of_scores = torch.ones_like(unit_of_scores)
        best = _argmax(scores)[:, None]
        top = scores.gather(1, best)
        runner_up = scores.scatter_(1, best, -torch.inf).amax(1, keepdim=True)
        scores.scatter_(1, best, top)
        least = top - 2 * self._bound(exact, lost, top * unit_of_scores) / unit_of_scores
        close = (runner_up >= least).nonzero()[:, 0]
        near = np.flatnonzero((scores[close] >= least[close]).cpu().numpy())  # on two axes it is ten times slower
        rows, centroids = np.divmod(near, len(self.centroids))
        return best[:, 0].int().cpu().numpy(), Pairs(close.cpu().numpy()[rows], centroids)

    def _multiply(
        self, exact: Float32[Tensor, "n d"], scores: Float32[Tensor, "n k"]
    ) -> tuple[Float32[Tensor, "n 1"], Float32[Tensor, "n 1"]]:
        """Fill `scores` with the products of rounded vectors; |x - x^| a row, and the unit that its scores are in."""
        rounded, lost = self.rounded[: len(exact)], self.lost[: len(exact)]
        unit = torch.ones(len(exact), 1, device=self.device)
        if self.engine == "int8":
            unit = (torch.maximum(exact.amax(1, keepdim=True), -exact.amin(1, keepdim=True)) / INT8_MOST).clamp_(1e-30)
            rounded.copy_(torch.div(exact, unit, out=lost).round_())
            products = torch._int_mm(rounded, self.device_offsets.T)
            lost.mul_(unit)
        else:
            lost.copy_(rounded.copy_(exact))
            products = torch.mm(rounded, self.device_offsets.T, out=self.products[: len(exact)])
        scores.copy_(products)  # converting and adding in one call is three times slower
        return torch.linalg.vector_norm(lost.sub_(exact), dim=1, keepdim=True), unit * self.offset_unit

    def _bound(
        self, exact: Float32[Tensor, "n d"], lost: Float32[Tensor, "n 1"], top: Float32[Tensor, "n 1"]
    ) -> Float32[Tensor, "n 1"]:
        """How far the screened score of the best, or of one that could beat it, can be from the true one, a row."""
        length = torch.ones_like(top) if self.unit else torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        bound = length * (self.residual + self.sum_rounding * self.norm) + lost * (self.norm + self.residual)
        if self.engine == "bfloat16":
            # its products are rounded too: those, without their bias, of centroids whose score is near the top
            bound += BFLOAT16_ROUNDING * torch.maximum(top - float(self.bias.min()), float(self.bias.max()) - top)
        return 1.02 * bound + self.bias_rounding

    def _decide(self, x: Float32[np.ndarray, "n d"], pairs: Pairs, labels: Int32[np.ndarray, " n"]) -> None:
        """Label rows that float32 left open: best in float64, then lowest index."""
        if len(pairs.rows):
            scores = _scores(x, self.centroids, self.bias, pairs)
            winners = pairs.where(scores == _best_of_rows(scores, pairs.rows))
            rows, lowest = np.unique(winners.rows, return_index=True)
            labels[rows] = winners.centroids[lowest]


def _scores(
    x: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    bias: Shaped[np.ndarray, " k"],
    pairs: Pairs,
) -> Shaped[np.ndarray, " pairs"]:
    """x.c + bias of each pair, in the precision of the bias."""
    scores = np.empty(len(pairs.rows), bias.dtype)
    for start in range(0, len(scores), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        left = x.take(pairs.rows[part], axis=0).astype(bias.dtype, copy=False)
        right = centroids.take(pairs.centroids[part], axis=0).astype(bias.dtype, copy=False)
        scores[part] = np.einsum("nd,nd->n", left, right) + bias[pairs.centroids[part]]
    return scores


def _best_of_rows(
    scores: Shaped[np.ndarray, " pairs"], rows: Int64[np.ndarray, " pairs"]
) -> Shaped[np.ndarray, " pairs"]:
    """For each pair, the best score of its row."""
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    return np.repeat(np.maximum.reduceat(scores, first), np.diff(first, append=len(rows)))


def _argmax(scores: Float32[Tensor, "n k"]) -> Int64[Tensor, " n"]:
    """NumPy's is ten times faster than torch's on a CPU."""
    return torch.from_numpy(scores.numpy().argmax(1)) if scores.device.type == "cpu" else scores.argmax(1)
