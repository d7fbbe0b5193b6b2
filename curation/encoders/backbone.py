"""The frozen image backbone: images in; CLS, registers and patches out, with their geometry.

curation/encoders/families.py lists the backbones. curation/encoders/resolve.py chooses one before
anything runs.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from cluster.files import sha256_file
from cluster.machine import Precision
from curation.encoders.config import BackboneConfig, Geometry, concrete, geometry_of
from curation.encoders.families import MEMBERS, Family
from curation.encoders.resolve import resolve
from curation.encoders.views import center_view
from curation.encoders.weights import find_weights, read_tensors, recognize


class Features(NamedTuple):
    """A backbone's tokens for a batch of images."""

    cls: Float[Tensor, "b d"]
    registers: Float[Tensor, "b r d"]
    patches: Float[Tensor, "b p d"]


class Backbone(nn.Module):
    """A frozen encoder with its preprocessing.

    Images may have any sides that are multiples of the patch size.
    """

    def __init__(
        self, encoder: nn.Module, geometry: Geometry, name: str, precision: Precision
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.geometry = geometry
        self.name = name
        self.precision = precision
        self.requires_grad_(False).eval()

    @property
    def family(self) -> Family:
        """The record of the backbone's family."""
        return MEMBERS[self.name]

    @property
    def description(self) -> str:
        """One line for records: the name, and how the family was trained."""
        return f"{self.name}: {self.family.description}"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 s s"]:
        """The center square at image_size (bicubic, antialiased), normalized; on the CPU."""
        return self.normalize(center_view(_rgb(image), self.geometry.image_size))

    def normalize(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Pixels with the family's mean and standard deviation, not resized; on the CPU."""
        # Channels first: what is then subtracted is the same along a whole plane.
        planes = np.ascontiguousarray(np.asarray(_rgb(image)).transpose(2, 0, 1))
        return self.normalize_batch(torch.from_numpy(planes).float() / 255.0)

    def normalize_batch(self, pixels: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
        """Pixel values of 0 to 1 with the family's mean and standard deviation, on any device."""
        mean = pixels.new_tensor(self.family.mean).view(3, 1, 1)
        std = pixels.new_tensor(self.family.std).view(3, 1, 1)
        return (pixels - mean) / std

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """float32 features on the backbone's device, patches in row-major order.

        Raises ValueError for sides that are no multiples of the patch size.
        """
        patch_size = self.geometry.patch_size
        if images.shape[2] % patch_size or images.shape[3] % patch_size:
            raise ValueError(
                f"images are {tuple(images.shape[2:])}: sides must be multiples of {patch_size}; "
                "crop or pad"
            )

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            cls, registers, patches = self.encoder(images.to(self.device))
        return Features(cls.float(), registers.float(), patches.float())


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def pool_patches(
    patches: Float[Tensor, "b p d"], grid: tuple[int, int], pooled: tuple[int, int]
) -> Float[Tensor, "b n d"]:
    """Area average of a (height, width) grid to a pooled grid, patches in row-major order."""
    # As images with the token's width in channels, which is what torch pools.
    batch, _, dim = patches.shape
    maps = patches.transpose(1, 2).reshape(batch, dim, *grid)
    return F.adaptive_avg_pool2d(maps, pooled).flatten(2).transpose(1, 2)


def store_features(
    features: Features, grid: tuple[int, int], num_registers: int, stored_grid: tuple[int, int]
) -> Features:
    """The tokens that a shard stores: some of the registers, and patches pooled to its grid."""
    patches = features.patches
    if stored_grid != grid:
        patches = pool_patches(patches, grid, stored_grid)
    return Features(features.cls, features.registers[:, :num_registers], patches)


def load_backbone(config: BackboneConfig, precision: Precision = "float32") -> Backbone:
    """The frozen backbone of a config, on the GPU if there is one.

    `precision` is that of its matrix products. Raises ValueError when the weights are not those of
    the config's digest, or not those of the named backbone.
    """
    config = resolve(config)
    file = find_weights(config.name, config.weights)
    if file is None:
        return random_backbone(config, precision)

    # The file may have been replaced after the backbone was resolved, or differ between machines.
    if sha256_file(file) != config.digest:
        raise ValueError(
            f"weights {file} are not those that the backbone was resolved with: restore them, or "
            "resolve it again"
        )

    # Weights of another backbone would fail with a long list of tensors, or even fit.
    state = read_tensors(file)
    names = recognize(state)
    if config.name not in names:
        raise ValueError(
            f"weights {file} are those of {' or '.join(names) or 'no known backbone'}, not of "
            f"{config.name}: name that one or give others"
        )

    return _on_device(config, state, precision)


def random_backbone(config: BackboneConfig, precision: Precision = "float32") -> Backbone:
    """A backbone with seeded random weights, for tests and timing.

    A family that cannot make random weights uses its published ones.
    """
    config = replace(config, name=concrete(config.name))
    family = MEMBERS[config.name]
    state = family.code().random_state(family.members[config.name])
    return (
        load_backbone(config, precision) if state is None else _on_device(config, state, precision)
    )


def _on_device(config: BackboneConfig, state: dict[str, Tensor], precision: Precision) -> Backbone:
    family = MEMBERS[config.name]
    encoder = family.code().build(family.members[config.name], state)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Backbone(encoder, geometry_of(config), config.name, precision).to(device)
