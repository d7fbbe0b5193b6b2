"""Image-text retrieval in both directions: recall by counting the scores above the best right answer.

No sorting and no full score matrix: queries go through in row blocks. An image is found when any of its captions is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from evaluate.encoder import Encoder
from evaluate.metrics import Tally, chance_of_hit, expected_hits, places
from evaluate.sets import RetrievalSet, load_images

RECALL_AT = (1, 5, 10)
QUERIES_AT_ONCE = 512
TEXTS_AT_ONCE = 2048


@dataclass(frozen=True)
class Retrieved:
    """Unit vectors of a set and the tallies of its recalls: one item for each image, with all its captions."""

    images: Float[Tensor, "images dim"]
    captions: Float[Tensor, "captions dim"]
    tallies: dict[str, Tally]


def retrieve(encoder: Encoder, dataset: RetrievalSet, batch_size: int) -> Retrieved:
    """Text to image and image to text over the whole set; ties count with their expected value under random order."""
    images = torch.cat(
        [
            encoder.encode_image(load_images(dataset.tree, dataset.images[start : start + batch_size]))
            for start in range(0, len(dataset.images), batch_size)
        ]
    )
    captions = torch.cat(
        [
            encoder.encode_text(dataset.captions[start : start + TEXTS_AT_ONCE])
            for start in range(0, len(dataset.captions), TEXTS_AT_ONCE)
        ]
    )
    owners = torch.tensor(dataset.owners)
    return Retrieved(images, captions, recall_tallies(images, captions, owners))


def recall_tallies(
    images: Float[Tensor, "images dim"], captions: Float[Tensor, "captions dim"], owners: Int64[Tensor, " captions"]
) -> dict[str, Tally]:
    """Recall at 1, 5, 10 each way; caption j describes image owners[j]."""
    to_image = _all_places(captions, images, torch.arange(len(images)), owners)
    to_text = _all_places(images, captions, owners, torch.arange(len(images)))
    num_images, image_of = len(images), owners.numpy()
    count = np.bincount(image_of, minlength=num_images).astype(np.float64)[:, None]
    tallies = {}
    for k in RECALL_AT:
        hits = np.bincount(image_of, expected_hits(to_image, k), minlength=num_images)
        tallies[f"text_to_image_r{k}"] = Tally(hits[:, None], count)
    for k in RECALL_AT:
        tallies[f"image_to_text_r{k}"] = Tally(expected_hits(to_text, k)[:, None], np.ones((num_images, 1)))
    return tallies


def _all_places(
    queries: Float[Tensor, "q dim"],
    gallery: Float[Tensor, "g dim"],
    gallery_ids: Int64[Tensor, " g"],
    query_ids: Int64[Tensor, " q"],
) -> Int64[np.ndarray, "3 q"]:
    """The places of every query's right answers, whose id is the query's."""
    blocks = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        here = slice(start, start + QUERIES_AT_ONCE)
        blocks.append(places(queries[here] @ gallery.T, query_ids[here, None] == gallery_ids))
    return np.concatenate(blocks, axis=1)


def chance_recalls(owners: Sequence[int]) -> dict[str, float]:
    """Expected recalls of answers in random order."""
    captions_of = np.bincount(owners)
    num_images, num_captions = len(captions_of), len(owners)
    text_to_image = {f"text_to_image_r{k}": min(1.0, k / num_images) for k in RECALL_AT}
    image_to_text = {
        f"image_to_text_r{k}": float(np.mean([chance_of_hit(num_captions, int(n), k) for n in captions_of]))
        for k in RECALL_AT
    }
    return text_to_image | image_to_text
