"""Levels: labels are those of the centroids, kept files are found again, resampling takes the
nearest rows.
"""

import numpy as np
import pytest

from curation.clusters.config import KMeansConfig, LevelsConfig
from curation.clusters.hierarchy import cluster_levels, cluster_of_rows, nearest_rows
from curation.clusters.kmeans import assign
from curation.clusters.scan import points_in_memory


@pytest.fixture
def points():
    return points_in_memory(
        np.random.default_rng(0).standard_normal((900, 8)).astype(np.float32), False
    )


PLAN = LevelsConfig(clusters=(60, 12, 3), resampling=(1, 2, 2), nearest=(5, 3, 2)).resolve(900)


def test_every_level_clusters_the_centroids_below(points, tmp_path):
    levels = cluster_levels(points, PLAN, KMeansConfig(), 0, tmp_path)
    below = points
    for level, plan in zip(levels, PLAN, strict=True):
        assert level.centroids.shape == (plan.num_clusters, 8)
        labels, distances = assign(below, level.centroids)
        np.testing.assert_array_equal(level.labels, labels)
        np.testing.assert_array_equal(level.distances, distances)
        below = points_in_memory(np.asarray(level.centroids), False)
    rows = cluster_of_rows(levels)
    np.testing.assert_array_equal(rows[2], levels[2].labels[levels[1].labels[levels[0].labels]])


def test_levels_are_kept_and_found_again(points, tmp_path):
    (tmp_path / "whole").mkdir()
    folder = tmp_path / "resumed"
    folder.mkdir()
    whole = cluster_levels(points, PLAN, KMeansConfig(), 0, tmp_path / "whole")
    cluster_levels(points, PLAN[:2], KMeansConfig(), 0, folder)
    before = (folder / "level-1.npz").stat().st_mtime_ns
    resumed = cluster_levels(points, PLAN, KMeansConfig(), 0, folder)
    assert (folder / "level-1.npz").stat().st_mtime_ns == before
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        f"level-{level}{suffix}" for level in (1, 2, 3) for suffix in (".centroids.npy", ".npz")
    ]
    for level, expected in zip(resumed, whole, strict=True):
        for stored, wanted in zip(level, expected, strict=True):
            np.testing.assert_array_equal(stored, wanted)


def test_nearest_rows_are_the_closest_of_each_cluster():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 300).astype(np.int32)
    distances = rng.random(300).astype(np.float32)
    expected = np.sort(
        np.concatenate(
            [
                rows[np.argsort(distances[rows])][:4]
                for rows in (np.flatnonzero(labels == k) for k in range(9))
            ]
        )
    )
    np.testing.assert_array_equal(nearest_rows(labels, distances, 4), expected)


def test_levels_must_shrink_and_match():
    with pytest.raises(ValueError, match="fewer clusters than the one before"):
        LevelsConfig(clusters=(10, 10))
    with pytest.raises(ValueError, match="1 values for 2 levels"):
        LevelsConfig(clusters=(10, 5), nearest=(3,))
    with pytest.raises(ValueError, match="split must divide the clusters"):
        LevelsConfig(clusters=(10, 5), split=(3, 0))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (400_000, [(40_000, 0), (10_000, 0)]),
        (500_000, [(50_000, 0), (12_500, 0)]),
        (2_000_000, [(200_000, 100), (50_000, 0)]),
        (2_000_999, [(200_000, 100), (50_000, 0)]),
        (650_000_000, [(65_000_000, 1300), (16_250_000, 325)]),
    ],
)
def test_automatic_levels_seed_no_more_than_a_driver_can(rows, expected):
    plan = LevelsConfig().resolve(rows)
    assert [(level.num_clusters, level.split) for level in plan] == expected
    assert all(level.num_clusters // max(1, level.split) <= 50_000 for level in plan)
    assert [level.rounds for level in plan] == [0, 0 if expected[1][1] else 2]


def test_levels_above_a_split_that_made_few_clusters_shrink_with_it(tmp_path):
    """24 distinct points, in 12 clusters that are asked for 20 parts each."""
    distinct = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
    points = points_in_memory(distinct[np.repeat(np.arange(24), 30)], False)
    plan = LevelsConfig(clusters=(240, 60, 20), split=(20, 0, 0)).resolve(720)
    levels = cluster_levels(points, plan, KMeansConfig(), 0, tmp_path)
    assert [len(level.centroids) for level in levels] == [24, 6, 2]
