"""Two stages against their definition: exact labels within the first-stage cluster, any workers,
interruptions.
"""

import numpy as np
import pytest

import curation.clusters.two_stage
from cluster.fanout import Pool
from cluster.resources import Resources
from curation.clusters.config import KMeansConfig, LevelPlan
from curation.clusters.hierarchy import cluster_levels
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.scan import InProcess, Points, Scanner, points_in_memory
from curation.clusters.two_stage import SplitClusters
from curation.clusters.vectors import ArrayVectors, to_unit

PLAN = [LevelPlan(60, 0, 1, split=6), LevelPlan(5, 1, 3)]
CONFIG = KMeansConfig(iterations=6)


def _cluster(folder, x, workers=None, plan=PLAN):
    folder.mkdir()
    points = Points(ArrayVectors(to_unit(x), True), workers or InProcess())
    return cluster_levels(points, plan, CONFIG, 3, folder)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)


def test_labels_are_the_nearest_centroid_of_the_own_first_stage_cluster(tmp_path, x):
    level = _cluster(tmp_path / "out", x)[0]
    points = points_in_memory(to_unit(x), True)
    first = assign(points, kmeans(points, 10, CONFIG, 4))[0]
    assert level.centroids.shape == (60, 8)
    for cluster in range(10):
        own = first == cluster
        leaves = np.unique(level.labels[own])
        assert not np.isin(level.labels[~own], leaves).any()
        squared = ((to_unit(x)[own][:, None] - level.centroids[leaves][None]) ** 2).sum(-1)
        np.testing.assert_array_equal(leaves[squared.argmin(1)], level.labels[own])
        np.testing.assert_allclose(level.distances[own], squared.min(1), atol=1e-6)


def test_a_cluster_of_few_distinct_points_gets_as_many_centroids(tmp_path):
    distinct = np.eye(12, dtype=np.float32)
    x = distinct[np.repeat(np.arange(12), 30)]
    level = _cluster(tmp_path / "out", x, plan=[LevelPlan(48, 0, 1, split=12)])[0]
    assert len(level.centroids) == 12
    assert level.distances.max() < 1e-9


class _Interrupted(Exception):
    pass


def test_a_killed_run_continues_with_the_parts_that_are_missing(tmp_path, x, monkeypatch):
    whole = _cluster(tmp_path / "whole", x)
    calls = []

    def die_at_the_third(part, *rest):
        calls.append(part)
        if len(calls) == 3:
            raise _Interrupted
        return split(part, *rest)

    split = curation.clusters.two_stage.split_clusters
    monkeypatch.setattr(curation.clusters.two_stage, "split_clusters", die_at_the_third)
    with pytest.raises(_Interrupted):
        _cluster(tmp_path / "killed", x)
    points = Points(ArrayVectors(to_unit(x), True), InProcess())
    resumed = cluster_levels(points, PLAN, CONFIG, 3, tmp_path / "killed")
    assert len(calls) == len(set(calls)) + 1
    for level, expected in zip(resumed, whole, strict=True):
        for found, wanted in zip(level, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert not list((tmp_path / "killed").glob("*part*"))


@pytest.mark.ray
def test_the_same_bits_for_any_workers(tmp_path, ray_session, x):
    expected = _cluster(tmp_path / "one", x)
    with Pool(Scanner, resources=Resources(workers=2, cpus=0.5)) as workers:
        found = _cluster(tmp_path / "two", x, workers)
    for level, wanted in zip(found, expected, strict=True):
        for array, same in zip(level, wanted, strict=True):
            np.testing.assert_array_equal(array, same)


def test_points_too_many_for_memory_are_read_where_they_are(tmp_path, x, monkeypatch):
    expected = _cluster(tmp_path / "memory", x)[0]
    monkeypatch.setattr(curation.clusters.two_stage, "VALUES_IN_MEMORY", 0)
    for found, wanted in zip(_cluster(tmp_path / "shards", x)[0], expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_empty_range_has_no_centroids(x):
    part = curation.clusters.two_stage.split_clusters(
        (0, 1), points_in_memory(x, False), np.arange(0), np.zeros(2, np.int64), 4, CONFIG, 0
    )
    assert isinstance(part, SplitClusters)
    assert [len(column) for column in part] == [0, 0, 0]
