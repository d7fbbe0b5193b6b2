"""The first centroids of a clustering: rows of the data, spread out.

k-means++ (Arthur and Vassilvitskii 2007) on a sample; k-means|| (Bahmani et al. 2012) in a few passes over all rows
when a sample would miss too much; random rows. All depends on the seed and on the rows in order only.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from curation.clusters.config import Seeding
from curation.clusters.kernels import squared_distances
from curation.clusters.nearest import Assigner
from curation.clusters.scan import Far, Points

SAME_POINT = 1e-6  # squared distance, relative to the squared length, below which float32 cannot tell points apart
ROUNDS = 4
SEEDS_PER_DRAW = 8
BLOCK_ROWS = 1024


def choose_seeds(
    points: Points, num_clusters: int, seeding: Seeding, sample_per_centroid: int, seed: int
) -> Float32[np.ndarray, "k d"]:
    """`num_clusters` rows; where fewer distinct ones are met, the last repeats, to be refilled as an empty cluster."""
    rng = np.random.default_rng(seed)
    if seeding == "k-means||":
        candidates, weights = _oversample(points, num_clusters, rng)
        return spread_out(candidates, weights, num_clusters, rng)
    size = min(points.num_rows, max(1, sample_per_centroid) * num_clusters)
    rows = np.sort(rng.choice(points.num_rows, size, replace=False))
    if seeding == "random":
        return points.gather(np.sort(rng.choice(rows, num_clusters, replace=False)))
    return spread_out(points.gather(rows), np.ones(size, np.int64), num_clusters, rng)


def _oversample(
    points: Points, num_clusters: int, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "n d"], Int64[np.ndarray, " n"]]:
    """About `num_clusters` new rows a round, drawn by squared distance, and how many rows each is nearest to."""
    candidates = points.gather(rng.integers(points.num_rows, size=1))
    nearest = np.full(points.num_rows, np.inf, np.float32)
    new = candidates
    for _ in range(ROUNDS):
        for (start, stop), (_, distances) in points.scan("labels", new):
            nearest[start:stop] = np.minimum(nearest[start:stop], distances)
        probability = num_clusters * nearest / max(nearest.sum(dtype=np.float64), np.finfo(float).tiny)
        drawn = np.flatnonzero(rng.random(points.num_rows) < probability)
        if not len(drawn):
            break
        new = points.gather(drawn)
        candidates = np.concatenate([candidates, new])
    weights = np.zeros(len(candidates), np.int64)
    for _, (labels, _) in points.scan("labels", candidates):
        weights += np.bincount(labels, minlength=len(candidates))
    return candidates, weights


def spread_out(
    sample: Float32[np.ndarray, "n d"], weights: Int64[np.ndarray, " n"], num_clusters: int, rng: np.random.Generator
) -> Float32[np.ndarray, "k d"]:
    """k-means++: seeds drawn by weight and squared distance to the seeds so far, in rounds.

    A round draws one seed for every eight that there are, so that distances cost matrix products, not k passes.
    """
    lengths = np.einsum("nd,nd->n", sample, sample)
    new = _draw(np.cumsum(weights, dtype=np.float64), rng.random(1))
    seeds, nearest = new, np.full(len(sample), np.inf, np.float32)
    while len(seeds) < num_clusters:
        nearest = np.minimum(nearest, _distances_to_nearest(sample, sample[new]))
        mass = np.cumsum(np.where(nearest > SAME_POINT * lengths, nearest, 0) * weights, dtype=np.float64)
        if mass[-1] == 0:
            new = np.full(num_clusters - len(seeds), seeds[-1])
        else:
            count = min(max(1, len(seeds) // SEEDS_PER_DRAW), num_clusters - len(seeds))
            new = np.unique(_draw(mass, rng.random(count)))
        seeds = np.concatenate([seeds, new])
    return sample[seeds]


def count_distinct(points: Points, most: int) -> int:
    """How many points float32 tells apart, counted as far as `most`: among a sample, then in passes over all rows."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(points.num_rows, min(points.num_rows, 2 * most), replace=False))
    found, new = np.empty((0, points.vectors.dim), np.float32), points.gather(rows)
    while len(new):
        spread = spread_out(new, np.ones(len(new), np.int64), min(most - len(found), len(new)), rng)
        found = np.concatenate([found, _without_repeats(spread)])
        if len(found) == most:
            break
        parts = (part for _, part in points.scan("farthest", found, most))
        far = Far(*map(np.concatenate, zip(*parts, strict=True))).farthest(most)
        new = points.gather(far.rows)
        new = new[far.distances > SAME_POINT * np.einsum("nd,nd->n", new, new)]
    return len(found)


def _without_repeats(x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "_ d"]:
    """Vectors without those that are the same point as one before."""
    exact, is_repeat = x.astype(np.float64), np.zeros(len(x), bool)
    lengths = np.einsum("nd,nd->n", exact, exact)
    for start in range(0, len(x), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(x)))
        squared = lengths[rows, None] + lengths - 2 * exact[rows] @ exact.T
        is_repeat[rows] = ((squared <= SAME_POINT * lengths) & (np.arange(len(x)) < rows[:, None])).any(axis=1)
    return x[~is_repeat]


def _distances_to_nearest(
    x: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]
) -> Float32[np.ndarray, " n"]:
    distances = np.empty(len(x), np.float32)
    squared_distances(x, centroids, Assigner(centroids, False)(x), distances)
    return distances


def _draw(cumulated: Float64[np.ndarray, " n"], draws: Float64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """The indices whose share of the mass contains each draw; never one without mass, whatever the rounding."""
    places = np.minimum(draws * cumulated[-1], np.nextafter(cumulated[-1], 0))
    return np.searchsorted(cumulated, places, side="right")
