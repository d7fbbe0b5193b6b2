"""The nearest centroid of each row, exactly: rounded products screen, close calls are decided in
float64.

Every centroid that the screen cannot rule out (screens.py) is evaluated in float64, and ties go to
the lowest index. Labels are therefore those of a float64 brute force, up to its own rounding,
whatever the engine or the tile.
"""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32

from curation.clusters.bounds import Centered, float64_blocks
from curation.clusters.config import Engine
from curation.clusters.integers import OneDnnProduct, OnnxRuntimeProduct
from curation.clusters.kernels import decide
from curation.clusters.screens import FaissScreen, IntegerScreen, Screen, TorchScreen

SCREENS: dict[Engine, Callable[[Centered], Screen]] = {
    "onnxruntime": partial(IntegerScreen, product=OnnxRuntimeProduct),
    "onednn": partial(IntegerScreen, product=OneDnnProduct),
    "faiss": FaissScreen,
    "torch": TorchScreen,
}

# Integer products take milliseconds to prepare: for fewer centroids, FAISS is done before that.
FEW_CENTROIDS = 64

logger = logging.getLogger(__name__)


def choose_engine(engine: Engine) -> Engine:
    """The engine for this machine where `auto` is asked for; the labels are the same whatever is
    chosen.

    torch on a GPU; oneDNN on a processor with VNNI; onnxruntime elsewhere. With AVX2 alone, whole
    runs take faiss.Kmeans 1.2 to 1.3 times the CPU time of onnxruntime (benchmarks.kmeans, 4,096
    and 10,000 clusters), and torch's own integer product is 200 times slower. A named engine that
    is slow here is used with a warning.
    """
    has_gpu = torch.cuda.is_available()
    has_vnni = torch.cpu._is_vnni_supported()
    if engine == "auto":
        if has_gpu:
            return "torch"
        return "onednn" if has_vnni else "onnxruntime"
    if engine == "onednn" and not has_vnni:
        logger.warning(
            "engine=onednn: about 200 times slower than onnxruntime on this processor, which "
            "has no VNNI"
        )
    if engine == "torch" and not has_gpu:
        logger.warning("engine=torch: at least 2 times slower than onnxruntime without a GPU")

    return engine


class Assigner:
    """Centroids made ready for search: by inner product when vectors are `unit`, otherwise by
    Euclidean distance.
    """

    def __init__(
        self, centroids: Float32[np.ndarray, "k d"], unit: bool, engine: Engine = "auto"
    ) -> None:
        self.centroids = np.ascontiguousarray(centroids)
        self.unit = unit
        self.engine = engine
        chosen = choose_engine(engine) if engine == "auto" else engine
        if len(centroids) < FEW_CENTROIDS and chosen in ("onnxruntime", "onednn"):
            chosen = "faiss"

        self.screen = SCREENS[chosen](Centered(self.centroids, unit))

        self.bias: Float64[np.ndarray, " k"] = np.zeros(len(centroids))
        if not unit:
            for rows, exact in float64_blocks(self.centroids):
                self.bias[rows] = -np.einsum("kd,kd->k", exact, exact) / 2

    def __call__(self, x: Float32[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        """The index of the nearest centroid of each row; the lowest one when several are equally
        near.
        """
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
