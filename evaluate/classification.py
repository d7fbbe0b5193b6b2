"""Zero-shot classification: an image's class is the one whose averaged prompt embedding is nearest.

Prompt ensembling as in CLIP: each prompt's embedding to unit norm, mean over the templates, unit norm again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from evaluate.encoder import Encoder
from evaluate.metrics import Tally, expected_hits, places
from evaluate.prompts import fill
from evaluate.sets import ClassificationSet, load_images

TEXTS_AT_ONCE = 2048


@dataclass(frozen=True)
class Classified:
    """What every image was taken for: the first few classes, best first, and the tallies of the metrics."""

    ranked: Int64[np.ndarray, "images first"]
    confidence: Float[np.ndarray, "images first"]
    tallies: dict[str, Tally]


def class_embeddings(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str], dense: bool = False
) -> Float[Tensor, "classes dim"]:
    """One unit vector for each name; `dense` gives vectors that compare with patches."""
    names_at_once = max(1, TEXTS_AT_ONCE // len(templates))
    blocks = [
        _means(encoder.encode_text(fill(names[start : start + names_at_once], templates), dense=dense), len(templates))
        for start in range(0, len(names), names_at_once)
    ]
    return torch.cat(blocks)


def _means(prompts: Float[Tensor, "prompts dim"], templates: int) -> Float[Tensor, "names dim"]:
    """Unit means of each name's unit vectors: blocks of prompts are not kept, 20,000 names in 80 templates are many."""
    return normalize(normalize(prompts, dim=-1).unflatten(0, (-1, templates)).mean(1), dim=-1)


def classify(encoder: Encoder, dataset: ClassificationSet, templates: Sequence[str], batch_size: int) -> Classified:
    """Scores every image against every class; ties count with their expected value under random order."""
    classes = class_embeddings(encoder, dataset.class_names, templates)
    first = min(5, len(classes))
    targets, labels = torch.tensor(dataset.targets)[:, None], torch.arange(len(classes))
    ranked, confidence, placed = [], [], []
    for start in range(0, len(dataset.images), batch_size):
        images = load_images(dataset.tree, dataset.images[start : start + batch_size])
        scores = encoder.encode_image(images) @ classes.T
        top = scores.topk(first, dim=1)
        ranked.append(top.indices.numpy())
        confidence.append(top.values.numpy())
        placed.append(places(scores, targets[start : start + batch_size] == labels))
    hits = {k: expected_hits(np.concatenate(placed, axis=1), k) for k in (1, 5) if k < len(classes) or k == 1}
    tallies = {f"top{k}": Tally(hit[:, None], np.ones((len(hit), 1))) for k, hit in hits.items()}
    return Classified(np.concatenate(ranked), np.concatenate(confidence), tallies)
