"""Two-stage k-means for millions of centroids: each cluster of the first stage is split again.

Vo et al. 2024 (arXiv:2405.15613) make 10 M centroids as 100 k x 100. The label of a point is
exactly the nearest centroid within its first-stage cluster; another first-stage cluster may have a
nearer one. One worker splits a cluster, with a seed of the cluster's own, so the result is the same
for any number of workers. Finished ranges of clusters are files, which a killed run reads again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from cluster.files import replacing
from curation.clusters.config import KMeansConfig
from curation.clusters.groups import even_parts, rows_by_cluster
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.levels import write_level
from curation.clusters.scan import InProcess, Points
from curation.clusters.seeding import choose_seeds
from curation.clusters.spans import Span
from curation.clusters.vectors import ArrayVectors

FEWEST_RANGES = 64
RANGE_ROWS = 1 << 20  # of a range of clusters: one file, and one piece of work for a worker
SEED_STRIDE = 1 << 32  # above any number of clusters: no two clusters of any runs share a seed

# 512 MB of float32 for the points of one cluster. Those of a larger cluster are read from the
# shards again in each iteration.
VALUES_IN_MEMORY = 1 << 27


class SplitClusters(NamedTuple):
    """Some first-stage clusters after their split.

    Their centroids lie one after another, and labels index all of these. Points are in the order of
    their first-stage cluster, then row.
    """

    centroids: Float32[np.ndarray, "k d"]
    labels: Int32[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]


def cluster_in_two_stages(
    points: Points, num_clusters: int, split: int, config: KMeansConfig, seed: int, path: Path
) -> None:
    """Write a level of `num_clusters` first-stage clusters with `split` centroids each to `path`.

    A cluster with fewer distinct points than `split` has one centroid per distinct point, so that
    the level may have fewer than `num_clusters` * `split` centroids.
    """
    checkpoint = path.with_name(f"{path.stem}.round-0.npz")
    first = kmeans(points, num_clusters, config, seed, checkpoint)
    members, offsets = rows_by_cluster(assign(points, first)[0], num_clusters)

    ranges = even_parts(offsets, max(FEWEST_RANGES, points.num_rows // RANGE_ROWS))
    missing = [clusters for clusters in ranges if not _range_path(path, clusters).exists()]
    shared = (split_clusters, members, offsets, split, config, seed)
    for clusters, result in points.scan_items("apply", missing, *shared):
        with replacing(_range_path(path, clusters)) as temporary, temporary.open("wb") as file:
            np.savez(file, **SplitClusters(*result)._asdict())

    labels = np.empty(points.num_rows, np.int32)
    distances = np.empty(points.num_rows, np.float32)
    num_before = 0

    # Each range labels its own centroids from 0. Added to them: the centroids of earlier ranges.
    for clusters in ranges:
        done = _read_range(path, clusters)
        rows = members[offsets[clusters[0]] : offsets[clusters[1]]]
        labels[rows] = done.labels + np.int32(num_before)
        distances[rows] = done.distances
        num_before += len(done.centroids)

    write_level(path, _centroids(path, ranges), labels, distances)


def split_clusters(
    clusters: Span,
    points: Points,
    members: Int64[np.ndarray, " n"],
    offsets: Int64[np.ndarray, " k_plus_1"],
    split: int,
    config: KMeansConfig,
    seed: int,
) -> SplitClusters:
    """Split each of a range of clusters by k-means on its own points: the work of one worker.

    `members` and `offsets` are those of `rows_by_cluster`.
    """
    done = []
    num_before = 0
    for cluster in range(*clusters):
        rows = members[offsets[cluster] : offsets[cluster + 1]]
        if not len(rows):
            continue
        seed_of_cluster = seed * SEED_STRIDE + cluster
        result = _split(_points_of(points, rows), min(split, len(rows)), config, seed_of_cluster)
        done.append(result._replace(labels=result.labels + np.int32(num_before)))
        num_before += len(result.centroids)

    if not done:
        no_centroids = np.empty((0, points.vectors.dim), np.float32)
        return SplitClusters(no_centroids, np.empty(0, np.int32), np.empty(0, np.float32))

    return SplitClusters(*(np.concatenate(columns) for columns in zip(*done, strict=True)))


def _points_of(points: Points, rows: Int64[np.ndarray, " n"]) -> Points:
    """The points of one cluster, in memory if they are few."""
    if len(rows) * points.vectors.dim > VALUES_IN_MEMORY:
        return points.subset(rows)
    vectors = ArrayVectors(points.gather(rows), points.unit)
    return Points(vectors, InProcess(), engine=points.engine)


def _split(points: Points, split: int, config: KMeansConfig, seed: int) -> SplitClusters:
    """k-means from distinct k-means++ seeds: at most `split`, fewer if there are fewer points."""
    seeds = choose_seeds(points, split, "k-means++", config.sample_per_centroid, seed)
    # Seeds repeat where distinct points ran out.
    distinct = np.unique(seeds, axis=0)
    centroids = kmeans(points, len(distinct), config, seed, first=distinct)
    return SplitClusters(centroids, *assign(points, centroids))


def _centroids(path: Path, ranges: list[Span]) -> Iterator[Float32[np.ndarray, "k d"]]:
    for clusters in ranges:
        yield _read_range(path, clusters).centroids


def _range_path(path: Path, clusters: Span) -> Path:
    return path.with_name(f"{path.stem}.part-{clusters[0]}-{clusters[1]}.npz")


def _read_range(path: Path, clusters: Span) -> SplitClusters:
    with np.load(_range_path(path, clusters)) as stored:
        return SplitClusters(stored["centroids"], stored["labels"], stored["distances"])
