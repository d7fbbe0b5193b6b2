"""Hierarchical k-means with resampling, Vo et al. 2024 (arXiv:2405.15613).

Level 1 clusters the rows, and level t clusters the centroids of level t - 1. Resampling evens out
the density of a level's points: k-means runs again on the r points nearest to each centroid only,
so that a dense region counts no more than a sparse one, and then all points are assigned to the
new centroids. Each finished level is a file, and a killed run continues inside its last level.
"""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from curation.clusters.config import KMeansConfig, LevelPlan
from curation.clusters.groups import rank_in_groups
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.levels import Level, StoredCentroids, centroids_path, read_level, write_level
from curation.clusters.scan import Points, points_in_memory
from curation.clusters.two_stage import VALUES_IN_MEMORY, cluster_in_two_stages

logger = logging.getLogger(__name__)


def cluster_levels(
    points: Points, plan: list[LevelPlan], config: KMeansConfig, seed: int, folder: Path
) -> list[Level]:
    """All levels, finest first.

    They are written to the folder as level-N.npz and level-N.centroids.npy. Levels whose files
    exist already are read.
    """
    levels: list[Level] = []
    # The plan counts on a full level below; a split level may have fewer clusters than planned.
    planned_points = points.num_rows
    for number, level_plan in enumerate(plan, start=1):
        path = folder / f"level-{number}.npz"
        if not path.exists():
            scaled = _scaled(level_plan, points.num_rows, planned_points)
            _cluster_level(points, scaled, config, seed + number, path)
        level = read_level(path)
        logger.info("level=%d clusters=%d points=%d", number, len(level.centroids), points.num_rows)
        levels.append(level)

        points = _points_above(path, points)
        planned_points = level_plan.num_clusters

    return levels


def _scaled(plan: LevelPlan, num_points: int, planned_points: int) -> LevelPlan:
    """The plan with fewer clusters, in proportion, where the level below has fewer than planned."""
    if num_points >= planned_points:
        return plan
    num_clusters = max(1, plan.num_clusters * num_points // planned_points)
    split = plan.split if num_clusters >= plan.split else 0
    return plan._replace(num_clusters=num_clusters, split=split)


def _cluster_level(
    points: Points, plan: LevelPlan, config: KMeansConfig, seed: int, path: Path
) -> None:
    if plan.split > 1:
        num_first = plan.num_clusters // plan.split
        cluster_in_two_stages(points, num_first, plan.split, config, seed, path)
        return

    centroids = kmeans(points, plan.num_clusters, config, seed, _state_path(path, 0))
    for step in range(1, plan.rounds + 1):
        # Each round has a seed and a checkpoint of its own: a killed run skips finished rounds,
        # because k-means on a finished checkpoint returns at once.
        labels, distances = assign(points, centroids)
        resampled = points.subset(nearest_rows(labels, distances, plan.nearest))
        centroids = kmeans(
            resampled, plan.num_clusters, config, seed + 1000 * step, _state_path(path, step)
        )

    write_level(path, [centroids], *assign(points, centroids))


def _points_above(path: Path, points: Points) -> Points:
    """The centroids of a level as points of the next.

    Few of them are copied to memory and scanned by this process. Many stay in their file, and the
    workers scan them.
    """
    centroids = StoredCentroids(centroids_path(path), points.unit)
    if centroids.num_rows * centroids.dim <= VALUES_IN_MEMORY:
        in_memory = np.asarray(read_level(path).centroids)
        return points_in_memory(in_memory, points.unit, points.engine)
    return Points(centroids, points.workers, engine=points.engine)


def nearest_rows(
    labels: Int32[np.ndarray, " n"], distances: Float32[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, " m"]:
    """The `count` rows of each cluster that are nearest to its centroid, ascending over all rows.

    Ties go to the lower row.
    """
    return np.flatnonzero(rank_in_groups(labels, distances) < count)


def cluster_of_rows(levels: list[Level]) -> list[Int32[np.ndarray, " n"]]:
    """Per level, the cluster of every row, finest level first."""
    labels = [levels[0].labels]
    for level in levels[1:]:
        # A level labels the clusters below it: look up the label of each row's cluster there.
        labels.append(level.labels[labels[-1]])
    return labels


def _state_path(path: Path, step: int) -> Path:
    return path.with_name(f"{path.stem}.round-{step}.npz")
