"""What the pixels of an image are compared with: the names of the classes, as vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from evaluate.classification import class_embeddings
from evaluate.config import SegmentationConfig
from evaluate.encoder import Encoder
from evaluate.sets.kinds import SegmentationSet
from evaluate.synonyms import first_and_last, has_synonyms


@dataclass(frozen=True)
class Queries:
    """What pixels are compared with: unit vectors, a class index for each, and an optional constant
    competitor.
    """

    vectors: Float[Tensor, "queries dim"]
    labels: Int64[np.ndarray, " queries"]
    """The class of each query: a class with several names has several queries."""
    constant: float | None
    """A cosine that every pixel has with the background; None without one."""
    constant_label: int

    def cosines(self, patches: Float[Tensor, "*grid dim"]) -> Float[Tensor, "*grid channels"]:
        """The cosine of each patch with each query, and the constant competitor's where there is
        one.
        """
        cosines = patches @ self.vectors.T
        if self.constant is None:
            return cosines
        return torch.cat([cosines, torch.full_like(cosines[..., :1], self.constant)], dim=-1)

    def classes(self, winners: Int64[np.ndarray, "*grid"]) -> Int32[np.ndarray, "*grid"]:
        """The class of each winning channel."""
        labels = (
            self.labels if self.constant is None else np.append(self.labels, self.constant_label)
        )
        return labels[winners].astype(np.int32)


def class_queries(
    encoder: Encoder, dataset: SegmentationSet, templates: Sequence[str], config: SegmentationConfig
) -> Queries:
    """One query for each name of each class; the background class has several names, or a constant
    cosine.

    Classes without a background, named "car" and ("road", "street"), give three queries with the
    labels 0, 1, 1.
    """
    named = [
        (name, label)
        for label, each in enumerate(dataset.labels)
        for name in each
        if label != dataset.background
    ]
    constant = None

    if dataset.background is not None and config.background == "threshold":
        constant = config.background_cosine
    elif dataset.background is not None:
        # "sky" is background, unless the set has a class of that name.
        class_names = {name for name, _ in named}
        named += [
            (name, dataset.background)
            for name in config.background_prompts
            if name not in class_names
        ]

    vectors = class_embeddings(encoder, [name for name, _ in named], templates, dense=True)
    labels = np.array([label for _, label in named], np.int64)
    return Queries(vectors, labels, constant, dataset.background or 0)


def of_one_name(queries: Queries, dataset: SegmentationSet) -> tuple[Queries, ...]:
    """The queries with the first name of each class alone, and with the last one; nothing where no
    class has several. The background keeps all of its names.
    """
    if not has_synonyms(dataset.labels, dataset.background):
        return ()

    is_background = queries.labels == dataset.background
    background = np.flatnonzero(is_background).tolist()
    places = first_and_last(queries.labels[~is_background].tolist())
    return tuple(
        replace(queries, vectors=queries.vectors[chosen], labels=queries.labels[chosen])
        for chosen in ([*each, *background] for each in places)
    )
