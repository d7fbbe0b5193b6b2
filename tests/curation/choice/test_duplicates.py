"""Duplicates against plain loops over all pairs."""

import tracemalloc

import numpy as np
import pytest

import curation.choice.duplicates
from curation.choice.duplicates import equal_pairs, nearest_others, neighborhoods, semantic_pairs
from curation.choice.likeness import Cosines, Rule
from curation.clusters.config import KMeansConfig
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.scan import InProcess, Points, points_in_memory
from curation.clusters.vectors import ShardVectors, to_unit
from curation.shards.schema import CLS, PERCEPTUAL_HASH


def test_equal_pairs_keep_the_preferred_row_of_each_group():
    hashes = np.array([7, 5, 7, 7, 5, 9], np.uint64)
    pairs = equal_pairs(hashes, np.array([4, 1, 2, 0, 5, 3]))
    assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == [
        (2, 0),
        (2, 3),
        (4, 1),
    ]


def at_least(cosine):
    """The rule that only looks at cosines."""
    return Rule(Cosines(1.0, 1.0), cosine, None)


def _by_hand(alike, order):
    """The rows dropped when one goes through them in order, each with the first kept one that it is
    like.
    """
    kept = []
    dropped = {}
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
        (rng.standard_normal((40, 1, 6)) + 0.25 * rng.standard_normal((40, 10, 6)))
        .reshape(400, 6)
        .astype("f4")
    )
    points = points_in_memory(x, True)
    order = rng.permutation(400)[:380]
    centroids = kmeans(points, 12, KMeansConfig(), 0)
    # Every cluster: nothing may be missed.
    near = neighborhoods(assign(points, centroids)[0][order], centroids, 11)
    pairs = semantic_pairs(points, order, near, at_least(0.97))
    expected = _by_hand(x @ x.T >= 0.97, order)
    assert _as_dict(pairs) == expected
    assert len(expected) > 100
    np.testing.assert_allclose(pairs.cosine, (x[pairs.left] * x[pairs.right]).sum(1), atol=1e-6)


def test_semantic_pairs_are_sought_in_the_own_and_the_next_clusters_only():
    angles = np.deg2rad(np.array([0.0, 1, 10, 11, 90, 91, 100, 101]))
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    clusters = np.array([0, 1, 0, 1, 2, 3, 2, 2], np.int32)
    centroids = np.stack([x[clusters == cluster].mean(axis=0) for cluster in range(4)])
    for neighbors, expected in ((0, {7: 6}), (1, {1: 0, 3: 2, 5: 4, 7: 6})):
        near = neighborhoods(clusters, centroids, neighbors)
        pairs = semantic_pairs(points_in_memory(x, True), np.arange(8), near, at_least(0.999))
        assert _as_dict(pairs) == expected


def test_a_near_form_decides_where_the_cosine_does_not(tmp_path, embedding_spec, write_pool):
    """Every other likely pair has a near form."""
    spec = embedding_spec(content="pooled", num_registers=0, grid=(1, 1), dim=16, num_hashes=3)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 16)).astype(np.float32)
    vectors[30:] = vectors[:30] + 0.15 * rng.standard_normal((30, 16))
    hashes = rng.integers(0, 256, (60, 3, 32), dtype=np.uint8)
    hashes[30:45, 0] = hashes[:15, 2]
    write_pool(
        tmp_path, spec, (60,), vectors={CLS: vectors[:, None]}, columns={PERCEPTUAL_HASH: hashes}
    )

    points = Points(ShardVectors(tmp_path, CLS, unit=True), InProcess())
    x = points.gather(np.arange(60))
    near = neighborhoods(np.zeros(60, np.int32), x[:1], 0)
    rule = Rule(Cosines(likely=0.9, sure=0.9999), least=0.9999, form_bits=10)
    pairs = semantic_pairs(points, np.arange(60), near, rule)
    assert _as_dict(pairs) == {row + 30: row for row in range(15)}


def test_nearest_others_equal_a_loop(tiles_of_seven):
    x = to_unit(np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32))
    order = np.random.default_rng(1).permutation(90)[:80]
    clusters = (np.arange(80) % 3).astype(np.int32)
    near = neighborhoods(clusters, x[:3], 0)
    found = nearest_others(points_in_memory(x, True), order, near)
    assert sorted(found.right.tolist()) == sorted(order.tolist())
    cosines = x[order] @ x[order].T - 2 * np.eye(80) - 4 * (clusters[:, None] != clusters)
    expected = dict(zip(order.tolist(), order[cosines.argmax(axis=1)].tolist(), strict=True))
    assert _as_dict(found) == expected
    np.testing.assert_allclose(
        found.cosine, (x[found.left] * x[found.right]).sum(axis=1), atol=1e-6
    )


def test_thousands_that_are_alike_take_little_memory():
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    x = to_unit(
        x
        + np.float32(0.001)
        * np.random.default_rng(1).standard_normal((6000, 16)).astype(np.float32)
    )
    points = points_in_memory(x, True)
    clusters = np.zeros(6000, np.int32)
    tracemalloc.start()
    pairs = semantic_pairs(
        points, np.arange(6000), neighborhoods(clusters, x[:1], 4), at_least(0.985)
    )
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert _as_dict(pairs) == dict.fromkeys(range(1, 6000), 0)
    assert most < 100e6  # all pairs: 18 M of 20 bytes, and their vectors
