"""Scores, intervals and baselines: arrays in, numbers out.

Every metric here is a ratio of sums over items, averaged over columns: the mean over c of
sum(hits[:, c]) / sum(trials[:, c]). Top-k accuracy, recall and pixel accuracy have one column, mIoU has one for each
class. One bootstrap therefore serves all, and the same resamples of two models give the interval of their difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

Z_95 = 1.959963984540054
SAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class Tally:
    """What one metric is computed from: per item (image, or image with its captions) and column (class)."""

    hits: Float64[np.ndarray, "items columns"]
    trials: Float64[np.ndarray, "items columns"]

    @property
    def value(self) -> float:
        return float(_ratio(self.hits.sum(0)[None], self.trials.sum(0)[None])[0])


@dataclass(frozen=True)
class Estimate:
    """A value with the limits of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def _ratio(
    hits: Float64[np.ndarray, "n columns"], trials: Float64[np.ndarray, "n columns"]
) -> Float64[np.ndarray, " n"]:
    """Mean of hits / trials over the columns that were tried at all; 0 where none was."""
    tried = trials > 0
    shares = np.where(tried, hits / np.where(tried, trials, 1), 0)
    return shares.sum(1) / np.maximum(tried.sum(1), 1)


def estimate(tally: Tally, samples: int, seed: int) -> Estimate:
    """Wilson's interval for plain proportions, a bootstrap over items for everything else."""
    if tally.trials.shape[1] == 1 and bool((tally.trials == 1).all()):
        return wilson(float(tally.hits.sum()), len(tally.trials))
    values = [_resampled(tally, weights) for weights in _resamples(len(tally.hits), samples, seed)]
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return Estimate(tally.value, min(float(low), tally.value), max(float(high), tally.value))


def wilson(hits: float, trials: int) -> Estimate:
    """Proportion with Wilson's score interval (1927): inside [0, 1], and not of zero width at 0 or 1."""
    share, z2 = hits / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return Estimate(share, min(max(0.0, float(centre - half)), share), max(min(1.0, float(centre + half)), share))


def paired_difference(ours: Tally, other: Tally, samples: int, seed: int) -> Estimate:
    """`ours` minus `other` on the same items, with a bootstrap interval that resamples both alike."""
    if ours.hits.shape != other.hits.shape:
        raise ValueError(
            f"cannot compare {ours.hits.shape} items with {other.hits.shape}: the same evaluation set is required"
        )
    blocks = _resamples(len(ours.hits), samples, seed)
    differences = [_resampled(ours, weights) - _resampled(other, weights) for weights in blocks]
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return Estimate(ours.value - other.value, float(low), float(high))


def _resamples(items: int, samples: int, seed: int) -> Iterator[Float64[np.ndarray, "resamples items"]]:
    """How often each item is drawn in each bootstrap sample, a few samples at a time: the draws are those of all at
    once."""
    random = np.random.default_rng(seed)
    for start in range(0, samples, SAMPLES_AT_ONCE):
        draws = random.integers(0, items, (min(SAMPLES_AT_ONCE, samples - start), items), dtype=np.int32)
        weights = np.empty(draws.shape)
        for row, drawn in zip(weights, draws, strict=True):
            row[:] = np.bincount(drawn, minlength=items)
        yield weights


def _resampled(tally: Tally, weights: Float64[np.ndarray, "resamples items"]) -> Float64[np.ndarray, " resamples"]:
    return _ratio(weights @ tally.hits, weights @ tally.trials)


def places(scores: Float[Tensor, "n answers"], right: Bool[Tensor, "n answers"]) -> Int64[np.ndarray, "3 n"]:
    """How many answers are before or level with the best right one of each row: wrong ones that score above it, wrong
    ones with its score, right ones with its score."""
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    level = scores == best
    return torch.stack([(scores > best).sum(1), (level & ~right).sum(1), (level & right).sum(1)]).numpy()


def expected_hits(places: Int64[np.ndarray, "3 n"], k: int) -> Float64[np.ndarray, " n"]:
    """Probability that a right answer is among the first k when ties are put in random order.

    Without ties this is 1 or 0; a model that gives everything one score gets exactly chance.
    """
    greater, equal_wrong, equal_right = places
    missed = np.ones(len(greater))
    for drawn in range(k):
        remaining = equal_wrong + equal_right - drawn
        drawing = (greater + drawn < k) & (remaining > 0)
        missed *= np.where(drawing, np.maximum(equal_wrong - drawn, 0) / np.maximum(remaining, 1), 1)
    return 1 - missed


def chance_of_hit(candidates: int, right: int, k: int) -> float:
    """Probability of at least one of `right` answers among k drawn at random from `candidates`."""
    return float(expected_hits(np.array([[0], [candidates - right], [right]]), min(k, candidates))[0])


def intersections_and_unions(
    truth: Integer[np.ndarray, "h w"], predicted: Integer[np.ndarray, "h w"], num_classes: int, ignore: int | None
) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
    """Per class, the pixels in both maps and the pixels in either; pixels labelled `ignore` count nowhere."""
    counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    truth, predicted = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    both = np.bincount(truth[truth == predicted], minlength=num_classes)
    either = np.bincount(truth, minlength=num_classes) + np.bincount(predicted, minlength=num_classes) - both
    return both, either


def constant_map_miou(pixels: Int64[np.ndarray, " c"], label: int) -> float:
    """mIoU of naming every pixel `label`, when class c covers `pixels[c]` pixels of the truth."""
    named = int((pixels > 0).sum() + (pixels[label] == 0))
    return float(pixels[label] / pixels.sum() / named)
