"""Passes over rows by worker processes, which read their vectors block by block.

The rows are cut into spans. Spans depend on the number of rows only, and results come back in row
order: a sum over them has the same bits for any number of workers and any cut into shards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from curation.clusters.config import Engine
from curation.clusters.kernels import add_by_label, squared_distances
from curation.clusters.nearest import Assigner
from curation.clusters.spans import Span, cut_spans
from curation.clusters.vectors import ArrayVectors, Vectors, to_unit

BLOCK_VALUES = 1 << 19  # 2 MB per block of vectors, which stays in the processor's cache

# Candidates for empty clusters: the 64 farthest of every 16th row of a block. Few clusters become
# empty in an iteration, so a sample is enough; k-means searches all rows when it is not.
FAR_STRIDE = 16
FAR_ROWS = 64

SAMPLE_ROWS = 32  # that tell how to search the others

Pass = Literal["sums", "labels", "farthest", "faults", "apply"]
"""What a worker does with each span: the name of a method of `Scanner`."""


class Far(NamedTuple):
    """Rows far from their centroid, farthest first: candidates for an empty cluster."""

    rows: Int64[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]

    def farthest(self, most: int) -> "Far":
        """The `most` farthest of them; ties go to the lower row."""
        # lexsort sorts by its last key first: by falling distance, then by row.
        order = np.lexsort((self.rows, -self.distances))[:most]
        return Far(self.rows[order], self.distances[order])


class Sums(NamedTuple):
    """Partial sums of one span, for the centroids that are nearest to at least one of its rows.

    A span cannot have more of these centroids than rows, so the message stays small.
    """

    labels: Int64[np.ndarray, " won"]
    vectors: Float64[np.ndarray, "won d"]
    counts: Int64[np.ndarray, " won"]
    squares: float
    """Sum of the squared lengths of all rows of the span."""
    far: Far


@runtime_checkable
class Workers(Protocol):
    """A pool of `Scanner`s: `cluster.fanout.Pool`, or `InProcess`."""

    def map(
        self, method: str, items: Sequence[Span], *shared: object
    ) -> Iterator[tuple[Span, Any]]:
        """(item, scanner.method(item, *shared)) for each item, in any order."""
        ...


@dataclass(frozen=True)
class Points:
    """The vectors to cluster, and the workers that scan them."""

    vectors: Vectors
    workers: Workers
    rows: Int64[np.ndarray, " n"] | None = None
    """The rows of `vectors` that are points; None: all of them."""
    engine: Engine = "auto"

    @property
    def unit(self) -> bool:
        """Whether the vectors have length one."""
        return self.vectors.unit

    @property
    def num_rows(self) -> int:
        """The number of points."""
        return self.vectors.num_rows if self.rows is None else len(self.rows)

    def gather(
        self, rows: Int64[np.ndarray, " n"], out: Float32[np.ndarray, "n dim"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Vectors by their number among these points; in `out` if it is not None."""
        return self.vectors.gather(rows if self.rows is None else self.rows[rows], out)

    def subset(self, rows: Int64[np.ndarray, " n"]) -> "Points":
        """Some of these points, in the order of `rows`."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def scan(self, method: Pass, *shared: object) -> Iterator[tuple[Span, Any]]:
        """(span, result of the Scanner method) for every span of the points, in row order.

        `shared` are further arguments of the method.
        """
        return self.scan_items(method, cut_spans(self.num_rows), *shared)

    def scan_items(
        self, method: Pass, items: Sequence[Span], *shared: object
    ) -> Iterator[tuple[Span, Any]]:
        """(item, result of the Scanner method) for every item, in the order of `items`.

        An item is a range of anything that the method knows, such as clusters.
        """
        early: dict[Span, Any] = {}
        expected = iter(items)
        item = next(expected, None)

        # Workers answer in any order. A result that comes early waits here for those before it.
        for done, result in self.workers.map(method, items, self.without_workers(), *shared):
            early[done] = result
            while item in early:
                yield item, early.pop(item)
                item = next(expected, None)

    def without_workers(self) -> "Points":
        """These points as they are sent to a worker process, which has no workers of its own."""
        return replace(self, workers=InProcess())


class Scanner:
    """Lives in a worker process. The result of a method depends on its arguments alone."""

    def __init__(self) -> None:
        self._assigner: Assigner | None = None

    def sums(self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"]) -> Sums:
        """Per centroid, sum and number of the rows nearest to it; and some far rows."""
        # The system allocates a page of zeros when it is first written to. Centroids that are
        # nearest to no row of the span therefore use no memory.
        sums = np.zeros(centroids.shape)
        counts = np.zeros(len(centroids), np.int64)
        squares = 0.0
        far = []
        start = span[0]

        for x, labels in self._labeled(span, points, centroids):
            squares += add_by_label(x, labels, sums, counts)
            sample = np.arange(0, len(x), FAR_STRIDE)
            distances = _distances(x[sample], centroids, labels[sample])
            far.append(Far(start + sample, distances).farthest(FAR_ROWS))
            start += len(x)

        # Indexing copies the sums, which is not needed where every centroid is nearest to a row.
        won = np.flatnonzero(counts)
        sums_won = sums if len(won) == len(sums) else sums[won]
        farthest = Far(*map(np.concatenate, zip(*far, strict=True))).farthest(FAR_ROWS)
        return Sums(won, sums_won, counts[won], squares, farthest)

    def labels(
        self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"]
    ) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Per row, the nearest centroid and the squared distance to it."""
        labels = [np.empty(0, np.int32)]
        distances = [np.empty(0, np.float32)]
        for x, nearest in self._labeled(span, points, centroids):
            labels.append(nearest)
            distances.append(_distances(x, centroids, nearest))
        return np.concatenate(labels), np.concatenate(distances)

    def farthest(
        self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"], most: int
    ) -> Far:
        """The `most` rows of the span that are farthest from their nearest centroid."""
        distances = self.labels(span, points, centroids)[1]
        return Far(np.arange(*span), distances).farthest(most)

    def faults(
        self, span: Span, points: Points
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
        """(rows with a value that is not finite, rows of zeros): neither can be clustered."""
        not_finite = [np.empty(0, np.int64)]
        zero = [np.empty(0, np.int64)]
        start = span[0]

        for x in _blocks(span, points, _block_rows(points)):
            is_finite = np.isfinite(x).all(axis=1)
            not_finite.append(start + np.flatnonzero(~is_finite))
            zero.append(start + np.flatnonzero(~x.any(axis=1)))
            start += len(x)

        return np.concatenate(not_finite), np.concatenate(zero)

    def apply(
        self, item: Span, points: Points, function: Callable[..., Any], *shared: object
    ) -> Any:
        """function(item, points, *shared): for passes that are defined where they are used."""
        return function(item, points, *shared)

    def _labeled(
        self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"]
    ) -> Iterator[tuple[Float32[np.ndarray, "n d"], Int32[np.ndarray, " n"]]]:
        """The vectors of a span with their nearest centroids, block by block.

        A GPU searches many blocks at once. What follows the search goes block by block on every
        machine, so that its sums have the same bits.
        """
        assigner = self._assigner_of(span, points, centroids)
        num_rows = _block_rows(points)
        at_once = max(1, assigner.screen.tile_rows // num_rows)
        for x in _blocks(span, points, at_once * num_rows):
            labels = assigner(x)
            for start in range(0, len(x), num_rows):
                block = slice(start, start + num_rows)
                yield x[block], labels[block]

    def _assigner_of(
        self, span: Span, points: Points, centroids: Float32[np.ndarray, "k d"]
    ) -> Assigner:
        """Centroids prepared for search, once for all spans of a pass.

        Preparing them takes up to a fifth of the time of a small span.
        """
        last = self._assigner
        wanted = (points.unit, points.engine)
        if last is None or wanted != (last.unit, last.engine) or not _equal(centroids, last):
            start, stop = span
            sample = points.gather(np.arange(start, stop, max(1, (stop - start) // SAMPLE_ROWS)))
            self._assigner = last = Assigner(centroids, points.unit, points.engine, sample)
        return last


def _equal(centroids: Float32[np.ndarray, "k d"], assigner: Assigner) -> bool:
    return np.array_equal(centroids, assigner.centroids)


def _block_rows(points: Points) -> int:
    return max(1, BLOCK_VALUES // points.vectors.dim)


def _blocks(span: Span, points: Points, num_rows: int) -> Iterator[Float32[np.ndarray, "n d"]]:
    """The vectors of a span, `num_rows` at a time; each block overwrites the one before."""
    block = np.empty((min(num_rows, span[1] - span[0]), points.vectors.dim), np.float32)
    for start in range(span[0], span[1], num_rows):
        rows = np.arange(start, min(start + num_rows, span[1]))
        yield points.gather(rows, block[: len(rows)])


def _distances(
    x: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    labels: Int32[np.ndarray, " n"],
) -> Float32[np.ndarray, " n"]:
    distances = np.empty(len(x), np.float32)
    squared_distances(x, centroids, labels, distances)
    return distances


class InProcess:
    """The workers of small data: this process itself."""

    def map(self, method: str, items: Sequence[Any], *shared: object) -> Iterator[tuple[Any, Any]]:
        """(item, scanner.method(item, *shared)) for each item, in order."""
        scanner = Scanner()
        for item in items:
            yield item, getattr(scanner, method)(item, *shared)


def points_in_memory(
    array: Float32[np.ndarray, "n dim"], unit: bool, engine: Engine = "auto"
) -> Points:
    """Points that fit in memory, scanned by this process; scaled to length one if `unit`."""
    return Points(ArrayVectors(to_unit(array) if unit else array, unit), InProcess(), engine=engine)
