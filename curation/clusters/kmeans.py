"""Exact Lloyd k-means: workers receive the centroids and return sums and counts of their rows.

Labels equal those of a float64 brute force (nearest.py), and sums are float64 in row order. The
result therefore has the same bits for any engine, any number of workers and any cut into shards. A
killed run continues from its last iteration to the same bits. Empty clusters are refilled with the
rows that are farthest from their centroids.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from cluster.files import replacing
from curation.clusters.config import KMeansConfig
from curation.clusters.kernels import add_rows
from curation.clusters.scan import Far, Points
from curation.clusters.seeding import SAME_POINT, choose_seeds
from curation.clusters.vectors import to_unit

FEWER_CLUSTERS = "lower curate.levels.clusters (images) or curate.text.levels.clusters (captions)"

logger = logging.getLogger(__name__)


class Clustering(NamedTuple):
    """A clustering after some iterations."""

    centroids: Float32[np.ndarray, "k d"]
    objectives: tuple[float, ...]
    """Per iteration, the sum of squared distances to the centroids that it started from."""


def kmeans(
    points: Points,
    num_clusters: int,
    config: KMeansConfig,
    seed: int,
    checkpoint: Path | None = None,
    first: Float32[np.ndarray, "k d"] | None = None,
) -> Float32[np.ndarray, "k d"]:
    """The centroids of the points, of unit length if the points are.

    Starts from the `first` centroids, or from seeds that are chosen by `config.seeding`. Each
    iteration is written to the `checkpoint` path, and a file that a killed run left there is
    continued. Raises ValueError when there are fewer distinct points than clusters.
    """
    if not 1 <= num_clusters <= points.num_rows:
        raise ValueError(
            f"{num_clusters} clusters of {points.num_rows} points: 1 to {points.num_rows} are "
            f"possible; {FEWER_CLUSTERS}"
        )

    state = _read(checkpoint)
    if state is None:
        if first is None:
            first = choose_seeds(
                points, num_clusters, config.seeding, config.sample_per_centroid, seed
            )
        state = Clustering(first, ())

    while not _is_finished(state.objectives, config):
        state = _iterate(points, state)
        if checkpoint is not None:
            _write(checkpoint, state)
        iteration = len(state.objectives)
        objective = state.objectives[-1]
        logger.debug("kmeans k=%d iteration=%d objective=%g", num_clusters, iteration, objective)

    return state.centroids


def assign(
    points: Points, centroids: Float32[np.ndarray, "k d"]
) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """(labels, distances): the nearest centroid of every point and the squared distance to it."""
    labels = np.empty(points.num_rows, np.int32)
    distances = np.empty(points.num_rows, np.float32)
    for (start, stop), (span_labels, span_distances) in points.scan("labels", centroids):
        labels[start:stop] = span_labels
        distances[start:stop] = span_distances
    return labels, distances


def _is_finished(objectives: tuple[float, ...], config: KMeansConfig) -> bool:
    if len(objectives) >= config.iterations:
        return True
    if len(objectives) < 2:
        return False
    before, after = objectives[-2:]
    return before - after <= config.tolerance * abs(before)


def _iterate(points: Points, state: Clustering) -> Clustering:
    """One Lloyd iteration: the mean of the rows nearest to each centroid."""
    centroids = state.centroids
    sums = np.zeros(centroids.shape)
    counts = np.zeros(len(centroids), np.int64)
    squares = 0.0
    far = []

    # Floating-point sums depend on their order. Spans arrive in row order, so the sums have the
    # same bits for any number of workers.
    for _, span in points.scan("sums", centroids):
        add_rows(span.vectors, span.labels, sums)
        counts[span.labels] += span.counts
        squares += span.squares
        far.append(span.far)

    objective = _objective(sums, counts, squares, centroids)
    # In place, because sums of millions of centroids are large; an empty cluster stays at zero.
    sums /= np.maximum(counts, 1)[:, None]
    updated = sums.astype(np.float32)
    if points.unit:
        updated = to_unit(updated)

    # An empty cluster has no mean: it stays where it is unless a far row replaces it.
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        updated[empty] = centroids[empty]
        _refill(points, centroids, updated, empty, far)

    return Clustering(updated, (*state.objectives, objective))


def _objective(
    sums: Float64[np.ndarray, "k d"],
    counts: Int64[np.ndarray, " k"],
    squares: float,
    centroids: Float32[np.ndarray, "k d"],
) -> float:
    """The sum of squared distances from sums that are known already, without a pass over rows.

    Over the n rows x of a cluster c, |x - c|^2 adds up to |x|^2 - 2 c.(sum of x) + n |c|^2.
    """
    exact = centroids.astype(np.float64)
    products = np.einsum("kd,kd->", exact, sums)
    return float(squares - 2 * products + counts @ np.einsum("kd,kd->k", exact, exact))


def _refill(
    points: Points,
    centroids: Float32[np.ndarray, "k d"],
    updated: Float32[np.ndarray, "k d"],
    empty: Int64[np.ndarray, " e"],
    far: list[Far],
) -> None:
    """Move empty clusters to far rows, each to a different point; writes to `updated`.

    Where there are too few such rows, the other empty clusters wait for the next iteration.
    """
    chosen = _distinct_far(points, far)
    if not len(chosen):
        # None among the sampled rows: search all rows. Far rows may repeat one another, so four
        # per empty cluster are asked for.
        scanned = points.scan("farthest", centroids, 4 * len(empty))
        chosen = _distinct_far(points, [span_far for _, span_far in scanned])
    if not len(chosen):
        raise ValueError(
            f"{len(centroids)} clusters exceed the number of distinct points "
            f"({len(centroids) - len(empty)} among {points.num_rows}): each cluster needs a point "
            f"of its own; {FEWER_CLUSTERS}"
        )

    chosen = chosen[: len(empty)]
    updated[empty[: len(chosen)]] = chosen


def _distinct_far(points: Points, far: list[Far]) -> Float32[np.ndarray, "n d"]:
    """Vectors of far rows, farthest first: no repetitions, and none that lies on its centroid."""
    together = Far(*(np.concatenate(parts) for parts in zip(*far, strict=True)))
    together = together.farthest(len(together.rows))
    vectors = points.gather(together.rows)

    is_apart = together.distances > SAME_POINT * np.einsum("nd,nd->n", vectors, vectors)
    vectors = vectors[is_apart]

    # np.unique sorts the vectors by value. The positions of the first occurrences, sorted, restore
    # the order by distance.
    _, first = np.unique(vectors, axis=0, return_index=True)
    return vectors[np.sort(first)]


def _read(checkpoint: Path | None) -> Clustering | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    with np.load(checkpoint) as stored:
        return Clustering(stored["centroids"], tuple(stored["objectives"].tolist()))


def _write(checkpoint: Path, state: Clustering) -> None:
    with replacing(checkpoint) as path, path.open("wb") as file:
        np.savez(file, centroids=state.centroids, objectives=np.array(state.objectives))
