"""Exact Lloyd k-means over points that are read in spans: centroids go out, sums and counts come back.

Labels are those of a float64 brute force (curation/clusters/nearest.py), sums are float64 in row order, so the result
is the same for any number of workers and any shard layout, and a run that was killed continues from its last iteration
to the same bits. Empty clusters are refilled with the rows farthest from their centroids.
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

REMEDY = "lower curate.levels.clusters (images) or curate.text.clusters (captions)"

logger = logging.getLogger(__name__)


class State(NamedTuple):
    """A clustering after some iterations."""

    centroids: Float32[np.ndarray, "k d"]
    objectives: tuple[float, ...]


def kmeans(
    points: Points,
    num_clusters: int,
    config: KMeansConfig,
    seed: int,
    checkpoint: Path | None = None,
    first: Float32[np.ndarray, "k d"] | None = None,
) -> Float32[np.ndarray, "k d"]:
    """Centroids of the points; with a `checkpoint` path, continues what an interrupted run left there.

    Starts from the `first` centroids when given, otherwise from seeds. Raises ValueError when there are fewer distinct
    points than clusters.
    """
    if not 1 <= num_clusters <= points.num_rows:
        raise ValueError(
            f"{num_clusters} clusters of {points.num_rows} points: 1 to {points.num_rows} are possible; {REMEDY}"
        )
    state = _read(checkpoint)
    if state is None:
        if first is None:
            first = choose_seeds(points, num_clusters, config.seeding, config.sample_per_centroid, seed)
        state = State(first, ())
    while not _is_finished(state.objectives, config):
        state = _iterate(points, state)
        if checkpoint is not None:
            _write(checkpoint, state)
        logger.debug("kmeans k=%d iteration=%d objective=%g", num_clusters, len(state.objectives), state.objectives[-1])
    return state.centroids


def assign(
    points: Points, centroids: Float32[np.ndarray, "k d"]
) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The nearest centroid of every point and the squared distance to it."""
    labels, distances = np.empty(points.num_rows, np.int32), np.empty(points.num_rows, np.float32)
    for (start, stop), (span_labels, span_distances) in points.scan("labels", centroids):
        labels[start:stop], distances[start:stop] = span_labels, span_distances
    return labels, distances


def _is_finished(objectives: tuple[float, ...], config: KMeansConfig) -> bool:
    if len(objectives) >= config.iterations:
        return True
    return len(objectives) > 1 and objectives[-2] - objectives[-1] <= config.tolerance * abs(objectives[-2])


def _iterate(points: Points, state: State) -> State:
    centroids = state.centroids
    vectors, counts, squares, far = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64), 0.0, []
    for _, part in points.scan("sums", centroids):
        add_rows(part.vectors, part.labels, vectors)
        counts[part.labels] += part.counts
        squares += part.squares
        far.append(part.far)
    objective = _objective(vectors, counts, squares, centroids)
    vectors /= np.maximum(counts, 1)[:, None]
    updated = vectors.astype(np.float32)
    if points.unit:
        updated = to_unit(updated)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        updated[empty] = centroids[empty]
        _refill(points, centroids, updated, empty, far)
    return State(updated, (*state.objectives, objective))


def _objective(
    vectors: Float64[np.ndarray, "k d"],
    counts: Int64[np.ndarray, " k"],
    squares: float,
    centroids: Float32[np.ndarray, "k d"],
) -> float:
    """Sum of squared distances, without another pass: |x|^2 - 2 c.(sum of x) + n |c|^2."""
    exact = centroids.astype(np.float64)
    products = np.einsum("kd,kd->", exact, vectors)
    return float(squares - 2 * products + counts @ np.einsum("kd,kd->k", exact, exact))


def _refill(
    points: Points,
    centroids: Float32[np.ndarray, "k d"],
    updated: Float32[np.ndarray, "k d"],
    empty: Int64[np.ndarray, " e"],
    far: list[Far],
) -> None:
    """Put empty clusters on far rows, each on a different point; those left over wait for the next iteration."""
    chosen = _distinct_far(points, far)
    if not len(chosen):
        found = [result for _, result in points.scan("farthest", centroids, 4 * len(empty))]
        chosen = _distinct_far(points, found)
    if not len(chosen):
        raise ValueError(
            f"{len(centroids)} clusters exceed the number of distinct points ({len(centroids) - len(empty)} among "
            f"{points.num_rows}): each cluster needs a point of its own; {REMEDY}"
        )
    chosen = chosen[: len(empty)]
    updated[empty[: len(chosen)]] = chosen


def _distinct_far(points: Points, far: list[Far]) -> Float32[np.ndarray, "n d"]:
    """Different vectors that are not on their centroid, farthest first."""
    together = Far(*(np.concatenate(parts) for parts in zip(*far, strict=True)))
    together = together.farthest(len(together.rows))
    vectors = points.gather(together.rows)
    vectors = vectors[together.distances > SAME_POINT * np.einsum("nd,nd->n", vectors, vectors)]
    _, first = np.unique(vectors, axis=0, return_index=True)
    return vectors[np.sort(first)]


def _read(checkpoint: Path | None) -> State | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    with np.load(checkpoint) as stored:
        return State(stored["centroids"], tuple(stored["objectives"].tolist()))


def _write(checkpoint: Path, state: State) -> None:
    with replacing(checkpoint) as path, path.open("wb") as file:
        np.savez(file, centroids=state.centroids, objectives=np.array(state.objectives))
