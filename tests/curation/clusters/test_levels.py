"""Levels on disk: round trip by blocks, centroids mapped in any process, nothing left of what led
there.
"""

import pickle

import numpy as np
import pytest

from curation.clusters.levels import StoredCentroids, centroids_path, read_level, write_level
from curation.clusters.vectors import to_unit

LABELS = np.arange(5, dtype=np.int32)
DISTANCES = np.linspace(0, 1, 5, dtype=np.float32)


@pytest.mark.parametrize("cuts", [[], [1], [3, 3, 1200]])
def test_a_level_is_read_as_it_was_written(tmp_path, cuts):
    centroids = np.random.default_rng(0).standard_normal((12_345, 3)).astype(np.float32)
    path = tmp_path / "level-1.npz"
    (tmp_path / "level-1.part-0-4.npz").touch()
    (tmp_path / "level-2.round-0.npz").touch()
    write_level(path, np.split(centroids, cuts), LABELS, DISTANCES)
    for found, wanted in zip(read_level(path), (centroids, LABELS, DISTANCES), strict=True):
        np.testing.assert_array_equal(found, wanted)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"level-1.npz", "level-1.centroids.npy", "level-2.round-0.npz"}


@pytest.mark.parametrize("unit", [False, True])
def test_stored_centroids_travel_as_their_path(tmp_path, unit):
    centroids = np.random.default_rng(0).standard_normal((900, 8)).astype(np.float32)
    write_level(tmp_path / "level-1.npz", [centroids], LABELS, DISTANCES)
    stored = StoredCentroids(centroids_path(tmp_path / "level-1.npz"), unit)
    sent = pickle.dumps(stored)
    assert len(sent) < 1000
    rows = np.array([7, 0, 899, 7])
    expected = to_unit(centroids[rows]) if unit else centroids[rows]
    for points in (stored, pickle.loads(sent)):
        assert (points.num_rows, points.dim) == (900, 8)
        np.testing.assert_array_equal(points.gather(rows), expected)
