"""Rows by cluster: which rows each cluster has, ranges of clusters of even weight, ranks within clusters."""

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64


def rows_by_cluster(
    labels: Int32[np.ndarray, " n"], num_clusters: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k_plus_1"]]:
    """Positions ordered by cluster, then position; those of cluster i are in [offsets[i], offsets[i + 1])."""
    members = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=num_clusters)
    return members, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def even_parts(offsets: Int64[np.ndarray, " k_plus_1"], num_parts: int) -> list[tuple[int, int]]:
    """Ranges of clusters that hold about as many rows each, at most `num_parts`."""
    cuts = np.searchsorted(offsets, np.linspace(0, offsets[-1], num_parts + 1)[1:-1])
    bounds = np.unique(np.r_[0, cuts, len(offsets) - 1])
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def rank_in_groups(
    groups: Int64[np.ndarray, " n"] | Int32[np.ndarray, " n"],
    order: Float64[np.ndarray, " n"] | Float32[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Position of each entry within its group, by ascending `order`; ties go to the earlier entry."""
    permutation = np.lexsort((order, groups))
    ordered = groups[permutation]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    rank = np.empty(len(groups), np.int64)
    rank[permutation] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    return rank
