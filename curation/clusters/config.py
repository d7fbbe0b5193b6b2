"""Settings of k-means and of the hierarchy of clusters, and the plan of its levels."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge

from cluster.ranges import check_ranges

# On a pool with a known truth, where both sides must keep a pair, finer clusters gave more even
# concepts than 40 and 10: docs/benchmarks.md has the figures.
ROWS_PER_CLUSTER = 10
CLUSTERS_PER_CLUSTER = 4
PARTS = 100  # sub-clusters per first-stage cluster, as in Vo et al. 2024 (10 M = 100 k x 100)

# Most clusters of a single stage. The driver needs minutes to seed this many, and the time grows
# with the square of their number.
LARGEST_STAGE = 50_000

Engine = Literal["auto", "onnxruntime", "faiss", "torch"]
"""What multiplies rows by centroids.

onnxruntime: 8-bit integers; faiss: float32, by its exact search; torch: bfloat16 on a
GPU; auto: what is fastest on this machine. The labels are the same with each of them.
"""

Seeding = Literal["k-means++", "k-means||", "random"]


@dataclass(frozen=True)
class KMeansConfig:
    """One clustering: its seeding, its passes, and what computes distances."""

    iterations: Annotated[int, Ge(1)] = 25
    """Maximum number of Lloyd iterations per clustering."""
    tolerance: float = 1e-4
    """Stop when one iteration reduces the objective by less than this share."""
    seeding: Seeding = "k-means++"
    """How the first centroids are chosen: k-means++ and random use a sample of the rows, k-means||
    uses all of them."""
    sample_per_centroid: Annotated[int, Ge(1)] = 16
    """Size of that sample, in rows per centroid."""

    def __post_init__(self) -> None:
        check_ranges(self, "kmeans")


@dataclass(frozen=True)
class LevelsConfig:
    """A hierarchy of clusters, level by level; each level clusters the centroids of the one below."""

    clusters: tuple[int, ...] = ()
    """Clusters per level, finest first. Empty: one per 10 distinct rows on the first level, and one
    per 4 of those clusters on the second; a level of more than 50,000 is made in two stages."""
    resampling: tuple[int, ...] = ()
    """Resampling rounds per level. Empty: none on the first level, two on the others."""
    nearest: tuple[int, ...] = ()
    """Points per cluster that a resampling round uses: the nearest to the centroid. Empty: 4 on
    each level."""
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

        # An empty `split` ends this loop at once: nothing is split, so nothing needs a check.
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
        """The plan of every level, finest first, for a number of distinct rows."""
        if not self.clusters:
            return automatic_levels(*automatic_clusters(num_rows)).resolve(num_rows)

        split = self.split or (0,) * len(self.clusters)
        rounds = self.resampling or tuple(map(_default_rounds, range(len(split)), split))
        nearest = self.nearest or (4,) * len(self.clusters)
        levels = zip(self.clusters, rounds, nearest, split, strict=True)
        return [LevelPlan(*values) for values in levels]


def _default_rounds(level: int, split: int) -> int:
    """Resampling rounds: none for the rows themselves, none where a level is split, else two."""
    return 2 if level > 0 and split < 2 else 0


def automatic_clusters(num_points: int) -> tuple[int, int]:
    """One cluster per 10 points, and the number of sub-clusters of each first-stage cluster."""
    return _in_stages(max(2, num_points // ROWS_PER_CLUSTER))


def _in_stages(num_clusters: int, split: int = 0) -> tuple[int, int]:
    """(number of clusters, split), with the number rounded down to a multiple of the split.

    A split of 0 is replaced where a single stage would have more than LARGEST_STAGE clusters.
    """
    if not split and num_clusters > LARGEST_STAGE:
        # The division rounds up, so that the first stage has LARGEST_STAGE clusters at most.
        split = max(PARTS, -(-num_clusters // LARGEST_STAGE))
    parts = max(1, split)
    return max(1, num_clusters // parts) * parts, split


def automatic_levels(num_clusters: int, split: int = 0) -> LevelsConfig:
    """Two levels, the second with one cluster per 4 of the first; one level if it has only two."""
    levels = [(num_clusters, split)]
    if num_clusters > 2:
        levels.append(_in_stages(max(2, num_clusters // CLUSTERS_PER_CLUSTER)))
    clusters, splits = zip(*levels, strict=True)
    return LevelsConfig(clusters=clusters, split=splits)


class LevelPlan(NamedTuple):
    """One level to be made. The fields are those of LevelsConfig, for this level alone."""

    num_clusters: int
    rounds: int
    nearest: int
    split: int = 0
