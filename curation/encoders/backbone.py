"""The frozen image backbone: images in; CLS, registers and patches out, with their geometry.

DINOv2 (curation/encoders/dinov2.py) when its weights are given, cached or can be fetched; else an EfficientNet-Lite
stand-in (curation/encoders/efficientnet.py). `resolve` decides once, before anything runs; its choice and the weights'
sha256 are identity.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from cluster.files import sha256_file
from cluster.machine import Precision
from curation.encoders import dinov2, efficientnet
from curation.encoders.config import BackboneConfig, Geometry, describe, geometry_of
from curation.encoders.models import EFFICIENTNET
from curation.encoders.resolve import resolve
from curation.encoders.views import centre_view
from curation.encoders.weights import find_weights

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    cls: Float[Tensor, "b d"]
    registers: Float[Tensor, "b r d"]
    patches: Float[Tensor, "b p d"]


class Backbone(nn.Module):
    """A frozen encoder with its preprocessing; forward takes any sides that are multiples of the patch size."""

    def __init__(self, encoder: nn.Module, geometry: Geometry, description: str, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.encoder = encoder
        self.geometry = geometry
        self.description = description
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 s s"]:
        """Short side resized to image_size (bicubic, antialiased), centre crop, ImageNet statistics; on the CPU."""
        return self.normalize(centre_view(_rgb(image), self.geometry.image_size))

    def normalize(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """ImageNet statistics without resizing, for dense use; on the CPU."""
        pixels = torch.from_numpy(np.array(_rgb(image), dtype=np.float32)) / 255.0
        return ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """float32 features on the backbone's device, patches row by row."""
        patch_size = self.geometry.patch_size
        if images.shape[2] % patch_size or images.shape[3] % patch_size:
            raise ValueError(
                f"images are {tuple(images.shape[2:])}: sides must be multiples of {patch_size}; crop or pad"
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            cls, registers, patches = self.encoder(images.to(self.device))
        return Features(cls.float(), registers.float(), patches.float())


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def pool_patches(
    patches: Float[Tensor, "b p d"], grid: tuple[int, int], pooled: tuple[int, int]
) -> Float[Tensor, "b n d"]:
    """Area average of a (h, w) grid to a pooled grid, row by row."""
    batch, _, dim = patches.shape
    maps = patches.transpose(1, 2).reshape(batch, dim, *grid)
    return F.adaptive_avg_pool2d(maps, pooled).flatten(2).transpose(1, 2)


def load_backbone(config: BackboneConfig, precision: Precision = "float32") -> Backbone:
    """The frozen backbone of a config, on the GPU when there is one; its matmuls are done in the given precision."""
    config = resolve(config)
    file = find_weights(config.name, config.weights)
    if file is not None and sha256_file(file) != config.digest:
        raise ValueError(f"weights {file} are not those the backbone was resolved with: restore them, or resolve anew")
    encoder: nn.Module
    if config.name in EFFICIENTNET:
        assert file is not None
        encoder = efficientnet.load_standin(config.name, file)
    elif file is None:
        encoder = dinov2.load_random(config.name)
    else:
        encoder = dinov2.load_dinov2(config.name, file)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Backbone(encoder, geometry_of(config), describe(config.name), precision).to(device)
