"""The first centroids of a clustering: rows of the data, spread out.

k-means++ (Arthur and Vassilvitskii 2007) on a sample; k-means|| (Bahmani et al. 2012) in a few passes over all rows
when a sample would miss too much; random rows. All depends on the seed and on the rows in order only.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from curation.scan import Points

Seeding = Literal["k-means++", "k-means||", "random"]

SAME_POINT = 1e-6  # squared distance, relative to the squared length, below which float32 cannot tell points apart
ROUNDS = 4


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
    """k-means++: each next seed drawn by weight and squared distance to the seeds so far."""
    norms = np.einsum("nd,nd->n", sample, sample)
    seeds = [_draw(np.cumsum(weights, dtype=np.float64), rng.random())]
    nearest = np.full(len(sample), np.inf, np.float32)
    for draw in rng.random(num_clusters - 1):
        products = np.einsum("nd,d->n", sample, sample[seeds[-1]])
        nearest = np.minimum(nearest, norms - 2 * products + norms[seeds[-1]])
        mass = np.cumsum(np.where(nearest > SAME_POINT * norms, nearest, 0) * weights, dtype=np.float64)
        if mass[-1] == 0:
            seeds += [seeds[-1]] * (num_clusters - len(seeds))
            break
        seeds.append(_draw(mass, draw))
    return sample[seeds]


def _draw(cumulated: np.ndarray, draw: float) -> int:
    """The index whose share of the mass contains `draw`; never one without mass, whatever the rounding."""
    return int(np.searchsorted(cumulated, min(draw * cumulated[-1], np.nextafter(cumulated[-1], 0)), side="right"))
