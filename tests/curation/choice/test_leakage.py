"""Leakage against plain loops over all pairs of the pool and an evaluation set."""

import numpy as np
import pyarrow as pa
import pytest

import curation.choice.leakage
import curation.clusters.spans
from cluster.memory import PeakMemory, private_mb
from curation.choice.config import LeakageConfig, LikenessConfig
from curation.choice.duplicates import joined
from curation.choice.leakage import captions_in, compared_captions, find_leakage
from curation.clusters.scan import InProcess, Points
from curation.clusters.vectors import ShardVectors, to_unit
from curation.pairs.pdq import turned
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CAPTIONS, CLS, PERCEPTUAL_HASH

ONLY_HASHES = LeakageConfig(alike=LikenessConfig(exact=False, form_bits=None, cosine=None))


@pytest.fixture
def opened(tmp_path, embedding_spec, write_pool):
    """opened(name, vectors, hashes): a folder of embeddings, and its unit vectors as points and as
    they are stored.
    """

    def write(name, vectors, hashes=None, captions=None):
        num_hashes = 1 if hashes is None else hashes.shape[1]
        spec = embedding_spec(
            content="pooled",
            num_registers=0,
            grid=(1, 1),
            dim=vectors.shape[1],
            num_hashes=num_hashes,
        )
        given = {PERCEPTUAL_HASH: hashes, CAPTIONS: captions}
        columns = {column: values for column, values in given.items() if values is not None}
        cut = (len(vectors) // 2, len(vectors) - len(vectors) // 2)
        write_pool(tmp_path / name, spec, cut, vectors={CLS: vectors[:, None]}, columns=columns)
        points = Points(ShardVectors(tmp_path / name, CLS, unit=True), InProcess())
        return EmbeddingShards(tmp_path / name), points, points.gather(np.arange(len(vectors)))

    return write


def random_hashes(count, num_hashes=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, num_hashes, 32), dtype=np.uint8)


def found_by(leaks, sign):
    pairs = joined(finding.pairs for finding in leaks.findings if finding.sign == sign)
    return dict(zip(pairs.right.tolist(), pairs.left.tolist(), strict=True))


def test_near_hashes_are_found_in_any_orientation(opened):
    hashes = [random_hashes(60), random_hashes(50, seed=1)]
    for row in range(8):
        hashes[0][10 + row, 0] = turned(hashes[1][20 + row, :1, :].reshape(1, 32))[0, row]
    pool, points, _ = opened("pool", np.ones((60, 8), np.float32), hashes[0])
    other, _, _ = opened("held_out", np.ones((50, 8), np.float32), hashes[1])
    leaks = find_leakage(pool, points, np.setdiff1d(np.arange(60), [12]), other, ONLY_HASHES)
    expected = {10 + row: 20 + row for row in range(8)}
    del expected[12]
    assert found_by(leaks, "perceptual hash") == expected
    margin = leaks.margins[0].nearest()
    assert margin.is_copy().sum() == 7
    assert len(margin.pairs.left) == 7 + 12


def test_a_form_of_the_nearest_image_is_found(opened):
    """Vectors say which image, hashes whether it is a copy; neither alone does."""
    rng = np.random.default_rng(0)
    held_out = to_unit(rng.standard_normal((50, 64)).astype(np.float32))
    images = to_unit(rng.standard_normal((600, 64)).astype(np.float32))
    images[:30] = to_unit(
        held_out[:30] + np.float32(0.06) * rng.standard_normal((30, 64)).astype(np.float32)
    )
    hashes = [random_hashes(600, 2), random_hashes(50, 4, seed=1)]
    hashes[0][:10, 0] = hashes[1][:10, 3]  # crops of the evaluation images
    hashes[0][10:20, 1] = hashes[1][10:20, 0]  # evaluation images that are crops of the pool's
    hashes[0][500:510, 0] = hashes[1][10:20, 2]  # and forms of images that are not the nearest
    pool, points, _ = opened("pool", images, hashes[0])
    other, _, _ = opened("held_out", held_out, hashes[1])
    config = LeakageConfig(alike=LikenessConfig(exact=False, cosine=None))
    leaks = find_leakage(pool, points, np.arange(600), other, config)
    assert found_by(leaks, "altered form") == {row: row for row in range(20)}


def test_near_vectors_are_found_with_the_threshold_of_the_pool(opened):
    rng = np.random.default_rng(0)
    held_out = to_unit(rng.standard_normal((50, 64)).astype(np.float32))
    images = to_unit(rng.standard_normal((900, 64)).astype(np.float32))
    images[:30] = to_unit(
        held_out[:30] + np.float32(0.02) * rng.standard_normal((30, 64)).astype(np.float32)
    )
    pool, points, _ = opened("pool", images)
    other, _, _ = opened("held_out", held_out, random_hashes(50, seed=1000))
    leaks = find_leakage(
        pool, points, np.arange(900), other, LeakageConfig(alike=LikenessConfig(exact=False))
    )
    found = found_by(leaks, "cosine")
    assert {row: found[row] for row in range(30)} == {row: row for row in range(30)}
    assert len(found) <= 31


def test_images_without_hashes_cannot_be_compared_by_them(
    opened, embedding_spec, write_pool, tmp_path
):
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), num_hashes=0)
    write_pool(tmp_path / "old", spec, (9,))
    pool, points, _ = opened("pool", np.ones((9, 8), np.float32))
    with pytest.raises(ValueError, match="old, the evaluation set, has no perceptual hashes"):
        find_leakage(pool, points, np.arange(9), EmbeddingShards(tmp_path / "old"), ONLY_HASHES)


def test_an_evaluation_vector_that_is_not_finite_is_named(opened):
    """Writing refuses such values, so one is put into the file."""
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    pool, points, _ = opened("pool", x)
    other, _, _ = opened("held_out", x)
    shard = other.folder / "shard-00001.arrow"
    vector = x[4].astype(np.float16)
    fault = np.where(np.arange(8) == 3, np.nan, vector).astype(np.float16)
    shard.write_bytes(shard.read_bytes().replace(vector.tobytes(), fault.tobytes()))
    with pytest.raises(ValueError, match=r"1 vectors of .*held_out hold NaN .*\['key-4'\]"):
        find_leakage(pool, points, np.arange(6), EmbeddingShards(other.folder), LeakageConfig())


def captions_found(points, other):
    pairs = captions_in(points, other)
    return dict(zip(pairs.right.tolist(), pairs.left.tolist(), strict=True))


@pytest.mark.parametrize(
    ("caption", "equal"),
    [
        ("Two dogs run on the beach.", "two  dogs run on the beach"),
        ("ｃａｆｅ\u0301 !", "Café"),
        ("二匹の犬が浜辺を走る。", "二匹の犬が浜辺を走る"),
        ("A dog?", "a dog ..."),
    ],
)
def test_captions_are_compared_without_case_spaces_and_end_punctuation(caption, equal):
    first, second = compared_captions(pa.array([caption, equal], pa.large_string())).to_pylist()
    assert first == second


def test_captions_of_punctuation_alone_equal_none(opened):
    _, points, _ = opened(
        "pool", np.ones((4, 8), np.float32), captions=[["!"], ["."], ["a"], ["?", "b."]]
    )
    other, _, _ = opened("held_out", np.ones((2, 8), np.float32), captions=[["..."], ["B"]])
    assert captions_found(points, other) == {3: 1}


def test_captions_are_found_as_by_a_loop_over_all(opened, monkeypatch):
    """Spans cut shards and record batches anywhere; the first caption of a row that occurs there
    names the row.
    """
    monkeypatch.setattr(curation.clusters.spans, "SMALLEST_SPAN", 7)
    monkeypatch.setattr(curation.shards.writer, "BATCH_ROWS", 9)
    rng = np.random.default_rng(0)
    drawn = [
        [f" Word {word}" for word in rng.integers(0, 99, rng.integers(1, 5))] for _ in range(200)
    ]
    sought = [[f"word {word} ", "nothing else"] for word in rng.permutation(99)[:12]]
    _, points, _ = opened("pool", np.ones((200, 8), np.float32), captions=drawn)
    other, _, _ = opened("held_out", np.ones((12, 8), np.float32), captions=sought)
    row_of = {captions[0].strip(): row for row, captions in enumerate(sought)}
    expected = {}
    for row, captions in enumerate(drawn):
        places = [
            row_of[caption.strip().lower()]
            for caption in captions
            if caption.strip().lower() in row_of
        ]
        if places:
            expected[row] = places[0]
    found = captions_found(points, other)
    assert found == expected
    assert list(found) == sorted(found)
    assert 20 < len(found) < 200


def test_captions_are_compared_a_span_at_a_time(opened, monkeypatch):
    monkeypatch.setattr(curation.clusters.spans, "SMALLEST_SPAN", 1000)
    rows = 30_000
    length = 2000
    captions = [[f"{row:0{length}d}"] for row in range(rows)]
    _, points, _ = opened("pool", np.ones((rows, 8), np.float32), captions=captions)
    other, few, _ = opened(
        "held_out", np.ones((2, 8), np.float32), captions=[["a"], [captions[20_000][0]]]
    )
    assert captions_found(few, other) == {0: 0, 1: 1}
    before = private_mb()
    with PeakMemory() as memory:
        assert captions_found(points, other) == {20_000: 1}
    assert memory.peak_mb - before < rows * length / 2**20
