"""What an evaluator may know of a model: three methods that return float32 CPU tensors of unit norm.

Ours is in evaluate/dinotxt.py, open_clip's in evaluate/openclip.py; the tests have one of fifteen lines.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Texts and images into one space; what the model is, and what it does to images, goes into every result."""

    description: str
    protocol: Mapping[str, object]

    def encode_text(self, texts: Sequence[str], *, dense: bool = False) -> Float[Tensor, "n d"]:
        """One vector for each text; `dense` gives those that compare with `encode_patches`."""
        ...

    def encode_image(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """One vector for each image of any size."""
        ...

    def encode_patches(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w p"]:
        """A grid of vectors that covers each image; all images have one size."""
        ...
