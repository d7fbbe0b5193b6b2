"""What an evaluator may know of a model: three methods that return float32 CPU tensors of unit
norm.

Ours is in evaluate/dinotxt.py, open_clip's in evaluate/openclip.py; the tests have one of fifteen
lines.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Texts and images into one space; what the model is, and what it does to images, goes into
    every result.
    """

    description: str
    """What the model is, in a line of a report."""
    protocol: Mapping[str, object]
    """What it does to images, as it stands in a result. With a number under "image_size", images
    arrive as squares of that many pixels per side; otherwise as decoded.
    """

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        """One vector per text, in their order; `dense` gives those that compare with
        `encode_patches`.
        """
        ...

    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """One vector per image, in their order; images are RGB of any size."""
        ...

    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        """A grid of h x w vectors that covers each image; all images have one size in pixels."""
        ...


@runtime_checkable
class StagedEncoder(Encoder, Protocol):
    """An encoder whose `encode_image` is three stages: pixels, which are made beside the encoder;
    the features of a frozen backbone, which all models on it share; and the head.
    """

    backbone: str
    """What decides the features: two encoders of one `backbone` give the same. Empty: not shared.
    """

    def prepare(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """The pixels of one image as the backbone takes them; called from several threads."""
        ...

    def image_features(self, pixels: Sequence[Tensor]) -> Float[Tensor, "n tokens width"]:
        """What the backbone makes of each image: float32, on the CPU."""
        ...

    def encode_features(self, features: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n d"]:
        """One unit vector for each image."""
        ...


def checked(vectors: Tensor, what: str, count: int, width: int | None = None) -> Tensor:
    """The vectors; ValueError when one is not finite, or when their number or width is not the
    expected one.

    NaN compares with nothing, so that it would count as an ordinary wrong answer.
    """
    if len(vectors) != count:
        raise ValueError(
            f"the encoder gave {len(vectors)} vectors for {count} {what}: one each is required; "
            "repair it"
        )
    if width is not None and vectors.shape[-1] != width:
        raise ValueError(
            f"the encoder's vectors of {what} have width {vectors.shape[-1]}, those of texts "
            f"{width}: both must be in one space; repair the encoder, or name the backbone that "
            "the model was trained on"
        )

    # Patches have axes of a grid before the last one: an image is bad where any of its values is.
    bad = int((~torch.isfinite(vectors)).flatten(1).any(1).sum())
    if bad:
        raise ValueError(
            f"the encoder gave NaN or infinity for {bad} of {count} {what}: every vector must be "
            "finite; look for damaged weights, or for an overflow in this precision "
            "(--evaluate.precision float32)"
        )

    return vectors
