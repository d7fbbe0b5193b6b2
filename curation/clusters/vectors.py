"""Row vectors that k-means, duplicates and leakage read: from embedding shards, or from an array.

A reader gathers float32 rows by number and never holds the whole matrix. With `unit` it scales
every row to length one. The result of a row depends on that row alone, so that nothing downstream
can depend on shards, blocks or workers.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
        """Copies of some rows, in the order of `rows`; in `out` if it is not None."""
        ...


class ArrayVectors:
    """The rows of an array in memory. With `unit`, the caller has scaled them to length one."""

    def __init__(self, array: Float32[np.ndarray, "n dim"], unit: bool = False) -> None:
        self.array = array
        self.unit = unit
        self.num_rows, self.dim = array.shape

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Copies of some rows, in the order of `rows`; in `out` if it is not None."""
        # With mode="raise", NumPy would write to a buffer of its own first and copy that to `out`.
        return np.take(self.array, rows, axis=0, out=out, mode="raise" if out is None else "clip")


class ShardVectors:
    """One vector column of a folder of embedding shards, opened in each process that uses it."""

    def __init__(self, folder: Path, column: str, unit: bool = False) -> None:
        self.folder = folder
        self.column = column
        self.unit = unit
        self.shards = open_shards(folder)
        self.num_rows = self.shards.num_rows
        self.dim = self.shards.spec.width(column)
        self._stored: Shaped[np.ndarray, "n 1 d"] = np.empty((0, 1, self.dim), np.float16)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        # Pickled as a folder: the worker opens the shards itself and receives no vectors.
        return open_once, (ShardVectors, self.folder, self.column, self.unit)

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Rows in float32, in the order of `rows`; in `out` if it is not None."""
        out = np.empty((len(rows), self.dim), np.float32) if out is None else out
        stored, scale = self.shards.gather_stored(rows, self.column, self._stored_rows(len(rows)))

        if stored.dtype == np.float16:
            # torch converts float16 to float32 ten times faster than NumPy does.
            torch.from_numpy(out).copy_(torch.from_numpy(stored)[:, 0])
        else:
            out[:] = decode_tokens(stored, scale, self.shards.spec.dtype_of(self.column))[:, 0]

        if self.unit:
            scale_to_unit(out)

        return out

    def _stored_rows(self, count: int) -> Shaped[np.ndarray, "n 1 d"]:
        """Scratch buffer reused for every block, to avoid heap fragmentation."""
        if len(self._stored) < count:
            dtype = STORED_TYPES[self.shards.spec.dtype_of(self.column)]
            self._stored = np.empty((count, 1, self.dim), dtype)
        return self._stored[:count]


@functools.lru_cache(maxsize=16)
def open_once(kind: Callable[..., Any], *arguments: object) -> Any:
    """kind(*arguments), the same object on every call with equal arguments.

    A pickled reader of files unpickles through this function. A worker that receives the same
    reader with every call therefore opens and maps the files once.
    """
    return kind(*arguments)


def to_unit(x: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n dim"]:
    """Rows scaled to length one; zero rows stay zero."""
    scaled = np.array(x, np.float32)
    scale_to_unit(scaled)
    return scaled
