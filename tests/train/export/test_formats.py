"""Every format gives our features back when it is read as its user reads it; one that does not leaves nothing."""

import json
from pathlib import Path

import pytest
import torch

from curation.shards.schema import Content, EmbeddingSpec
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.export.folder import LoadedModel
from train.export.formats import FORMATS, TOLERANCE, export_format, features_of, probe_tokens, read_model
from train.model import DinoTxt
from train.tokenizer import ClipTokenizer, SentencePieceTokenizer, Tokenizer, train_tokenizer

WORDS = ("dog", "snow", "child", "park", "photo", "tower", "café", "size", "long", "caption")
SOURCE = {"recipe": "test", "fingerprint": "0123"}
SENTENCES = ["a dog in the snow", "", "the tower " * 30, "café </s>"]


def sentencepiece_words() -> SentencePieceTokenizer:
    captions = (f"a {first} and the {second}" for first in WORDS for second in WORDS)
    return train_tokenizer(TokenizerConfig(vocab_size=300), captions)


def clip_words(folder: Path) -> ClipTokenizer:
    """A vocabulary of single bytes, in CLIP's files."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return ClipTokenizer(folder)


def make_model(tokenizer: Tokenizer, config: ModelConfig, dim: int = 64, content: Content = "tokens") -> LoadedModel:
    torch.manual_seed(0)
    model = DinoTxt(config, tokenizer.vocab_size, dim)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    registers, grid = (0, (1, 1)) if content == "pooled" else (2, (3, 3))
    spec = EmbeddingSpec("random-vit", "d", "random", 42, dim, registers, grid, content, "float16", "", 0)
    return LoadedModel(model.eval(), tokenizer, spec)


@pytest.fixture(scope="module", params=["sentencepiece", "clip"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Blocks, registers and sentencepiece; or a head without blocks, and CLIP's tokenizer."""
    if request.param == "clip":
        tokenizer: Tokenizer = clip_words(tmp_path_factory.mktemp("clip"))
        return make_model(tokenizer, ModelConfig(TextConfig(64, 1, 1, 20), VisionConfig(blocks=0)))
    return make_model(sentencepiece_words(), ModelConfig(TextConfig(128, 2, 2, 24), VisionConfig(blocks=2)))


@pytest.mark.parametrize("name", FORMATS)
def test_export_gives_the_same_features_to_its_reader(name: str, loaded: LoadedModel, tmp_path: Path) -> None:
    record = export_format(name, loaded, tmp_path, SOURCE)
    assert json.loads((tmp_path / name / "record.json").read_text()) == record
    assert record["source"] == SOURCE
    assert set(record["parity"]) == ({"text"} if name == "onnx" else {"text", "image", "patches"})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    tokens = probe_tokens(loaded)
    ours = features_of(loaded, SENTENCES, tokens)
    for kind, feature in FORMATS[name].read(tmp_path / name, SENTENCES, tokens).items():
        torch.testing.assert_close(feature, ours[kind], rtol=0, atol=TOLERANCE)


def test_the_tokenizer_travels_with_every_format(loaded: LoadedModel, tmp_path: Path) -> None:
    files = (
        {"tokenizer.model"} if isinstance(loaded.tokenizer, SentencePieceTokenizer) else {"vocab.json", "merges.txt"}
    )
    for name in ("safetensors", "dinotxt", "huggingface"):
        export_format(name, loaded, tmp_path, SOURCE)
        assert files <= {path.name for path in (tmp_path / name).iterdir()}


def test_an_export_can_be_exported_again(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in ("safetensors", "dinotxt"):
        export_format(name, loaded, tmp_path, SOURCE)
        again = read_model(tmp_path / name)
        assert again.spec == loaded.spec
        export_format("huggingface", again, tmp_path / f"from-{name}", SOURCE)


def test_an_export_that_differs_leaves_nothing(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.export.formats.TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="nothing was kept"):
        export_format("safetensors", loaded, tmp_path, SOURCE)
    assert not list(tmp_path.iterdir())


def test_an_export_is_never_overwritten(loaded: LoadedModel, tmp_path: Path) -> None:
    export_format("safetensors", loaded, tmp_path, SOURCE)
    with pytest.raises(ValueError, match="never overwritten"):
        export_format("safetensors", loaded, tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("config", "dim", "complaint"),
    [
        (ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=0, pooling="mean")), 64, "pooling 'mean'"),
        (ModelConfig(TextConfig(64, 1, 2, 16), VisionConfig(blocks=0)), 64, "text width 64"),
        (ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1)), 96, "vision width 96"),
    ],
)
def test_published_files_refuse_what_they_cannot_say(
    config: ModelConfig, dim: int, complaint: str, tmp_path: Path
) -> None:
    loaded = make_model(sentencepiece_words(), config, dim)
    with pytest.raises(ValueError, match=complaint):
        export_format("dinotxt", loaded, tmp_path, SOURCE)
    assert not list(tmp_path.iterdir())


def test_published_files_refuse_a_model_of_pooled_patches(tmp_path: Path) -> None:
    """Whoever reads them takes the mean of the normed patches, not the norm of their mean."""
    config = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=0))
    loaded = make_model(sentencepiece_words(), config, content="pooled")
    with pytest.raises(ValueError, match="a model of pooled embeddings"):
        export_format("dinotxt", loaded, tmp_path, SOURCE)
    export_format("huggingface", loaded, tmp_path, SOURCE)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_huggingface_knows_every_pooling(pooling: str, tmp_path: Path) -> None:
    config = ModelConfig(TextConfig(64, 1, 2, 16), VisionConfig(blocks=1, pooling=pooling))
    export_format("huggingface", make_model(sentencepiece_words(), config, 96), tmp_path, SOURCE)


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one head"):
        read_model(tmp_path)
