"""Image-text retrieval in both directions: recall and median rank by counting the scores above the
best right answer.

The text encoder by itself is measured too: a caption asks for another caption of its image, among
all other captions. Where captions have foils, an image chooses between the two.

Nothing is sorted, and no matrix of scores is held (evaluate/counting.py). An image counts as found
when any of its captions is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from evaluate.counting import both_ranks, sibling_ranks
from evaluate.encoder import Encoder, checked
from evaluate.metrics import chance_of_hit, expected_hits
from evaluate.sets.kinds import RetrievalSet
from evaluate.tally import Tally

RECALL_AT = (1, 5, 10)
TEXTS_AT_ONCE = 2048
MOST_SIBLING_CAPTIONS = 100_000
"""Captions up to which they are compared with each other, which is quadratic: COCO's 25,000 take
seconds.
"""


@dataclass(frozen=True)
class Retrieved:
    """Unit vectors of a set and the tallies of its metrics: one item for each image, with all its
    captions.
    """

    images: Float[Tensor, "images dim"]
    captions: Float[Tensor, "captions dim"]
    tallies: dict[str, Tally]


def retrieve(
    dataset: RetrievalSet,
    texts: Float[Tensor, "texts dim"],
    images: Iterable[Float[Tensor, "n dim"]],
) -> Retrieved:
    """Text to image and image to text over the whole set; ties count with their expected value
    under random order.

    Unit vectors: of all captions, and then of all foils; and of all images, some at a time.
    ValueError for vectors that are not finite, or not in one space.
    """
    captions, foils = texts.tensor_split([len(dataset.captions)])
    every = torch.cat([checked(each, "images", len(each), texts.shape[1]) for each in images])
    tallies = recall_tallies(every, captions, dataset.owners) | sibling_tallies(
        captions, dataset.owners
    )
    if dataset.foils:
        tallies |= foil_tallies(every, captions, foils, dataset.owners)

    return Retrieved(every, captions, tallies)


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
    """One vector per text, in their order. ValueError for NaN, infinity or a wrong number."""
    blocks = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        block = texts[start : start + TEXTS_AT_ONCE]
        blocks.append(checked(encoder.encode_text(block), "texts", len(block)))
    return torch.cat(blocks)


def recall_tallies(
    images: Float[Tensor, "images dim"],
    captions: Float[Tensor, "captions dim"],
    owners: Int64[np.ndarray, " captions"],
) -> dict[str, Tally]:
    """Recall at 1, 5, 10 and the median rank, each way; caption j describes image owners[j].

    The items are images in both directions: the captions of one image are not independent, so that
    a bootstrap has to draw them together.
    """
    to_image, to_text = both_ranks(captions, images, owners)
    num_images = len(images)
    count = np.bincount(owners, minlength=num_images).astype(np.float64)[:, None]
    ones = np.ones((num_images, 1))

    # Per image, the captions that find it, of all its captions. The ratio of the sums over images
    # is the share of all captions.
    tallies = {}
    for k in RECALL_AT:
        hits = np.bincount(owners, expected_hits(to_image, k), minlength=num_images)
        tallies[f"text_to_image_r{k}"] = Tally(hits[:, None], count)

    tallies["text_to_image_median_rank"] = _median(to_image.expected(), owners)

    for k in RECALL_AT:
        tallies[f"image_to_text_r{k}"] = Tally(expected_hits(to_text, k)[:, None], ones)

    tallies["image_to_text_median_rank"] = _median(to_text.expected(), np.arange(num_images))
    return tallies


def sibling_tallies(
    captions: Float[Tensor, "captions dim"], owners: Int64[np.ndarray, " captions"]
) -> dict[str, Tally]:
    """Text to text recall at 1; nothing where no image has two captions, or there are too many to
    compare.
    """
    count = np.bincount(owners)
    if count.max() < 2 or len(captions) > MOST_SIBLING_CAPTIONS:
        return {}
    hits = np.bincount(
        owners, expected_hits(sibling_ranks(captions, owners), 1), minlength=len(count)
    )

    # A caption without a sibling has no right answer: its image stays an item, with 0 of 0.
    trials = np.where(count > 1, count, 0).astype(np.float64)
    return {"text_to_text_r1": Tally(np.where(count > 1, hits, 0)[:, None], trials[:, None])}


def foil_tallies(
    images: Float[Tensor, "images dim"],
    captions: Float[Tensor, "captions dim"],
    foils: Float[Tensor, "captions dim"],
    owners: Int64[np.ndarray, " captions"],
) -> dict[str, Tally]:
    """How often an image is nearer to its caption than to the caption's foil; a tie is half right.

    Foil j is the wrong variant of caption j. There are no other candidates, so chance is 0.5
    (SugarCrepe, Hsieh et al. 2023, arXiv:2306.14610).
    """
    own = images[torch.from_numpy(owners)]

    # One product with the difference instead of two scores: equal vectors give exactly 0.
    ahead = ((captions - foils) * own).sum(1)
    hits = (ahead > 0).double() + (ahead == 0).double() / 2

    count = np.bincount(owners, minlength=len(images)).astype(np.float64)
    right = np.bincount(owners, hits.numpy(), minlength=len(images))
    return {"foil_accuracy": Tally(right[:, None], count[:, None])}


def _median(ranks: Float[np.ndarray, " n"], owners: Int64[np.ndarray, " n"]) -> Tally:
    """The ranks of each image side by side, in as many columns as the most of one image."""
    order = np.argsort(owners, kind="stable")
    count = np.bincount(owners)

    # Of the sorted ranks, those of image i begin at first[i]: the place among its own.
    first = np.cumsum(count) - count
    column = np.arange(len(ranks)) - first[owners[order]]

    hits = np.zeros((len(count), count.max()))
    trials = np.zeros_like(hits)
    hits[owners[order], column] = ranks[order]
    trials[owners[order], column] = 1
    return Tally(hits, trials, statistic="median")


def chance_recalls(owners: Int64[np.ndarray, " captions"]) -> dict[str, float]:
    """Expected recalls of answers in random order.

    With 2 images that have 2 captions each, text to image R@1 is 1/2, image to text R@1 2/4, and
    text to text R@1 1/3.
    """
    captions_of = np.bincount(owners)
    num_images = len(captions_of)
    num_captions = len(owners)
    text_to_image = {f"text_to_image_r{k}": min(1.0, k / num_images) for k in RECALL_AT}

    # The chance of an image depends on the number of its captions alone, which has few values.
    by_count, how_often = np.unique(captions_of, return_counts=True)
    image_to_text = {
        f"image_to_text_r{k}": float(
            np.average(
                [chance_of_hit(num_captions, int(n), k) for n in by_count], weights=how_often
            )
        )
        for k in RECALL_AT
    }

    # A caption is no candidate for itself: both counts are one less.
    siblings = captions_of[owners] - 1
    text_to_text = {}
    if siblings.any():
        text_to_text["text_to_text_r1"] = float(siblings[siblings > 0].mean() / (num_captions - 1))

    return text_to_image | image_to_text | text_to_text
