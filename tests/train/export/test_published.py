"""Published dino.txt weights: random tensors in published names and shapes, against a reference of
torch primitives.

The reference is written from the published layout, pads captions as the published code does, and
shares no code with ours.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.published import from_published, read_published, to_published, write_published
from train.model import DinoTxt

State = dict[str, Tensor]
CAPTIONS = [[60, 5, 6, 7, 61], [60, 61], [60, 9, 9, 9, 9, 9, 9, 9, 9, 9, 61], [60, 1, 61]]


def head_shapes(dim: int, blocks: int, hidden: int, style: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"ln_final.weight": (dim,), "ln_final.bias": (dim,)}
    block = {
        "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim), "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
        "ls1.gamma": (dim,), "ls2.gamma": (dim,),
        "mlp.w1.weight": (hidden, dim), "mlp.w1.bias": (hidden,),
        "mlp.w2.weight": (hidden, dim), "mlp.w2.bias": (hidden,),
        "mlp.w3.weight": (dim, hidden), "mlp.w3.bias": (dim,),
    }  # fmt: skip
    return shapes | {
        f"{style}.{index}.{name}": shape for index in range(blocks) for name, shape in block.items()
    }


def text_shapes(
    width: int, layers: int, vocab: int, context: int, features: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.token_embedding.weight": (vocab, width), "backbone.positional_embedding": (context, width),
        "backbone.ln_final.weight": (width,), "backbone.ln_final.bias": (width,),
        "head.linear_projection.weight": (features, width),
    }  # fmt: skip
    block = {
        "attention_norm.weight": (width,), "attention_norm.bias": (width,), "ffn_norm.weight": (width,),
        "ffn_norm.bias": (width,), "attention.qkv.weight": (3 * width, width), "attention.proj.weight": (width, width),
        "attention.proj.bias": (width,), "feed_forward.fc1.weight": (4 * width, width),
        "feed_forward.fc1.bias": (4 * width,),
        "feed_forward.fc2.weight": (width, 4 * width), "feed_forward.fc2.bias": (width,),
    }  # fmt: skip
    return shapes | {
        f"backbone.blocks.{index}.{name}": shape
        for index in range(layers)
        for name, shape in block.items()
    }


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(shape, generator=generator) + name.endswith("norm.weight")
        for name, shape in shapes.items()
    }


def reference_attention(x: Tensor, qkv: Tensor, proj: Tensor, bias: Tensor, causal: bool) -> Tensor:
    batch, length, dim = x.shape
    q, k, v = (x @ qkv.T).reshape(batch, length, 3, dim // 64, 64).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / 8
    if causal:
        scores = scores + torch.full((length, length), -torch.inf).triu(1)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim) @ proj.T + bias


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def reference_head(state: State, tokens: Tensor, blocks: int, style: str) -> Tensor:
    x = tokens
    for index in range(blocks):
        at = f"{style}.{index}."
        weights = [
            state[at + f"attn.{name}"] for name in ("qkv.weight", "proj.weight", "proj.bias")
        ]
        x = x + state[at + "ls1.gamma"] * reference_attention(
            norm(state, at + "norm1", x), *weights, causal=False
        )
        y = norm(state, at + "norm2", x)
        gate, value = (
            F.linear(y, state[at + f"mlp.{w}.weight"], state[at + f"mlp.{w}.bias"])
            for w in ("w1", "w2")
        )
        branch = F.linear(
            F.silu(gate) * value, state[at + "mlp.w3.weight"], state[at + "mlp.w3.bias"]
        )
        x = x + state[at + "ls2.gamma"] * branch
    return norm(state, "ln_final", x)


def reference_text(state: State, captions: list[list[int]], layers: int, context: int) -> Tensor:
    tokens = torch.tensor([caption + [0] * (context - len(caption)) for caption in captions])
    x = state["backbone.token_embedding.weight"][tokens] + state["backbone.positional_embedding"]
    for index in range(layers):
        at = f"backbone.blocks.{index}."
        weights = [
            state[at + f"attention.{name}"] for name in ("qkv.weight", "proj.weight", "proj.bias")
        ]
        x = x + reference_attention(norm(state, at + "attention_norm", x), *weights, causal=True)
        y = (
            norm(state, at + "ffn_norm", x) @ state[at + "feed_forward.fc1.weight"].T
            + state[at + "feed_forward.fc1.bias"]
        )
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + y @ state[at + "feed_forward.fc2.weight"].T + state[at + "feed_forward.fc2.bias"]
    every = norm(state, "backbone.ln_final", x) @ state["head.linear_projection.weight"].T
    return torch.stack(
        [row[len(caption) - 1] for row, caption in zip(every, captions, strict=True)]
    )


@pytest.fixture(params=["block_list", "blocks"])
def style(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def test_published_weights_give_the_published_outputs(style: str) -> None:
    head = random_state(head_shapes(128, 2, 384, style), seed=0)
    text = random_state(text_shapes(192, 3, 62, 16, 256), seed=1)
    model = from_published(head, text)
    cls = torch.randn(3, 128)
    registers = torch.randn(3, 4, 128)
    patches = torch.randn(3, 9, 128)
    expected = reference_head(head, torch.cat([cls[:, None], registers, patches], 1), 2, style)
    aligned_cls, aligned_patches = model.vision(cls, registers, patches)
    torch.testing.assert_close(aligned_cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(aligned_patches, expected[:, 5:], rtol=1e-5, atol=1e-5)
    feature = torch.cat([expected[:, 0], expected[:, 5:].mean(1)], -1)
    torch.testing.assert_close(
        model.encode_image_features(cls, registers, patches), feature, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        model.encode_tokens(CAPTIONS), reference_text(text, CAPTIONS, 3, 16), rtol=1e-4, atol=1e-5
    )


def test_files_survive_the_way_in_and_out(style: str, tmp_path: Path) -> None:
    model = DinoTxt(
        ModelConfig(TextConfig(64, 2, 1, 8), VisionConfig(blocks=2)), vocab_size=30, image_dim=64
    )
    write_published(model, tmp_path / "head.pth", tmp_path / "text.pth", blocks=style)
    again = read_published(tmp_path / "head.pth", tmp_path / "text.pth")
    assert again.config.text == model.config.text
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].equal(tensor), name


def test_one_file_with_both_parts_is_the_same_model(tmp_path: Path) -> None:
    head = random_state(head_shapes(64, 1, 192, "blocks"), 0)
    text = random_state(text_shapes(64, 1, 30, 8, 128), 1)
    whole = {f"visual_model.head.{name}": tensor for name, tensor in head.items()}
    whole |= {f"text_model.{name}": tensor for name, tensor in text.items()}
    whole |= {"visual_model.backbone.cls_token": torch.zeros(1), "logit_scale": torch.zeros(())}

    file = tmp_path / "dinotxt_vision_head_and_text_encoder.pth"
    torch.save(whole, file)
    expected = from_published(head, text).state_dict()
    for name, tensor in read_published(file, file).state_dict().items():
        assert expected[name].equal(tensor), name

    torch.save(whole | {"student.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"holds student\.weight \(1 such in all\)"):
        read_published(file, file)


def test_full_size_names_and_shapes_are_the_published_ones(style: str) -> None:
    shapes = (head_shapes(1024, 2, 2752, style), text_shapes(1280, 24, 49408, 77, 2048))
    with torch.device("meta"):
        model = DinoTxt(
            ModelConfig(TextConfig(1280, 24, 20, 77), VisionConfig(blocks=2)),
            vocab_size=49408,
            image_dim=1024,
        )
    for state, expected in zip(to_published(model.state_dict(), blocks=style), shapes, strict=True):
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_files_of_something_else_are_refused() -> None:
    head = random_state(head_shapes(64, 1, 192, "blocks"), 0)
    text = random_state(text_shapes(64, 1, 30, 8, 128), 1)
    head["rope.periods"] = torch.ones(3)
    with pytest.raises(ValueError, match="unknown"):
        from_published(head, text)
    with pytest.raises(ValueError, match="missing"):
        from_published({}, text)
