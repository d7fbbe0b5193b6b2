"""Settings of k-means and of the hierarchy of clusters, and the plan of its levels for a number of
rows."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

ROWS_PER_CLUSTER = 40
CLUSTERS_PER_CLUSTER = 10
PARTS = 100

# Clusters. Seeding as many takes the driver minutes, and the time grows with their square.
LARGEST_STAGE = 50_000

Engine = Literal["auto", "onnxruntime", "onednn", "faiss", "torch"]
"""What multiplies rows by centroids: 8-bit integers by onnxruntime or oneDNN, float32 by FAISS's
exact search, or bfloat16 by torch (on a GPU).
"""

Seeding = Literal["k-means++", "k-means||", "random"]


@dataclass(frozen=True)
class KMeansConfig:
    iterations: int = 25
    """Most Lloyd iterations per clustering."""
    tolerance: float = 1e-4
    """Stop when the objective falls by less than this share in one iteration."""
    seeding: Seeding = "k-means++"
    """How the first centroids are chosen: k-means++ and random from a sample, k-means|| from all
    rows."""
    sample_per_centroid: int = 16
    """Rows in that sample, per centroid."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(
                f"kmeans.iterations is {self.iterations}: at least 1 is needed; 10 to 50 are usual"
            )


@dataclass(frozen=True)
class LevelsConfig:
    clusters: tuple[int, ...] = ()
    """Clusters per level, finest first. Empty: one per 40 distinct rows on the first level and one
    per 10 of those on the second; more than 50,000 are made in two stages."""
    resampling: tuple[int, ...] = ()
    """Resampling rounds per level. Empty: none on the first level, two on the others."""
    nearest: tuple[int, ...] = ()
    """Points per cluster that a resampling round clusters again. Empty: 4 on each level."""
    split: tuple[int, ...] = ()
    """Two-stage clustering: sub-clusters per first-stage cluster, one number per level (10 M
    clusters as 100 k x 100). 0: a single stage. Empty: chosen with the number of clusters.
    """

    def __post_init__(self) -> None:
        for name in ("resampling", "nearest", "split"):
            values = getattr(self, name)
            if values and len(values) != len(self.clusters):
                raise ValueError(
                    f"levels.{name} has {len(values)} values for {len(self.clusters)} levels: one "
                    "per level of levels.clusters is needed; leave it empty for the default"
                )

        rounds_of_level = self.resampling or (0,) * len(self.clusters)
        for clusters, split, rounds in zip(
            self.clusters, self.split, rounds_of_level, strict=False
        ):
            if split > 1 and (clusters % split or rounds):
                raise ValueError(
                    f"levels.split is {split} on a level of {clusters} clusters with {rounds} "
                    "resampling rounds: split must divide the clusters, and a level that is "
                    "split is not resampled; choose other numbers"
                )

        if any(
            upper >= lower for lower, upper in zip(self.clusters, self.clusters[1:], strict=False)
        ):
            raise ValueError(
                f"levels.clusters is {self.clusters}: every level must have fewer clusters than "
                "the one before; order them from finest to coarsest"
            )

    def resolve(self, num_rows: int) -> list["LevelPlan"]:
        """The plan of every level for a number of rows."""
        if not self.clusters:
            return automatic_levels(*automatic_clusters(num_rows)).resolve(num_rows)

        split = self.split or (0,) * len(self.clusters)
        rounds = self.resampling or tuple(map(_default_rounds, range(len(split)), split))
        nearest = self.nearest or (4,) * len(self.clusters)
        levels = zip(self.clusters, rounds, nearest, split, strict=True)
        return [LevelPlan(*values) for values in levels]


def _default_rounds(level: int, split: int) -> int:
    """Rows keep their density, the levels above are resampled twice; a split level cannot be."""
    return 2 if level > 0 and split < 2 else 0


def automatic_clusters(num_points: int, split: int = 0) -> tuple[int, int]:
    """One cluster per 40 points, and the number of sub-clusters of each first-stage cluster."""
    return _in_stages(max(2, num_points // ROWS_PER_CLUSTER), split)


def _in_stages(num_clusters: int, split: int = 0) -> tuple[int, int]:
    """A multiple of `split`, and `split`: if it is 0, as large as a first stage of at most
    LARGEST_STAGE clusters needs it to be."""
    if not split and num_clusters > LARGEST_STAGE:
        split = max(PARTS, -(-num_clusters // LARGEST_STAGE))
    parts = max(1, split)
    return max(1, num_clusters // parts) * parts, split


def automatic_levels(num_clusters: int, split: int = 0) -> LevelsConfig:
    """A second level of one cluster per 10 of the first, unless the first has two at most."""
    levels = [(num_clusters, split)]
    if num_clusters > 2:
        levels.append(_in_stages(max(2, num_clusters // CLUSTERS_PER_CLUSTER)))
    clusters, splits = zip(*levels, strict=True)
    return LevelsConfig(clusters=clusters, split=splits)


class LevelPlan(NamedTuple):
    """One level to be made."""

    num_clusters: int
    rounds: int
    nearest: int
    split: int = 0
