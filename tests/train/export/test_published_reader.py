"""The published files, read strictly by the published rules."""

from pathlib import Path

import pytest
import torch
from subjects import make_subject, sentencepiece_words

from curation.shards.schema import Content
from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.formats import export_format
from train.export.probe import CAPTIONS, make_probe
from train.export.published import read_model
from train.export.published_reader import published_features
from train.export.subject import Subject

BLOCKS = VisionConfig(blocks=1)


@pytest.mark.parametrize(
    ("config", "content", "complaint"),
    [
        (
            ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1, pooling="mean")),
            "tokens",
            "pooling 'mean'",
        ),
        (ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=0)), "tokens", "0 head blocks"),
        (ModelConfig(TextConfig(64, 1, 2, 16), BLOCKS), "tokens", "text width 64 with 2 heads"),
        (ModelConfig(TextConfig(64, 1, 1, 16), BLOCKS), "grid", "a model of grid embeddings"),
    ],
)
def test_what_the_published_form_cannot_hold_is_refused(
    config: ModelConfig, content: Content, complaint: str, tmp_path: Path
) -> None:
    subject = make_subject(sentencepiece_words(), config, content=content)
    with pytest.raises(ValueError, match=complaint):
        export_format("dinotxt", subject, tmp_path)
    assert not list(tmp_path.iterdir())


def test_end_of_text_is_the_largest_id_of_every_caption(subject: Subject, tmp_path: Path) -> None:
    """The published code takes a caption's feature at its largest id."""
    export_format("dinotxt", subject, tmp_path)
    tokenizer = read_model(tmp_path / "dinotxt").tokenizer
    ours = subject.loaded.tokenizer.encode(CAPTIONS, 16)
    theirs = tokenizer.encode(CAPTIONS, 16)
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert all(max(ids) == ids[-1] == tokenizer.end_of_text for ids in theirs)
    assert [len(ids) for ids in ours] == [len(ids) for ids in theirs]


@pytest.mark.parametrize("change", ["missing", "unknown", "no blocks"])
def test_files_with_other_names_are_refused(change: str, subject: Subject, tmp_path: Path) -> None:
    export_format("dinotxt", subject, tmp_path)
    file = tmp_path / "dinotxt" / "dinotxt_vision_head.pth"
    weights = torch.load(file)
    if change == "missing":
        del weights["block_list.0.ls1.gamma"]
    elif change == "unknown":
        weights["block_list.0.attn.qkv.bias"] = torch.zeros(3)
    else:
        weights = {
            name: tensor for name, tensor in weights.items() if not name.startswith("block_list")
        }
    torch.save(weights, file)
    with pytest.raises(ValueError, match="strict loading refuses them"):
        published_features(tmp_path / "dinotxt", make_probe(subject))
