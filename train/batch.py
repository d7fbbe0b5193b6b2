"""One rank's slice of a batch: packed captions, and image tokens in their format on disk.

Vectors are copied to the device as they are stored (half or a quarter of the bytes of float32) and
decoded there. On a machine with a GPU they are gathered into page-locked memory, which is used
again and copied while the GPU computes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from train.attention import Packed, pack, unpack


@dataclass(frozen=True)
class Stored:
    """Vectors, or pixels, of a batch as they are stored; int8 has one float32 scale per token."""

    values: Shaped[Tensor, "b ..."]
    scale: Float32[Tensor, "b t"] | None = None

    def to(self, device: torch.device) -> "Stored":
        """The same on a device, copied in order with what the device computes."""
        scale = None if self.scale is None else self.scale.to(device, non_blocking=True)
        return Stored(self.values.to(device, non_blocking=True), scale)

    def rows(self, cut: slice) -> "Stored":
        """Some rows."""
        return Stored(self.values[cut], None if self.scale is None else self.scale[cut])

    def decoded(self) -> Float[Tensor, "b ..."]:
        """The values as floating-point numbers, on the device where they are."""
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
        return self.captions, cls[:, 0], registers, patches


def split(batch: Batch, most_pairs: int) -> list[Batch]:
    """The batch in parts of at most `most_pairs`, each packed by itself; 0: one part."""
    if not most_pairs or len(batch.keys) <= most_pairs:
        return [batch]

    captions = unpack(batch.captions)
    cuts = [slice(start, start + most_pairs) for start in range(0, len(batch.keys), most_pairs)]
    return [
        Batch(
            batch.keys[cut], pack(captions[cut]), tuple(stored.rows(cut) for stored in batch.vision)
        )
        for cut in cuts
    ]
