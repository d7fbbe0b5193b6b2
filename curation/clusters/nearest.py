"""The nearest centroid of each row, exactly: rounded products screen, float64 decides.

Where a few directions say most about the rows, and products are slow, bounds from these rule out
most centroids before any product is made (subspace.py). Every centroid that no screen can rule out
is evaluated in float64, and ties go to the lowest index. Labels are therefore those of a float64
brute force, up to its own rounding, whatever the engine or the tile.

Example: centroids 0 to 3 are (0, 0), (10, 0), (10, 0.1) and (0, 10), and the row is (9, 0.06). With
8-bit integers, its scores (up to a constant of the row) are -7.65, 32.53, 32.49 and -57.08, and
twice their largest error is 0.63. The nearest centroid can therefore be 1 or 2, but no other. Their
scores x.c - |c|^2 / 2 in float64 are 40.000 and 40.001: the label is 2, although 8 bits prefer 1.
"""

import logging

import numpy as np
import torch
from jaxtyping import Float32, Int32

from curation.clusters.bounds import Centered
from curation.clusters.config import Engine
from curation.clusters.integer_screens import IntegerScreen, SubspaceScreen
from curation.clusters.integers import COSTS
from curation.clusters.screens import FaissScreen, Screen, TorchScreen
from curation.clusters.search_kernels import decide
from curation.clusters.subspace import choose_basis

# Integer products take milliseconds to prepare. With fewer centroids than this, FAISS has finished
# before that.
FEW_CENTROIDS = 64

logger = logging.getLogger(__name__)


def choose_engine(engine: Engine) -> Engine:
    """The engine of this machine for `auto`; any other engine is returned as it is.

    auto is torch on a GPU, and onnxruntime elsewhere: benchmarks.kmeans has the time of FAISS's own
    k-means. A named engine that is slow on this machine logs a warning. Labels are the same with
    every engine.
    """
    has_gpu = torch.cuda.is_available()
    if engine == "auto":
        return "torch" if has_gpu else "onnxruntime"
    if engine == "torch" and not has_gpu:
        logger.warning("engine=torch: at least 2 times slower than onnxruntime without a GPU")

    return engine


class Assigner:
    """Centroids prepared for search: by inner product if vectors are `unit`, else by distance."""

    def __init__(
        self,
        centroids: Float32[np.ndarray, "k d"],
        unit: bool,
        engine: Engine = "auto",
        sample: Float32[np.ndarray, "n d"] | None = None,
    ) -> None:
        """`sample` are some rows like those to come: they tell whether a subspace would help."""
        self.centroids = np.ascontiguousarray(centroids)
        self.unit = unit
        self.engine = engine
        chosen = choose_engine(engine) if engine == "auto" else engine
        if len(centroids) < FEW_CENTROIDS and chosen == "onnxruntime":
            chosen = "faiss"

        centered = Centered(self.centroids, unit)
        self.bias = centered.exact_bias
        self.screen = _screen(centered, chosen, sample)

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        """The index of the nearest centroid of each row; of equally near ones, the lowest index."""
        labels = np.empty(len(x), np.int32)
        for start in range(0, len(x), self.screen.tile_rows):
            tile = slice(start, min(start + self.screen.tile_rows, len(x)))
            candidates = self.screen(x[tile])
            decide(
                x[tile],
                self.centroids,
                self.bias,
                candidates.ends,
                candidates.columns,
                labels[tile],
            )

        return labels


def _screen(
    centered: Centered, engine: Engine, sample: Float32[np.ndarray, "n d"] | None
) -> Screen:
    if engine == "torch":
        return TorchScreen(centered)
    if engine == "faiss":
        return FaissScreen(centered)

    basis = None if sample is None else choose_basis(centered, sample, COSTS)
    return IntegerScreen(centered) if basis is None else SubspaceScreen(centered, basis)
