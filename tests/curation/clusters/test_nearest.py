"""Exact assignment against a float64 brute force, with near ties, duplicates, offsets and awkward
scales.
"""

import numpy as np
import pytest

from cluster.memory import PeakMemory, private_mb
from curation.clusters.nearest import Assigner
from curation.clusters.vectors import to_unit


def _brute_force(x, centroids, unit):
    x = x.astype(np.float64)
    centroids = centroids.astype(np.float64)
    return (x @ centroids.T - (0 if unit else (centroids**2).sum(1) / 2)).argmax(1)


def _gaussian(rng, n, d):
    return rng.standard_normal((n, d)).astype(np.float32)


def _shifted(rng, n, d):
    return (0.1 * rng.standard_normal((n, d)) + 3).astype(np.float32)


def _heavy_tailed(rng, n, d):
    return rng.standard_cauchy((n, d)).astype(np.float32)


def _tiny(rng, n, d):
    return (1e-6 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.mark.parametrize("engine", ["onnxruntime", "faiss", "torch"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("cloud", [_gaussian, _shifted, _heavy_tailed, _tiny])
def test_labels_equal_a_float64_brute_force(engine, unit, cloud):
    rng = np.random.default_rng(0)
    x = cloud(rng, 3000, 37)
    centroids = cloud(rng, 150, 37)
    if unit:
        x = to_unit(x)
        centroids = to_unit(centroids)
    np.testing.assert_array_equal(
        Assigner(centroids, unit, engine)(x), _brute_force(x, centroids, unit)
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "faiss", "torch"])
def test_near_ties_are_decided_as_in_float64(engine):
    """Centroids that differ in the last bits of float32: bfloat16 cannot tell any of them apart."""
    rng = np.random.default_rng(1)
    base = _gaussian(rng, 4, 24)
    centroids = np.repeat(base, 20, axis=0) * (1 + 3e-7 * rng.standard_normal((80, 24))).astype(
        np.float32
    )
    x = base[rng.integers(0, 4, 500)] + 1e-3 * _gaussian(rng, 500, 24)
    np.testing.assert_array_equal(
        Assigner(centroids, False, engine)(x), _brute_force(x, centroids, False)
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "faiss", "torch"])
@pytest.mark.parametrize("unit", [True, False])
def test_equal_centroids_go_to_the_lowest_index(engine, unit):
    rng = np.random.default_rng(2)
    centroids = np.tile(to_unit(_gaussian(rng, 5, 16)), (4, 1))
    x = np.concatenate(
        [centroids[:5], to_unit(_gaussian(rng, 200, 16)), np.zeros((1, 16), np.float32)]
    )
    labels = Assigner(centroids, unit, engine)(x)
    assert labels.max() < 5
    np.testing.assert_array_equal(labels[:5], np.arange(5))


def test_labels_do_not_depend_on_how_rows_are_cut():
    rng = np.random.default_rng(3)
    x = _gaussian(rng, 5000, 20)
    assigner = Assigner(_gaussian(rng, 90, 20), False)
    pieces = [assigner(part) for part in np.split(x, [1, 7, 2048, 2050, 4999])]
    np.testing.assert_array_equal(np.concatenate(pieces), assigner(x))


@pytest.mark.parametrize("unit", [True, False])
def test_faiss_agrees(unit):
    rng = np.random.default_rng(4)
    x = to_unit(_gaussian(rng, 2000, 32))
    centroids = to_unit(_gaussian(rng, 50, 32))
    np.testing.assert_array_equal(
        Assigner(centroids, unit, "faiss")(x), Assigner(centroids, unit)(x)
    )


def test_one_centroid_and_no_rows():
    assigner = Assigner(np.ones((1, 3), np.float32), False)
    assert assigner(np.zeros((4, 3), np.float32)).tolist() == [0] * 4
    assert assigner(np.zeros((0, 3), np.float32)).shape == (0,)


@pytest.mark.parametrize("engine", ["onnxruntime", "faiss", "torch"])
@pytest.mark.parametrize("unit", [True, False])
def test_search_takes_little_memory_beside_the_centroids(engine, unit):
    centroids = _gaussian(np.random.default_rng(5), 20_000, 512)
    Assigner(centroids[:100], unit, engine)
    before = private_mb()
    with PeakMemory() as memory:
        Assigner(centroids, unit, engine)
    assert (memory.peak_mb - before) * 2**20 < 2 * centroids.nbytes
