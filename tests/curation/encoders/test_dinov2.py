"""DINOv2: parity with an independent transcription of the published architecture, and the ways
weights come in."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor

from curation.encoders import dinov2
from curation.encoders.architectures import DINOV2, FRANCA, VisionTransformer
from curation.encoders.backbone import load_backbone
from curation.encoders.config import BackboneConfig
from curation.encoders.resolve import resolve
from curation.encoders.weights import read_tensors, recognize

TINY = VisionTransformer(32, 2, 2, 4)


def published_forward(state: dict[str, Tensor], images: Tensor, num_heads: int) -> Tensor:
    """The published ViT, transcribed: tokens (CLS, registers, patches) after the last layer
    norm."""
    has_registers = "register_tokens" in state
    patches = F.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14
    )
    height, width = patches.shape[2:]
    patches = patches.flatten(2).transpose(1, 2)
    dim = patches.shape[2]
    positions = state["pos_embed"]
    side = math.isqrt(positions.shape[1] - 1)
    if (height, width) != (side, side):
        grid = positions[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
        if has_registers:
            grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        else:
            factors = ((height + 0.1) / side, (width + 0.1) / side)
            grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=False)
        positions = torch.cat((positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, dim)), 1)
    x = torch.cat((state["cls_token"].expand(len(images), -1, -1), patches), 1) + positions
    if has_registers:
        x = torch.cat((x[:, :1], state["register_tokens"].expand(len(images), -1, -1), x[:, 1:]), 1)
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))):
        block = {key.removeprefix(f"blocks.{i}."): value for key, value in state.items()}
        x = x + block["ls1.gamma"] * published_attention(block, norm(block, "norm1", x), num_heads)
        x = x + block["ls2.gamma"] * published_mlp(block, norm(block, "norm2", x))
    return norm(state, "norm", x)


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def published_attention(block: dict[str, Tensor], x: Tensor, num_heads: int) -> Tensor:
    batch, tokens, dim = x.shape
    qkv = x @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
    q, k, v = qkv.reshape(batch, tokens, 3, num_heads, dim // num_heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (dim // num_heads) ** -0.5).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, tokens, dim)
    return mixed @ block["attn.proj.weight"].T + block["attn.proj.bias"]


def published_mlp(block: dict[str, Tensor], x: Tensor) -> Tensor:
    if "mlp.w12.weight" in block:
        gate, value = (x @ block["mlp.w12.weight"].T + block["mlp.w12.bias"]).chunk(2, dim=-1)
        return (gate * gate.sigmoid() * value) @ block["mlp.w3.weight"].T + block["mlp.w3.bias"]
    hidden = x @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]


@pytest.mark.parametrize("size", [(224, 224), (98, 140)])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_encoder_equals_the_published_architecture(
    registers: int, swiglu: bool, size: tuple[int, int]
) -> None:
    architecture = VisionTransformer(48, 3, 3, registers, swiglu)
    state = dinov2.random_state(architecture, seed=1)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cls, register_tokens, patches = dinov2.build(architecture, dinov2.hub_names(state))(images)
    expected = published_forward(state, images, architecture.num_heads)
    assert register_tokens.shape[1] == registers
    torch.testing.assert_close(
        torch.cat((cls[:, None], register_tokens, patches), 1), expected, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("size", [224, 112])
def test_vit_small_equals_the_library_run_from_hub_names(size: int) -> None:
    architecture = DINOV2["dinov2-vits14-reg"]
    state = dinov2.hub_names(dinov2.random_state(architecture))
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=224
    )
    library = transformers.Dinov2WithRegistersModel.from_pretrained(
        None, config=config, state_dict=state
    ).eval()
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        cls, registers, patches = dinov2.build(architecture, state)(images)
        expected = library(images).last_hidden_state
    torch.testing.assert_close(torch.cat((cls[:, None], registers, patches), 1), expected)


def test_positions_at_the_published_size_are_untouched() -> None:
    positions = torch.randn(1, 1 + 37 * 37, 8)
    assert dinov2.interpolate_positions(positions, 37, 37, has_registers=False) is positions


@pytest.mark.parametrize("name", ["dinov2-vits14", "dinov2-vits14-reg"])
def test_published_file_and_hub_folder_give_the_same_features(tmp_path: Path, name: str) -> None:
    state = dinov2.random_state(DINOV2[name])
    torch.save(state, tmp_path / "meta.pth")
    (tmp_path / "hub").mkdir()
    hub = {key: value.contiguous() for key, value in dinov2.hub_names(state).items()}
    save_file(hub, tmp_path / "hub" / "model.safetensors")
    images = torch.randn(1, 3, 56, 56)
    outputs = []
    for weights in (tmp_path / "meta.pth", tmp_path / "hub"):
        config = resolve(BackboneConfig("auto", str(weights), image_size=60))
        assert (config.name, config.image_size) == (name, 56)
        outputs.append(load_backbone(config)(images))
    for meta, folder in zip(*outputs, strict=True):
        assert torch.equal(meta, folder)


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    torch.save(dinov2.random_state(TINY), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match=r"those of random-vit, not of dinov2-vitb14"):
        load_backbone(BackboneConfig("dinov2-vitb14", str(tmp_path / "tiny.pth")))


@pytest.mark.parametrize("missing", ["blocks.1.mlp.fc2.bias", "ls1"])
def test_incomplete_weights_are_refused(missing: str) -> None:
    state = {key: value for key, value in dinov2.random_state(TINY).items() if missing not in key}
    with pytest.raises(ValueError, match="do not fit"):
        dinov2.build(TINY, dinov2.hub_names(state))


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="belong to no known backbone"):
        resolve(BackboneConfig("auto", str(tmp_path / "other.pth")))


def test_giant_has_the_published_swiglu_width() -> None:
    assert DINOV2["dinov2-vitg14"].mlp_dim == 4096


def as_franca(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As Franca publishes them: the teacher of a training checkpoint, its blocks in chunks, with
    heads beside."""
    renamed = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        chunked = f"blocks.{int(block[1]) // 3}.{block[1]}.{block[2]}" if block else name
        renamed[f"module.backbone.{chunked}"] = tensor
    return {"teacher": renamed | {"module.rasa_head.pos_pred.weight": torch.zeros(2, 8)}}


def test_franca_is_read_from_its_training_checkpoint(tmp_path: Path) -> None:
    architecture = replace(FRANCA["franca-vitb14"], depth=4)
    state = dinov2.random_state(architecture)
    torch.save(as_franca(state), tmp_path / "franca.pth")
    read = read_tensors(tmp_path / "franca.pth")
    assert recognize(read) == ["franca-vitb14"]

    images = torch.randn(1, 3, 56, 42)
    with torch.no_grad():
        cls, _, patches = dinov2.build(architecture, read)(images)
    expected = published_forward(state, images, architecture.num_heads)
    torch.testing.assert_close(
        torch.cat((cls[:, None], patches), 1), expected, atol=2e-5, rtol=1e-4
    )


def test_weights_that_fit_two_backbones_must_be_named(tmp_path: Path) -> None:
    """DINOv2's and Franca's giant have the same shape; two blocks of it show that."""
    state = dinov2.random_state(VisionTransformer(1536, 1, 24, 0, True))
    torch.save(state, tmp_path / "giant.pth")
    with pytest.raises(ValueError, match="fit dinov2-vitg14 and franca-vitg14"):
        resolve(BackboneConfig(weights=str(tmp_path / "giant.pth")))
