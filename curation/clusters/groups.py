"""Rows by cluster, and rows with several entries each, as flat arrays.

Lists of different lengths are stored one after another, with offsets: list i is
values[offsets[i] : offsets[i + 1]]. The lists [7, 8], [] and [9] are the values [7, 8, 9] with the
offsets [0, 2, 2, 3]. (Sparse matrices in CSR format store their rows in the same way.)
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
        """The entries of some rows, in the order of `rows`.

        Of the lists [5, 7], [1], [] and [2, 5, 8], rows [3, 0] are [2, 5, 8] and [5, 7].
        """
        counts = self.counts()[rows]
        # Positions in `values` of all entries wanted: one range per row.
        return Entries(offsets_of(counts), self.values[ranges(self.offsets[rows], counts)])


def offsets_of(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n_plus_1"]:
    """Offsets of lists of these lengths: lengths [2, 3] give [0, 2, 5]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def ranges(
    starts: Int64[np.ndarray, " n"], counts: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " total"]:
    """The numbers start, start + 1, ..., start + count - 1 of each range, one range after another.

    Starts [10, 40] and counts [3, 2] give [10, 11, 12, 40, 41]. Without a loop: the positions
    [0, 1, 2, 3, 4] of the result, plus [10, 10, 10, 37, 37], the distance of each range's start
    from the position at which the range begins (10 - 0 and 40 - 3).
    """
    offsets = offsets_of(counts)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def one_entry_each(labels: Int32[np.ndarray, " rows"]) -> Entries:
    """The cluster of each row as its only entry, so that clusters and entries are used alike."""
    return Entries(np.arange(len(labels) + 1), labels)


def rows_by_cluster(
    labels: Int32[np.ndarray, " n"], num_clusters: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k_plus_1"]]:
    """(members, offsets): cluster i has the rows members[offsets[i] : offsets[i + 1]], ascending.

    Labels [1, 0, 1, 2] give members [1, 0, 2, 3] and offsets [0, 1, 3, 4].
    """
    # A stable sort keeps the rows of a cluster in ascending order.
    members = np.argsort(labels, kind="stable")
    return members, offsets_of(np.bincount(labels, minlength=num_clusters))


def even_parts(offsets: Int64[np.ndarray, " k_plus_1"], num_parts: int) -> list[tuple[int, int]]:
    """At most `num_parts` ranges of clusters (start, stop) with about equally many rows each.

    Clusters of 5, 1, 1 and 5 rows, that is offsets [0, 5, 6, 7, 12], in two parts: (0, 2), (2, 4).
    """
    # The cluster in which each of the evenly spaced rows lies. A large cluster may hold several of
    # these rows: np.unique then leaves fewer parts.
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
    # lexsort sorts by its last key first: by group, then by order.
    permutation = np.lexsort((order, groups))
    ordered = groups[permutation]

    # Once sorted, a group starts wherever the group number changes. The slice is for no entries at
    # all, where the leading True would be one too many.
    is_start = np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]
    starts = np.flatnonzero(is_start)
    counts = np.diff(np.r_[starts, len(ordered)])

    # Ranges that all start at 0 are the ranks in sorted order: 0, 1, ... in each group.
    rank = np.empty(len(groups), np.int64)
    rank[permutation] = ranges(np.zeros(len(starts), np.int64), counts)

    return rank
