"""The first centroids of a clustering: rows of the data that lie far from one another.

k-means++ (Arthur and Vassilvitskii 2007) on a sample; k-means|| (Bahmani et al. 2012, algorithm 2)
in a few passes over all rows, where a sample would miss too much; or random rows. The result
depends only on the seed and on the rows in their order.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from curation.clusters.config import Seeding
from curation.clusters.kernels import squared_distances
from curation.clusters.nearest import Assigner
from curation.clusters.scan import Far, Points

# Squared distance, relative to the squared length, below which float32 cannot tell points apart.
SAME_POINT = 1e-6
ROUNDS = 4  # of k-means||: each adds about as many candidates as there are clusters
SEEDS_PER_DRAW = 8
BLOCK_ROWS = 1024


def choose_seeds(
    points: Points, num_clusters: int, seeding: Seeding, sample_per_centroid: int, seed: int
) -> Float32[np.ndarray, "k d"]:
    """The vectors of `num_clusters` rows.

    If there are fewer distinct points, k-means++ and k-means|| repeat the last seed. k-means treats
    the repetitions as empty clusters.
    """
    rng = np.random.default_rng(seed)
    if seeding == "k-means||":
        candidates, weights = _oversample(points, num_clusters, rng)
        return spread_out(candidates, weights, num_clusters, rng)

    # Ascending rows are read from the shards in order.
    size = min(points.num_rows, max(1, sample_per_centroid) * num_clusters)
    rows = np.sort(rng.choice(points.num_rows, size, replace=False))
    if seeding == "random":
        return points.gather(np.sort(rng.choice(rows, num_clusters, replace=False)))

    return spread_out(points.gather(rows), np.ones(size, np.int64), num_clusters, rng)


def _oversample(
    points: Points, num_clusters: int, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "n d"], Int64[np.ndarray, " n"]]:
    """k-means||'s candidates, and for each of them the number of rows that it is nearest to.

    Each round draws about `num_clusters` rows with a probability in proportion to the squared
    distance to the nearest candidate so far.
    """
    candidates = points.gather(rng.integers(points.num_rows, size=1))
    nearest = np.full(points.num_rows, np.inf, np.float32)
    new = candidates

    for _ in range(ROUNDS):
        # Only the new candidates can lower a row's distance to its nearest candidate.
        for (start, stop), (_, distances) in points.scan("labels", new):
            nearest[start:stop] = np.minimum(nearest[start:stop], distances)

        # Where all distances are zero, the smallest positive number avoids 0 / 0.
        total = max(nearest.sum(dtype=np.float64), np.finfo(float).tiny)
        probability = num_clusters * nearest / total
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
    sample: Float32[np.ndarray, "n d"],
    weights: Int64[np.ndarray, " n"],
    num_clusters: int,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "k d"]:
    """k-means++: draws seeds by weight times squared distance to the nearest earlier seed.

    Each round draws one new seed per eight earlier ones, all from the same distances. So the
    distances cost a few matrix products, and not `num_clusters` passes over the sample.
    """
    squared_lengths = np.einsum("nd,nd->n", sample, sample)
    new = _draw(np.cumsum(weights, dtype=np.float64), rng.random(1))
    seeds = new
    nearest = np.full(len(sample), np.inf, np.float32)

    while len(seeds) < num_clusters:
        nearest = np.minimum(nearest, _distances_to_nearest(sample, sample[new]))
        # A point that float32 cannot tell from a seed must not become one.
        is_apart = nearest > SAME_POINT * squared_lengths
        mass = np.cumsum(np.where(is_apart, nearest, 0) * weights, dtype=np.float64)

        # No mass is left when every point is a seed: the last seed fills the remaining places.
        if mass[-1] == 0:
            new = np.full(num_clusters - len(seeds), seeds[-1])
        else:
            count = min(max(1, len(seeds) // SEEDS_PER_DRAW), num_clusters - len(seeds))
            new = np.unique(_draw(mass, rng.random(count)))
        seeds = np.concatenate([seeds, new])

    return sample[seeds]


def count_distinct(points: Points, most: int) -> int:
    """The number of points that float32 can tell apart, counted up to `most`.

    A sample is counted first. Further passes over all rows add those that the sample lacks.
    """
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(points.num_rows, min(points.num_rows, 2 * most), replace=False))
    distinct = np.empty((0, points.vectors.dim), np.float32)
    new = points.gather(rows)

    while len(new):
        count = min(most - len(distinct), len(new))
        spread = spread_out(new, np.ones(len(new), np.int64), count, rng)
        # A round of draws may have chosen two rows that are the same point.
        distinct = np.concatenate([distinct, _without_repeats(spread)])
        if len(distinct) == most:
            break

        # The rows that are farthest from all points counted so far, without those that equal one.
        parts = (part for _, part in points.scan("farthest", distinct, most))
        far = Far(*map(np.concatenate, zip(*parts, strict=True))).farthest(most)
        new = points.gather(far.rows)
        new = new[far.distances > SAME_POINT * np.einsum("nd,nd->n", new, new)]

    return len(distinct)


def _without_repeats(x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "_ d"]:
    """The vectors without those that are the same point as an earlier one."""
    exact = x.astype(np.float64)
    is_repeat = np.zeros(len(x), bool)
    squared_lengths = np.einsum("nd,nd->n", exact, exact)

    for start in range(0, len(x), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(x)))
        # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y: of a block of rows to all rows in one product, in
        # float64, because the difference of these large terms is tiny.
        squared = squared_lengths[rows, None] + squared_lengths - 2 * exact[rows] @ exact.T
        is_same = squared <= SAME_POINT * squared_lengths
        is_earlier = np.arange(len(x)) < rows[:, None]
        is_repeat[rows] = (is_same & is_earlier).any(axis=1)

    return x[~is_repeat]


def _distances_to_nearest(
    x: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]
) -> Float32[np.ndarray, " n"]:
    distances = np.empty(len(x), np.float32)
    squared_distances(x, centroids, Assigner(centroids, False)(x), distances)
    return distances


def _draw(
    cumulated: Float64[np.ndarray, " n"], draws: Float64[np.ndarray, " m"]
) -> Int64[np.ndarray, " m"]:
    """The index that each draw from [0, 1) hits; `cumulated` is the cumulated mass of the indices.

    Of the masses 2, 0 and 3, draws below 0.4 hit index 0, others index 2. An index without mass is
    never hit.
    """
    # A draw near 1 must not round up to the total, which lies behind the last index with mass.
    positions = np.minimum(draws * cumulated[-1], np.nextafter(cumulated[-1], 0))
    return np.searchsorted(cumulated, positions, side="right")
