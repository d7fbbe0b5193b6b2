"""A model to export, with either vocabulary."""

import pytest
from subjects import clip_words, make_subject, sentencepiece_words

from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.subject import Subject
from train.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["sentencepiece", "clip"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two head blocks on all tokens, with either vocabulary."""
    if request.param == "clip":
        tokenizer: Tokenizer = clip_words(tmp_path_factory.mktemp("clip"))
        return make_subject(
            tokenizer, ModelConfig(TextConfig(64, 1, 1, 40), VisionConfig(blocks=1))
        )
    return make_subject(
        sentencepiece_words(), ModelConfig(TextConfig(128, 2, 2, 24), VisionConfig(blocks=2))
    )
