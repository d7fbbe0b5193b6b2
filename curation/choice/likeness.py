"""How near the vectors of two copies must be, estimated from the pool itself.

The cosine of an image with its nearest other image depends on the backbone, on the pictures and on
how many there are, so no fixed threshold fits. But -log(1 - cosine) is close to a normal
distribution. Its quartiles, which a few copies among the images hardly move, tell the value that
all but a chosen share of images stay below.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32
from scipy.special import ndtri

from curation.choice.config import LikenessConfig

# With fewer cosines than this, their quartiles say too little, and LIKELY and SURE are used.
LOOK_ALIKES = 0.2  # share of hash pairs above half the bound from which hashes do not decide
FEWEST = 200
LIKELY = 0.9
SURE = 0.985
LIKELY_RATE = 0.01  # share of images without a copy for which the hash has to decide
EQUAL = 1e-6  # the cosine of equal vectors is at least 1 less this: rounding of float32


class Cosines(NamedTuple):
    """The least cosines of copies."""

    likely: float
    """Enough if the hashes agree."""
    sure: float
    """Enough by itself."""


def calibrate(nearest: Float32[np.ndarray, " n"], false_rate: float) -> Cosines:
    """Thresholds from the cosine of each image with its nearest other image.

    99 % of images without a copy stay below `likely`, and all but a share of `false_rate` stay
    below `sure`. Example: 900 photographs, none of which has a copy among 100 others. Their nearest
    cosines have the lower quartile 0.834 and the median 0.848 (EfficientNet-Lite0). `likely` is
    then 0.887, and `sure` is 0.918 for one in a million. The largest of the 900 cosines is 0.892.
    """
    # Equal vectors are copies for certain, and say nothing about images without a copy.
    below_one = nearest[nearest < 1 - EQUAL]
    if len(below_one) < FEWEST:
        return Cosines(LIKELY, SURE)

    lower, median, upper = np.quantile(-np.log1p(-below_one.astype(np.float64)), [0.25, 0.5, 0.75])

    # Two estimates of the standard deviation: a quartile of a normal distribution lies 0.67 of it
    # from the median. Copies, if there are many, lie above the median and widen the upper half.
    # `likely`, where hashes are compared anyway, uses the lower half alone; `sure` uses the wider.
    below = (median - lower) / ndtri(0.75)
    above = (upper - median) / ndtri(0.75)
    likely = median - ndtri(LIKELY_RATE) * below
    sure = median - ndtri(false_rate) * max(below, above)

    # Back from -log(1 - cosine) to cosines.
    return Cosines(float(-np.expm1(-likely)), float(-np.expm1(-sure)))


def hashes_decide(bits: Int32[np.ndarray, " pairs"], most_bits: int) -> bool:
    """Whether near hashes tell copies in this pool, given the bits between the pairs within a bound.

    Copies of photographs differ in few bits and other photographs in many, with a gap between them:
    of 1,151 pairs within 30 bits, 7 % differ in more than 15. Drawings have no gap. PDQ sees
    brightness alone, so that one outline in several colors lies at any distance: of 5,967 such
    pairs, 38 % differ in more than 15 bits.
    """
    return len(bits) < FEWEST or bool((bits > most_bits / 2).mean() <= LOOK_ALIKES)


def least_cosine(config: LikenessConfig, calibrated: Cosines) -> float:
    """The cosine that is enough by itself; infinity if cosines are not used.

    A setting of 1 means equal up to rounding.
    """
    if config.cosine is None:
        return np.inf
    least = calibrated.sure if config.cosine == "auto" else float(config.cosine)
    return min(least, 1 - EQUAL)


class Rule(NamedTuple):
    """When two images whose vectors are near are copies."""

    cosines: Cosines
    least: float
    """Cosine that is enough by itself."""
    form_bits: int | None
    """Bits to a form that are enough if the cosine is likely; None: forms are not used."""

    @property
    def screen(self) -> float:
        """The cosine below which no pair is alike."""
        return min(self.least, self.cosines.likely) if self.form_bits is not None else self.least


def rule_of(config: LikenessConfig, calibrated: Cosines) -> Rule:
    """The rule of a config, with the cosines of a pool."""
    return Rule(calibrated, least_cosine(config, calibrated), config.form_bits)
