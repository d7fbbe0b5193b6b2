"""Small models of every kind, each on a small backbone of its own."""

import json
from pathlib import Path

import torch

from curation.encoders import dinov2, dinov3, radio
from curation.encoders.architectures import VisionTransformer
from curation.encoders.backbone import Backbone, load_backbone
from curation.encoders.config import BackboneConfig, Geometry
from curation.shards.schema import Content, EmbeddingSpec
from train.config import ModelConfig, TokenizerConfig
from train.export.folder import LoadedModel
from train.export.subject import Facts, Score, Subject
from train.model import DinoTxt
from train.tokenizer import ClipTokenizer, SentencePieceTokenizer, Tokenizer, train_tokenizer

WORDS = ("dog", "snow", "child", "park", "photo", "tower", "café", "size", "long", "caption")
FACTS = Facts(
    source={"recipe": "test", "fingerprint": "0123"},
    data="pairs",
    num_pairs=1234,
    selection_sha256="ab" * 32,
    scores=(Score("classification_small", "top-1", "50.0", "40.0 to 60.0", "prompts: plain"),),
)


def small_backbone(kind: str = "dinov2-registers") -> Backbone:
    """A frozen backbone with random weights: 64 channels, patches of 14 or 16 pixels, a 3 x 3
    grid."""
    torch.manual_seed(0)
    if kind == "efficientnet":
        return load_backbone(BackboneConfig("efficientnet-lite0", image_size=96))
    num_registers = {"dinov2": 0, "dinov2-registers": 2, "dinov3": 4, "radio": 9}[kind]
    architecture = VisionTransformer(64, 1, 1, num_registers)

    if kind.startswith("dinov2"):
        encoder = dinov2.build(architecture, dinov2.random_state(architecture))
        return Backbone(
            encoder, Geometry(64, 14, num_registers, (3, 3), 42), "random-vit", "float32"
        )
    code = {"dinov3": dinov3, "radio": radio}[kind]
    name = {"dinov3": "dinov3-vits16", "radio": "c-radio-v4-h"}[kind]
    encoder = code.build(architecture, code.random_state(architecture))
    return Backbone(encoder, Geometry(64, 16, num_registers, (3, 3), 48), name, "float32")


def sentencepiece_words() -> SentencePieceTokenizer:
    captions = (f"a {first} and the {second}" for first in WORDS for second in WORDS)
    return train_tokenizer(TokenizerConfig(vocab_size=300), captions)


def clip_words(folder: Path) -> ClipTokenizer:
    """A vocabulary of single bytes, in CLIP's files."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return ClipTokenizer(folder)


def make_subject(
    tokenizer: Tokenizer,
    config: ModelConfig,
    backbone: Backbone | None = None,
    content: Content = "tokens",
    **options: object,
) -> Subject:
    """A model with random weights on a small backbone."""
    backbone = backbone or small_backbone()
    spec = EmbeddingSpec.for_content(
        backbone.geometry, content, 2, backbone=backbone.name, digest="d"
    )
    torch.manual_seed(0)
    model = DinoTxt(config, tokenizer.vocab_size, spec.dim)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return Subject(LoadedModel(model.eval(), tokenizer, spec), backbone, facts=FACTS, **options)
