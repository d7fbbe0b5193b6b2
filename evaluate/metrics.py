"""Scores, intervals and baselines: arrays in, numbers out.

Almost every metric here is a ratio of sums over items, averaged over columns: the mean over c of
sum(hits[:, c]) / sum(trials[:, c]). Top-k accuracy, recall and pixel accuracy have one column; mIoU
and the mean accuracy per class have one for each class. One bootstrap therefore serves all, and the
same resamples of two models give the interval of their difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64, Integer
from scipy.stats import rankdata
from torch import Tensor

from evaluate.sets.kinds import IGNORED

Statistic = Literal["mean", "median", "difference", "spearman"]

Z_95 = 1.959963984540054
"""95 % of a normal distribution lie within this many standard deviations of its mean."""
SAMPLES_AT_ONCE = 64
"""Resamples whose weights are in memory at once: 26 MB of float64 for 50,000 items."""
BOUNDARY_SHARE = 0.0075
"""Tolerance of boundaries as a share of the image's diagonal (Csurka et al., "What is a good
evaluation measure for semantic segmentation?", BMVC 2013).
"""


@dataclass(frozen=True)
class Tally:
    """What one metric is computed from: per item (an image, or an image with its captions) and
    column (class).

    Two images of classes 0 and 2, the second one wrong, have hits [[1], [0]], trials [[1], [1]] and
    columns [0, 2]: the accuracy per class is 1 and 0, and its mean 0.5.
    """

    hits: Float64[np.ndarray, "items columns"]
    trials: Float64[np.ndarray, "items columns"]
    columns: Int64[np.ndarray, " items"] | None = None
    """The column that each item counts in, where every item has one alone; hits and trials then
    have one column.
    """
    statistic: Statistic = "mean"
    """mean: the ratio of hits to trials, averaged over columns. median: that of the hits, as of
    ranks. difference: the mean of the first half of the columns less that of the second half.
    spearman: the rank correlation of the hits (cosines) with the trials (a set's scores).
    """

    @property
    def value(self) -> float:
        return float(_resampled(self, np.ones((1, len(self.hits))))[0])

    def per_column(self) -> Float64[np.ndarray, " columns"]:
        """The ratio of each column; NaN where it was never tried."""
        hits = _by_column(self, self.hits)[0]
        trials = _by_column(self, self.trials)[0]

        # NumPy divides before it selects: a divisor of 1 in the columns without trials avoids a
        # warning, and the outer choice discards their quotient.
        return np.where(trials > 0, hits / np.where(trials > 0, trials, 1), np.nan)

    def trials_per_column(self) -> Float64[np.ndarray, " columns"]:
        """How much was tried in each column."""
        return _by_column(self, self.trials)[0]


def less(first: Tally, second: Tally) -> Tally:
    """The metric of the first tally less that of the second, on the same items, as one tally."""
    return Tally(
        np.concatenate([first.hits, second.hits], axis=1),
        np.concatenate([first.trials, second.trials], axis=1),
        statistic="difference",
    )


class Estimate(NamedTuple):
    """A value with the limits of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def estimate(tally: Tally, samples: int, seed: int) -> Estimate:
    """A metric with its 95 % interval: Wilson's for plain proportions, else a percentile bootstrap.

    The bootstrap (Efron 1979) draws `samples` times as many items as there are, with replacement,
    and takes the metric's quantiles at 2.5 % and 97.5 %. The same seed gives the same interval.
    """
    is_mean = tally.statistic == "mean" and tally.columns is None and tally.trials.shape[1] == 1
    if is_mean and bool((tally.trials == 1).all()):
        return wilson(float(tally.hits.sum()), len(tally.trials))

    values = [_resampled(tally, weights) for weights in _resamples(len(tally.hits), samples, seed)]
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])

    # A resample often lacks the rare classes, which shifts a mean over classes; a median can lie
    # outside the quantiles of its resamples. An interval must hold its value.
    value = tally.value
    return Estimate(value, min(float(low), value), max(float(high), value))


def estimate_columns(tally: Tally, samples: int, seed: int) -> list[Estimate | None]:
    """The ratio of each column with its 95 % interval, by the rules of `estimate`; None where a column
    was never tried.

    The resamples are those of `estimate`. Those that lack a column say nothing of it, and are left
    out of its quantiles.
    """
    ratios = tally.per_column()
    trials = tally.trials_per_column()
    if bool((tally.trials == 1).all()) and (tally.columns is not None or len(ratios) == 1):
        hits = _by_column(tally, tally.hits)[0]
        return [
            wilson(float(right), int(tried)) if tried else None
            for right, tried in zip(hits, trials, strict=True)
        ]

    blocks = []
    for weights in _resamples(len(tally.hits), samples, seed):
        drawn = _by_column(tally, tally.trials, weights)
        share = _by_column(tally, tally.hits, weights) / np.where(drawn > 0, drawn, 1)
        blocks.append(np.where(drawn > 0, share, np.nan))

    # A column that no resample tried has no quantiles but its own ratio.
    values = np.concatenate(blocks)
    values = np.where(np.isnan(values).all(0), ratios, values)
    tried = np.flatnonzero(trials > 0)
    low, high = np.full((2, len(ratios)), np.nan)
    low[tried], high[tried] = np.nanquantile(values[:, tried], [0.025, 0.975], axis=0)

    return [
        Estimate(float(ratio), min(float(bottom), float(ratio)), max(float(top), float(ratio)))
        if times > 0
        else None
        for ratio, bottom, top, times in zip(ratios, low, high, trials, strict=True)
    ]


def wilson(hits: float, trials: int) -> Estimate:
    """Proportion with its 95 % score interval (Wilson 1927, JASA 22:209-212).

    The interval is inside [0, 1], and not of zero width at 0 or 1: 10 hits in 10 trials give 0.72
    to 1. SciPy's needs whole hits; ours are fractions where answers tie.
    """
    share = hits / trials
    z2 = Z_95**2

    # The interval holds every proportion p for which `share` lies within Z_95 standard deviations
    # of p, sqrt(p (1 - p) / trials): a quadratic inequality, solved for p.
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))

    # At 0 and 1, rounding can put a limit just outside [0, 1], or the share outside the interval.
    return Estimate(
        share,
        min(max(0.0, float(center - half)), share),
        max(min(1.0, float(center + half)), share),
    )


def paired_difference(ours: Tally, other: Tally, samples: int, seed: int) -> Estimate:
    """`ours` minus `other` on the same items, with a 95 % bootstrap interval.

    Each resample draws the same items for both. Items that are hard for both then cancel out of the
    difference, and the interval is narrower than those of the two values suggest. ValueError if the
    tallies have different shapes.
    """
    if ours.hits.shape != other.hits.shape:
        raise ValueError(
            f"cannot compare {ours.hits.shape} items with {other.hits.shape}: the same evaluation "
            "set is required"
        )
    # The same draws for both: what makes an item hard for both models cancels out.
    blocks = _resamples(len(ours.hits), samples, seed)
    differences = [_resampled(ours, weights) - _resampled(other, weights) for weights in blocks]
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return Estimate(ours.value - other.value, float(low), float(high))


def _resamples(
    items: int, samples: int, seed: int
) -> Iterator[Float64[np.ndarray, "resamples items"]]:
    """How often each item is drawn in each bootstrap sample, a few samples at a time.

    The draws are those of all samples at once. Example: 4 items, of which a sample draws the
    numbers 2, 0, 2 and 3, have the weights [1, 0, 2, 1].
    """
    random = np.random.default_rng(seed)
    for start in range(0, samples, SAMPLES_AT_ONCE):
        # An item that is drawn three times has the weight 3: sums of the resample are products with
        # these weights, and no item is copied.
        draws = random.integers(
            0, items, (min(SAMPLES_AT_ONCE, samples - start), items), dtype=np.int32
        )
        weights = np.empty(draws.shape)
        for row, drawn in zip(weights, draws, strict=True):
            row[:] = np.bincount(drawn, minlength=items)
        yield weights


def _resampled(
    tally: Tally, weights: Float64[np.ndarray, "resamples items"]
) -> Float64[np.ndarray, " resamples"]:
    """The metric's value where item i counts weights[:, i] times."""
    if tally.statistic == "median":
        return _medians(tally.hits[:, 0], weights)
    if tally.statistic == "spearman":
        return _rank_correlations(tally.hits[:, 0], tally.trials[:, 0], weights)

    hits = _by_column(tally, tally.hits, weights)
    trials = _by_column(tally, tally.trials, weights)
    if tally.statistic == "difference":
        half = hits.shape[1] // 2
        return _mean_ratio(hits[:, :half], trials[:, :half]) - _mean_ratio(
            hits[:, half:], trials[:, half:]
        )

    return _mean_ratio(hits, trials)


def _by_column(
    tally: Tally,
    part: Float64[np.ndarray, "items columns"],
    weights: Float64[np.ndarray, "resamples items"] | None = None,
) -> Float64[np.ndarray, "resamples all_columns"]:
    """Weighted sums over the items, per column.

    Example: the columns [0, 2, 0] with one value per item, 1, 1 and 0, weighted 2, 1 and 1, give
    the sums [2, 0, 1].
    """
    weights = np.ones((1, len(part))) if weights is None else weights
    if tally.columns is None:
        return weights @ part

    # A sparse matrix with a single one per item adds up the items of each column. Row pointers 0,
    # 1, 2, ... say that row i has one entry, at column columns[i].
    items = len(tally.columns)
    member = scipy.sparse.csr_array((np.ones(items), tally.columns, np.arange(items + 1)))
    return (weights * part[:, 0]) @ member


def _mean_ratio(
    hits: Float64[np.ndarray, "n columns"], trials: Float64[np.ndarray, "n columns"]
) -> Float64[np.ndarray, " n"]:
    """Mean of hits / trials over the columns that were tried at all; 0 where none was."""
    tried = trials > 0
    shares = np.where(tried, hits / np.where(tried, trials, 1), 0)
    return shares.sum(1) / np.maximum(tried.sum(1), 1)


def _medians(
    values: Float64[np.ndarray, " items"], weights: Float64[np.ndarray, "resamples items"]
) -> Float64[np.ndarray, " resamples"]:
    """The smallest value up to which at least half of the weight lies: the lower median.

    Example: the values 5, 1, 2 with the weights 0, 2, 1. In the order 1, 2, 5 the weights add up to
    2, 3, 3; the first sum of at least 1.5 is that of the value 1.
    """
    order = np.argsort(values, kind="stable")
    below = weights[:, order].cumsum(1)

    # Of booleans, argmax gives the first that is true.
    return values[order[(below >= below[:, -1:] / 2).argmax(1)]]


def _rank_correlations(
    values: Float64[np.ndarray, " items"],
    scores: Float64[np.ndarray, " items"],
    weights: Float64[np.ndarray, "resamples items"],
) -> Float64[np.ndarray, " resamples"]:
    """Spearman's correlation of values with scores: Pearson's of their ranks, where equal ones share
    their mean rank; 0 where either is constant.
    """
    # An item of weight 3 is drawn three times: weights 1 0 2 are the items 0 2 2.
    items = np.arange(len(values))
    drawn = np.stack([np.repeat(items, row) for row in weights.astype(np.int64)])
    first, second = (
        ranked - ranked.mean(1, keepdims=True)
        for ranked in (rankdata(each[drawn], axis=1) for each in (values, scores))
    )

    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return (first * second).sum(1) / np.where(scale > 0, scale, 1)


class Ranks(NamedTuple):
    """What stands before or level with the best right answer of each query."""

    above: Int64[np.ndarray, " n"]
    """Wrong answers with a higher score."""
    tied_wrong: Int64[np.ndarray, " n"]
    """Wrong answers with the same score."""
    tied_right: Int64[np.ndarray, " n"]
    """Right answers with the same score, the best one included."""

    def expected(self) -> Float64[np.ndarray, " n"]:
        """The mean rank of the first right answer, from 1, when ties are put in random order."""
        # Among r tied right answers, a tied wrong one comes before all of them with probability
        # 1 / (r + 1), since each of these r + 1 is as likely as the others to be the first.
        return 1 + self.above + self.tied_wrong / (self.tied_right + 1)


def ranks(scores: Float[Tensor, "n answers"], right: Bool[Tensor, "n answers"]) -> Ranks:
    """The ranks of a block of queries, by counting: nothing is sorted.

    Example: the scores 0.9, 0.5, 0.5, 0.1 of which the second and the last are right. The best
    right score is 0.5, so `above` is 1, `tied_wrong` 1 and `tied_right` 1.
    """
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)

    # Scores of one matrix product: equal ones are equal to the bit, and need no tolerance.
    level = scores == best
    above = (scores > best).sum(1)
    return Ranks(above.numpy(), (level & ~right).sum(1).numpy(), (level & right).sum(1).numpy())


def expected_hits(ranks: Ranks, k: int) -> Float64[np.ndarray, " n"]:
    """Probability that a right answer is among the first k when ties are put in random order.

    Without ties this is 1 or 0; a model that gives everything one score gets exactly chance.
    Example: k = 3, one answer above, and 2 wrong and 1 right ones tied. Two places are left for the
    tied three: both go to wrong answers with probability 2/3 * 1/2, so the result is 2/3.
    """
    # Drawing without replacement: the probability that all places up to k go to wrong answers is a
    # product over the places. Each factor is the share of wrong ones among the answers left.
    missed = np.ones(len(ranks.above))
    for drawn in range(k):
        # Whether there is another place below the answers above, and an answer for it. The maxima
        # only keep the factors that are not used from being negative or divided by 0.
        remaining = ranks.tied_wrong + ranks.tied_right - drawn
        drawing = (ranks.above + drawn < k) & (remaining > 0)
        missed *= np.where(
            drawing, np.maximum(ranks.tied_wrong - drawn, 0) / np.maximum(remaining, 1), 1
        )
    return 1 - missed


def chance_of_hit(candidates: int, right: int, k: int) -> float:
    """Probability of at least one of `right` answers among k drawn at random from `candidates`."""
    # Chance is the case in which all candidates tie.
    drawn = Ranks(np.array([0]), np.array([candidates - right]), np.array([right]))
    return float(expected_hits(drawn, min(k, candidates))[0])


def intersections_and_unions(
    truth: Integer[np.ndarray, "h w"], predicted: Integer[np.ndarray, "h w"], num_classes: int
) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
    """Per class, the pixels in both maps and the pixels in either; pixels with the truth IGNORED
    count nowhere.
    """
    counted = truth != IGNORED
    right = truth[counted].astype(np.int64)
    guess = predicted[counted].astype(np.int64)

    # No confusion matrix, which would have 847 x 847 cells on ADE20K. Pixels in either map: those of
    # the one and those of the other, less those counted twice.
    both = np.bincount(right[right == guess], minlength=num_classes)
    either = (
        np.bincount(right, minlength=num_classes) + np.bincount(guess, minlength=num_classes) - both
    )
    return both, either


def boundary_matches(
    truth: Int32[np.ndarray, "h w"], predicted: Int32[np.ndarray, "h w"], num_classes: int
) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
    """Per class, boundary pixels of either map that have one of the other nearby, and all boundary
    pixels of both.

    Nearby is within 0.75 % of the image's diagonal, in rows and columns. The ratio of the sums is
    the boundary F1. Counts of images can be added up, as the bootstrap requires; the paper's mean
    over images of the harmonic mean of precision and recall, which differs a little, cannot.

    Example: a vertical boundary that is one column off has, with a reach of 1 pixel, the ratio 1.
    """
    reach = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
    matched = np.zeros(num_classes, np.int64)
    total = np.zeros(num_classes, np.int64)

    # Without this, the edge of an ignored region would count as an edge of the prediction.
    guess = np.where(truth == IGNORED, IGNORED, predicted)

    for label in np.union1d(np.unique(truth), np.unique(guess)).tolist():
        if label == IGNORED:
            continue
        edges = [_edge(each == label, truth) for each in (truth, guess)]

        # The maximum over a square of 2 * reach + 1 pixels widens each boundary by `reach` pixels
        # on both sides.
        near = [
            scipy.ndimage.maximum_filter(edge, 2 * reach + 1, mode="constant") for edge in edges
        ]
        matched[label] = (edges[0] & near[1]).sum() + (edges[1] & near[0]).sum()
        total[label] = edges[0].sum() + edges[1].sum()

    return matched, total


def _edge(
    inside: Bool[np.ndarray, "h w"], truth: Int32[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Pixels of a region with a neighbor outside it that counts; the image's own border is none."""
    outside = ~inside & (truth != IGNORED)
    # The four neighbors, by shifts of one pixel: above, below, left, right. Slices end at the
    # image's border, which therefore makes no edge.
    edge = np.zeros_like(inside)
    edge[1:] |= outside[:-1]
    edge[:-1] |= outside[1:]
    edge[:, 1:] |= outside[:, :-1]
    edge[:, :-1] |= outside[:, 1:]
    return edge & inside


def constant_map_miou(pixels: Int64[np.ndarray, " c"], label: int) -> float:
    """mIoU of naming every pixel `label`, when class c covers `pixels[c]` pixels of the truth.

    Example: 6, 2 and 0 pixels, label 0. Its IoU is 6/8, that of class 1 is 0, and class 2 does not
    count: the mean is 0.375.
    """
    # Classes that have an IoU: those in the truth, and the named one in any case.
    named = int((pixels > 0).sum() + (pixels[label] == 0))
    return float(pixels[label] / pixels.sum() / named)
