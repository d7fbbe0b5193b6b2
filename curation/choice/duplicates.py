"""Duplicates in a pool: equal bytes or pixels, near perceptual hashes, near vectors.

One rule holds for all: rows go in order of preference, and a row is dropped if it duplicates a kept
row before it. At most one pair per row is held, so that thousands of pictures that are all alike
need no more memory than others. Near vectors are searched in the same cluster, as in SemDeDup
(arXiv:2303.09540), and here also in neighboring clusters. Where the cosine alone does not decide,
the hashes of altered forms do.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt64

from curation.choice.hashes import FAR, form_distances, repeats_in_order
from curation.choice.likeness import Rule
from curation.clusters.groups import Entries, even_parts, rows_by_cluster
from curation.clusters.scan import Points
from curation.clusters.spans import Span
from curation.clusters.vectors import ShardVectors

# The work is cut into at least 16 parts, each of about a million rows at most.
PARTS = 16
PART_ROWS = 1 << 20
TILE_ROWS = 2048
ADJOINING_SCORES = 1 << 26  # 256 MB of float32 scores between centroids

# Matrix products round differently from tile to tile. They only screen, below the threshold by more
# than their rounding; the cosine of a pair, computed by itself, decides.
SCREEN_ROUNDING = 1e-5
SAMPLED_ROWS = 4096
NO_BITS = -1


class Pairs(NamedTuple):
    """Pairs of rows, and how near they are."""

    left: Int64[np.ndarray, " pairs"]
    right: Int64[np.ndarray, " pairs"]
    cosine: Float32[np.ndarray, " pairs"]
    """1 for equal bytes or pixels; NaN where vectors were not compared."""
    bits: Int32[np.ndarray, " pairs"]
    """Bits that differ between their hashes; NO_BITS where hashes were not compared."""

    def where(self, chosen: Bool[np.ndarray, " pairs"] | Int64[np.ndarray, " some"]) -> "Pairs":
        """Some of the pairs, by a mask or by their numbers."""
        return Pairs(*(column[chosen] for column in self))


def pairs_of(
    left: Int64[np.ndarray, " pairs"],
    right: Int64[np.ndarray, " pairs"],
    cosine: Float32[np.ndarray, " pairs"] | float = np.nan,
    bits: Int32[np.ndarray, " pairs"] | int = NO_BITS,
) -> Pairs:
    """Pairs; a cosine or bits that are one number hold for all of them."""
    count = len(left)
    return Pairs(left, right, np.full(count, cosine, np.float32), np.full(count, bits, np.int32))


NO_PAIRS = pairs_of(np.empty(0, np.int64), np.empty(0, np.int64))


def joined(groups: Iterable[Pairs]) -> Pairs:
    """All pairs, one after another."""
    return Pairs(*(np.concatenate(columns) for columns in zip(NO_PAIRS, *groups, strict=True)))


def equal_pairs(hashes: UInt64[np.ndarray, " rows"], among: Int64[np.ndarray, " n"]) -> Pairs:
    """Pairs of the first row with a hash (left) and each other row with the same hash (right).

    `among` is in order of preference, here and below.
    """
    # A stable sort keeps the order of preference within a group of equal hashes, and a group starts
    # wherever the hash changes.
    ordered = among[np.argsort(hashes[among], kind="stable")]
    is_first = np.r_[True, hashes[ordered][1:] != hashes[ordered][:-1]][: len(ordered)]

    # The position of each group's first row, carried forward over its group by a running maximum:
    # [0, 0, 0, 3, 0] becomes [0, 0, 0, 3, 3].
    leader = ordered[np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))]
    return pairs_of(leader, ordered, 1.0).where(~is_first)


def hash_pairs(
    hashes: UInt8[np.ndarray, "n bytes"], among: Int64[np.ndarray, " n"], most_bits: int
) -> Pairs:
    """The rows to drop (right), each with a kept row (left) whose perceptual hash is near.

    Near means at most `most_bits` differing bits in any orientation. `hashes` are those of the rows
    `among`, in the same order.
    """
    repeats = repeats_in_order(hashes, most_bits)
    return pairs_of(among[repeats.left], among[repeats.right], bits=repeats.bits)


class Neighborhoods(NamedTuple):
    """Where duplicates of a row are searched: in its cluster and in adjoining clusters."""

    clusters: Int32[np.ndarray, " n"]
    """The clusters of the rows that are compared, in order of preference."""
    adjoining: Entries
    """Per cluster, the clusters next to it."""


def neighborhoods(
    clusters: Int32[np.ndarray, " n"], centroids: Float32[np.ndarray, "k d"], neighbors: int
) -> Neighborhoods:
    """The neighborhoods of rows with these clusters, for a number of neighboring clusters."""
    return Neighborhoods(clusters, _adjoining(centroids, neighbors))


def semantic_pairs(
    points: Points, among: Int64[np.ndarray, " n"], near: Neighborhoods, rule: Rule
) -> Pairs:
    """The rows to drop (right), each with the first kept row of its neighborhood that it matches.

    Same result as a scan in order of preference that drops a row if an earlier kept row matches it.
    Each round settles every row whose first surviving match is already kept; only chains of matches
    need more rounds. Example: rows 0 to 2, where 1 matches 0 and 2 matches 1, but 2 does not match
    0. In round one, 0 is kept and 1 is dropped; the match of 2 was still undecided. In round two,
    1 is gone, so 2 has no match and is kept.
    """
    points = points.subset(among)
    is_kept = np.zeros(len(among), bool)
    is_dropped = np.zeros(len(among), bool)
    undecided = np.arange(len(among))
    dropped = [NO_PAIRS]

    while len(undecided):
        possible = np.flatnonzero(~is_dropped)
        first = _first_alike(points, near, undecided, possible, rule)

        # Kept: no surviving row before it matches. Dropped: its first match is kept. Undecided: its
        # first match is itself undecided.
        is_kept[np.setdiff1d(undecided, first.right)] = True
        dropped.append(first.where(is_kept[first.left]))
        is_dropped[dropped[-1].right] = True
        undecided = np.sort(first.right[~is_kept[first.left]])

    pairs = joined(dropped)
    return pairs._replace(left=among[pairs.left], right=among[pairs.right])


def nearest_others(points: Points, among: Int64[np.ndarray, " n"], near: Neighborhoods) -> Pairs:
    """Evenly spaced rows (right), each with the nearest other row of its neighborhood (left)."""
    points = points.subset(among)
    asked = np.arange(0, len(among), max(1, len(among) // SAMPLED_ROWS))
    search = _Search(
        *_by_cluster(near, asked), *_by_cluster(near, np.arange(len(among))), near.adjoining
    )

    parts = even_parts(search.offsets, PARTS)
    pairs = joined(
        Pairs(*columns)
        for _, columns in points.scan_items("apply", parts, nearest_in_clusters, search)
    )

    return pairs._replace(left=among[pairs.left], right=among[pairs.right])


def _adjoining(centroids: Float32[np.ndarray, "k d"], neighbors: int) -> Entries:
    """Per cluster, the `neighbors` nearest clusters, and those that it is a nearest one of."""
    count = min(neighbors, len(centroids) - 1)
    norms = np.einsum("kd,kd->k", centroids, centroids)
    edges = [np.empty((2, 0), np.int64)]
    step = max(1, min(1024, ADJOINING_SCORES // len(centroids)))

    for start in range(0, len(centroids) if count else 0, step):
        # |a - b|^2 less |a|^2, which is the same for all b: the order is that of the distances.
        scores = norms - 2 * centroids[start : start + step] @ centroids.T
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = np.inf
        nearest = np.argpartition(scores, count - 1, axis=1)[:, :count]
        edges.append(np.stack([np.repeat(own, count), nearest.reshape(-1)]))

    # Each edge in both directions, once. np.unique also sorts the columns by `own`, so that a
    # search for each cluster's number gives the offsets.
    left, right = np.concatenate(edges, axis=1)
    own, other = np.unique(np.stack([np.r_[left, right], np.r_[right, left]]), axis=1)
    return Entries(np.searchsorted(own, np.arange(len(centroids) + 1)), other.astype(np.int32))


class _Search(NamedTuple):
    """What every worker needs: rows that search a match, and rows that may be one.

    Both are ordered by cluster, and ascending within each cluster.
    """

    asked: Int64[np.ndarray, " asked"]
    offsets: Int64[np.ndarray, " k_plus_1"]
    others: Int64[np.ndarray, " others"]
    other_offsets: Int64[np.ndarray, " k_plus_1"]
    adjoining: Entries

    def neighborhoods(
        self, clusters: Span
    ) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]]:
        """Per cluster with rows that search: these rows, and all rows of its neighborhood.

        Both are ascending. Clusters without such rows are skipped.
        """
        filled = np.flatnonzero(np.diff(self.offsets[clusters[0] : clusters[1] + 1]))
        for cluster in (clusters[0] + filled).tolist():
            adjoining = self.adjoining.values[
                self.adjoining.offsets[cluster] : self.adjoining.offsets[cluster + 1]
            ]
            bounds = [
                self.other_offsets[each : each + 2] for each in (cluster, *adjoining.tolist())
            ]
            others = np.concatenate([self.others[start:stop] for start, stop in bounds])
            yield self.asked[self.offsets[cluster] : self.offsets[cluster + 1]], np.sort(others)


def _by_cluster(
    near: Neighborhoods, rows: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k_plus_1"]]:
    order, offsets = rows_by_cluster(near.clusters[rows], len(near.adjoining.offsets) - 1)
    return rows[order], offsets


def _first_alike(
    points: Points,
    near: Neighborhoods,
    asked: Int64[np.ndarray, " asked"],
    possible: Int64[np.ndarray, " possible"],
    rule: Rule,
) -> Pairs:
    """The rows of `asked` (right) that match a row of `possible` before them, the first (left)."""
    search = _Search(*_by_cluster(near, asked), *_by_cluster(near, possible), near.adjoining)
    parts = even_parts(search.offsets, max(PARTS, len(asked) // PART_ROWS))
    results = points.scan_items("apply", parts, first_alike_in_clusters, search, rule)
    return joined(Pairs(*columns) for _, columns in results)


def first_alike_in_clusters(clusters: Span, points: Points, search: _Search, rule: Rule) -> Pairs:
    """The searching rows of a range of clusters, each with its first match: work of one worker."""
    pairs = list[Pairs]()
    for rows, others in search.neighborhoods(clusters):
        pairs += _first_in_order(points, rows, others, rule)
    return joined(pairs)


def nearest_in_clusters(clusters: Span, points: Points, search: _Search) -> Pairs:
    """The searching rows of a range of clusters, each with the nearest other row.

    This is the work of one worker.
    """
    pairs = list[Pairs]()
    for rows, others in search.neighborhoods(clusters):
        x = points.gather(rows)
        best = np.full(len(rows), -np.inf, np.float32)
        nearest = np.full(len(rows), -1, np.int64)

        for start in range(0, len(others), TILE_ROWS):
            columns = others[start : start + TILE_ROWS]
            # Unit vectors: products are cosines. A row is not its own neighbor.
            cosines = np.where(columns == rows[:, None], -np.inf, x @ points.gather(columns).T)
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(rows)), place].astype(np.float32)
            nearest = np.where(value > best, columns[place], nearest)
            best = np.maximum(best, value)

        # A row that is alone in its neighborhood has none.
        pairs.append(pairs_of(nearest, rows, best).where(nearest >= 0))

    return joined(pairs)


def _first_in_order(
    points: Points, rows: Int64[np.ndarray, " n"], others: Int64[np.ndarray, " m"], rule: Rule
) -> Iterator[Pairs]:
    """Pairs of each row and the first row of `others` before it that it matches.

    Both are ascending. The result does not depend on the cut into tiles: products of a tile only
    screen, and each pair that passes is decided by itself.
    """
    for start in range(0, len(rows), TILE_ROWS):
        waiting = rows[start : start + TILE_ROWS]
        x = points.gather(waiting)
        # Only earlier rows can be a match. None of them lies behind the tile's last row.
        before = others[: np.searchsorted(others, waiting[-1])]

        for begin in range(0, len(before), TILE_ROWS):
            columns = before[begin : begin + TILE_ROWS]
            y = points.gather(columns)
            has_match = np.zeros(len(waiting), bool)
            close = (x @ y.T >= rule.screen - SCREEN_ROUNDING) & (columns < waiting[:, None])

            # Each turn decides on the first close pair of every row that still has one, until the
            # row has a match or no close pair is left. argmax gives the first True of a row.
            while len(place := np.flatnonzero(close.any(axis=1))):
                first = close[place].argmax(axis=1)
                close[place, first] = False
                cosine = np.einsum("nd,nd->n", x[place], y[first])
                pairs = pairs_of(columns[first], waiting[place], cosine)
                pairs = pairs.where(is_alike := _is_alike(points, pairs, rule))
                yield pairs
                close[place[is_alike]] = False
                has_match[place[is_alike]] = True

            # Rows with a match skip the remaining columns.
            waiting = waiting[~has_match]
            x = x[~has_match]


def _is_alike(points: Points, pairs: Pairs, rule: Rule) -> Bool[np.ndarray, " pairs"]:
    """Whether pairs match: by their cosine alone, or by a likely cosine and a near form."""
    is_alike = pairs.cosine >= rule.least
    if rule.form_bits is not None:
        # Hashes are read from the shards, so only for pairs that the cosine leaves open.
        asked = np.flatnonzero(~is_alike & (pairs.cosine >= rule.cosines.likely))
        bits = pair_distances(points, pairs.left[asked], pairs.right[asked])
        is_alike[asked] = bits <= rule.form_bits
    return is_alike


def pair_distances(
    points: Points, left: Int64[np.ndarray, " pairs"], right: Int64[np.ndarray, " pairs"]
) -> Int32[np.ndarray, " pairs"]:
    """The fewest bits between the images of each pair, or between one and a form of the other.

    Rows are numbers among the points.
    """
    assert isinstance(points.vectors, ShardVectors)
    shards = points.vectors.shards
    if not len(left):
        return np.full(0, FAR, np.int32)
    rows = (left, right) if points.rows is None else (points.rows[left], points.rows[right])
    return form_distances(
        *(shards.perceptual_hashes(each, shards.spec.num_hashes) for each in rows)
    )
