"""What a recipe costs, by arithmetic: parameters, FLOP per pair, bytes on disk, GPU-hours.

A multiply-add counts as 2 FLOP; training costs 3 times the forward pass of what is trained; norms and activations are
left out. Checked against the figures of ViT-L/14 (arXiv:2412.16334): 162 GFLOP an image, 73 a caption padded to 77.
"""

from dataclasses import dataclass

import torch
from torch import nn

from curation import dinov2
from curation.backbone import BackboneConfig
from train.model import DinoTxt, ModelConfig

STORED_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}
ADAMW_BYTES = 16  # a trained weight in float32, its gradient and two moments


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of one image as the head sees them."""

    dim: int
    num_registers: int
    height: int
    width: int

    @property
    def num_tokens(self) -> int:
        return 1 + self.num_registers + self.height * self.width


def stored_grid(full: TokenGrid, content: str, grid: int) -> TokenGrid:
    """Tokens left of `full` by an embedding content."""
    if content == "pooled":
        return TokenGrid(full.dim, 0, 1, 1)
    if content == "grid":
        return TokenGrid(full.dim, full.num_registers, grid, grid)
    return full


def stored_bytes(grid: TokenGrid, dtype: str) -> int:
    """Bytes of one image's tokens on disk, scales included."""
    scales = 4 * grid.num_tokens if dtype == "int8" else 0
    return grid.num_tokens * grid.dim * STORED_BYTES[dtype] + scales


def backbone_flop(config: BackboneConfig) -> float | None:
    """Forward FLOP of one image; None for a backbone that is not a DINOv2."""
    architecture = dinov2.MODELS.get(config.name)
    if architecture is None:
        return None
    patches = (config.image_size // dinov2.PATCH_SIZE) ** 2
    tokens = 1 + architecture.num_registers + patches
    matrices = 3 if architecture.swiglu else 2
    linear = 4 * architecture.dim**2 + matrices * architecture.dim * architecture.mlp_dim
    embed = patches * 3 * dinov2.PATCH_SIZE**2 * architecture.dim
    attention = 2 * tokens**2 * architecture.dim
    return 2.0 * (embed + architecture.depth * (tokens * linear + attention))


def model_on_paper(config: ModelConfig, vocab_size: int, dim: int) -> DinoTxt:
    """The model with shapes and no memory, to count its weights."""
    with torch.device("meta"):
        return DinoTxt(config, vocab_size, dim)


def num_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def text_flop(model: DinoTxt, num_tokens: float) -> float:
    """Forward FLOP of one caption of so many tokens; causal attention computes half of its square."""
    text = model.config.text
    attention = text.layers * num_tokens**2 * text.width
    return 2.0 * (_matrix_weights(model.text.blocks) * num_tokens + model.text.projection.weight.numel() + attention)


def head_flop(model: DinoTxt, grid: TokenGrid) -> float:
    """Forward FLOP of the vision head on one image's tokens."""
    attention = model.config.vision.blocks * 2 * grid.num_tokens**2 * grid.dim
    return 2.0 * (_matrix_weights(model.vision.blocks) * grid.num_tokens + attention)


def _matrix_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def gpu_hours(flop: float, tflops: float) -> float:
    """Hours on one GPU that sustains so many TFLOP/s."""
    return flop / (tflops * 1e12) / 3600
