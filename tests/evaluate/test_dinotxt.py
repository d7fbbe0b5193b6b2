"""Our encoder equals the trained model on what the shards would hold, for every embedding
content.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from curation.encoders.backbone import load_backbone
from curation.encoders.config import BackboneConfig
from curation.encoders.resolve import resolve
from curation.shards.schema import Content, EmbeddingSpec
from evaluate.dinotxt import DinoTxtEncoder, load_encoder
from evaluate.encoder import Encoder
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.export.folder import LoadedModel, export_model
from train.export.published import HEAD_FILE, TEXT_FILE, write_published
from train.model import DinoTxt
from train.tokenizer import SentencePieceTokenizer, train_tokenizer

BACKBONE = resolve(BackboneConfig(name="random-vit", image_size=56))
GRIDS: dict[Content, tuple[int, int]] = {"pooled": (1, 1), "grid": (2, 2), "tokens": (4, 4)}
CAPTIONS = [
    f"a {color} {thing} on the {place}"
    for color in ("red", "blue")
    for thing in ("cat", "dog")
    for place in ("mat",)
]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=300), iter(CAPTIONS))


def load(
    tokenizer: SentencePieceTokenizer, content: Content, pooling: str = "concat"
) -> LoadedModel:
    geometry = load_backbone(BACKBONE).geometry
    registers = 0 if content == "pooled" else geometry.num_registers
    spec = EmbeddingSpec(
        BACKBONE.name,
        BACKBONE.digest,
        "",
        56,
        geometry.dim,
        registers,
        GRIDS[content],
        content,
        "float16",
        "",
        0,
    )
    torch.manual_seed(0)
    vision = VisionConfig(blocks=0 if content == "pooled" else 1, layer_scale=0.5, pooling=pooling)
    model = DinoTxt(
        ModelConfig(TextConfig(32, 1, 2, 16), vision), tokenizer.vocab_size, geometry.dim
    )
    return LoadedModel(model.eval(), tokenizer, spec)


def pictures(count: int, size: tuple[int, int] = (56, 56)) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


@pytest.mark.parametrize("content", list(GRIDS))
@torch.inference_mode()
def test_image_vectors_equal_the_model_on_stored_tokens(
    tokenizer: SentencePieceTokenizer, content: Content
) -> None:
    loaded = load(tokenizer, content)
    backbone = load_backbone(BACKBONE)
    images = pictures(3)
    cls, registers, patches = backbone(
        torch.stack([backbone.preprocess(image) for image in images])
    )
    side = GRIDS[content][0]
    blocks = patches.unflatten(1, (side, 4 // side, side, 4 // side)).mean((2, 4)).flatten(1, 2)
    kept = registers[:, : loaded.spec.num_registers]
    expected = normalize(loaded.model.encode_image_features(cls, kept, blocks), dim=-1)
    torch.testing.assert_close(
        DinoTxtEncoder(backbone, loaded).encode_image(images), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "grid"), [((56, 56), (4, 4)), ((112, 70), (5, 8)), ((60, 75), (6, 5))]
)
@pytest.mark.parametrize("content", list(GRIDS))
def test_patches_keep_the_backbones_grid_at_any_size(
    tokenizer: SentencePieceTokenizer,
    content: Content,
    size: tuple[int, int],
    grid: tuple[int, int],
) -> None:
    encoder = DinoTxtEncoder(load_backbone(BACKBONE), load(tokenizer, content))
    patches = encoder.encode_patches(pictures(2, size))
    assert patches.shape[:3] == (2, *grid)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(2, *grid))


def test_dense_text_is_the_half_trained_against_patches(tokenizer: SentencePieceTokenizer) -> None:
    encoder = DinoTxtEncoder(load_backbone(BACKBONE), load(tokenizer, "tokens"))
    whole = encoder.encode_text(CAPTIONS)
    dense = encoder.encode_text(CAPTIONS, dense=True)
    assert dense.shape[1] == whole.shape[1] // 2 == encoder.encode_patches(pictures(1)).shape[-1]
    torch.testing.assert_close(dense, normalize(whole[:, whole.shape[1] // 2 :], dim=-1))


def test_dense_text_is_whole_when_the_image_feature_is_one_token(
    tokenizer: SentencePieceTokenizer,
) -> None:
    encoder = DinoTxtEncoder(load_backbone(BACKBONE), load(tokenizer, "tokens", pooling="mean"))
    torch.testing.assert_close(
        encoder.encode_text(CAPTIONS, dense=True), encoder.encode_text(CAPTIONS)
    )


def test_vectors_do_not_depend_on_the_batch(tokenizer: SentencePieceTokenizer) -> None:
    encoder = DinoTxtEncoder(load_backbone(BACKBONE), load(tokenizer, "grid"))
    images = pictures(20)
    one_by_one = torch.cat([encoder.encode_image([image]) for image in images])
    torch.testing.assert_close(encoder.encode_image(images), one_by_one, rtol=1e-4, atol=1e-5)


def test_precision_is_that_of_the_backbones_matmuls(tokenizer: SentencePieceTokenizer) -> None:
    loaded = load(tokenizer, "grid")
    images = pictures(3)
    exact, rounded = (
        DinoTxtEncoder(load_backbone(BACKBONE, kind), loaded) for kind in ("float32", "bfloat16")
    )
    difference = (exact.encode_image(images) - rounded.encode_image(images)).abs().max()
    assert 1e-5 < difference < 0.05
    assert (exact.protocol["precision"], rounded.protocol["precision"]) == ("float32", "bfloat16")


def test_images_of_several_sizes_are_an_error(tokenizer: SentencePieceTokenizer) -> None:
    encoder = DinoTxtEncoder(load_backbone(BACKBONE), load(tokenizer, "grid"))
    with pytest.raises(ValueError, match="2 sizes"):
        encoder.encode_patches([*pictures(1), *pictures(1, (70, 70))])


def test_exported_model_comes_back_and_refuses_another_backbone(
    tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    loaded = load(tokenizer, "grid")
    export_model(tmp_path, loaded.model.config, loaded.model.state_dict(), tokenizer, loaded.spec)
    encoder = load_encoder(tmp_path, BACKBONE)
    assert isinstance(encoder, Encoder)
    expected = DinoTxtEncoder(load_backbone(BACKBONE), loaded).encode_image(pictures(2))
    torch.testing.assert_close(encoder.encode_image(pictures(2)), expected)
    with pytest.raises(ValueError, match="they must be the same"):
        load_encoder(tmp_path, replace(BACKBONE, digest="0" * 64))


def test_published_weights_are_scored_on_a_backbone_of_their_size(
    tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    geometry = load_backbone(BACKBONE).geometry
    config = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=0))
    spec = load(tokenizer, "tokens").spec
    loaded = LoadedModel(
        DinoTxt(config, tokenizer.vocab_size, geometry.dim).eval(), tokenizer, spec
    )
    write_published(loaded.model, tmp_path / HEAD_FILE, tmp_path / TEXT_FILE)
    tokenizer.save(tmp_path)
    found = load_encoder(tmp_path, BACKBONE)
    expected = DinoTxtEncoder(load_backbone(BACKBONE), loaded)
    torch.testing.assert_close(found.encode_text(CAPTIONS), expected.encode_text(CAPTIONS))
    torch.testing.assert_close(found.encode_image(pictures(2)), expected.encode_image(pictures(2)))
    assert found.description.startswith("published dino.txt weights on random-vit")
    with pytest.raises(ValueError, match="name the backbone that they were made for"):
        load_encoder(tmp_path, BackboneConfig(name="efficientnet-lite0"))
