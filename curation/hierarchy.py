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

from cluster.files import replacing
from curation.kmeans import KMeansConfig, assign, kmeans
from curation.scan import Points, points_in_memory

ROWS_PER_CLUSTER = 40
CLUSTERS_PER_CLUSTER = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LevelsConfig:
    clusters: tuple[int, ...] = ()
    """Clusters per level, finest first; empty: one per 40 rows, then one per 10 clusters."""
    resampling: tuple[int, ...] = ()
    """Resampling rounds per level; empty: none on the first level, two on the others."""
    nearest: tuple[int, ...] = ()
    """Points per cluster that a resampling round clusters anew; empty: 4 on each level."""

    def __post_init__(self) -> None:
        for name in ("resampling", "nearest"):
            values = getattr(self, name)
            if values and len(values) != len(self.clusters):
                raise ValueError(
                    f"levels.{name} has {len(values)} values for {len(self.clusters)} levels: one per level of "
                    "levels.clusters is needed; leave it empty for the default"
                )
        if any(upper >= lower for lower, upper in zip(self.clusters, self.clusters[1:], strict=False)):
            raise ValueError(
                f"levels.clusters is {self.clusters}: every level must have fewer clusters than the one before; "
                "order them from finest to coarsest"
            )

    def resolve(self, num_rows: int) -> list["LevelPlan"]:
        """The plan of every level for a number of rows."""
        first = max(2, num_rows // ROWS_PER_CLUSTER)
        clusters = self.clusters or (first, max(2, first // CLUSTERS_PER_CLUSTER))[: 2 if first > 2 else 1]
        rounds = self.resampling or (0, *([2] * (len(clusters) - 1)))
        nearest = self.nearest or (4,) * len(clusters)
        return [LevelPlan(*values) for values in zip(clusters, rounds, nearest, strict=True)]


class LevelPlan(NamedTuple):
    """One level to be made."""

    num_clusters: int
    rounds: int
    nearest: int


class Level(NamedTuple):
    """One finished level: centroids, and for each point of the level below its cluster and squared distance."""

    centroids: Float32[np.ndarray, "k d"]
    labels: Int32[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]


def cluster_levels(
    points: Points, plan: list[LevelPlan], config: KMeansConfig, seed: int, folder: Path | None = None
) -> list[Level]:
    """All levels, finest first; with a folder each is kept there as level-N.npz and found again."""
    levels: list[Level] = []
    for number, level_plan in enumerate(plan, start=1):
        path = folder / f"level-{number}.npz" if folder else None
        level = read_level(path) if path and path.exists() else None
        if level is None:
            level = _cluster_level(points, level_plan, config, seed + number, path)
            if path:
                _write_level(path, level)
        logger.info("level=%d clusters=%d points=%d", number, len(level.centroids), points.num_rows)
        levels.append(level)
        points = points_in_memory(level.centroids, points.unit, points.engine)
    return levels


def _cluster_level(points: Points, plan: LevelPlan, config: KMeansConfig, seed: int, path: Path | None) -> Level:
    state = _state_path(path, 0)
    centroids = kmeans(points, plan.num_clusters, config, seed, state)
    for step in range(1, plan.rounds + 1):
        labels, distances = assign(points, centroids)
        resampled = points.subset(nearest_rows(labels, distances, plan.nearest))
        centroids = kmeans(resampled, plan.num_clusters, config, seed + 1000 * step, _state_path(path, step))
    return Level(centroids, *assign(points, centroids))


def nearest_rows(
    labels: Int32[np.ndarray, " n"], distances: Float32[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, " m"]:
    """The rows among the `count` nearest to their centroid, ascending; ties go to the lower row."""
    order = np.lexsort((distances, labels))
    return np.sort(order[rank_in_group(labels[order]) < count])


def rank_in_group(sorted_labels: Int32[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Position of each entry within its run of equal labels."""
    positions = np.arange(len(sorted_labels))
    starts = np.r_[True, sorted_labels[1:] != sorted_labels[:-1]][: len(sorted_labels)]
    return positions - np.maximum.accumulate(np.where(starts, positions, 0))


def cluster_of_rows(levels: list[Level]) -> list[Int32[np.ndarray, " n"]]:
    """Per level, the cluster of every row: labels followed upwards."""
    labels = [levels[0].labels]
    for level in levels[1:]:
        labels.append(level.labels[labels[-1]])
    return labels


def read_level(path: Path) -> Level:
    """A level that `cluster_levels` wrote."""
    with np.load(path) as stored:
        return Level(stored["centroids"], stored["labels"], stored["distances"])


def _write_level(path: Path, level: Level) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **level._asdict())
    for state in path.parent.glob(f"{path.stem}.round-*.npz"):
        state.unlink()


def _state_path(path: Path | None, step: int) -> Path | None:
    return path.with_name(f"{path.stem}.round-{step}.npz") if path else None
