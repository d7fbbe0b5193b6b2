"""`export` on the command line: what it makes, and what it says when it cannot."""

import json
from pathlib import Path

import pytest
import torch

from cluster.files import write_atomic
from curation.shards.schema import EmbeddingSpec
from evaluate.results import Result, result_file, write_flat
from pipeline.__main__ import main
from pipeline.exported import read_scores
from train.config import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from train.export.folder import export_model, load_model
from train.export.subject import Score
from train.model import DinoTxt
from train.tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def _random_backbone_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_model(folder: Path, heads: int = 1) -> Path:
    captions = (
        f"a {colour} {thing}"
        for colour in ("red", "green", "blue")
        for thing in ("dog", "cat", "boat")
    )
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=280), captions)
    config = ModelConfig(TextConfig(64, 1, heads, 12), VisionConfig(blocks=0))
    torch.manual_seed(0)
    model = DinoTxt(config, tokenizer.vocab_size, 32)
    spec = EmbeddingSpec("random-vit", "d", "random", 42, 32, 0, (1, 1), "pooled", "float16", "", 0)
    export_model(folder, config, model.state_dict(), tokenizer, spec)
    return folder


def test_a_model_folder_is_exported_with_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model")
    to = tmp_path / "to"
    words = [
        "export",
        "debug",
        "--model",
        str(model),
        "--to",
        str(to),
        "--format",
        "safetensors",
        "huggingface",
    ]
    assert main(words) == 0
    assert str(to / "huggingface") in capsys.readouterr().out
    assert {path.name for path in to.iterdir()} == {"safetensors", "huggingface"}
    assert list(json.loads((to / "safetensors" / "record.json").read_text())["source"]) == [
        "model.safetensors"
    ]
    again = load_model(to / "safetensors").model.state_dict()
    before = load_model(model).model.state_dict()
    assert all(again[name].equal(tensor) for name, tensor in before.items())


def test_one_impossible_format_does_not_keep_the_others_from_being_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", heads=2)
    to = tmp_path / "to"
    words = [
        "export",
        "debug",
        "--model",
        str(model),
        "--to",
        str(to),
        "--format",
        "dinotxt",
        "safetensors",
    ]
    assert main(words) == 1
    assert "not made" in capsys.readouterr().out
    assert [path.name for path in to.iterdir()] == ["safetensors"]


def test_scores_are_those_of_the_tables_and_a_set_that_failed_has_none(tmp_path: Path) -> None:
    measured = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10.0}
    rank = {"value": 24.0, "low": 19.0, "high": 30.0, "n": 10.0}
    results = [
        make_result("pictures", {"top1": measured, "text_to_image_median_rank": rank}),
        make_result("broken", {}, error="no image can be read"),
    ]
    (tmp_path / "results").mkdir()
    for result in results:
        write_atomic(result_file(tmp_path, result["set"]), json.dumps(result))
    write_flat(tmp_path, results)

    assert read_scores(tmp_path) == (
        Score("pictures", "top-1", "50.0", "40.0 to 60.0", "prompts: plain"),
        Score("pictures", "text → image median rank", "24", "19 to 30", "prompts: plain"),
    )


def make_result(name: str, metrics: dict[str, dict[str, float]], error: str = "") -> Result:
    return Result(
        set=name,
        task="classification",
        error=error,
        metrics=metrics,
        baselines={},
        sizes={},
        protocol={"prompts": "plain"},
        encoder="random-vit",
        model="0123",
        data="4567",
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "add --to FOLDER"),
        (["--to", "x", "--format", "onx"], "no format 'onx': did you mean 'onnx'"),
        (["--to", "x"], "step train has not run"),
        (["curate", "--to", "x"], "step curate makes no model"),
        (["train@uncuratd", "--to", "x"], "no step 'train@uncuratd'"),
        (["--to", "x", "--model", "nowhere"], "--model nowhere is no folder"),
    ],
)
def test_wrong_words_say_what_is_missing(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "debug", *words, "--workspace", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err.replace("\n", " ")
