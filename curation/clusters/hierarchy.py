"""Hierarchical k-means with resampling, Vo et al. 2024 (arXiv:2405.15613): level 1 clusters the rows, level t the
centroids of level t - 1.

Resampling flattens the density that a level sees: the r points nearest each centroid are clustered again, and every
point goes to the new centroids. Each finished level is a file, and a killed run continues inside the level it was in.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from curation.clusters.groups import rank_in_groups
from curation.clusters.kmeans import KMeansConfig, assign, kmeans
from curation.clusters.levels import Level, StoredCentroids, centroids_path, read_level, write_level
from curation.clusters.scan import Points, points_in_memory
from curation.clusters.two_stage import VALUES_IN_MEMORY, cluster_in_two_stages

ROWS_PER_CLUSTER = 40
LARGEST_STAGE = 50_000  # clusters: seeding them takes minutes, in the driver alone, and grows with their square
PARTS = 100
CLUSTERS_PER_CLUSTER = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LevelsConfig:
    clusters: tuple[int, ...] = ()
    """Clusters per level, finest first; empty: one per 40 distinct rows, then 1 in 10; over 50,000 in two stages."""
    resampling: tuple[int, ...] = ()
    """Resampling rounds per level; empty: none on the first level, two on the others."""
    nearest: tuple[int, ...] = ()
    """Points per cluster that a resampling round clusters anew; empty: 4 on each level."""
    split: tuple[int, ...] = ()
    """Parts per level that each first-stage cluster is split in (10 M as 100 k x 100); 0: none; empty: see above."""

    def __post_init__(self) -> None:
        for name in ("resampling", "nearest", "split"):
            values = getattr(self, name)
            if values and len(values) != len(self.clusters):
                raise ValueError(
                    f"levels.{name} has {len(values)} values for {len(self.clusters)} levels: one per level of "
                    "levels.clusters is needed; leave it empty for the default"
                )
        rounds_of_level = self.resampling or (0,) * len(self.clusters)
        for clusters, split, rounds in zip(self.clusters, self.split, rounds_of_level, strict=False):
            if split > 1 and (clusters % split or rounds):
                raise ValueError(
                    f"levels.split is {split} on a level of {clusters} clusters with {rounds} resampling rounds: split "
                    "must divide the clusters, and a level that is split is not resampled; choose other numbers"
                )
        if any(upper >= lower for lower, upper in zip(self.clusters, self.clusters[1:], strict=False)):
            raise ValueError(
                f"levels.clusters is {self.clusters}: every level must have fewer clusters than the one before; "
                "order them from finest to coarsest"
            )

    def resolve(self, num_rows: int) -> list["LevelPlan"]:
        """The plan of every level for a number of rows."""
        if not self.clusters:
            return automatic_levels(*automatic_clusters(num_rows)).resolve(num_rows)
        split = self.split or (0,) * len(self.clusters)
        rounds = self.resampling or tuple(2 * (level > 0 and parts < 2) for level, parts in enumerate(split))
        nearest = self.nearest or (4,) * len(self.clusters)
        return [LevelPlan(*values) for values in zip(self.clusters, rounds, nearest, split, strict=True)]


def automatic_clusters(num_points: int, split: int = 0) -> tuple[int, int]:
    """One cluster per 40 points, and the parts that each first-stage cluster is split in, when they are not given."""
    return _in_stages(max(2, num_points // ROWS_PER_CLUSTER), split)


def _in_stages(num_clusters: int, split: int = 0) -> tuple[int, int]:
    """A multiple of the parts, and the parts: so many that the first stage is not larger than one alone may be."""
    if not split and num_clusters > LARGEST_STAGE:
        split = max(PARTS, -(-num_clusters // LARGEST_STAGE))
    parts = max(1, split)
    return max(1, num_clusters // parts) * parts, split


def automatic_levels(num_clusters: int, split: int = 0) -> LevelsConfig:
    """A second level of one cluster per 10 of the first, where that makes fewer."""
    levels = [(num_clusters, split), _in_stages(max(2, num_clusters // CLUSTERS_PER_CLUSTER))]
    clusters, parts = zip(*levels[: 2 if num_clusters > 2 else 1], strict=True)
    return LevelsConfig(clusters=clusters, split=parts)


class LevelPlan(NamedTuple):
    """One level to be made."""

    num_clusters: int
    rounds: int
    nearest: int
    split: int = 0


def cluster_levels(points: Points, plan: list[LevelPlan], config: KMeansConfig, seed: int, folder: Path) -> list[Level]:
    """All levels, finest first, kept in the folder as level-N.npz with level-N.centroids.npy and found again there."""
    levels, planned = list[Level](), points.num_rows
    for number, level_plan in enumerate(plan, start=1):
        path = folder / f"level-{number}.npz"
        if not path.exists():
            _cluster_level(points, _scaled(level_plan, points.num_rows, planned), config, seed + number, path)
        level = read_level(path)
        logger.info("level=%d clusters=%d points=%d", number, len(level.centroids), points.num_rows)
        levels.append(level)
        points, planned = _points_above(path, points), level_plan.num_clusters
    return levels


def _scaled(plan: LevelPlan, num_points: int, planned: int) -> LevelPlan:
    """As many clusters a point as planned, where the level below was split and made fewer of them."""
    if num_points >= planned:
        return plan
    num_clusters = max(1, plan.num_clusters * num_points // planned)
    return plan._replace(num_clusters=num_clusters, split=plan.split if num_clusters >= plan.split else 0)


def _cluster_level(points: Points, plan: LevelPlan, config: KMeansConfig, seed: int, path: Path) -> None:
    if plan.split > 1:
        cluster_in_two_stages(points, plan.num_clusters // plan.split, plan.split, config, seed, path)
        return
    centroids = kmeans(points, plan.num_clusters, config, seed, _state_path(path, 0))
    for step in range(1, plan.rounds + 1):
        labels, distances = assign(points, centroids)
        resampled = points.subset(nearest_rows(labels, distances, plan.nearest))
        centroids = kmeans(resampled, plan.num_clusters, config, seed + 1000 * step, _state_path(path, step))
    write_level(path, [centroids], *assign(points, centroids))


def _points_above(path: Path, points: Points) -> Points:
    """The centroids of a level as points: scanned by this process where they are few, otherwise by the workers."""
    centroids = StoredCentroids(centroids_path(path), points.unit)
    if centroids.num_rows * centroids.dim <= VALUES_IN_MEMORY:
        return points_in_memory(np.asarray(read_level(path).centroids), points.unit, points.engine)
    return Points(centroids, points.workers, engine=points.engine)


def nearest_rows(
    labels: Int32[np.ndarray, " n"], distances: Float32[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, " m"]:
    """The rows among the `count` nearest to their centroid, ascending; ties go to the lower row."""
    return np.flatnonzero(rank_in_groups(labels, distances) < count)


def cluster_of_rows(levels: list[Level]) -> list[Int32[np.ndarray, " n"]]:
    """Per level, the cluster of every row: labels followed upwards."""
    labels = [levels[0].labels]
    for level in levels[1:]:
        labels.append(level.labels[labels[-1]])
    return labels


def _state_path(path: Path, step: int) -> Path:
    return path.with_name(f"{path.stem}.round-{step}.npz")
