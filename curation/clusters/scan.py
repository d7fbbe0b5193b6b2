"""Passes over rows by worker processes: the rows are cut into spans, workers read a span's vectors block by block.

Spans depend on the number of rows only, and results come back in row order: any sum over them has the same bits for any
number of workers and any shard layout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from curation.clusters.config import Engine
from curation.clusters.kernels import add_by_label, squared_distances
from curation.clusters.nearest import Assigner
from curation.clusters.spans import Span, cut_spans
from curation.clusters.vectors import ArrayVectors, Vectors, to_unit

BLOCK_VALUES = 1 << 19  # of one block of vectors: 2 MB, which stays near the processor
FAR_STRIDE, FAR_ROWS = 16, 64


class Far(NamedTuple):
    """Rows far from their centroid, farthest first: where an empty cluster should go."""

    rows: Int64[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]

    def farthest(self, most: int) -> "Far":
        order = np.lexsort((self.rows, -self.distances))[:most]
        return Far(self.rows[order], self.distances[order])


class Sums(NamedTuple):
    """What one k-means iteration needs of a span: of the centroids that are nearest to a row of it, so never large."""

    labels: Int64[np.ndarray, " met"]
    vectors: Float64[np.ndarray, "met d"]
    counts: Int64[np.ndarray, " met"]
    squares: float
    far: Far


@runtime_checkable
class Workers(Protocol):
    """A pool of `Scanner`s: `cluster.fanout.Pool`, or `InProcess`."""

    def map(self, method: str, items: Sequence[Span], *shared: object) -> Iterator[tuple[Span, Any]]:
        """(item, scanner.method(item, *shared)) for each item, in any order."""
        ...


@dataclass(frozen=True)
class Points:
    """The vectors to cluster: all rows, or some of them, and who scans them."""

    vectors: Vectors
    workers: Workers
    rows: Int64[np.ndarray, " n"] | None = None
    engine: Engine = "auto"

    @property
    def unit(self) -> bool:
        return self.vectors.unit

    @property
    def num_rows(self) -> int:
        return self.vectors.num_rows if self.rows is None else len(self.rows)

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Vectors by their number among these points; written into `out` when one is given."""
        return self.vectors.gather(rows if self.rows is None else self.rows[rows], out)

    def subset(self, rows: Int64[np.ndarray, " n"]) -> "Points":
        """Some of these points, in the order given."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def scan(self, method: str, *shared: object) -> Iterator[tuple[Span, Any]]:
        """Results of a Scanner method for every span, in row order."""
        return self.scan_items(method, cut_spans(self.num_rows), *shared)

    def scan_items(self, method: str, items: Sequence[Span], *shared: object) -> Iterator[tuple[Span, Any]]:
        """Results of a Scanner method for every item (a range of anything), in the order of the items."""
        early: dict[Span, Any] = {}
        expected = iter(items)
        item = next(expected, None)
        for done, result in self.workers.map(method, items, self.without_workers(), *shared):
            early[done] = result
            while item in early:
                yield item, early.pop(item)
                item = next(expected, None)

    def without_workers(self) -> "Points":
        """What travels to a worker process."""
        return replace(self, workers=InProcess())


class Scanner:
    """Lives in a worker process; every method is a pure function of its arguments."""

    def sums(self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"]) -> Sums:
        """Per centroid, the sum and number of the rows nearest to it; far rows among every 16th."""
        assigner = Assigner(centroids, points.unit, points.engine)
        # a page of zeros takes memory once it is written to: that of centroids which are met
        sums, counts, squares = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64), 0.0
        far, start = [], span[0]
        for x in _blocks(span, points):
            labels = assigner(x)
            squares += add_by_label(x, labels, sums, counts)
            some = np.arange(0, len(x), FAR_STRIDE)
            far.append(Far(start + some, _distances(x[some], centroids, labels[some])).farthest(FAR_ROWS))
            start += len(x)
        met = np.flatnonzero(counts)
        farthest = Far(*map(np.concatenate, zip(*far, strict=True))).farthest(FAR_ROWS)
        return Sums(met, sums if len(met) == len(sums) else sums[met], counts[met], squares, farthest)

    def labels(
        self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"]
    ) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Per row, the nearest centroid and the squared distance to it."""
        assigner = Assigner(centroids, points.unit, points.engine)
        labels, distances = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
        for x in _blocks(span, points):
            labels.append(assigner(x))
            distances.append(_distances(x, centroids, labels[-1]))
        return np.concatenate(labels), np.concatenate(distances)

    def farthest(self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"], most: int) -> Far:
        """The `most` rows farthest from their nearest centroid, among all."""
        return Far(np.arange(*span), self.labels(span, points, centroids)[1]).farthest(most)

    def faults(self, span: Span, points: Points) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
        """Rows that cannot be clustered: with a value that is not finite, and all zeros."""
        not_finite, zero, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], span[0]
        for x in _blocks(span, points):
            finite = np.isfinite(x).all(axis=1)
            not_finite.append(start + np.flatnonzero(~finite))
            zero.append(start + np.flatnonzero(~x.any(axis=1)))
            start += len(x)
        return np.concatenate(not_finite), np.concatenate(zero)

    def apply(self, item: Span, points: Points, function: Callable[..., Any], *shared: object) -> Any:
        """Any function of an item and the points, for passes that are defined where they are used."""
        return function(item, points, *shared)


def _blocks(span: Span, points: Points) -> Iterator[Float32[np.ndarray, "n d"]]:
    """A span's vectors, some at a time; each block is overwritten by the next."""
    num_rows = max(1, BLOCK_VALUES // points.vectors.dim)
    block = np.empty((min(num_rows, span[1] - span[0]), points.vectors.dim), np.float32)
    for start in range(span[0], span[1], num_rows):
        rows = np.arange(start, min(start + num_rows, span[1]))
        yield points.gather(rows, block[: len(rows)])


def _distances(
    x: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"], labels: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    distances = np.empty(len(x), np.float32)
    squared_distances(x, centroids, labels, distances)
    return distances


class InProcess:
    """The workers of small data: this very process."""

    def map(self, method: str, items: Sequence[Any], *shared: object) -> Iterator[tuple[Any, Any]]:
        scanner = Scanner()
        for item in items:
            yield item, getattr(scanner, method)(item, *shared)


def points_in_memory(array: Float32[np.ndarray, "n dim"], unit: bool, engine: Engine = "auto") -> Points:
    """Points that fit in memory, scanned by this process: the centroids of a level below."""
    return Points(ArrayVectors(to_unit(array) if unit else array, unit), InProcess(), engine=engine)
