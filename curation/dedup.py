"""Duplicates in a pool: equal bytes or pixels, close perceptual hashes, close vectors in the same or next clusters.

Pairs become decisions by one rule: rows in order of preference, each dropped if a kept row before it is its duplicate.
The result depends on the set of pairs only, never on the order in which they were found. Semantic duplicates as in
SemDeDup (arXiv:2303.09540), with neighbour clusters added.
"""

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt64

from curation.groups import even_parts, rows_by_cluster
from curation.scan import Points

HASH_BITS = 64
PARTS, PART_ROWS = 16, 1 << 20  # what workers share: at least so many parts, of about so many rows at most


@dataclass(frozen=True)
class DuplicatesConfig:
    exact: bool = True
    """Drop images whose bytes or pixels equal another's."""
    perceptual_bits: int = 1
    """Drop images whose perceptual hash differs in at most this many of 64 bits; -1: not used."""
    perceptual_cosine: float = 0.97
    """... when the cosine of their vectors is also at least this."""
    cosine: float = 0.985
    """Drop images whose vector has at least this cosine with another's; above 1: not used."""
    neighbours: int = 4
    """Clusters next to each cluster in which duplicates are sought; 0: in the own one only, for millions of them."""
    keep: Literal["central", "caption"] = "central"
    """Which of several duplicates stays: the one nearest its centroid, or the one with the longest captions."""


class Pairs(NamedTuple):
    """Pairs of rows that are alike, and their cosine (1 for equal bytes or pixels)."""

    left: Int64[np.ndarray, " pairs"]
    right: Int64[np.ndarray, " pairs"]
    cosine: Float32[np.ndarray, " pairs"]

    def where(self, chosen: Bool[np.ndarray, " pairs"]) -> "Pairs":
        return Pairs(self.left[chosen], self.right[chosen], self.cosine[chosen])


def equal_pairs(
    hashes: UInt64[np.ndarray, " rows"], preference: Float64[np.ndarray, " rows"], among: Int64[np.ndarray, " n"]
) -> Pairs:
    """The preferred row of each group with the same hash, paired with the others of its group."""
    ordered = among[np.lexsort((preference[among], hashes[among]))]
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
    found = [np.empty((2, 0), np.int64)]
    bounds = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for low, high in itertools.pairwise(bounds.tolist()):
        band = hashes << np.uint64(HASH_BITS - high) >> np.uint64(HASH_BITS - high + low)
        found.append(_pairs_in_band(hashes, band, bits))
    left, right = np.unique(np.sort(np.concatenate(found, axis=1), axis=0), axis=1)
    return left, right


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


def perceptual_pairs(
    hashes: UInt64[np.ndarray, " rows"],
    preference: Float64[np.ndarray, " rows"],
    among: Int64[np.ndarray, " n"],
    config: DuplicatesConfig,
    points: Points,
) -> Pairs:
    """Pairs with close perceptual hashes whose vectors agree."""
    groups = equal_pairs(hashes, preference, among)
    leaders = np.setdiff1d(among, groups.right)
    left, right = close_hash_pairs(hashes[leaders], config.perceptual_bits)
    left, right = np.r_[groups.left, leaders[left]], np.r_[groups.right, leaders[right]]
    pairs = Pairs(left, right, cosines(points, left, right))
    return pairs.where(pairs.cosine >= config.perceptual_cosine)


def cosines(points: Points, left: Int64[np.ndarray, " n"], right: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Cosine of pairs of unit vectors."""
    assert points.unit
    result = np.empty(len(left), np.float32)
    for start in range(0, len(left), 8192):
        part = slice(start, start + 8192)
        result[part] = np.einsum("nd,nd->n", points.gather(left[part]), points.gather(right[part]))
    return result


def semantic_pairs(
    points: Points,
    clusters: Int32[np.ndarray, " rows"],
    centroids: Float32[np.ndarray, "k d"],
    among: Int64[np.ndarray, " n"],
    config: DuplicatesConfig,
) -> Pairs:
    """Pairs of rows with at least the given cosine, in the same cluster or in clusters next to each other."""
    order, offsets = rows_by_cluster(clusters[among], len(centroids))
    members = among[order]
    adjoining = _adjoining(centroids, config.neighbours)
    parts = even_parts(offsets, max(PARTS, len(members) // PART_ROWS))
    found = points.scan_items("similar", parts, members, offsets, adjoining, config.cosine)
    return Pairs(*(np.concatenate(columns) for columns in zip(*(pairs for _, pairs in found), strict=True)))


def _adjoining(centroids: Float32[np.ndarray, "k d"], neighbours: int) -> list[Int64[np.ndarray, " _"]]:
    """For each cluster, the clusters after it that are among its nearest, or it among theirs."""
    count = min(neighbours, len(centroids) - 1)
    if not count:
        return [np.empty(0, np.int64)] * len(centroids)
    norms = np.einsum("kd,kd->k", centroids, centroids)
    edges = [np.empty((2, 0), np.int64)]
    for start in range(0, len(centroids), 1024):
        scores = 2 * centroids[start : start + 1024] @ centroids.T - norms
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = -np.inf
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        edges.append(np.stack([np.repeat(own, count), nearest.reshape(-1)]))
    low, high = np.unique(np.sort(np.concatenate(edges, axis=1), axis=0), axis=1)
    return np.split(high, np.searchsorted(low, np.arange(1, len(centroids))))


def resolve(pairs: Pairs, preference: Float64[np.ndarray, " rows"]) -> Pairs:
    """The rows to drop (right), each with the kept row that it duplicates (left).

    Equals going through the rows by ascending preference (ties: row number), dropping each whose duplicate was kept.
    """
    rank = np.empty(len(preference), np.int64)
    rank[np.lexsort((np.arange(len(preference)), preference))] = np.arange(len(preference))
    swap = rank[pairs.left] > rank[pairs.right]
    waiting = Pairs(np.where(swap, pairs.right, pairs.left), np.where(swap, pairs.left, pairs.right), pairs.cosine)
    waiting = Pairs(*(column[np.lexsort((rank[waiting.left], waiting.right))] for column in waiting))
    is_open, is_dropped = np.zeros(len(preference), bool), np.zeros(len(preference), bool)
    is_open[waiting.right] = True
    resolved = []
    while len(waiting.left):
        final = waiting.where(~is_open[waiting.left] & ~is_dropped[waiting.left])
        dropped, first = np.unique(final.right, return_index=True)
        resolved.append(Pairs(final.left[first], dropped, final.cosine[first]))
        is_dropped[dropped] = True
        waiting = waiting.where(~is_dropped[waiting.right] & ~is_dropped[waiting.left])
        is_open[:] = False
        is_open[waiting.right] = True
    return Pairs(*(np.concatenate(columns) for columns in zip(pairs.where(swap & False), *resolved, strict=True)))
