"""Duplicates against plain loops over all pairs."""

import tracemalloc

import numpy as np
import pytest

import curation.choice.duplicates
from curation.choice.config import DuplicatesConfig, LeakageConfig
from curation.choice.duplicates import (
    close_hash_pairs,
    close_hashes_between,
    equal_pairs,
    perceptual_pairs,
    semantic_pairs,
)
from curation.clusters.config import KMeansConfig
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.scan import points_in_memory
from curation.clusters.vectors import to_unit


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_close_hash_pairs_equal_a_loop_over_all_pairs(bits):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 40).astype(np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (3, 120)).astype(np.uint64)
    hashes = np.concatenate([hashes, hashes[rng.integers(0, 40, 120)] ^ np.bitwise_xor.reduce(flips)])
    expected = {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if int(hashes[i] ^ hashes[j]).bit_count() <= bits
    }
    assert set(zip(*(side.tolist() for side in close_hash_pairs(hashes, bits)), strict=True)) == expected


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_close_hashes_between_equal_a_loop_over_all_pairs(bits):
    rng = np.random.default_rng(bits)
    ours = rng.integers(0, 2**63, 30).astype(np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (3, 80)).astype(np.uint64)
    theirs = np.concatenate([ours[rng.integers(0, 30, 80)] ^ np.bitwise_xor.reduce(flips), ours[:9], ours[:9]])
    expected = [(i, j) for i in range(30) for j in range(len(theirs)) if int(ours[i] ^ theirs[j]).bit_count() <= bits]
    assert list(zip(*(side.tolist() for side in close_hashes_between(ours, theirs, bits)), strict=True)) == expected
    assert len(expected) >= 18


@pytest.mark.parametrize(("config", "name"), [(DuplicatesConfig, "duplicates"), (LeakageConfig, "leakage")])
def test_bits_that_no_search_bears_are_refused(config, name):
    for bits in (-1, 4):
        assert config(perceptual_bits=bits).perceptual_bits == bits
    for bits in (-2, 5, 8):
        with pytest.raises(ValueError, match=rf"{name}.perceptual_bits is {bits}: -1 \(not used\) to 4 are possible"):
            config(perceptual_bits=bits)


def test_equal_pairs_keep_the_preferred_row_of_each_group():
    hashes = np.array([7, 5, 7, 7, 5, 9], np.uint64)
    pairs = equal_pairs(hashes, np.array([4, 1, 2, 0, 5, 3]))
    assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == [(2, 0), (2, 3), (4, 1)]


def _by_hand(alike, order):
    """The rows dropped when one goes through them in order, each with the first kept one that it is like."""
    kept, dropped = [], {}
    for row in order.tolist():
        first = next((other for other in kept if alike[row, other]), None)
        if first is None:
            kept.append(row)
        else:
            dropped[row] = first
    return dropped


def _as_dict(pairs):
    assert len(np.unique(pairs.right)) == len(pairs.right)
    return dict(zip(pairs.right.tolist(), pairs.left.tolist(), strict=True))


@pytest.fixture
def tiles_of_seven(monkeypatch):
    monkeypatch.setattr(curation.choice.duplicates, "TILE_ROWS", 7)


@pytest.mark.parametrize("seed", range(5))
def test_semantic_pairs_equal_going_through_rows_by_preference(seed, tiles_of_seven):
    """Chains of likeness, many of them across clusters."""
    rng = np.random.default_rng(seed)
    x = to_unit(
        (rng.standard_normal((40, 1, 6)) + 0.25 * rng.standard_normal((40, 10, 6))).reshape(400, 6).astype("f4")
    )
    points, order = points_in_memory(x, True), rng.permutation(400)[:380]
    centroids = kmeans(points, 12, KMeansConfig(), 0)
    config = DuplicatesConfig(cosine=0.97, neighbours=11)  # every cluster is a neighbour: nothing may be missed
    pairs = semantic_pairs(points, assign(points, centroids)[0], centroids, order, config)
    expected = _by_hand(x @ x.T >= 0.97, order)
    assert _as_dict(pairs) == expected
    assert len(expected) > 100
    np.testing.assert_allclose(pairs.cosine, (x[pairs.left] * x[pairs.right]).sum(1), atol=1e-6)


def test_semantic_pairs_are_sought_in_the_own_and_the_next_clusters_only():
    angles = np.deg2rad(np.array([0.0, 1, 10, 11, 90, 91, 100, 101]))
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    clusters = np.array([0, 1, 0, 1, 2, 3, 2, 2], np.int32)
    centroids = np.stack([x[clusters == cluster].mean(axis=0) for cluster in range(4)])
    for neighbours, expected in ((0, {7: 6}), (1, {1: 0, 3: 2, 5: 4, 7: 6})):
        config = DuplicatesConfig(cosine=0.999, neighbours=neighbours)
        pairs = semantic_pairs(points_in_memory(x, True), clusters, centroids, np.arange(8), config)
        assert _as_dict(pairs) == expected


@pytest.mark.parametrize("bits", [0, 1])
def test_perceptual_pairs_compare_all_rows_of_close_hashes(bits):
    """Eight other pictures share each hash: whichever is preferred, a duplicate is found."""
    rng = np.random.default_rng(0)
    x = to_unit(rng.standard_normal((60, 8)).astype(np.float32))
    x[20:40] = to_unit(x[:20] + np.float32(0.02) * rng.standard_normal((20, 8)).astype(np.float32))
    hashes = (np.arange(60) % 2).astype(np.uint64) + np.uint64(8) * (np.arange(60) // 2 % 2).astype(np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= bits
    config = DuplicatesConfig(perceptual_bits=bits, perceptual_cosine=0.97)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(60)
        expected = _by_hand(near & (x @ x.T >= 0.97), order)
        assert _as_dict(perceptual_pairs(points_in_memory(x, True), hashes, order, config)) == expected
        assert len(expected) == 20


def test_rows_of_other_hashes_are_not_compared():
    x = to_unit(np.ones((4, 3), np.float32))
    hashes = np.array([1, 1 << 20, 7, 1 << 40], np.uint64)
    pairs = perceptual_pairs(points_in_memory(x, True), hashes, np.arange(4), DuplicatesConfig())
    assert len(pairs.right) == 0


def test_thousands_that_are_alike_take_little_memory():
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    x = to_unit(x + np.float32(0.001) * np.random.default_rng(1).standard_normal((6000, 16)).astype(np.float32))
    points, clusters = points_in_memory(x, True), np.zeros(6000, np.int32)
    tracemalloc.start()
    pairs = semantic_pairs(points, clusters, x[:1], np.arange(6000), DuplicatesConfig())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert _as_dict(pairs) == dict.fromkeys(range(1, 6000), 0)
    assert most < 100e6  # all pairs: 18 M of 20 bytes, and their vectors
