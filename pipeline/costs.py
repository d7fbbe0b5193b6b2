"""What a recipe costs, by arithmetic: parameters, bytes on disk, GPU-hours; FLOP are counted in train/flop.py."""

from dataclasses import dataclass

import torch
from torch import nn

from train.config import ModelConfig
from train.model import DinoTxt

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


def model_on_paper(config: ModelConfig, vocab_size: int, dim: int) -> DinoTxt:
    """The model with shapes and no memory, to count its weights."""
    with torch.device("meta"):
        return DinoTxt(config, vocab_size, dim)


def num_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def gpu_hours(flop: float, tflops: float) -> float:
    """Hours on one GPU that sustains so many TFLOP/s."""
    return flop / (tflops * 1e12) / 3600
