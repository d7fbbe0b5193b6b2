"""The frozen image backbone: images in; CLS, registers and patches out, with their geometry.

DINOv2 (curation/encoders/dinov2.py) when its weights are given, cached or can be fetched; else an EfficientNet-Lite
stand-in (curation/encoders/efficientnet.py). `resolve` decides once, before anything runs; its choice and the weights'
sha256 are identity.
"""

import difflib
import logging
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from cluster.files import sha256_file
from cluster.resources import MACHINE_FACT
from curation.encoders import dinov2, efficientnet
from curation.encoders.views import centre_view
from curation.encoders.weights import find_weights, given_file, hub_answers, is_cached

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUTO = "auto"
PREFERRED, FALLBACK = "dinov2-vits14-reg", "efficientnet-lite0"
Precision = Literal["float32", "bfloat16"]
NAMES = (AUTO, *dinov2.MODELS, *efficientnet.MODELS)


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
    return efficientnet.PATCH_SIZE if name in efficientnet.MODELS else dinov2.PATCH_SIZE


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
    if name in efficientnet.MODELS:
        return Geometry(efficientnet.MODELS[name][1], patch_size, 0, grid, image_size)
    architecture = dinov2.MODELS[name]
    return Geometry(architecture.dim, patch_size, architecture.num_registers, grid, image_size)


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


def resolve(config: BackboneConfig) -> BackboneConfig:
    """The config with a concrete name, a fitting image size and the weights' sha256; once resolved it stays as it is.

    auto: the DINOv2 whose weights are given; else ViT-S/14 with registers when the hub's cache holds it or the hub
    answers within three seconds; else the stand-in.
    """
    if config.digest:
        return config
    name, reason = (config.name, "named") if config.name != AUTO else _choose(config.weights)
    file = find_weights(name, config.weights)
    digest = dinov2.random_digest(name) if file is None else sha256_file(file)
    image_size = fit_image_size(config.image_size, name)
    logger.info("backbone=%s reason=%r image_size=%d digest=%s", name, reason, image_size, digest[:12])
    return replace(config, name=name, digest=digest, image_size=image_size)


def _choose(weights: str) -> tuple[str, str]:
    if weights:
        return dinov2.model_name(dinov2.read_state(given_file(weights))), "weights given"
    if is_cached(PREFERRED):
        return PREFERRED, "in the hub's cache"
    if hub_answers(PREFERRED):
        return PREFERRED, "offered by the hub"
    return FALLBACK, f"no DINOv2 weights given or cached and the hub does not answer: {efficientnet.DESCRIPTION}"


def load_backbone(config: BackboneConfig, precision: Precision = "float32") -> Backbone:
    """The frozen backbone of a config, on the GPU when there is one; its matmuls are done in the given precision."""
    config = resolve(config)
    file = find_weights(config.name, config.weights)
    if file is not None and sha256_file(file) != config.digest:
        raise ValueError(f"weights {file} are not those the backbone was resolved with: restore them, or resolve anew")
    encoder: nn.Module
    if config.name in efficientnet.MODELS:
        assert file is not None
        encoder = efficientnet.load_standin(config.name, file)
    elif file is None:
        encoder = dinov2.load_random(config.name)
    else:
        encoder = dinov2.load_dinov2(config.name, file)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Backbone(encoder, geometry_of(config), describe(config.name), precision).to(device)


def describe(name: str) -> str:
    """What a backbone is and what it was trained on, for records and reports."""
    if name in efficientnet.MODELS:
        return f"{name}: {efficientnet.DESCRIPTION}"
    return f"{name}: random weights, for tests" if name == dinov2.RANDOM else f"{name}: DINOv2, self-supervised"
