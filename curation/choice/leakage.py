"""Leakage: images of the pool that are copies of an evaluation image; captions that occur in an
evaluation set.

Evaluation images come as a folder of embeddings made by the same backbone. A row of the pool counts
once, by its most certain sign: equal pixels or bytes, a near perceptual hash, a form of its nearest
evaluation image, a near vector.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from curation.choice.config import LeakageConfig, LikenessConfig
from curation.choice.decisions import Margin, Sign
from curation.choice.duplicates import Pairs, pairs_of
from curation.choice.hashes import HashIndex, form_distances, nearest_turned
from curation.choice.likeness import calibrate, rule_of
from curation.clusters.kmeans import assign
from curation.clusters.scan import Points
from curation.clusters.spans import Span
from curation.clusters.vectors import ShardVectors
from curation.shards.reader import EmbeddingShards
from curation.shards.schema import BYTES_HASH, CAPTIONS, CLS, PIXEL_HASH

HASHED_ROWS = 4096  # at a time, in each of 8 orientations
FORM_ROWS = 1024
FORM_ROUNDS = 2
END_PUNCTUATION = " .!?,;:…。．！？、，；：।"


class Finding(NamedTuple):
    """Rows of the pool (right) that are copies of evaluation images (left), by one sign."""

    sign: Sign
    pairs: Pairs


class Leaks(NamedTuple):
    """What was found in one evaluation set, and the pairs next to each threshold."""

    findings: list[Finding]
    margins: list[Margin]


def find_leakage(
    pool: EmbeddingShards,
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    config: LeakageConfig,
) -> Leaks:
    """Copies of the images of one evaluation folder, the most certain sign first; a row occurs
    once.

    Rows in `among`, those that have a vector, are compared by hash and vector.
    """
    alike = config.alike
    leaks = Leaks([], [])
    if not other.num_rows:
        return leaks

    left = np.empty(0, np.int64)
    if alike.exact:
        for column in (PIXEL_HASH, BYTES_HASH):
            pairs = _equal_hashes(pool, other, column)
            leaks.findings.append(Finding("same image", pairs.where(~np.isin(pairs.right, left))))
            left = np.union1d(left, pairs.right)

    among = np.setdiff1d(among, left)
    if alike.hash_bits is not None:
        check_hashed(pool, "the pool")
        check_hashed(other, "the evaluation set")
        among = _by_hash(points, among, other, alike.hash_bits, leaks)
    if alike.uses_vectors:
        check_same_model(pool, other)
        _by_vector(points, among, other, alike, leaks)

    return leaks


def check_same_model(pool: EmbeddingShards, other: EmbeddingShards) -> None:
    """ValueError unless one backbone made both."""
    if (pool.spec.digest, pool.spec.dim) != (other.spec.digest, other.spec.dim):
        raise ValueError(
            f"{other.folder} was embedded by {other.spec.backbone} ({other.spec.digest[:12]}), "
            f"the pool by {pool.spec.backbone} ({pool.spec.digest[:12]}): leakage needs one "
            "backbone for both; embed the evaluation images with the pool's"
        )


def check_hashed(shards: EmbeddingShards, what: str) -> None:
    """ValueError when a folder has no perceptual hashes."""
    if not shards.spec.num_hashes:
        raise ValueError(
            f"{shards.folder}, {what}, has no perceptual hashes: copies are looked for by them; "
            "embed it again, or set hash_bits and form_bits to None"
        )


def pool_of(points: Points) -> EmbeddingShards:
    """The shards that the points are vectors of."""
    assert isinstance(points.vectors, ShardVectors)
    return points.vectors.shards


def _equal_hashes(pool: EmbeddingShards, other: EmbeddingShards, column: str) -> Pairs:
    known, first = np.unique(other.hashes(column), return_index=True)
    hashes = pool.hashes(column)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    rows = np.flatnonzero(known[place] == hashes)
    return pairs_of(first[place[rows]].astype(np.int64), rows, 1.0)


def _by_hash(
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    most_bits: int,
    leaks: Leaks,
) -> Int64[np.ndarray, " rest"]:
    """Add the rows whose hash is near that of an evaluation image; returns the others."""
    known = other.perceptual_hashes(np.arange(other.num_rows), 1)[:, 0]
    spans = [found for _, found in points.subset(among).scan("apply", nearest_hashes, known)]
    bits, number = (
        (np.concatenate(columns) for columns in zip(*spans, strict=True)) if spans else _NOTHING
    )

    pairs = pairs_of(number, among, bits=bits)
    is_copy = bits <= most_bits
    leaks.findings.append(Finding("perceptual hash", pairs.where(is_copy)))
    leaks.margins.append(Margin("perceptual hash", most_bits, pairs.where(number >= 0)))

    return among[~is_copy]


_NOTHING = np.empty(0, np.int32), np.empty(0, np.int64)


def nearest_hashes(
    span: Span, points: Points, known: UInt8[np.ndarray, "m bytes"]
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Per row of a span, the bits to the nearest known hash and its number: what one worker
    does.
    """
    shards = pool_of(points)
    index = HashIndex(known, len(known))
    index.add(known)

    rows = np.arange(*span) if points.rows is None else points.rows[span[0] : span[1]]
    bits = [_NOTHING[0]]
    number = [_NOTHING[1]]

    for start in range(0, len(rows), HASHED_ROWS):
        hashes = shards.perceptual_hashes(rows[start : start + HASHED_ROWS], 1)[:, 0]
        nearest = nearest_turned(index, hashes)
        bits.append(nearest.bits)
        number.append(nearest.number)

    return np.concatenate(bits), np.concatenate(number)


def _by_vector(
    points: Points,
    among: Int64[np.ndarray, " n"],
    other: EmbeddingShards,
    alike: LikenessConfig,
    leaks: Leaks,
) -> None:
    """Add the rows that are near their nearest evaluation image: by a form of it, or by cosine
    alone.
    """
    targets = ShardVectors(other.folder, CLS, unit=True).gather(np.arange(other.num_rows))
    _check_finite(other, targets)
    nearest, squared = assign(points.subset(among), targets)
    pairs = pairs_of(nearest.astype(np.int64), among, 1 - squared / 2)

    rule = rule_of(alike, calibrate(pairs.cosine, alike.false_rate))

    if alike.form_bits is not None:
        check_hashed(pool_of(points), "the pool")
        check_hashed(other, "the evaluation set")
        for _ in range(FORM_ROUNDS):
            asked = np.flatnonzero(pairs.cosine >= rule.cosines.likely)
            bits = _form_bits(points, pairs.where(asked), other)
            compared = pairs.where(asked)._replace(bits=bits)
            is_copy = bits <= alike.form_bits
            leaks.findings.append(Finding("altered form", compared.where(is_copy)))
            leaks.margins.append(Margin("altered form", alike.form_bits, compared))

            # what is left without the copies tells better what is near by chance
            pairs = pairs.where(np.setdiff1d(np.arange(len(pairs.left)), asked[is_copy]))
            rule = rule_of(alike, calibrate(pairs.cosine, alike.false_rate))

    if alike.cosine is not None:
        leaks.findings.append(Finding("cosine", pairs.where(pairs.cosine >= rule.least)))
        leaks.margins.append(Margin("cosine", rule.least, pairs))


def _check_finite(other: EmbeddingShards, targets: Float32[np.ndarray, "n d"]) -> None:
    bad = np.flatnonzero(~np.isfinite(targets).all(axis=1))
    if len(bad):
        keys = other.keys().take(pa.array(bad[:5])).to_pylist()
        raise ValueError(
            f"{len(bad)} vectors of {other.folder} hold NaN or infinite values (keys {keys}): no "
            "image can be compared with them; look at these images, take them out, and embed the "
            "evaluation set again"
        )


def _form_bits(points: Points, pairs: Pairs, other: EmbeddingShards) -> Int32[np.ndarray, " pairs"]:
    asked = points.subset(pairs.right)
    spans = [bits for _, bits in asked.scan("apply", form_bits_of_span, other, pairs.left)]
    return np.concatenate([_NOTHING[0], *spans])


def form_bits_of_span(
    span: Span, points: Points, other: EmbeddingShards, evaluation_rows: Int64[np.ndarray, " n"]
) -> Int32[np.ndarray, " span"]:
    """Per row of a span, the fewest bits to its evaluation image or a form of it: what one worker
    does.
    """
    shards = pool_of(points)
    rows = np.arange(points.num_rows) if points.rows is None else points.rows

    bits = [_NOTHING[0]]

    for start in range(span[0], span[1], FORM_ROWS):
        block = slice(start, min(start + FORM_ROWS, span[1]))
        ours = shards.perceptual_hashes(rows[block], shards.spec.num_hashes)
        theirs = other.perceptual_hashes(evaluation_rows[block], other.spec.num_hashes)
        bits.append(form_distances(ours, theirs))

    return np.concatenate(bits)


def captions_in(points: Points, other: EmbeddingShards) -> Pairs:
    """Rows of the pool (right) with a caption of an evaluation set, and its row with the first such
    caption (left).

    Case, spaces, end punctuation and Unicode's compatible forms make no difference.
    """
    known, evaluation_rows = _flat_captions(other)
    rows = [np.empty(0, np.int64)]
    places = [np.empty(0, np.int32)]
    for _, (span_rows, span_places) in points.scan("apply", find_captions, known):
        rows.append(span_rows)
        places.append(span_places)

    return pairs_of(evaluation_rows[np.concatenate(places)], np.concatenate(rows))


def find_captions(
    span: Span, points: Points, known: pa.LargeStringArray
) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """The rows of a span with a known caption, and where the first such is: what one worker
    does.
    """
    captions, rows = _flat_captions(pool_of(points), span)
    place = pc.index_in(captions, known)
    is_known: Bool[np.ndarray, " n"] = place.is_valid().to_numpy(zero_copy_only=False)
    found, first = np.unique(rows[is_known], return_index=True)
    return found, place.fill_null(0).to_numpy(zero_copy_only=False)[is_known][first]


def _flat_captions(
    shards: EmbeddingShards, span: Span | None = None
) -> tuple[pa.LargeStringArray, Int64[np.ndarray, " n"]]:
    """Every caption, or those of a range of rows, as they are compared, and the row that each
    belongs to.
    """
    column = shards.strings(CAPTIONS, span).combine_chunks()
    rows = np.arange(len(column)) + (span[0] if span else 0)
    captions = compared_captions(column.flatten())

    # a caption of nothing but punctuation equals no other
    owners = np.repeat(rows, pc.list_value_length(column).to_numpy())
    is_text = pc.not_equal(captions, "")

    return captions.filter(is_text), owners[is_text.to_numpy(zero_copy_only=False)]


def compared_captions(captions: pa.LargeStringArray) -> pa.LargeStringArray:
    """Captions in lower case and Unicode's compatible composed form, single-spaced, without
    punctuation at the end.
    """
    plain = pc.utf8_lower(pc.utf8_normalize(captions, form="NFKC"))
    spaced = pc.utf8_trim_whitespace(
        pc.replace_substring_regex(plain, pattern=r"\s+", replacement=" ")
    )
    return pc.utf8_rtrim(spaced, characters=END_PUNCTUATION)
