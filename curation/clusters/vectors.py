"""Row vectors that k-means, duplicates and leakage read: a memory-mapped column of embedding shards, or an array.

A reader gathers float32 rows by number and never holds the whole matrix. With `unit` every row is scaled to length one;
a row's result depends on that row alone, so that nothing downstream can depend on shards, blocks or workers.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped

from curation.clusters.kernels import scale_to_unit
from curation.shards.codec import STORED_TYPES, decode_tokens
from curation.shards.reader import open_shards


@runtime_checkable
class Vectors(Protocol):
    """Rows of one width, read by number."""

    num_rows: int
    dim: int
    unit: bool
    """Whether all rows but zeros have length one."""

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Copies of some rows, in the order asked; written into `out` when one is given."""
        ...


class ArrayVectors:
    """The rows of an array in memory, which have length one if they are said to."""

    def __init__(self, array: Float32[np.ndarray, "n dim"], unit: bool = False) -> None:
        self.array, self.unit = array, unit
        self.num_rows, self.dim = array.shape

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        return np.take(self.array, rows, axis=0, out=out, mode="raise" if out is None else "clip")


class ShardVectors:
    """One vector column of a folder of embedding shards, opened where it is used."""

    def __init__(self, folder: Path, column: str, unit: bool = False) -> None:
        self.folder, self.column, self.unit = folder, column, unit
        self.shards = open_shards(folder)
        self.num_rows, self.dim = self.shards.num_rows, self.shards.spec.width(column)
        self._stored: Shaped[np.ndarray, "n 1 d"] = np.empty((0, 1, self.dim), np.float16)

    def __reduce__(self) -> tuple[Callable[..., "ShardVectors"], tuple[Path, str, bool]]:
        return _open_once, (self.folder, self.column, self.unit)

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        out = np.empty((len(rows), self.dim), np.float32) if out is None else out
        stored, scale = self.shards.gather_stored(rows, self.column, self._stored_rows(len(rows)))
        if stored.dtype == np.float16:  # torch converts ten times faster than NumPy
            torch.from_numpy(out).copy_(torch.from_numpy(stored)[:, 0])
        else:
            out[:] = decode_tokens(stored, scale, self.shards.spec.dtype_of(self.column))[:, 0]
        if self.unit:
            scale_to_unit(out)
        return out

    def _stored_rows(self, count: int) -> Shaped[np.ndarray, "n 1 d"]:
        """Room for rows as stored, the same for every block: what comes and goes leaves holes in a process's memory."""
        if len(self._stored) < count:
            dtype = STORED_TYPES[self.shards.spec.dtype_of(self.column)]
            self._stored = np.empty((count, 1, self.dim), dtype)
        return self._stored[:count]


@functools.lru_cache(maxsize=8)
def _open_once(folder: Path, column: str, unit: bool) -> ShardVectors:
    """A worker that receives the same shards with every call maps them once."""
    return ShardVectors(folder, column, unit)


def to_unit(x: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n dim"]:
    """Rows scaled to length one; zero rows stay zero."""
    scaled = np.array(x, np.float32)
    scale_to_unit(scaled)
    return scaled
