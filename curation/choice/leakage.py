"""Leakage: images of the pool that are, or nearly are, images of an evaluation set; captions that occur in one.

Evaluation images come as a folder of embeddings made by the same backbone. Each row of the pool gets at most one
finding, the most certain: equal pixels or bytes, then close perceptual hashes, then close vectors, then equal captions.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int32, Int64

from curation.choice.config import LeakageConfig
from curation.choice.duplicates import close_hashes_between
from curation.clusters.groups import Entries
from curation.clusters.kmeans import assign
from curation.clusters.scan import Points
from curation.clusters.spans import Span
from curation.clusters.vectors import ShardVectors
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import BYTES_HASH, CAPTIONS, CLS, PERCEPTUAL_HASH, PIXEL_HASH

COMPARED_PAIRS = 1 << 14  # at a time

How = Literal["same image", "perceptual hash", "cosine", "caption"]


class Finding(NamedTuple):
    """Rows of the pool found in one evaluation set in one way."""

    how: How
    rows: Int64[np.ndarray, " n"]
    evaluation_rows: Int64[np.ndarray, " n"]
    cosine: Float32[np.ndarray, " n"]


def find_leakage(
    pool: EmbeddingShards, points: Points, among: Int64[np.ndarray, " n"], other: EmbeddingShards, config: LeakageConfig
) -> Iterator[Finding]:
    """Findings against one evaluation folder, most certain first; a row may occur in several.

    Vectors are compared for the rows in `among`: those that have one.
    """
    _check_same_model(pool, other)
    if not other.num_rows:
        return
    targets = ShardVectors(other.folder, CLS, unit=True).gather(np.arange(other.num_rows))
    _check_finite(other, targets)
    if config.exact:
        for column in (PIXEL_HASH, BYTES_HASH):
            rows, found = _equal_hashes(pool, other, column)
            yield Finding("same image", rows, found, np.ones(len(rows), np.float32))
    if config.perceptual_bits >= 0:
        for rows, found, cosine in _close_hashes(pool, points, among, other, targets, config.perceptual_bits):
            sure = cosine >= config.perceptual_cosine
            yield Finding("perceptual hash", rows[sure], found[sure], cosine[sure])
    if config.cosine <= 1:
        nearest, squared = assign(points.subset(among), targets)
        close = 1 - squared / 2 >= config.cosine
        yield Finding("cosine", among[close], nearest[close].astype(np.int64), 1 - squared[close] / 2)
    rows, found = _equal_captions(points, other)
    yield Finding("caption", rows, found, np.full(len(rows), np.nan, np.float32))


def _check_same_model(pool: EmbeddingShards, other: EmbeddingShards) -> None:
    if (pool.spec.digest, pool.spec.dim) != (other.spec.digest, other.spec.dim):
        raise ValueError(
            f"{other.folder} was embedded by {other.spec.backbone} ({other.spec.digest[:12]}), the pool by "
            f"{pool.spec.backbone} ({pool.spec.digest[:12]}): leakage needs one backbone for both; embed the "
            "evaluation images with the pool's"
        )


def _check_finite(other: EmbeddingShards, targets: Float32[np.ndarray, "n d"]) -> None:
    bad = np.flatnonzero(~np.isfinite(targets).all(axis=1))
    if len(bad):
        keys = other.keys().take(pa.array(bad[:5])).to_pylist()
        raise ValueError(
            f"{len(bad)} vectors of {other.folder} hold NaN or infinite values (keys {keys}): no image can be compared "
            "with them; look at these images, take them out, and embed the evaluation set again"
        )


def _equal_hashes(
    pool: EmbeddingShards, other: EmbeddingShards, column: str
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    known, first = np.unique(other.hashes(column), return_index=True)
    hashes = pool.hashes(column)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    rows = np.flatnonzero(known[place] == hashes)
    return rows, first[place[rows]].astype(np.int64)


def _close_hashes(
    pool: EmbeddingShards,
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    targets: Float32[np.ndarray, "m d"],
    bits: int,
) -> Iterator[tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"], Float32[np.ndarray, " rows"]]]:
    """Rows of the pool with close evaluation hashes, and which of these evaluation rows has the largest cosine."""
    hashes, inverse = np.unique(pool.hashes(PERCEPTUAL_HASH)[among], return_inverse=True)
    place, found = close_hashes_between(hashes, other.hashes(PERCEPTUAL_HASH), bits)
    near = Entries(np.searchsorted(place, np.arange(len(hashes) + 1)), found.astype(np.int32))
    numbers = near.counts()[inverse]
    rows = np.flatnonzero(numbers)
    for part in np.split(rows, np.flatnonzero(np.diff(np.cumsum(numbers[rows]) // COMPARED_PAIRS)) + 1):
        pairs = near.take(inverse[part])
        cosine = np.einsum("nd,nd->n", points.gather(among[part])[pairs.rows()], targets[pairs.values])
        best = np.lexsort((-cosine, pairs.rows()))[pairs.offsets[:-1]]
        yield among[part], pairs.values[best].astype(np.int64), cosine[best]


def _equal_captions(points: Points, other: EmbeddingShards) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Rows of the pool with a caption of the evaluation set, and which of its rows has the first such caption."""
    sought, evaluation_rows = _flat_captions(other)
    rows, places = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for _, (span_rows, span_places) in points.scan("apply", find_captions, sought):
        rows.append(span_rows)
        places.append(span_places)
    return np.concatenate(rows), evaluation_rows[np.concatenate(places)]


def find_captions(
    span: Span, points: Points, sought: pa.LargeStringArray
) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """The rows of a span with a caption among those sought, and where the first such is: what one worker does."""
    assert isinstance(points.vectors, ShardVectors)
    captions, rows = _flat_captions(points.vectors.shards, span)
    place = pc.index_in(captions, sought)
    known: Bool[np.ndarray, " n"] = place.is_valid().to_numpy(zero_copy_only=False)
    found, first = np.unique(rows[known], return_index=True)
    return found, place.fill_null(0).to_numpy(zero_copy_only=False)[known][first]


def _flat_captions(
    shards: EmbeddingShards, span: Span | None = None
) -> tuple[pa.LargeStringArray, Int64[np.ndarray, " n"]]:
    """Every caption, or those of a range of rows, in lower case without outer spaces, and the row it belongs to."""
    column = shards.strings(CAPTIONS, span).combine_chunks()
    captions = pc.utf8_lower(pc.utf8_trim_whitespace(column.flatten()))
    rows = np.arange(len(column)) + (span[0] if span else 0)
    return captions, np.repeat(rows, pc.list_value_length(column).to_numpy())
