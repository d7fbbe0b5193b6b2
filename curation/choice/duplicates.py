"""Duplicates in a pool: equal bytes or pixels, close perceptual hashes, close vectors in the same or next clusters.

One rule for all: rows in order of preference, each dropped if a kept row before it is its duplicate. Groups of equal
hashes and clusters of vectors are searched alike, each with those next to it; no more than one pair a row is held, so
that thousands of pictures that are all alike cost no more memory than others. Semantic duplicates as in SemDeDup
(arXiv:2303.09540), with neighbour clusters added.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from curation.choice.config import DuplicatesConfig
from curation.clusters.groups import Entries, even_parts, rows_by_cluster
from curation.clusters.scan import Points
from curation.clusters.spans import Span

HASH_BITS = 64
PARTS, PART_ROWS = 16, 1 << 20  # what workers share: at least so many parts, of about so many rows at most
TILE_ROWS = 2048
ADJOINING_SCORES = 1 << 26
SCREEN_ROUNDING = 1e-5  # products of float32 screen, cosines decide


class Pairs(NamedTuple):
    """Pairs of rows that are alike, and their cosine (1 for equal bytes or pixels)."""

    left: Int64[np.ndarray, " pairs"]
    right: Int64[np.ndarray, " pairs"]
    cosine: Float32[np.ndarray, " pairs"]

    def where(self, chosen: Bool[np.ndarray, " pairs"]) -> "Pairs":
        return Pairs(self.left[chosen], self.right[chosen], self.cosine[chosen])


NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def joined(found: Iterable[Pairs]) -> Pairs:
    """All pairs, one after another."""
    return Pairs(*(np.concatenate(columns) for columns in zip(NO_PAIRS, *found, strict=True)))


def equal_pairs(hashes: UInt64[np.ndarray, " rows"], among: Int64[np.ndarray, " n"]) -> Pairs:
    """The first row of each group with the same hash, paired with the others of its group.

    `among` is in order of preference, here and below.
    """
    ordered = among[np.argsort(hashes[among], kind="stable")]
    is_first = np.r_[True, hashes[ordered][1:] != hashes[ordered][:-1]][: len(ordered)]
    leader = ordered[np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))]
    pairs = Pairs(leader, ordered, np.ones(len(ordered), np.float32))
    return pairs.where(~is_first)


def close_hash_pairs(
    hashes: UInt64[np.ndarray, " n"], bits: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """All pairs of different positions whose hashes differ in at most `bits` bits, left below right.

    Two such hashes agree in at least one of bits + 1 bands: only those that share a band are compared.
    """
    found = [np.empty((2, 0), np.int64), *(_pairs_in_band(hashes, band, bits) for band in _bands(hashes, bits))]
    left, right = np.unique(np.sort(np.concatenate(found, axis=1), axis=0), axis=1)
    return left, right


def _bands(hashes: UInt64[np.ndarray, " n"], bits: int) -> Iterator[UInt64[np.ndarray, " n"]]:
    """Each of bits + 1 even parts of the hashes."""
    bounds = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for low, high in itertools.pairwise(bounds.tolist()):
        yield hashes << np.uint64(HASH_BITS - high) >> np.uint64(HASH_BITS - high + low)


def _pairs_in_band(
    hashes: UInt64[np.ndarray, " n"], band: UInt64[np.ndarray, " n"], bits: int
) -> Int64[np.ndarray, "2 pairs"]:
    order = np.argsort(band, kind="stable")
    ordered, shared, found = hashes[order], band[order], [np.empty((2, 0), np.int64)]
    starts = np.arange(len(order))
    for apart in range(1, len(order)):
        starts = starts[starts + apart < len(order)]
        starts = starts[shared[starts] == shared[starts + apart]]
        if not len(starts):
            break
        close = np.bitwise_count(ordered[starts] ^ ordered[starts + apart]) <= bits
        found.append(np.stack([order[starts[close]], order[starts[close] + apart]]))
    return np.concatenate(found, axis=1)


def close_hashes_between(
    ours: UInt64[np.ndarray, " n"], theirs: UInt64[np.ndarray, " m"], bits: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """All positions in both whose hashes differ in at most `bits` bits, ordered by ours, then theirs."""
    found = [np.empty(0, np.int64)]
    for band, sought in zip(_bands(ours, bits), _bands(theirs, bits), strict=True):
        order = np.argsort(sought, kind="stable")
        first = np.searchsorted(sought[order], band, side="left")
        count = np.searchsorted(sought[order], band, side="right") - first
        left = np.repeat(np.arange(len(ours)), count)
        right = order[np.arange(len(left)) + np.repeat(first - np.cumsum(count) + count, count)]
        close = np.bitwise_count(ours[left] ^ theirs[right]) <= bits
        found.append(left[close] * len(theirs) + right[close])
    left, right = np.divmod(np.unique(np.concatenate(found)), max(1, len(theirs)))
    return left, right


def perceptual_pairs(
    points: Points, hashes: UInt64[np.ndarray, " rows"], among: Int64[np.ndarray, " n"], config: DuplicatesConfig
) -> Pairs:
    """The rows to drop (right) whose perceptual hash is close to that of a kept row (left), as their vectors are."""
    known, groups, sizes = np.unique(hashes[among], return_inverse=True, return_counts=True)
    adjoining = _both_ways(*close_hash_pairs(known, config.perceptual_bits), len(known))
    is_alone = (sizes == 1) & (np.diff(adjoining.offsets) == 0)
    some = ~is_alone[groups]
    return _resolved(points, groups[some].astype(np.int32), adjoining, among[some], config.perceptual_cosine)


def semantic_pairs(
    points: Points,
    clusters: Int32[np.ndarray, " rows"],
    centroids: Float32[np.ndarray, "k d"],
    among: Int64[np.ndarray, " n"],
    config: DuplicatesConfig,
) -> Pairs:
    """The rows to drop (right) because a kept row (left) of the same cluster, or one next to it, has the cosine."""
    return _resolved(points, clusters[among], _adjoining(centroids, config.neighbours), among, config.cosine)


def _adjoining(centroids: Float32[np.ndarray, "k d"], neighbours: int) -> Entries:
    """For each cluster, the clusters that are among its nearest, or it among theirs."""
    count = min(neighbours, len(centroids) - 1)
    norms = np.einsum("kd,kd->k", centroids, centroids)
    edges = [np.empty((2, 0), np.int64)]
    step = max(1, min(1024, ADJOINING_SCORES // len(centroids)))
    for start in range(0, len(centroids) if count else 0, step):
        scores = norms - 2 * centroids[start : start + step] @ centroids.T
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = np.inf
        nearest = np.argpartition(scores, count - 1, axis=1)[:, :count]
        edges.append(np.stack([np.repeat(own, count), nearest.reshape(-1)]))
    left, right = np.concatenate(edges, axis=1)
    return _both_ways(left, right, len(centroids))


def _both_ways(left: Int64[np.ndarray, " pairs"], right: Int64[np.ndarray, " pairs"], count: int) -> Entries:
    """For each of `count` clusters, those that it is paired with on either side, ascending."""
    own, other = np.unique(np.stack([np.r_[left, right], np.r_[right, left]]), axis=1)
    return Entries(np.searchsorted(own, np.arange(count + 1)), other.astype(np.int32))


def _resolved(
    points: Points,
    clusters: Int32[np.ndarray, " n"],
    adjoining: Entries,
    among: Int64[np.ndarray, " n"],
    least: float,
) -> Pairs:
    """The rows to drop (right), each with the first kept row in its own or an adjoining cluster that is alike (left).

    Equals going through the rows in order. A row is decided once the first row before it that is alike and not dropped
    is kept, or there is none; each round asks that of the rows that are left, of which chains of likeness leave few.
    """
    points = points.subset(among)
    is_kept, is_dropped = np.zeros((2, len(among)), bool)
    undecided, dropped = np.arange(len(among)), [NO_PAIRS]
    while len(undecided):
        possible = np.flatnonzero(~is_dropped)
        first = _first_alike(points, clusters, adjoining, undecided, possible, least)
        is_kept[np.setdiff1d(undecided, first.right)] = True
        dropped.append(first.where(is_kept[first.left]))
        is_dropped[dropped[-1].right] = True
        undecided = np.sort(first.right[~is_kept[first.left]])
    left, right, cosine = joined(dropped)
    return Pairs(among[left], among[right], cosine)


def _first_alike(
    points: Points,
    clusters: Int32[np.ndarray, " n"],
    adjoining: Entries,
    asked: Int64[np.ndarray, " asked"],
    possible: Int64[np.ndarray, " possible"],
    least: float,
) -> Pairs:
    """Those of the rows asked (right) that are like a possible row before them, with the first of these (left)."""
    num_clusters = len(adjoining.offsets) - 1
    order, offsets = rows_by_cluster(clusters[asked], num_clusters)
    others = rows_by_cluster(clusters[possible], num_clusters)
    shared = (asked[order], offsets, possible[others[0]], others[1], adjoining, least)
    parts = even_parts(offsets, max(PARTS, len(asked) // PART_ROWS))
    return joined(Pairs(*found) for _, found in points.scan_items("apply", parts, first_alike, *shared))


def first_alike(
    clusters: Span,
    points: Points,
    asked: Int64[np.ndarray, " asked"],
    offsets: Int64[np.ndarray, " k_plus_1"],
    possible: Int64[np.ndarray, " possible"],
    possible_offsets: Int64[np.ndarray, " k_plus_1"],
    adjoining: Entries,
    least: float,
) -> Pairs:
    """The rows asked of a range of clusters, each with the first row like it: what one worker does."""
    found = list[Pairs]()
    for cluster in (clusters[0] + np.flatnonzero(np.diff(offsets[clusters[0] : clusters[1] + 1]))).tolist():
        near = (cluster, *adjoining.values[adjoining.offsets[cluster] : adjoining.offsets[cluster + 1]].tolist())
        others = np.concatenate([possible[possible_offsets[each] : possible_offsets[each + 1]] for each in near])
        found += _first_in_order(points, asked[offsets[cluster] : offsets[cluster + 1]], np.sort(others), least)
    return joined(found)


def _first_in_order(
    points: Points, rows: Int64[np.ndarray, " n"], others: Int64[np.ndarray, " m"], least: float
) -> Iterator[Pairs]:
    """Products screen in tiles, the cosines of the pairs found decide: independent of how the tiles were cut."""
    for start in range(0, len(rows), TILE_ROWS):
        waiting = rows[start : start + TILE_ROWS]
        x, before = points.gather(waiting), others[: np.searchsorted(others, waiting[-1])]
        for begin in range(0, len(before), TILE_ROWS):
            columns = before[begin : begin + TILE_ROWS]
            y, is_found = points.gather(columns), np.zeros(len(waiting), bool)
            close = (x @ y.T >= least - SCREEN_ROUNDING) & (columns < waiting[:, None])
            while len(place := np.flatnonzero(close.any(axis=1))):
                first = close[place].argmax(axis=1)
                cosine = np.einsum("nd,nd->n", x[place], y[first])
                close[place, first] = False
                sure = cosine >= least
                yield Pairs(columns[first[sure]], waiting[place[sure]], cosine[sure])
                close[place[sure]] = False
                is_found[place[sure]] = True
            waiting, x = waiting[~is_found], x[~is_found]
