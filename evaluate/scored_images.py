"""What segmentation keeps of the images that it has scored: counts of each, and a few maps.

The maps of a whole set would not fit into memory. What is kept of two parts of a set is joined to
what would have been kept of both at once.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from evaluate.heat import Judged
from evaluate.sets.kinds import IGNORED

HEAT_MAPS_SHOWN = 4  # per example: the names that cover the most pixels

LabelMap = tuple[float, int, Int32[np.ndarray, "_ _"]]
"""The share of right pixels, the index of the image, and the predicted class of each pixel."""


class ScoredImages:
    """Counts of images in the order in which they are added, and the maps that people are shown:
    those of the images in `shown`, and of half as many again with the smallest share of right
    pixels.
    """

    def __init__(self, shown: Collection[int]) -> None:
        self._shown = shown
        self._maps: dict[int, Int32[np.ndarray, "_ _"]] = {}
        self._worst: list[LabelMap] = []

        self.counts: list[Int64[np.ndarray, "5 classes"]] = []
        """Of each image, what the metrics count per class (`segmentation._counts`)."""
        self.counts_alone: list[list[tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]]] = []
        """Of each image, the pixels in both maps and in either, for the first and the last names."""
        self.counts_alike: list[tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]] = []
        """Of each image, overlaps and unions of Open-mIoU, if it is asked for."""
        self.judged: list[Judged] = []
        """Of each image, how good the heat map of each of its names is."""
        self.heats: dict[int, tuple[Judged, Float32[np.ndarray, "_ _ _"]]] = {}
        """Heat maps of the largest names of the images in `shown`, and how good they are."""

    def show(
        self,
        index: int,
        truth: Int32[np.ndarray, "h w"],
        predicted: Int32[np.ndarray, "h w"],
        heat: Float32[np.ndarray, "wanted h w"],
    ) -> None:
        """Keep the maps of the image that was judged last, if they are to be shown."""
        judged = self.judged[-1]
        if index in self._shown:
            largest = np.argsort(-np.array(judged.shares), kind="stable")[:HEAT_MAPS_SHOWN]
            self._maps[index] = predicted
            self.heats[index] = (judged.take(largest.tolist()), heat[largest])

        self._keep_worst([(_right_share(truth, predicted), index, predicted)])

    def extend(self, later: "ScoredImages") -> None:
        """Add the images of a later part of the set."""
        self.counts += later.counts
        self.counts_alone += later.counts_alone
        self.counts_alike += later.counts_alike
        self.judged += later.judged
        self.heats |= later.heats
        self._maps |= later._maps
        self._keep_worst(later._worst)

    def all_maps(self) -> dict[int, Int32[np.ndarray, "_ _"]]:
        """The label maps that are shown, by index of the image."""
        return self._maps | {index: predicted for _, index, predicted in self._worst}

    def _keep_worst(self, more: list[LabelMap]) -> None:
        # The worst first; of equal shares, that of the first image. Arrays cannot be compared.
        worst = sorted(self._worst + more, key=lambda each: each[:2])
        self._worst = worst[: len(self._shown) // 2]


def _right_share(truth: Int32[np.ndarray, "h w"], predicted: Int32[np.ndarray, "h w"]) -> float:
    """The share of the pixels that count whose class is right; 1 where none counts."""
    counted = truth != IGNORED
    return float((truth == predicted)[counted].mean()) if counted.any() else 1.0
