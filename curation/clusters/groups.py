"""Rows by cluster: the rows of each cluster, even ranges of clusters, ranks within clusters; rows
with several entries each.

Lists of different lengths are stored one after another, with offsets: list i is
values[offsets[i] : offsets[i + 1]].
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64


class Entries(NamedTuple):
    """The entries of each row (its caption cluster, or the metadata strings in its captions).

    Row i has values[offsets[i] : offsets[i + 1]].
    """

    offsets: Int64[np.ndarray, " rows_plus_1"]
    values: Int32[np.ndarray, " pairs"]

    def counts(self) -> Int64[np.ndarray, " rows"]:
        """The number of entries of each row."""
        return np.diff(self.offsets)

    def rows(self) -> Int64[np.ndarray, " pairs"]:
        """The row of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts())

    def take(self, rows: Int64[np.ndarray, " n"]) -> "Entries":
        """The entries of some rows, in the order of `rows`."""
        counts = self.counts()[rows]
        return Entries(offsets_of(counts), self.values[ranges(self.offsets[rows], counts)])


def offsets_of(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n_plus_1"]:
    """Where each of some lists of these lengths starts, and the end of the last: [2, 3] to [0, 2,
    5].
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def ranges(
    starts: Int64[np.ndarray, " n"], counts: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " total"]:
    """The numbers from each start on, `count` of them, one range after another.

    Starts [10, 40] and counts [3, 2] give [10, 11, 12, 40, 41].
    """
    offsets = offsets_of(counts)
    # 0 to total - 1, moved in each range by the distance of its start from its first position.
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def one_entry_each(labels: Int32[np.ndarray, " rows"]) -> Entries:
    """The cluster of each row as its only entry."""
    return Entries(np.arange(len(labels) + 1), labels)


def rows_by_cluster(
    labels: Int32[np.ndarray, " n"], num_clusters: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k_plus_1"]]:
    """Row numbers ordered by cluster, then row; those of cluster i are in [offsets[i], offsets[i +
    1]).
    """
    members = np.argsort(labels, kind="stable")
    return members, offsets_of(np.bincount(labels, minlength=num_clusters))


def even_parts(offsets: Int64[np.ndarray, " k_plus_1"], num_parts: int) -> list[tuple[int, int]]:
    """At most `num_parts` ranges of clusters that hold about equally many rows each."""
    # The cluster in which each of the evenly spaced rows lies; a large cluster may hold several.
    cuts = np.searchsorted(offsets, np.linspace(0, offsets[-1], num_parts + 1)[1:-1])
    bounds = np.unique(np.r_[0, cuts, len(offsets) - 1])
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def rank_in_groups(
    groups: Int64[np.ndarray, " n"] | Int32[np.ndarray, " n"],
    order: Float64[np.ndarray, " n"] | Float32[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Position of each entry within its group, by ascending `order`; ties go to the earlier entry.

    Groups [1, 0, 1] and order [.5, .3, .2] give [1, 0, 0].
    """
    permutation = np.lexsort((order, groups))
    ordered = groups[permutation]

    # Once sorted, a group starts wherever the group number changes.
    is_start = np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]
    starts = np.flatnonzero(is_start)
    counts = np.diff(np.r_[starts, len(ordered)])

    rank = np.empty(len(groups), np.int64)
    rank[permutation] = ranges(np.zeros(len(starts), np.int64), counts)

    return rank
