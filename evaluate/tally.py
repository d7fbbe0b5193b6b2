"""What a metric is computed from, its value, and its confidence interval.

Almost every metric is a ratio of sums over items, averaged over columns: the mean over c of
sum(hits[:, c]) / sum(trials[:, c]). Top-k accuracy, recall and pixel accuracy have one column; mIoU
and the mean accuracy per class have one for each class. One bootstrap therefore serves all, and the
same resamples of two models give the interval of their difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64

Statistic = Literal["mean", "median", "difference", "spearman"]

Z_95 = 1.959963984540054
"""95 % of a normal distribution lie within this many standard deviations of its mean."""
SAMPLES_AT_ONCE = 64
"""Resamples whose weights are in memory at once: 26 MB of float64 for 50,000 items."""


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
    """mean: the ratio of hits to trials, averaged over columns. median: that of all hits that were
    tried, as of ranks. difference: the mean of the first half of the columns less that of the
    second half. spearman: the rank correlation of the hits (cosines) with the trials (a set's
    scores).
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
        return _medians(tally.hits, tally.trials, weights)
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
    values: Float64[np.ndarray, "items columns"],
    trials: Float64[np.ndarray, "items columns"],
    weights: Float64[np.ndarray, "resamples items"],
) -> Float64[np.ndarray, " resamples"]:
    """The smallest value up to which at least half of the weight lies: the lower median.

    Example: one column with the values 5, 1, 2, tried once each, and the weights 0, 2, 1. In the
    order 1, 2, 5 the weights add up to 2, 3, 3; the first sum of at least 1.5 is that of the value 1.
    """
    item, column = np.nonzero(trials)
    counted = values[item, column]
    order = np.argsort(counted, kind="stable")
    below = (weights[:, item] * trials[item, column])[:, order].cumsum(1)

    # Of booleans, argmax gives the first that is true.
    return counted[order[(below >= below[:, -1:] / 2).argmax(1)]]


def _rank_correlations(
    values: Float64[np.ndarray, " items"],
    scores: Float64[np.ndarray, " items"],
    weights: Float64[np.ndarray, "resamples items"],
) -> Float64[np.ndarray, " resamples"]:
    """Spearman's correlation of values with scores: Pearson's of their ranks, where equal ones share
    their mean rank; 0 where either is constant.
    """
    from scipy.stats import rankdata  # takes a second to import, and no other statistic needs it

    # An item of weight 3 is drawn three times: weights 1 0 2 are the items 0 2 2.
    items = np.arange(len(values))
    drawn = np.stack([np.repeat(items, row) for row in weights.astype(np.int64)])
    first, second = (
        ranked - ranked.mean(1, keepdims=True)
        for ranked in (rankdata(each[drawn], axis=1) for each in (values, scores))
    )

    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return (first * second).sum(1) / np.where(scale > 0, scale, 1)
