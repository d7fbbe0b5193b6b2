"""Model: packing changes no feature, published sizes, shapes by config."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train.attention import Packed, pack
from train.config import ModelConfig, TextConfig, VisionConfig
from train.model import DinoTxt, TextEncoder, VisionHead

CAPTIONS = [[5, 6, 7, 1], [1], [9, 1], [3, 3, 3, 3, 3, 3, 1], [8, 2, 4, 1], [2, 1]]


def text_encoder(seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    return TextEncoder(
        TextConfig(width=32, layers=3, heads=4, context=12), vocab_size=16, feature_dim=24
    )


def padded_features(encoder: TextEncoder, captions: list[list[int]]) -> torch.Tensor:
    """The same encoder on captions padded to the context, written with dense torch primitives."""
    context = encoder.config.context
    tokens = torch.tensor([caption + [0] * (context - len(caption)) for caption in captions])
    x = encoder.token_embedding(tokens) + encoder.position_embedding
    for block in encoder.blocks:
        q, k, v = block.attention.qkv(block.attention_norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k, v))
        causal = torch.ones(context, context).tril().bool()
        weights = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~causal, -torch.inf).softmax(-1)
        x = x + block.attention.proj((weights @ v).transpose(1, 2).flatten(-2))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.mlp_norm(x))))
    ends = torch.tensor([len(caption) - 1 for caption in captions])
    return encoder.projection(encoder.norm(x))[torch.arange(len(captions)), ends]


def test_packed_encoder_equals_padded_in_features_and_gradients() -> None:
    encoder = text_encoder()
    weights = torch.randn(len(CAPTIONS), 24)
    gradients = []
    features = [encoder(pack(CAPTIONS)), padded_features(encoder, CAPTIONS)]
    torch.testing.assert_close(*features, rtol=0, atol=1e-5)
    for feature in features:
        encoder.zero_grad()
        (feature * weights).sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_order_of_a_pack_changes_no_feature() -> None:
    encoder = text_encoder()
    features = encoder(pack(CAPTIONS))
    torch.testing.assert_close(encoder(pack(CAPTIONS[::-1])).flip(0), features, rtol=0, atol=1e-5)


@torch.no_grad()
def test_bfloat16_features_are_close_to_float32() -> None:
    encoder = text_encoder()
    exact = F.normalize(encoder(pack(CAPTIONS)), dim=-1)
    half = F.normalize(encoder.bfloat16()(pack(CAPTIONS)), dim=-1)
    assert float((exact * half).sum(-1).min()) > 0.9995


def test_gradients_of_frequent_tokens_are_added_up_in_float32() -> None:
    """In bfloat16, most of what many captions say to the end-of-text token would be rounded
    away.
    """
    exact = text_encoder()
    rounded = text_encoder().bfloat16()
    exact.load_state_dict(rounded.state_dict())
    random = np.random.default_rng(0)
    captions = [[*random.integers(1, 16, 9).tolist(), 0] for _ in range(1024)]
    direction = torch.randn(
        1024, exact.projection.out_features, generator=torch.Generator().manual_seed(0)
    )
    for encoder in (exact, rounded):
        (encoder(pack(captions)) * direction).sum().backward()
    for name in ("token_embedding.weight", "position_embedding"):
        right, found = (dict(encoder.named_parameters())[name].grad for encoder in (exact, rounded))
        assert right is not None
        assert found is not None
        assert (found.float() - right).norm() < 0.03 * right.norm()


def test_pack_lays_out_captions_by_length() -> None:
    layout: Packed = pack([[7, 8, 1], [1], [9, 1], [4, 1]])
    assert layout.tokens.tolist() == [1, 9, 1, 4, 1, 7, 8, 1]
    assert layout.positions.tolist() == [0, 0, 1, 0, 1, 0, 1, 2]
    assert layout.ends.tolist() == [7, 0, 2, 4]
    assert layout.groups == ((1, 1), (2, 2), (1, 3))


def test_pack_refuses_what_has_no_end_of_text() -> None:
    with pytest.raises(ValueError, match="caption 1 has no token"):
        pack([[1], []])


def test_published_sizes_have_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        text = TextEncoder(
            TextConfig(width=1280, layers=24, heads=20, context=77),
            vocab_size=49408,
            feature_dim=2048,
        )
        head = VisionHead(VisionConfig(blocks=2), dim=1024)
    assert sum(parameter.numel() for parameter in text.parameters()) == 538_131_200
    assert sum(parameter.numel() for parameter in head.parameters()) == 25_326_336


@pytest.mark.parametrize(("pooling", "width"), [("cls", 64), ("mean", 64), ("concat", 128)])
def test_image_and_text_features_have_one_width(pooling: str, width: int) -> None:
    config = ModelConfig(
        TextConfig(width=32, layers=1, heads=2, context=8), VisionConfig(blocks=1, pooling=pooling)
    )
    model = DinoTxt(config, vocab_size=16, image_dim=64)
    image = (torch.randn(6, 64), torch.randn(6, 4, 64), torch.randn(6, 9, 64))
    with torch.no_grad():
        features = model(pack(CAPTIONS), *image)
    assert features.images.shape == features.texts.shape == (6, width)
    torch.testing.assert_close(features.images.norm(dim=-1), torch.ones(6))
    assert float(features.scale) == pytest.approx(1 / 0.07)


def test_head_without_blocks_is_a_layer_norm() -> None:
    head = VisionHead(VisionConfig(blocks=0), dim=64)
    cls = torch.randn(3, 64)
    patches = torch.randn(3, 5, 64)
    aligned_cls, aligned_patches = head(cls, torch.empty(3, 0, 64), patches)
    torch.testing.assert_close(aligned_cls, F.layer_norm(cls, (64,)))
    torch.testing.assert_close(aligned_patches, F.layer_norm(patches, (64,)))


def test_drop_path_keeps_the_expectation_and_stops_in_evaluation() -> None:
    torch.manual_seed(0)
    head = VisionHead(VisionConfig(blocks=1, drop_path=0.5, layer_scale=1.0), dim=64)
    image = (torch.randn(2, 64), torch.randn(2, 2, 64), torch.randn(2, 3, 64))
    repeated = tuple(x.repeat_interleave(2000, 0) for x in image)
    block = head.blocks[0]
    tokens = torch.cat([repeated[0][:, None], *repeated[1:]], dim=1)
    block.mlp_scale.data.zero_()
    block.train()
    dropped = block(tokens).unflatten(0, (2, 2000)).mean(1)
    block.eval()
    torch.testing.assert_close(dropped, block(tokens)[::2000], rtol=0, atol=0.05)


def test_logit_scale_is_clamped() -> None:
    model = DinoTxt(
        ModelConfig(TextConfig(32, 1, 2, 8), VisionConfig(blocks=0)), vocab_size=16, image_dim=64
    )
    for value, expected in ((9.0, 100.0), (-3.0, 1.0)):
        model.logit_scale.log.data.fill_(value)
        model.logit_scale.clamp()
        assert float(model.logit_scale().detach()) == pytest.approx(expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide"):
        TextConfig(width=100, heads=3)
