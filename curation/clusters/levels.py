"""Finished levels on disk: `level-N.npz` with labels and distances, and `level-N.centroids.npy`.

Centroids stay in their file: ten million of 1,024 values are 40 GB, which every process of a
machine maps and none copies. The `.npz` is written last: once it exists, the level is complete.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from cluster.files import replacing
from curation.clusters.kernels import scale_to_unit
from curation.clusters.vectors import open_once


class Level(NamedTuple):
    """One finished level: its centroids, and the label and squared distance of each point.

    The points are the rows of the pool for level 1, and the centroids below for the others.
    """

    centroids: Float32[np.ndarray, "k d"]
    labels: Int32[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]


class StoredCentroids:
    """The centroids of a level as points of the next, mapped by each process that reads them."""

    def __init__(self, path: Path, unit: bool) -> None:
        self.path = path
        self.unit = unit
        self.array = np.load(path, mmap_mode="r")
        self.num_rows, self.dim = self.array.shape

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        # Pickled as a path: the worker maps the file itself and receives no centroids.
        return open_once, (StoredCentroids, self.path, self.unit)

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Copies of some centroids, in the order of `rows`; in `out` if it is not None."""
        out = np.empty((len(rows), self.dim), np.float32) if out is None else out
        # With mode="raise", NumPy would write to a buffer of its own first and copy that to `out`.
        np.take(self.array, rows, axis=0, out=out, mode="clip")
        if self.unit:
            scale_to_unit(out)
        return out


def centroids_path(level: Path) -> Path:
    """The file of the centroids of the level at `level-N.npz`."""
    return level.with_suffix(".centroids.npy")


def read_level(path: Path) -> Level:
    """A level that `write_level` wrote; its centroids are mapped, not read."""
    centroids = np.load(centroids_path(path), mmap_mode="r")
    with np.load(path) as stored:
        return Level(centroids, stored["labels"], stored["distances"])


def write_level(
    path: Path,
    centroids: Iterable[Float32[np.ndarray, "_ d"]],
    labels: Int32[np.ndarray, " n"],
    distances: Float32[np.ndarray, " n"],
) -> None:
    """Write a level, its centroids block by block, then delete the checkpoints that led to it."""
    with replacing(centroids_path(path)) as temporary:
        _write_blocks(temporary, centroids)

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, labels=labels, distances=distances)

    for pattern in ("round-*", "part-*"):
        for state in path.parent.glob(f"{path.stem}.{pattern}.npz"):
            state.unlink()


def _write_blocks(path: Path, blocks: Iterable[Float32[np.ndarray, "_ d"]]) -> None:
    """Write an .npy file whose number of rows is only known at the end.

    NumPy pads the header of every file, so that a header with a larger number of rows has the same
    length and can overwrite the first one.
    """
    num_rows = 0
    dim = 0
    with path.open("wb") as file:
        for block in blocks:
            if not num_rows:
                dim = block.shape[1]
                _write_header(file, 0, dim)
            file.write(np.ascontiguousarray(block).tobytes())
            num_rows += len(block)
        file.seek(0)
        _write_header(file, num_rows, dim)


def _write_header(file: BinaryIO, num_rows: int, dim: int) -> None:
    # "<f4" is little-endian float32, whatever the machine.
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)
