"""The vectors of a set with classes or captions: those of its texts and of its images, in parts.

Each part has some of the images and its share of the texts, of which ImageNet's 1,000 names in 80
templates are many. Texts and images are encoded in the same blocks and batches whatever the part,
since a product may round differently in a batch of another composition.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from evaluate.classification import class_embeddings, names_at_once
from evaluate.encoder import Encoder
from evaluate.features import Shelf, image_parts, image_vectors
from evaluate.parts import Parts
from evaluate.retrieval import TEXTS_AT_ONCE, encode_texts
from evaluate.sets.kinds import ClassificationSet, RetrievalSet
from evaluate.views import View


class PartVectors(NamedTuple):
    """What one part gives, as arrays."""

    texts: list[Float32[np.ndarray, "_ dim"]]
    """Its blocks of the texts; a set may have fewer blocks than parts."""
    images: Float32[np.ndarray, "images dim"]


@dataclass(frozen=True)
class SetVectors:
    """Encodes the texts and images of a set, and joins what workers left of its parts."""

    encoder: Encoder
    dataset: ClassificationSet | RetrievalSet
    templates: Sequence[str]
    """For the names of classes; captions stand as they are."""
    view: View
    batch_size: int
    shelf: Shelf | None = None
    parts: Parts | None = None

    def compute(
        self, images: range, advance: Callable[[int], None] = lambda count: None
    ) -> PartVectors:
        """The vectors of one part. ValueError for damaged images, and for vectors that are not
        finite.
        """
        texts = [block.numpy() for block in self._share_of_texts(images)]
        return PartVectors(texts, torch.cat(list(self._of_images(images, advance))).numpy())

    def texts(self) -> Float[Tensor, "texts dim"]:
        """The names of the first class, of the second, and so on; or all captions, then all foils."""
        blocks: list[Tensor] = []
        for images in self._ranges:
            part = self._left(images)
            blocks += map(torch.from_numpy, part.texts) if part else self._share_of_texts(images)
        return torch.cat(blocks)

    def images(
        self, advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[Float[Tensor, "n dim"]]:
        """All images in their order, a batch at a time; `advance` is told of those that are encoded
        here.
        """
        for images in self._ranges:
            part = self._left(images)
            if part:
                # A copy lies in memory as if it had just been computed: products may round by that.
                batches = torch.from_numpy(part.images).split(self.batch_size)
                yield from (batch.clone() for batch in batches)
            else:
                yield from self._of_images(images, advance)

    @property
    def _ranges(self) -> list[range]:
        return image_parts(len(self.dataset.images), self.batch_size)

    def _left(self, images: range) -> PartVectors | None:
        return self.parts.read(images) if self.parts else None

    def _share_of_texts(self, images: range) -> list[Float[Tensor, "_ dim"]]:
        """The blocks of texts that belong to a part: 40 blocks in 98 parts are one or none each."""
        place = self._ranges.index(images)
        blocks = self._blocks
        first, last = (len(blocks) * each // len(self._ranges) for each in (place, place + 1))

        if isinstance(self.dataset, RetrievalSet):
            return [encode_texts(self.encoder, block) for block in blocks[first:last]]
        return [
            class_embeddings(self.encoder, block, self.templates) for block in blocks[first:last]
        ]

    @cached_property
    def _blocks(self) -> list[Sequence[str]]:
        """All texts as the encoder takes them at once."""
        if isinstance(self.dataset, RetrievalSet):
            return [
                *_in_blocks(self.dataset.captions, TEXTS_AT_ONCE),
                *_in_blocks(self.dataset.foils, TEXTS_AT_ONCE),
            ]
        names = [name for each in self.dataset.class_names for name in each]
        return _in_blocks(names, names_at_once(len(self.templates)))

    def _of_images(
        self, images: range, advance: Callable[[int], None]
    ) -> Iterator[Float[Tensor, "n dim"]]:
        for vectors in image_vectors(
            self.encoder, self.dataset.images, self.view, self.batch_size, self.shelf, images
        ):
            yield vectors
            advance(len(vectors))


def _in_blocks(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]
