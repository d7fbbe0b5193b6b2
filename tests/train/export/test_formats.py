"""Every format gives our features back when it is read as its user reads it; one that does not
leaves nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from subjects import make_subject, sentencepiece_words

from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.formats import FORMATS, export_format
from train.export.names import FORMAT_NAMES
from train.export.probe import features_of, make_probe
from train.export.published import read_model
from train.export.subject import Subject
from train.tokenizer import SentencePieceTokenizer

SENTENCES = ["a dog in the snow", "", "the tower " * 30, "café </s>"]
POOLED = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=0))


def test_every_format_can_be_named() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "onnx" else ()) for name in FORMATS],
)
def test_export_gives_the_same_features_to_its_reader(
    name: str, subject: Subject, tmp_path: Path
) -> None:
    record = export_format(name, subject, tmp_path)
    assert json.loads((tmp_path / name / "record.json").read_text()) == record
    assert record["source"] == subject.facts.source
    assert {what.split()[0] for what in record["parity"]} >= {"text", "image"}
    assert [path.name for path in tmp_path.iterdir()] == [name]

    probe = dataclasses.replace(make_probe(subject), captions=SENTENCES)
    ours = features_of(subject.loaded, probe)
    for what, feature in FORMATS[name].read(tmp_path / name, probe).items():
        torch.testing.assert_close(
            feature, ours[what.split()[0]], rtol=0, atol=FORMATS[name].tolerance
        )


def test_the_tokenizer_travels_with_every_format(subject: Subject, tmp_path: Path) -> None:
    is_sentencepiece = isinstance(subject.loaded.tokenizer, SentencePieceTokenizer)
    files = {"tokenizer.model"} if is_sentencepiece else {"vocab.json", "merges.txt"}
    for name in ("safetensors", "dinotxt", "huggingface"):
        export_format(name, subject, tmp_path)
        assert files <= {path.name for path in (tmp_path / name).iterdir()}


def test_an_export_can_be_exported_again(subject: Subject, tmp_path: Path) -> None:
    for name in ("safetensors", "dinotxt"):
        export_format(name, subject, tmp_path)
        again = read_model(tmp_path / name)
        assert again.spec == subject.loaded.spec
        export_format(
            "huggingface", dataclasses.replace(subject, loaded=again), tmp_path / f"from-{name}"
        )


def test_an_export_that_differs_leaves_nothing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {**FORMATS, "safetensors": FORMATS["safetensors"]._replace(tolerance=-1.0)}
    monkeypatch.setattr("train.export.formats.FORMATS", strict)
    with pytest.raises(ValueError, match="nothing was kept"):
        export_format("safetensors", subject, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_is_never_overwritten(subject: Subject, tmp_path: Path) -> None:
    export_format("safetensors", subject, tmp_path)
    with pytest.raises(ValueError, match="never overwritten"):
        export_format("safetensors", subject, tmp_path)


@pytest.mark.parametrize("name", ["huggingface", "onnx"])
def test_a_whole_model_needs_its_backbone(name: str, subject: Subject, tmp_path: Path) -> None:
    headless = dataclasses.replace(subject, backbone=None, problem="weights are not cached")
    with pytest.raises(ValueError, match="weights are not cached"):
        export_format(name, headless, tmp_path)
    assert export_format("safetensors", headless, tmp_path)["parity"]["image"] == 0


def test_models_without_head_blocks_are_whole_models_too(tmp_path: Path) -> None:
    for content in ("pooled", "grid"):
        subject = make_subject(sentencepiece_words(), POOLED, content=content)
        export_format("huggingface", subject, tmp_path / content)


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one head"):
        read_model(tmp_path)
