"""Leakage against plain loops over all pairs of the pool and an evaluation set."""

import numpy as np
import pytest

import curation.choice.leakage
import curation.clusters.spans
from cluster.memory import PeakMemory, private_mb
from curation.choice.config import LeakageConfig
from curation.choice.leakage import find_leakage
from curation.clusters.scan import InProcess, Points
from curation.clusters.vectors import ShardVectors, to_unit
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import CAPTIONS, CLS, PERCEPTUAL_HASH

ONLY_HASHES = LeakageConfig(exact=False, cosine=2.0)


@pytest.fixture
def opened(tmp_path, embedding_spec, write_pool):
    """opened(name, vectors, hashes): a folder of embeddings, and its unit vectors as points and as they are stored."""

    def write(name, vectors, hashes=None, captions=None):
        spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1))
        given = {PERCEPTUAL_HASH: hashes, CAPTIONS: captions}
        columns = {column: values for column, values in given.items() if values is not None}
        cut = (len(vectors) // 2, len(vectors) - len(vectors) // 2)
        write_pool(tmp_path / name, spec, cut, vectors={CLS: vectors[:, None]}, columns=columns)
        points = Points(ShardVectors(tmp_path / name, CLS, unit=True), InProcess())
        return EmbeddingShards(tmp_path / name), points, points.gather(np.arange(len(vectors)))

    return write


@pytest.mark.parametrize("pairs_at_a_time", [5, 1 << 14])
def test_a_leak_is_found_among_other_images_of_close_hashes(opened, monkeypatch, pairs_at_a_time):
    """Every hash is shared, or a bit away, by evaluation images that are nothing like the leaked one."""
    monkeypatch.setattr(curation.choice.leakage, "COMPARED_PAIRS", pairs_at_a_time)
    rng = np.random.default_rng(0)
    held_out = to_unit(rng.standard_normal((50, 8)).astype(np.float32))
    images = to_unit(rng.standard_normal((60, 8)).astype(np.float32))
    images[:30] = to_unit(held_out[:30] + np.float32(0.02) * rng.standard_normal((30, 8)).astype(np.float32))
    hashes = [rng.integers(0, 3, count).astype(np.uint64) << np.uint64(40) for count in (60, 50)]
    pool, points, x = opened("pool", images, hashes[0])
    other, _, y = opened("held_out", held_out, hashes[1])
    near = np.bitwise_count(hashes[0][:, None] ^ hashes[1]) <= 1
    cosine = np.where(near, x @ y.T, -1)
    expected = {row: int(cosine[row].argmax()) for row in range(60) if cosine[row].max() >= 0.97}
    among = np.setdiff1d(np.arange(60), [7])
    found = [finding for finding in find_leakage(pool, points, among, other, ONLY_HASHES) if finding.how != "caption"]
    rows, evaluation_rows = (np.concatenate([getattr(each, name) for each in found]) for name in found[0]._fields[1:3])
    expected.pop(7, None)
    assert dict(zip(rows.tolist(), evaluation_rows.tolist(), strict=True)) == expected
    assert len(rows) == len(expected) > 15


def test_no_close_hash_is_no_leak(opened):
    x = to_unit(np.ones((4, 8), np.float32))
    pool, points, _ = opened("pool", x, np.arange(4, dtype=np.uint64))
    other, _, _ = opened("held_out", x[:2], np.full(2, 2**63 + 2**20, np.uint64))
    assert all(
        not len(each.rows)
        for each in find_leakage(pool, points, np.arange(4), other, ONLY_HASHES)
        if each.how != "caption"
    )


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
        list(find_leakage(pool, points, np.arange(6), EmbeddingShards(other.folder), LeakageConfig()))


def captions_found(pool, points, other):
    last = list(find_leakage(pool, points, np.arange(0), other, ONLY_HASHES))[-1]
    assert last.how == "caption"
    return dict(zip(last.rows.tolist(), last.evaluation_rows.tolist(), strict=True))


def test_captions_are_found_as_by_a_loop_over_all(opened, monkeypatch):
    """Spans cut shards and record batches anywhere; the first caption of a row that occurs there names the row."""
    monkeypatch.setattr(curation.clusters.spans, "SMALLEST_SPAN", 7)
    monkeypatch.setattr(curation.shards.writer, "BATCH_ROWS", 9)
    rng = np.random.default_rng(0)
    drawn = [[f" Word {word}" for word in rng.integers(0, 99, rng.integers(1, 5))] for _ in range(200)]
    sought = [[f"word {word} ", "nothing else"] for word in rng.permutation(99)[:12]]
    pool, points, _ = opened("pool", np.ones((200, 8), np.float32), captions=drawn)
    other, _, _ = opened("held_out", np.ones((12, 8), np.float32), captions=sought)
    row_of = {captions[0].strip(): row for row, captions in enumerate(sought)}
    expected = {}
    for row, captions in enumerate(drawn):
        places = [row_of[caption.strip().lower()] for caption in captions if caption.strip().lower() in row_of]
        if places:
            expected[row] = places[0]
    found = captions_found(pool, points, other)
    assert found == expected
    assert list(found) == sorted(found)
    assert 20 < len(found) < 200


def test_captions_are_compared_a_span_at_a_time(opened, monkeypatch):
    monkeypatch.setattr(curation.clusters.spans, "SMALLEST_SPAN", 1000)
    rows, length = 30_000, 2000
    captions = [[f"{row:0{length}d}"] for row in range(rows)]
    pool, points, _ = opened("pool", np.ones((rows, 8), np.float32), captions=captions)
    other, few, _ = opened("held_out", np.ones((2, 8), np.float32), captions=[["a"], [captions[20_000][0]]])
    assert captions_found(other, few, other) == {0: 0, 1: 1}
    before = private_mb()
    with PeakMemory() as memory:
        assert captions_found(pool, points, other) == {20_000: 1}
    assert memory.peak_mb - before < rows * length / 2**20
