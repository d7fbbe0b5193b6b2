"""Two-stage k-means for millions of centroids: k1 clusters of all points, then each split in k2 by its own points.

Vo et al. 2024 (arXiv:2405.15613) make 10 M centroids as 100 k x 100. A point's label is its nearest centroid among
those of its first-stage cluster, exactly; another first-stage cluster may have a nearer one. Each cluster is split with
a seed of its own by one worker, so the result is the same for any workers; finished parts are kept and found again.
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

FEWEST_PARTS = 64
SEED_STRIDE = 1 << 32  # no two clusters of any two seeds share one
PART_ROWS = 1 << 20
VALUES_IN_MEMORY = 1 << 27  # of one cluster's points, 512 MB; larger ones are read from the shards in each iteration


class Part(NamedTuple):
    """Some first-stage clusters, split: their centroids one after another, labels into these."""

    centroids: Float32[np.ndarray, "k d"]
    labels: Int32[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]


def cluster_in_two_stages(
    points: Points, num_clusters: int, split: int, config: KMeansConfig, seed: int, path: Path
) -> None:
    """Write a level of `num_clusters` first-stage clusters with up to `split` centroids each to `path`.

    A cluster of fewer distinct points gets as many centroids as it has of those.
    """
    first = kmeans(points, num_clusters, config, seed, path.with_name(f"{path.stem}.round-0.npz"))
    members, offsets = rows_by_cluster(assign(points, first)[0], num_clusters)
    parts = even_parts(offsets, max(FEWEST_PARTS, points.num_rows // PART_ROWS))
    missing = [part for part in parts if not _part_path(path, part).exists()]
    shared = (split_clusters, members, offsets, split, config, seed)
    for part, result in points.scan_items("apply", missing, *shared):
        with replacing(_part_path(path, part)) as temporary, temporary.open("wb") as file:
            np.savez(file, **Part(*result)._asdict())
    labels, distances = np.empty(points.num_rows, np.int32), np.empty(points.num_rows, np.float32)
    num_before = 0
    for part in parts:
        found, rows = _read_part(path, part), members[offsets[part[0]] : offsets[part[1]]]
        labels[rows], distances[rows] = found.labels + np.int32(num_before), found.distances
        num_before += len(found.centroids)
    write_level(path, _centroids(path, parts), labels, distances)


def split_clusters(
    clusters: Span,
    points: Points,
    members: Int64[np.ndarray, " n"],
    offsets: Int64[np.ndarray, " k_plus_1"],
    split: int,
    config: KMeansConfig,
    seed: int,
) -> Part:
    """Each cluster of a range by k-means on its own points: what one worker does."""
    done, num_before = [], 0
    for cluster in range(*clusters):
        rows = members[offsets[cluster] : offsets[cluster + 1]]
        if len(rows):
            part = _split(_points_of(points, rows), min(split, len(rows)), config, seed * SEED_STRIDE + cluster)
            done.append(part._replace(labels=part.labels + np.int32(num_before)))
            num_before += len(part.centroids)
    if not done:
        empty = np.empty(0, np.float32)
        return Part(np.empty((0, points.vectors.dim), np.float32), np.empty(0, np.int32), empty)
    return Part(*(np.concatenate(columns) for columns in zip(*done, strict=True)))


def _points_of(points: Points, rows: Int64[np.ndarray, " n"]) -> Points:
    """The points of one cluster, in memory where they are few."""
    if len(rows) * points.vectors.dim > VALUES_IN_MEMORY:
        return points.subset(rows)
    return Points(ArrayVectors(points.gather(rows), points.unit), InProcess(), engine=points.engine)


def _split(points: Points, split: int, config: KMeansConfig, seed: int) -> Part:
    """k-means++ seeds lie apart, or repeat where there are no more distinct points: then fewer are used."""
    seeds = np.unique(choose_seeds(points, split, "k-means++", config.sample_per_centroid, seed), axis=0)
    centroids = kmeans(points, len(seeds), config, seed, first=seeds)
    return Part(centroids, *assign(points, centroids))


def _centroids(path: Path, parts: list[Span]) -> Iterator[Float32[np.ndarray, "k d"]]:
    for part in parts:
        yield _read_part(path, part).centroids


def _part_path(path: Path, part: Span) -> Path:
    return path.with_name(f"{path.stem}.part-{part[0]}-{part[1]}.npz")


def _read_part(path: Path, part: Span) -> Part:
    with np.load(_part_path(path, part)) as stored:
        return Part(stored["centroids"], stored["labels"], stored["distances"])
