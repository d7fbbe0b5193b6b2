"""Heat maps of single names: how well the cosine with one name alone picks out what it names.

mIoU gives each pixel to one class, so that "jacket" and "clothes" cannot both be right. Here each
name is asked for by itself, and is right wherever it is true: names may overlap. Per image and name
that occurs in it, the score is the average precision of the pixels ordered by their cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor

from evaluate.classification import class_embeddings
from evaluate.encoder import Encoder
from evaluate.sets.kinds import IGNORED, SegmentationSet
from evaluate.tally import Tally

LEVELS = 2**16
"""Steps from cosine 1 to -1, of 3e-5 each. Pixels on one step tie: counting them per step is faster
than sorting them.
"""


@dataclass(frozen=True)
class Names:
    """What is asked for, name by name: the classes but the background, then the groups."""

    shown: tuple[str, ...]
    vectors: Float[Tensor, "queries dim"]
    owners: Int64[np.ndarray, " queries"]
    """The name that each vector belongs to: a class with synonyms has several vectors."""
    true_for: Bool[np.ndarray, "names classes"]

    def where(self, name: int, truth: Int32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """The pixels that a name is true for."""
        known = np.append(self.true_for[name], False)  # the last one is read for IGNORED, -1
        return known[truth]

    def present(self, truth: Int32[np.ndarray, "h w"]) -> list[int]:
        """The names that are true for some of the pixels that count, and not for all."""
        counts = np.bincount(truth[truth != IGNORED], minlength=self.true_for.shape[1])

        # A name that is true for all pixels would have average precision 1 with any map.
        named = self.true_for @ counts
        return np.flatnonzero((named > 0) & (named < counts.sum())).tolist()


def names_of(encoder: Encoder, dataset: SegmentationSet, templates: Sequence[str]) -> Names:
    """The names of a set, in the same templates as its classes."""
    classes = [label for label in range(len(dataset.labels)) if label != dataset.background]
    asked: list[tuple[tuple[str, ...], tuple[int, ...]]] = [
        *((dataset.labels[label], (label,)) for label in classes),
        *(((group,), members) for group, members in dataset.groups.items()),
    ]

    true_for = np.zeros((len(asked), len(dataset.labels)), bool)
    for name, (_, members) in enumerate(asked):
        true_for[name, list(members)] = True

    # One vector per word; `owners` leads from a vector to its name. Three names of 2, 1 and 1 words
    # have the owners [0, 0, 1, 2].
    words = [word for each, _ in asked for word in each]
    owners = np.repeat(np.arange(len(asked)), [len(each) for each, _ in asked])
    vectors = class_embeddings(encoder, words, templates, dense=True)

    return Names(tuple(each[0] for each, _ in asked), vectors, owners, true_for)


def name_cosines(
    patches: Float[Tensor, "*grid dim"], names: Names, wanted: Sequence[int]
) -> Float[Tensor, "*grid wanted"]:
    """The cosine of each patch with each wanted name: the best of its synonyms."""
    columns = [
        (patches @ names.vectors[np.flatnonzero(names.owners == name)].T).amax(-1)
        for name in wanted
    ]
    return torch.stack(columns, dim=-1)


def average_precision(scores: Float32[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> float:
    """The mean over the right items of the share of right ones among those that score at least as
    high; scores are cosines, rounded to LEVELS steps. At least one item must be right.

    Scores 0.9, 0.8, 0.7 of which the first and the last are right: (1/1 + 2/3) / 2 = 0.83.
    """
    # Level 0 is cosine 1, so that a cumulative sum over levels counts what scores at least as high.
    level = np.clip((1 - scores) * (LEVELS / 2), 0, LEVELS - 1).astype(np.int32)
    every = np.bincount(level, minlength=LEVELS)
    hits = np.bincount(level[right], minlength=LEVELS)

    # At each level with right items, their number times the precision down to that level. The
    # maximum only avoids 0 / 0 before the first item.
    at_least = np.maximum(every.cumsum(), 1)
    return float((hits * (hits.cumsum() / at_least)).sum() / hits.sum())


class Judged(NamedTuple):
    """How good the heat maps of the names of one image are."""

    names: Sequence[int]
    precisions: Sequence[float]
    shares: Sequence[float]
    """Share of each name among the pixels that count: the precision of a map without heat."""

    def take(self, places: Sequence[int]) -> "Judged":
        """Some of the names, in that order."""
        return Judged(
            [self.names[place] for place in places],
            [self.precisions[place] for place in places],
            [self.shares[place] for place in places],
        )


def judge(
    maps: Float32[np.ndarray, "wanted h w"],
    names: Names,
    wanted: Sequence[int],
    truth: Int32[np.ndarray, "h w"],
) -> Judged:
    """The average precision of each heat map over the pixels that count."""
    counted = truth != IGNORED
    rights = [names.where(name, truth)[counted] for name in wanted]
    precisions = [
        average_precision(heat[counted], right) for heat, right in zip(maps, rights, strict=True)
    ]
    return Judged(wanted, precisions, [float(right.mean()) for right in rights])


def precision_tally(images: Sequence[Judged], num_names: int) -> tuple[Tally, float]:
    """Average precision as the mean over names of the mean over the images that show a name; and
    what maps without heat get, where every pixel ties.
    """
    hits = np.zeros((len(images), num_names))
    trials = np.zeros((len(images), num_names))
    shares = np.zeros((len(images), num_names))

    for row, judged in enumerate(images):
        columns = list(judged.names)
        hits[row, columns] = judged.precisions
        shares[row, columns] = judged.shares
        trials[row, columns] = 1

    return Tally(hits, trials), Tally(shares, trials).value
