"""DINOv2 ViT-S/B/L/g with patch size 14, with or without registers, through transformers' implementation.

Weights come as Meta's published .pth or in Hugging Face's published key names; both are read into the latter, which the
library maps to its own names in every version. Positions are interpolated here, as Meta's code does it: the library
differs for the models without registers. Oquab et al. 2023 (arXiv:2304.07193), Darcet et al. 2023 (arXiv:2309.16588).
"""

import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from curation.encoders.models import DINOV2, DINOV2_PATCH_SIZE, SIZES, Architecture

# Meta's published names to Hugging Face's; of a block, what is not listed keeps its name
STEM_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
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
POSITIONS = "embeddings.position_embeddings"


def interpolate_positions(
    positions: Float[Tensor, "1 n d"], height: int, width: int, has_registers: bool
) -> Float[Tensor, "1 m d"]:
    """Position embeddings (CLS first) for a grid of height x width patches.

    As published: models with registers resample to the size, antialiased; those without resample by a scale factor of
    (size + 0.1) / source without antialiasing. The published grid itself is returned untouched.
    """
    side = math.isqrt(positions.shape[1])
    if (height, width) == (side, side):
        return positions
    grid = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if has_registers:
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
    else:
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    assert grid.shape[-2:] == (height, width)
    return torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)), dim=1)


class Dinov2(nn.Module):
    """Images to the final layer norm's CLS, registers and patches."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        super().__init__()
        self.model = model
        self.num_registers = architecture.num_registers
        self.grids: dict[tuple[int, int], Tensor] = {}
        model.embeddings.interpolate_pos_encoding = self._positions

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.model(pixel_values=images).last_hidden_state
        first_patch = 1 + self.num_registers
        return tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:]

    def _positions(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        grid = (height // DINOV2_PATCH_SIZE, width // DINOV2_PATCH_SIZE)
        if grid not in self.grids or self.grids[grid].device != embeddings.device:
            positions = self.model.embeddings.position_embeddings
            self.grids[grid] = interpolate_positions(positions, *grid, self.num_registers > 0)
        return self.grids[grid]


def hub_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in Meta's published names, renamed to Hugging Face's published names (qkv split into its three)."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in STEM_NAMES:
            renamed[STEM_NAMES[key]] = value
            continue
        if not key.startswith("blocks."):
            raise ValueError(f"backbone weights hold {key!r}: Meta's published DINOv2 files do not; give one of those")
        _, block, name = key.split(".", 2)
        prefix = f"encoder.layer.{block}."
        if name.startswith("attn.qkv."):
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{prefix}attention.attention.{part}.{name.removeprefix('attn.qkv.')}"] = rows
        else:
            renamed[prefix + _block_name(name)] = value
    return renamed


def _block_name(name: str) -> str:
    for meta, hub in BLOCK_NAMES.items():
        if name.startswith(meta):
            return hub + name.removeprefix(meta)
    return name


def read_state(file: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a torch state dict, in Hugging Face's published names."""
    if file.suffix == ".safetensors":
        state = safetensors.torch.load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return hub_names(state) if "pos_embed" in state else state


def model_name(state: dict[str, Tensor]) -> str:
    """The name of the published model that a state dict's shapes belong to."""
    if POSITIONS not in state:
        raise ValueError("backbone weights hold no position embeddings: DINOv2's published files do; give one of those")
    dim, registers = state[POSITIONS].shape[-1], state.get("embeddings.register_tokens", torch.empty(1, 0)).shape[1]
    for name, architecture in DINOV2.items():
        if (architecture.dim, architecture.num_registers) == (dim, registers):
            return name
    widths = ", ".join(str(size[0]) for size in SIZES.values())
    raise ValueError(f"backbone weights have width {dim} and {registers} registers: DINOv2 has width {widths}, 0 or 4")


def load_dinov2(name: str, file: Path) -> Dinov2:
    """The named model with the weights of a file; an error names the model the weights belong to."""
    state = read_state(file)
    if model_name(state) != name:
        raise ValueError(
            f"weights {file} are those of {model_name(state)}, not of {name}: name that one or give others"
        )
    return build(DINOV2[name], state)


def load_random(name: str) -> Dinov2:
    return build(DINOV2[name], hub_names(random_state(DINOV2[name])))


def random_state(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """Seeded weights in Meta's published names and shapes, with a position grid of 16 x 16; for tests and dry runs."""
    generator = torch.Generator().manual_seed(seed)
    dim, hidden = architecture.dim, architecture.mlp_dim

    def normal(*shape: int, std: float = 0.02, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    def linear(name: str, num_out: int, num_in: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(num_out, num_in, std=num_in**-0.5), f"{name}.bias": normal(num_out)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(dim, mean=1.0), f"{name}.bias": normal(dim)}

    state = {"cls_token": normal(1, 1, dim), "pos_embed": normal(1, 257, dim, std=0.5), "mask_token": normal(1, dim)}
    if architecture.num_registers:
        state["register_tokens"] = normal(1, architecture.num_registers, dim, std=1.0)
    side = DINOV2_PATCH_SIZE
    state["patch_embed.proj.weight"] = normal(dim, 3, side, side, std=1 / (3**0.5 * side))
    state["patch_embed.proj.bias"] = normal(dim)
    for i in range(architecture.depth):
        block = f"blocks.{i}"
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * dim, dim)
        state |= linear(f"{block}.attn.proj", dim, dim) | {f"{block}.ls1.gamma": normal(dim, mean=1.0, std=0.1)}
        state |= norm(f"{block}.norm2") | {f"{block}.ls2.gamma": normal(dim, mean=1.0, std=0.1)}
        first, last = ("w12", "w3") if architecture.swiglu else ("fc1", "fc2")
        state |= linear(f"{block}.mlp.{first}", hidden * (2 if architecture.swiglu else 1), dim)
        state |= linear(f"{block}.mlp.{last}", dim, hidden)
    return state | norm("norm")


def build(architecture: Architecture, state: dict[str, Tensor]) -> Dinov2:
    """The encoder with these weights (Hugging Face's published names)."""
    settings: dict[str, Any] = {
        "hidden_size": architecture.dim,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.num_heads,
        "use_swiglu_ffn": architecture.swiglu,
        "patch_size": DINOV2_PATCH_SIZE,
        "image_size": math.isqrt(state[POSITIONS].shape[1]) * DINOV2_PATCH_SIZE,
    }
    family: Any = transformers.Dinov2Model
    config: Any = transformers.Dinov2Config(**settings)
    if architecture.num_registers:
        family = transformers.Dinov2WithRegistersModel
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=architecture.num_registers, **settings)
    transformers.utils.logging.disable_progress_bar()
    model, loaded = family.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    problems = {kind: sorted(map(str, keys)) for kind, keys in loaded.items() if keys}
    if problems:
        raise ValueError(f"backbone weights do not fit DINOv2 ({problems}): give a published file")
    return Dinov2(model, architecture)
