"""Zero-shot classification: an image's class is the one whose averaged prompt embedding is nearest.

Prompt ensembling as in CLIP: each prompt's embedding to unit norm, mean over the templates, unit
norm again. A class with several names scores as the best of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from evaluate.encoder import Encoder, checked
from evaluate.metrics import Ranks, expected_hits, ranks
from evaluate.prompts import fill
from evaluate.sets.kinds import ClassificationSet
from evaluate.synonyms import SYNONYM_DROP, first_and_last, has_synonyms
from evaluate.tally import Tally, less

TEXTS_AT_ONCE = 2048
FIRST = 5  # classes of each image that examples and top-5 need


@dataclass(frozen=True)
class Classified:
    """The first few classes of every image, best first, and the tallies of the metrics."""

    ranked: Int64[np.ndarray, "images first"]
    confidence: Float[np.ndarray, "images first"]
    tallies: dict[str, Tally]


def class_embeddings(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str], dense: bool = False
) -> Float[Tensor, "classes dim"]:
    """One unit vector for each name; `dense` gives vectors that compare with patches.

    Each template holds {} in place of the name. ValueError for vectors that are not finite.
    """
    at_once = names_at_once(len(templates))
    blocks = []
    for start in range(0, len(names), at_once):
        prompts = fill(names[start : start + at_once], templates)
        blocks.append(
            _means(
                checked(encoder.encode_text(prompts, dense=dense), "texts", len(prompts)),
                len(templates),
            )
        )

    return torch.cat(blocks)


def names_at_once(num_templates: int) -> int:
    """How many names are encoded at once: a block holds whole names, each in all its templates, so
    that it can be averaged.
    """
    return max(1, TEXTS_AT_ONCE // num_templates)


def _means(prompts: Float[Tensor, "prompts dim"], templates: int) -> Float[Tensor, "names dim"]:
    """Unit means of each name's unit vectors. Blocks of prompts are not kept: 20,000 names in 80
    templates are many.
    """
    # Prompts are in the order of `fill`, name by name. Normalized before the mean, every template
    # has the same say, whatever the length of its vectors.
    return normalize(normalize(prompts, dim=-1).unflatten(0, (-1, templates)).mean(1), dim=-1)


def classify(
    dataset: ClassificationSet,
    names: Float[Tensor, "names dim"],
    images: Iterable[Float[Tensor, "n dim"]],
) -> Classified:
    """Scores every image against every class; ties count with their expected value under random
    order.

    Unit vectors: of all names of the first class, of the second, and so on; and of all images, some
    at a time. ValueError for vectors that are not finite, or not in one space.
    """
    # The class of each name: [("cat", "kitten"), ("dog",)] has the owners [0, 0, 1].
    owners = torch.tensor([label for label, each in enumerate(dataset.class_names) for _ in each])
    num_classes = len(dataset.class_names)
    first = min(FIRST, num_classes)
    targets = torch.from_numpy(dataset.targets)[:, None]
    labels = torch.arange(num_classes)
    ranked = []
    confidence = []
    placed = []
    # Ranks among the first names alone and among the last ones, where a class has several.
    alone = first_and_last(owners.tolist()) if has_synonyms(dataset.class_names) else ()
    placed_alone: list[list[Ranks]] = [[] for _ in alone]
    start = 0

    for vectors in images:
        count = len(vectors)
        by_name = checked(vectors, "images", count, names.shape[1]) @ names.T
        scores = _best_of_names(by_name, owners, num_classes)

        top = scores.topk(first, dim=1)
        ranked.append(top.indices.numpy())
        confidence.append(top.values.numpy())

        # A column of targets compared with a row of labels: one right answer in each row.
        right = targets[start : start + count] == labels
        placed.append(ranks(scores, right))
        for places, several in zip(alone, placed_alone, strict=True):
            several.append(ranks(by_name[:, places], right))

        start += count

    tallies = _tallies(_joined(placed), dataset.targets, num_classes)
    if alone:
        by_first, by_last = (
            _tallies(_joined(several), dataset.targets, num_classes) for several in placed_alone
        )
        tallies[SYNONYM_DROP] = less(by_first["top1"], by_last["top1"])

    return Classified(np.concatenate(ranked), np.concatenate(confidence), tallies)


def _joined(blocks: Sequence[Ranks]) -> Ranks:
    return Ranks(*(np.concatenate(part) for part in zip(*blocks, strict=True)))


def _best_of_names(
    scores: Float[Tensor, "n names"], owners: Tensor, num_classes: int
) -> Float[Tensor, "n classes"]:
    """The score of each class: that of its best name.

    Example: the scores 0.3, 0.5 and 0.4 of names with the owners [0, 0, 1] become 0.5 and 0.4.
    """
    if scores.shape[1] == num_classes:  # as each class has a name, each has one
        return scores

    best = scores.new_full((len(scores), num_classes), -torch.inf)
    return best.scatter_reduce(1, owners.expand(len(scores), -1), scores, "amax")


def _tallies(ranks: Ranks, targets: Int64[np.ndarray, " n"], num_classes: int) -> dict[str, Tally]:
    """Top-1 and top-5, and top-1 as the mean over classes."""
    ones = np.ones((len(targets), 1))

    # With five classes or fewer, top-5 is always right and says nothing.
    hits = {k: expected_hits(ranks, k)[:, None] for k in (1, 5) if k < num_classes or k == 1}
    tallies = {f"top{k}": Tally(hit, ones) for k, hit in hits.items()}
    return tallies | {"mean_per_class": Tally(hits[1], ones, columns=targets)}
