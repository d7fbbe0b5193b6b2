"""One model on a collection: words to images, images to images, and words to the pixels that they
name.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor

from curation.encoders.backbone import Features
from curation.encoders.views import center_view
from evaluate.classification import class_embeddings
from evaluate.encoder import Encoder
from evaluate.predict import SEGMENTED_SIDE
from evaluate.prompts import PLAIN
from evaluate.search.collection import Collection, Picture
from evaluate.search.heat import cosine_maps, heat_picture, label_picture, shares
from evaluate.search.vector_index import VectorIndex

SIDE_FACTOR = 2  # short side of an image for patches, in sides of the training images
MOST_ASPECT = 3  # beyond which the long side is limited, and with it the number of patches
HEAT_PX = 192  # longest side of a heat map; the page enlarges it
PICTURES_KEPT = 128
TEXTS_KEPT = 1024


class Hit(NamedTuple):
    """One answer."""

    row: int
    cosine: float


class Parts(NamedTuple):
    """Which name each pixel has."""

    picture: np.ndarray
    """RGBA, one color per name."""
    shares: dict[str, float]
    """Share of the pixels, by name."""


class Engine:
    """Searches a collection with one model; safe to call from several threads."""

    def __init__(
        self,
        encoder: Encoder,
        index: VectorIndex,
        collection: Collection,
        align: Callable[[Features], Float[Tensor, "1 h w p"]] | None = None,
    ) -> None:
        """`align` gives the patches of stored tokens, where those are fine enough to show where
        something is; else patches are of the pixels.

        ValueError where the index has other rows than the collection.
        """
        if len(index) != len(collection.gallery):
            raise ValueError(
                f"the index has {len(index)} rows, the collection {len(collection.gallery)} "
                "images: they must be the same; build the index again"
            )

        self.encoder = encoder
        self.index = index
        self.collection = collection
        self._align = align
        side = encoder.protocol.get("image_size")
        self._side = SIDE_FACTOR * side if isinstance(side, int) else SEGMENTED_SIDE
        self._lock = threading.Lock()  # one image at a time through the backbone: it uses all cores

        # Caches of this engine, not of its class: one model's vectors must not serve another's.
        self._text = lru_cache(TEXTS_KEPT)(self._encode_text)
        self._patches = lru_cache(PICTURES_KEPT)(self._encode_patches)
        self._vector = lru_cache(PICTURES_KEPT)(self._encode_own)

    def search(self, words: str, count: int) -> list[Hit]:
        """The images that fit the words best."""
        return self._hits(self._text(words, False)[0].numpy(), count)

    def neighbors(self, picture: Picture, count: int) -> list[Hit]:
        """The images that are most alike, without the picture itself."""
        if picture.row is None:
            return self._hits(self._vector(picture), count)

        # The picture is its own nearest neighbor: one more is asked for, and it is left out.
        vector = self.index.vector(picture.row)
        return [hit for hit in self._hits(vector, count + 1) if hit.row != picture.row][:count]

    def _hits(self, vector: Float32[np.ndarray, " d"], count: int) -> list[Hit]:
        rows, cosines = self.index.search(vector, count)
        return [
            Hit(row, cosine) for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True)
        ]

    def heat(self, picture: Picture, words: str, is_square: bool) -> np.ndarray:
        """RGBA: where the words fit, on the center square or on the whole image."""
        patches = self._patches(picture, is_square)
        scale = HEAT_PX / max(patches.shape[:2])
        size = (round(scale * patches.shape[0]), round(scale * patches.shape[1]))
        return heat_picture(cosine_maps(patches, self._text(words, True), size)[0])

    def parts(self, picture: Picture, names: Sequence[str]) -> Parts:
        """The best name of every pixel of the whole image. ValueError for fewer than two names."""
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(
                f"names are {', '.join(names)!r}: at least two different names are needed, "
                "separated by commas"
            )
        patches = self._patches(picture, False)
        texts = class_embeddings(self.encoder, names, PLAIN, dense=True)
        image = self.collection.image(picture)
        scale = min(1.0, 2 * HEAT_PX / max(image.size))
        size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
        labels: Int64[np.ndarray, "h w"] = cosine_maps(patches, texts, size).argmax(0).numpy()

        return Parts(label_picture(labels), shares(labels, names))

    def _encode_text(self, words: str, is_dense: bool) -> Float[Tensor, "1 d"]:
        return self.encoder.encode_text([words], dense=is_dense)

    def _encode_own(self, picture: Picture) -> Float32[np.ndarray, " d"]:
        with self._lock:
            return self.encoder.encode_image([self.collection.image(picture)])[0].numpy()

    def _encode_patches(self, picture: Picture, is_square: bool) -> Float[Tensor, "h w p"]:
        """Aligned patches of the center square, from stored tokens where there are some, or of the
        whole image.
        """
        # Half precision: 128 pictures with 1,000 patches of 1,024 channels would take 0.5 GB in
        # float32.
        with self._lock:
            features = self.collection.features(picture) if is_square and self._align else None
            if features is not None and self._align is not None:
                return self._align(features)[0].half()

            image = self.collection.image(picture)
            view = center_view(image, self._side) if is_square else _resized(image, self._side)
            return self.encoder.encode_patches([view])[0].half()


def _resized(image: Image.Image, side: int) -> Image.Image:
    """The whole image with its short side resized; a strip stays smaller."""
    factor = min(side / min(image.size), MOST_ASPECT * side / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)
