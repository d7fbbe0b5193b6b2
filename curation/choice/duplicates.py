"""Duplicates in a pool: equal bytes or pixels, near perceptual hashes, near vectors in the same or
next clusters.

One rule for all: rows in order of preference, each dropped if a kept row before it is its
duplicate. No more than one pair per row is held, so that thousands of pictures that are all alike
cost no more memory than others. Semantic duplicates as in SemDeDup (arXiv:2303.09540), with
neighboring clusters added, and with the word of a hash for pairs whose cosine alone does not
decide.
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

PARTS = 16
PART_ROWS = 1 << 20  # what workers share: at least so many parts, of about so many rows at most
TILE_ROWS = 2048
ADJOINING_SCORES = 1 << 26
SCREEN_ROUNDING = 1e-5  # products of float32 screen, cosines decide
SAMPLED_ROWS = 4096
NO_BITS = -1


class Pairs(NamedTuple):
    """Pairs of rows that are alike, their cosine (1 for equal bytes or pixels) and the bits between
    their hashes.
    """

    left: Int64[np.ndarray, " pairs"]
    right: Int64[np.ndarray, " pairs"]
    cosine: Float32[np.ndarray, " pairs"]
    bits: Int32[np.ndarray, " pairs"]
    """NO_BITS where hashes were not compared."""

    def where(self, chosen: Bool[np.ndarray, " pairs"] | Int64[np.ndarray, " some"]) -> "Pairs":
        return Pairs(*(column[chosen] for column in self))


def pairs_of(
    left: Int64[np.ndarray, " pairs"],
    right: Int64[np.ndarray, " pairs"],
    cosine: Float32[np.ndarray, " pairs"] | float = np.nan,
    bits: Int32[np.ndarray, " pairs"] | int = NO_BITS,
) -> Pairs:
    """Pairs, some of whose columns are one value for all."""
    count = len(left)
    return Pairs(left, right, np.full(count, cosine, np.float32), np.full(count, bits, np.int32))


NO_PAIRS = pairs_of(np.empty(0, np.int64), np.empty(0, np.int64))


def joined(found: Iterable[Pairs]) -> Pairs:
    """All pairs, one after another."""
    return Pairs(*(np.concatenate(columns) for columns in zip(NO_PAIRS, *found, strict=True)))


def equal_pairs(hashes: UInt64[np.ndarray, " rows"], among: Int64[np.ndarray, " n"]) -> Pairs:
    """The first row of each group with the same hash, paired with the others of its group.

    `among` is in order of preference, here and below.
    """
    ordered = among[np.argsort(hashes[among], kind="stable")]
    is_first = np.r_[True, hashes[ordered][1:] != hashes[ordered][:-1]][: len(ordered)]

    # positions of firsts, carried forward over the rest of their group
    leader = ordered[np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))]
    return pairs_of(leader, ordered, 1.0).where(~is_first)


def hash_pairs(
    hashes: UInt8[np.ndarray, "n bytes"], among: Int64[np.ndarray, " n"], most_bits: int
) -> Pairs:
    """The rows to drop (right) whose perceptual hash is near that of a kept row (left), in any
    orientation.

    `hashes` are those of the rows `among`, in the same order.
    """
    repeats = repeats_in_order(hashes, most_bits)
    return pairs_of(among[repeats.left], among[repeats.right], bits=repeats.bits)


class Neighborhoods(NamedTuple):
    """Where the copies of a row are looked for: its cluster and those adjoining it."""

    clusters: Int32[np.ndarray, " n"]
    """Of the rows among which duplicates are looked for, in order of preference."""
    adjoining: Entries
    """Per cluster, the others next to it."""


def neighborhoods(
    clusters: Int32[np.ndarray, " n"], centroids: Float32[np.ndarray, "k d"], neighbors: int
) -> Neighborhoods:
    return Neighborhoods(clusters, _adjoining(centroids, neighbors))


def semantic_pairs(
    points: Points, among: Int64[np.ndarray, " n"], near: Neighborhoods, rule: Rule
) -> Pairs:
    """The rows to drop (right), each with the first kept row of its neighborhood that is alike
    (left).

    Same result as a scan in order of preference that drops a row if an earlier kept row matches it.
    Each round settles every row whose first surviving match is already kept; only chains of matches
    need more rounds.
    """
    points = points.subset(among)
    is_kept = np.zeros(len(among), bool)
    is_dropped = np.zeros(len(among), bool)
    undecided = np.arange(len(among))
    dropped = [NO_PAIRS]

    while len(undecided):
        possible = np.flatnonzero(~is_dropped)
        first = _first_alike(points, near, undecided, possible, rule)
        is_kept[np.setdiff1d(undecided, first.right)] = True
        dropped.append(first.where(is_kept[first.left]))
        is_dropped[dropped[-1].right] = True
        undecided = np.sort(first.right[~is_kept[first.left]])

    pairs = joined(dropped)
    return pairs._replace(left=among[pairs.left], right=among[pairs.right])


def nearest_others(points: Points, among: Int64[np.ndarray, " n"], near: Neighborhoods) -> Pairs:
    """Some evenly spaced rows (right), each with the nearest other row of its neighborhood
    (left).
    """
    points = points.subset(among)
    asked = np.arange(0, len(among), max(1, len(among) // SAMPLED_ROWS))
    search = _Search(
        *_by_cluster(near, asked), *_by_cluster(near, np.arange(len(among))), near.adjoining
    )

    parts = even_parts(search.offsets, PARTS)
    pairs = joined(
        Pairs(*found) for _, found in points.scan_items("apply", parts, nearest_in_clusters, search)
    )

    return pairs._replace(left=among[pairs.left], right=among[pairs.right])


def _adjoining(centroids: Float32[np.ndarray, "k d"], neighbors: int) -> Entries:
    """For each cluster, the clusters that are among its nearest, or it among theirs."""
    count = min(neighbors, len(centroids) - 1)
    norms = np.einsum("kd,kd->k", centroids, centroids)
    edges = [np.empty((2, 0), np.int64)]
    step = max(1, min(1024, ADJOINING_SCORES // len(centroids)))

    for start in range(0, len(centroids) if count else 0, step):
        scores = norms - 2 * centroids[start : start + step] @ centroids.T
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = np.inf
        nearest = np.argpartition(scores, count - 1, axis=1)[:, :count]
        edges.append(np.stack([np.repeat(own, count), nearest.reshape(-1)]))

    # each edge in both directions, once
    left, right = np.concatenate(edges, axis=1)
    own, other = np.unique(np.stack([np.r_[left, right], np.r_[right, left]]), axis=1)
    return Entries(np.searchsorted(own, np.arange(len(centroids) + 1)), other.astype(np.int32))


class _Search(NamedTuple):
    """What the workers share: rows that ask and rows that may answer, both by cluster and ascending
    in each.
    """

    asked: Int64[np.ndarray, " asked"]
    offsets: Int64[np.ndarray, " k_plus_1"]
    others: Int64[np.ndarray, " others"]
    other_offsets: Int64[np.ndarray, " k_plus_1"]
    adjoining: Entries

    def neighborhoods(
        self, clusters: Span
    ) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]]:
        """For each cluster of a range with rows that ask: these, and the rows of its neighborhood,
        ascending.
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
    """Those of the rows asked (right) that are like a possible row before them, with the first of
    these (left).
    """
    search = _Search(*_by_cluster(near, asked), *_by_cluster(near, possible), near.adjoining)
    parts = even_parts(search.offsets, max(PARTS, len(asked) // PART_ROWS))
    found = points.scan_items("apply", parts, first_alike_in_clusters, search, rule)
    return joined(Pairs(*pairs) for _, pairs in found)


def first_alike_in_clusters(clusters: Span, points: Points, search: _Search, rule: Rule) -> Pairs:
    """The rows asked of a range of clusters, each with the first row like it: what one worker
    does.
    """
    found = list[Pairs]()
    for rows, others in search.neighborhoods(clusters):
        found += _first_in_order(points, rows, others, rule)
    return joined(found)


def nearest_in_clusters(clusters: Span, points: Points, search: _Search) -> Pairs:
    """The rows asked of a range of clusters, each with the nearest other row: what one worker
    does.
    """
    found = list[Pairs]()
    for rows, others in search.neighborhoods(clusters):
        x = points.gather(rows)
        best = np.full(len(rows), -np.inf, np.float32)
        nearest = np.full(len(rows), -1, np.int64)

        for start in range(0, len(others), TILE_ROWS):
            columns = others[start : start + TILE_ROWS]
            cosines = np.where(columns == rows[:, None], -np.inf, x @ points.gather(columns).T)
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(rows)), place].astype(np.float32)
            nearest = np.where(value > best, columns[place], nearest)
            best = np.maximum(best, value)

        found.append(pairs_of(nearest, rows, best).where(nearest >= 0))

    return joined(found)


def _first_in_order(
    points: Points, rows: Int64[np.ndarray, " n"], others: Int64[np.ndarray, " m"], rule: Rule
) -> Iterator[Pairs]:
    """Products screen in tiles, the pairs that pass decide: independent of how the tiles were
    cut.
    """
    for start in range(0, len(rows), TILE_ROWS):
        waiting = rows[start : start + TILE_ROWS]
        x = points.gather(waiting)
        before = others[: np.searchsorted(others, waiting[-1])]

        for begin in range(0, len(before), TILE_ROWS):
            columns = before[begin : begin + TILE_ROWS]
            y = points.gather(columns)
            is_found = np.zeros(len(waiting), bool)
            close = (x @ y.T >= rule.screen - SCREEN_ROUNDING) & (columns < waiting[:, None])

            # each turn looks at the first pair of every row that still has one
            while len(place := np.flatnonzero(close.any(axis=1))):
                first = close[place].argmax(axis=1)
                close[place, first] = False
                cosine = np.einsum("nd,nd->n", x[place], y[first])
                pairs = pairs_of(columns[first], waiting[place], cosine)
                pairs = pairs.where(is_alike := _is_alike(points, pairs, rule))
                yield pairs
                close[place[is_alike]] = False
                is_found[place[is_alike]] = True

            waiting = waiting[~is_found]
            x = x[~is_found]


def _is_alike(points: Points, pairs: Pairs, rule: Rule) -> Bool[np.ndarray, " pairs"]:
    """By cosine alone, or by a likely cosine and a near hash of a form."""
    is_alike = pairs.cosine >= rule.least
    if rule.form_bits is not None:
        asked = np.flatnonzero(~is_alike & (pairs.cosine >= rule.cosines.likely))
        bits = pair_distances(points, pairs.left[asked], pairs.right[asked])
        is_alike[asked] = bits <= rule.form_bits
    return is_alike


def pair_distances(
    points: Points, left: Int64[np.ndarray, " pairs"], right: Int64[np.ndarray, " pairs"]
) -> Int32[np.ndarray, " pairs"]:
    """Bits between rows of the same shards or their forms; rows are numbered as the points are."""
    assert isinstance(points.vectors, ShardVectors)
    shards = points.vectors.shards
    if not len(left):
        return np.full(0, FAR, np.int32)
    rows = (left, right) if points.rows is None else (points.rows[left], points.rows[right])
    return form_distances(
        *(shards.perceptual_hashes(each, shards.spec.num_hashes) for each in rows)
    )
