"""DINOv2 and models of its shape (Franca), with or without registers, built by transformers.

Weights come as Meta's published .pth or with Hugging Face's published names. Meta's names are
changed to the latter, which every version of the library maps to its own names. Positions are
interpolated here as in Meta's code, because the library does it differently for the models without
registers. Oquab et al. 2023 (arXiv:2304.07193), Darcet et al. 2023 (arXiv:2309.16588), Franca:
Venkataramanan et al. 2025 (arXiv:2507.14137).
"""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from curation.encoders.architectures import VisionTransformer
from curation.encoders.library import StateDict, TokenEncoder, load_library_model

PATCH_SIZE = 14
POSITIONS = "embeddings.position_embeddings"

# Meta's published names to Hugging Face's. Tensors of a block that are not listed keep their name.
STEM_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": POSITIONS,
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK_NAMES = {
    "attn.proj.": "attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12.": "mlp.weights_in.",
    "mlp.w3.": "mlp.weights_out.",
}
# The number of a block. Franca's files have the number of a chunk of blocks before it.
BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(\D.*)")


class Positions:
    """Position embeddings of a frozen model for any grid, computed once per grid.

    It replaces the library's method `interpolate_pos_encoding`, and is called with the same
    arguments: sides in pixels.
    """

    def __init__(self, embeddings: nn.Module, has_registers: bool) -> None:
        self.embeddings = embeddings
        self.has_registers = has_registers
        self.grids: dict[tuple[int, int], Tensor] = {}

    def __call__(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        grid = (height // PATCH_SIZE, width // PATCH_SIZE)
        if grid not in self.grids or self.grids[grid].device != embeddings.device:
            positions: Any = self.embeddings.position_embeddings
            self.grids[grid] = interpolate_positions(positions, *grid, self.has_registers)
        return self.grids[grid]


def interpolate_positions(
    positions: Float[Tensor, "1 n d"], height: int, width: int, has_registers: bool
) -> Float[Tensor, "1 m d"]:
    """Position embeddings, CLS first, for a grid of height x width patches.

    As in Meta's code: models with registers are resampled to the size, with antialiasing; models
    without are resampled by the scale factor (size + 0.1) / source, without antialiasing. For the
    published grid itself, the embeddings are returned as they are.
    """
    # The square root ignores CLS: 1 + 16 * 16 is rounded down to 16.
    side = math.isqrt(positions.shape[1])
    if (height, width) == (side, side):
        return positions

    # As an image of the model's width in channels, which is what torch interpolates.
    grid = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if has_registers:
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
    else:
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")

    assert grid.shape[-2:] == (height, width)

    return torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)), dim=1)


def matches(architecture: VisionTransformer, state: StateDict) -> bool:
    """Whether the weights are those of this architecture, in Meta's or Hugging Face's names."""
    try:
        state = hub_names(state)
    except ValueError:
        return False

    if POSITIONS not in state:
        return False

    dim = state[POSITIONS].shape[-1]
    registers = state.get("embeddings.register_tokens")
    num_registers = 0 if registers is None else registers.shape[1]
    has_swiglu = any("mlp.weights_in." in name for name in state)

    expected = (architecture.dim, architecture.num_registers, architecture.has_swiglu)
    return (dim, num_registers, has_swiglu) == expected


def build(architecture: VisionTransformer, state: StateDict) -> TokenEncoder:
    """The encoder with these weights, in Meta's or Hugging Face's names.

    Raises ValueError when weights are missing or do not fit.
    """
    state = hub_names(state)
    settings: dict[str, Any] = {
        "hidden_size": architecture.dim,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.num_heads,
        "use_swiglu_ffn": architecture.has_swiglu,
        "patch_size": PATCH_SIZE,
        "image_size": math.isqrt(state[POSITIONS].shape[1]) * PATCH_SIZE,
    }

    family: Any = transformers.Dinov2Model
    config: Any = transformers.Dinov2Config(**settings)

    if architecture.num_registers:
        family = transformers.Dinov2WithRegistersModel
        config = transformers.Dinov2WithRegistersConfig(
            num_register_tokens=architecture.num_registers, **settings
        )

    model = load_library_model(family, config, state)
    model.embeddings.interpolate_pos_encoding = Positions(
        model.embeddings, architecture.num_registers > 0
    )

    return TokenEncoder(model, architecture.num_registers)


def hub_names(state: StateDict) -> StateDict:
    """A state dict in Hugging Face's published names: as it is, or renamed from Meta's.

    Meta's qkv tensors are split into three. Raises ValueError for a name that Meta does not use.
    """
    if "pos_embed" not in state:
        return state

    renamed: StateDict = {}
    for key, value in state.items():
        block = BLOCK.fullmatch(key)
        if key in STEM_NAMES:
            renamed[STEM_NAMES[key]] = value
        elif block is None:
            raise ValueError(
                f"backbone weights hold {key!r}: Meta's published DINOv2 files do not; give one "
                "of those"
            )
        else:
            renamed |= _block_tensors(f"encoder.layer.{block[1]}.", block[2], value)

    return renamed


def _block_tensors(prefix: str, name: str, value: Tensor) -> StateDict:
    """A tensor of a block under its new name; three tensors for qkv."""
    if name.startswith("attn.qkv."):
        kind = name.removeprefix("attn.qkv.")
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {f"{prefix}attention.attention.{part}.{kind}": rows for part, rows in parts}

    for meta, hub in BLOCK_NAMES.items():
        if name.startswith(meta):
            return {prefix + hub + name.removeprefix(meta): value}
    return {prefix + name: value}


def random_state(architecture: VisionTransformer, seed: int = 0) -> StateDict:
    """Seeded weights in Meta's published names and shapes, for tests and dry runs.

    The position grid is 16 x 16.
    """
    generator = torch.Generator().manual_seed(seed)
    dim = architecture.dim
    hidden = architecture.mlp_dim

    def normal(*shape: int, std: float = 0.02, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    def linear(name: str, num_out: int, num_in: int) -> StateDict:
        return {
            f"{name}.weight": normal(num_out, num_in, std=num_in**-0.5),
            f"{name}.bias": normal(num_out),
        }

    def norm(name: str) -> StateDict:
        return {f"{name}.weight": normal(dim, mean=1.0), f"{name}.bias": normal(dim)}

    # The digest of random-vit stands for these values, so the order of the draws must not change.
    state = {
        "cls_token": normal(1, 1, dim),
        "pos_embed": normal(1, 257, dim, std=0.5),
        "mask_token": normal(1, dim),
    }
    if architecture.num_registers:
        state["register_tokens"] = normal(1, architecture.num_registers, dim, std=1.0)

    state["patch_embed.proj.weight"] = normal(
        dim, 3, PATCH_SIZE, PATCH_SIZE, std=1 / (3**0.5 * PATCH_SIZE)
    )
    state["patch_embed.proj.bias"] = normal(dim)

    for index in range(architecture.depth):
        block = f"blocks.{index}"
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * dim, dim)
        state |= linear(f"{block}.attn.proj", dim, dim) | {
            f"{block}.ls1.gamma": normal(dim, mean=1.0, std=0.1)
        }
        state |= norm(f"{block}.norm2") | {f"{block}.ls2.gamma": normal(dim, mean=1.0, std=0.1)}

        first, last = ("w12", "w3") if architecture.has_swiglu else ("fc1", "fc2")
        state |= linear(f"{block}.mlp.{first}", hidden * (2 if architecture.has_swiglu else 1), dim)
        state |= linear(f"{block}.mlp.{last}", dim, hidden)

    return state | norm("norm")
