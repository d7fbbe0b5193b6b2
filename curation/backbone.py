"""The frozen image backbone: images in; CLS, registers and patches out, with their geometry.

DINOv2 (curation/dinov2.py) when its weights are given, cached or can be fetched; else an EfficientNet-Lite stand-in
(curation/standin.py). `resolve` decides once, before anything runs; what it chose, with the sha256 of the weights, is identity.
"""

import difflib
import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from curation import dinov2, standin

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUTO = "auto"
NAMES = (AUTO, *dinov2.MODELS, *standin.MODELS)
PREFERRED = "dinov2-vits14-reg"
HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class BackboneConfig:
    name: str = AUTO
    """auto, dinov2-vit{s,b,l,g}14[-reg], efficientnet-lite0, efficientnet-lite2, or random-vit (tests)."""
    weights: str = ""
    """Meta's .pth, a .safetensors file or a Hugging Face folder; empty: the hub's cache, the hub, or the installed package."""
    digest: str = ""
    """sha256 of the weights; filled when the backbone is resolved."""
    image_size: int = 224
    """Side of the square crop fed to the backbone, in pixels; a multiple of its patch size."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            nearest = difflib.get_close_matches(self.name, NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(f"backbone {self.name!r} is unknown: one of {', '.join(NAMES)}; did you mean {nearest!r}?")
        patch_size = patch_size_of(self.name)
        if self.image_size < patch_size or self.image_size % patch_size:
            below = max(self.image_size // patch_size, 1) * patch_size
            raise ValueError(
                f"image_size {self.image_size} does not fit {self.name}: it must be a multiple of the patch size "
                f"{patch_size}; use {below} or {below + patch_size}"
            )


def patch_size_of(name: str) -> int:
    if name == AUTO:
        return 1
    return standin.PATCH_SIZE if name in standin.MODELS else dinov2.PATCH_SIZE


@dataclass(frozen=True)
class Geometry:
    dim: int
    patch_size: int
    num_registers: int
    grid: tuple[int, int]
    image_size: int


class Features(NamedTuple):
    cls: Float[Tensor, "b d"]
    registers: Float[Tensor, "b r d"]
    patches: Float[Tensor, "b p d"]


class Backbone(nn.Module):
    """A frozen encoder with its preprocessing; forward takes any height and width that are multiples of the patch size."""

    def __init__(self, encoder: nn.Module, geometry: Geometry, description: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.geometry = geometry
        self.description = description
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 s s"]:
        """Short side resized to image_size (bicubic, antialiased), centre crop, ImageNet statistics; on the CPU."""
        size = self.geometry.image_size
        width, height = image.size
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        return self.normalize(_rgb(image).resize((size, size), Image.Resampling.BICUBIC, box=box))

    def normalize(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """ImageNet statistics without resizing, for dense use; on the CPU."""
        pixels = torch.from_numpy(np.array(_rgb(image), dtype=np.float32)) / 255.0
        return ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1).contiguous()

    @torch.inference_mode()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """float32 features on the backbone's device, patches row by row."""
        patch_size = self.geometry.patch_size
        if images.shape[2] % patch_size or images.shape[3] % patch_size:
            raise ValueError(
                f"images are {tuple(images.shape[2:])}: sides must be multiples of {patch_size}; crop or pad"
            )
        return Features(*self.encoder(images.to(self.device)))


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
    """The config with a concrete name and the sha256 of its weights; a resolved config is returned as it is."""
    if config.digest:
        return config
    name = config.name
    if name == AUTO:
        name = "efficientnet-lite0"
    file = locate(name, config.weights)
    digest = dinov2.random_digest(name) if file is None else sha256(file)
    logger.info("backbone=%s digest=%s", name, digest[:12])
    return replace(config, name=name, digest=digest)


def locate(name: str, weights: str) -> Path | None:
    if name == dinov2.RANDOM:
        return None
    if name in standin.MODELS:
        file = standin.weights_file(name)
        if file is None:
            raise FileNotFoundError(f"{name} is not installed: its weights come in a package; run `make setup`")
        return file
    return Path(weights)


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_backbone(config: BackboneConfig) -> Backbone:
    """The frozen backbone of a config, on the GPU when there is one."""
    config = resolve(config)
    file = locate(config.name, config.weights)
    if config.name in standin.MODELS:
        assert file is not None
        encoder: nn.Module = standin.load_standin(config.name, file)
        description, registers = f"{config.name}: {standin.DESCRIPTION}", 0
    else:
        architecture = dinov2.MODELS[config.name]
        state = dinov2.hub_names(dinov2.random_state(architecture)) if file is None else dinov2.read_state(file)
        encoder, registers = dinov2.build(architecture, state), architecture.num_registers
        description = f"{config.name}: self-supervised, DINOv2" if file else f"{config.name}: random weights, for tests"
    patch_size = patch_size_of(config.name)
    side = config.image_size // patch_size
    geometry = Geometry(encoder.dim, patch_size, registers, (side, side), config.image_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Backbone(encoder, geometry, description).to(device)
