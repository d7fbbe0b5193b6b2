"""One record per family of backbones, with everything that the project knows about it.

A new family is one more record. Records load no weights and do not import torch: the code of a
family is imported when a backbone is built.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from curation.encoders.architectures import (
    DINOV2,
    DINOV3,
    EFFICIENTNET_LITE,
    FRANCA,
    RADIO,
    RANDOM,
    Architecture,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class FamilyCode(Protocol):
    """The functions of a family's module. A state is a dict of tensors by their names in a file."""

    def matches(self, architecture: Any, state: Any) -> bool:
        """Whether the weights are those of the architecture."""

    def build(self, architecture: Any, state: Any) -> Any:
        """A module from images to CLS, registers and patches.

        Raises ValueError when weights are missing or do not fit.
        """

    def random_state(self, architecture: Any) -> Any:
        """Seeded random weights; None if the family cannot make them."""


@dataclass(frozen=True)
class Family:
    """What the members of a family have in common."""

    name: str
    members: Mapping[str, Architecture]
    """Sizes by name, as recipes write it."""
    description: str
    """What a member is and how it was trained; records and reports write it after the name."""
    license: str
    """The license of the weights."""
    patch_size: int
    """Pixels along one side of a patch."""
    source: Literal["hub", "file", "package", "seed"]
    """Where weights are found. hub: the Hugging Face hub, or a file; file: only a file; package: a
    Python package; seed: they are random."""
    code: Callable[[], FamilyCode]
    """Imports the module that builds its members, and torch and transformers with it."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per channel, subtracted from pixel values of 0 to 1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel, the divisor of the pixel values less their mean."""


# Functions, because importing these modules imports torch and transformers, which takes seconds.
def _dinov2() -> FamilyCode:
    from curation.encoders import dinov2

    return dinov2


def _dinov3() -> FamilyCode:
    from curation.encoders import dinov3

    return dinov3


def _radio() -> FamilyCode:
    from curation.encoders import radio

    return radio


def _efficientnet() -> FamilyCode:
    from curation.encoders import efficientnet

    return efficientnet


FAMILIES = (
    Family(
        name="DINOv2",
        members=DINOV2,
        description="DINOv2, self-supervised",
        license="Apache-2.0",
        patch_size=14,
        source="hub",
        code=_dinov2,
    ),
    Family(
        name="DINOv3",
        members=DINOV3,
        description="DINOv3, self-supervised, distilled from a 7 B model",
        license="DINOv3 License",
        patch_size=16,
        source="hub",
        code=_dinov3,
    ),
    Family(
        name="Franca",
        members=FRANCA,
        description="Franca, self-supervised on public data",
        license="Research-Only RAIL License",
        patch_size=14,
        source="file",
        code=_dinov2,
    ),
    Family(
        name="C-RADIO",
        members=RADIO,
        description="C-RADIO, distilled from several foundation models",
        license="NVIDIA Open Model License",
        patch_size=16,
        source="hub",
        code=_radio,
        mean=(0.0, 0.0, 0.0),  # the model normalizes by itself
        std=(1.0, 1.0, 1.0),
    ),
    Family(
        name="EfficientNet-Lite",
        members=EFFICIENTNET_LITE,
        description="convolutional stand-in, supervised on ImageNet labels, not DINOv2",
        license="Apache-2.0",
        patch_size=32,
        source="package",
        code=_efficientnet,
    ),
    Family(
        name="random",
        members=RANDOM,
        description="random weights, for tests",
        license="none: the weights are random",
        patch_size=14,
        source="seed",
        code=_dinov2,
    ),
)

MEMBERS = {name: family for family in FAMILIES for name in family.members}
"""Every backbone by its name, with its family."""
