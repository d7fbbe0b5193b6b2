"""Rows by cluster: which rows each cluster has, even ranges of clusters, ranks within them; rows of several entries."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64


class Entries(NamedTuple):
    """The entries of each row (its caption cluster, or the metadata strings in its captions): row i has
    values[offsets[i] : offsets[i + 1]]."""

    offsets: Int64[np.ndarray, " rows_plus_1"]
    values: Int32[np.ndarray, " pairs"]

    def numbers(self) -> Int64[np.ndarray, " rows"]:
        """How many entries each row has."""
        return np.diff(self.offsets)

    def rows(self) -> Int64[np.ndarray, " pairs"]:
        """The row of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.numbers())

    def take(self, rows: Int64[np.ndarray, " n"]) -> "Entries":
        """Those of some rows, in the order asked."""
        numbers = self.numbers()[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], numbers)
        return Entries(offsets, self.values[places])


def one_entry_each(labels: Int32[np.ndarray, " rows"]) -> Entries:
    """Clusters as entries."""
    return Entries(np.arange(len(labels) + 1), labels)


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
