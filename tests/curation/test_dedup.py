"""Duplicates against plain loops over all pairs."""

import numpy as np
import pytest

from curation.dedup import DuplicatesConfig, Pairs, close_hash_pairs, equal_pairs, resolve, semantic_pairs
from curation.kmeans import KMeansConfig, assign, kmeans
from curation.scan import points_in_memory
from curation.vectors import to_unit


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


def test_equal_pairs_keep_the_preferred_row_of_each_group():
    hashes = np.array([7, 5, 7, 7, 5, 9], np.uint64)
    preference = np.array([0.3, 0.1, 0.2, 0.9, 0.0, 0.5])
    pairs = equal_pairs(hashes, preference, np.arange(6))
    assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == [(2, 0), (2, 3), (4, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_resolve_equals_going_through_rows_by_preference(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 60, (2, 90))
    left, right = left[left != right], right[left != right]
    preference = rng.integers(0, 20, 60).astype(np.float64)  # with ties
    kept: set[int] = set()
    neighbours = {row: set(right[left == row]) | set(left[right == row]) for row in range(60)}
    for row in sorted(range(60), key=lambda row: (preference[row], row)):
        if not neighbours[row] & kept:
            kept.add(row)
    resolved = resolve(Pairs(left, right, np.ones(len(left), np.float32)), preference)
    assert set(range(60)) - set(resolved.right.tolist()) == kept
    assert len(np.unique(resolved.right)) == len(resolved.right)
    assert all(keeper in kept and keeper in neighbours[row] for keeper, row in zip(*resolved[:2], strict=True))


def test_nothing_to_resolve():
    empty = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    assert len(resolve(empty, np.arange(4.0)).right) == 0


def test_semantic_pairs_equal_all_pairs_above_the_cosine():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 12)).astype(np.float32)
    x[300:] = x[:100] + 0.05 * rng.standard_normal((100, 12))
    x = to_unit(x)
    points = points_in_memory(x, True)
    centroids = kmeans(points, 10, KMeansConfig(), 0)
    config = DuplicatesConfig(cosine=0.99, neighbours=9)  # every cluster is a neighbour: nothing may be missed
    pairs = semantic_pairs(points, assign(points, centroids)[0], centroids, np.arange(400), config)
    found = {tuple(sorted(pair)) for pair in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    expected = {(i, j) for i, j in np.argwhere(x @ x.T >= 0.99).tolist() if i < j}
    assert len(found) == len(pairs.left)
    assert found == expected
    assert len(found) > 50
