"""`export` on the command line: what it makes, and what it says when it cannot."""

import json
from pathlib import Path

import pytest
import torch

from curation.shards.schema import EmbeddingSpec
from pipeline.__main__ import main
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.export.folder import export_model, load_model
from train.model import DinoTxt
from train.tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def _random_backbone_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_model(folder: Path, heads: int = 1) -> Path:
    captions = (f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("dog", "cat", "boat"))
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=280), captions)
    config = ModelConfig(TextConfig(64, 1, heads, 12), VisionConfig(blocks=0))
    torch.manual_seed(0)
    model = DinoTxt(config, tokenizer.vocab_size, 32)
    spec = EmbeddingSpec("random-vit", "d", "random", 42, 32, 0, (1, 1), "pooled", "float16", "", 0)
    export_model(folder, config, model.state_dict(), tokenizer, spec)
    return folder


def test_a_model_folder_is_exported_with_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, to = write_model(tmp_path / "model"), tmp_path / "to"
    words = ["export", "debug", "--model", str(model), "--to", str(to), "--format", "safetensors", "huggingface"]
    assert main(words) == 0
    assert str(to / "huggingface") in capsys.readouterr().out
    assert {path.name for path in to.iterdir()} == {"safetensors", "huggingface"}
    assert list(json.loads((to / "safetensors" / "record.json").read_text())["source"]) == ["model.safetensors"]
    again, before = load_model(to / "safetensors").model.state_dict(), load_model(model).model.state_dict()
    assert all(again[name].equal(tensor) for name, tensor in before.items())


def test_one_impossible_format_does_not_keep_the_others_from_being_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, to = write_model(tmp_path / "model", heads=2), tmp_path / "to"
    words = ["export", "debug", "--model", str(model), "--to", str(to), "--format", "dinotxt", "safetensors"]
    assert main(words) == 1
    assert "not made" in capsys.readouterr().out
    assert [path.name for path in to.iterdir()] == ["safetensors"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "add --to FOLDER"),
        (["--to", "x", "--format", "onx"], "no format 'onx': did you mean 'onnx'"),
        (["--to", "x"], "step train has not run"),
        (["curate", "--to", "x"], "step curate makes no model"),
        (["train@uncuratd", "--to", "x"], "no step 'train@uncuratd'"),
        (["--to", "x", "--model", "nowhere"], "one head"),
    ],
)
def test_wrong_words_say_what_is_missing(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "debug", *words, "--workspace", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err.replace("\n", " ")
