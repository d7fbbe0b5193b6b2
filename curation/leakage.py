"""Leakage: images of the pool that are, or nearly are, images of an evaluation set; captions that occur in one.

Evaluation images come as a folder of embeddings made by the same backbone. Each row of the pool gets at most one
finding, the most certain: equal pixels or bytes, then close perceptual hashes, then close vectors, then equal captions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64

from curation.dedup import close_hash_pairs
from curation.kmeans import assign
from curation.scan import Points
from curation.schema import BYTES_HASH, CAPTIONS, CLS, PERCEPTUAL_HASH, PIXEL_HASH
from curation.shards import EmbeddingShards
from curation.vectors import ShardVectors

How = Literal["same image", "perceptual hash", "cosine", "caption"]


@dataclass(frozen=True)
class LeakageConfig:
    exact: bool = True
    """Find pool images whose bytes or pixels equal an evaluation image's."""
    perceptual_bits: int = 1
    """Find pool images whose perceptual hash differs in at most this many of 64 bits; -1: not used."""
    perceptual_cosine: float = 0.97
    """... when the cosine of their vectors is also at least this."""
    cosine: float = 0.985
    """Find pool images whose vector has at least this cosine with an evaluation image's; above 1: not used."""
    captions: Literal["list", "remove"] = "list"
    """Pool pairs one of whose captions equals an evaluation caption: listed in the decisions, or removed too."""


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
    if config.exact:
        for column in (PIXEL_HASH, BYTES_HASH):
            rows, found = _equal_hashes(pool, other, column)
            yield Finding("same image", rows, found, np.ones(len(rows), np.float32))
    if config.perceptual_bits >= 0:
        rows, found = _close_hashes(pool, other, among, config.perceptual_bits)
        cosine = np.einsum("nd,nd->n", points.gather(rows), targets[found])
        sure = cosine >= config.perceptual_cosine
        yield Finding("perceptual hash", rows[sure], found[sure], cosine[sure])
    if config.cosine <= 1:
        nearest, squared = assign(points.subset(among), targets)
        close = 1 - squared / 2 >= config.cosine
        yield Finding("cosine", among[close], nearest[close].astype(np.int64), 1 - squared[close] / 2)
    rows, found = _equal_captions(pool, other)
    yield Finding("caption", rows, found, np.full(len(rows), np.nan, np.float32))


def _check_same_model(pool: EmbeddingShards, other: EmbeddingShards) -> None:
    if (pool.spec.digest, pool.spec.dim) != (other.spec.digest, other.spec.dim):
        raise ValueError(
            f"{other.folder} was embedded by {other.spec.backbone} ({other.spec.digest[:12]}), the pool by "
            f"{pool.spec.backbone} ({pool.spec.digest[:12]}): leakage needs one backbone for both; embed the "
            "evaluation images with the pool's"
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
    pool: EmbeddingShards, other: EmbeddingShards, among: Int64[np.ndarray, " n"], bits: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """All rows of the pool with a close evaluation hash; distinct hashes are compared, then spread to their rows."""
    hashes, known = pool.hashes(PERCEPTUAL_HASH)[among], other.hashes(PERCEPTUAL_HASH)
    ours, inverse = np.unique(hashes, return_inverse=True)
    theirs, first = np.unique(known, return_index=True)
    left, right = close_hash_pairs(np.concatenate([ours, theirs]), bits)
    crossing = (left < len(ours)) & (right >= len(ours))
    near = np.full(len(ours), -1, np.int64)
    near[left[crossing][::-1]] = first[right[crossing][::-1] - len(ours)]
    close = near[inverse] >= 0
    return among[close], near[inverse[close]]


def _equal_captions(
    pool: EmbeddingShards, other: EmbeddingShards
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    ours, rows = _flat_captions(pool)
    theirs, evaluation_rows = _flat_captions(other)
    place = pc.index_in(ours, theirs)
    known: Bool[np.ndarray, " n"] = place.is_valid().to_numpy(zero_copy_only=False)
    found, first = np.unique(rows[known], return_index=True)
    places = place.fill_null(0).to_numpy(zero_copy_only=False)[known][first]
    return found, evaluation_rows[places]


def _flat_captions(shards: EmbeddingShards) -> tuple[pa.Array, Int64[np.ndarray, " n"]]:
    """Every caption in lower case without outer spaces, and the row it belongs to."""
    column = shards.strings(CAPTIONS).combine_chunks()
    captions = pc.utf8_lower(pc.utf8_trim_whitespace(column.flatten()))
    return captions, np.repeat(np.arange(len(column)), pc.list_value_length(column).to_numpy())
