"""How near two vectors must be to belong to copies of one image: read off the pool itself, not set
per backbone.

The cosine of an image with its nearest image of another kind depends on the backbone, on the
pictures and on how many there are. Minus the logarithm of one minus it is close to normal, so the
quartiles of a pool, which some copies among the images hardly move, tell which value all but a
given share of images stay below.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from scipy.stats import norm

from curation.choice.config import LikenessConfig

FEWEST = 200  # cosines that a quantile may be read off; with fewer, the values below are taken
LIKELY = 0.9
SURE = 0.985
LIKELY_RATE = 0.01  # of images without a copy that the hash has to decide on
EQUAL = 1e-6  # cosines of equal vectors fall short of 1 by this at most: rounding of float32


class Cosines(NamedTuple):
    """The least cosines of copies: `likely` with the word of a hash, `sure` by themselves."""

    likely: float
    sure: float


def calibrate(nearest: Float32[np.ndarray, " n"], false_rate: float) -> Cosines:
    """Thresholds from the cosine of each image with its nearest other image.

    `likely` is what 99 % of images without a copy stay below, `sure` what all but a share of
    `false_rate` stay below. Example: of 900 photographs without a copy among 100 others, nearest
    cosines have quartile .834 and median .848 (EfficientNet-Lite0); `likely` is then .887, and
    `sure` .918 for one in a million. The largest of the 900 is .892.
    """
    below_one = nearest[nearest < 1 - EQUAL]
    if len(below_one) < FEWEST:
        return Cosines(LIKELY, SURE)

    lower, median, upper = np.quantile(-np.log1p(-below_one.astype(np.float64)), [0.25, 0.5, 0.75])

    # copies, where there are many, are above the median: what only leads to a look at the hash does
    # without that half
    below = (median - lower) / norm.ppf(0.75)
    above = (upper - median) / norm.ppf(0.75)
    likely = median + norm.isf(LIKELY_RATE) * below
    sure = median + norm.isf(false_rate) * max(below, above)

    return Cosines(float(-np.expm1(-likely)), float(-np.expm1(-sure)))


def least_cosine(config: LikenessConfig, calibrated: Cosines) -> float:
    """The cosine that is enough by itself; infinite where it is not used. 1 means equal up to
    rounding.
    """
    if config.cosine is None:
        return np.inf
    least = calibrated.sure if config.cosine == "auto" else float(config.cosine)
    return min(least, 1 - EQUAL)


class Rule(NamedTuple):
    """When two images whose vectors are near are copies: cosines, and the bits of a form; None
    where not used.
    """

    cosines: Cosines
    least: float
    form_bits: int | None

    @property
    def screen(self) -> float:
        """The cosine below which no pair is alike."""
        return min(self.least, self.cosines.likely) if self.form_bits is not None else self.least


def rule_of(config: LikenessConfig, calibrated: Cosines) -> Rule:
    """The rule that a config and a pool make."""
    return Rule(calibrated, least_cosine(config, calibrated), config.form_bits)
