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
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

Engine = Literal["auto", "bfloat16", "float32", "faiss"]

TILE_ROWS = 2048
PAIRS_AT_ONCE = 1 << 12
FLOAT32_ROUNDING = 2.0**-24
BFLOAT16_ROUNDING = 2.0**-8


class Candidates(NamedTuple):
    """Pairs of a row and a centroid that may be its nearest, sorted by row, then centroid."""

    rows: Int64[np.ndarray, " pairs"]
    centroids: Int64[np.ndarray, " pairs"]


def choose_engine(engine: Engine) -> Engine:
    """What `auto` means on this machine: bfloat16 where the hardware multiplies it, otherwise float32."""
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
        self.half_norms: Float64[np.ndarray, " k"] = np.einsum("kd,kd->k", exact, exact) / 2 * (not unit)
        self.center = exact.mean(axis=0).astype(np.float32)
        # x.c - |c|^2 / 2 = (x - m).(c - m) + bias + a constant of the row: without the mean m less is rounded away
        offsets = exact - self.center.astype(np.float64)
        bias = offsets @ self.center.astype(np.float64) - self.half_norms
        self.offsets, self.bias = offsets.astype(np.float32), bias.astype(np.float32)
        self.norm = float(np.linalg.norm(offsets, axis=1).max())
        self.bias_rounding = 3 * FLOAT32_ROUNDING * float(np.abs(bias).max())
        self.sum_rounding = (centroids.shape[1] + 8) * FLOAT32_ROUNDING
        self._load(offsets)

    def _load(self, offsets: Float64[np.ndarray, "k d"]) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.engine == "bfloat16" else torch.float32
        rounded = torch.from_numpy(self.offsets).to(dtype)
        self.residual = float(np.linalg.norm(offsets - rounded.double().numpy(), axis=1).max())
        self.device_offsets = rounded.to(device)
        self.device_bias = torch.from_numpy(self.bias).to(device)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        """The index of the nearest centroid of each row; the lowest one when several are equally near."""
        if self.engine == "faiss":
            metric = faiss.METRIC_INNER_PRODUCT if self.unit else faiss.METRIC_L2
            return faiss.knn(x, self.centroids, 1, metric=metric)[1][:, 0].astype(np.int32)
        tiles = [self._assign_tile(x[start : start + TILE_ROWS]) for start in range(0, len(x), TILE_ROWS)]
        return np.concatenate(tiles) if tiles else np.empty(0, np.int32)

    def _assign_tile(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        shifted = x - self.center
        labels, candidates = self._screen(torch.from_numpy(shifted))
        if len(candidates.rows):
            candidates = self._drop_clear_losers(shifted, candidates)
            scores = self._scores(x, self.centroids, -self.half_norms, candidates)
            first = _first_of_rows(candidates.rows)
            best = np.repeat(np.maximum.reduceat(scores, first), np.diff(np.append(first, len(scores))))
            winners = np.flatnonzero(scores == best)
            rows, lowest = np.unique(candidates.rows[winners], return_index=True)
            labels[rows] = candidates.centroids[winners[lowest]]
        return labels

    def _screen(self, shifted: Float32[Tensor, "n d"]) -> tuple[Int32[np.ndarray, " n"], Candidates]:
        """The best by rounded products, and the candidates of those rows where another could be nearer."""
        shifted = shifted.to(self.device_offsets.device)
        rounded = shifted.to(self.device_offsets.dtype)
        scores = (rounded @ self.device_offsets.T).float()
        bound = self._bound(shifted, rounded, scores)
        scores += self.device_bias
        best = _argmax(scores)[:, None]
        top = scores.gather(1, best)
        runner_up = scores.scatter(1, best, -torch.inf).amax(1)
        close = (runner_up >= top[:, 0] - 2 * bound).nonzero()[:, 0]
        pairs = (scores[close] >= (top[:, 0] - 2 * bound)[close, None]).nonzero().cpu().numpy()
        return best[:, 0].int().cpu().numpy(), Candidates(close.cpu().numpy()[pairs[:, 0]], pairs[:, 1])

    def _bound(self, shifted: Tensor, rounded: Tensor, scores: Tensor) -> Float32[Tensor, " n"]:
        """How far a screened score can be from the true one, a row."""
        length = torch.linalg.vector_norm(shifted, dim=1)
        bound = length * (self.residual + self.sum_rounding * self.norm)
        if self.engine == "bfloat16":
            lost = torch.linalg.vector_norm(shifted - rounded, dim=1)
            largest = torch.maximum(scores.amax(1), -scores.amin(1))
            bound += lost * (self.norm + self.residual) + BFLOAT16_ROUNDING * largest
        return 1.01 * bound + self.bias_rounding

    def _drop_clear_losers(self, shifted: Float32[np.ndarray, "n d"], candidates: Candidates) -> Candidates:
        """Without the candidates that float32 shows to lose: nearly always one a row stays."""
        scores = self._scores(shifted, self.offsets, self.bias, candidates)
        lengths = np.linalg.norm(shifted, axis=1)
        bound = 1.01 * lengths * self.norm * self.sum_rounding + self.bias_rounding
        first = _first_of_rows(candidates.rows)
        best = np.repeat(np.maximum.reduceat(scores, first), np.diff(np.append(first, len(scores))))
        stay = scores >= best - 2 * bound[candidates.rows]
        return Candidates(candidates.rows[stay], candidates.centroids[stay])

    def _scores(
        self,
        x: Float32[np.ndarray, "n d"],
        centroids: Float32[np.ndarray, "k d"],
        bias: Float32[np.ndarray, " k"] | Float64[np.ndarray, " k"],
        candidates: Candidates,
    ) -> Float32[np.ndarray, " pairs"] | Float64[np.ndarray, " pairs"]:
        """x.c + bias of each pair, in the precision of the bias."""
        scores = np.empty(len(candidates.rows), bias.dtype)
        for start in range(0, len(scores), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            left = x[candidates.rows[part]].astype(bias.dtype, copy=False)
            right = centroids[candidates.centroids[part]].astype(bias.dtype, copy=False)
            scores[part] = np.einsum("nd,nd->n", left, right) + bias[candidates.centroids[part]]
        return scores


def _argmax(scores: Float32[Tensor, "n k"]) -> Int64[Tensor, " n"]:
    """NumPy's is ten times faster than torch's on a CPU."""
    return torch.from_numpy(scores.numpy().argmax(1)) if scores.device.type == "cpu" else scores.argmax(1)


def _first_of_rows(rows: Int64[np.ndarray, " pairs"]) -> Int64[np.ndarray, " groups"]:
    return np.flatnonzero(np.diff(rows, prepend=-1))
