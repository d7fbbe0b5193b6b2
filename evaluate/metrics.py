"""Ranks with ties, chance, overlaps and boundaries of label maps: arrays in, numbers out."""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64, Integer
from torch import Tensor

from evaluate.sets.kinds import IGNORED

BOUNDARY_SHARE = 0.0075
"""Tolerance of boundaries as a share of the image's diagonal (Csurka et al., "What is a good
evaluation measure for semantic segmentation?", BMVC 2013).
"""


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


def open_overlaps(
    truth: Integer[np.ndarray, "h w"],
    predicted: Integer[np.ndarray, "h w"],
    alike: Float64[np.ndarray, "c c"],
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Per class, the overlap and the union of Open-mIoU (Zhou et al. 2023, arXiv:2311.03352).

    A pixel of class a that is called b is right as far as the two are alike. It adds alike[a, b] to
    the overlap of a, and the rest of 1 to the union of b, as a false positive; to the union of a it
    adds 1. With alike = 1 on the diagonal alone, these are `intersections_and_unions`.
    """
    counted = truth != IGNORED
    cells = truth[counted].astype(np.int64) * len(alike) + predicted[counted]
    confusion = np.bincount(cells, minlength=alike.size).reshape(alike.shape)  # truth x predicted
    union = confusion.sum(1) + ((1 - alike) * confusion).sum(0)
    return (alike * confusion).sum(1), union


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


def constant_map_open_miou(
    pixels: Int64[np.ndarray, " c"], label: int, alike: Float64[np.ndarray, "c c"]
) -> float:
    """Open-mIoU of a map that gives every pixel the class `label`; `pixels` are those of each class in
    the truth.
    """
    union = pixels.astype(np.float64)
    union[label] += ((1 - alike[:, label]) * pixels).sum()
    tried = union > 0
    return float((alike[tried, label] * pixels[tried] / union[tried]).mean())
