"""Unit vectors by inner product, in FAISS: all of them compared, or only those in the nearest
lists.

Vectors are stored as float16: half the memory, and cosines differ by at most 1e-3. Collections up
to `exact_mb` are compared vector by vector. Larger ones are cut into about sqrt(n) lists by
k-means, of which a query visits a quarter.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64

SHARE_VISITED = 4  # one list in four: texts lie apart from images, and need more lists than those
TRAINED_PER_LIST = 64  # vectors that k-means sees per list
ADDED_AT_ONCE = 1 << 14
BYTES_PER_VALUE = 2


class VectorIndex:
    """Searches rows by their vectors."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.dim = int(index.d)
        if isinstance(index, faiss.IndexIVF):
            index.parallel_mode = 1  # the threads share the lists of one query
            index.make_direct_map()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, query: Float32[np.ndarray, " d"], count: int
    ) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """The rows with the largest cosines, best first, and the cosines; at most `count`."""
        cosines, rows = self._index.search(query[None], min(count, len(self)))
        is_row = rows[0] >= 0  # lists that hold too few fill up with -1
        return rows[0][is_row], cosines[0][is_row]

    def vector(self, row: int) -> Float32[np.ndarray, " d"]:
        """The stored vector of a row."""
        return self._index.reconstruct(row)

    def write(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))


def read_index(path: Path) -> VectorIndex:
    """The index that `write` wrote."""
    return VectorIndex(faiss.read_index(str(path)))


def build_index(vectors: Float32[np.ndarray, "n d"], exact_mb: float, seed: int = 0) -> VectorIndex:
    """The index of unit vectors, in lists where they take more than `exact_mb`."""
    num_rows, dim = vectors.shape
    if num_rows * dim * BYTES_PER_VALUE <= exact_mb * 1e6:
        index = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors[:1])
    else:
        index = _train_lists(vectors, seed)

    for start in range(0, num_rows, ADDED_AT_ONCE):
        index.add(vectors[start : start + ADDED_AT_ONCE])

    return VectorIndex(index)


def _train_lists(vectors: Float32[np.ndarray, "n d"], seed: int) -> Any:
    """An empty index whose lists were learned on a sample."""
    num_rows, dim = vectors.shape
    num_lists = max(1, round(num_rows**0.5))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim),
        dim,
        num_lists,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,
    )
    index.nprobe = max(1, num_lists // SHARE_VISITED)
    index.cp.seed = seed
    index.cp.spherical = True  # centroids of unit vectors are unit vectors

    num_seen = min(num_rows, TRAINED_PER_LIST * num_lists)
    seen = np.random.default_rng(seed).choice(num_rows, num_seen, replace=False)
    index.train(vectors[np.sort(seen)])

    return index
