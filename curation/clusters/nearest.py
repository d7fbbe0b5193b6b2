"""The nearest centroid of each row, exactly: products of rounded vectors screen, close calls are decided in float64.

The screen's error is bounded: |x.c - x^.c^| <= |x - x^| |c| + |x^| |c - c^|, where x^ and c^ are the rounded values.
All centroids whose screened score lies within twice the bound of the best are evaluated in float64, ties going to the
lowest index. Labels are therefore those of a float64 brute force, up to its own rounding, whatever the engine or the
tile. FAISS is the independent reference, exact up to float32.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64

from curation.clusters.config import Engine
from curation.clusters.kernels import INT8_MOST, decide, shift_and_round, shortlist

Shortlist = tuple[Int64[np.ndarray, " n_plus_1"], Int32[np.ndarray, " pairs"]]

EXACT_VALUES = 1 << 18  # of centroids in float64, 2 MB: copies of all are too much where there are many
SMALLEST_TILE, LARGEST_TILE = 32, 4096  # rows
TILE_SCORES = 1 << 18
TORCH_TILE_SCORES = 1 << 26
FLOAT32_ROUNDING = 2.0**-24
BFLOAT16_ROUNDING = 2.0**-8
SLACK = 1.02  # for what the bound itself loses to rounding


def choose_engine(engine: Engine) -> Engine:
    """What `auto` means on this machine: torch in bfloat16 on a GPU, int8 where a CPU multiplies it, else float32."""
    if engine != "auto":
        return engine
    if torch.cuda.is_available():
        return "torch"
    return "int8" if torch.cpu._is_vnni_supported() else "float32"


class Screen(Protocol):
    """Finds, cheaply, the few centroids that may be nearest."""

    tile_rows: int

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        """Candidates of at most `tile_rows` rows: those of row i are found[ends[i] : ends[i + 1]]; never none."""
        ...


class Assigner:
    """Centroids made ready for search: by inner product when vectors are `unit`, otherwise by Euclidean distance."""

    def __init__(self, centroids: Float32[np.ndarray, "k d"], unit: bool, engine: Engine = "auto") -> None:
        self.centroids, self.unit, self.engine = np.ascontiguousarray(centroids), unit, choose_engine(engine)
        self.bias: Float64[np.ndarray, " k"] = np.zeros(len(centroids))
        for rows, exact in _blocks(self.centroids) if not unit else ():
            self.bias[rows] = -np.einsum("kd,kd->k", exact, exact) / 2
        if self.engine != "faiss":
            self.screen = SCREENS[self.engine](Centered(self.centroids, unit))

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        """The index of the nearest centroid of each row; the lowest one when several are equally near."""
        if self.engine == "faiss":
            return self._by_faiss(x)
        labels = np.empty(len(x), np.int32)
        for start in range(0, len(x), self.screen.tile_rows):
            tile = x[start : start + self.screen.tile_rows]
            decide(tile, self.centroids, self.bias, *self.screen(tile), labels[start : start + len(tile)])
        return labels

    def _by_faiss(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        metric = faiss.METRIC_INNER_PRODUCT if self.unit else faiss.METRIC_L2
        if faiss.get_num_gpus():
            nearest = faiss.knn_gpu(faiss.StandardGpuResources(), x, self.centroids, 1, metric=metric)[1]
        else:
            nearest = faiss.knn(x, self.centroids, 1, metric=metric)[1]
        return nearest[:, 0].astype(np.int32)


class Centered:
    """Centroids less their mean m, which also leaves the rows: the smaller the vectors, the less is rounded away.

    x.c + b = (x - m).(c - m) + b' + a constant of the row, with b' = -|c - m|^2 / 2, or m.c for inner products.
    """

    def __init__(self, centroids: Float32[np.ndarray, "k d"], unit: bool) -> None:
        self.centroids, bias = centroids, np.empty(len(centroids))
        self.mean: Float32[np.ndarray, " d"] = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.longest = self.largest = 0.0
        for rows, exact in _blocks(centroids):
            offsets = exact - self.mean
            bias[rows] = exact @ self.mean.astype(np.float64) if unit else -np.einsum("kd,kd->k", offsets, offsets) / 2
            self.longest = max(self.longest, _longest(offsets))
            self.largest = max(self.largest, float(np.abs(offsets).max()))
        self.bias: Float32[np.ndarray, " k"] = (bias - bias.mean()).astype(np.float32)
        self.bias_rounding = 4 * FLOAT32_ROUNDING * float(np.abs(self.bias).max() + np.abs(bias).max())

    def rounded(self, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, float]:
        """The offsets in units of `scale`, rounded to a type; the most that this moves one."""
        found, residual = torch.empty(self.centroids.shape, dtype=dtype), 0.0
        for rows, exact in _blocks(self.centroids):
            offsets = torch.from_numpy(exact - self.mean)
            found[rows] = (offsets / scale).round() if dtype == torch.int8 else offsets / scale
            residual = max(residual, _longest((offsets - found[rows].double() * scale).numpy()))
        return found, residual

    def bound(
        self, length: Float32[np.ndarray, " n"], lost: Float32[np.ndarray, " n"], residual: float
    ) -> Float32[np.ndarray, " n"]:
        """How far a score can be from the true one, a row: of this length, of which rounding moved `lost`."""
        sums = (self.centroids.shape[1] + 8) * FLOAT32_ROUNDING * self.longest
        bound = length * (residual + sums) + lost * (self.longest + residual)
        return (SLACK * bound + self.bias_rounding).astype(np.float32)


def _blocks(centroids: Float32[np.ndarray, "k d"]) -> Iterator[tuple[slice, Float64[np.ndarray, "n d"]]]:
    """Some centroids at a time, in float64; a row's result must not depend on the others beside it."""
    step = max(1, EXACT_VALUES // centroids.shape[1])
    for start in range(0, len(centroids), step):
        yield slice(start, start + step), centroids[start : start + step].astype(np.float64)


def _longest(offsets: Float64[np.ndarray, "n d"]) -> float:
    return float(np.linalg.norm(offsets, axis=1).max())


class Int8Screen:
    """Integer products of rows and centroids that are each scaled to -127 .. 127; exact sums, one scale a row."""

    def __init__(self, centered: Centered) -> None:
        self.centered, (num_clusters, dim) = centered, centered.centroids.shape
        self.unit_of_offsets = max(centered.largest / float(INT8_MOST), 1e-30)
        integers, self.residual = centered.rounded(torch.int8, self.unit_of_offsets)
        self.integers = integers.T
        self.tile_rows = rows = tile_rows(num_clusters, TILE_SCORES)
        self.rounded = np.empty((rows, dim), np.int8)
        self.unit, self.lost, self.length = np.empty((3, rows), np.float32)
        self.products = torch.empty(rows, num_clusters, dtype=torch.int32)
        self.ends, self.found = np.empty(rows + 1, np.int64), np.empty(rows * num_clusters, np.int32)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        rows = len(x)
        unit, lost, length = self.unit[:rows], self.lost[:rows], self.length[:rows]
        shift_and_round(x, self.centered.mean, self.rounded, unit, lost, length)
        products = torch._int_mm(torch.from_numpy(self.rounded[:rows]), self.integers, out=self.products[:rows])
        margin = 2 * self.centered.bound(length, lost, self.residual)
        unit *= np.float32(self.unit_of_offsets)
        shortlist(products.numpy(), unit, self.centered.bias, margin, self.ends, self.found)
        return self.ends, self.found


class Float32Screen:
    """Products in float32, for CPUs without integer products."""

    def __init__(self, centered: Centered) -> None:
        self.centered, num_clusters = centered, len(centered.centroids)
        self.offsets, self.residual = centered.rounded(torch.float32)
        self.tile_rows = rows = tile_rows(num_clusters, TILE_SCORES)
        self.products, self.ones = torch.empty(rows, num_clusters), np.ones(rows, np.float32)
        self.ends, self.found = np.empty(rows + 1, np.int64), np.empty(rows * num_clusters, np.int32)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        shifted = torch.from_numpy(x - self.centered.mean)
        products = torch.mm(shifted, self.offsets.T, out=self.products[: len(x)])
        length = torch.linalg.vector_norm(shifted, dim=1).numpy()
        margin = 2 * self.centered.bound(length, np.zeros_like(length), self.residual)
        shortlist(products.numpy(), self.ones, self.centered.bias, margin, self.ends, self.found)
        return self.ends, self.found


class TorchScreen:
    """Products in bfloat16 on the GPU, where there is one."""

    def __init__(self, centered: Centered) -> None:
        self.centered = centered
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mean = torch.from_numpy(centered.mean).to(self.device)
        self.bias = torch.from_numpy(centered.bias).to(self.device)
        rounded, self.residual = centered.rounded(torch.bfloat16)
        self.offsets = rounded.to(self.device)
        self.tile_rows = tile_rows(len(rounded), TORCH_TILE_SCORES)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Shortlist:
        shifted = torch.from_numpy(x).to(self.device) - self.mean
        rounded = shifted.bfloat16()
        scores = (rounded @ self.offsets.T).float() + self.bias
        top = scores.amax(1)
        lost, length = (torch.linalg.vector_norm(part, dim=1) for part in (rounded - shifted, shifted))
        bound = torch.from_numpy(self.centered.bound(length.cpu().numpy(), lost.cpu().numpy(), self.residual))
        # the products are rounded too: those, without their bias, of centroids whose score is near the top
        largest = torch.maximum(top - self.bias.min(), self.bias.max() - top)
        least = top - 2 * (bound.to(self.device) + SLACK * BFLOAT16_ROUNDING * largest)
        rows, found = (scores >= least[:, None]).nonzero().T.cpu().numpy()
        return np.searchsorted(rows, np.arange(len(x) + 1)), found.astype(np.int32)


SCREENS: dict[Engine, Callable[[Centered], Screen]] = {
    "int8": Int8Screen,
    "float32": Float32Screen,
    "torch": TorchScreen,
}


def tile_rows(num_clusters: int, scores: int) -> int:
    """Rows whose scores fit."""
    return max(SMALLEST_TILE, min(LARGEST_TILE, scores // num_clusters))
