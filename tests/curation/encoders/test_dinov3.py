"""DINOv3: parity with the library and with an independent transcription of the published
architecture."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from curation.encoders import dinov3
from curation.encoders.architectures import DINOV3, VisionTransformer
from curation.encoders.backbone import load_backbone
from curation.encoders.config import BackboneConfig
from curation.encoders.resolve import resolve

TINY = VisionTransformer(64, 2, 2, 4)
State = dict[str, Tensor]


def published_state(architecture: VisionTransformer) -> State:
    """Random tensors in Meta's published names and shapes, with the masked key bias and the
    rotations' periods."""
    generator = torch.Generator().manual_seed(0)
    dim = architecture.dim
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "storage_tokens": (1, architecture.num_registers, dim),
        "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    block: dict[str, tuple[int, ...]] = {
        "norm1.weight": (dim,),
        "norm1.bias": (dim,),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "ls1.gamma": (dim,),
        "ls2.gamma": (dim,),
        "mlp.fc1.weight": (4 * dim, dim),
        "mlp.fc1.bias": (4 * dim,),
        "mlp.fc2.weight": (dim, 4 * dim),
        "mlp.fc2.bias": (dim,),
    }
    for index in range(architecture.depth):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}

    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = {
        name: value + 1 if "norm" in name and name.endswith("weight") else value
        for name, value in state.items()
    }

    mask = torch.cat((torch.ones(dim), torch.zeros(dim), torch.ones(dim)))
    quarter = dim // architecture.num_heads // 4
    state["rope_embed.periods"] = 100.0 ** (torch.arange(quarter) / quarter)
    return state | {
        f"blocks.{index}.attn.qkv.bias_mask": mask for index in range(architecture.depth)
    }


def published_forward(state: State, images: Tensor, num_heads: int) -> Tensor:
    """The published ViT, transcribed: tokens (CLS, registers, patches) after the last layer
    norm."""
    patches = F.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16
    )
    height, width = patches.shape[2:]
    prefix = torch.cat((state["cls_token"], state["storage_tokens"]), 1).expand(len(images), -1, -1)
    x = torch.cat((prefix, patches.flatten(2).transpose(1, 2)), 1)
    angles = rotation_angles(height, width, state["rope_embed.periods"])

    for index in range(sum(name.endswith("ls1.gamma") for name in state)):
        block = {name.removeprefix(f"blocks.{index}."): value for name, value in state.items()}
        x = x + block["ls1.gamma"] * attention(block, norm(block, "norm1", x), num_heads, angles)
        y = F.linear(norm(block, "norm2", x), block["mlp.fc1.weight"], block["mlp.fc1.bias"])
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + block["ls2.gamma"] * F.linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return norm(state, "norm", x)


def rotation_angles(height: int, width: int, periods: Tensor) -> Tensor:
    """Angle per patch and channel of a head: row angles, column angles, and both again for the
    second half."""
    rows = (torch.arange(height) + 0.5) / height * 2 - 1
    columns = (torch.arange(width) + 0.5) / width * 2 - 1
    row_angles = 2 * math.pi * rows[:, None] / periods
    column_angles = 2 * math.pi * columns[:, None] / periods

    angles = torch.cat(
        (row_angles[:, None].expand(-1, width, -1), column_angles[None].expand(height, -1, -1)), -1
    ).flatten(0, 1)
    return torch.cat((angles, angles), -1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Patches turned by their angles; the tokens before them stay."""
    first = x.shape[2] - len(angles)
    tail = x[:, :, first:]
    low, high = tail.chunk(2, -1)
    turned = tail * angles.cos() + torch.cat((-high, low), -1) * angles.sin()
    return torch.cat((x[:, :, :first], turned), 2)


def attention(block: State, x: Tensor, num_heads: int, angles: Tensor) -> Tensor:
    batch, tokens, dim = x.shape
    bias = block["attn.qkv.bias"] * block["attn.qkv.bias_mask"]
    qkv = F.linear(x, block["attn.qkv.weight"], bias).view(
        batch, tokens, 3, num_heads, dim // num_heads
    )
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = rotate(q, angles) @ rotate(k, angles).transpose(-2, -1) * (dim // num_heads) ** -0.5
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, dim)
    return F.linear(mixed, block["attn.proj.weight"], block["attn.proj.bias"])


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


@pytest.mark.parametrize("size", [(224, 224), (48, 96)])
@torch.no_grad()
def test_encoder_equals_the_published_architecture(size: tuple[int, int]) -> None:
    state = published_state(TINY)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    cls, registers, patches = dinov3.build(TINY, state)(images)
    expected = published_forward(state, images, TINY.num_heads)
    torch.testing.assert_close(
        torch.cat((cls[:, None], registers, patches), 1), expected, atol=2e-5, rtol=1e-4
    )


@torch.no_grad()
def test_vit_small_equals_the_library() -> None:
    architecture = DINOV3["dinov3-vits16"]
    state = dinov3.random_state(architecture)
    library = transformers.DINOv3ViTModel(dinov3.library_config(architecture)).eval()
    library.load_state_dict(state)
    images = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    tokens = torch.cat(
        [part.reshape(1, -1, 384) for part in dinov3.build(architecture, state)(images)], 1
    )
    torch.testing.assert_close(tokens, library(images).last_hidden_state)


def test_sizes_are_those_that_the_library_publishes() -> None:
    """The library's defaults are ViT-S/16's."""
    config = transformers.DINOv3ViTConfig()
    small = DINOV3["dinov3-vits16"]
    sizes = (small.dim, small.depth, small.num_heads, small.mlp_dim)
    assert sizes == (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    )


def test_published_file_is_recognized_and_loaded(tmp_path: Path) -> None:
    torch.save(published_state(DINOV3["dinov3-vits16"]), tmp_path / "dinov3.pth")
    config = resolve(BackboneConfig(weights=str(tmp_path / "dinov3.pth"), image_size=60))
    assert (config.name, config.image_size) == ("dinov3-vits16", 64)
    backbone = load_backbone(config)
    assert backbone.geometry.grid == (4, 4)
    assert backbone(torch.zeros(1, 3, 64, 64)).registers.shape == (1, 4, 384)


def test_incomplete_weights_are_refused() -> None:
    state = published_state(TINY)
    del state["blocks.1.mlp.fc2.bias"]
    with pytest.raises(ValueError, match="do not fit"):
        dinov3.build(TINY, state)
