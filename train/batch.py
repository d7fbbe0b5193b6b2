"""One rank's slice of a batch: packed captions, and image tokens in their format on disk.

Vectors are copied to the device as they are stored (half or a quarter of the bytes of float32) and
decoded there. On a machine with a GPU they are gathered into page-locked memory. That memory is
reused from batch to batch, and is copied while the GPU computes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from train.attention import Packed, pack, unpack


@dataclass(frozen=True)
class Stored:
    """Vectors or pixels of a batch in their stored format; int8 has one float32 scale per token."""

    values: Shaped[Tensor, "b ..."]
    scale: Float32[Tensor, "b t"] | None = None

    def to(self, device: torch.device) -> "Stored":
        """A copy on a device, queued behind the work that the device already has."""
        scale = None if self.scale is None else self.scale.to(device, non_blocking=True)
        return Stored(self.values.to(device, non_blocking=True), scale)

    def rows(self, cut: slice) -> "Stored":
        """The rows of a slice, as views."""
        return Stored(self.values[cut], None if self.scale is None else self.scale[cut])

    def decoded(self) -> Float[Tensor, "b ..."]:
        """The values as floating-point numbers, on the device that holds them."""
        # int8 times float32 is float32; the scale of a token holds for all of its channels.
        return self.values if self.scale is None else self.values * self.scale[..., None]


@dataclass(frozen=True)
class Batch:
    """Pairs ready for the model."""

    keys: list[str]
    captions: Packed
    vision: tuple[Stored, ...]
    """CLS (as one token), registers and patches; or the pixels alone, for a live backbone."""
    num_truncated: int = 0
    """Captions that were cut to the context."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        vision = tuple(stored.to(device) for stored in self.vision)
        return Batch(self.keys, self.captions.to(device), vision, self.num_truncated)

    def inputs(self) -> tuple[Packed, Tensor, Tensor, Tensor]:
        """The arguments of the model: captions, CLS, registers, patches."""
        cls, registers, patches = (stored.decoded() for stored in self.vision)
        return self.captions, cls[:, 0], registers, patches  # CLS without its axis of one token


def split(batch: Batch, most_pairs: int | None) -> list[Batch]:
    """The batch in parts of at most `most_pairs` pairs; None: one part."""
    if most_pairs is None or len(batch.keys) <= most_pairs:
        return [batch]

    # A pack is sorted by length, so a part of the batch is no slice of it: unpack, cut, pack again.
    captions = unpack(batch.captions)
    cuts = [slice(start, start + most_pairs) for start in range(0, len(batch.keys), most_pairs)]
    return [
        Batch(
            batch.keys[cut], pack(captions[cut]), tuple(stored.rows(cut) for stored in batch.vision)
        )
        for cut in cuts
    ]
