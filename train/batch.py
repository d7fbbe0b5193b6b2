"""One rank's share of a batch: packed captions, and what is known of the images, in the format it is stored in.

Vectors travel to the device as they lie on disk (half the bytes of float32, or a quarter) and are decoded there. On a
machine with a GPU they are gathered into page-locked memory, which torch keeps for the next batches and which is
copied while the GPU computes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from train.attention import Packed, pack, unpack


@dataclass(frozen=True)
class Stored:
    """Vectors, or pixels, of a batch in stored format; int8 has one float32 scale a token."""

    values: Shaped[Tensor, "b ..."]
    scale: Float32[Tensor, "b t"] | None = None

    def to(self, device: torch.device) -> "Stored":
        """The same on a device, in order with what it computes."""
        scale = None if self.scale is None else self.scale.to(device, non_blocking=True)
        return Stored(self.values.to(device, non_blocking=True), scale)

    def rows(self, cut: slice) -> "Stored":
        """Some rows."""
        return Stored(self.values[cut], None if self.scale is None else self.scale[cut])

    def decoded(self) -> Float[Tensor, "b ..."]:
        """The values as floating-point numbers, where they are."""
        return self.values if self.scale is None else self.values * self.scale[..., None]


@dataclass(frozen=True)
class Batch:
    """Pairs ready for the model."""

    keys: list[str]
    captions: Packed
    vision: tuple[Stored, ...]
    """CLS (as one token), registers and patches; or, for a live backbone to see, the pixels alone."""
    num_truncated: int = 0
    """Captions that were cut to the context."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        vision = tuple(stored.to(device) for stored in self.vision)
        return Batch(self.keys, self.captions.to(device), vision, self.num_truncated)

    def inputs(self) -> tuple[Packed, Tensor, Tensor, Tensor]:
        """What the model takes."""
        cls, registers, patches = (stored.decoded() for stored in self.vision)
        return self.captions, cls[:, 0], registers, patches


def split(batch: Batch, most_pairs: int) -> list[Batch]:
    """The batch in parts of at most so many pairs, each packed anew; 0: one part."""
    if not most_pairs or len(batch.keys) <= most_pairs:
        return [batch]
    captions = unpack(batch.captions)
    cuts = [slice(start, start + most_pairs) for start in range(0, len(batch.keys), most_pairs)]
    return [
        Batch(batch.keys[cut], pack(captions[cut]), tuple(stored.rows(cut) for stored in batch.vision)) for cut in cuts
    ]
